"""Measures of embeddings: closed forms on the sphere, the properties the papers ask for, and gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

from lossary.errors import DataError, DomainError, ShapeError, UnknownName
from lossary.measure.embeddings import (
    alignment,
    effective_rank,
    hardness,
    orthogonal_frame,
    spectrum,
    tolerance,
    uniformity,
    wasserstein_uniformity,
)

D = torch.float64


def rows(n, d, seed=0, dtype=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- alignment ---------------------------------------------------------------------------------------------------


def test_alignment_at_known_angles():
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=D)
    assert alignment(x, x * 7).item() == pytest.approx(0)  # a row counts by its direction
    assert alignment(x, -x).item() == pytest.approx(4)
    assert alignment(x, -x, power=1).item() == pytest.approx(2)
    assert alignment(x, x.flip(0), power=2).item() == pytest.approx(2)
    assert alignment(x, x.flip(0), power=1).item() == pytest.approx(math.sqrt(2))
    assert alignment(x, torch.stack([x[0], -x[1]]), power=3).item() == pytest.approx((0 + 2**3) / 2)


def test_alignment_below_power_2_has_a_finite_gradient_where_pairs_fall_together():
    x = rows(4, 3).requires_grad_()
    alignment(x, x.detach(), power=1).backward()
    assert x.grad.isfinite().all()


# --- uniformity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.5, 2.0, 5.0])
def test_uniformity_in_closed_form(t):
    antipodal = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=D)
    assert uniformity(antipodal, t).item() == pytest.approx(-4 * t)
    assert uniformity(torch.ones(5, 3, dtype=D), t).item() == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.eye(6, dtype=D), t).item() == pytest.approx(-2 * t)  # every distance is sqrt 2
    simplex = torch.eye(4, dtype=D) - 0.25
    assert uniformity(simplex, t).item() == pytest.approx(-2 * t * (1 + 1 / 3))


def test_uniformity_is_the_authors_formula_on_normalised_rows():
    x = F.normalize(rows(40, 5), dim=1)
    assert uniformity(3 * x, 2.0).item() == pytest.approx(torch.pdist(x).pow(2).mul(-2).exp().mean().log().item())


@pytest.mark.parametrize("block", [1, 7, 16, 22, 23, 1000])
def test_tiles_change_neither_value_nor_gradient(block):
    x = rows(23, 4)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    one, tiled = uniformity(a), uniformity(b, block=block)
    one.backward()
    tiled.backward()
    assert tiled.item() == pytest.approx(one.item(), abs=1e-12)
    torch.testing.assert_close(b.grad, a.grad)


def test_uniformity_keeps_tiles_and_not_the_whole_matrix():
    """The largest tensor that is kept for the gradient has far fewer than N^2 entries."""
    kept = []
    x = rows(600, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda s: kept.append(s.numel()) or s, lambda s: s):
        loss = uniformity(x, block=20)
        assert sum(kept) < 600 * 600 / 10
    loss.backward()
    assert x.grad.abs().sum() > 0


# --- the Wasserstein form: its closed forms and the paper's five properties ------------------------------------------


def gaussian_w2(x):
    """W2 of two Gaussians by the general formula, with SciPy's matrix square root."""
    u = F.normalize(x, dim=1).numpy()
    mean, cov, d = u.mean(0), np.cov(u.T, bias=True), u.shape[1]
    root = sqrtm(np.eye(d) / math.sqrt(d) @ cov @ np.eye(d) / math.sqrt(d)).real
    return math.sqrt(mean @ mean + np.trace(cov + np.eye(d) / d - 2 * root))


def test_wasserstein_uniformity_is_the_distance_of_two_gaussians():
    x = rows(50, 4) * torch.tensor([3.0, 1.0, 0.5, 0.1], dtype=D) + 0.3
    assert wasserstein_uniformity(x).item() == pytest.approx(gaussian_w2(x), rel=1e-7)


def test_wasserstein_uniformity_of_a_diagonal_gaussian():
    """Rows +-e_i have mean 0 and a diagonal covariance of their shares: sum_i (sqrt s_i - sqrt(1/d))^2."""
    axes = torch.cat([torch.eye(3, dtype=D), -torch.eye(3, dtype=D)])
    assert wasserstein_uniformity(axes).item() == pytest.approx(0, abs=1e-7)
    twice = torch.cat([axes, axes[[0, 3]], axes[[0, 3]]])  # shares 6/10, 2/10, 2/10
    by_hand = sum((math.sqrt(s) - math.sqrt(1 / 3)) ** 2 for s in (0.6, 0.2, 0.2))
    assert wasserstein_uniformity(twice).item() == pytest.approx(math.sqrt(by_hand))
    assert wasserstein_uniformity(torch.ones(4, 3, dtype=D)).item() == pytest.approx(math.sqrt(2))


