"""Balancers: the shell, each against what is known of it, one after the other, and those of another library."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lossary
from lossary import balance as room
from lossary.balance import sac
from lossary.balance.by_gramian import orders
from lossary.balance.by_losses import slope
from lossary.balance.terms import Balance, Gramian, gram
from lossary.errors import DomainError, MissingInput, ShapeError, WrongRoom
from lossary.expression import parse_balance
from lossary.laws.balance import direction, gradients, losses
from lossary.memory import LearnedReal

ROWS = gradients(5)


# --- the shell -------------------------------------------------------------------------------------------------------
def test_a_jacobian_serves_for_a_gramian():
    w = room.mgda()(jacobian=ROWS)
    torch.testing.assert_close(w, room.mgda()(gramian=ROWS @ ROWS.T))
    assert room.mgda()(jacobian=ROWS.float()).dtype == torch.float32
    assert room.mgda()(jacobian=ROWS.bfloat16()).dtype == torch.float32


def test_what_is_missing_is_named():
    with pytest.raises(MissingInput, match="gramian"):
        room.pcgrad()(losses(5))
    with pytest.raises(MissingInput, match="jacobian"):
        room.conflict_free_momentum()(losses(5), gramian=ROWS @ ROWS.T)
    with pytest.raises(MissingInput, match="needs losses"):
        room.total()(jacobian=ROWS)
    with pytest.raises(MissingInput, match="held"):
        room.coba()(losses(5))
    with pytest.raises(ShapeError, match="held losses"):
        room.coba()(losses(5), held=losses(4))
    with pytest.raises(ShapeError, match="fit"):
        room.mgda()(losses(4), jacobian=ROWS)
    with pytest.raises(ShapeError, match="fit"):
        room.fixed(weight=[1.0, 2.0])(losses(3))
    with pytest.raises(DomainError, match="not of a balancer"):
        Balance.from_config({"balance": {"method": "focal", "hyper": {"gamma": 2.0}}})


@pytest.mark.parametrize("made", [room.dwa, room.gradvac, room.gradnorm, room.igb, room.conflict_free_momentum])
def test_terms_that_come_or_go_are_refused(made):
    balance = made()
    direction(balance, ROWS, losses(5))
    with pytest.raises(ShapeError, match="the same in every step"):
        direction(balance, ROWS[:4], losses(4))


def test_a_gramian_of_huge_and_tiny_gradients():
    for scale in (1e-30, 1e-22, 1.0, 1e15, 1e25):
        found = gram((ROWS * scale).float())
        torch.testing.assert_close(found / scale**2, ROWS @ ROWS.T, rtol=1e-5, atol=1e-5)
    assert (gram(torch.zeros(3, 4)) == 0).all()
    assert gram(torch.zeros(3, 0)).shape == (3, 3)


def test_random_balancers_differ_by_step_and_seed():
    balance = room.rlw(seed=1)
    first, second = (direction(balance, torch.eye(4), losses(4)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, direction(room.rlw(seed=1), torch.eye(4), losses(4)))
    assert not torch.equal(first, direction(room.rlw(seed=2), torch.eye(4), losses(4)))


# --- by losses -------------------------------------------------------------------------------------------------------
def trained(balance, at, steps=400, rate=0.2):
    optimizer = torch.optim.Adam(balance.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        balance(at).backward()
        optimizer.step()
    return next(balance.parameters()).detach()


def test_uncertainty_finds_the_noise():
    at = torch.tensor([0.1, 2.0, 30.0])
    s = trained(room.uncertainty(s=LearnedReal(0.0, size=3), regression=[1.0, 0.0, 1.0]), at)
    # a squared error is its variance: exp(-s) L / 2 + s / 2 is least there; a cross-entropy's at twice the loss
    torch.testing.assert_close(s.exp(), at * torch.tensor([1.0, 2.0, 1.0]), rtol=1e-3, atol=1e-3)


def test_imtl_l_brings_every_loss_to_1():
    at = torch.tensor([0.1, 2.0, 30.0])
    s = trained(room.imtl_l(s=LearnedReal(0.0, size=3)), at)
    torch.testing.assert_close(s.exp() * at, torch.ones(3), rtol=1e-3, atol=1e-3)


def weights_of(balance, steps, held=None):
    """The weights after losses [steps, T]."""
    for i, at in enumerate(steps):
        leaf = at.clone().requires_grad_()
        (w,) = torch.autograd.grad(balance(leaf, held=None if held is None else held[i]), leaf)
    return w


def falling(steps, rates):
    return torch.exp(-torch.arange(steps)[:, None] * torch.tensor(rates)).double()


def test_what_falls_slowly_gets_more_weight():
    slow_first = falling(40, [0.001, 0.1])
    for balance in (room.dwa(every=5), room.igb(every=5), room.famo(rate=1.0)):
        relative = weights_of(balance, slow_first) * (slow_first[-1] if balance.part.method.key != "dwa" else 1)
        assert relative[0] > 1.05 * relative[1], balance
    even = torch.ones_like(slow_first)
    for balance in (room.mft_convergence(rate=1.0), room.coba(window=10, warmup=5)):
        w = weights_of(balance, even, held=slow_first)
        assert w[0] > 1.05 * w[1], balance


def test_coba_holds_back_what_diverges():
    held = torch.stack([torch.linspace(1, 0.5, 60), torch.linspace(1, 0.5, 60).flip(0) * 2], -1).double()
    held[:30, 1] = held[0, 1]  # flat, then rising
    even, balance = torch.ones_like(held), room.coba(window=20, warmup=5)
    assert weights_of(balance, even, held)[1] < 0.3
    assert torch.isfinite(balance.state.worst).all()


def test_coba_waits_and_stays_between_its_scores():
    held = falling(30, [0.01, 0.2, 0.05])
    balance = room.coba(window=10, warmup=12)
    for i, at in enumerate(held):
        w = weights_of(balance, torch.ones(1, 3).double(), at[None])
        assert w.sum() == pytest.approx(1)
        assert (w >= 0).all()  # 1 - DF is never negative
        assert (i < 12) == bool((w == 1 / 3).all())
    assert balance.state.seen.shape == balance.state.slopes.shape == (10, 3)  # the whole window, from the warm-up on


def test_coba_goes_by_the_relative_scores_alone_while_all_speed_up():
    """Then t softmax(...) is above 1, and without a stop the absolute scores would count less than nothing."""
    t = torch.arange(30, dtype=torch.float64)[:, None].square()
    held = 1 - t * torch.tensor([1e-4, 8e-4])
    w = weights_of(room.coba(window=10, warmup=5), torch.ones_like(held), held)
    a = torch.from_numpy(np.polyfit(np.arange(10), held[-10:].numpy(), 1)[0])
    torch.testing.assert_close(w, (2 * a / a.abs().sum()).softmax(-1))


def test_self_paced_weights_hold_back_what_rises_and_what_stands_still():
    held = torch.stack([torch.linspace(2, 1, 30), torch.full((30,), 1.0), torch.linspace(1, 1.5, 30)], -1).double()
    even, balance = torch.ones_like(held), room.mft_self_paced(window=20)
    assert (weights_of(balance, even[:19], held[:19]) == 1 / 3).all()  # not enough seen
    w = weights_of(balance, even[19:], held[19:])
    assert w[0] > 0.95
    assert w[2] < 1e-10
    two = torch.stack([torch.linspace(2, 1, 30), torch.linspace(2, 1.9, 30)], -1).double()
    w = weights_of(room.mft_self_paced(window=20), torch.ones_like(two), two)
    assert w[0] > w[1]  # of two that fall, the faster one: not what the name of convergence balancing makes one expect


def test_slopes_are_those_of_a_line():
    y = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(slope(y), torch.from_numpy(np.polyfit(np.arange(7), y.numpy(), 1)[0]))
    assert (slope(y[:1]) == 0).all()


def test_the_policy_of_igb_learns():
    """Two losses: the first falls by itself, the second by its weight. The smallest fall is paid: weight the second."""
    balance = room.igb_rl(every=4, refresh=10, rate=3e-3)
    at, seen = torch.ones(2), []
    for _ in range(160):
        leaf = at.clone().requires_grad_()
        (u,) = torch.autograd.grad(balance(leaf), leaf)
        seen.append(w := (u * leaf).detach())
        assert w.sum() == pytest.approx(2, rel=1e-4)
        at = 1 - torch.tensor([0.3, 0.05]) - torch.tensor([0.0, 0.2]) * w
    assert torch.stack(seen[:20])[:, 1].mean() < 1.4
    assert torch.stack(seen[-20:])[:, 1].mean() > 1.6


def test_the_networks_of_the_policy_are_those_of_torch():
    numbers = sac.network(4, 3, torch.Generator().manual_seed(0))
    layers = nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))
    nn.utils.vector_to_parameters(numbers, layers.parameters())
    x = torch.randn(5, 4)
    torch.testing.assert_close(sac.run(numbers, x), layers(x))
    weight = nn.Parameter(torch.randn(6))
    held, optimizer = torch.stack([weight.detach(), *torch.zeros(2, 6)]), torch.optim.Adam([weight], lr=0.1)
    for t in range(1, 4):
        weight.grad = torch.sin(weight.detach()) + t
        held = sac.adam(held, torch.sin(held[0]) + t, torch.tensor(float(t)), 0.1)
        optimizer.step()
    torch.testing.assert_close(held[0], weight.detach())


# --- by the gradients ------------------------------------------------------------------------------------------------
def by_vectors(rows, order, change):
    """Gradients changed one after the other, as papers write it; row i by those in order[i]."""
    out = rows.clone()
    for i in range(len(rows)):
        for j in order[i]:
            out[i] = out[i] + change(i, int(j), out[i], rows[j]) * rows[j]
    return out.sum(0)


@pytest.mark.parametrize("seed", [0, 4])
def test_pcgrad_is_what_the_paper_does_to_vectors(seed):
    order = orders(Gramian(losses(5), gramian=ROWS @ ROWS.T), seed)
    assert [sorted([i, *row]) for i, row in enumerate(order)] == [list(range(5))] * 5
    wanted = by_vectors(ROWS, order, lambda i, j, a, b: -min(a @ b, torch.tensor(0.0)) / (b @ b))
    torch.testing.assert_close(direction(room.pcgrad(seed=seed), ROWS, losses(5)), wanted)


def test_gradvac_is_what_the_paper_does_to_vectors():
    balance, goal = room.gradvac(beta=0.3, seed=2), torch.zeros(5, 5, dtype=torch.float64)

    def change(i, j, a, b):
        now, aim = torch.cosine_similarity(a, b, dim=0), goal[i, j].clone()
        goal[i, j] = 0.7 * aim + 0.3 * now
        side = (1 - aim**2).sqrt()
        return max(now < aim, 0) * a.norm() * (aim * (1 - now**2).sqrt() - now * side) / (b.norm() * side)

    for step in range(4):
        rows = gradients(5, step)
        view = Gramian(losses(5), state=balance.state, gramian=rows @ rows.T)
        wanted = by_vectors(rows, orders(view, 2), change)
        torch.testing.assert_close(direction(balance, rows, losses(5)), wanted)


def test_config_has_one_cosine_to_all_and_their_length():
    d = direction(room.conflict_free(), ROWS, losses(5))
    cosines = torch.cosine_similarity(ROWS, d[None], dim=-1)
    torch.testing.assert_close(cosines, cosines[:1].expand(5))
    torch.testing.assert_close(d.norm(), (ROWS @ d / d.norm()).sum())
    torch.testing.assert_close(
        d, d.norm() * torch.linalg.pinv(ROWS / ROWS.norm(dim=-1, keepdim=True)).sum(-1) * cosines[0]
    )
    two = ROWS[:2]
    bisector = (two / two.norm(dim=-1, keepdim=True)).sum(0)
    torch.testing.assert_close(
        torch.cosine_similarity(direction(room.conflict_free(), two, losses(2)), bisector, dim=0).item(), 1.0
    )


def test_nash_gives_all_the_same_gain_over_their_weight():
    w = room.nash_mtl()(jacobian=ROWS)
    torch.testing.assert_close(ROWS @ (w @ ROWS) * w, torch.ones(5, dtype=w.dtype), rtol=1e-6, atol=1e-6)
    assert (w @ ROWS).norm() == pytest.approx(5**0.5)


def test_mgda_of_divided_gradients():
    norms, at = ROWS.norm(dim=-1), losses(5)
    for by, scale in (("norm", norms), ("loss", at), ("loss_norm", norms * at)):
        d = direction(room.mgda(by=by), ROWS, at)
        wanted = direction(room.mgda(), ROWS / scale[:, None], at)
        torch.testing.assert_close(torch.cosine_similarity(d, wanted, dim=0).item(), 1.0)


def test_gradnorm_makes_gradients_alike():
    balance = room.gradnorm(alpha=0.0, rate=0.02)
    for _ in range(300):
        w = balance(losses(5), jacobian=ROWS)
    pulled = w * ROWS.norm(dim=-1)
    assert pulled.max() / pulled.min() < 1.3
    late = torch.tensor([1.0, 0.1, 0.1, 0.1, 0.1])  # the first loss has not moved
    balance = room.gradnorm(alpha=1.5)
    balance(torch.ones(5), jacobian=torch.eye(5))
    for _ in range(20):
        w = balance(late, jacobian=torch.eye(5))
    assert w[0] == w.max() > 1.5


def test_m_config_lets_terms_take_turns():
    balance = room.conflict_free_momentum(beta1=0.5)
    turns = [ROWS * (torch.arange(5) == i % 5)[:, None] for i in range(10)]
    first = direction(balance, turns[0], losses(5))
    assert first.abs().max() > 0  # of the one term seen so far
    torch.testing.assert_close(first.sign(), ROWS[0].sign())
    for rows in turns[1:]:
        direction(balance, rows, losses(5))
    torch.testing.assert_close(balance.state.seen, torch.full((5,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(balance.state.mean / 0.75, ROWS)  # means only of what was computed


def test_m_config_on_all_terms_starts_as_config_over_its_own_scale():
    d = direction(room.conflict_free_momentum(), ROWS, losses(5))
    torch.testing.assert_close(d, direction(room.conflict_free(), ROWS, losses(5)).sign(), atol=1e-6, rtol=1e-6)


# --- one after the other ---------------------------------------------------------------------------------------------
def test_then_scales_what_the_second_sees():
    at, balance = losses(5), room.igb(every=2).then(room.mgda())
    assert balance.needs == "gramian"
    u = 1 / at  # in the first epochs, all weights are 1: the slopes of log L
    w = room.mgda()(jacobian=u[:, None] * ROWS)
    torch.testing.assert_close(balance(at, jacobian=ROWS), u * w)
    torch.testing.assert_close(balance(at, gramian=ROWS @ ROWS.T), u * w)
    long = room.gls().then(room.conflict_free_momentum())
    assert long.needs == "jacobian"
    assert direction(long, ROWS, at).shape == (12,)
    three = room.gls().then(room.gradnorm()).then(room.upgrad())
    assert torch.isfinite(three(at, gramian=ROWS @ ROWS.T)).all()


def test_then_resumes_freezes_and_reads_back():
    balance = room.igb(every=2).then(room.gradvac(beta=0.3))
    assert repr(balance) == "lossary.balance.igb(every=2).then(lossary.balance.gradvac(beta=0.3))"
    for i in range(5):
        direction(balance, gradients(5, i), losses(5, i))
    again = parse_balance(repr(balance))
    assert again.config() == balance.config() == Balance.from_config(balance.config()).config()
    again.load_state_dict(copy.deepcopy(balance.state_dict()))
    before = copy.deepcopy(balance.state_dict())
    with balance.frozen():
        direction(balance, ROWS, losses(5))
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in balance.state_dict().items())
    rows, at = gradients(5, 9), losses(5, 9)
    assert torch.equal(direction(balance, rows, at), direction(again, rows, at))


def test_then_refuses_what_makes_no_sense():
    with pytest.raises(WrongRoom, match="second"):
        room.mgda().then(room.igb())
    with pytest.raises(WrongRoom, match="direction"):
        room.conflict_free_momentum().then(room.mgda())
    with pytest.raises(WrongRoom, match="learns"):
        room.imtl_l(s=LearnedReal(0.0, size=5)).then(room.imtl_g())
    with pytest.raises(MissingInput):
        room.igb().then(room.mgda())(losses(5))
    with pytest.raises(MissingInput, match="losses"):
        room.igb().then(room.mgda())(jacobian=ROWS)


def test_what_is_typed_is_a_balancer_or_an_error():
    made = parse_balance("balance.uncertainty(s=memory.LearnedReal(0.0, size=3))")
    assert repr(made) == "lossary.balance.uncertainty(s=lossary.memory.LearnedReal(init=0.0, size=3))"
    for wrong in ("focal()", "balance.mgda().then(focal())", "balance.mgda(", "balance.focal()"):
        with pytest.raises(lossary.LossaryError):
            parse_balance(wrong)
    with pytest.raises(DomainError, match="a balancer, not an objective"):
        lossary.parse("balance.mgda()")


# --- of another library ----------------------------------------------------------------------------------------------
class Aggregator(nn.Module):
    """Stands for TorchJD's class of that name: known by its name, as theirs."""


