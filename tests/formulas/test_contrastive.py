"""Contrastive losses against torch's cross-entropy, loops over pairs, and autograd of what they stand for."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F

import lossary
from lossary import space
from lossary.errors import DomainError, LossaryError, MissingInput, ShapeError, UnknownName, WrongRoom
from lossary.memory import HardNegatives, Learned, LearnedReal, Queue

N, D = 9, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def towers(seed=0):
    a = draw(N, D, seed=seed)
    return a.requires_grad_(), (a.detach() + 0.7 * draw(N, D, seed=seed + 50)).requires_grad_()


def same(got, wanted, inputs, **tight):
    """Values and gradients."""
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12, **tight)
    for g, w in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(wanted, inputs, retain_graph=True), strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11)


# --- closed forms ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["supcon", "supcon_in", "nt_xent", "infonce"])
def test_one_positive_is_a_cross_entropy(key):
    z = draw(N, 2, D).requires_grad_()
    unit = F.normalize(z, dim=-1).transpose(0, 1).reshape(2 * N, D)  # first views, then second ones
    logits = (unit @ unit.T / 0.2).masked_fill(torch.eye(2 * N, dtype=torch.bool), -torch.inf)
    wanted = F.cross_entropy(logits, torch.arange(2 * N).roll(N))
    same(getattr(lossary, key)(tau=0.2)(z, torch.arange(N)), wanted, (z,))


def test_clip_is_the_mean_of_two_cross_entropies():
    a, b = towers()
    logits, at = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.07, torch.arange(N)
    wanted = (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2
    same(lossary.clip()(a, b), wanted, (a, b))


def test_siglip_is_a_double_loop_over_pairs_divided_by_the_rows():
    a, b = towers()
    total = 0.0
    for i in range(N):
        for j in range(N):
            z = 1 if i == j else -1
            total = total - F.logsigmoid(z * (10 * F.cosine_similarity(a[i], b[j], dim=0) - 10))
    same(lossary.siglip()(a, b), total / N, (a, b))


def test_siglip_learns_its_scale_by_the_logarithm_and_its_bias_as_it_is():
    a, b = (x.detach() for x in towers())
    whole = lossary.siglip(scale=Learned(10.0), bias=LearnedReal(-10.0)).double()
    log_scale, bias = torch.tensor(10.0).log().double().requires_grad_(), torch.tensor(-10.0).double().requires_grad_()
    logits = log_scale.exp() * (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T) + bias
    wanted = -F.logsigmoid(logits * (2 * torch.eye(N) - 1)).sum() / N
    got = whole(a, b)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)  # the start is kept in float32
    for g, w in zip(
        torch.autograd.grad(got, list(whole.parameters())), torch.autograd.grad(wanted, [log_scale, bias]), strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-7)
    again = lossary.Objective.from_config(whole.config())
    again.load_state_dict(whole.state_dict())
    assert again(a.float(), b.float()).item() == pytest.approx(got.item(), rel=1e-5)
    with pytest.raises(DomainError):
        LearnedReal(math.nan)


def test_the_supervised_losses_are_loops_over_positives():
    z, y, tau = draw(12, D).requires_grad_(), torch.arange(12) % 3, 0.3
    s = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / tau
    out, into = [], []
    for i in range(12):
        rest = torch.stack([s[i, j].exp() for j in range(12) if j != i]).sum()
        share = torch.stack([s[i, j].exp() / rest for j in range(12) if j != i and y[j] == y[i]])
        out.append(-share.log().mean())
        into.append(-share.mean().log())
    same(lossary.supcon(tau=tau)(z, y), torch.stack(out).mean(), (z,))
    same(lossary.supcon_in(tau=tau)(z, y), torch.stack(into).mean(), (z,))


def test_rows_may_be_told_from_a_queue():
    z, tau, queue = draw(4, D).requires_grad_(), 0.2, Queue(D, 8)
    keys, label = draw(8, D, seed=3), torch.tensor([0, 1, 1, 2, 5, 5, 0, 7])
    queue.push(keys.float(), label, torch.arange(8))
    held, kept, _ = queue.contents()
    y = torch.tensor([0, 1, 2, 9])  # the last has no positive and takes no part
    got = lossary.supcon(tau=tau)(z, y, keys=held.double(), key_target=kept)
    s = F.normalize(z, dim=1) @ F.normalize(held.double(), dim=1).T / tau
    wanted = torch.stack([(s[i].logsumexp(0) - s[i][label == y[i]]).mean() for i in range(3)]).mean()
    same(got, wanted, (z,))


def test_the_hard_loss_keeps_the_nearest_negatives():
    z, y = draw(12, D).requires_grad_(), torch.arange(12) % 4
    s, wanted = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / 0.3, []
    for i in range(12):
        pos = s[i][(y == y[i]) & (torch.arange(12) != i)]
        near = s[i][y != y[i]].sort(descending=True).values[:4]  # 0.4 of 9, rounded up
        wanted.append((torch.cat([pos, near]).logsumexp(0) - pos).mean())
    same(lossary.hard_contrastive(tau=0.3, share=0.4)(z, y), torch.stack(wanted).mean(), (z,))
    one = lossary.hard_contrastive(share=0.0)(z, y)  # the nearest alone
    assert one < lossary.hard_contrastive(share=0.2)(z, y) < lossary.supcon(tau=0.3)(z, y)


def test_the_decoupled_loss_keeps_its_gradient_where_infonce_has_lost_it():
    near = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    a, b = near.clone().requires_grad_(), (near + 0.01 * draw(2, 2)).requires_grad_()
    sizes = [torch.autograd.grad(f(tau=0.1)(a, b), a)[0].norm() for f in (lossary.supcon, lossary.decoupled)]
    assert sizes[0] < 1e-6 < 1e-3 < sizes[1]
    one = draw(3, 2, D)[:1]
    assert lossary.decoupled()(one, torch.zeros(1, dtype=torch.long)) == 0  # no negative


def test_bootstrap_refined_takes_near_targets_for_its_own():
    """The two losses as they stand in their paper, and that only the chosen pairs pull."""
    (q, z), (high, low, beta) = towers(), (0.3, -0.3, 0.5)
    s = F.normalize(q, dim=1) @ F.normalize(z, dim=1).T
    near, far, own = (s >= high).fill_diagonal_(False), (s <= low).fill_diagonal_(False), s.diagonal()
    assert near.any()
    assert far.any()
    cosine = F.mse_loss(F.normalize(q, dim=1), F.normalize(z, dim=1), reduction="none").sum(1) + beta * (
        (2 - 2 * s) * near
    ).sum(1)
    same(lossary.ccsl(threshold_pos=high, beta=beta)(q, z), cosine.mean(), (q, z))
    label = torch.where(near, 1.0, 0.0).double()
    rest = F.binary_cross_entropy_with_logits(s, label, reduction="none") * (near | far)
    sigmoid = F.binary_cross_entropy(own.sigmoid(), torch.ones_like(own), reduction="none") + beta * rest.sum(1)
    same(lossary.cssl(threshold_pos=high, threshold_neg=low, beta=beta)(q, z), sigmoid.mean(), (q, z))
    alone = lossary.ccsl(threshold_pos=1.0)(q, z)  # BYOL
    same(alone, (2 - 2 * F.cosine_similarity(q, z)).mean(), (q, z))


# --- model-aware temperature -----------------------------------------------------------------------------------------
def test_model_aware_is_the_reweighted_infonce_of_macl():
    """InfoNCE over the negatives' share, a constant, at tau (1 + alpha A), A a constant: the gradient of the paper."""
    a, b = towers()
    s = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    warm = s.diag().mean().detach()
    p = (s / (0.1 * (1 + 0.7 * warm))).softmax(1)
    share = (p.sum(1) - p.diag()).detach()
    wanted = torch.autograd.grad((-p.diag().log() / share).mean(), (a, b))
    got = space.ModelAware(lossary.decoupled(tau=0.1), alpha=0.7)
    for g, w in zip(torch.autograd.grad(got(a, b), (a, b)), wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.alignment(a, b), warm)
    torch.testing.assert_close(got(a, b), lossary.decoupled(tau=(0.1 * (1 + 0.7 * warm)).item())(a, b))