def collapsed(used, d=32, n=3000):
    return F.pad(rows(n, used), (0, d - used))


def test_property_1_the_order_of_rows_does_not_count():
    x = rows(30, 5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for measure in (wasserstein_uniformity, uniformity):
        assert measure(x[order]).item() == pytest.approx(measure(x).item())


def test_property_2_the_length_of_rows_does_not_count():
    x = rows(30, 5)
    scale = torch.linspace(0.1, 9, 30, dtype=D)[:, None]
    for measure in (wasserstein_uniformity, uniformity):
        assert measure(x * scale).item() == pytest.approx(measure(x).item())


def test_property_3_rows_that_are_there_twice_do_not_count():
    x = rows(30, 5)
    assert wasserstein_uniformity(torch.cat([x, x])).item() == pytest.approx(wasserstein_uniformity(x).item())
    assert uniformity(torch.cat([x, x])) > uniformity(x) + 0.01  # which the Gaussian potential does not have


def test_property_4_a_second_copy_of_the_features_is_worse():
    x = rows(30, 5)
    twice = torch.cat([x, x], 1)
    assert wasserstein_uniformity(twice) > wasserstein_uniformity(x) + 0.01
    closed = math.sqrt(2 - (2 - gaussian_w2(x) ** 2) / math.sqrt(2))  # the same spread over sqrt(2 d)
    assert wasserstein_uniformity(twice).item() == pytest.approx(closed)
    assert uniformity(twice).item() == pytest.approx(uniformity(x).item())
    constant = torch.ones(5, 3, dtype=D)
    assert wasserstein_uniformity(torch.cat([constant, constant], 1)).item() == pytest.approx(math.sqrt(2))


def test_property_5_features_of_zeros_are_worse():
    x = rows(30, 5)
    values = [wasserstein_uniformity(F.pad(x, (0, k))).item() for k in range(4)]
    assert values == sorted(values)
    assert values[3] > values[0] + 0.1
    assert uniformity(F.pad(x, (0, 3))).item() == pytest.approx(uniformity(x).item())


def test_only_the_wasserstein_form_sees_dimensional_collapse():
    """Half of 128 dimensions used: W2^2 = 2 - 2 sqrt(1/2), where the potential hardly moves."""
    full, half = collapsed(128, 128), collapsed(64, 128)
    assert wasserstein_uniformity(full) < 0.15
    assert wasserstein_uniformity(half).item() == pytest.approx(math.sqrt(2 - math.sqrt(2)), abs=0.02)
    assert 0 < (uniformity(half) - uniformity(full)).item() < 0.02 * 4  # of its range from -4


# --- gradients ---------------------------------------------------------------------------------------------------


def test_gradients():
    x, y = rows(7, 3).requires_grad_(), rows(7, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: alignment(a, b), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: alignment(a, b, 3), (x, y))
    assert torch.autograd.gradcheck(lambda a: uniformity(a), x)
    assert torch.autograd.gradcheck(lambda a: uniformity(a, 1.5, block=3), x)
    assert torch.autograd.gradcheck(wasserstein_uniformity, x)


def test_wasserstein_gradient_is_finite_where_dimensions_are_not_used():
    for x in (collapsed(3, 6, 40), rows(4, 9), torch.ones(5, 3, dtype=D), torch.cat([torch.eye(3), -torch.eye(3)])):
        a = x.clone().requires_grad_()
        wasserstein_uniformity(a).backward()
        assert a.grad.isfinite().all()


def test_both_train_a_collapsed_cloud_apart():
    for measure in (uniformity, wasserstein_uniformity):
        x = (rows(32, 4) * 0.1 + torch.tensor([2.0, 0, 0, 0], dtype=D)).requires_grad_()
        before = measure(x).item()
        adam = torch.optim.Adam([x], lr=0.1)
        for _ in range(60):
            adam.zero_grad()
            measure(x).backward()
            adam.step()
        assert measure(x).item() < 0.4 * before if before > 0 else measure(x).item() < before - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(dtype):
    x = rows(300, 8)
    low = x.to(dtype)
    for measure in (uniformity, wasserstein_uniformity, lambda a: alignment(a, a.flip(0))):
        assert measure(low).dtype == torch.float32
        assert measure(low).item() == pytest.approx(measure(low.double()).item(), abs=2e-5)


# --- measures only -------------------------------------------------------------------------------------------------


def test_tolerance_by_a_slow_loop():
    x, y = rows(12, 3), torch.tensor([0, 0, 0, 5, 5, 9, 0, 5, 5, 5, 0, 7])
    u = F.normalize(x, dim=1)
    each = [(u[i] @ u[j]).item() for i in range(12) for j in range(12) if i != j and y[i] == y[j]]
    assert tolerance(x, y) == pytest.approx(np.mean(each))
    assert tolerance(x, y, over="all") == pytest.approx(sum(each) / (12 * 11))
    assert tolerance(x[y == 0][:1].repeat(4, 1), torch.zeros(4, dtype=torch.long)) == pytest.approx(1)


def test_hardness_by_a_slow_loop():
    x, y, taus = rows(9, 3), rows(9, 3, seed=1), (0.1, 1.0)
    s = (F.normalize(x, dim=1) @ F.normalize(y, dim=1).T).numpy()
    found = hardness(x, y, taus, block=4)
    for n, tau in enumerate(taus):
        entropy, hardest, push = [], [], []
        for i in range(9):
            e = [math.exp(s[i, k] / tau) for k in range(9) if k != i]
            share = [v / sum(e) for v in e]
            entropy.append(-sum(r * math.log(r) for r in share))
            hardest.append(max(share))
            push.append(sum(e) / (sum(e) + math.exp(s[i, i] / tau)))
        assert found.entropy[n].item() == pytest.approx(np.mean(entropy))
        assert found.hardest[n].item() == pytest.approx(np.mean(hardest))
        assert found.push[n].item() == pytest.approx(np.mean(push))
    assert found.tau.tolist() == list(taus)


def test_hardness_is_the_gradient_of_infonce():
    """push / tau is the slope of the mean InfoNCE in the positive similarities."""
    x, y = F.normalize(rows(8, 3), dim=1), F.normalize(rows(8, 3, seed=1), dim=1)
    s = (x @ y.T).requires_grad_()
    F.cross_entropy(s / 0.3, torch.arange(8)).backward()
    assert -s.grad.diagonal().sum().item() == pytest.approx(hardness(x, y, [0.3]).push.item() / 0.3)


def test_hardness_from_the_hardest_negative_to_all_alike():
    found = hardness(rows(30, 4), rows(30, 4, seed=1), [1e-4, 0.05, 0.2, 1.0, 1e5])
    assert (found.entropy.diff() > 0).all()
    assert (found.hardest.diff() < 0).all()
    assert found.hardest[0].item() == pytest.approx(1, abs=0.05)
    assert found.entropy[-1].item() == pytest.approx(math.log(29))
    assert found.hardest[-1].item() == pytest.approx(1 / 29, rel=1e-3)
    assert found.push[-1].item() == pytest.approx(29 / 30, rel=1e-3)


def test_effective_rank_in_closed_form():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(5, 4)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([5.0, 5.0, 0.0]))) == pytest.approx(2)
    a, b = 3 / 4, 1 / 4
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(-a * math.log(a) - b * math.log(b))
    )
    x = rows(400, 3) + 100
    assert effective_rank(x) < 1.1
    assert effective_rank(x, centre=True) > 2.9
    assert math.isnan(effective_rank(torch.zeros(3, 2)))


