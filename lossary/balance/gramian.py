"""The Gramian of several losses' gradients, and their weighted sum, without a backward pass of the weights per loss.

    with record(model) as tape:
        losses = [first(model(x)), second(model(x))]
    grads = tape.gradients(losses)
    weights = balance(grads.gramian())        # [T, T] -> [T]
    for p, g in zip(grads.params, grads.pull(weights)):
        p.grad = g

Hooks note what went into the layers whose gradients have a closed form (`lossary.balance.closed`). Backward passes then
stop at the outputs of those layers; inner products come from inputs and gradients of outputs, and the weighted sum of
gradients is one product a layer. A parameter that is also used in another way (found by a walk over the graph), and
everything without a closed form, goes through ordinary autograd. So results are always exact; what varies is time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from lossary.balance.backward import Block, by_sample, by_term
from lossary.balance.closed import BATCH_NORM, Dense, kind
from lossary.balance.graph import Call, origin
from lossary.errors import MissingInput, ShapeError

VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


class Tape:
    """What `record` notes."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.calls: list[Call] = []
        self.coupled: list[str] = []  # layers that mix the rows of a batch
        self.open = False

    def _note(self, layer: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not self.open or len(args) != 1 or not isinstance(out, Tensor) or not out.requires_grad:
            return
        x, form = args[0], kind(layer)
        if form is None:
            if isinstance(layer, BATCH_NORM) and (layer.training or layer.running_mean is None):
                self.coupled.append(type(layer).__name__)
            return
        own = {name: p for name, p in layer._parameters.items() if p is not None and p.requires_grad}
        plain = own and "weight" in layer._parameters and all(p.is_leaf for p in own.values())
        if not plain or not isinstance(x, Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return  # a weight that is computed (parametrizations) has a graph of its own
        node: Any = out.grad_fn
        at = out.output_nr
        while node.name() in VIEWS:  # in-place operations would cut a view off
            node, at = node.next_functions[0]
        self.calls.append(Call(layer, form, x, x._version, GradientEdge(node, at), origin(x), out.shape, own))

    def gradients(
        self,
        losses: Tensor | Sequence[Tensor],
        params: Iterable[Tensor] | None = None,
        samples: bool = False,
        *,
        retain_graph: bool = False,
        check: bool = False,
    ) -> Gradients:
        """Gradients of T losses ([T], or a list; terms that do not reach all parameters are cheaper as a list).

        params: those that count (all of the recorded modules'); they may also be tensors inside the graph
        (representations). samples: loss i depends on row i of every layer's input only (the first axis); one backward
        pass does for all then. check: try whether that is so, by a second backward pass. retain_graph: all of the
        graph can be used again; else parts of it are freed.
        """
        if params is None:
            params = (p for m in self.modules for p in m.parameters() if p.requires_grad)
        wanted = list(dict.fromkeys(params))
        if not wanted:
            raise MissingInput("there are no parameters to take gradients by", needed="parameters that require grad")
        if samples:
            return Gradients(wanted, *by_sample(self.calls, self.coupled, losses, wanted, retain_graph, check))
        return Gradients(wanted, *by_term(self.calls, losses, wanted, retain_graph))


@contextmanager
def record(*modules: nn.Module) -> Iterator[Tape]:
    """Note the layers of these modules that run inside, for `Tape.gradients`."""
    tape, hooks = Tape(modules), []
    for m in dict.fromkeys(layer for module in modules for layer in module.modules()):
        if (kind(m) is not None or isinstance(m, BATCH_NORM)) and "forward" not in m.__dict__:
            hooks.append(m.register_forward_hook(tape._note, prepend=True))
    tape.open = True
    try:
        yield tape
    finally:
        tape.open = False
        for hook in hooks:
            hook.remove()


class Gradients:
    """Gradients of T losses by `params`, in the forms they have."""

    def __init__(self, params: list[Tensor], count: int, blocks: list[Block], like: Tensor) -> None:
        self.params, self.count, self.blocks = params, count, blocks
        dtype = torch.float32
        for p in params:
            dtype = torch.promote_types(dtype, p.dtype)
        self.like = torch.empty((), dtype=dtype, device=like.device)

    def _sum(self, which: set[int] | None, square: bool) -> Tensor:
        """Gramian, or squared norms, of some parameters together (None: all)."""
        total = self.like.new_zeros((self.count,) * (2 if square else 1))
        found: dict[tuple[int, ...], Tensor] = {}
        with _exact(self.like):
            for block in self.blocks:
                part = block.part
                if which is not None and not which.issuperset(block.places):
                    if which.isdisjoint(block.places):
                        continue
                    sizes = [self.params[k].numel() for k in block.places]
                    columns = zip(block.places, part.whole().split(sizes, 1), strict=True)
                    part = Dense(torch.cat([flat for k, flat in columns if k in which], 1))
                g = (part.gram() if square else part.squares()).to(total)
                if len(g) == self.count:
                    total += g
                else:
                    found[block.rows] = found[block.rows] + g if block.rows in found else g
        own = [rows[0] for rows in found if len(rows) == 1]
        if own:
            values = torch.cat([found[at,].flatten() for at in own])
            (total.diagonal() if square else total).index_add_(0, torch.tensor(own, device=total.device), values)
        for rows, g in found.items():
            if len(rows) > 1:
                at = torch.tensor(rows, device=total.device)
                total[(at[:, None], at) if square else at] += g
        return total

    def _places(self, groups: Mapping[str, Iterable[Tensor]]) -> list[set[int]]:
        """Where the parameters of each group are."""
        place = {id(p): k for k, p in enumerate(self.params)}
        found = []
        for name, members in groups.items():
            keys = [id(p) for p in members]
            if any(key not in place for key in keys):
                raise MissingInput(
                    f"the group {name!r} has parameters that the gradients were not taken by",
                    needed="groups of the parameters given to gradients()",
                )
            found.append({place[key] for key in keys})
        return found

    @torch.no_grad()
    def gramian(self, groups: Mapping[str, Iterable[Tensor]] | None = None) -> Tensor:
        """<grad_s, grad_t>, [T, T]; one for each group of parameters, [K, T, T]."""
        if groups is None:
            return _even(self._sum(None, True))
        return torch.stack([_even(self._sum(some, True)) for some in self._places(groups)])

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Norms of the gradients, [T]."""
        return self._sum(None, False).clamp_(min=0).sqrt_()

    @torch.no_grad()
    def jacobian(self) -> Tensor:
        """The gradients, [T, P], parameters flat and in the order of `params`. Nothing else stores them."""
        sizes = [p.numel() for p in self.params]
        found = self.like.new_zeros(self.count, sum(sizes))
        columns = found.split(sizes, 1)
        with _exact(self.like):
            for block in self.blocks:
                whole = block.part.whole().reshape(len(block.rows), -1).to(found)
                for k, g in zip(block.places, whole.split([sizes[k] for k in block.places], 1), strict=True):
                    if len(block.rows) == self.count:
                        columns[k].copy_(g)
                    else:
                        columns[k][list(block.rows)] = g
        return found

    @cached_property
    def shared(self) -> list[Tensor]:
        """The parameters that two or more losses reach."""
        return [self.params[k] for block in self.blocks if len(block.rows) > 1 for k in block.places]

    @torch.no_grad()
    def pull(
        self, weights: Tensor, groups: Mapping[str, Iterable[Tensor]] | None = None, *, as_is: bool = False
    ) -> list[Tensor | None]:
        """sum_t w_t grad_t, one tensor a parameter; None for those that no loss reaches.

        groups: of parameters, as for `gramian`, each with weights of its own, [K, T]; None for those in no group.
        as_is: a gradient by a parameter that no other loss reaches has no weight, and may be the one that is kept here.
        """
        every = set(range(len(self.params)))
        members = [every] if groups is None else self._places(groups)
        needed = (self.count,) if groups is None else (len(members), self.count)
        if weights.shape != needed:
            raise ShapeError("one weight a loss", needed=str(list(needed)), found=str(list(weights.shape)))
        weights = weights.detach().to(self.like).view(len(members), -1)
        pulled: list[Tensor | None] = [None] * len(self.params)
        with _exact(self.like):
            for block in self.blocks:
                of, rows = [self.params[k] for k in block.places], block.rows
                own = as_is and len(rows) == 1
                for by, some in [(weights, every)] if own else zip(weights, members, strict=True):
                    if some.isdisjoint(block.places):
                        continue
                    if own:
                        g = block.part.whole().reshape(-1)
                    else:
                        g = block.part.pull((by if len(rows) == self.count else by[list(rows)]).to(of[0].device))
                    parts = g.split([p.numel() for p in of]) if len(of) > 1 else [g]
                    for k, p, flat in zip(block.places, of, parts, strict=True):
                        if k in some:
                            pulled[k] = flat.view(p.shape).to(p.dtype)
        return pulled

    @torch.no_grad()
    def split(self, direction: Tensor) -> list[Tensor]:
        """A flat direction [P], in the order of `jacobian`, as one tensor a parameter."""
        sizes = [p.numel() for p in self.params]
        if direction.shape != (sum(sizes),):
            raise ShapeError("one number a parameter", needed=f"[{sum(sizes)}]", found=str(list(direction.shape)))
        return [g.view(p.shape).to(p) for g, p in zip(direction.split(sizes), self.params, strict=True)]


def _exact(x: Tensor) -> torch.autocast:
    """The precision of the tensors, whatever autocast says."""
    return torch.autocast(x.device.type, enabled=False)


def _even(g: Tensor) -> Tensor:
    return (g + g.T).div_(2)


def gramian(
    losses: Tensor | Sequence[Tensor],
    params: Iterable[Tensor] | None = None,
    *,
    features: Tensor | Iterable[Tensor] | None = None,
    samples: bool = False,
) -> Tensor:
    """The Gramian of losses that were made without a tape, [T, T]; the graph stays.

    features: by these tensors of the graph instead of parameters, an upper bound when they are what heads share
    (MGDA-UB, arXiv:1810.04650, section 3.3).
    """
    return _given(losses, params, features, samples).gramian()


def norms(
    losses: Tensor | Sequence[Tensor],
    params: Iterable[Tensor] | None = None,
    *,
    features: Tensor | Iterable[Tensor] | None = None,
    samples: bool = False,
) -> Tensor:
    """Norms of the gradients of losses that were made without a tape, [T]; the graph stays."""
    return _given(losses, params, features, samples).norms()


def _given(losses: Any, params: Any, features: Any, samples: bool) -> Gradients:
    if (params is None) == (features is None):
        raise MissingInput("gradients are by something", needed="params or features, one of them")
    if features is not None:
        params = [features] if isinstance(features, Tensor) else features
    return Tape(()).gradients(losses, params, samples, retain_graph=True)
