"""Closed forms of per-term and per-sample gradients: what a layer's inputs and the gradients of its outputs tell.

A part is the gradients [T, *shape] of T losses by one parameter, held in the smallest form that is known. Every part
gives its Gramian, squared norms, the gradients themselves, and a weighted sum of them. For a linear layer on
independent rows the gradient of loss b is d_b x_bᵀ, so its Gramian is (X Xᵀ) * (D Dᵀ) (Goodfellow, arXiv:1510.01799,
for norms).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

FEW = 2**16  # gradients of up to so many numbers are kept as they are, and share a product
BLOCK = 2**22  # numbers of a block of products
BATCH_NORM = nn.modules.batchnorm._BatchNorm
SMALL = 256  # rows of which a symmetric product is quicker whole than by its upper blocks


def wide(x: Tensor) -> Tensor:
    """Half precision as float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Part(Protocol):
    """Gradients of T losses by one parameter (or several, if they are dense)."""

    def gram(self) -> Tensor:
        """Inner products, [T, T]."""

    def squares(self) -> Tensor:
        """Squared norms, [T]."""

    def whole(self) -> Tensor:
        """The gradients, [T, *shape] or flat."""

    def pull(self, weights: Tensor) -> Tensor:
        """Their weighted sum, of the parameter's shape or flat."""


@dataclass
class Dense:
    """The gradients as they are, flat, [T, P]; of one parameter or several."""

    flat: Tensor

    def gram(self) -> Tensor:
        return self.flat @ self.flat.T

    def squares(self) -> Tensor:
        return self.flat.square().sum(1)

    def whole(self) -> Tensor:
        return self.flat

    def pull(self, weights: Tensor) -> Tensor:
        return weights.to(self.flat.dtype) @ self.flat


