"""The pass over pairs: rows of similarities, a block at a time. The matrix never exists, forwards or backwards.

Two sizes (`lossary.folds.tiles.SIZES`), as for heads: a *block* of rows is wide enough for the matrix products to be
fast, a *lane* small enough for what a formula does entry by entry to stay in the cache. A formula is run on every lane
as if it were the whole batch, autograd takes the gradient of a lane by its own similarities, and matrix products carry
it on to the embeddings. Gradients are exact. There is no second derivative. Losses that are a softmax over a row, or a
sum of logistic losses, have a shorter way (`lossary.folds.quick`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from lossary.errors import WrongRoom
from lossary.folds.blocks import slices
from lossary.folds.tiles import SIZES
from lossary.views.pairs import KINDS, Pairs, product

T = TypeVar("T")
Formula = Callable[..., Tensor]


def exactly(fn: Callable[..., T]) -> Callable[..., T]:
    """The function in the precision of its tensors, whatever autocast says."""

    @wraps(fn)
    def inner(*args: Any) -> T:
        kind = next(x.device.type for x in args if isinstance(x, Tensor))
        with torch.autocast(kind, enabled=False):
            return fn(*args)

    return inner


def few(view: Pairs) -> bool:
    """Whether the whole matrix is made: it is small, or a transform of torch.func or the compiler wants to see all."""
    if len(view.rows) * len(view.cols) <= SIZES.small or view.rows.is_meta:
        return True
    return torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None


@dataclass
class Plan:
    """What a pass needs beside tensors with gradients. `kinds`: what the formula reads, and if from columns' side."""

    view: Pairs
    fn: Formula
    plain: dict[str, Any]
    names: list[str]  # of the hyperparameters that are tensors
    kinds: list[tuple[str, bool]]

    def items(self, at: slice, near: list[Tensor], hyper: tuple[Tensor, ...]) -> Tensor:
        """The formula on some rows with these similarities."""
        part = self.view.part(at)
        for (kind, turned), s in zip(self.kinds, near, strict=True):
            (part.mirror if turned else part).seen[kind] = s
        return self.fn(part, **self.plain, **dict(zip(self.names, hyper, strict=True)))


def stream(view: Pairs, fn: Formula, hyper: dict[str, Any]) -> Tensor:
    """`fn(view, **hyper)`, [N], rows by rows."""
    from lossary.folds.quick import shortcut

    found = shortcut(view, fn, hyper)
    if found is not None:
        return found
    names = [k for k, v in hyper.items() if isinstance(v, Tensor) and v.requires_grad]
    plain = {k: v for k, v in hyper.items() if k not in names}
    probe = view.part(slice(0, 1))
    with torch.no_grad():  # one row tells what the formula reads
        fn(probe, **hyper)
    other = None if view.alone else probe.seen.get("mirror")
    sides = [view] if other is None else [view, view.mirror]
    for side in sides:
        for name in ("unit_rows", "unit_cols"):  # found without a graph just now
            side.seen.pop(name, None)
    kinds = [(k, False) for k in KINDS if k in probe.seen]
    kinds += [(k, True) for k in KINDS if other is not None and k in other.seen]
    if not kinds:
        raise WrongRoom("the formula looks at no pair", needed=" or ".join(f"view.{k}" for k in KINDS))
    embeddings: list[Tensor] = []
    for kind, turned in kinds:
        side = sides[turned]
        embeddings += [side.unit_rows, side.unit_cols] if KINDS[kind] else [side.rows, side.cols]
    plan = Plan(view, fn, plain, names, kinds)
    out: Tensor = _Rows.apply(plan, *embeddings, *(hyper[k] for k in names))
    return out


