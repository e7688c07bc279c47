"""Groups of parameters that are balanced each by itself, against a twin by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossary
from lossary.balance import Balance, Gramian
from lossary.errors import DomainError, WrongRoom
from lossary.measure import Monitor
from lossary.methods import Method

KINDS = ("kind", "size", "sign")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.heads = nn.ModuleDict({n: nn.Linear(5, 1) for n in KINDS})
        self.double()

    def losses(self, batch):
        h = self.third(self.second(self.first(batch[0]).tanh()).tanh()).tanh()
        return {n: F.mse_loss(self.heads[n](h)[:, 0], y) for n, y in zip(KINDS, batch[1:], strict=True)}

    def groups(self):
        return {"low": self.first.parameters(), "high": [self.second.weight, self.second.bias]}

    def split(self):
        return [list(m.parameters()) for m in (self.first, self.second, self.third)]


def running(terms):
    """Every gradient at one length, and a running mean of these weights: each group has its own."""
    mean = 0.5 * terms.kept("mean", 1.0) + 0.5 / terms.gramian.diagonal().sqrt()
    terms.keep(mean=mean)
    return mean


def of_a_test():
    return Balance(Method("of_a_test", Gramian, running, "balance").bind())


def batches(n, size=8):
    g = torch.Generator().manual_seed(7)
    x = [torch.randn(size, 4, generator=g, dtype=torch.float64) for _ in range(n)]
    return [(b, b.sum(1).sin(), b[:, 0] * b[:, 1], b[:, 2].sign()) for b in x]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def halves(batch):
    return [tuple(x[:4] for x in batch), tuple(x[4:] for x in batch)]


def by_hand(model, balances, batch):
    losses = list(model.losses(batch).values())
    for balance, params in zip(balances, model.split(), strict=True):
        grads = [torch.autograd.grad(x, params, retain_graph=True) for x in losses]
        rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
        direction = balance(torch.stack(losses).detach(), gramian=rows @ rows.T) @ rows
        for p, g in zip(params, direction.split([p.numel() for p in params]), strict=True):
            p.grad = g.view_as(p)
    for name, loss in zip(KINDS, losses, strict=True):
        for p in model.heads[name].parameters():
            (p.grad,) = torch.autograd.grad(loss, p, retain_graph=True)
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.05 * p.grad


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("make", [lossary.balance.pcgrad, lossary.balance.imtl_g, of_a_test])
def test_as_by_hand(make, micro):
    """Without copies of the gradients (one micro-batch), and with them (two)."""
    model, twin = Net(), Net()
    step = lossary.step(model, sgd(model), balance=make(), groups=model.groups(), accumulate=micro)
    balances = [make() for _ in range(3)]
    for batch in batches(4):
        parts = [batch] if micro == 1 else halves(batch)
        step([lambda b=b: model.losses(b) for b in parts])
        by_hand(twin, balances, batch)
    torch.testing.assert_close(flat(model), flat(twin), rtol=0, atol=1e-10)
    assert step.seen.groups == ("low", "high", "")
    assert step.seen.gramian.shape == (3, 3, 3)
    assert step.seen.weights.shape == (3, 3)
    assert (step.seen.weights[0] - step.seen.weights[2]).abs().max() > 1e-3


def test_one_group_of_all_is_no_group():
    def end(grouped):
        model = Net()
        groups = {"all": [p for part in model.split() for p in part]} if grouped else None
        step = lossary.step(model, sgd(model), balance=lossary.balance.mgda(), groups=groups)
        for batch in batches(3):
            step(lambda b=batch: model.losses(b))
        return flat(model)

    torch.testing.assert_close(end(True), end(False), rtol=0, atol=1e-12)


def test_six_steps_are_three_saved_and_three_more():
    def made():
        model = Net()
        optimizer = sgd(model)
        return model, optimizer, lossary.step(model, optimizer, balance=of_a_test(), groups=model.groups())

    def run(given, data):
        for batch in data:
            given[2](lambda b=batch: given[0].losses(b))

    data, whole, first, second = batches(6), made(), made(), made()
    run(whole, data)
    run(first, data[:3])
    for a, b in zip(first, second, strict=True):
        b.load_state_dict(copy.deepcopy(a.state_dict()))
    run(second, data[3:])
    torch.testing.assert_close(flat(second[0]), flat(whole[0]), rtol=0, atol=0)


def test_with_an_ascent_memory_moves_once():
    model = Net()
    step = lossary.step(model, sgd(model), balance=of_a_test(), groups=model.groups(), ascent=lossary.sam(rho=0.05))
    (batch,) = batches(1)
    step(lambda: model.losses(batch))
    wanted = 0.5 + 0.5 / step.seen.gramian.diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(torch.stack([one.state.mean for one in step.balance.each]), wanted)


def test_a_group_that_no_term_reaches_is_not_asked():
    """Its memory stays; in the next step it is asked again."""
    model = Net()
    step = lossary.step(model, sgd(model), balance=of_a_test(), groups=model.groups())
    first, second = batches(2)
    before = flat(model.first)
    with torch.no_grad():
        h = model.first(first[0]).tanh()

    def late():
        top = model.third(model.second(h).tanh()).tanh()
        return {n: F.mse_loss(model.heads[n](top)[:, 0], y) for n, y in zip(KINDS, first[1:], strict=True)}

    step(late)
    assert torch.equal(flat(model.first), before)
    assert "mean" not in step.balance.each[0].state._buffers
    assert (step.seen.weights[0] == 1).all()
    step(lambda: model.losses(second))
    assert step.balance.each[0].state.mean.isfinite().all()
    assert step.balance.config() == of_a_test().config()


def test_monitor_records_weights_of_groups():
    model = Net()
    step = lossary.step(model, sgd(model), balance=lossary.balance.imtl_g(), groups=model.groups())
    (batch,) = batches(1)
    step(lambda: model.losses(batch))
    record = Monitor(model).seen(step.seen)
    assert record["terms/kind/weight in low"] == float(step.seen.weights[0, 0])
    assert record["terms/sign/weight in the rest"] == float(step.seen.weights[2, 2])
    whole = step.seen.gramian.sum(0)
    assert record["terms/size/gradient norm"] == pytest.approx(float(whole[1, 1].sqrt()))


def test_frozen_parameters_may_be_named():
    """As in a list of all parameters of a module."""
    model = Net()
    model.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    step = lossary.step(model, optimizer, balance=lossary.balance.pcgrad(), groups={"low": model.first.parameters()})
    before = flat(model.first)
    (batch,) = batches(1)
    step(lambda: model.losses(batch))
    moved = flat(model.first) != before
    assert not moved[:24].any()
    assert moved[24:].all()


def test_errors():
    model = Net()
    other, first = Net(), list(model.first.parameters())
    alien = other.first.parameters()
    for groups in ({}, {"none": []}, {"a": first, "b": []}, {"": first}, {"a": first, "b": first}, {"a": alien}):
        with pytest.raises(DomainError, match="groups name the parameters"):
            lossary.step(model, sgd(model), balance=lossary.balance.pcgrad(), groups=groups)
    with pytest.raises(DomainError, match="groups name the parameters"):
        lossary.step(model, sgd(model), groups={"a": first})
    for balance in (lossary.balance.dwa(), lossary.balance.conflict_free_momentum()):
        with pytest.raises(WrongRoom, match="each by itself"):
            lossary.step(model, sgd(model), balance=balance, groups={"a": first})
