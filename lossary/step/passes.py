"""The gradient at a point, of one loss or of several terms, over micro-batches and processes, under a gradient scale.

    closures -> losses -> balance -> gradients

Without a balancer the terms are summed. A balancer by losses makes the total that is differentiated. For one by
Gramian or Jacobian the terms' gradients are formed, added up over micro-batches and averaged over processes first, so
that its answer is that for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lossary.balance.gramian import record
from lossary.balance.rows import Gradients, Groups, Rows, Taped, added
from lossary.balance.terms import Balance
from lossary.errors import DomainError, ShapeError

Loss = Tensor | Mapping[str, Tensor]
Closure = Callable[[], Loss]
ONLY = ""  # the name of a loss that has none


@dataclass
class Seen:
    """What the last step saw of its terms: losses by name, of the first pass; weights [T] and gramian [T, T] if any.

    groups: names of groups of parameters, "" for what is in none; with them weights are [K, T] and Gramians [K, T, T].
    """

    losses: dict[str, Tensor]
    weights: Tensor | None = None
    gramian: Tensor | None = None
    groups: tuple[str, ...] = ()


class Passes:
    """Gradients of closures, for `Step`. Owns nothing: model, optimizer and scaler are the step's."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        others: Sequence[nn.Module],
        balance: Balance | None,
        scaler: torch.amp.GradScaler | None,
        accumulate: int,
        trunk: Sequence[Tensor] | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.model, self.optimizer, self.others = model, optimizer, list(others)
        self.balance, self.scaler, self.accumulate, self.trunk = balance, scaler, accumulate, trunk
        self.groups, self.seen = groups, Seen({})
        self.trained: list[Tensor] = []
        self.held: Mapping[str, Tensor] | None = None

    # --- one pass -------------------------------------------------------------------------------------------------
    def __call__(self, closures: Sequence[Closure], quiet: bool) -> dict[str, Tensor]:
        """Gradients of the closures into `.grad`, from none. quiet: processes do not exchange them.

        Returns the losses, without a graph, by name.
        """
        self.clear()
        # Autocast remembers half-precision copies of the weights, which would be those of the other point.
        torch.clear_autocast_cache()
        if self.balance is None or self.balance.needs == "losses":
            return self._by_total(closures, quiet)
        alone = len(closures) == 1 and (quiet or not self.ddp) and self.balance.needs == "gramian" and not self.trunk
        losses, rows = self._taped(closures[0]) if alone else self.rows(closures, quiet)
        for p, g in self.joined(losses, rows).items():
            p.grad = g
        return losses

    def _taped(self, closure: Closure) -> tuple[dict[str, Tensor], Rows | Taped]:
        """The same as `rows` for one micro-batch of one process, without T copies of the parameters."""
        with self._no_sync(), record(*self.roots()) as tape, torch.enable_grad():
            losses = self.losses(closure)
            scaled = [x if self.scaler is None else self.scaler.scale(x) for x in losses.values()]
        found = tape.gradients(scaled, self.trained)
        return _sum({}, losses), Taped(found)

    def _by_total(self, closures: Sequence[Closure], quiet: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for at, closure in enumerate(closures):
            silent = quiet or at + 1 < len(closures)
            with self._no_sync() if silent else nullcontext(), torch.enable_grad():
                losses = self.losses(closure)
                if self.balance is None:
                    total = torch.stack(list(losses.values())).sum()
                else:
                    # At the size of the whole step's losses, so that what is not a factor of them counts once.
                    parts = {n: x * len(closures) for n, x in losses.items()} if len(closures) > 1 else losses
                    whole = parts if quiet else self.of_all(parts)
                    with self.balance.frozen() if len(closures) > 1 else nullcontext():
                        total = self.asked(list(whole.values()), list(whole)) / len(closures)
                (total if self.scaler is None else self.scaler.scale(total)).backward()  # type: ignore[no-untyped-call]
            found = _sum(found, losses)
        if self.balance is not None and len(closures) > 1:  # what is remembered is the whole step's
            with torch.no_grad():
                self.asked(list((found if quiet else self.of_all(found)).values()), list(found))
        self.seen = Seen(found)
        return found

    def rows(self, closures: Sequence[Closure], quiet: bool, only: str | None = None) -> tuple[dict[str, Tensor], Rows]:
        """The terms' gradients, still scaled; of one term only, if named. Losses without a graph, of all processes."""
        found: dict[str, Tensor] = {}
        rows: Rows | None = None
        with self._no_sync():
            for closure in closures:
                with torch.enable_grad():
                    losses = self.losses(closure)
                    kept = list(losses.values()) if only is None else [losses[only]]
                    scaled = kept if self.scaler is None else [self.scaler.scale(x) for x in kept]
                    now = Rows.of(scaled, self.trained, self.trunk)
                found, rows = _sum(found, losses), now if rows is None else rows + now
        assert rows is not None
        if not quiet and self.ddp:
            rows = rows.each(self.average)
            found = self.of_all(found)
        return found, rows

    def joined(self, losses: dict[str, Tensor], rows: Rows | Taped) -> Gradients:
        """The balancer's answer as gradients, still scaled; not finite where the terms' are not."""
        assert self.balance is not None
        scale = 1.0 if self.scaler is None else 1 / self.scaler.get_scale()
        values, names = torch.stack(list(losses.values())), list(losses)
        self.seen = Seen(losses)
        if self.balance.needs == "losses":
            assert isinstance(rows, Rows)
            return self._weighed(values, names, rows)
        if len(values) == 1:  # nothing to balance
            return rows.pull(torch.ones_like(values))
        groups = self._divided(rows.shared)
        wide = rows.jacobian() if isinstance(rows, Rows) and self.balance.needs == "jacobian" else rows.gramian(groups)
        if not wide.isfinite().all():  # the balancer is not asked, and remembers nothing of it
            return rows.pull(torch.full_like(values, torch.nan))
        if self.balance.needs == "gramian":
            self.seen.gramian, self.seen.groups = wide * scale**2, tuple(groups or ())
            self.seen.weights = self.asked(values, names, gramian=self.seen.gramian)
            return rows.pull(self.seen.weights, groups)
        assert isinstance(rows, Rows)
        direction = self.asked(values, names, jacobian=wide * scale)
        return rows.along(direction / scale)

    def _divided(self, shared: Sequence[Tensor]) -> Groups | None:
        """The shared parameters by groups; the last one has what is in none."""
        if self.groups is None:
            return None
        inside = set(shared)
        found: dict[str, Sequence[Tensor]] = {n: [p for p in some if p in inside] for n, some in self.groups.items()}
        rest = inside.difference(*found.values())
        return {**found, ONLY: [p for p in shared if p in rest]}

    def asked(self, losses: Tensor | Sequence[Tensor], names: list[str], **more: Tensor) -> Tensor:
        """The balancer's answer."""
        assert self.balance is not None
        held = None
        if self.held is not None:
            if set(self.held) != set(names):
                raise ShapeError(
                    "held losses are not those of the terms", needed=", ".join(names), found=", ".join(self.held)
                )
            held = torch.stack([self.held[n].detach() for n in names])
        return self.balance(losses, names=names, held=held, **more)

    def _weighed(self, values: Tensor, names: list[str], rows: Rows) -> Gradients:
        """What differentiating a total by losses gives: heads are weighed too, and what the balancer learns moves."""
        assert self.balance is not None
        leaf = values.detach().requires_grad_()
        learned = [p for p in self.balance.parameters() if p.requires_grad]
        with torch.enable_grad():
            total = self.asked(leaf, names)
            total = total if self.scaler is None else self.scaler.scale(total)
            scale = 1.0 if self.scaler is None else self.scaler.get_scale()
            weights, *own = torch.autograd.grad(total, [leaf, *learned], allow_unused=True)
        weights = weights / scale
        self.seen.weights = weights
        moved: Gradients = {p: g for p, g in zip(learned, own, strict=True) if g is not None and self.balance.live}
        each = [{p: w * g for p, g in row.items()} for w, row in zip(weights, rows.rows, strict=True)]
        return {**Rows(each).pull(torch.ones_like(weights)), **moved}

    def losses(self, closure: Closure) -> dict[str, Tensor]:
        """What the closure computed, by name, divided by `accumulate`."""
        given = closure()
        named = dict(given) if isinstance(given, Mapping) else {ONLY: given}
        for name, loss in named.items():
            if not isinstance(loss, Tensor) or loss.ndim or not (loss.requires_grad or self.turns):
                what = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise ShapeError(
                    "a closure returns the loss" + (f", and so does its term {name!r}" if name else ""),
                    needed="a scalar with a graph, before backward(); or several, as a dict by name",
                    found=what if not isinstance(loss, Tensor) or loss.ndim else "a scalar without a graph",
                )
        if named and not any(x.requires_grad for x in named.values()):
            raise ShapeError("no term has a graph", needed="one that has its turn", found="numbers only")
        if not named:
            raise ShapeError("a closure returned no term", needed="a dict of losses by name", found="{}")
        return {n: x / self.accumulate if self.accumulate > 1 else x for n, x in named.items()}

    @property
    def turns(self) -> bool:
        """Whether a term may sit a step out: what is shared is known, and the balancer keeps a mean for each term."""
        return self.trunk is not None and self.balance is not None and self.balance.needs == "jacobian"

    # --- what there is --------------------------------------------------------------------------------------------
    def params(self) -> list[Tensor]:
        """The optimizer's parameters, in order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def roots(self) -> list[nn.Module]:
        """All modules whose parameters and buffers take part."""
        return [self.model, *self.others, *([self.balance] if self.balance is not None else [])]

    def begin(self) -> None:
        """Look up `trained`, once a step: what may get a gradient of the optimizer and all roots, in a fixed order."""
        every = [*self.params(), *(p for root in self.roots() for p in root.parameters())]
        self.trained = [p for p in dict.fromkeys(every) if p.requires_grad]

    def clear(self) -> None:
        """No gradients."""
        for p in self.trained:
            p.grad = None

    def taken(self) -> Gradients:
        """The gradients there are, taken from their parameters."""
        found = {p: p.grad for p in self.trained if p.grad is not None}
        if any(g.is_sparse for g in found.values()):
            raise DomainError("a gradient is sparse", needed="dense gradients", try_="nn.Embedding(..., sparse=False)")
        self.clear()
        return found

    @contextmanager
    def quiet_balance(self) -> Iterator[None]:
        """Inside, the balancer answers and remembers nothing."""
        with self.balance.frozen() if self.balance is not None else nullcontext():
            yield

    # --- processes ------------------------------------------------------------------------------------------------
    @property
    def ddp(self) -> bool:
        """Whether the model is one of several processes'."""
        return hasattr(self.model, "no_sync") and dist.is_available() and dist.is_initialized()

    @property
    def _group(self) -> Any:
        return getattr(self.model, "process_group", None)

    def _no_sync(self) -> AbstractContextManager[Any]:
        return self.model.no_sync() if self.ddp else nullcontext()  # type: ignore[operator]

    def of_all(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses' means over processes as values, with each process's own gradient."""
        if not self.ddp:
            return losses
        mean = torch.stack([x.detach().float() for x in losses.values()])
        dist.all_reduce(mean, group=self._group)
        mean /= dist.get_world_size(self._group)
        return {n: x + (m.to(x) - x.detach()) for (n, x), m in zip(losses.items(), mean, strict=True)}

    def all_finite(self, grads: Gradients) -> bool:
        """Of all processes: else one would skip the second pass while others wait for it."""
        biggest = torch._foreach_norm(list(grads.values()), float("inf")) if grads else []
        device = next(iter(grads.values())).device if grads else torch.device("cpu")
        fine = torch.ones((), device=device)
        for norm in biggest:
            fine = fine * norm.isfinite().to(fine)
        if self.ddp:
            dist.all_reduce(fine, dist.ReduceOp.MIN, group=self._group)
        return bool(fine)

    def average(self, grads: Gradients) -> Gradients:
        """The mean over processes; a parameter that one of them used counts as 0 where it was not used."""
        inside = set(self.model.parameters())  # others are not DDP's either
        trained = [p for p in self.trained if p in inside]
        used = torch.tensor([float(p in grads) for p in trained], device=trained[0].device)
        dist.all_reduce(used, group=self._group)
        found = {p: grads.get(p, torch.zeros_like(p)) for p, n in zip(trained, used.tolist(), strict=True) if n}
        for kind in dict.fromkeys((g.dtype, g.device) for g in found.values()):
            alike = {p: g for p, g in found.items() if (g.dtype, g.device) == kind}
            flat = torch.cat([g.flatten() for g in alike.values()])
            dist.all_reduce(flat, group=self._group)
            flat /= dist.get_world_size(self._group)
            parts = flat.split([g.numel() for g in alike.values()])
            found |= {p: part.view_as(g) for (p, g), part in zip(alike.items(), parts, strict=True)}
        return {**grads, **found}


def _sum(before: dict[str, Tensor], now: dict[str, Tensor]) -> dict[str, Tensor]:
    if before and before.keys() != now.keys():
        raise ShapeError(
            "micro-batches have different terms",
            needed=", ".join(before),
            found=", ".join(now),
            try_="a loss of 0 * sum",
        )
    return {n: before[n] + x.detach() if before else x.detach().clone() for n, x in now.items()}


__all__ = ["Closure", "Passes", "Seen", "added"]
