"""The smooth adversarial comp-sum loss bounds the adversarial one that it stands for."""

import math

import pytest
import torch

import lossary
from lossary.space.adversarial import attack, margins, smooth_adversarial


def adversarial(logits, y, tau, rho):
    """Phi_tau of the summed margin costs min(max(1 - D / rho, 0), 1) over the other classes, written down plainly."""
    cost = (1 - margins(logits, y) / rho).clamp(0, 1)
    total = cost.scatter(1, y[:, None], 0.0).sum(1)
    return torch.log1p(total) if tau == 1 else ((1 + total) ** (1 - tau) - 1) / (1 - tau)


def draw(rows, classes, spread, seed):
    g = torch.Generator().manual_seed(seed)
    clean = spread * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    moved = clean + spread * torch.randn(rows, classes, generator=g, dtype=torch.float64)
    return clean, moved, torch.randint(classes, (rows,), generator=g)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0])
@pytest.mark.parametrize("rho", [0.3, 1.0, 4.0])
def test_it_is_an_upper_bound_from_nu_of_root_c_minus_1_over_rho(tau, rho):
    for classes, spread in ((2, 0.5), (4, 1.0), (9, 3.0)):
        clean, moved, y = draw(3000, classes, spread, seed=classes)
        wanted = adversarial(moved, y, tau, rho)
        bound = smooth_adversarial(clean, moved, y, tau=tau, rho=rho, nu=math.sqrt(classes - 1) / rho)
        assert (bound >= wanted - 1e-12).all()
        without = smooth_adversarial(clean, moved, y, tau=tau, rho=rho, nu=0.0)
        assert (without < wanted).any()


def test_the_slope_of_nu_cannot_be_below_that_of_the_margin_cost():
    """Two classes, MAE form far from the border: a nu that does not grow with 1 / rho is no bound."""
    clean, moved = torch.tensor([[0.2, 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    y, rho = torch.tensor([0]), 0.02
    wanted = adversarial(moved, y, 1.0, rho)
    assert smooth_adversarial(clean, moved, y, rho=rho, nu=1 / rho) >= wanted
    assert smooth_adversarial(clean, moved, y, rho=rho, nu=1.0) < wanted


def test_the_attack_on_a_network_stays_under_the_bound():
    """What an attack on the adversarial loss itself finds, against the bound at what the attack on margins finds."""
    g = torch.Generator().manual_seed(0)
    first, last = torch.randn(8, 16, generator=g).double(), torch.randn(16, 3, generator=g).double()
    x, y = torch.randn(40, 8, generator=g).double(), torch.randint(3, (40,), generator=g)

    def model(v):
        return torch.tanh(v @ first / 3) @ last / 4

    def worst(moved, _, target):
        return adversarial(moved, target, 1.0, 1.0)

    hit = adversarial(model(attack(model, x, y, 0.2, worst=worst, generator=g)), y, 1.0, 1.0)
    moved = model(attack(model, x, y, 0.2, generator=g))
    bound = smooth_adversarial(model(x), moved, y, nu=math.sqrt(2))
    assert (bound >= hit).all()
    assert (bound > lossary.cross_entropy().items(model(x), y).loss).all()
