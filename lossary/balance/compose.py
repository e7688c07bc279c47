"""Balancers made of others: one after the other, and those of TorchJD."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lossary.balance.terms import Balance, Needs, State, gram, vector
from lossary.errors import MissingInput, ShapeError, WrongRoom


class Then(Balance):
    """One balancer's weights on the losses, and another on the gradients of what they weigh. See `Balance.then`.

    The weights of a balancer by losses are the slopes of its total. The answer of a second one by the Gramian is the
    product of both weights.
    """

    def __init__(self, first: Balance, second: Balance) -> None:
        nn.Module.__init__(self)
        if second.needs == "losses":
            raise WrongRoom(
                f"{second!r} cannot come second", needed="a balancer by the Gramian or the Jacobian", try_="it first"
            )
        if first.needs == "jacobian":
            raise WrongRoom(
                f"{first!r} cannot come first: it answers with a direction", needed="one by losses or the Gramian"
            )
        if next(first.parameters(), None) is not None:
            raise WrongRoom(
                f"{first!r} learns by the gradient of its total, and none is taken before another balancer",
                needed="weights that are not learned",
            )
        self.first, self.second, self.live = first, second, True

    @property
    def needs(self) -> Needs:
        """What the second one needs."""
        return self.second.needs

    def forward(
        self,
        losses: Tensor | Sequence[Tensor] | None = None,
        *,
        gramian: Tensor | None = None,
        jacobian: Tensor | None = None,
        **given: Any,
    ) -> Tensor:
        """As `Balance`; both see the losses, the second one as the first weighs them."""
        if losses is None:
            raise MissingInput(f"{self!r} needs losses", needed="losses [T]", try_="balance(losses, gramian=...)")
        leaf = vector(losses, "losses").detach()
        g = gramian if gramian is not None or jacobian is None else gram(jacobian.detach())
        if self.first.needs == "losses":
            with torch.enable_grad():
                leaf = leaf.requires_grad_()
                whole = self.first(leaf, **given)
                (u,) = torch.autograd.grad(whole, leaf)
            leaf = leaf.detach()
        else:
            u = self.first(leaf, gramian=g, **given)
        if self.needs == "jacobian" and jacobian is not None:
            given["jacobian"] = u.to(jacobian)[:, None] * jacobian.detach()
        elif self.needs == "gramian" and g is not None:
            by = u.to(g.device, torch.float64)
            given["gramian"] = by[:, None] * g.detach().double() * by
        answer: Tensor = self.second(u.to(leaf) * leaf, **given)
        return answer if self.needs == "jacobian" else u * answer.to(u)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, neither remembers anything."""
        with super().frozen(), self.first.frozen(), self.second.frozen():
            yield

    def config(self) -> dict[str, Any]:
        """Plain JSON: both."""
        return {"then": [self.first.config(), self.second.config()]}

    def __repr__(self) -> str:
        return f"{self.first!r}.then({self.second!r})"


class Each(Balance):
    """A balancer by the Gramian for every group of parameters, each with a memory of its own: [K, T, T] -> [K, T]."""

    def __init__(self, balance: Balance, count: int) -> None:
        nn.Module.__init__(self)
        if balance.needs != "gramian":
            raise WrongRoom(
                f"{balance!r} cannot balance groups of parameters each by itself",
                needed="a balancer by the Gramian",
                try_="lossary.balance.pcgrad() and the like",
            )
        self.each, self.live = nn.ModuleList(copy.deepcopy(balance) for _ in range(count)), True

    @property
    def needs(self) -> Needs:
        """A Gramian for each group."""
        return "gramian"

    def forward(
        self, losses: Tensor | Sequence[Tensor] | None = None, *, gramian: Tensor | None = None, **given: Any
    ) -> Tensor:
        """As `Balance`, with Gramians [K, T, T]; weights [K, T]. Where no gradient is, nobody is asked: ones."""
        if gramian is None or gramian.ndim != 3 or len(gramian) != len(self.each):
            found = "none" if gramian is None else str(list(gramian.shape))
            raise ShapeError("a Gramian for each group", needed=f"[{len(self.each)}, T, T]", found=found)
        answers = []
        for one, g in zip(self.each, gramian, strict=True):
            answers.append(one(losses, gramian=g, **given) if g.any() else g.new_ones(len(g)))
        return torch.stack(answers)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, none of them remembers anything."""
        with ExitStack() as stack:
            for one in [super(), *self.each]:
                stack.enter_context(one.frozen())  # type: ignore[operator]
            yield

    def config(self) -> dict[str, Any]:
        """Plain JSON: of each of them."""
        return self.each[0].config()  # type: ignore[operator, no-any-return]

    def __repr__(self) -> str:
        return repr(self.each[0])


class TorchJD(Balance):
    """An aggregator or weighting of TorchJD. See `torchjd`."""

    def __init__(self, given: nn.Module) -> None:
        nn.Module.__init__(self)
        self.state, self.live = State(), True
        self.inner: nn.Module = getattr(given, "gramian_weighting", given)
        kinds = {c.__name__ for c in type(self.inner).__mro__}
        self.by_gramian = "_GramianWeighting" in kinds
        self.weighs = self.by_gramian or "Weighting" in kinds
        if not (self.weighs or "Aggregator" in kinds):
            raise WrongRoom(
                "this is neither an aggregator nor a weighting of TorchJD",
                needed="an object like torchjd.aggregation.UPGrad()",
                found=type(given).__name__,
            )
        self.shown = " ".join(repr(given).split())

    @property
    def needs(self) -> Needs:
        """The Gramian, if that is enough for it."""
        return "gramian" if self.by_gramian else "jacobian"

    def forward(
        self,
        losses: Tensor | Sequence[Tensor] | None = None,
        *,
        gramian: Tensor | None = None,
        jacobian: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Weights [T] from the Gramian [T, T], or a direction [P] from the Jacobian [T, P]; losses are not used."""
        if self.by_gramian and gramian is None and jacobian is not None:
            gramian = gram(jacobian.detach()).to(jacobian)
        wide = gramian if self.by_gramian else jacobian
        if wide is None:
            shape = "[T, T]" if self.by_gramian else "[T, P]"
            raise MissingInput(f"{self!r} needs the {self.needs} of the gradients", needed=shape)
        inner = self.inner if self.training and self.live else copy.deepcopy(self.inner)  # some of them remember
        with torch.no_grad():
            answer: Tensor = inner(wide.detach())
        return answer if self.by_gramian or not self.weighs else answer @ wide.detach()

    def config(self) -> dict[str, Any]:
        """Refused: an object of another library has no config that could be trusted."""
        raise WrongRoom(
            f"{self!r} has no config: it is an object of another library",
            needed="a balancer of this one",
            try_="lossary.balance.upgrad() and the like",
        )

    def __repr__(self) -> str:
        return f"lossary.balance.torchjd({self.shown})"


def torchjd(aggregator: nn.Module) -> Balance:
    """Any aggregator or weighting of TorchJD as a balancer: `lossary.balance.torchjd(UPGrad())`.

    Where a Gramian is enough for it, it gets that. What it keeps from step to step is in the checkpoint as far as it
    puts it into its own `state_dict`. Not imported from there: nothing needs to be installed for this function.
    """
    return TorchJD(aggregator)


__all__ = ["Each", "Then", "TorchJD", "torchjd"]
