"""The Gramian engine beside the plain loop: one backward pass for each loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gramian_nets import MODELS, B, T, Tower, attention, perceptron
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from lossary.balance import backward, closed, graph
from lossary.balance.gramian import Gradients, gramian, norms, record
from lossary.errors import DomainError, MissingInput, ShapeError, WrongRoom

Losses = Tensor | list[Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding")


@pytest.fixture(params=["where it pays", "always"], autouse=True)
def quickest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which way gradients are found is a matter of cost, and nets here are small: both ways."""
    if request.param == "always":
        monkeypatch.setattr(graph, "pays", lambda *_: True)
        monkeypatch.setattr(closed.Shared, "cheaper", lambda *_: True)
    return request.param


def naive(losses: Losses, params: list[Tensor]) -> Tensor:
    """[T, P], by T backward passes."""
    rows = []
    for loss in losses:
        got: Any = [None] * len(params)
        if loss.requires_grad:
            got = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(params, got, strict=True)]
        rows.append(torch.cat([g.flatten() for g in filled]))
    return torch.stack(rows)


def agree(grads: Gradients, j: Tensor, tol: float) -> None:
    """All that gradients offer, against their matrix."""
    torch.manual_seed(5)
    w = torch.randn(len(j), dtype=j.dtype)
    pulled = [torch.zeros_like(p) if g is None else g for p, g in zip(grads.params, grads.pull(w), strict=True)]
    for ours, true in (
        (grads.gramian(), j @ j.T),
        (grads.norms(), j.norm(dim=1)),
        (grads.jacobian(), j),
        (torch.cat([g.flatten() for g in pulled]), w @ j),
    ):
        assert ours.dtype == true.dtype
        assert float((ours - true).abs().max()) <= tol * float(true.abs().max())
    g = grads.gramian()
    assert torch.equal(g, g.T)


def engine(module: nn.Module, run: Callable[[], Losses], samples: bool, **options: Any) -> tuple[Gradients, Tensor]:
    """The engine's gradients and the plain loop's, of the same graph."""
    with record(module) as tape:
        losses = run()
    params: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    j = naive(losses, params)
    return tape.gradients(losses, samples=samples, **options), j


def of_samples(out: Tensor) -> Tensor:
    return (out.tanh() * torch.linspace(-1, 2, out.shape[-1], dtype=out.dtype)).square().flatten(1).sum(1)


def of_batch(out: Tensor) -> list[Tensor]:
    return [out.square().mean(), out[:, 0].sum(), out.flatten(1).logsumexp(1).std()]


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("samples", [True, False])
def test_as_the_loop(name: str, dtype: torch.dtype, tol: float, samples: bool) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().to(dtype)
    x = torch.randint(12, (B, T)) if shape is None else torch.randn(shape, dtype=dtype)
    grads, j = engine(model, lambda: (of_samples if samples else of_batch)(model(x)), samples)
    agree(grads, j, tol)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "attention"])