@dataclass
class Shared:
    """A linear weight [o, i] under T losses of the same rows: inputs [N, i], gradients of the outputs [T, N, o]."""

    rows: Tensor
    pulls: Tensor

    def gram(self) -> Tensor:
        """<D_s, X Xᵀ D_t>. X Xᵀ is symmetric, so of many rows only its upper blocks are made."""
        x, d = wide(self.rows), wide(self.pulls)
        n = len(x)
        if n <= SMALL:
            return d.flatten(1) @ (x @ x.T @ d).flatten(1).T
        found, step = d.new_zeros(len(d), len(d)), max(1, min(n // 4, BLOCK // n))
        for at in range(0, n, step):
            near = x[at : at + step] @ x[at:].T
            near[:, :step] *= 0.5  # the block on the diagonal comes twice
            found += d[:, at : at + step].flatten(1) @ (near @ d[:, at:]).flatten(1).T
        return found + found.T

    def squares(self) -> Tensor:
        return self.gram().diagonal()

    def whole(self) -> Tensor:
        return wide(self.pulls).transpose(1, 2) @ wide(self.rows)

    def pull(self, weights: Tensor) -> Tensor:
        d = wide(self.pulls)
        return (weights.to(d.dtype) @ d.flatten(1)).view(d.shape[1:]).T @ wide(self.rows)

    @staticmethod
    def cheaper(terms: int, n: int, i: int, o: int) -> bool:
        """Whether this form and one product at the end take fewer operations than T products, and it matters."""
        near = (1.0 if n <= SMALL else 0.625) * n * n * (i + terms * o)
        return terms * i * o > FEW and near + n * i * o <= terms * n * i * o


@dataclass
class Rows:
    """Gradients by a few rows of a table: their places [U], gradients [T, U, d], rows of the table."""

    ids: Tensor
    grads: Tensor
    size: int

    @classmethod
    def of(cls, ids: Tensor, pulls: Tensor, size: int, padding: int | None) -> Rows:
        """From ids [N] and gradients of what was looked up [T, N, d]."""
        if padding is not None:
            keep = ids != padding
            ids, pulls = ids[keep], pulls[:, keep]
        found, place = ids.unique(return_inverse=True)
        d = wide(pulls)
        return cls(found, d.new_zeros(len(d), len(found), d.shape[2]).index_add_(1, place, d), size)

    def gram(self) -> Tensor:
        return Dense(self.grads.flatten(1)).gram()

    def squares(self) -> Tensor:
        return Dense(self.grads.flatten(1)).squares()

    def whole(self) -> Tensor:
        empty = self.grads.new_zeros(len(self.grads), self.size, self.grads.shape[2])
        return empty.index_copy_(1, self.ids, self.grads)

    def pull(self, weights: Tensor) -> Tensor:
        empty = self.grads.new_zeros(self.size, self.grads.shape[2])
        return empty.index_copy_(0, self.ids, torch.tensordot(weights.to(self.grads.dtype), self.grads, 1))


@dataclass(eq=False)
class Rank:
    """Gradients sum_n out_bn inn_bnᵀ of B samples: inn [B, n, i], out [B, n, o], or places [B, n] for unit vectors."""

    inn: Tensor
    out: Tensor

    @property
    def one_hot(self) -> bool:
        return not self.out.is_floating_point()

    @cached_property
    def own(self) -> Tensor:
        """D Dᵀ over all rows; a bias needs it too."""
        return outs(self.out.flatten(0, 1), self.out.flatten(0, 1))

    def dense(self, size: int, at: slice = slice(None)) -> Tensor:
        """The gradients [B, o, i], or some of their rows."""
        if not self.one_hot:
            return self.out[:, :, at].transpose(1, 2) @ self.inn
        first, last, _ = at.indices(size)
        place, inn = self.out, self.inn
        if last - first < size:
            inside = (place >= first) & (place < last)
            place, inn = torch.where(inside, place - first, 0), inn * inside[..., None]
        empty = inn.new_zeros(len(inn), last - first, inn.shape[2])
        return empty.scatter_add_(1, place[..., None].expand_as(inn), inn)


def outs(a: Tensor, b: Tensor) -> Tensor:
    """Products of output vectors [..., n, o] or places [..., n], all with all: [..., n, m]."""
    if a.is_floating_point() and b.is_floating_point():
        return a @ b.mT
    if not a.is_floating_point() and not b.is_floating_point():
        return a[..., :, None] == b[..., None, :]
    if b.is_floating_point():
        return outs(b, a).mT
    return a.gather(-1, b[..., None, :].expand(*a.shape[:-1], b.shape[-1]))


@dataclass(eq=False)
class Use(ABC):
    """One run of a layer on B independent samples: its input, and the gradients of its output, [B, ...]."""

    layer: nn.Module
    x: Tensor
    pulls: Tensor

    @cached_property
    def d(self) -> Tensor:
        return wide(self.pulls)

    @cached_property
    def cast(self) -> Tensor:
        """The input in the precision in which the layer saw it (autocast)."""
        return wide(self.x.to(self.pulls.dtype)) if self.x.is_floating_point() else self.x

    @cached_property
    def rank(self) -> Rank | None:
        """The weight's gradient as a sum of outer products, or nothing."""
        return None

    @abstractmethod
    def whole(self, name: str) -> Tensor:
        """The gradients of "weight" or "bias", [B, *shape]."""

    def pull(self, name: str, weights: Tensor) -> Tensor:
        return torch.tensordot(weights.to(self.d.dtype), self.whole(name), 1)

    def weighted(self, weights: Tensor) -> Tensor:
        return self.d * weights.to(self.d.dtype).view(-1, *[1] * (self.d.ndim - 1))


class LinearUse(Use):
    """y = x Wᵀ + b, with any number of axes between."""

    @cached_property
    def rank(self) -> Rank | None:
        b = len(self.d)
        return Rank(self.cast.reshape(b, -1, self.cast.shape[-1]), self.d.reshape(b, -1, self.d.shape[-1]))

    def whole(self, name: str) -> Tensor:
        if name == "bias":
            return self.d.flatten(1, -2).sum(1) if self.d.ndim > 2 else self.d
        assert self.rank is not None
        return self.rank.dense(self.d.shape[-1])

    def pull(self, name: str, weights: Tensor) -> Tensor:
        d = self.weighted(weights).flatten(0, -2)
        return d.sum(0) if name == "bias" else d.T @ self.cast.reshape(len(d), -1)


class EmbeddingUse(Use):
    """y = W[ids]."""

    @property
    def size(self) -> int:
        return int(self.layer.num_embeddings)  # type: ignore[arg-type]

    @cached_property
    def rank(self) -> Rank | None:
        b = len(self.d)
        ids, d = self.x.reshape(b, -1).long(), self.d.reshape(b, -1, self.d.shape[-1])
        if (padding := self.layer.padding_idx) is not None:
            d = d * ids.ne(padding)[..., None]  # type: ignore[arg-type]
        return Rank(d, ids)

    def whole(self, name: str) -> Tensor:
        assert self.rank is not None
        return self.rank.dense(self.size)

    def pull(self, name: str, weights: Tensor) -> Tensor:
        assert self.rank is not None
        d = self.rank.inn * weights.to(self.d.dtype)[:, None, None]
        return d.new_zeros(self.size, d.shape[-1]).index_add_(0, self.rank.out.flatten(), d.flatten(0, 1))


class ConvUse(Use):
    """Conv1d and Conv2d: a linear layer on patches."""

    def padded(self) -> tuple[Tensor, Tensor, Any]:
        """Input [B, c, h, w] with its border, gradients [B, o, h, w], the layer."""
        m: Any = self.layer
        x, dims = self.cast, len(m.kernel_size)
        if m.padding == "same":
            total = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
            sides = [(t // 2, t - t // 2) for t in total]
        else:
            sides = [(p, p) for p in ((0,) * dims if m.padding == "valid" else m.padding)]
        flat = [side for pair in reversed(sides) for side in pair]
        if any(flat):
            x = F.pad(x, flat, mode="constant" if m.padding_mode == "zeros" else m.padding_mode)
        return (x, self.d, m) if dims == 2 else (x[:, :, None], self.d[:, :, None], m)

    @staticmethod
    def two(values: tuple[int, ...], blank: int) -> tuple[int, int]:
        return (values[0], values[1]) if len(values) == 2 else (blank, values[0])

    def patches(self) -> tuple[Tensor, Tensor]:
        """Patches [B, g, c k / g, n], gradients [B, g, o / g, n]."""
        x, d, m = self.padded()
        kernel, dilation, stride = self.two(m.kernel_size, 1), self.two(m.dilation, 1), self.two(m.stride, 1)
        (b, c), (sb, sc, sh, sw) = x.shape[:2], x.stride()
        steps = (sb, sc, sh * dilation[0], sw * dilation[1], sh * stride[0], sw * stride[1])
        found = x.as_strided((b, c, *kernel, *d.shape[2:]), steps)  # quicker than unfold
        found, d = found.flatten(4).flatten(1, 3), d.flatten(2)
        return found.view(len(d), m.groups, -1, found.shape[-1]), d.view(len(d), m.groups, -1, d.shape[-1])

    @property
    def rank(self) -> Rank | None:  # type: ignore[override]
        """Made anew each time: patches are larger than the input."""
        if self.layer.groups != 1:
            return None
        x, d = self.patches()
        return Rank(x[:, 0].mT, d[:, 0].mT)

    def whole(self, name: str) -> Tensor:
        if name == "bias":
            return self.d.flatten(2).sum(2)
        x, d = self.patches()
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        return (d @ x.mT).reshape(len(d), *weight.shape)

    def pull(self, name: str, weights: Tensor) -> Tensor:
        if name == "bias":
            return super().pull(name, weights)
        x, d, m = self.padded()
        d = d * weights.to(d.dtype).view(-1, 1, 1, 1)
        shape = m.weight.shape if x.ndim == m.weight.ndim else (*m.weight.shape[:2], 1, m.weight.shape[2])
        stride, dilation = self.two(m.stride, 1), self.two(m.dilation, 1)
        found = conv2d_weight(x, shape, d, stride, 0, dilation, m.groups)
        return found.view(m.weight.shape)


class AffineUse(Use):
    """Norm layers: y = x̂ * w + b, where x̂ is the normalised input."""

    @cached_property
    def hat(self) -> Tensor:
        m: Any = self.layer
        x = wide(self.x)
        if isinstance(m, nn.LayerNorm):
            return F.layer_norm(x, m.normalized_shape, None, None, m.eps)
        if isinstance(m, nn.GroupNorm):
            return F.group_norm(x, m.num_groups, None, None, m.eps)
        if isinstance(m, nn.RMSNorm):
            return F.rms_norm(x, m.normalized_shape, None, m.eps)
        return F.batch_norm(x, m.running_mean, m.running_var, None, None, False, 0.0, m.eps)

    def whole(self, name: str) -> Tensor:
        d = self.d * self.hat if name == "weight" else self.d
        if isinstance(self.layer, nn.LayerNorm | nn.RMSNorm):
            keep = len(self.layer.normalized_shape)
            return d.flatten(1, -keep - 1).sum(1) if d.ndim > keep + 1 else d
        return d.flatten(2).sum(2) if d.ndim > 2 else d


@dataclass
class Samples:
    """Gradients of B independent samples by one parameter that some layers use."""

    uses: list[Use]
    name: str
    shape: torch.Size

    @property
    def matrix(self) -> bool:
        """Whether it may be a sum of outer products: worth keeping as layers' inputs and outputs."""
        return self.name == "weight" and not isinstance(self.uses[0], AffineUse)

    def ranks(self) -> list[Rank] | None:
        """All uses as sums of outer products, if the weight is a matrix to each of them."""
        if self.name != "weight":
            return None
        found = [use.rank for use in self.uses]
        return None if any(r is None for r in found) else found  # type: ignore[return-value]

    def dense(self, ranks: list[Rank]) -> Iterator[Tensor]:
        """The gradients, a block of output rows at a time, [B, part]."""
        size = self.shape[0]
        count, width = len(ranks[0].inn), math.prod(self.shape[1:])
        step = max(1, 4 * BLOCK // (count * width))
        for at in range(0, size, step):
            total = ranks[0].dense(size, slice(at, at + step))
            for r in ranks[1:]:
                total = total + r.dense(size, slice(at, at + step))
            yield total.flatten(1)

    def cost(self, ranks: list[Rank]) -> tuple[float, float]:
        """Operations a pair of samples takes by products of rows; operations of the gradients themselves, a sample."""
        i, o = math.prod(self.shape[1:]), self.shape[0]
        n = [(r.inn.shape[1], r.one_hot) for r in ranks]
        pair = sum(a * b * (i + (1 if p or q else o)) for a, p in n for b, q in n)
        return float(pair), float(sum(a * i * (1 if p else o) for a, p in n))

    def gram(self) -> Tensor:
        ranks = self.ranks()
        if ranks is None:
            return Dense(self.whole().reshape(len(self.uses[0].d), -1)).gram()
        count = len(ranks[0].inn)
        pair, single = self.cost(ranks)
        if count * pair <= single + count * math.prod(self.shape):
            return _products(ranks)
        return sum(part @ part.T for part in self.dense(ranks))  # type: ignore[return-value]

    def squares(self) -> Tensor:
        ranks = self.ranks()
        if ranks is None:
            return Dense(self.whole().reshape(len(self.uses[0].d), -1)).squares()
        pair, single = self.cost(ranks)
        if pair <= single:
            if len(ranks) == 1 and ranks[0].inn.shape[1] == 1 and not ranks[0].one_hot:
                return ranks[0].inn.square().sum((1, 2)) * ranks[0].out.square().sum((1, 2))
            found = ranks[0].inn.new_zeros(len(ranks[0].inn))
            for a in ranks:
                for b in ranks:
                    found += ((a.inn @ b.inn.mT) * outs(a.out, b.out)).sum((1, 2))
            return found
        return sum(part.square().sum(1) for part in self.dense(ranks))  # type: ignore[return-value]

    def whole(self) -> Tensor:
        return sum(use.whole(self.name).reshape(-1, *self.shape) for use in self.uses)  # type: ignore[return-value]

    def pull(self, weights: Tensor) -> Tensor:
        return sum(use.pull(self.name, weights).view(self.shape) for use in self.uses)  # type: ignore[return-value]


def _products(ranks: list[Rank]) -> Tensor:
    """Sums over pairs of rows (inn · inn') (out · out'), [B, B], some samples at a time."""
    count = len(ranks[0].inn)
    total = ranks[0].inn.new_zeros(count, count)
    for k, a in enumerate(ranks):
        for b in ranks[k:]:
            n, m = a.inn.shape[1], b.inn.shape[1]
            right, out = b.inn.flatten(0, 1), b.out.flatten(0, 1)
            step = max(1, BLOCK // (n * m * count))
            found = []
            for at in range(0, count, step):
                some = slice(at, at + step)
                near = a.inn[some].flatten(0, 1) @ right.T
                near *= a.own if a is b and step >= count else outs(a.out[some].flatten(0, 1), out)
                found.append(near.view(-1, n, count, m).sum((1, 3)) if n * m > 1 else near)
            g = torch.cat(found) if len(found) > 1 else found[0]
            total += g if a is b else g + g.T
    return total


def kind(m: nn.Module) -> type[Use] | None:
    """The closed form of a module's parameters, if there is one. A subclass that computes otherwise has none."""
    forward = type(m).forward
    if forward is nn.Linear.forward:
        return LinearUse
    if isinstance(m, nn.Embedding) and forward is nn.Embedding.forward:
        return None if m.scale_grad_by_freq or m.sparse else EmbeddingUse
    if forward in (nn.Conv1d.forward, nn.Conv2d.forward):
        return ConvUse
    if forward in (nn.LayerNorm.forward, nn.GroupNorm.forward, nn.RMSNorm.forward):
        return AffineUse
    if isinstance(m, BATCH_NORM) and forward in (BATCH_NORM.forward, nn.SyncBatchNorm.forward):
        return AffineUse if not m.training and m.running_mean is not None else None
    return None
