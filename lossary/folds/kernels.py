"""The pass over a tile of similarities as one kernel (Triton, on CUDA): `lossary.folds.tiles` calls it.

A program takes a piece of the tile and leaves the sums over its rows and columns in places of its own, which are added
up afterwards: no atomics, so the same input gives the same bits. `fold` is given the tile, `multiplied` makes it from
embeddings of half precision, piece by piece, so that it never goes to memory.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, index, arg-type"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# A piece of a tile in memory: 16 numbers a thread, so that all threads fit on a GPU. One that is multiplied.
PASS = {"high": 32, "wide": 128, "deep": 0, "num_warps": 8}
PRODUCT = {"high": 128, "wide": 128, "deep": 64, "num_warps": 8, "num_stages": 3}


@triton.jit
def piece(
    a,  # [n, d], or the tile
    b,  # [m, d]
    a_stride,
    b_stride,
    d,
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
    soft: tl.constexpr,
    scaled: tl.constexpr,
    by_rows: tl.constexpr,
    by_cols: tl.constexpr,
    by_left: tl.constexpr,
    by_right: tl.constexpr,
    sloped: tl.constexpr,
    high: tl.constexpr,
    wide: tl.constexpr,
    deep: tl.constexpr,  # dimensions multiplied at a time; 0: nothing is
):
    """Sums and slopes of a piece [high, wide]. What is not given by its flag is not read."""
    i = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)
    j = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
    inside = (i[:, None] < n) & (j[None, :] < m)
    if deep == 0:
        x = tl.load(a + i[:, None] * a_stride + j[None, :], mask=inside, other=0.0)
    else:
        x = tl.zeros((high, wide), tl.float32)
        for start in range(0, d, deep):
            k = start + tl.arange(0, deep)
            some = tl.load(a + i[:, None] * a_stride + k[None, :], mask=(i[:, None] < n) & (k[None, :] < d), other=0.0)
            other = tl.load(b + j[None, :] * b_stride + k[:, None], mask=(j[None, :] < m) & (k[:, None] < d), other=0.0)
            x = tl.dot(some, other, x)
    if scaled:
        x = x * tl.load(scale)
    x = tl.where(inside, x + tl.load(shift), float("-inf"))
    if soft:
        value = tl.exp(x)
        slope = value
    else:  # log(1 + e) for small e as Kahan has it: the rounding of 1 + e cancels
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
        tl.store(slopes + i[:, None] * stride + j[None, :], slope.to(slopes.dtype.element_ty), mask=inside)


def fold(z: Tensor, *more: Any) -> None:
    """One pass over a tile z [n, m]: see `lossary.folds.tiles.fold`, whose other arguments follow."""
    _launch((z, z, z.stride(0), 0, 0), PASS, z.shape, *more)


def multiplied(a: Tensor, b: Tensor, *more: Any) -> None:
    """The same on the tile a b^T, [n, m], which is not made."""
    a, b = a.contiguous(), b.contiguous()
    _launch((a, b, a.stride(0), b.stride(0), a.shape[1]), PRODUCT, (len(a), len(b)), *more)


def _launch(
    ends: tuple[Any, ...],
    size: dict[str, int],
    shape: tuple[int, ...],
    shift: Tensor,
    soft: bool,
    scale: Tensor | None,
    rows: Tensor | None,
    cols: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    slopes: Tensor | None,
) -> None:
    n, m = shape
    grid = (triton.cdiv(n, size["high"]), triton.cdiv(m, size["wide"]))
    by_rows = None if rows is None else shift.new_empty(grid[1], n)
    by_cols = None if cols is None else shift.new_empty(grid[0], m)
    left, right = (x if x is None else x.contiguous() for x in (left, right))
    flags = {
        "scaled": scale is not None,
        "by_rows": rows is not None,
        "by_cols": cols is not None,
        "by_left": left is not None,
        "by_right": right is not None,
        "sloped": slopes is not None,
    }
    pointers = (shift if x is None else x for x in (scale, shift, by_rows, by_cols, left, right, slopes))
    with torch.cuda.device_of(shift):
        piece[grid](*ends, *pointers, n, m, m if slopes is None else slopes.stride(0), soft=soft, **flags, **size)
    if rows is not None:
        rows += by_rows.sum(0)  # type: ignore[union-attr]
    if cols is not None:
        cols += by_cols.sum(0)  # type: ignore[union-attr]