def test_no_backward_pass_per_sample(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What has a closed form, or sees no batch, never takes the slow way."""
    slow: list[Tensor] = []
    monkeypatch.setattr(backward, "_one_by_one", lambda losses, params: slow.extend(params) or [])
    test_as_the_loop(name, torch.float64, 1e-10, True)
    assert not slow


class Odd(nn.Module):
    """Layers that see the samples on another axis, or folded into one; a parameter used with the batch and without."""

    def __init__(self) -> None:
        super().__init__()
        self.folded, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.kernel, self.both = nn.Conv2d(1, 2, 2), nn.Parameter(torch.randn(T, 4))

    def forward(self, x: Tensor) -> Tensor:  # [B, T, 4]
        h = self.folded(x.flatten(0, 1)).view(x.shape) + self.both
        h = self.norm(self.second(h.transpose(0, 1)).transpose(0, 1)) @ self.both.T + self.both.sum(1)
        return self.kernel(h.unsqueeze(1)[..., 1:])  # a view that does not begin where its memory begins


@pytest.mark.parametrize("samples", [True, False])
def test_samples_elsewhere_than_first(samples: bool) -> None:
    torch.manual_seed(0)
    net, x = Odd().double(), torch.randn(B, T, 4, dtype=torch.float64)
    agree(*engine(net, lambda: (of_samples if samples else of_batch)(net(x)), samples, check=samples), 1e-10)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("block", [2**22, 300])
def test_both_ways_to_a_gramian_agree(monkeypatch: pytest.MonkeyPatch, dense: bool, block: int) -> None:
    """Products of rows, or the gradients; in one block or many. Costs choose, so here they are told what to say."""
    torch.manual_seed(0)
    monkeypatch.setattr(closed.Samples, "cost", lambda *_: (1e9, 0.0) if dense else (0.0, 1e9))
    monkeypatch.setattr(closed.Shared, "cheaper", lambda *_: not dense)
    monkeypatch.setattr(closed, "SMALL", 8)
    monkeypatch.setattr(closed, "BLOCK", block)
    for name in ("perceptron", "images", "tower", "tied tower"):
        test_as_the_loop(name, torch.float64, 1e-10, True)
        test_as_the_loop(name, torch.float64, 1e-10, False)


def test_layers_used_twice_and_weights_used_elsewhere() -> None:
    torch.manual_seed(0)
    again, other, table = nn.Linear(6, 6), nn.Linear(6, 6), nn.Embedding(9, 6)
    net = nn.ModuleList([again, other, table]).double()
    ids = torch.randint(9, (B, T))

    def run(penalty: bool) -> Tensor:
        h = again(again(table(ids)).tanh()) + table(ids.flip(1))
        return F.linear(other(h), other.weight) if penalty else other(h)  # one use that no hook sees

    for penalty in (False, True):
        agree(*engine(net, lambda p=penalty: of_samples(run(p)), True), 1e-10)  # type: ignore[misc]
        agree(*engine(net, lambda p=penalty: of_batch(run(p)), False), 1e-10)  # type: ignore[misc]
    agree(*engine(net, lambda: [run(False).sum(), again.weight.square().sum() + table.weight[2].sum()], False), 1e-10)


def test_one_weight_as_matrix_and_bias_elsewhere() -> None:
    """A vector that is the bias of one layer and the scale of another."""
    torch.manual_seed(0)
    line, norm = nn.Linear(4, 6), nn.LayerNorm(6)
    norm.weight = line.bias
    net, x = nn.Sequential(line, norm).double(), torch.randn(B, 4, dtype=torch.float64)
    agree(*engine(net, lambda: of_samples(net(x)), True), 1e-10)
    agree(*engine(net, lambda: of_batch(net(x)), False), 1e-10)


def test_weights_that_are_computed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(7, 5)), nn.Tanh(), nn.Linear(5, 4)).double()
    x = torch.randn(B, 7, dtype=torch.float64)
    agree(*engine(net, lambda: of_samples(net(x)), True), 1e-10)
    agree(*engine(net, lambda: of_batch(net(x)), False), 1e-10)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(7, 20), nn.ReLU(inplace=True), nn.Linear(20, 20), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(20, k) for k in (3, 2, 4))
        self.unused = nn.Linear(20, 20)

    def terms(self, x: Tensor) -> list[Tensor]:
        h = self.trunk(x)
        return [head(h).square().mean() for head in self.heads]


def test_terms_that_reach_some_parameters() -> None:
    torch.manual_seed(0)
    net, x = Heads().double(), torch.randn(B, 7, dtype=torch.float64)
    grads, j = engine(net, lambda: [*net.terms(x), net.trunk[0].weight.sum(), torch.zeros((), dtype=x.dtype)], False)
    agree(grads, j, 1e-10)
    assert [g is None for g in grads.pull(torch.ones(5))][-2:] == [True, True]
    assert not grads.gramian()[4].any()
    as_vector, _ = engine(net, lambda: torch.stack(net.terms(x)), False)
    torch.testing.assert_close(as_vector.gramian(), grads.gramian()[:3, :3])


def test_groups_are_shares_of_the_whole() -> None:
    torch.manual_seed(0)
    net, x = Heads().double(), torch.randn(B, 7, dtype=torch.float64)
    net.unused.requires_grad_(False)
    for samples in (False, True):
        run = (lambda: sum(of_samples(head(net.trunk(x))) for head in net.heads)) if samples else (lambda: net.terms(x))
        grads, j = engine(net, run, samples)  # type: ignore[arg-type]
        groups = {"first": [net.trunk[0].weight], "rest": [p for p in grads.params if p is not net.trunk[0].weight]}
        parts = grads.gramian(groups)
        assert parts.shape == (2, *grads.gramian().shape)
        torch.testing.assert_close(parts.sum(0), grads.gramian())
        first = j[:, : net.trunk[0].weight.numel()]
        torch.testing.assert_close(parts[0], first @ first.T)
        w = torch.randn(2, len(j), dtype=j.dtype)
        apart = zip(grads.pull(w[0]), grads.pull(w[1]), grads.pull(w, groups), grads.params, strict=True)
        for mine, other, found, p in apart:
            torch.testing.assert_close(found, mine if p is net.trunk[0].weight else other)
        only = grads.pull(w[:1], {"first": groups["first"]})
        assert [g is not None for g in only] == [p is net.trunk[0].weight for p in grads.params]
        with pytest.raises(ShapeError, match="one weight a loss"):
            grads.pull(w[0], groups)


def test_some_parameters_and_those_of_an_objective() -> None:
    torch.manual_seed(0)
    net, x = Heads().double(), torch.randn(B, 7, dtype=torch.float64)
    learned = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    with record(net) as tape:
        losses = [(learned * i).exp() * loss + learned for i, loss in enumerate(net.terms(x))]
    params: list[Tensor] = [net.trunk[2].weight, learned, net.heads[1].bias]
    j = naive(losses, params)
    agree(tape.gradients(losses, params), j, 1e-10)


def test_frozen_layers_and_layers_without_a_graph() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 7), nn.Linear(7, 4)).double()
    net[1].requires_grad_(False)
    net[3].weight.requires_grad_(False)
    x = torch.randn(B, 7, dtype=torch.float64)

    def out() -> Tensor:
        with torch.no_grad():
            h = net[0](x)
        return net[4](net[3](net[2](net[1](net[0](h)))))

    agree(*engine(net, lambda: of_samples(out()), True), 1e-10)
    grads, j = engine(net, lambda: of_batch(out()), False)
    agree(grads, j, 1e-10)
    with record(net) as tape:
        losses = of_batch(out())
    assert tape.gradients(losses, [net[1].weight, net[4].weight]).pull(torch.ones(3))[0] is None


def test_features() -> None:
    """Gradients by what the heads share, and of the losses alone."""
    torch.manual_seed(0)
    net, x = Heads().double(), torch.randn(B, 7, dtype=torch.float64)
    with record(net) as tape:
        h = net.trunk(x)
        losses = [head(h).square().mean() for head in net.heads]
    j = naive(losses, [h])
    torch.testing.assert_close(gramian(losses, features=h), j @ j.T)
    torch.testing.assert_close(norms(losses, features=[h]), j.norm(dim=1))
    agree(tape.gradients(losses, [h], retain_graph=True), j, 1e-10)
    params = list(net.parameters())
    whole = naive(losses, params)
    torch.testing.assert_close(gramian(losses, params), whole @ whole.T)
    with pytest.raises(MissingInput, match="params or features"):
        gramian(losses)


def test_batch_norm_couples_rows() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)).double()
    x = torch.randn(B, 7, dtype=torch.float64)
    agree(*engine(net, lambda: of_batch(net(x)), False), 1e-10)
    with pytest.raises(WrongRoom, match="BatchNorm1d in training"):
        engine(net, lambda: of_samples(net(x)), True)
    net.eval()
    agree(*engine(net, lambda: of_samples(net(x)), True), 1e-10)


def test_dependence_is_found_when_asked() -> None:
    torch.manual_seed(0)
    net, x = perceptron().double(), torch.randn(B, 7, dtype=torch.float64)
    agree(*engine(net, lambda: of_samples(net(x)), True, check=True), 1e-10)
    with pytest.raises(DomainError, match="not independent"):
        engine(net, lambda: -torch.log_softmax(net(x) @ net(x).T, 1).diagonal(), True, check=True)
    line, square = nn.Linear(7, 4).double(), torch.randn(B, B, 7, dtype=torch.float64)
    with pytest.raises(DomainError, match="first axis"):  # samples on the second axis
        engine(line, lambda: line(square).square().sum((0, 2)), True, check=True)


@pytest.mark.parametrize("samples", [True, False])
def test_positions_as_many_as_samples(samples: bool) -> None:
    """Whether a layer saw the batch is not told from a length alone."""
    torch.manual_seed(0)
    net, ids = Tower(True).double(), torch.randint(12, (T, T))
    agree(*engine(net, lambda: (of_samples if samples else of_batch)(net(ids)), samples, check=samples), 1e-10)


def test_nothing_is_touched_or_left(quickest: str) -> None:
    net, x = Heads(), torch.randn(B, 7)
    with record(net) as tape:
        losses = net.terms(x)
    assert not any(m._forward_hooks for m in net.modules())
    noted = len(tape.calls)
    grads = tape.gradients(losses)
    grads.gramian(), grads.pull(torch.ones(3))
    net.terms(x)
    assert len(tape.calls) == noted
    assert all(p.grad is None for p in net.parameters())
    if quickest != "always":
        with pytest.raises(RuntimeError, match="second time"):  # the graph is gone, as after backward()
            losses[-1].backward()
    with pytest.raises(ValueError, match="boom"), record(net):
        raise ValueError("boom")
    assert not any(m._forward_hooks for m in net.modules())


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation makes; views of what is known do not count."""

    size = 0

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        made = [x for x in made if x.untyped_storage().data_ptr() not in self.known]
        self.size = max([self.size, *(x.numel() for x in made)])
        return out


@pytest.mark.parametrize("samples", [True, False])
def test_no_gradient_per_loss_is_stored(samples: bool) -> None:
    net, x = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 200)), torch.randn(8, 200)
    with record(net) as tape:
        losses: Losses = of_samples(net(x)) if samples else of_batch(net(x))
    with Largest(list(net.parameters())) as seen:
        grads = tape.gradients(losses, samples=samples)
        grads.gramian(), grads.norms()
        assert seen.size < 60_000  # not even one weight
        grads.pull(torch.ones(len(losses)))
        assert seen.size == 60_000
        grads.jacobian()
        assert seen.size > 60_000