def test_spectrum_is_that_of_the_covariance():
    x = rows(40, 5) + 2
    np.testing.assert_allclose(spectrum(x), np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True)))[::-1])
    np.testing.assert_allclose(spectrum(x, centre=False), np.linalg.eigvalsh((x.T @ x / 40).numpy())[::-1])
    few = spectrum(rows(4, 9))
    assert few.shape == (9,)
    assert (few > 1e-9).sum() == 3
    assert (spectrum(collapsed(3, 8, 50)) > 1e-9).sum() == 3


def test_frames():
    target = torch.arange(5).repeat(3)
    basis = torch.linalg.qr(rows(8, 5))[0].T
    assert orthogonal_frame(4 * basis[target], target * 10) == pytest.approx((0, 0, 0), abs=1e-12)
    simplex = torch.eye(5, dtype=D) - 0.2
    found = orthogonal_frame(simplex[target], target)
    assert found == pytest.approx((math.sqrt(2 - 2 * math.sqrt(1 - 1 / 5)), 1 / 4, 0), abs=1e-7)
    one = orthogonal_frame(torch.ones(15, 4, dtype=D), target)
    assert one == pytest.approx((math.sqrt(2 - 2 / math.sqrt(5)), 1, 0), abs=1e-7)
    longer = basis * torch.tensor([1.0, 1, 1, 1, 3], dtype=D)[:, None]
    assert orthogonal_frame(longer[target], target).cosine == pytest.approx(0, abs=1e-12)
    assert orthogonal_frame(longer[target], target).length > 0.5 < orthogonal_frame(longer[target], target).distance * 2