def test_model_aware_streams_and_takes_other_objectives(monkeypatch):
    z, y = draw(12, 2, D).requires_grad_(), torch.arange(12)
    whole = space.ModelAware(lossary.supcon(tau=Learned(0.1)).double(), alpha=1.0)
    wanted = torch.autograd.grad(whole(z, y), (z, *whole.parameters()))
    monkeypatch.setattr(lossary.folds.tiles.SIZES, "small", 0)
    monkeypatch.setattr(lossary.folds.tiles.SIZES, "block", (960, 960))
    for g, w in zip(torch.autograd.grad(whole(z, y), (z, *whole.parameters())), wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-10)
    valid = torch.arange(12) > 3
    kept = space.ModelAware(lossary.decoupled())
    torch.testing.assert_close(kept(z, y, valid=valid), kept(z[valid], y[valid]))
    half, pair = torch.tensor([[True, False], [True, True]]), torch.zeros(2, dtype=torch.long)  # rows of one label
    got = kept.alignment(z[:2], pair, valid=half)
    torch.testing.assert_close(got, kept.alignment(z[:2].flatten(0, 1)[[0, 2, 3]], torch.zeros(3, dtype=torch.long)))


def test_model_aware_refuses_what_it_cannot_warm():
    with pytest.raises(UnknownName):
        space.ModelAware(lossary.siglip())
    with pytest.raises(WrongRoom):
        space.ModelAware(lossary.cross_entropy())
    with pytest.raises(DomainError):
        space.ModelAware(lossary.decoupled(), alpha=-1.0)


