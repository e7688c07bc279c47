"""The shorter way for pair losses that are everywhere: a softmax over rows (and columns), or logistic losses of pairs.

They need one number of a row, the log-sum-exp or the sum of logistic losses, and a sum over positives, which is linear
in the similarities: a product with the sum of the positives' embeddings. So no masks and no labels enter the pass over
pairs, and each entry costs one exponential. `shortcut` gives None where a loss needs more, and the formula itself runs.

With cosines c and temperature tau every entry is exp((c - 1) / tau), between exp(-2 / tau) and 1. In float32 this holds
as long as 2 / tau stays below 80; sharper softmaxes go the long way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossary.folds.pairs import exactly, multiple, once, usual
from lossary.folds.tiles import SIZES, Tile, fold, tiles, wide, zeros
from lossary.views.pairs import Pairs

STEEP = 80.0  # exp(-80) is still a normal number in float32


def shortcut(view: Pairs, fn: Callable[..., Tensor], hyper: dict[str, Any]) -> Tensor | None:
    """The items by the shorter way, [N]; None where there is none."""
    from lossary.formulas import contrastive

    ways: dict[Any, Callable[..., Tensor | None]] = {
        contrastive.supcon.fn: supcon,
        contrastive.clip.fn: clip,
        contrastive.siglip.fn: siglip,
    }
    plain = view.pair_weight is None and view.col_kept is None and (view.alone or view.label is None)
    return ways[fn](view, **hyper) if fn in ways and plain else None


def supcon(view: Pairs, tau: Tensor | float) -> Tensor | None:
    """`lossary.formulas.contrastive.supcon`."""
    if steep(tau):
        return None
    a, b = ends(view)
    lse: Tensor = _Rows.apply(view, True, a, b, number(tau, a))
    if view.col_label is None:
        return lse
    near, count = attraction(view.col_label, view.first, a, b)
    return lse - near / count.where(count > 0, 1) / tau


def clip(view: Pairs, tau: Tensor | float) -> Tensor | None:
    """`lossary.formulas.contrastive.clip`."""
    if view.alone:
        return supcon(view, tau)
    if view.across is not None:  # gathered: masks came in the way of a ring
        return None
    if steep(tau) or len(view.rows) != len(view.cols):
        return None
    a, b = ends(view)
    out: Tensor = _Both.apply(a, b, number(tau, a))
    return out


def siglip(view: Pairs, scale: Tensor | float, bias: Tensor | float) -> Tensor | None:
    """`lossary.formulas.contrastive.siglip`: softplus(z) of all pairs less z of the positives."""
    a, b = ends(view)
    total: Tensor = _Rows.apply(view, False, a, b, number(scale, a), number(bias, a))
    if view.col_label is None:
        return total
    near, count = attraction(view.col_label, view.first, a, b)
    return total - (scale * near + bias * count)


def ring(view: Pairs, fn: Callable[..., Tensor], hyper: dict[str, Any]) -> Tensor | None:
    """The items of two towers over processes, [N], with the columns going round; None where the loss needs them all."""
    from lossary.folds.ring import totals
    from lossary.formulas import contrastive

    if view.kept is not None or view.pair_weight is not None or len(view.rows) != len(view.cols):
        return None
    a, b = ends(view)
    positive, given = own(a, b), {k: number(x, a) for k, x in hyper.items()}
    if fn is contrastive.siglip.fn:
        scale, bias = given["scale"], given["bias"]
        return totals(a, b, False, (scale, bias), view.across)[0] - (scale * positive + bias)
    if fn is not contrastive.clip.fn or steep(hyper["tau"]):
        return None
    rows, cols = totals(a, b, True, (given["tau"],), view.across)
    return (rows + cols) / 2 - positive / given["tau"]


def ends(view: Pairs) -> tuple[Tensor, Tensor]:
    """Rows and columns of length 1 as they are multiplied: rounded, where embeddings of half precision came on CUDA."""
    return view.unit_rows.to(view.compute), view.unit_cols.to(view.compute)


def number(x: Tensor | float, of: Tensor) -> Tensor:
    """A hyperparameter beside embeddings."""
    return torch.as_tensor(x, dtype=wide(of), device=of.device)


def own(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of row i and column i, [N]."""
    return torch.linalg.vecdot(a.to(wide(a)), b.to(wide(b)))


def steep(tau: Tensor | float) -> bool:
    """Whether the smallest entry may be too small."""
    return 2 / float(tau.detach() if isinstance(tau, Tensor) else tau) > STEEP


def attraction(label: Tensor, first: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cosines with the positives, [N], and their number, [N]: the columns of the row's label but its own."""
    rows, a, b = slice(first, first + len(a)), a.to(wide(a)), b.to(wide(b))
    _, kind, count = label.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(count), b.shape[1], dtype=b.dtype, device=b.device).index_add(0, kind, b)
    return (a * (sums[kind[rows]] - a)).sum(-1), (count[kind[rows]] - 1).to(a.dtype)


