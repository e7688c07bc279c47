"""Laws about batches: rows that are masked, repeated, permuted, missing, or in another shape; soft labels."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from lossary import folds, reduce
from lossary.catalogue import row
from lossary.folds.tiles import Sizes
from lossary.laws.base import close, finite, law, need
from lossary.laws.numbers import Hyper, losses, reduced, value_and_gradient
from lossary.laws.samples import extras, gradient, objective, recipe
from lossary.laws.settings import WIDTH
from lossary.memory import Learned
from lossary.methods import Method
from lossary.views import Classes, Items, Labels, Pairs

TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


@law("formula", "weight", "reduce", at="some")
def mask(method: Method, hyper: Hyper) -> None:
    """Masking rows is dropping them, in value and gradient, whatever the masked rows hold; so is `ignore_index`."""
    whole = objective(method, hyper)
    x, target = recipe(method).draw(9)
    more = extras(hyper, len(x))
    keep = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1, 1], dtype=torch.bool)
    value, grad = value_and_gradient(whole, x[keep], target[keep], **{k: v[keep] for k, v in more.items()})
    dirty, wrong = x.clone(), target.clone()
    dirty[1], dirty[4], dirty[6] = torch.nan, torch.inf, -torch.inf
    wrong[~keep] = torch.nan if target.is_floating_point() else 10**6
    got, masked = value_and_gradient(whole, dirty, wrong, valid=keep, **more)
    close(got, value, "loss with `valid` against dropped rows", **TIGHT)
    close(masked[keep], grad, "gradient with `valid` against dropped rows", **TIGHT)
    need(bool((masked[~keep] == 0).all()), f"masked rows have a gradient: {masked[~keep].flatten()[0].item():g}")
    if issubclass(whole.view, Classes):
        ignored = torch.where(keep, target, -100)
        got, masked = value_and_gradient(whole, x, ignored, **more)
        close(got, value, "loss with ignore_index against dropped rows", **TIGHT)
        close(masked[keep], grad, "gradient with ignore_index against dropped rows", **TIGHT)
        need(bool((masked[~keep] == 0).all()), "rows with ignore_index have a gradient")
    if method.role == "reduce":  # the view has cleaned the rows above; a reduction must not count on it
        loss = losses(9)
        value = objective(method, hyper).reduction(Items(loss[keep], **{k: v[keep] for k, v in more.items()}))
        loss[~keep] = torch.tensor([torch.nan, 1e9, -1e9], dtype=loss.dtype)
        close(reduced(method, hyper, loss, valid=keep), value, "value with masked losses of NaN and 1e9", **TIGHT)


def of_one_item(method: Method) -> bool:
    """Whether an item's loss depends on that item alone: the row of one that depends on the batch says "coupled"."""
    return "coupled" not in row(method.key).get("properties", [])


@law("formula", "weight", "reduce", when=of_one_item)
def weights(method: Method, hyper: Hyper) -> None:
    """A row of weight 2 is the same row twice, under every reduction that normalises by weight.

    Reductions that divide by the number of items (`by="token"`, "item", "group") multiply by the weight instead.
    """
    times = torch.tensor([1, 2, 3, 1, 0, 2, 1])
    if method.role == "reduce":
        loss = losses(len(times))
        got = reduced(method, hyper, loss, times.double())
        if hyper.get("by", "weight") == "weight":
            close(got, reduced(method, hyper, loss.repeat_interleave(times)), "weighted against repeated", **TIGHT)
        else:
            close(got, reduced(method, hyper, loss * times), "weighted against multiplied losses", **TIGHT)
        return
    x, target = recipe(method).draw(len(times))
    twice = x.repeat_interleave(times, 0), target.repeat_interleave(times, 0)
    by_weight = [
        reduce.mean(by="weight"),
        reduce.sum(),
        reduce.cvar(alpha=0.4),
        reduce.tilted(t=0.3),
        reduce.top_k(k=3),
    ]
    for how in by_weight:
        whole = objective(method, hyper).reduce(how)
        got, grad = value_and_gradient(whole, x, target, weight=times.double())
        value, repeated = value_and_gradient(whole, *twice)
        close(got, value, f"weights against repeated rows under {how!r}", **TIGHT)
        summed = torch.zeros_like(x).index_add(0, torch.arange(len(x)).repeat_interleave(times), repeated)
        close(grad, summed, f"gradient under {how!r}", rtol=1e-8, atol=1e-11)