# --- the global loss -------------------------------------------------------------------------------------------------
def worst_case(s, pos, neg, tau, rho):
    """tau (log mean exp((s - s_pos) / tau) + rho) of each row, [n]."""
    gap = s - (s * pos).sum(1, keepdim=True) / pos.sum(1, keepdim=True)
    inner = (gap / tau[:, None]).masked_fill(~neg, -torch.inf).logsumexp(1) - neg.sum(1).to(s).log()
    return tau * (inner + rho)


@pytest.mark.parametrize("two", [False, True])
def test_with_no_memory_the_global_loss_has_the_gradient_of_the_robust_loss(two):
    loss = space.GlobalContrastive(20, tau=0.25, gamma=1.0, rho=0.4, step=0.05, beta=1.0, towers=two).double()
    ids = torch.tensor([3, 11, 0, 7, 19, 5, 2, 13, 8])
    for _ in range(2):
        a, b = towers()
        tau = loss.tau[:, ids].clone().requires_grad_()
        if two:
            s, eye = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T, torch.eye(N, dtype=torch.bool)
            wanted = sum(worst_case(x, eye, ~eye, t, 0.4).mean() for x, t in ((s, tau[0]), (s.T, tau[1])))
            got = loss(a, b, ids)
        else:
            z = torch.cat([a, b])
            unit, who = F.normalize(z, dim=1), torch.arange(N).repeat(2)
            pos = (who[:, None] == who) & ~torch.eye(2 * N, dtype=torch.bool)
            wanted = worst_case(unit @ unit.T, pos, who[:, None] != who, tau[0].repeat(2), 0.4).mean()
            got = loss(torch.stack([a, b], 1), torch.arange(N), ids)
        same(got, wanted, (a, b))
        a, b = (x.detach() for x in (a, b))
        # the temperatures took a step down their own gradient
        slope = torch.autograd.grad(wanted, tau)[0] * N
        torch.testing.assert_close(loss.tau[:, ids], (tau - 0.05 * slope).clamp(0.05, 0.7).detach())


def test_the_running_level_is_an_exponential_mean_that_starts_at_the_first_batch():
    loss = space.GlobalContrastive(12, tau=0.25, gamma=0.6, step=0.0).double()
    u = None
    for t in range(3):
        z = draw(4, 2, D, seed=t)
        loss(z, torch.arange(4), torch.arange(4))
        unit, who = F.normalize(z.flatten(0, 1), dim=1), torch.arange(4).repeat_interleave(2)
        s, pos = unit @ unit.T, (who[:, None] == who) & ~torch.eye(8, dtype=torch.bool)
        gap = s - (s * pos).sum(1, keepdim=True)
        now = ((gap / 0.25).exp() * (who[:, None] != who)).sum(1) / 6
        now = now.reshape(4, 2).mean(1)
        u = now if u is None else 0.4 * u + 0.6 * now
        torch.testing.assert_close(loss.level[0, :4].exp(), u)
    assert bool((loss.level[0, 4:] == -torch.inf).all())


