"""One training step, in a defined order: terms, balance, ascent, unscaling, clipping, optimizer.

gradient at w, balanced -> displacement by a rule -> gradient at w + displacement, balanced -> back to w
    -> unscale -> clip -> optimizer.step()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lossary.balance.compose import Each
from lossary.balance.rows import Gradients, Rows, added
from lossary.balance.terms import Balance
from lossary.errors import DomainError, MissingInput, ShapeError
from lossary.objective import Objective
from lossary.step.ascent import Ascent
from lossary.step.passes import ONLY, Closure, Passes, Seen

Noise = list[tuple[torch.device, Tensor]]  # states of generators


@dataclass
class Memory:
    """What a rule remembers: means of gradients, by the parameter's place among the optimizer's; how often it drew."""

    means: dict[int, Tensor] = field(default_factory=dict)
    draws: int = 0


class Step:
    """`lossary.step(model, optimizer, ...)`: afterwards `step(closure)` is one step of the optimizer.

    >>> step = lossary.step(model, optimizer, balance=lossary.balance.pcgrad(), ascent=lossary.sam(rho=0.05), clip=1.0)
    >>> losses = step(lambda: {"depth": depth(model(x), y), "normals": normals(model(x), z)})

    A closure computes and returns the loss, a scalar with a graph, or several, as a dict by name; no backward. Several
    closures are micro-batches: their gradients add up, as one large batch. A balancer by gradients sees the sums; one
    by losses is asked for each micro-batch, and the mean of its totals counts, so that is one large batch only where
    its weights do not depend on the losses of the step (sums, uncertainty, DWA; not FAMO or GLS).

    balance: how terms become one direction (none: their sum). Parameters that one term alone reaches (its head) get
    that term's gradient as it is, where the balancer goes by gradients. It remembers the first pass of each step.
    trunk: the shared parameters (none: those that two or more terms reach); then what is outside gets the terms' sum. A
    balancer by the Jacobian that has a trunk (M-ConFIG) lets terms take turns: one that has none in this step is a
    number without a graph, torch.zeros(()) for instance, and costs no pass.
    groups: parameters by name (encoder, decoder; layers): every group is balanced by itself, by a Gramian of its own,
    with a memory of its own; shared parameters in none of them are one more. For balancers by the Gramian.
    ascent: a rule of displacement, and then a second pass. model: its buffers (running statistics of batch
    normalisation and the like) are those of the first pass. optimizer: the parameters of its groups that have a
    gradient are displaced; a group may have a "rho" of its own. objective: a Lossary objective, or several in a
    module, that is not a part of the model; its memory and trackers see the first pass only. clip: largest norm of the
    final gradient. scaler: a GradScaler that nobody else updates. accumulate: what the sum of the closures' losses is
    divided by; the number of closures makes it a mean.

    Micro-batches share one displacement, that of their accumulated gradient. With `apart`, each has its own:
    m-sharpness, m the micro-batch. Under DistributedDataParallel each process has its own, from its share of the batch
    (m-sharpness, as in the paper), unless `shared`. What a rule remembers moves once for each displacement, and not at
    all if the step is skipped. same_noise: dropout, and whatever the closure draws from torch's global generators, is
    in the second pass what it was in the first, as in the authors' code.

    by_term: every term has a displacement of its own, by its own gradient, and a second pass of its own; the balancer
    is asked twice, for the terms' gradients and for what the displacements add to them (Phan et al., arXiv 2211.13723:
    flat multi-task learning). Shared parameters and a term's own are displaced by the radius each.

    `state_dict` holds what rule and balancer remember, for this process; optimizer and scaler have their own. Sharded
    models (FSDP, DTensor) and sparse gradients are refused. `step.seen` has the last step's losses, weights, Gramian.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ascent: Ascent | None = None,
        objective: nn.Module | None = None,
        clip: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        accumulate: int = 1,
        *,
        balance: Balance | None = None,
        trunk: Iterable[Tensor] | None = None,
        groups: Mapping[str, Iterable[Tensor]] | None = None,
        by_term: bool = False,
        shared: bool = False,
        apart: bool = False,
        same_noise: bool = True,
    ) -> None:
        if clip is not None and not clip > 0:
            raise DomainError("clip is out of range", needed="a norm above 0, or None", found=repr(clip))
        if not isinstance(accumulate, int) or accumulate < 1:
            raise DomainError("accumulate is out of range", needed="a whole number above 0", found=repr(accumulate))
        if by_term and (ascent is None or balance is None or not ascent.plain):
            raise DomainError(
                "by_term displaces the terms apart, and then balances them",
                needed="a balancer, and an ascent without memory: sam, asam or awp",
                found=f"balance={balance!r}, ascent={getattr(ascent, 'name', None)!r}",
            )
        if ascent is not None and ascent.steps > 1 and (ascent.decay is not None or ascent.seed is not None):
            raise DomainError("a rule of several steps remembers nothing", needed="decay=None, seed=None, or steps=1")
        if by_term and (shared or apart):
            raise DomainError("by_term has a displacement for each term", needed="shared=False, apart=False")
        parts = None if groups is None else {n: [p for p in some if p.requires_grad] for n, some in groups.items()}
        if parts is not None and balance is not None:
            balance = Each(balance, len(parts) + 1)
        self.model, self.optimizer, self.ascent, self.balance = model, optimizer, ascent, balance
        self.clip, self.by_term = clip, by_term
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.shared, self.apart, self.same_noise = shared, apart, same_noise
        self.memory = Memory()
        others = [objective] if objective is not None else []
        some = None if trunk is None else [p for p in dict.fromkeys(trunk) if p.requires_grad]
        self.passes = Passes(model, optimizer, others, balance, self.scaler, accumulate, some, parts)
        params = self.passes.params()
        if some is not None and (not some or balance is None or balance.needs == "losses" or {*some} - {*params}):
            raise DomainError(
                "trunk names the parameters whose gradients are balanced",
                needed="parameters of the optimizer, and a balancer by gradients",
                found=f"{len(some)} of them, {len({*some} - {*params})} not the optimizer's; balance={balance!r}",
            )
        named = [p for part in (parts or {}).values() for p in part]
        doubly, alien = len(named) - len({*named}), len({*named} - {*params})
        if parts is not None and (balance is None or not all([*parts, *parts.values(), named]) or doubly or alien):
            raise DomainError(
                "groups name the parameters that are balanced by themselves",
                needed="names, and under each some parameters of the optimizer that no other has; and a balancer",
                found=f"{', '.join(f'{n!r}: {len(part)}' for n, part in parts.items())}; {doubly} of them again, "
                f"{alien} not the optimizer's; balance={balance!r}",
            )
        if type(model).__name__ == "FullyShardedDataParallel" or any(hasattr(p, "placements") for p in params):
            raise DomainError("the parameters are sharded", needed="whole parameters: one process, or DDP")

    @property
    def seen(self) -> Seen:
        """Losses by name, weights and Gramian of the last pass, for a monitor."""
        return self.passes.seen

    # --- the step -------------------------------------------------------------------------------------------------
    def __call__(
        self,
        closure: Closure | Sequence[Closure],
        *,
        uphill: Closure | Sequence[Closure] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """One step. Returns the first pass's loss, or losses by name, where the model is and without a graph.

        uphill: the loss whose gradient displaces, in the place of the closure's (robust weight perturbation: that of
        the examples that are still easy). The closure then runs at the displaced point only: what sees a batch once
        sees it there, and its loss there is returned. held: the terms' losses on held-out data, by name, for balancers
        that watch these (CoBa).
        """
        closures = [closure] if callable(closure) else list(closure)
        if not closures:
            raise MissingInput("a step needs a closure", try_="step(lambda: objective(model(x), y))")
        ways = None if uphill is None else [uphill] if callable(uphill) else list(uphill)
        if ways is not None:
            self._check_uphill(len(ways), len(closures))
        self.passes.begin()
        before = [(m, dict(m._buffers)) for m in self.balance.modules()] if self.balance is not None else []
        memory, self.passes.held = Memory(dict(self.memory.means), self.memory.draws), held
        if self.ascent is None:
            losses, total = self.passes(closures, quiet=False), self.passes.taken()
        elif self.by_term:
            losses, total = self._by_term(closures)
        else:
            losses, total = self._displaced_gradient(closures, ways, memory)
        self.passes.clear()
        for p, g in total.items():
            p.grad = g
        if self._update():
            self.memory = memory
        else:
            for module, buffers in before:
                module._buffers.clear()
                module._buffers.update(buffers)
        return losses[ONLY] if losses.keys() == {ONLY} else losses

    def _check_uphill(self, ways: int, closures: int) -> None:
        if self.ascent is None or self.by_term or self.ascent.combine is not None:
            raise DomainError(
                "uphill has a displacement of its own",
                needed="an ascent that does not combine with the plain gradient, and by_term=False",
                found=f"ascent={getattr(self.ascent, 'name', None)!r}, by_term={self.by_term}",
            )
        if not ways or (self.apart and ways != closures):
            raise ShapeError("uphill does not fit", needed=f"{closures if self.apart else 'some'}", found=f"{ways}")

    def _displaced_gradient(
        self, closures: list[Closure], uphill: list[Closure] | None, memory: Memory
    ) -> tuple[dict[str, Tensor], Gradients]:
        """The gradients at the displaced point, or the first ones if these are not finite: no step will be taken."""
        assert self.ascent is not None
        parts = [[c] for c in closures] if self.apart else [closures]
        ways = parts if uphill is None else [[c] for c in uphill] if self.apart else [uphill]
        # What is not linear in each process's gradients alone is put together before DDP's mean, so by hand.
        by_hand = self.passes.ddp and (self.ascent.combine is not None or len(parts) > 1) and not self.shared
        losses, total = dict[str, Tensor](), Gradients()
        for at, (part, way) in enumerate(zip(parts, ways, strict=True)):
            noise = self._random() if self.same_noise else []
            once = self.passes.quiet_balance() if at else ExitStack()  # a step's memory moves once
            with once if uphill is None else self._elsewhere([], [], []):
                found = self.passes(way, quiet=not self.shared)
            first, seen = self.passes.taken(), self.passes.seen
            moved, displacement = self._way_off(way, first, memory, noise)
            if displacement is None:
                lifted = {p: torch.full_like(g, torch.inf) for p, g in first.items()}
            elif uphill is None:
                with self._elsewhere(moved, displacement, noise):
                    self.passes(part, quiet=by_hand)
                lifted = self._combined(first, self.passes.taken())
                self.passes.seen = seen
            else:
                with once, _displaced(moved, displacement):
                    _restore(noise)
                    found = self.passes(part, quiet=by_hand)
                lifted = self.passes.taken()
            losses = {n: losses[n] + x if n in losses else x for n, x in found.items()}
            if displacement is None:
                return losses, lifted
            total = added(total, lifted)
        return losses, self.passes.average(total) if by_hand else total

    def _way_off(
        self, closures: list[Closure], first: Gradients, memory: Memory, noise: Noise
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        """What is moved, and how far, by the rule; None if a gradient is not finite: no step will be taken.

        Later gradients of a rule of several steps are taken where the earlier ones led, and added to the first.
        """
        assert self.ascent is not None
        ours = self._rho()
        moved = [p for p in first if p in ours]
        summed: Gradients = first
        displacement: list[Tensor] = []
        for at in range(self.ascent.steps):
            if at:
                with self._elsewhere(moved, displacement, noise):
                    self.passes(closures, quiet=not self.shared)
                summed = added(summed, self.passes.taken())
            if self.scaler is not None and not self.passes.all_finite(summed):
                return moved, None
            with torch.no_grad():
                displacement = self._displacement(moved, [summed[p] for p in moved], memory) if moved else []
        if self.ascent.combine is None:
            summed.clear()
            first.clear()  # their memory is needed for the pass to come
        return moved, displacement

    def _combined(self, first: Gradients, second: Gradients) -> Gradients:
        """The gradients at the displaced point, still scaled; combined with the first where the rule asks for it."""
        assert self.ascent is not None
        if self.ascent.combine is not None:
            ours = self._rho()
            both = [p for p in second if p in ours and p in first]
            if both:
                with torch.no_grad():
                    mixed = self.ascent.combine([first[p] for p in both], [second[p] for p in both])
                second |= zip(both, mixed, strict=True)
        return second

    def _by_term(self, closures: list[Closure]) -> tuple[dict[str, Tensor], Gradients]:
        """The balanced gradients of the terms, and the balanced rest that their own displacements add."""
        assert self.balance is not None
        noise = self._random() if self.same_noise else []
        self.passes.clear()
        torch.clear_autocast_cache()
        losses, rows = self.passes.rows(closures, quiet=True)
        if self.scaler is not None and not self.passes.all_finite({p: g for row in rows.rows for p, g in row.items()}):
            return losses, {p: torch.full_like(p, torch.inf) for row in rows.rows for p in row}
        ours, shared, lifted = self._rho(), set(rows.shared), []
        for name, row in zip(losses, rows.rows, strict=True):
            moved, displacement = list[Tensor](), list[Tensor]()
            for some in (
                [p for p in row if p in ours and p in shared],
                [p for p in row if p in ours and p not in shared],
            ):
                if some:
                    moved += some
                    displacement += self._displacement(some, [row[p] for p in some], Memory())
            with self._elsewhere(moved, displacement, noise):
                torch.clear_autocast_cache()
                lifted += self.passes.rows(closures, quiet=True, only=name)[1].rows
        high = Rows(lifted, self.passes.trunk)
        if self.passes.ddp:
            losses = self.passes.of_all(losses)
            rows, high = rows.each(self.passes.average), high.each(self.passes.average)
        total = self.passes.joined(losses, rows)
        seen = self.passes.seen
        with self.balance.frozen():
            total = added(total, self.passes.joined(losses, high - rows))
        self.passes.seen = seen
        return losses, total

    @contextmanager
    def _elsewhere(self, moved: list[Tensor], displacement: list[Tensor], noise: Noise) -> Iterator[None]:
        """Inside, the parameters are displaced, nothing is remembered, and the noise is drawn again."""
        with ExitStack() as stack:
            frozen = {m for root in self.passes.roots() for m in root.modules() if isinstance(m, Objective | Balance)}
            for one in frozen:
                stack.enter_context(one.frozen())
            still = {m for one in frozen for m in one.modules()}
            buffers = [m for root in self.passes.roots() for m in root.modules() if m not in still]
            stack.enter_context(_buffers_kept(buffers))
            stack.enter_context(_displaced(moved, displacement))
            _restore(noise)
            yield

    def _displacement(self, moved: list[Tensor], grads: list[Tensor], memory: Memory) -> list[Tensor]:
        """By the rule, from gradients that are still scaled; `memory` takes them in."""
        assert self.ascent is not None
        if self.scaler is not None:
            grads = list(torch._foreach_mul(grads, 1 / self.scaler.get_scale()))
        every = self._rho()
        rho = [every[p] for p in moved]
        hyper: dict[str, Any] = {**self.ascent.hyper, "rho": rho[0] if len(set(rho)) == 1 else rho}
        if self.ascent.decay is not None:
            decay, means, order = self.ascent.decay, memory.means, {p: i for i, p in enumerate(self.passes.params())}
            places = [order[p] for p in moved]
            for i, g in zip(places, grads, strict=True):
                means[i] = (decay * means[i] if i in means else 0) + (1 - decay) * g
            hyper["means"] = [means[i] for i in places]
        if self.ascent.seed is not None:
            own = dist.get_rank() if self.passes.ddp and not self.shared else 0
            number = (self.ascent.seed * 1_000_003 + memory.draws) * 1_009 + own
            hyper["generator"] = torch.Generator(moved[0].device).manual_seed(number)
            memory.draws += 1
        return self.ascent.rule(moved, grads, **hyper)

    def _update(self) -> bool:
        """Unscale, clip, step. Whether the step was taken: the scaler finds for itself what is not finite."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.passes.params(), self.clip)
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def _rho(self) -> dict[Tensor, float]:
        """The radius of each parameter of the optimizer."""
        default = self.ascent.hyper["rho"] if self.ascent is not None else 0.0
        return {p: g.get("rho", default) for g in self.optimizer.param_groups for p in g["params"]}

    def _random(self) -> Noise:
        devices = {p.device for p in self.passes.trained if p.is_cuda}
        states = [(d, torch.cuda.get_rng_state(d)) for d in devices]
        return [(torch.device("cpu"), torch.get_rng_state()), *states]

    # --- saving ---------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """What rule and balancer remember; means of gradients by the parameter's place among the optimizer's."""
        name = self.ascent.name if self.ascent is not None else None
        balance = self.balance.state_dict() if self.balance is not None else {}
        means = {i: m.clone() for i, m in self.memory.means.items()}
        return {"ascent": name, "means": means, "draws": self.memory.draws, "balance": balance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a step with the same rule, balancer and parameters."""
        name = self.ascent.name if self.ascent is not None else None
        if state["ascent"] != name:
            raise DomainError("a state of another rule", needed=str(name), found=str(state["ascent"]))
        params = self.passes.params()
        for i, m in state["means"].items():
            if i >= len(params) or m.shape != params[i].shape:
                needed = list(params[i].shape) if i < len(params) else f"{len(params)} parameters"
                raise ShapeError(
                    f"the mean of parameter {i} does not fit", needed=str(needed), found=f"{list(m.shape)}"
                )
        if self.balance is not None:
            self.balance.load_state_dict(state["balance"])
        elif state["balance"]:
            raise DomainError("a state of a balancer", needed="a step with balance=...", found="a step without")
        self.memory = Memory({i: m.to(params[i]).clone() for i, m in state["means"].items()}, state["draws"])


def _restore(noise: Noise) -> None:
    for device, state in noise:
        torch.set_rng_state(state) if device.type == "cpu" else torch.cuda.set_rng_state(state, device)


@contextmanager
def _displaced(params: list[Tensor], displacement: list[Tensor]) -> Iterator[None]:
    """Inside, params are displaced; afterwards they are what they were, to the bit."""
    kept = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            if params:
                torch._foreach_add_(params, displacement)
        displacement.clear()
        yield
    finally:
        with torch.no_grad():
            if params:
                torch._foreach_copy_(params, kept)
        torch.clear_autocast_cache()


@contextmanager
def _buffers_kept(modules: list[nn.Module]) -> Iterator[None]:
    """Afterwards, the modules' buffers are what they were, whether changed in place or replaced."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, old in kept:
                buffer.copy_(old)
                module._buffers[name] = buffer


__all__ = ["Step"]
