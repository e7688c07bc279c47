"""The gradients of several terms as they are: one dict a term, so that micro-batches and processes can add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lossary.balance.gramian import Gradients as Tapes

Gradients = dict[Tensor, Tensor]
Groups = Mapping[str, Sequence[Tensor]]  # all shared parameters, each in one of them


class Rows:
    """T gradients. What two or more terms reach is shared, and balanced; what one term reaches is its own business.

    trunk: what is shared, where that is known beforehand; what several terms reach outside it is summed.
    """

    def __init__(self, rows: Sequence[Gradients], trunk: Sequence[Tensor] | None = None) -> None:
        self.rows, self.trunk = list(rows), trunk
        reached = Counter(p for row in self.rows for p in row)
        self.shared = [p for p, times in reached.items() if times > 1] if trunk is None else list(trunk)

    @classmethod
    def of(cls, losses: Sequence[Tensor], params: Sequence[Tensor], trunk: Sequence[Tensor] | None = None) -> Rows:
        """One backward pass a term. A parameter that a term does not reach has no entry in its row."""
        rows: list[Gradients] = []
        for at, loss in enumerate(losses):
            if not loss.requires_grad:  # not this term's turn
                rows.append({})
                continue
            keep = any(x.requires_grad for x in losses[at + 1 :])
            found = torch.autograd.grad(loss, params, retain_graph=keep, allow_unused=True)
            rows.append({p: g for p, g in zip(params, found, strict=True) if g is not None})
        return cls(rows, trunk)

    def each(self, change: Callable[[Gradients], Gradients]) -> Rows:
        """Every row changed alike."""
        return Rows([change(row) for row in self.rows], self.trunk)

    def __add__(self, other: Rows) -> Rows:
        return Rows([added(a, b) for a, b in zip(self.rows, other.rows, strict=True)], self.trunk)

    def __sub__(self, other: Rows) -> Rows:
        return self + other.each(lambda row: {p: -g for p, g in row.items()})

    def jacobian(self) -> Tensor:
        """[T, P] over the shared parameters, at least in single precision; 0 where a term does not reach one."""
        if not self.shared:
            return torch.zeros(len(self.rows), 0)
        return torch.stack([torch.cat([_wide(row, p).flatten() for p in self.shared]) for row in self.rows])

    def gramian(self, groups: Groups | None = None) -> Tensor:
        """[T, T] over the shared parameters, tensor by tensor, without a copy of the gradients. [K, T, T] by groups."""
        if groups is not None:
            return torch.stack([self._gramian(some) for some in groups.values()])
        return self._gramian(self.shared)

    def _gramian(self, params: Sequence[Tensor]) -> Tensor:
        like = self.shared[0] if self.shared else torch.zeros(())
        out = torch.zeros(len(self.rows), len(self.rows), dtype=_working(like), device=like.device)
        for p in params:
            at = [i for i, row in enumerate(self.rows) if p in row]
            flat = torch.stack([_wide(self.rows[i], p).flatten() for i in at]).to(out)
            out[torch.tensor(at)[:, None], torch.tensor(at)] += flat @ flat.T
        return out

    def pull(self, weights: Tensor, groups: Groups | None = None) -> Gradients:
        """Shared: the weighted sum, by groups with weights [K, T]. One's own: as it is."""
        each = dict.fromkeys(self.shared, weights) if groups is None else _each(weights, groups)
        mixed = {
            p: sum(
                (w * _wide(row, p) for w, row in zip(by.to(p.device), self.rows, strict=True) if p in row),
                start=torch.zeros_like(p, dtype=_working(p)),
            ).to(p.dtype)
            for p, by in each.items()
        }
        return {**self.own(), **mixed}

    def along(self, direction: Tensor) -> Gradients:
        """The flat direction [P] of the shared parameters, in their shapes, beside what is one's own."""
        parts = direction.split([p.numel() for p in self.shared])
        return {**self.own(), **{p: d.view_as(p).to(p) for p, d in zip(self.shared, parts, strict=True)}}

    def own(self) -> Gradients:
        """What is not shared."""
        shared, out = set(self.shared), Gradients()
        for row in self.rows:
            out = added(out, {p: g for p, g in row.items() if p not in shared})
        return out


class Taped:
    """As `Rows` for balancers by the Gramian, of gradients that are held in smaller forms than T copies."""

    def __init__(self, found: Tapes) -> None:
        self.found, self.shared = found, found.shared

    def gramian(self, groups: Groups | None = None) -> Tensor:
        """[T, T] over the shared parameters; [K, T, T] by groups."""
        return self.found.gramian({"shared": self.shared})[0] if groups is None else self.found.gramian(groups)

    def pull(self, weights: Tensor, groups: Groups | None = None) -> Gradients:
        """Shared: the weighted sum, by groups with weights [K, T]. One's own: as it is."""
        pairs = zip(self.found.params, self.found.pull(weights, groups, as_is=True), strict=True)
        return {p: g for p, g in pairs if g is not None}


def _each(weights: Tensor, groups: Groups) -> dict[Tensor, Tensor]:
    return {p: w for w, some in zip(weights, groups.values(), strict=True) for p in some}


def added(a: Gradients, b: Gradients) -> Gradients:
    """The sum, over all that either has."""
    return {p: a[p] + b[p] if p in a and p in b else a.get(p, b.get(p)) for p in {**a, **b}}  # type: ignore[misc]


def _working(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


def _wide(row: Gradients, p: Tensor) -> Tensor:
    return row[p].to(_working(p)) if p in row else torch.zeros_like(p, dtype=_working(p))


__all__ = ["Gradients", "Rows", "Taped", "added"]