def test_rare_samples_come_to_small_temperatures():
    """Twenty-four samples of one kind, and twenty kinds of two."""
    g = torch.Generator().manual_seed(0)
    loss, ids = space.GlobalContrastive(64, tau=0.2, rho=0.3, step=0.02), torch.arange(64)
    kinds = F.one_hot(((ids - 22).clamp(min=0) // 2), 21).float()
    for _ in range(80):
        z = kinds[:, None] + 0.1 * torch.randn(64, 2, 21, generator=g)
        loss(z, ids, ids)
    assert loss.tau[0, :24].min() > loss.tau[0, 24:].max()
    loss.step = 99.0
    loss(z, ids, ids)
    assert (loss.tau.min().item(), loss.tau.max().item()) == pytest.approx((0.05, 0.7))


def steps(loss, at, kind):
    out = []
    for t in at:
        z, ids = draw(6, 2, D, seed=t).float(), (torch.arange(6) + t) % 10
        if kind == "bad" and t in (2, 4):
            loss.begin()
        out.append(loss(z[:, 0], z[:, 1], ids) if kind == "two" else loss(z, torch.arange(6), ids))
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["one", "two", "bad"])
def test_six_steps_are_three_saved_loaded_and_three(kind):
    def make():
        if kind == "bad":
            return space.BadPairs(lossary.nt_xent(), 10, noisy=0.5, faulty=0.5)
        return space.GlobalContrastive(10, tau=0.1, towers=kind == "two")

    straight, first, second = make(), make(), make()
    wanted = steps(straight, range(6), kind)
    steps(first, range(3), kind)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(steps(second, range(3, 6), kind), wanted[3:])
    before = copy.deepcopy(straight.state_dict())
    steps(straight.eval(), [7], kind)
    assert all(torch.equal(v, before[k]) for k, v in straight.state_dict().items())


def test_the_global_loss_streams_and_masks(monkeypatch):
    z, valid = draw(8, 2, D).requires_grad_(), torch.arange(8) != 2
    make = lambda: space.GlobalContrastive(8, gamma=0.5).double()  # noqa: E731
    plain, rest = make(), make()
    wanted = plain(z, torch.arange(8), torch.arange(8), valid=valid)
    torch.testing.assert_close(wanted, rest(z[valid], torch.arange(7), torch.arange(8)[valid]))
    assert plain.level[0, 2] == -torch.inf
    monkeypatch.setattr(lossary.folds.tiles.SIZES, "small", 0)
    monkeypatch.setattr(lossary.folds.tiles.SIZES, "block", (384, 384))
    same(make()(z, torch.arange(8), torch.arange(8), valid=valid), wanted, (z,))
    alone = make()(z[:1], torch.arange(1), torch.arange(1))
    assert alone == 0  # no negative


def test_the_global_loss_says_what_is_wrong():
    loss, z = space.GlobalContrastive(4), draw(4, 2, D).float()
    with pytest.raises(DomainError, match="not one of the samples"):
        loss(z, torch.arange(4), torch.arange(4) + 1)
    with pytest.raises(ShapeError):
        loss(z, torch.arange(4), torch.arange(3))
    with pytest.raises(WrongRoom, match="other kind"):
        loss(z[:, 0], z[:, 1], torch.arange(4))
    for wrong in ({"tau": 0.9}, {"gamma": 0.0}, {"low": 0.0}, {"rho": -1.0}):
        with pytest.raises(DomainError):
            space.GlobalContrastive(4, **wrong)


# --- bad pairs -------------------------------------------------------------------------------------------------------
def test_bad_pairs_weigh_by_the_normal_density_of_losses_that_stand_out():
    size, objective = 12, lossary.nt_xent(tau=0.2)
    loss = space.BadPairs(objective, size, noisy=1.0, faulty=1.0).double()
    ids, kept = torch.arange(size), []
    for t in range(3):
        z = draw(size, 1, D, seed=t) + torch.linspace(0, 2, size)[:, None, None] * draw(size, 2, D, seed=t + 9)
        each = objective.items(z, ids).loss.mean(1)
        torch.testing.assert_close(loss(z, ids, ids), each.mean())  # warm-up
        kept.append(each)
    loss.begin()
    m = torch.stack(kept).mean(0)
    mu, sd = m.mean(), m.std(unbiased=False)
    bad = (m <= mu - sd) | (m >= mu + sd)
    assert 0 < bad.sum() < size
    z = draw(size, 2, D, seed=77).requires_grad_()
    each = objective.items(z, ids).loss.mean(1)
    weight = torch.distributions.Normal(mu, sd).log_prob(each).exp().where(bad, 1).detach()
    same(loss(z, ids, ids), (weight * each).mean(), (z,))


def test_bad_pairs_need_a_history_and_ids():
    loss = space.BadPairs(lossary.clip(), 4)
    with pytest.raises(MissingInput):
        loss.begin()
    with pytest.raises(DomainError):
        loss(draw(2, D).float(), draw(2, D).float(), torch.tensor([0, 4]))
    with pytest.raises(DomainError):
        space.BadPairs(lossary.clip(), 4, noisy=-1.0)
    loss(draw(4, D).float(), draw(4, D, seed=1).float(), torch.arange(4))
    loss.begin()
    assert loss(draw(4, D).float(), draw(4, D, seed=1).float(), torch.arange(4)).isfinite()


# --- heads with a temperature for every pair -------------------------------------------------------------------------
def test_adaptive_heads_are_the_decoupled_loss_where_temperatures_are_fixed():
    torch.manual_seed(0)
    loss = space.AdaptiveHeads(D, 4, heads=2, hidden=8, low=0.25, high=0.25 + 1e-9, beta=0.1).double()
    z, y = draw(5, 2, D), torch.arange(5)
    wanted = sum(lossary.decoupled(tau=0.25)(head(z), y) for head in loss.heads)
    torch.testing.assert_close(loss(z, y), wanted, rtol=1e-6, atol=1e-7)


def test_adaptive_heads_take_the_temperature_of_every_pair():
    torch.manual_seed(0)
    loss = space.AdaptiveHeads(D, 4, heads=1, hidden=8, beta=0.02, low=0.1, high=2.0).double()
    a, b = draw(5, D), draw(5, D, seed=1)
    u, v = (F.normalize(loss.heads[0](x), dim=1) for x in (a, b))
    logits = torch.empty(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            tau = 0.1 + 1.9 / (1 + (loss.phi(u[i]) @ loss.phi(v[j])).exp())
            logits[i, j] = (u[i] @ v[j]) / tau - 0.02 * (2 * tau.log() + 1 / tau)
    off = logits.masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf)
    torch.testing.assert_close(loss(a, b), (off.logsumexp(1) - logits.diag()).mean())
    for count in (1, 3, 9):  # those of the largest similarity, whatever their temperatures
        loss.nearest = count
        near = (
            (u @ v.T)
            .masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf)
            .argsort(1, descending=True)[:, :4][:, :count]
        )
        torch.testing.assert_close(loss(a, b), (logits.gather(1, near).mean(1) - logits.diag()).mean())
    assert all(p.grad is None for p in loss.parameters())
    loss(a, b).backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.phi.parameters())
    with pytest.raises(DomainError):
        space.AdaptiveHeads(D, low=1.0, high=0.5)
    with pytest.raises(DomainError):
        space.AdaptiveHeads(D, nearest=-1)


