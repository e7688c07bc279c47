"""What the laws cannot know of the families: exact members, maps and Jacobians, the harmonic head, EnsLoss, attacks."""

import math

import pytest
import torch
import torch.nn.functional as F

import lossary
from lossary.errors import LossaryError
from lossary.formulas import families  # noqa: F401
from lossary.heads import simplex
from lossary.heads.harmonic import HarmonicHead
from lossary.space.adversarial import attack, margins, smooth_adversarial
from lossary.space.ensloss import EnsLoss, random_slopes


def draw(rows, classes, seed=0, scale=1.5):
    g = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    return z, torch.randint(classes, (rows,), generator=g)


# --- comp-sum, z-loss -------------------------------------------------------------------------------------------------
def test_sum_exponential_is_the_sum_of_exponentials():
    z, y = draw(20, 6)
    wanted = (z - z.gather(1, y[:, None])).exp().sum(1) - 1
    torch.testing.assert_close(lossary.find("comp_sum")(tau=0.0).items(z, y).loss, wanted)


def test_comp_sum_below_1_goes_on_along_its_tangent():
    gap = torch.linspace(0, 60, 601, dtype=torch.float64)
    z = torch.stack([torch.zeros_like(gap), gap], 1).requires_grad_()
    loss = lossary.find("comp_sum")(tau=0.5).items(z, torch.zeros(601, dtype=torch.long)).loss
    (grad,) = torch.autograd.grad(loss.sum(), z)
    near = gap < 21.9
    torch.testing.assert_close(loss[near], (2 * (torch.expm1(0.5 * torch.logaddexp(gap * 0, gap)))).detach()[near])
    torch.testing.assert_close(grad[gap > 45, 1], torch.full((150,), math.exp(11), dtype=torch.float64))
    assert (loss.diff().diff() > -1e-6).all()


def test_z_loss_does_not_see_scale_or_offset():
    z, y = draw(30, 7)
    loss = lossary.find("z_loss")(margin=2.0)
    for other in (3e4 * z + 17, 1e-6 * z - 5e-4):
        torch.testing.assert_close(loss.items(other, y).loss, loss.items(z, y).loss, rtol=1e-8, atol=1e-10)


# --- entmax -----------------------------------------------------------------------------------------------------------
def by_bisection(z, alpha):
    s = (alpha - 1) * z
    low, high = s.amax(-1, keepdim=True) - 1, s.amax(-1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        big = (s - middle).relu().pow(1 / (alpha - 1)).sum(-1, keepdim=True) > 1
        low, high = torch.where(big, middle, low), torch.where(big, high, middle)
    return (s - low).relu().pow(1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.05, 1.3, 1.5, 1.9, 2.0])
@pytest.mark.parametrize("classes", [2, 30, 5000])
def test_entmax_is_the_projection(alpha, classes):
    for scale in (0.01, 1.0, 20.0):
        z, _ = draw(6, classes, scale=scale)
        p = simplex.entmax(z, alpha)
        torch.testing.assert_close(p, by_bisection(z, alpha), rtol=1e-6, atol=1e-9)


def test_entmax_at_1_is_softmax_and_goes_along_any_axis():
    z = torch.randn(3, 5, 4)
    torch.testing.assert_close(simplex.entmax(z, 1.0, dim=1), z.softmax(1))
    torch.testing.assert_close(simplex.sparsemax(z, dim=1).sum(1), torch.ones(3, 4))
    assert simplex.sparsemax(torch.randn(4, 9).half()).dtype == torch.float32
    assert (simplex.entmax(4 * z, 1.5) == 0).any()


