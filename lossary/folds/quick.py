"""The shorter way for pair losses that are everywhere: a softmax over rows (and columns), or logistic losses of pairs.

They need one number of a row, the log-sum-exp or the sum of logistic losses, and a sum over positives, which is linear
in the similarities: a product with the sum of the positives' embeddings. So no masks and no labels enter the pass over
pairs, and each entry costs one exponential. `shortcut` gives None where a loss needs more, and the formula itself runs.

With cosines c and temperature tau every entry is exp((c - 1) / tau), between exp(-2 / tau) and 1. In float32 this holds
as long as 2 / tau stays below 80; sharper softmaxes go the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.folds.blocks import slices
from lossary.folds.pairs import SIZES, exactly, multiple, once, usual
from lossary.views.pairs import Pairs

STEEP = 80.0  # exp(-80) is still a normal number in float32


def shortcut(view: Pairs, fn: Callable[..., Tensor], hyper: dict[str, Any]) -> Tensor | None:
    """The items by the shorter way, [N]; None where there is none."""
    from lossary.formulas import contrastive

    ways: dict[Any, Callable[..., Tensor | None]] = {
        contrastive.supcon.fn: supcon,
        contrastive.clip.fn: clip,
        contrastive.siglip.fn: siglip,
    }
    plain = view.pair_weight is None and view.col_kept is None and (view.alone or view.label is None)
    return ways[fn](view, **hyper) if fn in ways and plain else None


def supcon(view: Pairs, tau: Tensor | float) -> Tensor | None:
    """`lossary.formulas.contrastive.supcon`."""
    if steep(tau):
        return None
    a, b = view.unit_rows, view.unit_cols
    lse: Tensor = _Rows.apply(view, True, a, b, torch.as_tensor(tau, dtype=a.dtype, device=a.device))
    if view.col_label is None:
        return lse
    near, count = attraction(view.col_label, view.first, a, b)
    return lse - near / count.where(count > 0, 1) / tau


def clip(view: Pairs, tau: Tensor | float) -> Tensor | None:
    """`lossary.formulas.contrastive.clip`."""
    if view.alone:
        return supcon(view, tau)
    if view.across is not None:  # gathered: masks came in the way of a ring
        return None
    if steep(tau) or len(view.rows) != len(view.cols):
        return None
    a, b = view.unit_rows, view.unit_cols
    out: Tensor = _Both.apply(a, b, torch.as_tensor(tau, dtype=a.dtype, device=a.device))
    return out


def siglip(view: Pairs, scale: Tensor | float, bias: Tensor | float) -> Tensor | None:
    """`lossary.formulas.contrastive.siglip`: softplus(z) of all pairs less z of the positives."""
    a, b = view.unit_rows, view.unit_cols
    given = (torch.as_tensor(x, dtype=a.dtype, device=a.device) for x in (scale, bias))
    total: Tensor = _Rows.apply(view, False, a, b, *given)
    if view.col_label is None:
        return total
    near, count = attraction(view.col_label, view.first, a, b)
    return total - (scale * near + bias * count)


def ring(view: Pairs, fn: Callable[..., Tensor], hyper: dict[str, Any]) -> Tensor | None:
    """The items of two towers over processes, [N], with the columns going round; None where the loss needs them all."""
    from lossary.folds.ring import totals
    from lossary.formulas import contrastive

    if view.kept is not None or view.pair_weight is not None or len(view.rows) != len(view.cols):
        return None
    a, b = view.unit_rows, view.unit_cols
    own, given = (a * b).sum(-1), {k: torch.as_tensor(x, dtype=a.dtype, device=a.device) for k, x in hyper.items()}
    if fn is contrastive.siglip.fn:
        scale, bias = given["scale"], given["bias"]
        return totals(a, b, False, (scale, bias), view.across)[0] - (scale * own + bias)
    if fn is not contrastive.clip.fn or steep(hyper["tau"]):
        return None
    rows, cols = totals(a, b, True, (given["tau"],), view.across)
    return (rows + cols) / 2 - own / given["tau"]


def steep(tau: Tensor | float) -> bool:
    """Whether the smallest entry may be too small."""
    return 2 / float(tau.detach() if isinstance(tau, Tensor) else tau) > STEEP


def attraction(label: Tensor, first: int, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cosines with the positives, [N], and their number, [N]: the columns of the row's label but its own."""
    rows = slice(first, first + len(a))
    _, kind, count = label.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(count), b.shape[1], dtype=b.dtype, device=b.device).index_add(0, kind, b)
    return (a * (sums[kind[rows]] - a)).sum(-1), (count[kind[rows]] - 1).to(a.dtype)


