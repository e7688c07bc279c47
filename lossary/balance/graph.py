"""The graph of autograd under some losses: noted layers, what is made without the batch, where losses' graphs meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lossary.balance.closed import Use, wide
from lossary.errors import WrongRoom

Node = Any  # of autograd's graph
Edge = tuple[Node, int]  # to the so-manieth output of a node


@dataclass(eq=False)
class Call:
    """One run of a layer with a closed form."""

    layer: nn.Module
    form: type[Use]
    x: Tensor
    version: int
    edge: GradientEdge  # of the output, before anything is done to it in place
    before: GradientEdge | None  # of the input
    shape: torch.Size
    own: dict[str, Any]  # "weight" and "bias", as far as they are trained

    @property
    def watched(self) -> bool:
        """Whether somebody wants the gradient by the input: a hook, or `retain_grad`."""
        return self.x.retains_grad or bool(self.x._backward_hooks)

    def seen(self) -> Tensor:
        """The input, provided nobody changed it since."""
        if "weight" in self.own and self.x._version != self.version:
            raise WrongRoom(
                f"the input of {type(self.layer).__name__} was changed in place after the layer had run",
                needed="inputs that stay as they were until the gradients are taken",
                try_="an operation that is not in place",
            )
        return self.x.detach()


def origin(x: Tensor) -> GradientEdge | None:
    """Where autograd's graph made a tensor."""
    return get_gradient_edge(x) if x.requires_grad else None


class Walk:
    """The graph under some losses, from outputs of noted layers straight to their inputs.

    reached: the noted layers. leaves: parameters met on the way, so used outside noted layers. borders (for `count`
    samples): what is made without the batch and then added to every sample, or multiplied; the walk stops there.
    """

    def __init__(self, roots: Iterable[Node], calls: Iterable[Call] = (), count: int | None = None) -> None:
        self.calls = {c.edge.node: c for c in calls}
        self.reached: list[Call] = []
        self.leaves: set[int] = set()
        self.borders: list[Border] = []
        todo = list(dict.fromkeys(node for node in roots if node is not None))
        seen = set(todo)
        while todo:
            node = todo.pop()
            call = self.calls.get(node)
            if call is not None:
                self.reached.append(call)
                after: Any = ((call.before.node, 0),) if call.before is not None else ()
            elif not (after := node.next_functions):
                if (leaf := getattr(node, "variable", None)) is not None:
                    self.leaves.add(id(leaf))
                continue
            for at, (child, nr) in enumerate(after):
                if child is None or child in seen:
                    continue
                if count is not None and call is None and (border := Border.of(node, at, child, nr, count)):
                    self.borders.append(border)
                    continue
                seen.add(child)
                todo.append(child)

    def uses(self, params: Sequence[Tensor]) -> dict[int, list[tuple[Call, str]]]:
        """For each of these parameters that only noted layers use: those layers, and what it is to them."""
        wanted, found = {id(p) for p in params} - self.leaves, dict[int, list[tuple[Call, str]]]()
        for call in self.reached:
            for name, p in call.own.items():
                if id(p) in wanted:
                    found.setdefault(id(p), []).append((call, name))
        return {key: some for key, some in found.items() if len({name for _, name in some}) == 1}


def _shape(node: Node, at: int) -> tuple[int, ...]:
    """The shape of what a node made."""
    if (leaf := getattr(node, "variable", None)) is not None:
        return tuple(leaf.shape)
    return tuple(node._input_metadata[at].shape)


class Border(NamedTuple):
    """Where something made without the batch (`inner`, of `shape`) meets it: in a sum, a stretching or a product."""

    node: Node
    inner: GradientEdge
    shape: tuple[int, ...]
    at: int  # which operand it is

    @classmethod
    def of(cls, node: Node, at: int, child: Node, nr: int, count: int) -> Border | None:
        """The border between a node and one that it follows, if it is one."""
        name = node.name()
        if name not in ("AddBackward0", "ExpandBackward0", "MulBackward0") or getattr(node, "_saved_alpha", 1) != 1:
            return None
        full, shape = _shape(node, 0), _shape(child, nr)
        if count == 1 or not full or full[0] != count or (len(shape) == len(full) and shape[0] != 1):
            return None
        border = cls(node, GradientEdge(child, nr), shape, at)
        return None if name == "MulBackward0" and not isinstance(border.other(), Tensor) else border

    def other(self) -> Any:
        """What a product multiplies with."""
        return self.node._saved_other if self.at == 0 else self.node._saved_self

    def pull(self, d: Tensor) -> Tensor:
        """From gradients of what the node made, [B, ...], to each sample's by `inner`, [B, *shape]."""
        d = wide(d)
        if self.node.name() == "MulBackward0":
            d = d * self.other().detach()
        own = self.shape[1:] if len(self.shape) == d.ndim else self.shape
        if lead := d.ndim - 1 - len(own):
            d = d.flatten(1, lead).sum(1)
        axes = [k for k, size in enumerate(own, 1) if size == 1 and d.shape[k] != 1]
        return (d.sum(axes, keepdim=True) if axes else d).reshape(len(d), *self.shape)


BELOW = -1  # the place of what is below a meeting
MANY = 2**20  # numbers read by several losses, below which one pass for all of them is not quicker