@pytest.mark.parametrize("alpha", [1.0, 1.4, 1.5, 2.0])
def test_the_jacobian_is_the_derivative(alpha):
    z, _ = draw(5, 8, seed=2)
    for row in z:
        wanted = torch.autograd.functional.jacobian(lambda s: simplex.entmax(s, alpha), row)
        p = simplex.entmax(row, alpha)
        torch.testing.assert_close(simplex.jacobian(p, alpha), wanted, rtol=1e-6, atol=1e-9)
        v = torch.linspace(-1, 2, 8, dtype=torch.float64)
        torch.testing.assert_close(simplex.jacobian_product(p, v, alpha), wanted @ v, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_the_loss_generates_its_map(alpha):
    """The gradient of a Fenchel-Young loss is entmax minus the label."""
    z, y = draw(5, 8, seed=2)
    loss = lossary.find("fenchel_young")(alpha=alpha).reduce(lossary.reduce.sum())
    p = simplex.entmax(z, alpha)
    grad = torch.autograd.functional.jacobian(lambda s: loss(s, y), z)
    torch.testing.assert_close(grad, p - F.one_hot(y, 8), rtol=1e-7, atol=1e-9)


# --- harmonic ---------------------------------------------------------------------------------------------------------
def test_harmonic_logits_are_harmax():
    g = torch.Generator().manual_seed(0)
    head = HarmonicHead(5, 4, n=3.0, eps=1e-12).double()
    x = torch.randn(2, 6, 5, generator=g, dtype=torch.float64)
    d = (x[..., None, :] - head.weight).norm(dim=-1)
    harmax = d**-3 / (d**-3).sum(-1, keepdim=True)
    torch.testing.assert_close(head(x).softmax(-1), harmax)
    y = torch.randint(4, (2, 6), generator=g)
    wanted = -harmax.gather(-1, y[..., None]).log().mean()
    torch.testing.assert_close(lossary.cross_entropy()(head(x), y, class_axis=-1), wanted)


def test_harmonic_probabilities_are_scale_free_and_finite_on_a_centre():
    head = HarmonicHead(8, 3)
    assert head.n == pytest.approx(math.sqrt(8))
    on = head.weight.detach().clone().requires_grad_()
    loss = lossary.cross_entropy()(head(on), torch.arange(3))
    loss.backward()
    assert on.grad.isfinite().all()
    assert loss < 0.1
    x = torch.randn(10, 8)
    p = HarmonicHead.forward(head, x).softmax(-1)
    with torch.no_grad():
        head.weight *= 50
    torch.testing.assert_close(head(50 * x).softmax(-1), p, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(x).dtype == torch.float32
    with pytest.raises(LossaryError, match="features"):
        head(torch.zeros(2, 7))


# --- EnsLoss ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lam", [-1.0, -0.4, 0.0, 0.5, 1.0])
def test_drawn_slopes_belong_to_convex_calibrated_losses(lam):
    g = torch.Generator().manual_seed(0)
    margin = 3 * torch.randn(4, 200, generator=g)
    slopes = random_slopes(margin, lam, g)
    assert (slopes < 0).all()
    assert (slopes >= -1.00001).all()
    order = margin.argsort(-1)
    assert (slopes.gather(-1, order).diff(dim=-1) >= 0).all()
    assert (slopes.abs() * margin.clamp(min=1) <= 1.0001 + 1e-5 * margin.abs()).all()
    assert not torch.equal(slopes[0].sort().values, slopes[1].sort().values)  # each row has a loss of its own


def test_slopes_are_inverse_box_cox_of_normals():
    """All margins at most 1, so the slopes are the sorted draws."""
    margin = -torch.arange(50, dtype=torch.float64)
    normal = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for lam, size in ((0.0, normal.exp()), (0.5, (1 + normal / 2).clamp(min=0) ** 2)):
        got = random_slopes(margin, lam, torch.Generator().manual_seed(3))
        wanted = -(size.clamp(max=1).sort().values + 1e-6)  # the smallest margin, last here, has the steepest slope
        torch.testing.assert_close(got, wanted)


def test_ensloss_learns_repeats_with_its_generator_and_redraws_lam():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    seen = []
    for _ in range(2):
        criterion = EnsLoss(period=5, generator=torch.Generator().manual_seed(1))
        w = torch.zeros(2, requires_grad=True)
        lams = set()
        for _ in range(30):
            (grad,) = torch.autograd.grad(criterion(x @ w, y), w)
            w = (w - 0.5 * grad).detach().requires_grad_()
            lams.add(float(criterion.lam))
        assert len(lams) == 6
        assert ((x @ w > 0).long() == y).float().mean() > 0.97
        seen.append(w.detach())
    assert torch.equal(*seen)
    before = criterion.eval().state_dict()["seen"].clone()
    criterion(x @ w, y)
    assert criterion.seen == before
    with pytest.raises(LossaryError, match="0 or 1"):
        criterion(x @ w, y * 2)


# --- smooth adversarial comp-sum --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("norm", "dual"), [("inf", 1), ("2", 2)])
def test_the_attack_finds_the_worst_of_a_linear_model(norm, dual):
    """Two classes: |D(x') - D(x)| = |(w_0 - w_1) (x' - x)|, largest at radius times the dual norm."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(2, 6, generator=g, dtype=torch.float64)
    x, y = torch.randn(5, 6, generator=g, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    moved = attack(lambda v: v @ w.T, x, y, 0.3, norm=norm, generator=g)
    bend = (margins(moved @ w.T, y) - margins(x @ w.T, y)).norm(dim=1)
    best = 0.3 * (w[0] - w[1]).norm(p=dual)
    assert (bend <= best * (1 + 1e-9)).all()
    assert (bend >= best * (1 - 1e-9 if norm == "inf" else 0.97)).all()
    assert (torch.linalg.vector_norm(moved - x, ord=float(norm), dim=1) <= 0.3 + 1e-9).all()


def test_smooth_adversarial_is_comp_sum_and_the_bend():
    z, y = draw(9, 5)
    other, _ = draw(9, 5, seed=4)
    same = smooth_adversarial(z.requires_grad_(), z, y, tau=1.4, rho=2.0, nu=3.0)
    torch.testing.assert_close(same, lossary.find("comp_sum")(tau=1.4).items(z / 2, y).loss)
    assert torch.autograd.grad(same.sum(), z)[0].isfinite().all()
    bend = torch.stack([(a[t] - a - b[t] + b).norm() for a, b, t in zip(other, z, y, strict=True)])
    torch.testing.assert_close(smooth_adversarial(z, other, y, tau=1.4, rho=2.0, nu=3.0), same + 3 * bend)
    with pytest.raises(LossaryError, match="rho"):
        smooth_adversarial(z, other, y, rho=0.0)
