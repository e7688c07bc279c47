"""Neighbour losses on pairs against the matrix form of `lossary.icon`, and the authors' code run elsewhere."""

import pytest
import torch
import torch.nn.functional as F

import lossary
from lossary.folds.tiles import SIZES
from lossary.icon import Cosine, Debiased, Gaussian, ICon, Same, Student

AGE = torch.tensor([20.0, 22.0, 31.0, 40.0, 41.0, 55.0, 60.0])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(one, other, z):
    """Two losses and their gradients agree, up to a constant, which is returned."""
    values = []
    for fn in (one, other):
        x = z.clone().requires_grad_()
        values.append((fn(x), torch.autograd.grad(fn(x), x)[0]))
    torch.testing.assert_close(values[0][1], values[1][1])
    assert values[0][1].abs().max() > 1e-4
    return (values[0][0] - values[1][0]).item()


def entropy(log):
    return torch.special.entr(log.exp()).sum(1).mean().item()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_debiased_contrast_and_t_simclr_are_icon(alpha):
    z, label = draw(18, 5), torch.arange(18) % 6
    target = Debiased(Same(), alpha)
    gap = entropy(target.log(label))
    for ours, learned in (
        (lossary.debiased_contrast(tau=0.2, alpha=alpha), Cosine(0.2)),
        (lossary.t_simclr(df=3.0, alpha=alpha), Student(df=3.0)),
    ):
        assert both(lambda x, f=ours: f(x, label), lambda x, q=learned: ICon(target, q)(label, x), z) == pytest.approx(
            gap
        )


def test_many_degrees_of_freedom_are_a_gaussian():
    z, label = draw(18, 5), torch.arange(18) % 6
    gap = both(lambda x: lossary.t_simclr(df=1e6)(x, label), lambda x: ICon(Same(), Gaussian())(label, x), z.mul(0.1))
    assert gap == pytest.approx(entropy(Same().log(label)), abs=1e-6)


def test_y_aware_is_icon_with_a_gaussian_of_ages():
    z = draw(7, 5)
    kernel = (-(AGE[:, None] - AGE).square() / (2 * 10.0**2)).exp()
    ours = lambda x: lossary.y_aware(tau=0.3)(x, torch.zeros(7, dtype=torch.long), pair_weight=kernel)  # noqa: E731
    ages = AGE[:, None].double()
    icon = lambda x: ICon(Gaussian(sigma=10.0), Cosine(0.3))(ages, x)  # noqa: E731
    assert both(ours, icon, z) == pytest.approx(entropy(Gaussian(sigma=10.0).log(ages)), abs=1e-6)


def test_kernel_losses_are_those_of_the_authors():
    """KernelizedSupCon of EIDOSLAB/contrastive-brain-age-prediction@2fe9e7b, run elsewhere: temperature 0.5, sigma 10.

    expw: with its line that subtracts the largest logit left out (that shift does not cancel: with it, 3.6245).
    """
    z = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0)).round(decimals=1)[:, :2]
    kernel = (-(AGE[:, None] - AGE).square() / (2 * 10.0**2)).exp().repeat_interleave(2, 0).repeat_interleave(2, 1)
    given = {"pair_weight": kernel}
    one = torch.zeros(7, dtype=torch.long)
    assert lossary.y_aware(tau=0.5)(z, one, **given).item() == pytest.approx(2.8881735801696777, rel=1e-6)
    got = lossary.exponential_contrast(tau=0.5)(z, one, **given).item()
    assert got == pytest.approx(2.6897165775299072, rel=1e-6)


def test_kernels_of_zeros_and_ones_are_labels():
    z, label = draw(12, 5), torch.arange(12) % 4
    alike = (label[:, None] == label).double()
    zero = torch.zeros_like(label)
    want = lossary.supcon(tau=0.2)(z, label)
    torch.testing.assert_close(lossary.y_aware(tau=0.2)(z, zero, pair_weight=alike), want)
    s = F.normalize(z) @ F.normalize(z).T / 0.2
    other = torch.eye(12) == 0
    norm = torch.where(other, (s * (1 - alike)).exp(), 0).sum(1).log()
    pull = torch.where(other, alike * s, 0).sum(1) / 2
    torch.testing.assert_close(lossary.exponential_contrast(tau=0.2)(z, zero, pair_weight=alike), (norm - pull).mean())


def test_kernels_are_streamed():
    z, kernel = draw(40, 6), draw(40, 40, seed=1).square()
    zero = torch.zeros(40, dtype=torch.long)
    for loss in (lossary.y_aware(tau=0.2), lossary.exponential_contrast(tau=0.2)):
        run = lambda x, f=loss: f(x, zero, pair_weight=kernel)  # noqa: E731
        whole = run(z)
        kept = SIZES.small, SIZES.lane
        SIZES.small, SIZES.lane = 0, 40 * 8 * 7
        try:
            assert both(run, run, z) == 0
            torch.testing.assert_close(run(z), whole)
            x = z.clone().requires_grad_()
            (streamed,) = torch.autograd.grad(run(x), x)
        finally:
            SIZES.small, SIZES.lane = kept
        x = z.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(run(x), x)[0], streamed)