# --- text embeddings -------------------------------------------------------------------------------------------------
def test_cosent_is_a_loop_over_ordered_pairs():
    x, score = draw(6).tanh().requires_grad_(), torch.tensor([0.0, 3.0, 1.0, 1.0, 5.0, 0.0])
    total = 1.0
    for i in range(6):
        for j in range(6):
            if score[i] > score[j]:
                total = total + ((x[j] - x[i]) / 0.05).exp()
    same(space.cosent(x, score), total.log(), (x,))
    assert space.cosent(x, torch.ones(6)) == 0
    torch.testing.assert_close(space.cosent(torch.tensor([2e4, -2e4]).half(), torch.tensor([0, 1])), torch.tensor(8e5))
    for wrong in ((x, score[:2], 0.05), (x, score, 0.0)):
        with pytest.raises(LossaryError):
            space.cosent(wrong[0], wrong[1], tau=wrong[2])


def test_negatives_are_due_when_they_have_become_easy():
    hard = HardNegatives(5)
    ids = torch.tensor([0, 2, 4])
    assert not hard.due(ids, torch.tensor([0.70, 0.50, 0.95])).any()
    assert hard.due(ids, torch.tensor([0.62, 0.40, 0.81])).tolist() == [False, True, False]  # the last is still near
    hard.renew(torch.tensor([2]))
    assert hard.rounds.tolist() == [0, 0, 1, 0, 0]
    assert not hard.due(ids[1:2], torch.tensor([0.3])).any()  # a new start
    again = HardNegatives(5)
    again.load_state_dict(hard.state_dict())
    assert again.due(ids, torch.tensor([0.6, 0.2, 0.6])).tolist() == [True, True, True]
    again.eval().due(torch.tensor([1]), torch.tensor([0.5]))
    assert again.first[1].isnan()
    with pytest.raises(DomainError):
        again.due(torch.tensor([5]), torch.tensor([0.5]))
    with pytest.raises(DomainError):
        HardNegatives(5, factor=0.5)


@pytest.mark.parametrize(
    "key", ["supcon", "supcon_in", "clip", "siglip", "decoupled", "hard_contrastive", "ccsl", "cssl"]
)
def test_wrong_input_is_refused(key):
    whole, z = getattr(lossary, key)(), draw(4, D)
    with pytest.raises(ShapeError):
        whole(z[0], torch.tensor(0))
    with pytest.raises(ShapeError):
        whole(z, torch.arange(3))
    with pytest.raises(ShapeError):
        whole(z, draw(4, D + 1))
    with pytest.raises(DomainError):
        whole(z, torch.arange(4), keys=z)
    with pytest.raises(DomainError):
        getattr(lossary, key)(**{next(iter(whole.hyper())): -2.0})