@pytest.mark.parametrize("samples", [True, False])
def test_half_precision_is_summed_in_single(samples: bool) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 4)), torch.randn(12, 30)
    with record(net) as tape, torch.autocast("cpu", torch.bfloat16):
        losses: Losses = of_samples(net(x).float()) if samples else of_batch(net(x).float())
        j = naive(losses, list(net.parameters()))
        grads = tape.gradients(losses, samples=samples)
        g = grads.gramian()
    assert g.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in grads.pull(torch.ones(len(losses))) if p is not None)
    torch.testing.assert_close(g, j @ j.T, rtol=0.05, atol=0.02 * float((j @ j.T).abs().max()))
    agree(grads, grads.jacobian(), 1e-5)  # what is left is the rounding of autograd's own products


def test_recomputed_layers_and_parameters_put_in_from_outside() -> None:
    """Checkpointing runs a layer again in the backward pass; functional_call runs it on other parameters."""
    torch.manual_seed(0)
    net, x = perceptron().double().eval(), torch.randn(B, 7, dtype=torch.float64)
    first, last = net[:3], net[3:]
    for samples, items in ((True, of_samples), (False, of_batch)):
        agree(*engine(net, lambda f=items: f(last(checkpoint(first, x, use_reentrant=False))), samples), 1e-10)  # type: ignore[misc]
        own = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
        made = {name: p * 1 if name.startswith("2") else p for name, p in own.items()}
        with record(net) as tape:
            losses = items(torch.func.functional_call(net, made, (x,)))
        params: list[Tensor] = list(own.values())
        j = naive(losses, params)
        agree(tape.gradients(losses, params, samples), j, 1e-10)