class Weighting(nn.Module):
    """So does this one."""


class _GramianWeighting(Weighting):
    """And this one."""


class Halves(Aggregator):
    def forward(self, matrix):
        return matrix[0] / 2 + matrix[1] / 2


class Norms(Weighting):
    def forward(self, matrix):
        return matrix.norm(dim=-1)


class Counting(_GramianWeighting):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, gramian):
        self.calls += 1
        return gramian.diagonal() * self.calls


class Weighted(Aggregator):
    def __init__(self):
        super().__init__()
        self.gramian_weighting = Counting()


def test_aggregators_and_weightings_of_torchjd():
    halves, norms, counting = map(room.torchjd, (Halves(), Norms(), Weighted()))
    assert [b.needs for b in (halves, norms, counting)] == ["jacobian", "jacobian", "gramian"]
    torch.testing.assert_close(halves(jacobian=ROWS), ROWS[:2].mean(0))
    torch.testing.assert_close(norms(losses(5), jacobian=ROWS), ROWS.norm(dim=-1) @ ROWS)
    torch.testing.assert_close(counting(gramian=ROWS @ ROWS.T), ROWS.square().sum(-1))
    torch.testing.assert_close(counting(jacobian=ROWS), 2 * ROWS.square().sum(-1))
    with counting.frozen():
        counting(jacobian=ROWS)
    assert counting.state_dict()["inner.calls"] == 2
    both = room.gls().then(counting)
    assert torch.isfinite(both(losses(5), jacobian=ROWS)).all()
    with pytest.raises(MissingInput, match="gramian"):
        counting(losses(5))
    with pytest.raises(WrongRoom, match="no config"):
        counting.config()
    with pytest.raises(WrongRoom, match="neither"):
        room.torchjd(nn.Linear(2, 2))
    assert repr(halves) == "lossary.balance.torchjd(Halves())"