class _Rows(torch.autograd.Function):
    """Items. Gradients are taken in the forward pass for a pull of 1 on every valid item: a mean's, up to a factor.

    Under another pull (weights, CVaR) the backward pass computes similarities and gradients anew.
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        ctx.taken = None
        pull = usual(plan.view) if any(ctx.needs_input_grad) else None
        out, ctx.taken = over(plan, tensors, pull)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        once()
        taken, ctx.taken = ctx.taken, None
        factor = None if taken is None else multiple(grad, usual(ctx.plan.view))
        if factor is None:
            _, taken = over(ctx.plan, ctx.saved_tensors, grad)
        else:
            for x in taken:
                x.mul_(factor)
        return None, *taken


def over(plan: Plan, tensors: tuple[Tensor, ...], pull: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """The items, and if there is a `pull` [N] on them the gradients of (pull * items).sum() by the tensors."""
    count = 2 * len(plan.kinds)
    ends, hyper = list(zip(tensors[:count:2], tensors[1:count:2], strict=True)), tensors[count:]
    out = tensors[0].new_empty(len(plan.view.rows))
    if pull is not None:
        hyper = tuple(x.detach().requires_grad_() for x in hyper)
        sums = [(torch.zeros_like(left), torch.zeros_like(right)) for left, right in ends]
        more = [torch.zeros_like(x) for x in hyper]
    block, size = SIZES.rows(len(plan.view.cols), plan.view.rows, len(plan.kinds))
    for at in slices(0, len(out), block):
        near = [product(k, left[at], right) for (k, _), (left, right) in zip(plan.kinds, ends, strict=True)]
        for lane in slices(at.start, at.stop, size):
            here = slice(lane.start - at.start, lane.stop - at.start)
            if pull is None:
                out[lane] = plan.items(lane, [s[here] for s in near], hyper)
                continue
            leaves = [s[here].detach().requires_grad_() for s in near]
            with torch.enable_grad():
                items = plan.items(lane, leaves, hyper)
            out[lane] = items.detach()
            found = torch.autograd.grad(items, [*leaves, *hyper], pull[lane], allow_unused=True)
            for s, g in zip(near, found, strict=False):
                s[here] = 0 if g is None else g  # the gradient takes the place of what it is a gradient by
            for total, g in zip(more, found[len(near) :], strict=True):
                if g is not None:
                    total += g
        if pull is not None:
            for (kind, _), s, (left, right), (by_left, by_right) in zip(plan.kinds, near, ends, sums, strict=True):
                carry(kind, s, left[at], right, by_left[at], by_right)
    if pull is None:
        return out, []
    return out, [g for pair in sums for g in pair] + more


def usual(view: Pairs) -> Tensor:
    """The pull of a mean on the items, up to a factor: 1 where they are valid, [N]."""
    rows = view.rows
    return torch.ones_like(rows[:, 0]) if view.valid is None else view.valid.flatten().to(rows.dtype)


def multiple(grad: Tensor, pull: Tensor) -> Tensor | None:
    """c where grad is c * pull, [N]; None where it is not."""
    factor = (grad * pull).abs().amax() * (grad * pull).sum().sign() if len(grad) else grad.new_ones(())
    return factor if bool((grad == factor * pull).all()) else None


def once() -> None:
    """Refuse to be differentiated twice: the gradient would be taken for a constant, silently."""
    if torch.is_grad_enabled():  # in a backward pass: create_graph=True
        raise WrongRoom(
            "pairs that are streamed have no second derivative",
            needed="create_graph=False",
            try_="lossary.folds.tiles.SIZES.small = N * M, which makes the matrix",
        )


def carry(kind: str, g: Tensor, rows: Tensor, cols: Tensor, by_rows: Tensor, by_cols: Tensor) -> None:
    """Add to the gradients by rows and columns what the gradient g by their similarities makes of it."""
    if kind == "dist2":  # |r|^2 + |c|^2 - 2 r.c
        by_rows.addcmul_(g.sum(1)[:, None], rows, value=2)
        by_cols.addcmul_(g.sum(0)[:, None], cols, value=2)
    scale = -2.0 if kind == "dist2" else 1.0
    by_rows.addmm_(g, cols, alpha=scale)
    by_cols.addmm_(g.mT, rows, alpha=scale)
