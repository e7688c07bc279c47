"""What is balanced can be named; and then the terms of a balancer that remembers them may take turns."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossary
from lossary.errors import DomainError, ShapeError

M = lossary.balance.conflict_free_momentum


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 5)
        self.heads = nn.ModuleDict({"kind": nn.Linear(5, 3), "size": nn.Linear(5, 1)})
        self.double()

    def forward(self, x, name):
        return self.heads[name](self.second(self.first(x).tanh()).tanh())


def batches(n):
    g = torch.Generator().manual_seed(7)
    x = [torch.randn(8, 4, generator=g, dtype=torch.float64) for _ in range(n)]
    return [(b, torch.randint(3, (8,), generator=g), b.sum(1).sin()) for b in x]


def loss(model, batch, name):
    out = model(batch[0], name)
    return F.cross_entropy(out, batch[1]) if name == "kind" else F.mse_loss(out[:, 0], batch[2])


def closure(model, batch, turn=("kind", "size")):
    return lambda: {
        n: loss(model, batch, n) if n in turn else torch.zeros((), dtype=torch.float64) for n in model.heads
    }


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("balance", [lossary.balance.conflict_free, lossary.balance.pcgrad, M])
def test_naming_what_is_shared_anyway_changes_nothing(balance):
    ends = []
    for named in (False, True):
        model = Net()
        trunk = [*model.first.parameters(), *model.second.parameters()] if named else None
        step = lossary.step(model, sgd(model), balance=balance(), trunk=trunk)
        for batch in batches(3):
            step(closure(model, batch))
        ends.append(flat(model))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-12)


def test_shared_parameters_outside_the_trunk_get_the_sum():
    model, (batch,) = Net(), batches(1)
    before = copy.deepcopy(model)
    lossary.step(model, sgd(model), balance=lossary.balance.mgda(), trunk=model.second.parameters())(
        closure(model, batch)
    )
    grads = {}
    for n in before.heads:
        grads[n] = torch.autograd.grad(loss(before, batch, n), [before.first.weight, before.second.weight])
    moved = (before.first.weight - model.first.weight) / 0.05
    torch.testing.assert_close(moved, grads["kind"][0] + grads["size"][0], rtol=0, atol=1e-12)
    two = torch.cat([torch.stack([g[1].flatten() for g in grads.values()]), bias(before, batch)], 1)
    wanted = lossary.balance.mgda()(gramian=two @ two.T) @ two
    found = (before.second.weight - model.second.weight) / 0.05
    torch.testing.assert_close(found.flatten(), wanted[: found.numel()], rtol=0, atol=1e-10)
    assert (found - grads["kind"][1] - grads["size"][1]).abs().max() > 1e-3


def bias(model, batch):
    return torch.stack([torch.autograd.grad(loss(model, batch, n), model.second.bias)[0] for n in model.heads])


def test_terms_that_take_turns_are_those_of_a_twin():
    """One backward pass a step; the other term's row is 0, and its running mean stays."""
    model, twin, balance = Net(), Net(), M()
    step = lossary.step(model, sgd(model), balance=M(), trunk=[*model.first.parameters(), *model.second.parameters()])
    trunk = [*twin.first.parameters(), *twin.second.parameters()]
    names, passes = list(model.heads), []
    for n, batch in enumerate(batches(7)):
        name = names[n % 2]
        seen = step(closure(model, batch, [name]))
        passes.append(sum(v.item() > 0 for v in seen.values()))
        own = list(twin.heads[name].parameters())
        grads = torch.autograd.grad(loss(twin, batch, name), [*trunk, *own])
        row = torch.cat([g.flatten() for g in grads[: len(trunk)]])
        rows = torch.stack([row if k == name else torch.zeros_like(row) for k in names])
        parts = balance(jacobian=rows).split([p.numel() for p in trunk])
        with torch.no_grad():
            for p, g in zip([*trunk, *own], [*parts, *grads[len(trunk) :]], strict=True):
                p -= 0.05 * g.view_as(p)
    assert passes == [1] * 7
    torch.testing.assert_close(flat(model), flat(twin), rtol=0, atol=1e-10)


def test_six_steps_by_turns_are_three_saved_and_three_more():
    def run(model, step, data, start):
        for n, batch in enumerate(data, start):
            step(closure(model, batch, [list(model.heads)[n % 2]]))

    def made():
        model = Net()
        optimizer = sgd(model)
        trunk = [*model.first.parameters(), *model.second.parameters()]
        return model, optimizer, lossary.step(model, optimizer, balance=M(), trunk=trunk)

    data, (model, _, step) = batches(6), made()
    run(model, step, data, 0)
    first, second = made(), made()
    run(first[0], first[2], data[:3], 0)
    for a, b in zip(first, second, strict=True):
        b.load_state_dict(copy.deepcopy(a.state_dict()))
    run(second[0], second[2], data[3:], 3)
    torch.testing.assert_close(flat(second[0]), flat(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("balance", "trunk", "turn", "error"),
    [
        (M, None, ["kind"], ShapeError),  # nobody knows what is shared
        (lossary.balance.pcgrad, "first", ["kind"], ShapeError),  # it remembers no gradients
        (M, "first", [], ShapeError),
        (M, "other", ["kind"], DomainError),
        (M, "none", ["kind"], DomainError),
        (lossary.balance.dwa, "first", ["kind"], DomainError),
        (lambda: None, "first", ["kind"], DomainError),
    ],
)
def test_what_makes_no_sense_is_refused(balance, trunk, turn, error):
    model, (batch,) = Net(), batches(1)
    given = {"first": model.first.parameters(), "other": Net().parameters(), "none": [], None: None}[trunk]
    with pytest.raises(error):
        lossary.step(model, sgd(model), balance=balance(), trunk=given)(closure(model, batch, turn))
