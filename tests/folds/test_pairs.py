"""Pairs a few rows at a time: against the matrix, against torch, under masks, keys, weights; what is refused."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import lossary
from lossary.errors import DomainError, ShapeError, WrongRoom
from lossary.folds import quick, tiles
from lossary.memory import Learned
from lossary.views import Pairs

KEYS = ["supcon", "supcon_in", "clip", "siglip", "circle", "batch_hard"]


def drawn(n=30, d=6, seed=0, classes=7):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64), torch.arange(n) % classes


@pytest.fixture(params=["plain", "kernels"], autouse=True)
def way(request):
    """The pass over a tile by plain operations, and by the kernel in its interpreter."""
    if request.param == "plain":
        yield
        return
    pytest.importorskip("triton", reason="Triton is not installed (it comes with PyTorch for CUDA, on Linux)")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here: tests/folds/test_kernels.py runs them")
    with mock.patch.multiple(tiles.SIZES, fused=True):
        yield


@pytest.fixture
def few_rows():
    """A block of 6 rows and lanes of 4, at 30 columns."""
    with mock.patch.multiple(tiles.SIZES, small=0, block=(1440, 1440), lane=4 * 30 * 8):
        yield


def both(objective, x, y, pull=None, **given):
    """Items and gradients with the matrix, and a few rows at a time."""
    out = []
    for small in (2**30, 0):
        leaves = [x.clone().requires_grad_(), *([y.clone().requires_grad_()] if y.is_floating_point() else [])]
        with mock.patch.multiple(tiles.SIZES, small=small, block=(1440, 1440), lane=4 * 30 * 8):
            items = objective.items(leaves[0], leaves[-1] if y.is_floating_point() else y, **given)
            loss = items.loss.where(items.valid, 0) if items.valid is not None else items.loss
            total = loss.sum() if pull is None else (pull * loss).sum()
            out.append((loss, *torch.autograd.grad(total, [*leaves, *objective.parameters()])))
    return out


def same(found, tolerance=1e-10):
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("key", KEYS)
def test_masks_views_keys_and_weights_of_pairs(key):
    x, y = drawn()
    objective = getattr(lossary, key)()
    valid = torch.rand(30, generator=torch.Generator().manual_seed(1)) > 0.3
    dirty = x.masked_fill(~valid[:, None], torch.nan)
    same(both(objective, dirty, y, valid=valid))
    keys, key_target = drawn(19, seed=3)
    if key != "clip":
        same(both(objective, x, y, keys=keys, key_target=key_target))
        given = {"ids": torch.arange(30), "key_ids": torch.arange(19) + 5}
        same(both(objective, x, y, keys=keys, key_target=key_target, **given))
    weight = torch.rand(30, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.1
    same(both(objective, x, y, pair_weight=weight))
    same(both(objective, x, y, pair_weight=weight[:1]))
    views = objective.items(x.reshape(15, 2, 6), torch.arange(15) % 4)
    flat = objective.items(x, (torch.arange(15) % 4).repeat_interleave(2))
    assert views.loss.shape == (15, 2)
    torch.testing.assert_close(views.loss.flatten(), flat.loss)


@pytest.mark.parametrize("key", ["supcon", "siglip", "circle"])
def test_gradcheck_a_few_rows_at_a_time(key, few_rows):
    x, y = drawn(7)
    assert torch.autograd.gradcheck(lambda z: getattr(lossary, key)().items(z, y).loss, x.requires_grad_())


def test_against_torch():
    x, other = drawn()[0], drawn(seed=5)[0]
    s = F.normalize(x, dim=1) @ F.normalize(other, dim=1).T / 0.1
    at = torch.arange(30)
    wanted = (F.cross_entropy(s, at) + F.cross_entropy(s.T, at)) / 2
    views = torch.stack([x, other], 1)
    flat = F.normalize(views.reshape(60, 6), dim=1)
    own = (flat @ flat.T / 0.1).fill_diagonal_(-torch.inf)
    for small in (2**30, 0):
        with mock.patch.multiple(tiles.SIZES, small=small):
            torch.testing.assert_close(lossary.clip(tau=0.1)(x, other), wanted)
            torch.testing.assert_close(lossary.supcon(tau=0.1)(views, at), F.cross_entropy(own, torch.arange(60) ^ 1))


@pytest.mark.parametrize("tau", [0.5, 0.03, 0.01])
def test_sharp_softmaxes_go_the_long_way_and_are_right(tau):
    """At tau = 0.01 a row far from all columns would underflow in float32 on the short way."""
    x = F.normalize(drawn(40, 8)[0], dim=1)
    x[0] = -x[1:].mean(0)  # far from everything
    y = torch.arange(40) // 2
    exact = lossary.supcon(tau=tau).items(x, y).loss
    assert quick.steep(tau) == (tau < 0.025)
    with mock.patch.multiple(tiles.SIZES, small=0):
        got = lossary.supcon(tau=tau).items(x.float(), y).loss
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key", KEYS)
def test_pulls_that_are_not_a_mean_and_learned_hyperparameters(key):
    x, y = drawn()
    hyper = {
        "siglip": {"scale": Learned(4.0)},
        "circle": {"scale": Learned(9.0)},
        "batch_hard": {"margin": Learned(1.0)},
    }
    objective = getattr(lossary, key)(**hyper.get(key, {"tau": Learned(0.3)}))
    pull = torch.linspace(-1, 2, 30, dtype=torch.float64)
    same(both(objective, x, y))
    same(both(objective, x, y, pull))


def test_gradients_are_handed_over_again(few_rows):
    x, y = drawn()
    for key in ("supcon", "circle"):
        z = x.clone().requires_grad_()
        loss = getattr(lossary, key)()(z, y)
        (first,) = torch.autograd.grad(loss, z, retain_graph=True)
        (second,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(second, first)


@pytest.mark.parametrize("key", ["supcon", "clip", "siglip", "contrastive"])
def test_the_matrix_has_a_second_derivative(key):
    x, y = drawn(6)
    assert torch.autograd.gradgradcheck(lambda z: getattr(lossary, key)()(z, y), x.requires_grad_())


def test_there_is_no_second_derivative_and_it_says_so(few_rows):
    x, y = drawn()
    for key in ("supcon", "clip", "circle"):
        z = x.clone().requires_grad_()
        with pytest.raises(WrongRoom, match="second derivative"):
            torch.autograd.grad(getattr(lossary, key)()(z, y), z, create_graph=True)


def test_rows_without_a_positive_are_not_valid():
    x, _ = drawn(5)
    items = lossary.supcon().items(x, torch.tensor([0, 0, 1, 2, 2]))
    assert items.valid.tolist() == [True, True, False, True, True]
    keyed = lossary.supcon().items(x, torch.arange(5), keys=x[:2], key_target=torch.tensor([3, 3]))
    assert keyed.valid.tolist() == [False, False, False, True, False]
    own = lossary.supcon().items(
        x[:2], torch.tensor([0, 0]), keys=x[:2], key_target=torch.tensor([0, 1]), ids=torch.tensor([7, 8]),
        key_ids=torch.tensor([7, 9]),
    )  # fmt: skip
    assert own.valid.tolist() == [False, True]


def test_samples_on_both_sides_are_found_rows_by_rows():
    g = torch.Generator().manual_seed(0)
    x, keys = torch.randn(300, 3, generator=g), torch.randn(40, 3, generator=g)
    y, key_y = torch.randint(30, (300,), generator=g), torch.randint(30, (40,), generator=g)
    ids, key_ids = torch.arange(300), torch.arange(280, 320)
    view = Pairs.build(x, y, keys=keys, key_target=key_y, ids=ids, key_ids=key_ids)
    wanted = ((y[:, None] == key_y) & (ids[:, None] != key_ids)).any(1)
    assert torch.equal(view.valid, wanted)
    assert 0 < wanted.sum() < 300


def test_what_is_not_gathered_is_refused():
    x, y = drawn(6)
    with pytest.raises(DomainError, match="pair_weight"):
        lossary.supcon()(x, y, pair_weight=torch.ones(6, 6), across=True)
    with pytest.raises(DomainError, match="keys"):
        lossary.supcon()(x, y, keys=x, key_target=y, across=True)


def test_distances_and_the_far_side():
    x, other = drawn(4)[0], drawn(4, seed=1)[0]
    view = Pairs.build(x, other)
    torch.testing.assert_close(view.dist, torch.cdist(x, other), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(view.mirror.sim, view.sim.T)
    z = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    Pairs.build(z, torch.tensor([0, 0])).dist.sum().backward()
    assert z.grad.eq(0).all()
    with pytest.raises(ShapeError, match="other side"):
        lossary.clip()(x, torch.tensor([0, 0, 1, 1]), keys=other, key_target=torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("args", "given", "error"),
    [
        ((torch.zeros(4), torch.zeros(4, dtype=torch.long)), {}, ShapeError),
        ((torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)), {}, ShapeError),
        ((torch.zeros(4, 3), torch.zeros(4, 2)), {}, ShapeError),
        ((torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long)), {}, ShapeError),
        ((torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), {"keys": torch.zeros(2, 3)}, DomainError),
        (
            (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)),
            {"keys": torch.zeros(2, 5), "key_target": torch.zeros(2, dtype=torch.long)},
            ShapeError,
        ),
        ((torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), {"pair_weight": torch.zeros(4)}, ShapeError),
        ((torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), {"class_axis": 1}, WrongRoom),
    ],
)
def test_what_is_refused(args, given, error):
    with pytest.raises(error):
        lossary.supcon()(*args, **given)


@pytest.mark.parametrize("key", KEYS)
def test_autocast_changes_nothing(key, few_rows):
    x, y = (t.float() if t.is_floating_point() else t for t in drawn())
    other = drawn(seed=5)[0].float()
    for target in (y, other):
        found = []
        for on in (False, True):
            z = x.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
                loss = getattr(lossary, key)()(z, target)
                loss.backward()
            found.append((loss.detach(), z.grad))
        same(found, 1e-6)


@pytest.mark.parametrize("size", [(200, 200), (1000, 1000), (64, 64)])
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_tiles_of_two_towers_make_the_matrix(size, tau):
    """Neither whole rows nor whole columns, shorter ends, a pull that is not a mean's, a learned temperature."""
    (x, _), (y, _) = drawn(31, 6), drawn(31, 6, seed=5)
    objective = lossary.clip(tau=lossary.memory.Learned(tau))
    pull = torch.linspace(0.5, 2, 31, dtype=x.dtype)
    with mock.patch.multiple(tiles.SIZES, block=size):
        height, width = tiles.SIZES.tile(x)
        assert height < 31 or width < 16
    found = []
    for small, block in ((2**30, (1440, 1440)), (0, size)):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        with mock.patch.multiple(tiles.SIZES, small=small, block=block, lane=50):
            loss = objective.items(a, b).loss
            found.append((loss, *torch.autograd.grad((pull * loss).sum(), [a, b, *objective.parameters()])))
    same(found)
