"""A step with several terms: what the balancer is asked and what comes of its answer, against twins by hand."""

import copy
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lossary
from lossary.balance import Balance, Gramian, Jacobian, Losses
from lossary.balance.rows import Rows
from lossary.errors import DomainError, MissingInput, ShapeError, UnknownName
from lossary.memory import LearnedReal
from lossary.methods import Method


def balancer(view, fn):
    """A balancer that is not in the registry."""
    return Balance(Method("of_a_test", view, fn, "balance").bind())


def even(t):
    """Every gradient at length 1, and a running mean of the weights."""
    now = 1 / t.gramian.diagonal().sqrt()
    mean = 0.5 * t.kept("mean", 1.0) + 0.5 * now
    t.keep(mean=mean)
    return mean


def sign_agreement(t):
    return t.jacobian.sum(0) * (t.jacobian.sign().sum(0).abs() == t.count)


def by_speed(t):
    """Weights by how losses fell since the last step: a total that is linear in the losses, with memory."""
    now = t.losses.detach()
    t.keep(last=now)
    return (now / t.kept("last", now) * t.losses).sum()


KINDS = {
    "gramian": lambda: balancer(Gramian, even),
    "jacobian": lambda: balancer(Jacobian, sign_agreement),
    "losses": lambda: balancer(Losses, by_speed),
}


class Net(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh())
        self.heads = nn.ModuleDict({"kind": nn.Linear(6, 3), "size": nn.Linear(6, 1)})
        self.double()

    def forward(self, x):
        h = self.trunk(x)
        return {name: head(h) for name, head in self.heads.items()}


def batches(n=6, size=8):
    g = torch.Generator().manual_seed(7)
    x = [torch.randn(size, 4, generator=g, dtype=torch.float64) for _ in range(n)]
    return [(b, torch.randint(3, (size,), generator=g), b.sum(1).sin()) for b in x]


def losses_of(model, batch):
    def closure():
        out = model(batch[0])
        return {"kind": F.cross_entropy(out["kind"], batch[1]), "size": F.mse_loss(out["size"][:, 0], batch[2])}

    return closure


def sgd(model, **more):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **more})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(kind, data, model=None, **more):
    model = model or Net()
    step = lossary.step(model, sgd(model), balance=KINDS[kind]() if kind else None, **more)
    seen = [step(losses_of(model, b)) for b in data]
    return weights(model), step, seen


# --- what a step is ---------------------------------------------------------------------------------------------------
def twin(kind, data):
    """Each term's gradient by its own backward pass; heads get their term's as it is."""
    model, memory = Net(), {}
    optimizer = sgd(model)
    trunk = list(model.trunk.parameters())
    for batch in data:
        losses = losses_of(model, batch)()
        each = [
            torch.autograd.grad(x, [*trunk, *model.heads[n].parameters()], retain_graph=True) for n, x in losses.items()
        ]
        flat = [torch.cat([g.flatten() for g in grads[: len(trunk)]]) for grads in each]
        if kind == "gramian":
            memory["w"] = [0.5 * w + 0.5 / g.norm() for w, g in zip(memory.get("w", [1, 1]), flat, strict=True)]
            mixed = memory["w"][0] * flat[0] + memory["w"][1] * flat[1]
        elif kind == "jacobian":
            mixed = torch.where(flat[0] * flat[1] > 0, flat[0] + flat[1], 0)
        else:
            w = [x.item() / memory.get(n, x.item()) for n, x in losses.items()]
            memory = {n: x.item() for n, x in losses.items()}
            mixed = w[0] * flat[0] + w[1] * flat[1]
            each = [[v * g for g in grads] for v, grads in zip(w, each, strict=True)]
        for p, g in zip(trunk, mixed.split([p.numel() for p in trunk]), strict=True):
            p.grad = g.view_as(p)
        for (_, head), grads in zip(model.heads.items(), each, strict=True):
            for p, g in zip(head.parameters(), grads[len(trunk) :], strict=True):
                p.grad = g
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize("kind", KINDS)
def test_six_steps_are_those_of_a_twin(kind):
    found, _, seen = run(kind, batches())
    torch.testing.assert_close(found, twin(kind, batches()), rtol=0, atol=1e-10)
    assert seen[0].keys() == {"kind", "size"}
    assert not seen[0]["kind"].requires_grad
    other = next(k for k in KINDS if k != kind)
    assert (found - twin(other, batches())).abs().max() > 1e-4


