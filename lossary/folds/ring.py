"""Two towers over processes, in a ring: shards of columns go round, and no process ever holds the columns of all.

Each process keeps its rows. A shard of columns [n, d] travels from process to process, meets their rows a few at a
time, and comes home with what it collected on the way: sums over its columns in the forward pass, its gradient in the
backward pass. So a process holds two shards, whatever the number of processes. For the losses of
`lossary.folds.quick`: a softmax over rows and columns, or logistic losses of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lossary.folds.across import sizes
from lossary.folds.pairs import exactly, once
from lossary.folds.tiles import tiles, wide, zeros


def totals(a: Tensor, b: Tensor, soft: bool, hyper: tuple[Tensor, ...], group: Any) -> tuple[Tensor, Tensor]:
    """Of the rows a [n, d] of this process against the columns b of all: numbers of its rows, and of its columns.

    soft: the log-sum-exp of c / tau, of both; else the sum of softplus(scale c + bias), of the rows.
    """
    return _Ring.apply(soft, group, a, b, *hyper)  # type: ignore[no-any-return]


def around(shard: Tensor, group: Any, meet: Callable[[Tensor], None]) -> Tensor:
    """Let `meet` see the shards of all processes in turn; it may write into them. Gives this one's back."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    counts = sizes(len(shard), group, shard.device)
    after, before = ((rank + step) % world for step in (1, -1))
    for step in range(world):
        meet(shard)
        if world == 1:
            break
        got = shard.new_empty(counts[(rank - step - 1) % world], shard.shape[1])
        peers = [dist.get_global_rank(group, r) for r in (after, before)]
        both = [dist.P2POp(dist.isend, shard, peers[0], group), dist.P2POp(dist.irecv, got, peers[1], group)]
        for sent in dist.batch_isend_irecv(both):
            sent.wait()
        shard = got
    return shard


class _Ring(torch.autograd.Function):
    @staticmethod
    @exactly
    def forward(ctx: Any, soft: bool, group: Any, a: Tensor, b: Tensor, *hyper: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1 / hyper[0] if soft else hyper[0]
        shift = -scale if soft else hyper[1]
        rows, d = zeros(a[:, 0]), b.shape[1]

        def meet(shard: Tensor) -> None:
            for tile in tiles(a, shard[:, :d].to(a.dtype), scale):
                tile.fold(shift, soft, rows=rows[tile.rows], cols=shard[tile.cols, d])

        cols = around(torch.cat([b.to(wide(b)), zeros(b[:, :1])], 1), group, meet)[:, d]
        if soft:
            rows, cols = rows.log() - shift, cols.log() - shift
        ctx.soft, ctx.group = soft, group
        ctx.save_for_backward(a, b, rows, cols, *hyper)
        return rows, cols

    @staticmethod
    @exactly
    def backward(ctx: Any, by_rows: Tensor, by_cols: Tensor) -> tuple[Any, ...]:
        once()
        a, b, rows, cols, *hyper = ctx.saved_tensors
        scale = 1 / hyper[0] if ctx.soft else hyper[0]
        shift = -scale if ctx.soft else hyper[1]
        left = by_rows * (-shift - rows).exp() if ctx.soft else by_rows
        right = by_cols * (-shift - cols).exp() if ctx.soft else by_cols
        by_a, by_shift, d = zeros(a), torch.zeros_like(scale), b.shape[1]

        def meet(shard: Tensor) -> None:
            for tile in tiles(a, shard[:, :d].to(a.dtype), scale):
                tile.fold(shift, ctx.soft, left=left[tile.rows], right=shard[tile.cols, d], slope=True)
                by_shift.add_(tile.slopes.sum(dtype=by_shift.dtype))
                tile.carry(by_a, shard[:, d + 1 :])

        home = around(torch.cat([b.to(wide(b)), right[:, None], zeros(b)], 1), ctx.group, meet)
        by_scale = (by_a * a.to(by_a.dtype)).sum()
        more = [-by_scale * scale.square()] if ctx.soft else [by_scale, by_shift]
        return None, None, by_a * scale, home[:, d + 1 :], *more
