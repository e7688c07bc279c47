"""From losses and noted layers to gradients: which parameters have a closed form, and backward passes for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lossary.balance import graph
from lossary.balance.closed import FEW, Dense, EmbeddingUse, LinearUse, Part, Rows, Samples, Shared, wide
from lossary.balance.graph import BELOW, Call, Meeting, Node, Walk
from lossary.errors import DomainError, MissingInput, ShapeError, WrongRoom

CHUNK = 64  # samples of one batched backward pass, where there is no closed form


class Block(NamedTuple):
    """Gradients of some losses (`rows`) by one parameter, or several dense ones (`places` among all)."""

    places: list[int]
    part: Part
    rows: tuple[int, ...]


Found = tuple[int, list[Block], Tensor]


Column = list[Tensor | None] | Tensor  # gradients by one input: of each loss; [T, ...] if they were found together


def _rows(column: Column) -> tuple[int, ...]:
    """The losses that reach an input."""
    every = range(len(column))
    return tuple(every) if isinstance(column, Tensor) else tuple(t for t in every if column[t] is not None)


def _flat(columns: list[Column], k: int, rows: Sequence[int]) -> Tensor:
    """Gradients of some losses by one input, flat, [rows, P]. They leave `columns`, so that memory is freed early."""
    column, columns[k] = columns[k], []
    if isinstance(column, Tensor):
        return column.reshape(len(column), -1)
    flat = []
    for t in rows:
        g = column[t]
        assert g is not None
        column[t] = None
        flat.append((g.to_dense() if g.is_sparse else g).reshape(1, -1))
    return torch.cat(flat) if len(flat) > 1 else flat[0]


def _dense(params: Sequence[Tensor], places: Sequence[int], columns: list[Column], first: int) -> list[Block]:
    """Blocks of the parameters that are inputs `first` and after; small ones that the same losses reach share one."""
    alike: dict[Any, list[int]] = {}
    for k, place in enumerate(places, first):
        rows = _rows(columns[k])
        if rows:
            p = params[place]
            alone = len(rows) == 1 or len(rows) * p.numel() > FEW
            alike.setdefault((rows, p.dtype, p.device, k if alone else None), []).append(k)
    blocks = []
    for (rows, *_), some in alike.items():
        flat = [_flat(columns, k, rows) for k in some]
        whole = Dense(wide(torch.cat(flat, 1) if len(flat) > 1 else flat[0]))
        blocks.append(Block([places[k - first] for k in some], whole, rows))
    return blocks


# losses of the whole batch


def by_term(calls: list[Call], losses: Tensor | Sequence[Tensor], params: list[Tensor], retain: bool) -> Found:
    """One backward pass a loss, down to the outputs of noted layers; below where all losses meet, one for all."""
    roots, ones = _terms(losses)
    graphs = [r for r in roots if r.requires_grad]
    if not graphs:
        raise MissingInput("no loss has a graph", needed="losses that depend on parameters")
    closed = [c for c in calls if c.form in (LinearUse, EmbeddingUse) and "weight" in c.own]
    walk = Walk([get_gradient_edge(r).node for r in graphs] if closed else [], closed)
    uses = {}
    for key, found in walk.uses(params).items():
        runs = [call for call, _ in found]
        if found[0][1] == "weight" and _pays(runs, len(roots)):
            uses[key] = runs
    runs = list(dict.fromkeys(call for found in uses.values() for call in found))
    rest = [k for k, p in enumerate(params) if id(p) not in uses and p.requires_grad]
    inputs: list[Any] = [*(c.edge for c in runs), *(params[k] for k in rest)]
    few = not graph.pays(len(roots), sum(p.numel() for p in params), 0)
    apart = few or ones[0] is not None or any(call.watched for call in calls)
    columns = None if apart else _together(roots, inputs)
    if columns is None:
        columns = _each(roots, ones, inputs, retain)
    blocks = _dense(params, rest, columns, len(runs))
    spots = {id(c): k for k, c in enumerate(runs)}
    for k, p in enumerate(params):
        places = [spots[id(c)] for c in uses.get(id(p), ())]
        rows = tuple(sorted({t for c in places for t in _rows(columns[c])}))
        if rows:
            blocks.append(Block([k], _joined(uses[id(p)], columns, rows, places), rows))
    return len(roots), blocks, graphs[0]


def _each(roots: list[Tensor], ones: list[Tensor | None], inputs: list[Any], retain: bool) -> list[Column]:
    """Gradients of each root by each input, by a backward pass a root."""
    found: list[Sequence[Tensor | None]] = []
    for at, (root, one) in enumerate(zip(roots, ones, strict=True)):
        if root.requires_grad and inputs:
            keep = retain or at < len(roots) - 1
            found.append(torch.autograd.grad(root, inputs, one, retain_graph=keep, allow_unused=True))
        else:
            found.append([None] * len(inputs))
    return [list(column) for column in zip(*found, strict=True)]


def _together(losses: list[Tensor], inputs: list[Any]) -> list[Column] | None:
    """The same by two passes: down to where the losses meet, and from there for all at once. If they do."""
    meeting = Meeting.of(losses)
    places = [None if meeting is None else meeting.at(x) for x in inputs]
    if meeting is None or BELOW not in places:
        return None
    near, pulls = meeting.pulls(losses, [x for x, t in zip(inputs, places, strict=True) if t != BELOW])
    edges = [GradientEdge(*edge) for edge in meeting.edges]
    below = _batched_grad(edges, [x for x, t in zip(inputs, places, strict=True) if t == BELOW], pulls)
    columns: list[Column] = []
    for owner in places:
        g = (below if owner == BELOW else near).pop(0)
        alone = [g if t == owner else None for t in range(len(losses))]
        columns.append(g if g is not None and owner == BELOW else alone)
    return columns


def _terms(losses: Tensor | Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Each loss as a root and the pull on it."""
    if isinstance(losses, Tensor):
        if losses.ndim != 1:
            raise ShapeError("losses are a vector", needed="[T]", found=str(list(losses.shape)))
        return [losses] * len(losses), list(torch.eye(len(losses)).to(losses))
    if any(loss.numel() != 1 for loss in losses):
        shapes = ", ".join(str(list(loss.shape)) for loss in losses)
        raise ShapeError("a loss is one number", needed="T scalars, or a vector [T]", found=shapes)
    return list(losses), [None] * len(losses)