def test_without_a_balancer_terms_are_summed():
    found, _, _ = run(None, batches())
    model = Net()
    step = lossary.step(model, sgd(model))
    for b in batches():
        loss = step(lambda b=b: sum(losses_of(model, b)().values()))
        assert loss.ndim == 0
    torch.testing.assert_close(found, weights(model))


def test_a_single_term_is_not_balanced():
    model, plain = Net(), Net()
    step = lossary.step(model, sgd(model), balance=KINDS["gramian"]())
    other = lossary.step(plain, sgd(plain))
    for b in batches():
        step(lambda b=b: {"kind": losses_of(model, b)()["kind"]})
        other(lambda b=b: losses_of(plain, b)()["kind"])
    assert torch.equal(weights(model), weights(plain))


@pytest.mark.parametrize("kind", ["gramian", "jacobian"])
def test_micro_batches_are_one_batch(kind):
    def halves(model, batch):
        return [losses_of(model, [t[at] for t in batch]) for at in (slice(0, 4), slice(4, 8))]

    whole, _, _ = run(kind, batches())
    model = Net()
    step = lossary.step(model, sgd(model), balance=KINDS[kind](), accumulate=2)
    for b in batches():
        step(halves(model, b))
    torch.testing.assert_close(weights(model), whole, rtol=0, atol=1e-12)


def test_what_is_learned_beside_the_losses_counts_once_for_all_micro_batches():
    found = []
    for parts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        model, balance = Net(), lossary.balance.uncertainty(s=LearnedReal(0.3, size=2)).double()
        optimizer = torch.optim.SGD([*model.parameters(), *balance.parameters()], lr=0.1)
        step = lossary.step(model, optimizer, balance=balance, accumulate=len(parts))
        for b in batches():
            step([losses_of(model, [t[at] for t in b]) for at in parts])
        found.append((weights(model), balance.part.s.at.detach()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    assert (found[0][1] - 0.3).abs().min() > 1e-3


def test_memory_by_losses_moves_once_for_all_micro_batches():
    model = Net()
    step = lossary.step(model, sgd(model), balance=KINDS["losses"](), accumulate=2)
    b = batches()[0]
    closure = losses_of(model, b)
    whole = torch.stack([x.detach() for x in closure().values()])
    step([losses_of(model, [t[:4] for t in b]), losses_of(model, [t[4:] for t in b])])
    torch.testing.assert_close(step.balance.state.last, whole)
    assert step.balance.state.steps == 1


def test_losses_on_held_out_data_reach_the_balancer():
    model, seen = Net(), []
    step = lossary.step(model, sgd(model), balance=balancer(Losses, lambda t: seen.append(t.held) or t.losses.sum()))
    closure = losses_of(model, batches()[0])
    step(closure, held={"size": torch.tensor(2.0), "kind": torch.tensor(1.0)})
    assert seen[0].tolist() == [1, 2]
    step(closure)
    assert seen[1] is None
    with pytest.raises(ShapeError, match="held"):
        step(closure, held={"kind": torch.tensor(1.0)})


# --- with an ascent ---------------------------------------------------------------------------------------------------
def test_sam_displaces_along_the_balanced_gradient_and_balances_again():
    model = Net()
    b = batches()[0]
    balance = balancer(Gramian, lambda t: 1 / t.gramian.diagonal().sqrt())
    params = list(model.parameters())

    def direction(at):
        rows = Rows.of(list(losses_of(at, b)().values()), list(at.parameters()))
        g = rows.gramian()
        mixed = rows.pull(1 / g.diagonal().sqrt())
        return [mixed[p] for p in at.parameters()]

    first = direction(model)
    length = torch.cat([g.flatten() for g in first]).norm()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), first, strict=True):
            p += 0.2 * g / length
    wanted = torch.cat([(p - 0.1 * g).detach().flatten() for p, g in zip(params, direction(moved), strict=True)])
    lossary.step(model, sgd(model, momentum=0), lossary.sam(0.2), balance=balance)(losses_of(model, b))
    torch.testing.assert_close(weights(model), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("by_term", [False, True])
def test_the_balancer_remembers_one_pass_of_a_step(by_term):
    model = Net()
    step = lossary.step(model, sgd(model), lossary.sam(0.2), balance=KINDS["gramian"](), by_term=by_term)
    rows = Rows.of(list(losses_of(model, batches()[0])().values()), list(model.parameters()))
    step(losses_of(model, batches()[0]))
    assert step.balance.state.steps == 1
    torch.testing.assert_close(step.balance.state.mean, 0.5 + 0.5 / rows.gramian().diagonal().sqrt())
    torch.testing.assert_close(step.seen.gramian, rows.gramian())


def test_by_term_is_flat_multi_task_learning():
    """Algorithm 1 of Phan et al., written out: two aggregations, and heads on their own SAM gradient."""
    model = Net()
    b, rho, lr = batches()[0], 0.3, 0.1
    trunk = list(model.trunk.parameters())

    def grads(at, name):
        params = [*at.trunk.parameters(), *at.heads[name].parameters()]
        return torch.autograd.grad(losses_of(at, b)()[name], params)

    plain, flat, own = [], [], {}
    for name in model.heads:
        g = grads(model, name)
        moved = copy.deepcopy(model)
        with torch.no_grad():
            params = [*moved.trunk.parameters(), *moved.heads[name].parameters()]
            for part in (slice(0, len(trunk)), slice(len(trunk), None)):
                length = torch.cat([x.flatten() for x in g[part]]).norm()
                for p, x in zip(params[part], g[part], strict=True):
                    p += rho * x / length
        high = grads(moved, name)
        plain.append(torch.cat([x.flatten() for x in g[: len(trunk)]]))
        flat.append(torch.cat([(y - x).flatten() for x, y in zip(g[: len(trunk)], high[: len(trunk)], strict=True)]))
        own[name] = high[len(trunk) :]
    direction = sum(x / x.norm() for x in plain) + sum(x / x.norm() for x in flat)
    wanted = [p - lr * d.view_as(p) for p, d in zip(trunk, direction.split([p.numel() for p in trunk]), strict=True)]
    for name, head in model.heads.items():
        wanted += [p - lr * g for p, g in zip(head.parameters(), own[name], strict=True)]
    wanted = torch.cat([x.detach().flatten() for x in wanted])
    balance = balancer(Gramian, lambda t: 1 / t.gramian.diagonal().sqrt())
    lossary.step(model, sgd(model, momentum=0), lossary.sam(rho), balance=balance, by_term=True)(losses_of(model, b))
    torch.testing.assert_close(weights(model), wanted, rtol=0, atol=1e-10)


# --- half precision, saving, errors ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ascent", [None, lossary.sam(0.1)], ids=["plain", "sam"])
def test_a_gradient_scale_changes_nothing(kind, ascent):
    found, _, _ = run(kind, batches(), ascent=ascent)
    scaled, step, _ = run(kind, batches(), ascent=ascent, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    torch.testing.assert_close(scaled, found, rtol=0, atol=1e-9)
    if kind == "gramian":
        plain = run(kind, batches(), ascent=ascent)[1]
        torch.testing.assert_close(step.seen.gramian, plain.seen.gramian)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"ascent": lossary.sam(0.1)}, {"ascent": lossary.sam(0.1), "by_term": True}])