class _Rows(torch.autograd.Function):
    """Of every row the log-sum-exp of z = c / tau, or the sum of softplus(z = scale c + bias), less z of its positive.

    The positive counts where there are no labels: it is the column of the row's number. In one set of embeddings a
    row's own column is left out.

    One number a row, so its gradient is known as soon as the row is: it is taken in the forward pass for a pull of 1 on
    every valid item, and again in the backward pass if the pull was another one.
    """

    @staticmethod
    def forward(ctx: Any, view: Pairs, soft: bool, a: Tensor, b: Tensor, *hyper: Tensor) -> Tensor:
        ctx.view, ctx.soft = view, soft
        ctx.save_for_backward(a, b, *hyper)
        out, ctx.taken = _over(view, soft, a, b, hyper, usual(view) if any(ctx.needs_input_grad) else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        once()
        taken, ctx.taken = ctx.taken, None
        factor = None if taken is None else multiple(grad, usual(ctx.view))
        if factor is None:
            a, b, *hyper = ctx.saved_tensors
            _, taken = _over(ctx.view, ctx.soft, a, b, tuple(hyper), grad)
        else:
            for x in taken:
                x.mul_(factor)
        return None, None, *taken


@exactly
def _over(
    view: Pairs, soft: bool, a: Tensor, b: Tensor, hyper: tuple[Tensor, ...], pull: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """The rows' numbers and, given a pull on them, the gradients by a, b and the hyperparameters."""
    scale, paired = 1 / hyper[0] if soft else hyper[0], view.col_label is None
    shift = -scale if soft else hyper[1]
    out = torch.empty_like(a[:, 0])
    by_a, by_b, by_shift = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(scale)
    block, size = SIZES.rows(len(b), a)
    buffer = a.new_empty(min(block, len(a)), len(b))
    for at in slices(0, len(a), block):
        part = a[at] * scale
        z = torch.mm(part, b.mT, out=buffer[: len(part)])
        for lane in slices(at.start, at.stop, size):
            here = z[lane.start - at.start : lane.stop - at.start]
            here += shift
            mine = here.diagonal(view.first + lane.start)
            positive = mine.clone() if paired else shift if soft else 0.0
            if view.alone:
                mine.fill_(-torch.inf)
            if soft:
                total = here.exp_().sum(-1)
                value = total.log()
            else:
                total, value = torch.ones_like(out[lane]), F.softplus(here).sum(-1)
                if pull is not None:
                    here.sigmoid_()
            out[lane] = value - positive
            if pull is not None:
                here *= (pull[lane] / total)[:, None]
                if paired:
                    mine -= pull[lane]
                if not soft:
                    by_shift += here.sum()
        if pull is not None:  # z holds the gradient by itself now
            torch.mm(z, b, out=by_a[at])
            by_b.addmm_(z.mT, part)
    if pull is None:
        return out, []
    by_scale = by_a.flatten() @ a.flatten()
    grads = [by_a.mul_(scale), by_b]
    return out, [*grads, -by_scale * scale.square()] if soft else [*grads, by_scale, by_shift]


class _Both(torch.autograd.Function):
    """The mean log-sum-exp of z = c / tau over row i and over column i, less z_ii, [N]. Similarities are made twice.

    The largest entry is known, so sums over parts of a row simply add, and tiles need not be as wide as the matrix.
    """

    @staticmethod
    @exactly
    def forward(ctx: Any, a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
        rows, cols = torch.zeros_like(a[:, 0]), torch.zeros_like(b[:, 0])
        for at, of, _, lanes in _tiles(a, b, tau):
            for lane, here in lanes:
                rows[at][lane] += here.sum(-1)
                cols[of] += here.sum(0)
        ctx.save_for_backward(a, b, tau, rows, cols)
        return (rows.log() + cols.log()).div_(2).add_(1 / tau).sub_(torch.linalg.vecdot(a, b) / tau)

    @staticmethod
    @exactly
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        once()
        a, b, tau, rows, cols = ctx.saved_tensors
        by_a, by_b = torch.zeros_like(a), torch.zeros_like(b)
        left, right = grad / (2 * rows * tau), grad / (2 * cols * tau)
        for at, of, z, lanes in _tiles(a, b, tau):
            for lane, here in lanes:
                here *= left[at][lane, None] + right[of]
            by_a[at].addmm_(z, b[of])
            by_b[of].addmm_(z.mT, a[at])
        by_a.addcmul_(grad[:, None], b / -tau)
        by_b.addcmul_(grad[:, None], a / -tau)
        return by_a, by_b, -(by_a.flatten() @ a.flatten()) / tau


def _tiles(a: Tensor, b: Tensor, tau: Tensor) -> Iterator[tuple[slice, slice, Tensor, Iterator[tuple[slice, Tensor]]]]:
    """Rows, columns, and exp((c - 1) / tau) there: whole, for when all lanes have been made, and lane by lane."""
    height, width, size = SIZES.tile(a)
    buffer = a.new_empty(min(height, len(a)) * min(width, len(b)))
    for at in slices(0, len(a), height):
        part = a[at] / tau
        for of in slices(0, len(b), width):
            z = buffer[: len(part) * (of.stop - of.start)].view(len(part), -1)
            torch.mm(part, b[of].mT, out=z)
            yield at, of, z, ((lane, z[lane].sub_(1 / tau).exp_()) for lane in slices(0, len(z), size))
