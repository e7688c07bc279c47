"""The pass over a tile of similarities as one kernel (Triton, on CUDA): `lossary.folds.tiles.fold` calls it.

A program takes a piece of the tile and leaves the sums over its rows and columns in places of its own, which are added
up afterwards: no atomics, so the same input gives the same bits.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, index, arg-type"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HIGH, WIDE, WARPS = 32, 128, 8  # rows and columns of a piece; 16 numbers a thread, so that all threads fit on a GPU


@triton.jit
def _pass(
    z,
    scale,
    shift,
    rows,
    cols,
    left,
    right,
    slopes,
    n,
    m,
    stride,
    out_stride,
    soft: tl.constexpr,
    scaled: tl.constexpr,
    by_rows: tl.constexpr,
    by_cols: tl.constexpr,
    by_left: tl.constexpr,
    by_right: tl.constexpr,
    sloped: tl.constexpr,
    high: tl.constexpr,
    wide: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)
    j = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    inside = (i[:, None] < n) & (j[None, :] < m)
    x = tl.load(z + i[:, None] * stride + j[None, :], mask=inside, other=float("-inf"))
    if scaled:
        x = x * tl.load(scale)
    x = x + tl.load(shift)
    if soft:
        value = tl.exp(x)
        slope = value
    else:  # log(1 + e) for small e as Kahan has it: rounding of 1 + e cancels
        e = tl.exp(-tl.abs(x))
        one = 1 + e
        value = tl.maximum(x, 0.0) + tl.where(one == 1, e, tl.log(one) * (e / tl.where(one == 1, 1.0, one - 1)))
        slope = tl.where(x >= 0, 1 / one, e / one)
    if by_rows:
        tl.store(rows + tl.program_id(1).to(tl.int64) * n + i, tl.sum(value, 1), mask=i < n)
    if by_cols:
        tl.store(cols + tl.program_id(0).to(tl.int64) * m + j, tl.sum(value, 0), mask=j < m)
    if sloped:
        if by_left:
            factor = tl.load(left + i, mask=i < n, other=0.0)[:, None]
            if by_right:
                factor = factor + tl.load(right + j, mask=j < m, other=0.0)[None, :]
            slope = slope * factor
        tl.store(slopes + i[:, None] * out_stride + j[None, :], slope.to(slopes.dtype.element_ty), mask=inside)


def fold(
    z: Tensor,
    scale: Tensor | None,
    shift: Tensor,
    soft: bool,
    rows: Tensor | None,
    cols: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    slopes: Tensor | None,
) -> None:
    """See `lossary.folds.tiles.fold`."""
    n, m = z.shape
    grid = (triton.cdiv(n, HIGH), triton.cdiv(m, WIDE))
    by_rows = z if rows is None else z.new_empty(grid[1], n)
    by_cols = z if cols is None else z.new_empty(grid[0], m)
    out = z if slopes is None else slopes
    some = [x if x is None else x.contiguous() for x in (left, right)]
    with torch.cuda.device_of(z):
        _pass[grid](
            z,
            z if scale is None else scale,
            shift,
            by_rows,
            by_cols,
            *(z if x is None else x for x in some),
            out,
            n,
            m,
            z.stride(0),
            out.stride(0),
            soft=soft,
            scaled=scale is not None,
            by_rows=rows is not None,
            by_cols=cols is not None,
            by_left=left is not None,
            by_right=right is not None,
            sloped=slopes is not None,
            high=HIGH,
            wide=WIDE,
            num_warps=WARPS,
        )
    if rows is not None:
        rows += by_rows.sum(0)
    if cols is not None:
        cols += by_cols.sum(0)