class _Rows(torch.autograd.Function):
    """Of every row the log-sum-exp of z = c / tau, or the sum of softplus(z = scale c + bias), less z of its positive.

    The positive counts where there are no labels: it is the column of the row's number. In one set of embeddings a
    row's own column is left out.

    One number a row, so its gradient is known as soon as the row is: it is taken in the forward pass for a pull of 1 on
    every valid item, and again in the backward pass if the pull was another one.
    """

    @staticmethod
    def forward(ctx: Any, view: Pairs, soft: bool, a: Tensor, b: Tensor, *hyper: Tensor) -> Tensor:
        ctx.view, ctx.soft = view, soft
        ctx.save_for_backward(a, b, *hyper)
        out, ctx.taken = _over(view, soft, a, b, hyper, usual(view) if any(ctx.needs_input_grad) else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        once()
        taken, ctx.taken = ctx.taken, None
        factor = None if taken is None else multiple(grad, usual(ctx.view))
        if factor is None:
            a, b, *hyper = ctx.saved_tensors
            _, taken = _over(ctx.view, ctx.soft, a, b, tuple(hyper), grad)
        else:
            for x in taken:
                x.mul_(factor)
        return None, None, *taken


@exactly
def _over(
    view: Pairs, soft: bool, a: Tensor, b: Tensor, hyper: tuple[Tensor, ...], pull: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """The rows' numbers and, given a pull on them, the gradients by a, b and the hyperparameters."""
    scale = 1 / hyper[0] if soft else hyper[0]
    shift = -scale if soft else hyper[1]
    out = zeros(a[:, 0])
    by_a, by_b, by_shift = zeros(a), zeros(b), torch.zeros_like(scale)
    for tile in tiles(a, b, scale, whole=soft):
        if view.alone:
            tile.z.diagonal(view.first + tile.rows.start - tile.cols.start).fill_(-torch.inf)
        (_softmax if soft else _logistic)(tile, shift, out, pull)
        if pull is not None:
            tile.carry(by_a, by_b)
            by_shift += 0 if soft else tile.slopes.sum(dtype=out.dtype)
    if soft:
        out.log_().sub_(shift)
    if view.col_label is None:  # z of the positives, and what it takes off the gradients
        at = slice(view.first, view.first + len(a))
        out -= own(a, b[at]) * scale + (0 if soft else shift)
        if pull is not None:
            by_a.addcmul_(pull[:, None], b[at].to(out.dtype), value=-1)
            by_b[at].addcmul_(pull[:, None] * scale, a.to(out.dtype), value=-1)
            by_shift -= pull.sum()
    if pull is None:
        return out, []
    by_scale = by_a.flatten() @ a.flatten().to(out.dtype)
    grads = [by_a.mul_(scale), by_b]
    return out, [*grads, -by_scale * scale.square()] if soft else [*grads, by_scale, by_shift]


def _softmax(tile: Tile, shift: Tensor, total: Tensor, pull: Tensor | None) -> None:
    """The sums of exp(z + shift) over whole rows, and the gradient of pull times their logarithm."""
    for at in SIZES.lanes(tile.z):
        here, rows = tile.z[at], slice(tile.rows.start + at.start, tile.rows.start + at.stop)
        fold(here, shift, True, scale=tile.scale, rows=total[rows], slopes=here)
        if pull is not None:
            torch.mul(here, (pull[rows] / total[rows])[:, None], out=tile.slopes[at])


def _logistic(tile: Tile, shift: Tensor, total: Tensor, pull: Tensor | None) -> None:
    """The sums of softplus(z + shift), and the gradient of pull times them."""
    left = None if pull is None else pull[tile.rows]
    tile.fold(shift, False, rows=total[tile.rows], left=left, slope=pull is not None)


class _Both(torch.autograd.Function):
    """The mean log-sum-exp of z = c / tau over row i and over column i, less z_ii, [N]. Similarities are made twice.

    The largest entry is known, so sums over parts of a row simply add, and tiles need not be as wide as the matrix.
    """

    @staticmethod
    @exactly
    def forward(ctx: Any, a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
        rows, cols = zeros(a[:, 0]), zeros(b[:, 0])
        for tile in tiles(a, b, 1 / tau):
            tile.fold(-1 / tau, True, rows=rows[tile.rows], cols=cols[tile.cols])
        ctx.save_for_backward(a, b, tau, rows, cols)
        return (rows.log() + cols.log()).div_(2).add_(1 / tau).sub_(own(a, b) / tau)

    @staticmethod
    @exactly
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        once()
        a, b, tau, rows, cols = ctx.saved_tensors
        by_a, by_b = zeros(a), zeros(b)
        left, right = grad / (2 * rows), grad / (2 * cols)
        for tile in tiles(a, b, 1 / tau):
            tile.fold(-1 / tau, True, left=left[tile.rows], right=right[tile.cols], slope=True)
            tile.carry(by_a, by_b)
        by_a.addcmul_(grad[:, None], b.to(grad.dtype), value=-1)
        by_b.addcmul_(grad[:, None] / tau, a.to(grad.dtype), value=-1)
        by_scale = by_a.flatten() @ a.flatten().to(grad.dtype)
        return by_a.div_(tau), by_b, -by_scale / tau.square()