def test_a_flat_direction_is_split() -> None:
    net, x = Heads().double(), torch.randn(B, 7, dtype=torch.float64)
    grads, j = engine(net, lambda: net.terms(x), False)
    for part, pulled in zip(grads.split(j.sum(0)), grads.pull(torch.ones(3)), strict=True):
        torch.testing.assert_close(part, torch.zeros_like(part) if pulled is None else pulled)
    with pytest.raises(ShapeError, match="one number a parameter"):
        grads.split(j[0, 1:])


def test_operations_without_a_batched_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop stands in for the batched backward pass."""
    torch.manual_seed(0)
    net, x = attention().double(), torch.randn(B, T, 7, dtype=torch.float64)
    plain = torch.autograd.grad

    def refuse(*args: Any, is_grads_batched: bool = False, **kwargs: Any) -> Any:
        if is_grads_batched:
            raise RuntimeError("no batching rule")
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(backward, "CHUNK", 4)
    agree(*engine(net, lambda: of_samples(net(x)), True), 1e-10)


def test_errors() -> None:
    net, x = Heads(), torch.randn(B, 7)
    with record(net) as tape:
        losses = net.terms(x)
    with pytest.raises(ShapeError, match="a loss is one number"):
        tape.gradients([x.clone().requires_grad_()])
    with pytest.raises(ShapeError, match="losses are a vector"):
        tape.gradients(losses[0])
    with pytest.raises(ShapeError, match="losses of samples"):
        tape.gradients(losses[0], samples=True)
    with pytest.raises(MissingInput, match="no loss has a graph"):
        tape.gradients([x.sum()])
    with pytest.raises(MissingInput, match="have no graph"):
        tape.gradients(x.sum(1), samples=True)
    with pytest.raises(MissingInput, match="no parameters"):
        tape.gradients(losses, [])
    grads = tape.gradients(losses, net.trunk.parameters())
    with pytest.raises(ShapeError, match="one weight a loss"):
        grads.pull(torch.ones(4))
    with pytest.raises(MissingInput, match="the group 'heads'"):
        grads.gramian({"heads": net.heads.parameters()})


def test_an_input_that_was_changed_is_refused() -> None:
    line = nn.Linear(7, 300)
    x = torch.randn(B, 7)
    with record(line) as tape:
        losses = of_samples(line(x))
        x.add_(1)
    with pytest.raises(WrongRoom, match="changed in place"):
        tape.gradients(losses, samples=True)
