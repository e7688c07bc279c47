"""Where the graphs of several losses meet: who meets, and that one pass for all gives what a pass each gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lossary.balance import closed, graph
from lossary.balance.gramian import record

N, D = 12, 8
Run = Callable[[nn.ModuleDict, Tensor], list[Tensor]]


def net() -> nn.ModuleDict:
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {name: nn.Linear(D, D) for name in ("first", "second", "a", "b", "c")}
    parts["norm"], parts["drop"], parts["kernel"] = nn.LayerNorm(D), nn.Dropout(0.3), nn.Conv1d(1, 1, 3, padding=1)
    return nn.ModuleDict(parts).double()


@contextmanager
def passes() -> Iterator[list[bool]]:
    """Whether each call of `torch.autograd.grad` was for several losses at once."""
    seen: list[bool] = []
    plain = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("is_grads_batched", False))
        return plain(*args, **kwargs)

    torch.autograd.grad = counted
    try:
        yield seen
    finally:
        torch.autograd.grad = plain


def heads(m: nn.ModuleDict, h: Tensor) -> list[Tensor]:
    return [m[k](h).square().mean() * i for i, k in enumerate("abc", 1)]


def trunk(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return F.gelu(m["second"](m["norm"](m["first"](x).relu())))


def plain(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    return heads(m, trunk(m, x))


def two_edges(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """All heads take two features that do not depend on each other."""
    h, g = m["first"](x).tanh(), m["second"](x).sigmoid()
    return [(m[k](h) * g + h).square().mean() for k in "abc"]


def constants(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """Two of the losses reach the features, but send nothing to one of them."""
    h, g = m["first"](x).tanh(), m["second"](x).sigmoid()
    return [(m["a"](h) * g).sum(), (m["b"](h) * g).sum(), (m["c"](h) + g.relu() * 0).sum()]


def dropped(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    return heads(m, m["drop"](trunk(m, x)))


def recomputed(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    return heads(m, checkpoint(lambda y: trunk(m, y), x, use_reentrant=False))  # type: ignore[arg-type]


def redrawn(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """Noise that is drawn again in the backward pass, which cannot be done for all at once."""
    return heads(m, checkpoint(lambda y: m["drop"](trunk(m, y)), x, use_reentrant=False))  # type: ignore[arg-type]


def own_layer(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """A layer that each loss runs for itself: they meet at its weights, too."""
    h = m["first"](x).relu()
    return [(m[k](m["second"](h)) + h).square().mean() for k in "abc"]


def half(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return [loss.double() for loss in plain(m, x)]


def parts(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """Each head takes its own part of what was made together: other edges."""
    return [m[k](F.pad(h, (0, D - 2))).square().mean() for k, h in zip("abc", trunk(m, x).split(2, 1)[:3], strict=True)]


def skipping(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """One edge under another: what comes down by both would count twice."""
    h = m["first"](x).relu()
    g = m["second"](h)
    return [(m[k](g) + h).square().mean() for k in "abc"]


def unlike(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """One head sees an earlier layer."""
    h = m["first"](x).relu()
    g = m["second"](h)
    return [m["a"](g).sum(), m["b"](g).square().sum(), m["c"](h).sum()]


def first_unlike(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    return unlike(m, x)[::-1]


def tied(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """A weight of the trunk is a head's too."""
    h = trunk(m, x)
    return [*heads(m, h)[:2], m["first"](h).square().mean()]


def same_head(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    h = trunk(m, x)
    return [m["a"](h).square().mean(), m["a"](h).abs().mean(), m["b"](h).mean()]


def within(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """A loss that is a part of another."""
    a, b, c = plain(m, x)
    return [a, b, a * 2 + c]


def itself(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    a, b, c = plain(m, x)
    return [a, b, c, a]


def convolved(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    """Not among the operations that are known to go together."""
    return heads(m, m["kernel"](trunk(m, x)[:, None])[:, 0])


def apart(m: nn.ModuleDict, x: Tensor) -> list[Tensor]:
    return [m[k](x).square().mean() for k in "abc"]


MEET: list[Run] = [plain, two_edges, constants, dropped, recomputed, redrawn, own_layer, half]
NOT: list[Run] = [parts, skipping, unlike, first_unlike, tied, same_head, within, itself, convolved, apart]


def flat(row: Sequence[Tensor | None], params: list[nn.Parameter]) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, row, strict=True)])


@pytest.mark.parametrize("run", MEET + NOT)
@pytest.mark.parametrize("form", [False, True])
def test_as_a_pass_each(monkeypatch: pytest.MonkeyPatch, run: Run, form: bool) -> None:
    monkeypatch.setattr(graph, "pays", lambda *_: True)
    monkeypatch.setattr(closed.Shared, "cheaper", lambda *_: form)
    m = net()
    x = torch.randn(N, D, dtype=torch.float64)
    params = list(m.parameters())
    with record(m) as tape:
        losses = run(m, x)
    with passes() as seen:
        found = tape.gradients(losses, retain_graph=True)
    one_by_one = [False] * len(losses)
    assert seen == ([False, True] if run in MEET else []) + ([] if run in MEET and run is not redrawn else one_by_one)
    rows = [torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True) for loss in losses]
    true = torch.stack([flat(row, params) for row in rows])
    tol = {"rtol": 0.05, "atol": 0.02 * float(true.abs().max())} if run is half else {}
    torch.testing.assert_close(found.jacobian(), true, **tol)  # type: ignore[arg-type]
    reached = [[t for t, row in enumerate(rows) if row[k] is not None] for k in range(len(params))]
    held = {k: list(block.rows) for block in found.blocks for k in block.places}
    assert [held.get(k, []) for k in range(len(params))] == reached


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many weights, and few rows: then the weights are read once."""

    def together(width: int, rows: int, terms: int) -> bool:
        m = nn.ModuleList([nn.Linear(width, width), *(nn.Linear(width, 2) for _ in range(terms))])
        with record(m) as tape:
            h = m[0](torch.randn(rows, width)).relu()
            losses = [head(h).square().mean() for head in m[1:]]
        with passes() as seen:
            tape.gradients(losses)
        return any(seen)

    assert together(600, 16, 3)
    assert not together(600, 600, 3)
    assert not together(64, 16, 3)
    assert not together(600, 16, 1)


@pytest.mark.parametrize("look", [lambda g: g * 2, lambda g: g * (2 if g.abs().max().item() >= 0 else 1)])
@pytest.mark.parametrize("where", ["input of a layer", "input of the heads", "elsewhere"])
def test_hooks_run_and_may_change_gradients(monkeypatch: pytest.MonkeyPatch, where: str, look: Any) -> None:
    """One that looks into a layer's input sees each loss; another all at once, and each if that is beyond it."""
    monkeypatch.setattr(graph, "pays", lambda *_: True)
    m, x, calls = net(), torch.randn(N, D, dtype=torch.float64), []

    def hook(g: Tensor) -> Tensor:
        calls.append(g.shape)
        return look(g)

    with record(m) as tape:
        h = m["first"](x).relu()
        g = m["second"](h.tanh() if where == "elsewhere" else h)
        (g if where == "input of the heads" else h).register_hook(hook)
        losses = heads(m, g)
        with passes() as seen:
            found = tape.gradients(losses, [m["first"].weight], retain_graph=True)
    assert any(seen) == (where == "elsewhere")
    assert calls
    true = torch.stack([torch.autograd.grad(x, m["first"].weight, retain_graph=True)[0].flatten() for x in losses])
    torch.testing.assert_close(found.jacobian(), true)