@law("formula", "weight", "reduce", at="some")
def order(method: Method, hyper: Hyper) -> None:
    """The order of the rows does not matter: items move with their rows, the reduced loss stays."""
    whole = objective(method, hyper)
    x, target = recipe(method).draw(9)
    more = extras(hyper, len(x))
    p = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])
    plain, moved = whole.items(x, target), whole.items(x[p], target[p])
    close(moved.loss, plain.loss[p], "items of permuted rows", **TIGHT)
    if plain.weight is not None and moved.weight is not None:
        close(moved.weight, plain.weight[p], "weights of permuted rows", **TIGHT)
    value, grad = value_and_gradient(whole, x, target, **more)
    got, moved_grad = value_and_gradient(whole, x[p], target[p], **{k: v[p] for k, v in more.items()})
    close(got, value, "loss of permuted rows", **TIGHT)
    close(moved_grad, grad[p], "gradient of permuted rows", **TIGHT)


def takes_soft(method: Method) -> bool:
    """Not the weight of a label slot: it is blended by the label, and its product with the loss is another blend."""
    return of_one_item(method) and (method.role != "weight" or not issubclass(method.view, Labels))


@law("formula", "weight", at="some", views=(Classes, Labels), when=takes_soft)
def soft(method: Method, hyper: Hyper) -> None:
    """A soft label costs the expectation over hard ones, in value, gradient and weight; one-hot is hard."""
    whole = objective(method, hyper)
    x, target = recipe(method).draw()
    if issubclass(method.view, Labels):
        share = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        hard = [(share, torch.ones_like(x)), (1 - share, torch.zeros_like(x))]
    else:
        one_hot = F.one_hot(target, WIDTH).double()
        same, plain = whole.items(x, one_hot), whole.items(x, target)
        close(same.loss, plain.loss, "items of one-hot labels", **TIGHT)
        if same.weight is not None and plain.weight is not None:
            close(same.weight, plain.weight, "weights of one-hot labels", **TIGHT)
        a, b = value_and_gradient(whole, x, one_hot), value_and_gradient(whole, x, target)
        close(a[1], b[1], "gradient of one-hot labels", rtol=1e-8, atol=1e-10)
        share = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        share = share / share.sum(-1, keepdim=True)
        hard = [(share[:, k], torch.full_like(target, k)) for k in range(WIDTH)]

    def mixed(z: torch.Tensor) -> torch.Tensor:
        parts = [(s, whole.items(z, t)) for s, t in hard]
        return torch.stack([s * i.loss * (1.0 if i.weight is None else i.weight) for s, i in parts]).sum(0)

    def direct(z: torch.Tensor) -> torch.Tensor:
        i = whole.items(z, share)
        return i.loss * (1.0 if i.weight is None else i.weight)

    (got, grad), (wanted, wanted_grad) = gradient(direct, x), gradient(mixed, x)
    close(got, wanted, "items of soft labels against the expectation", rtol=1e-8, atol=1e-10)
    close(grad, wanted_grad, "gradient of soft labels against the expectation", rtol=1e-7, atol=1e-9)


@law("formula", "weight", "reduce")
def empty(method: Method, hyper: Hyper) -> None:
    """No rows, or none that are valid: the loss is 0, has a graph, and its gradient is 0."""
    whole = objective(method, hyper)
    x, target = recipe(method).draw()
    more = extras(hyper, len(x))
    none = torch.zeros(len(x), dtype=torch.bool)
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("no rows", x[:0], target[:0], {k: v[:0] for k, v in more.items()}),
        ("no valid rows", x, target, {"valid": none, **more}),
    ]
    for name, z, y, given in cases:
        z = z.clone().requires_grad_()
        loss = whole(z, y, **given)
        need(loss.shape == () and loss.item() == 0, f"{name}: the loss is {loss.tolist()}")
        need(loss.requires_grad, f"{name}: the loss has no graph")
        loss.backward()
        need(z.grad is not None and bool((z.grad == 0).all()), f"{name}: the gradient is not 0")


@law("formula", "weight")
def shapes(method: Method, hyper: Hyper) -> None:
    """[B, C, H, W], [B, T, V] and flat rows are the same items, and their gradients the same numbers."""
    whole = objective(method, hyper)
    for (x, target), (flat, flat_target) in recipe(method).shapes():
        got, wanted = whole.items(x, target), whole.items(flat, flat_target)
        need(got.loss.shape == target.shape, f"items of shape {list(got.loss.shape)}, targets {list(target.shape)}")
        close(got.loss.flatten(), wanted.loss.flatten(), f"items of shape {list(x.shape)}", **TIGHT)
        if got.weight is not None and wanted.weight is not None:
            close(got.weight.flatten(), wanted.weight.flatten(), f"weights of shape {list(x.shape)}", **TIGHT)
        value, grad = value_and_gradient(whole, x, target)
        flat_value, flat_grad = value_and_gradient(whole, flat, flat_target)
        close(value, flat_value, f"loss of shape {list(x.shape)}", **TIGHT)
        close(grad.sum(), flat_grad.sum(), "summed gradient", rtol=1e-8, atol=1e-9)
        close(grad.norm(), flat_grad.norm(), "length of the gradient", rtol=1e-8, atol=1e-9)