def _pays(runs: list[Call], terms: int) -> bool:
    """Whether the closed form is the cheaper one. Layers of different kinds with one weight have none."""
    if any(call.form is not runs[0].form for call in runs):
        return False
    n, weight = sum(call.shape[:-1].numel() for call in runs), runs[0].own["weight"]
    if runs[0].form is EmbeddingUse:
        return n < len(weight)
    return Shared.cheaper(terms, n, weight.shape[1], weight.shape[0])


def _joined(runs: list[Call], columns: list[Column], rows: tuple[int, ...], places: list[int]) -> Part:
    """The part of one weight, from runs of a layer and the places of gradients of their outputs."""
    stacked = []
    for call, k in zip(runs, places, strict=True):
        shape = (call.shape[:-1].numel(), call.shape[-1])
        if isinstance(column := columns[k], list):
            for t in rows:
                if column[t] is None:  # one weight, two runs, and a loss that only one of them reaches
                    column[t] = call.own["weight"].new_zeros(shape)
        stacked.append(_flat(columns, k, rows).view(-1, *shape))
    d = torch.cat(stacked, 1) if len(stacked) > 1 else stacked[0]
    if runs[0].form is EmbeddingUse:
        ids = torch.cat([call.seen().flatten() for call in runs]).long()
        return Rows.of(ids, d, len(runs[0].own["weight"]), runs[0].layer.padding_idx)  # type: ignore[arg-type]
    inputs = [x.to(d.dtype).reshape(-1, x.shape[-1]) for call in runs for x in [call.seen()]]
    return Shared(torch.cat(inputs) if len(inputs) > 1 else inputs[0], d)


# losses of independent rows


def by_sample(
    calls: list[Call],
    coupled: list[str],
    losses: Tensor | Sequence[Tensor],
    params: list[Tensor],
    retain: bool,
    check: bool,
) -> Found:
    """One backward pass of the sum; a batched one for what has no closed form."""
    losses = losses if isinstance(losses, Tensor) else torch.stack([x.reshape(()) for x in losses])
    if losses.ndim != 1:
        raise ShapeError("losses of samples are a vector", needed="[B]", found=str(list(losses.shape)))
    if not losses.requires_grad:
        raise MissingInput("the losses have no graph", needed="losses that depend on parameters")
    if coupled:
        raise WrongRoom(
            f"{coupled[0]} in training makes every loss depend on the whole batch",
            needed="samples that are independent of each other",
            try_="eval() on these layers, or another norm (GroupNorm), or samples=False",
        )
    count = len(losses)
    walk = Walk([losses.grad_fn], calls, count)
    full = [_batched(call, count) for call in walk.reached]
    walk.leaves.update(id(p) for call, ok in zip(walk.reached, full, strict=True) if not ok for p in call.own.values())
    walk.reached = [call for call, ok in zip(walk.reached, full, strict=True) if ok]
    inside = Walk(border.inner.node for border in walk.borders).leaves  # parameters that never see the batch
    outside = walk.leaves | {id(p) for call in walk.reached for p in call.own.values()}
    walk.leaves |= inside
    uses = walk.uses(params)
    few = [k for k, p in enumerate(params) if id(p) in inside - outside]
    rest = [k for k, p in enumerate(params) if id(p) not in uses and k not in few and p.requires_grad]

    runs = list(dict.fromkeys(call for found in uses.values() for call, _ in found))
    edges = [call.edge for call in runs]
    edges += [GradientEdge(node, 0) for node in dict.fromkeys(b.node for b in walk.borders) if few]
    pulls = _backward(losses, edges, retain or bool(rest or few), check)
    made = {
        id(call): call.form(call.layer, call.seen(), d.reshape(call.shape))
        for call in runs
        if (d := pulls[call.edge.node]) is not None
    }
    got: dict[int, Tensor | None] = {}
    if few:
        of = [params[k] for k in few]
        borders = [(b.inner, b.pull(d)) for b in walk.borders if (d := pulls[b.node]) is not None]
        got.update(zip(few, _inward(borders, of), strict=True))
    if rest:
        got.update(zip(rest, _one_by_one(losses, [params[k] for k in rest]), strict=True))
    everyone, blocks, small = tuple(range(count)), list[Block](), dict[Any, list[tuple[int, Tensor]]]()
    for k, p in enumerate(params):
        g = got.get(k)
        if id(p) in uses:
            some = [made[id(call)] for call, _ in uses[id(p)] if id(call) in made]
            if not some:
                continue
            part = Samples(some, uses[id(p)][0][1], p.shape)
            if part.matrix:
                blocks.append(Block([k], part, everyone))
                continue
            g = part.whole()  # smaller than what it is made of
        if g is not None and g.numel() > FEW:
            blocks.append(Block([k], Dense(wide(g).reshape(count, -1)), everyone))
        elif g is not None:
            small.setdefault((p.dtype, p.device), []).append((k, wide(g).reshape(count, -1)))
    for found in small.values():
        flat = torch.cat([g for _, g in found], 1) if len(found) > 1 else found[0][1]
        blocks.append(Block([k for k, _ in found], Dense(flat), everyone))
    return count, blocks, losses