def test_kept_gradients_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "pays", lambda *_: True)
    m, x = net(), torch.randn(N, D, dtype=torch.float64)
    with record(m) as tape:
        h = trunk(m, x)
        h.retain_grad()
        tape.gradients(heads(m, h))
    assert h.grad is not None
    assert h.grad.isfinite().all()


@pytest.mark.parametrize("run", [plain, two_edges])
def test_twice_the_same_bits(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """The engine's own hooks on nodes neither stay nor add up, and edges come in a fixed order."""
    monkeypatch.setattr(graph, "pays", lambda *_: True)
    m, x = net(), torch.randn(N, D, dtype=torch.float64)
    with record(m) as tape:
        losses = run(m, x)
    once, again = (tape.gradients(losses, retain_graph=True).gramian() for _ in range(2))
    with record(m) as tape:
        anew = tape.gradients(run(m, x)).gramian()
    assert torch.equal(once, again)
    assert torch.equal(once, anew)


TABLE = nn.Parameter(torch.randn(N, D, dtype=torch.float64))
STEPS: list[Callable[[Tensor], Tensor]] = [
    lambda h: torch.cat([h[:, :3], h[:, 3:]], 1).clone(),
    lambda h: F.elu(h) / (1 + h.exp()),
    lambda h: h * F.embedding(torch.arange(N).flip(0), TABLE),
    lambda h: h.mean().expand(N, D) + h,
    lambda h: F.gelu(h) + F.hardswish(h) + F.hardtanh(h) + F.leaky_relu(h) + F.silu(h) + F.softplus(h) + h.relu(),
    lambda h: (1 + h.square()).log() + h.log_softmax(1) + h.softmax(0) + h.sigmoid() - h.tanh(),
    lambda h: h - h.mean(1, keepdim=True) + h.sum() + h.sum(0),
    lambda h: F.layer_norm(torch.native_dropout(h, 0.2, True)[0], (D,)),
    lambda h: (-h).view(3, 4, D).permute(1, 0, 2).reshape(N, D),
    lambda h: torch.stack([h[1]] * N) + h,
    lambda h: torch.cat(h.split(4), 0) + (1 + h.square()).sqrt(),
    lambda h: h.view(N, 1, D, 1).squeeze().unsqueeze(0).squeeze(0),
    lambda h: torch.bmm(h.view(3, 4, D), h.view(3, 4, D).transpose(1, 2)).reshape(6, D).expand(2, 6, D).reshape(N, D),
    lambda h: (h.float() @ TABLE[:D].float()).double() @ TABLE[:D].T,
]


def test_operations_that_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them alone below the meeting; between them they use every operation that is listed."""
    monkeypatch.setattr(graph, "pays", lambda *_: True)
    used = set[str]()
    for step in STEPS:
        m = net()
        x = torch.randn(N, D, dtype=torch.float64)
        with record(m) as tape:
            losses = heads(m, step(m["first"](x)))
        meeting = graph.Meeting.of(losses)
        assert meeting is not None
        used |= {n.name() for n, t in meeting.place.items() if t == graph.BELOW and not isinstance(n, int)}
        with passes() as seen:
            found = tape.gradients(losses, [m["first"].weight, TABLE], retain_graph=True)
        assert seen == [False, True]
        rows = [
            torch.autograd.grad(y, [m["first"].weight, TABLE], retain_graph=True, allow_unused=True) for y in losses
        ]
        torch.testing.assert_close(found.jacobian(), torch.stack([flat(r, [m["first"].weight, TABLE]) for r in rows]))
    assert graph.TOGETHER - used == set()