def test_a_step_that_overflows_leaves_everything_as_it_was(kind, more):
    model = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step = lossary.step(model, sgd(model), balance=KINDS[kind](), scaler=scaler, **more)
    step(losses_of(model, batches()[0]))
    before, kept = weights(model), copy.deepcopy(step.state_dict())

    def overflows():
        return {n: x * 1e306 for n, x in losses_of(model, batches()[1])().items()}

    step(overflows)
    assert torch.equal(weights(model), before)
    assert scaler.get_scale() == 512
    after = step.state_dict()["balance"]
    assert after.keys() == kept["balance"].keys()
    assert all(torch.equal(after[k], kept["balance"][k]) for k in after)


@pytest.mark.parametrize("kind", ["gramian", "losses"])
@pytest.mark.parametrize("ascent", [None, lossary.friendly_sam(0.1)], ids=["plain", "friendly"])
def test_six_steps_are_three_saved_and_three_more(kind, ascent, tmp_path):
    whole, _, _ = run(kind, batches(), ascent=ascent)
    model = Net()
    optimizer = sgd(model)
    step = lossary.step(model, optimizer, ascent, balance=KINDS[kind]())
    for b in batches()[:3]:
        step(losses_of(model, b))
    torch.save([model.state_dict(), optimizer.state_dict(), step.state_dict()], tmp_path / "at.pt")
    saved = torch.load(tmp_path / "at.pt", weights_only=True)
    again = Net()
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    optimizer = sgd(again)
    step = lossary.step(again, optimizer, ascent, balance=KINDS[kind]())
    for part, state in zip((again, optimizer, step), saved, strict=True):
        part.load_state_dict(state)
    for b in batches()[3:]:
        step(losses_of(again, b))
    assert torch.equal(weights(again), whole)
    with pytest.raises(DomainError, match="balancer"):
        lossary.step(again, optimizer, ascent).load_state_dict(saved[2])