def _batched(call: Call, count: int) -> bool:
    """Whether a layer saw the samples on the first axis."""
    return len(call.shape) > 1 and call.shape[0] == count and (call.x.ndim > 1 or call.form is EmbeddingUse)


def _backward(losses: Tensor, edges: list[GradientEdge], retain: bool, check: bool) -> dict[Node, Tensor | None]:
    """Gradients of the sum of the losses at some edges."""
    if not edges:
        return {}
    got = torch.autograd.grad(losses, edges, torch.ones_like(losses), retain_graph=retain or check, allow_unused=True)
    if check:
        trial = torch.rand_like(losses) + 0.5
        for d, e in zip(
            got, torch.autograd.grad(losses, edges, trial, retain_graph=retain, allow_unused=True), strict=True
        ):
            if d is None or e is None:
                continue
            asked = wide(d).reshape(len(losses), -1) * trial.to(wide(d))[:, None] if d.numel() % len(losses) == 0 else e
            if not torch.allclose(asked, wide(e).view_as(asked), rtol=1e-2, atol=1e-3 * float(wide(d).abs().max())):
                raise DomainError(
                    "the losses are not independent",
                    needed="loss i depends on row i of every layer's input and on no other",
                    try_="samples=False, or layers that keep the samples on the first axis",
                )
    return {edge.node: d for edge, d in zip(edges, got, strict=True)}


def _inward(borders: list[tuple[GradientEdge, Tensor]], params: list[Tensor]) -> list[Tensor | None]:
    """Gradients [B, *shape] of parameters behind borders, from those at the borders."""
    direct: dict[int, Tensor] = {}
    edges: list[Any] = []
    pulls = []
    for inner, d in borders:
        leaf = getattr(inner.node, "variable", None)
        if leaf is None:
            edges.append(inner)
            pulls.append(d.to(inner.node._input_metadata[inner.output_nr].dtype))
        else:
            direct[id(leaf)] = direct[id(leaf)] + d if id(leaf) in direct else d
    got = _batched_grad(edges, params, pulls) if edges else [None] * len(params)
    found: list[Tensor | None] = []
    for p, g in zip(params, got, strict=True):
        own = direct.get(id(p))
        found.append(own if g is None else wide(g) if own is None else wide(g) + own)
    return found


def _one_by_one(losses: Tensor, params: list[Tensor]) -> list[Tensor | None]:
    """Gradients [B, *shape] of each loss by ordinary autograd, some losses at a time."""
    eye = torch.eye(len(losses)).to(losses)
    found = [_batched_grad([losses], params, [some]) for some in eye.split(CHUNK)]
    return [None if some[0] is None else torch.cat(some) for some in zip(*found, strict=True)]  # type: ignore[arg-type]


def _batched_grad(outputs: list[Any], params: list[Tensor], pulls: list[Tensor]) -> list[Tensor | None]:
    """A backward pass for many pulls, [B, ...] each, at once; a loop where an operation has no batched form."""
    try:
        return list(
            torch.autograd.grad(outputs, params, pulls, retain_graph=True, allow_unused=True, is_grads_batched=True)
        )
    except RuntimeError:
        rows = []
        for some in zip(*pulls, strict=True):
            rows.append(torch.autograd.grad(outputs, params, some, retain_graph=True, allow_unused=True))
        return [
            None if column[0] is None else torch.stack([g.to_dense() for g in column])
            for p, column in zip(params, zip(*rows, strict=True), strict=True)
        ]