@law("formula", "weight", at="some", views=(Pairs,))
def streams(method: Method, hyper: Hyper) -> None:
    """A few rows of pairs at a time give what the whole matrix gives, in value and every gradient; so do two towers."""
    x, target = recipe(method).draw(13)
    other = x.roll(1, 0) + 0.5 * x
    learned = {k: Learned(v) if isinstance(v, float) and v > 0 else v for k, v in hyper.items()}
    pull = torch.linspace(0.5, 2, len(x), dtype=x.dtype)  # not that of a mean
    for name, y in (("one set", target), ("two towers", other)):
        found = []
        for sizes in (Sizes(), Sizes(small=0, block=(520, 520), lane=16 * 13)):
            whole = objective(method, learned)
            a, b = x.clone().requires_grad_(), y.clone()
            b.requires_grad_(y.is_floating_point())
            wanted = [t for t in (a, b, *whole.parameters()) if t.requires_grad]
            with mock.patch.multiple(folds.tiles.SIZES, **vars(sizes)):
                items = whole.items(a, b)
                plain = torch.autograd.grad(whole(a, b), wanted, allow_unused=True)
                by_row = torch.autograd.grad((pull * items.loss).sum(), wanted, allow_unused=True)
            grads = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted * 2, plain + by_row, strict=True)]
            found.append([items.loss, *grads])
        for got, want in zip(*reversed(found), strict=True):
            close(got, want, f"{name}, a few rows at a time", rtol=1e-8, atol=1e-10)


@law("reduce", at="edges")
def nan_shows(method: Method, hyper: Hyper) -> None:
    """A NaN among the valid losses is not hidden by a reduction; one that is masked is."""
    loss = losses(7)
    broken = loss.clone()
    broken[2] = torch.nan
    need(bool(reduced(method, hyper, broken).isnan()), f"{reduced(method, hyper, broken).item():g} in spite of a NaN")
    got, grad = gradient(lambda x: reduced(method, hyper, x, valid=~broken.isnan()), broken)
    finite(got, "value with the NaN masked")
    finite(grad, "gradient with the NaN masked")


@law("weight", at="some")
def detached(method: Method, hyper: Hyper) -> None:
    """No gradient flows through a weight: the gradient is the weight times that of the loss."""
    whole = objective(method, hyper).reduce(reduce.sum())
    plain = type(whole)([(1.0, whole.terms[0])], reduction=whole.reduction)  # type: ignore[list-item]
    x, target = recipe(method).draw()
    items = whole.items(x, target)
    assert items.weight is not None
    need(not items.weight.requires_grad, "the weight carries a gradient")
    _, grad = value_and_gradient(whole, x, target)
    _, wanted = value_and_gradient(plain, x, target)
    w = items.weight if items.weight.shape == x.shape else items.weight[:, None]
    close(grad, w * wanted, "gradient of the weighted loss", **TIGHT)


@law("weight", at="edges", when=lambda method: "counts" in method.hyper)
def normalised(method: Method, hyper: Hyper) -> None:
    """Weights made from class counts average 1, over the classes or over the training examples: no hidden step size."""
    x = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    w = objective(method, hyper).items(x, torch.arange(WIDTH)).weight
    assert w is not None
    n = torch.tensor(hyper["counts"], dtype=torch.float64)
    finite(w, "class weights")
    need(bool((w >= 0).all()), f"a negative weight: {w.min().item():g}")
    means = (w.mean().item(), ((w * n).sum() / n.sum()).item())
    off = min(abs(m - 1) for m in means)
    need(off < 1e-9, f"mean weight {means[0]:.9g} over classes, {means[1]:.9g} over training examples")


@law("reduce", at="some")
def bare(method: Method, hyper: Hyper) -> None:
    """A reduction gives one number; weights of 1 and a mask of True are as if there were none."""
    loss = losses(9)
    plain = reduced(method, hyper, loss)
    need(plain.shape == (), f"the value has shape {list(plain.shape)}")
    ones, all_valid = torch.ones_like(loss), torch.ones(9, dtype=torch.bool)
    close(reduced(method, hyper, loss, ones), plain, "weights of 1", **TIGHT)
    close(reduced(method, hyper, loss, valid=all_valid), plain, "a mask of True", **TIGHT)
    close(reduced(method, hyper, loss, ones, valid=all_valid), plain, "weights of 1 and a mask of True", **TIGHT)