def test_batch_statistics_are_those_of_the_first_pass():
    model, plain = Net(norm=True), Net(norm=True)
    b = batches()[0]
    lossary.step(model, sgd(model), lossary.sam(0.5), balance=KINDS["gramian"](), by_term=True)(losses_of(model, b))
    plain(b[0])
    assert torch.equal(model.trunk[1].running_mean, plain.trunk[1].running_mean)
    assert model.trunk[1].num_batches_tracked == 1


def test_named_objectives_are_called_together():
    terms = lossary.terms(kind=lossary.focal(), size=nn.MSELoss())
    z, y, x = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.randn(5)
    found = terms(kind=(z, y), size={"input": x, "target": x + 1})
    torch.testing.assert_close(found["kind"], lossary.focal()(z, y))
    assert found["size"] == pytest.approx(1.0, rel=1e-6)
    assert terms(kind=None, size=(x, x)).keys() == {"size"}
    with pytest.raises(UnknownName, match="kinds"):
        terms(kinds=(z, y))
    with pytest.raises(MissingInput):
        lossary.terms()


def test_errors_say_what_is_needed():
    model = Net()
    with pytest.raises(DomainError, match="by_term"):
        lossary.step(model, sgd(model), lossary.sam(), by_term=True)
    with pytest.raises(DomainError, match="sam, asam or awp"):
        lossary.step(model, sgd(model), lossary.gsam(), balance=KINDS["gramian"](), by_term=True)
    step = lossary.step(model, sgd(model), balance=KINDS["gramian"]())
    with pytest.raises(ShapeError, match="'size'"):
        step(lambda: {**losses_of(model, batches()[0])(), "size": torch.ones(2)})
    with pytest.raises(ShapeError, match="no term"):
        step(lambda: {})
    some = losses_of(model, batches()[0])
    with pytest.raises(ShapeError, match="different terms"):
        step([some, lambda: {"kind": some()["kind"]}])
    with pytest.raises(ShapeError, match=r"\[T, T\] with T = 3"):
        KINDS["gramian"]()(torch.ones(3), gramian=torch.eye(2))
    with pytest.raises(MissingInput, match="gramian"):
        KINDS["gramian"]()(torch.ones(3))


# --- processes --------------------------------------------------------------------------------------------------------
def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


HALVES = "in halves, under a gradient scale"
CASES = {
    **{kind: (kind, {}) for kind in KINDS},
    **{f"{kind} {HALVES}": (kind, {}) for kind in ("gramian", "jacobian")},
    f"sam {HALVES}": ("gramian", {"ascent": lossary.sam(0.1), "shared": True}),
    "sam": ("gramian", {"ascent": lossary.sam(0.1), "shared": True}),
    "by_term": ("jacobian", {"ascent": lossary.sam(0.1), "by_term": True}),
}


def of_a_rank(rank, world, at, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{at}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for name, (kind, more) in CASES.items():
        model = DistributedDataParallel(Net())
        parts = [slice(None)]
        if HALVES in name:
            parts = [slice(0, 2), slice(2, 4)]
            more = {**more, "accumulate": 2, "scaler": torch.amp.GradScaler("cpu", init_scale=1024.0)}
        step = lossary.step(model, sgd(model), balance=KINDS[kind](), **more)
        for b in batches():
            mine = [t[rank::world] for t in b]
            step([losses_of(model, [t[at] for t in mine]) for at in parts])
        state = {k: v.tolist() for k, v in step.balance.state_dict().items()}
        results[name, rank] = (weights(model).tolist(), state)
    dist.destroy_process_group()


def test_two_processes_are_one():
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(of_a_rank, (2, port(), results), nprocs=2)
        results = dict(results)
    for name, (kind, more) in CASES.items():
        if name == "by_term":  # displacements are each process's own, from its share
            assert results[name, 0] == results[name, 1]
            continue
        whole, _, _ = run(kind, batches(), **more)
        for rank in range(2):
            torch.testing.assert_close(
                torch.tensor(results[name, rank][0]).double(), whole, rtol=0, atol=1e-6, msg=name
            )
        assert results[name, 0][1] == results[name, 1][1]