def test_frames_count_classes_alike():
    x, target = rows(12, 6).abs(), torch.arange(3).repeat(4)
    more = torch.cat([x, x[target == 0]]), torch.cat([target, target[target == 0]])
    assert orthogonal_frame(*more) == pytest.approx(orthogonal_frame(x, target))


def test_measures_only_have_no_graph_and_leave_their_input_alone():
    x, y = rows(10, 3).requires_grad_(), torch.arange(10) % 3
    before = x.detach().clone()
    tolerance(x, y)
    orthogonal_frame(x, y)
    effective_rank(x)
    assert not spectrum(x).requires_grad
    assert not hardness(x, x.flip(0), [0.1]).entropy.requires_grad
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: alignment(rows(3, 2), rows(4, 2)), ShapeError),
        (lambda: alignment(rows(3, 2), rows(3, 2), power=0), DomainError),
        (lambda: uniformity(rows(1, 2)), ShapeError),
        (lambda: uniformity(torch.ones(3, 2, dtype=torch.long)), ShapeError),
        (lambda: uniformity(rows(3, 2), t=0), DomainError),
        (lambda: uniformity(rows(3, 2), block=0), DomainError),
        (lambda: wasserstein_uniformity(rows(3, 2)[0]), ShapeError),
        (lambda: tolerance(rows(3, 2), torch.arange(2)), ShapeError),
        (lambda: tolerance(rows(3, 2), torch.ones(3)), ShapeError),
        (lambda: tolerance(rows(3, 2), torch.arange(3)), DataError),
        (lambda: tolerance(rows(3, 2), torch.zeros(3, dtype=torch.long), over="some"), UnknownName),
        (lambda: hardness(rows(2, 2), rows(2, 2), [1.0]), ShapeError),
        (lambda: hardness(rows(3, 2), rows(3, 2), []), DomainError),
        (lambda: hardness(rows(3, 2), rows(3, 2), [0.1, 0.0]), DomainError),
        (lambda: orthogonal_frame(rows(3, 2), torch.zeros(3, dtype=torch.long)), DataError),
    ],
)
def test_bad_input(call, error):
    with pytest.raises(error):
        call()


# --- the study ---------------------------------------------------------------------------------------------------


def test_the_study_judges_by_its_intervals():
    from lossary.workbench.studies import load

    sweep = load("uniformity-tolerance")
    a, b = rows(6, 3).reshape(2, 3, 3), rows(6, 3, seed=1).reshape(2, 3, 3)
    s = F.normalize(a, dim=2) @ F.normalize(b, dim=2).mT / 0.3
    own = torch.arange(3)
    by_hand = sum(F.cross_entropy(m, own) + F.cross_entropy(m.T, own) for m in s) / 2
    assert sweep.info_nce(a, b, 0.3).item() == pytest.approx(by_hand.item())

    def table(slope, near, more, wobble=0.0):
        def splits(level, accuracy, wobble=0.0):
            return [
                {
                    "uniformity": level + e,
                    "tolerance": level - e,
                    "effective rank": 9 + level,
                    sweep.NEIGHBOURS: accuracy + wobble * (e - 0.01),
                }
                for e in (0.0, 0.01, 0.02)
            ]

        taus = {f"tau {t:g}": splits(slope * n, 0.9) for n, t in enumerate(sweep.TAUS)}
        return taus | {
            sweep.WAYS[-2]: splits(0, 0.9 + near, wobble),
            sweep.WAYS[-1]: splits(2 * slope + more, 0.9 + more),
        }

    no, open_ = "not shown", "inconclusive"
    for given, wanted in (
        ((1, 0, 0.1), ["shown"] * 3),
        ((-1, -0.1, -0.1), [no] * 3),
        ((0, -0.02, 0, 1), [no, open_, no]),
    ):
        parts, found = sweep.compared(table(*given), 0.7)
        assert list(parts.values()) == wanted
    assert len(found) == 11
