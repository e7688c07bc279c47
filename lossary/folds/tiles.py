"""Tiles of similarities: how they are made, and what is done to one before it is forgotten.

A tile is made by a matrix product, and passed over once for its sums and its gradient. On the CPU that pass goes lane
by lane, so that a lane stays in the cache from the first operation to the last. On CUDA it is one kernel
(`lossary.folds.kernels`) where Triton is installed. Embeddings of half precision are multiplied as they are, sums and
gradients are kept in single precision (`wide`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module, util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.folds.blocks import slices

ROWS = 128


@dataclass
class Sizes:
    """`small`: pairs up to which the matrix is simply made; bytes of similarities in a block, and in a lane.

    A block has `ROWS` rows, more where they take less than the first number of bytes, fewer where more than the second:
    a product with fewer rows than that is slow, as it packs all columns anew for each block. `cuda`: bytes of a block
    there, a quarter of which is a lane. `fused`: whether a kernel passes over tiles; None: on CUDA where Triton is
    installed.
    """

    small: int = 2**16
    block: tuple[int, int] = (16 * 2**20, 32 * 2**20)
    lane: int = 2 * 2**20
    cuda: int = 256 * 2**20
    fused: bool | None = None

    def bounds(self, of: Tensor) -> tuple[int, int]:
        """Least and most bytes of a block."""
        return (self.cuda, self.cuda) if of.is_cuda else self.block

    def rows(self, columns: int, of: Tensor, matrices: int = 1) -> tuple[int, int]:
        """Rows of a block and of a lane: so many columns, numbers as wide as `of`'s, that many matrices at a time."""
        width = max(1, columns * wide(of).itemsize)
        least, most = (max(1, size // (width * matrices)) for size in self.bounds(of))
        block = min(max(ROWS, least), most)
        return block, max(1, (self.cuda // 4 if of.is_cuda else self.lane) // width)

    def tile(self, of: Tensor) -> tuple[int, int]:
        """Rows and columns of a tile where neither needs to be whole: the embeddings of both fit in the cache."""
        count = self.bounds(of)[0] // wide(of).itemsize
        columns = max(1, math.isqrt(count) // (1 if of.is_cuda else 2))
        return max(1, count // columns), columns

    def lanes(self, z: Tensor) -> Iterator[slice]:
        """The rows of a tile, so many at a time as are passed over at once."""
        count = len(z) if z.is_cuda else max(1, self.lane // max(1, z.shape[1] * z.element_size()))
        return slices(0, len(z), max(1, count))


SIZES = Sizes()
GIVEN = ("scale", "rows", "cols", "left", "right", "slopes")  # what `fold` may be given, in the kernels' order
Room = dict[torch.dtype, Tensor]


def wide(x: Tensor) -> torch.dtype:
    """The precision of sums over x."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def zeros(x: Tensor) -> Tensor:
    """Of x's shape, in the precision of sums."""
    return torch.zeros_like(x, dtype=wide(x))


def product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """x @ y in `out`, which may be wider than both; there is no rounding between."""
    if x.dtype is out.dtype:
        return torch.mm(x, y, out=out)
    if x.is_cuda and hasattr(torch.ops.aten.mm, "dtype_out"):  # from torch 2.8 on
        return torch.ops.aten.mm.dtype_out(x, y, out.dtype, out=out)  # type: ignore[no-any-return]
    return torch.mm(x.to(out.dtype), y.to(out.dtype), out=out)


class Tile:
    """Similarities z [n, m] of some rows and columns, to be multiplied by `scale` if there is one.

    part [n, d], other [m, d]: the embeddings as they are multiplied. room: the memory that all tiles use.
    """

    def __init__(self, at: tuple[slice, slice], part: Tensor, other: Tensor, scale: Tensor | None, room: Room) -> None:
        (self.rows, self.cols), self.part, self.other = at, part, other
        self.scale, self.room, self.made = scale, room, False

    def _taken(self, dtype: torch.dtype) -> Tensor:
        n, m = len(self.part), len(self.other)
        if dtype not in self.room:
            self.room[dtype] = self.part.new_empty(n * m, dtype=dtype)  # the first tile is the largest
        return self.room[dtype][: n * m].view(n, m)

    @property
    def z(self) -> Tensor:
        """The tile, made when it is first asked for."""
        z = self._taken(wide(self.part))
        if not self.made:
            product(self.part, self.other.mT, z)
            self.made = True
        return z

    @property
    def slopes(self) -> Tensor:
        """Room for the gradient by scale z, in the precision of the embeddings: z itself, if that is the same."""
        return self._taken(self.part.dtype)

    def fold(self, shift: Tensor, soft: bool, *, slope: bool = False, **more: Tensor | None) -> None:
        """`fold` on the tile; slope: whether its `slopes` are wanted."""
        given = {"scale": self.scale, "slopes": self.slopes if slope else None, **more}
        kernels = fused(self.part) if self.scale is not None and not self.made else None
        if kernels is None:
            fold(self.z, shift, soft, **given)
        else:
            kernels.multiplied(self.part, self.other, shift, soft, *(given.get(k) for k in GIVEN))

    def carry(self, by_a: Tensor, by_b: Tensor) -> None:
        """Add what the slopes make of gradients: by scale a, [N, d], and by b, [M, d]."""
        by_a, by_b = by_a[self.rows], by_b[self.cols]
        if self.scale is None:
            by_a.addmm_(self.slopes, self.other)
            by_b.addmm_(self.slopes.mT, self.part)
        else:
            by_a += product(self.slopes, self.other, torch.empty_like(by_a))
            by_b.addcmul_(product(self.slopes.mT, self.part, torch.empty_like(by_b)), self.scale)


def tiles(a: Tensor, b: Tensor, scale: Tensor, whole: bool = False) -> Iterator[Tile]:
    """scale a b^T by tiles, in one memory; or by whole rows.

    Embeddings of half precision are not scaled before they are multiplied: it would round them once more.
    """
    height, width = (SIZES.rows(len(b), a)[0], len(b)) if whole else SIZES.tile(a)
    room: Room = {}
    plain = wide(a) is a.dtype
    for rows in slices(0, len(a), height):
        part = a[rows] * scale if plain else a[rows]
        for cols in slices(0, len(b), max(1, width)):
            yield Tile((rows, cols), part, b[cols], None if plain else scale, room)


def fold(
    z: Tensor,
    shift: Tensor,
    soft: bool,
    *,
    scale: Tensor | None = None,
    rows: Tensor | None = None,
    cols: Tensor | None = None,
    left: Tensor | None = None,
    right: Tensor | None = None,
    slopes: Tensor | None = None,
) -> None:
    """One pass over a tile z [n, m], with f the exponential (soft) or softplus of scale z + shift.

    Sums of f are added to `rows` [n] and `cols` [m], and f' (left_i + right_j) goes to `slopes` [n, m]; without `right`
    [m] it is f' left_i, without `left` [n] too it is f'. z is lost.
    """
    kernels = fused(z)
    if kernels is not None:
        kernels.fold(z, shift, soft, scale, rows, cols, left, right, slopes)
        return
    for at in SIZES.lanes(z):
        here = z[at] if scale is None else z[at].mul_(scale)
        here += shift
        value = here.exp_() if soft else here
        if rows is not None or cols is not None:
            value = here if soft else F.softplus(here)
            if rows is not None:
                rows[at] += value.sum(-1)
            if cols is not None:
                cols += value.sum(0)
        if slopes is None:
            continue
        slope = here if soft else here.sigmoid_()
        if left is not None:
            slope *= left[at, None] if right is None else left[at, None] + right
        if slopes.data_ptr() != z.data_ptr():
            slopes[at] = slope


def fused(z: Tensor) -> Any:
    """The kernels, where they are to be used: Triton needs compute capability 7."""
    wanted = SIZES.fused
    if wanted is None:
        wanted = z.is_cuda and torch.cuda.get_device_capability(z.device) >= (7, 0)
    return _kernels() if wanted else None


@cache
def _kernels() -> Any:
    return import_module("lossary.folds.kernels") if util.find_spec("triton") is not None else None