# What a pass for several losses at once is known to take in its stride: operations of layers on rows.
_NAMES = """
Add0 Addmm0 Bmm0 Cat0 Clone0 Div0 Elu0 Embedding0 Exp0 Expand0 Gelu0 Hardswish0 Hardtanh0 LeakyRelu0 Log0
LogSoftmax0 Mean0 Mean1 Mm0 Mul0 NativeDropout0 NativeLayerNorm0 Neg0 Permute0 Pow0 Relu0 Select0 Sigmoid0
Silu0 Slice0 Softmax0 Softplus0 Split0 Sqrt0 Squeeze0 Squeeze1 Stack0 Sub0 Sum0 Sum1 T0 Tanh0 ToCopy0
Transpose0 UnsafeView0 Unsqueeze0 View0
"""
TOGETHER = frozenset(f"{name[:-1]}Backward{name[-1]}" for name in _NAMES.split())


def pays(terms: int, weights: int, sent: int) -> bool:
    """Whether one pass for all losses is quicker: by it the weights below, so many numbers, are read only once.

    So they have to be many, and more than the numbers that all losses send down to them (0: not known yet). From trials
    on two cores; nothing was tried on a GPU.
    """
    return terms * weights >= MANY and weights >= terms * sent


class Meeting(NamedTuple):
    """Where the graphs of several losses meet: all of them reach all edges, and what lies below only through these.

    place: of each node, and by its id of each parameter, the loss that reaches it alone, or BELOW.
    """

    edges: list[Edge]
    place: dict[Any, int]

    @classmethod
    def of(cls, losses: Sequence[Tensor]) -> Meeting | None:
        """The meeting, if there is one, all operations below it can go together, and that pays."""
        roots = [(edge.node, edge.output_nr) for edge in map(origin, losses) if edge is not None]
        if len(roots) < max(2, len(losses)):
            return None
        first, _ = _down(roots[:1])
        above, met = [first], dict[Edge, None]()
        for root in roots[1:]:
            own, into = _down([root], first)
            if (
                not own
                or (len(above) > 1 and into.keys() != met.keys())
                or any(not own.isdisjoint(one) for one in above)
            ):
                return None
            above.append(own)
            met = into
        tops = {node for node, _ in met}
        under, _ = _down([edge for node in tops for edge in node.next_functions])
        if not met or not tops.isdisjoint(under):  # one edge under another would count twice
            return None
        below = tops | under
        above[0] = first - below
        if {edge for node in above[0] for edge in node.next_functions if edge[0] in below} != met.keys():
            return None
        if any(node.next_functions and node.name() not in TOGETHER for node in below):
            return None
        weights = sum(node.variable.numel() for node in below if hasattr(node, "variable"))
        if not pays(len(roots), weights, sum(math.prod(_shape(*edge)) for edge in met)):
            return None
        place: dict[Any, int] = dict.fromkeys(below, BELOW)
        for t, nodes in enumerate(above):
            place |= dict.fromkeys(nodes, t)
        return cls(list(met), place | {id(node.variable): t for node, t in place.items() if hasattr(node, "variable")})

    def at(self, x: Tensor | GradientEdge) -> int | None:
        """The place of a tensor, or of the output of a noted layer."""
        return self.place.get(x.node if isinstance(x, GradientEdge) else x.grad_fn or id(x))

    def pulls(self, losses: Sequence[Tensor], inputs: Sequence[Any]) -> tuple[list[Tensor | None], list[Tensor]]:
        """Gradients by inputs above, each that of its own loss; and of all losses at the edges, [T, ...] each.

        One backward pass of the sum: above, each loss is by itself. What it sends down is noted on the way.
        """
        sent: dict[tuple[Edge, int], Tensor] = {}
        hooks = []
        for node, t in self.place.items():
            if t != BELOW and not isinstance(node, int):
                for at, edge in enumerate(node.next_functions):
                    if self.place.get(edge[0]) == BELOW:
                        hooks.append(node.register_hook(_note(sent, (edge, t), at)))
        try:
            ends = [*inputs, *(GradientEdge(*edge) for edge in self.edges)]
            found = torch.autograd.grad(list(losses), ends, allow_unused=True, retain_graph=True)
        finally:
            for hook in hooks:
                hook.remove()
        stacked = []
        for edge, total in zip(self.edges, found[len(inputs) :], strict=True):
            rows = [sent.get((edge, t)) for t in range(len(losses))]
            stacked.append(torch.stack([torch.zeros_like(total) if d is None else d for d in rows]))
        return list(found[: len(inputs)]), stacked


def _note(sent: dict[Any, Tensor], key: Any, at: int) -> Callable[[Any, Any], None]:
    """A hook that adds up what a node sends to one of those that follow it."""

    def hook(inner: Any, _: Any) -> None:
        if (d := inner[at]) is not None:
            sent[key] = sent[key] + d if key in sent else d

    return hook


def _down(edges: Iterable[Edge], stop: Collection[Node] = ()) -> tuple[set[Node], dict[Edge, None]]:
    """All nodes from some edges down, without those of `stop`, and the edges that lead into these, in a fixed order."""
    found, into = set[Node](), dict[Edge, None]()
    todo = [(edge[0], edge[1]) for edge in edges]
    while todo:
        edge = todo.pop()
        if edge[0] in stop:
            into[edge] = None
        elif edge[0] is not None and edge[0] not in found:
            found.add(edge[0])
            todo.extend(edge[0].next_functions)
    return found, into
