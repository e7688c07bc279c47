"""Metric losses against loops over pairs and triplets in NumPy, their limits, and each other; mixtures too."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import lossary
from lossary.errors import DomainError, ShapeError
from lossary.folds import tiles
from lossary.formulas import metric
from lossary.formulas.metric import active_triplets, angular, icnn, lifted_structure, mixed_keys, tcm_batch, utilization
from lossary.reduce import mean
from lossary.views import Pairs


def batch(rows=18, classes=5, width=4, seed=0, dtype=torch.float64):
    """Classes of different size, so that anchors differ in their positives."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (rows,), generator=g)
    return torch.randn(rows, width, generator=g, dtype=dtype) + torch.nn.functional.one_hot(y, width + 9)[:, :width], y


class Loops:
    """Distances, cosines and index sets of a batch, as plain NumPy."""

    def __init__(self, x, y):
        x, self.y = x.numpy(), y.numpy()
        self.n, self.x = len(x), x
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        self.d = np.linalg.norm(x[:, None] - x, axis=2)
        self.s = unit @ unit.T
        self.pos = [[j for j in range(self.n) if j != i and y[j] == y[i]] for i in range(self.n)]
        self.neg = [[j for j in range(self.n) if y[j] != y[i]] for i in range(self.n)]
        self.anchors = [i for i in range(self.n) if self.pos[i]]

    def triplets(self, i, margin):
        return [margin + self.d[i, p] - self.d[i, n] for p, n in product(self.pos[i], self.neg[i])]

    def mean(self, item):
        return float(np.mean([item(i) for i in self.anchors]))


def average(values):
    return sum(values) / len(values) if values else 0.0


def grad(fn, x):
    x = x.clone().requires_grad_()
    value = fn(x)
    value.backward()
    return value.detach(), x.grad


def cube(x, y, margin, kept):
    """The mean over anchors of hinges of all triplets, from a tensor of rows x rows x rows."""
    d = torch.cdist(x, x)
    same = y[:, None] == y
    triplet = (same & ~torch.eye(len(y), dtype=torch.bool))[:, :, None] & ~same[:, None]
    hinge = (margin + d[:, :, None] - d[:, None]).clamp(min=0) * triplet
    count = (triplet if kept == "all" else hinge > 0).sum((1, 2))
    return (hinge.sum((1, 2)) / count.clamp(min=1))[same.sum(1) > 1].mean()


# --- triplets --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("margin", [0.01, 0.2, 1.5, 50.0])
@pytest.mark.parametrize(("rows", "classes"), [(18, 5), (40, 3), (9, 8), (12, 1)])
@pytest.mark.parametrize(("name", "kept"), [("triplet", "all"), ("batch_all", "active")])
def test_sorting_is_the_sum_over_triplets(name, kept, rows, classes, margin):
    x, y = batch(rows, classes)
    value, slope = grad(lambda z: lossary.find(name)(margin=margin)(z, y), x)
    wanted, wanted_slope = grad(lambda z: cube(z, y, margin, kept), x)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(slope, wanted_slope, rtol=1e-10, atol=1e-13)


def test_sorting_keeps_float32_in_a_large_batch():
    x, y = batch(600, 20, 16, dtype=torch.float32)
    for name in ("triplet", "batch_all"):
        got = lossary.find(name)().items(x, y).loss
        wanted = lossary.find(name)().items(x.double(), y).loss
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-5)


def test_ties_are_not_active():
    """Distances 1 (positive) and 1, 2 (negatives): at margin 1 the second negative is a tie, and costs nothing."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 2])
    assert metric.hinges(Pairs.build(x, y), 1.0)[1][0].item() == 1
    assert lossary.batch_all(margin=1.0).items(x, y).loss[0].item() == pytest.approx(1.0, abs=1e-14)
    assert lossary.triplet(margin=1.0).items(x, y).loss[0].item() == pytest.approx(0.5, abs=1e-14)


def test_one_positive_and_one_negative_are_a_triplet():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.tensor([0, 0, 1])
    d = torch.cdist(x, x)
    wanted = (3.0 + d[0, 1] - d[0, 2]).item()
    for name in ("triplet", "batch_all", "batch_hard"):
        assert lossary.find(name)(margin=3.0).items(x, y).loss[0].item() == pytest.approx(wanted, rel=1e-12)


def test_batch_all_of_the_whole_batch_is_a_weighted_mean():
    x, y = batch(30, 7)
    loops = Loops(x, y)
    kept = [h for i in loops.anchors for h in loops.triplets(i, 0.2) if h > 0]
    weight = active_triplets(x, y, margin=0.2)
    assert weight.sum().item() == len(kept)
    got = lossary.batch_all(margin=0.2).reduce(mean(by="weight"))(x, y, weight=weight)
    assert got.item() == pytest.approx(average(kept), rel=1e-12)
    assert lossary.batch_all(margin=0.2)(x, y).item() != pytest.approx(average(kept), rel=1e-3)


def test_hard_triplets():
    x, y = batch(25, 6)
    loops = Loops(x, y)
    gaps = {i: loops.d[i, loops.pos[i]].max() - loops.d[i, loops.neg[i]].min() for i in loops.anchors}
    assert lossary.batch_hard(margin=0.3)(x, y).item() == pytest.approx(loops.mean(lambda i: max(0, 0.3 + gaps[i])))
    assert lossary.batch_hard_soft()(x, y).item() == pytest.approx(loops.mean(lambda i: math.log1p(math.exp(gaps[i]))))


def test_weights_of_pairs_are_copies_of_columns():
    x, y = batch(12, 3)
    keys, label = batch(10, 3, seed=5)
    twice = torch.tensor([2.0, 1, 1, 2, 1, 1, 1, 2, 1, 1], dtype=x.dtype)
    copied = torch.arange(10).repeat_interleave(twice.long())
    for name in ("triplet", "batch_all", "contrastive", "n_pair", "tcm", "ranked_list", "generalized_lifted"):
        whole = lossary.find(name)()
        got = whole.items(x, y, keys=keys, key_target=label, pair_weight=twice[None]).loss
        wanted = whole.items(x, y, keys=keys[copied], key_target=label[copied]).loss
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12, msg=name)


# --- pairs -----------------------------------------------------------------------------------------------------------
def test_contrastive_of_a_pair_is_hadsells():
    x, y = batch(2, 1)
    d = (x[0] - x[1]).norm().item()
    assert lossary.contrastive()(x, y).item() == pytest.approx(d**2 / 2)
    x, y = batch(20, 4)
    loops = Loops(x, y)
    wanted = loops.mean(
        lambda i: average(
            [loops.d[i, p] ** 2 / 2 for p in loops.pos[i]] + [max(0, 2 - loops.d[i, n]) ** 2 / 2 for n in loops.neg[i]]
        )
    )
    assert lossary.contrastive(margin=2.0)(x, y).item() == pytest.approx(wanted, rel=1e-10)


def test_circle_is_the_papers_and_its_weights_are_constants():
    x, y = batch(20, 5)
    loops, m, scale = Loops(x, y), 0.3, 12.0

    def item(i):
        s = loops.s[i]
        up = sum(math.exp(-scale * max(0, 1 + m - s[p]) * (s[p] - 1 + m)) for p in loops.pos[i])
        down = sum(math.exp(scale * max(0, s[n] + m) * (s[n] - m)) for n in loops.neg[i])
        return math.log1p(up * down)

    assert lossary.circle(margin=m, scale=scale)(x, y).item() == pytest.approx(loops.mean(item), rel=1e-9)
    # One positive at cosine p, one negative at cosine n: the gradient of the paper's Eq. 9, before normalising.
    p, n = 0.4, 0.3
    s = torch.tensor([[1.0, p, n], [p, 1.0, 0.0], [n, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    v = Pairs.build(torch.eye(3, dtype=torch.float64), torch.tensor([0, 0, 1]))
    v.seen["sim"] = s
    lossary.circle.fn(v, margin=m, scale=scale)[0].backward()
    z = scale * ((n + m) * (n - m) - (1 + m - p) * (p - 1 + m))
    share = 1 / (1 + math.exp(-z))
    wanted = [0, -share * scale * (1 + m - p), share * scale * (n + m)]
    torch.testing.assert_close(s.grad[0], torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=0)


def test_multi_similarity_mines_both_kinds():
    x, y = batch(24, 5)
    loops = Loops(x, y)

    def item(i, slack):
        s = loops.s[i]
        hard_p = [p for p in loops.pos[i] if s[p] - slack < max(s[n] for n in loops.neg[i])]
        hard_n = [n for n in loops.neg[i] if s[n] + slack > min(s[p] for p in loops.pos[i])]
        pull = math.log1p(sum(math.exp(-2 * (s[p] - 0.5)) for p in hard_p)) / 2
        return pull + math.log1p(sum(math.exp(50 * (s[n] - 0.5)) for n in hard_n)) / 50

    for slack in (0.0, 0.1, 2.5):
        got = lossary.multi_similarity(slack=slack)(x, y).item()
        assert got == pytest.approx(loops.mean(lambda i, slack=slack: item(i, slack)), rel=1e-8)
    assert lossary.multi_similarity(slack=0.0)(x, y) < lossary.multi_similarity(slack=2.5)(x, y)


def test_tcm_counts_only_hard_pairs():
    x, y = batch(24, 5)
    loops = Loops(x, y)
    low = [[0.8 - loops.s[i, p] for p in loops.pos[i] if loops.s[i, p] <= 0.8] for i in range(24)]
    high = [[loops.s[i, n] - 0.1 for n in loops.neg[i] if loops.s[i, n] >= 0.1] for i in range(24)]
    given = {"margin_pos": 0.8, "margin_neg": 0.1, "weight_pos": 2.0, "weight_neg": 0.5}
    wanted = loops.mean(lambda i: 2 * average(low[i]) + 0.5 * average(high[i]))
    assert lossary.tcm(**given)(x, y).item() == pytest.approx(wanted, rel=1e-12)
    whole = 2 * average([e for row in low for e in row]) + 0.5 * average([e for row in high for e in row])
    assert tcm_batch(x, y, **given).item() == pytest.approx(whole, rel=1e-12)
    assert tcm_batch(torch.eye(4), torch.arange(4)).item() == 0


def test_n_pair_of_two_towers_is_cross_entropy_of_products():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 3, generator=g, dtype=torch.float64) for _ in range(2))
    wanted = torch.nn.functional.cross_entropy(a @ b.T, torch.arange(7))
    torch.testing.assert_close(lossary.n_pair()(a, b), wanted, rtol=1e-12, atol=0)


def test_ranked_list_is_the_weighted_mean_of_those_on_the_wrong_side():
    x, y = batch(24, 5)
    loops = Loops(x, y)
    d = np.sqrt(np.maximum(0, 2 - 2 * loops.s))

    def side(excess, sharp):
        excess = np.array([e for e in excess if e > 0])
        return np.average(excess, weights=np.exp(sharp * excess)) if len(excess) else 0.0

    def item(i):
        late, early = d[i, loops.pos[i]] - 0.7, 1.3 - d[i, loops.neg[i]]
        return 0.4 * side(late, 3.0) + 0.6 * side(early, 5.0)

    loss = lossary.ranked_list(boundary=1.3, margin=0.6, weight_neg=0.6, scale_pos=3.0, scale_neg=5.0)
    assert loss(x, y).item() == pytest.approx(loops.mean(item), rel=1e-10)


def test_fast_ap_is_average_precision_where_bins_hold_one_column_each():
    x, y = batch(40, 5)
    g = torch.Generator().manual_seed(0)
    edge = torch.stack([torch.randperm(61, generator=g)[:40] for _ in range(40)]).double()
    v = Pairs.build(x, y)
    v.seen["sim"] = 1 - 2 * edge / 60

    def item(i):
        order = sorted((j for j in range(40) if j != i), key=lambda j: edge[i, j])
        hits = [bool(y[j] == y[i]) for j in order]
        return 1 - average([sum(hits[: k + 1]) / (k + 1) for k, hit in enumerate(hits) if hit])

    got = lossary.fast_ap.fn(v, bins=60)
    torch.testing.assert_close(got, torch.tensor([item(i) for i in range(40)], dtype=x.dtype), rtol=1e-9, atol=1e-11)
    perfect = torch.eye(4, dtype=torch.float64)[torch.arange(12) % 4]
    assert lossary.fast_ap()(perfect, torch.arange(12) % 4).item() == pytest.approx(0, abs=1e-12)


# --- of a whole batch ------------------------------------------------------------------------------------------------
def test_lifted_structure_looks_at_both_ends():
    x, y = batch(16, 4)
    loops = Loops(x, y)

    def cost(i, j):
        around = sum(math.exp(1 - loops.d[i, n]) for n in loops.neg[i]) + sum(
            math.exp(1 - loops.d[j, n]) for n in loops.neg[j]
        )
        return max(0, math.log(around) + loops.d[i, j]) ** 2 / 2

    wanted = average([cost(i, j) for i in range(16) for j in loops.pos[i]])
    assert lifted_structure(x, y).item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("degrees", [30.0, 45.0])
def test_angular_is_the_papers(degrees):
    x, y = batch(14, 4)
    loops, steep = Loops(x, y), math.tan(math.radians(degrees)) ** 2
    u = loops.x / np.linalg.norm(loops.x, axis=1, keepdims=True)

    def cost(a, p):
        f = [4 * steep * (u[a] + u[p]) @ u[n] - 2 * (1 + steep) * u[a] @ u[p] for n in loops.neg[a]]
        return math.log1p(sum(map(math.exp, f)))

    wanted = average([cost(a, p) for a in range(14) for p in loops.pos[a]])
    assert angular(x, y, degrees=degrees).item() == pytest.approx(wanted, rel=1e-8)


def test_lifted_structure_and_angular_are_those_of_another_library():
    """pytorch-metric-learning 2.9.0, run outside this repository: LiftedStructureLoss(neg_margin=1, pos_margin=0) of
    distances that are not normalised, AngularLoss of rows of length 1 (it normalises anchors and positives alone)."""
    rows = [
        [0.6, 0.8, 0],
        [0.8, 0, -0.6],
        [-0.6, 0, 0.8],
        [0, 1, 0],
        [0, -0.6, 0.8],
        [-0.28, 0, 0.96],
        [0, 0.28, -0.96],
    ]
    x, y = torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2, 0])
    assert lifted_structure(2 * x, y).item() == pytest.approx(3.8512147012162914, rel=1e-12)
    assert angular(x, y, degrees=40.0).item() == pytest.approx(1.735140461362257, rel=1e-12)
    assert angular(3 * x, y).item() == pytest.approx(2.488402252662711, rel=1e-12)


@pytest.mark.parametrize("fn", [tcm_batch, lifted_structure, angular, icnn])
def test_functions_of_a_batch_have_gradients_and_refuse_towers(fn):
    x, y = batch(12, 4)
    assert torch.autograd.gradcheck(lambda z: fn(z, y), x.clone().requires_grad_(), eps=1e-6, atol=1e-5)
    with pytest.raises(ShapeError, match="labels"):
        fn(x, x)


@pytest.mark.parametrize("name", ["triplet", "batch_all", "batch_hard", "ranked_list", "fast_ap", "tcm", "angular"])
def test_rows_at_a_time_do_not_show(name, monkeypatch):
    x, y = batch(30, 7)
    loss = angular if name == "angular" else lossary.find(name)()
    value, slope = grad(lambda z: loss(z, y), x)
    for size, given in (("small", 0), ("block", (2000, 2000)), ("lane", 500)):
        monkeypatch.setattr(tiles.SIZES, size, given)
    again, again_slope = grad(lambda z: loss(z, y), x)
    torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(again_slope, slope, rtol=1e-10, atol=1e-13)


# --- mixtures --------------------------------------------------------------------------------------------------------
def test_mixed_keys_are_positives_by_their_share():
    """Metrix, Eq. 9, of the contrastive loss of cosines and of the sums inside the multi-similarity loss."""
    x, y = batch(8, 3)
    g = torch.Generator().manual_seed(1)
    a, b = torch.randint(8, (2, 11), generator=g)
    share = torch.rand(11, generator=g, dtype=x.dtype)
    mixed = share[:, None] * x[a] + (1 - share[:, None]) * x[b]
    given = mixed_keys(mixed, y[a], y[b], share)
    got = lossary.multi_similarity(slack=3.0).items(x, y, **given).loss
    u, w = (z / z.norm(dim=1, keepdim=True) for z in (x, mixed))
    s = u @ w.T
    soft = share * (y[:, None] == y[a]) + (1 - share) * (y[:, None] == y[b])
    pull = (1 + (soft * torch.exp(-2 * (s - 0.5))).sum(1)).log() / 2
    wanted = pull + (1 + ((1 - soft) * torch.exp(50 * (s - 0.5))).sum(1)).log() / 50
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("k", [1, 2, 50])
def test_an_anchor_is_mixed_with_its_nearest_negatives(own, k):
    x, y = batch(12, 4)
    loops, wanted = Loops(x, y), []
    for i in range(12):
        hard = sorted(sorted(loops.neg[i], key=lambda j: loops.d[i, j])[:k])
        wanted += [(i, p, n) for p in ([i] if own else loops.pos[i]) for n in hard]
    anchor, first, second = metric.mixing_pairs(x, y, k=k, own=own)
    assert list(zip(anchor.tolist(), first.tolist(), second.tolist(), strict=True)) == wanted
    mixed = metric.mixed_rows(x, y, pairs=(first, second))
    share = mixed.share[0].item()
    torch.testing.assert_close(mixed.x, share * x[first] + (1 - share) * x[second])
    got = lossary.multi_similarity(slack=3.0).items(x, y, **mixed_keys(*mixed, anchor=anchor, rows=12))
    assert got.valid.tolist() == [any(i == a for a, *_ in wanted) for i in range(12)]
    u, w = (z / z.norm(dim=1, keepdim=True) for z in (x, mixed.x))
    for i in range(12):  # each anchor against its own mixtures, in the rest of which nothing of its class is
        s = w[anchor == i] @ u[i]
        pull = torch.log1p(share * torch.exp(-2 * (s - 0.5)).sum()) / 2
        push = torch.log1p((1 - share) * torch.exp(50 * (s - 0.5)).sum()) / 50
        if got.valid[i]:
            torch.testing.assert_close(got.loss[i], pull + push, rtol=1e-8, atol=1e-10)


def test_mixed_rows_are_rows_of_two():
    x, y = batch(9, 4)
    m = metric.mixed_rows(x, y, generator=torch.Generator().manual_seed(3))
    again = metric.mixed_rows(x, y, generator=torch.Generator().manual_seed(3))
    assert torch.equal(m.x, again.x)
    share = m.share[0].item()
    assert 0 < share < 1
    for i in range(9):
        rest = (m.x[i] - share * x[i]) / (1 - share)
        at = int((x - rest).norm(dim=1).argmin())
        assert at != i
        torch.testing.assert_close(x[at], rest, rtol=1e-9, atol=1e-9)
        assert (m.first[i], m.second[i]) == (y[i], y[at])
    assert lossary.contrastive()(x, y, **mixed_keys(*m)).isfinite()
    image = torch.randn(5, 3, 4, 4)
    assert metric.mixed_rows(image, torch.arange(5)).x.shape == image.shape


def test_shares_of_one_and_none_are_plain_keys():
    x, y = batch(8, 3)
    keys, label = batch(6, 3, seed=3)
    ones = torch.ones(6, dtype=x.dtype)
    wanted = lossary.supcon().items(x, y, keys=keys, key_target=label).loss
    for given in (mixed_keys(keys, label, (label + 1) % 3, ones), mixed_keys(keys, (label + 1) % 3, label, 0 * ones)):
        got = lossary.supcon().items(x, y, **given).loss
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_utilization_is_the_mean_distance_to_the_nearest():
    q, z = batch(9)[0], batch(30, seed=4)[0]
    u, w = (t / t.norm(dim=1, keepdim=True) for t in (q, z))
    wanted = torch.cdist(u, w).square().amin(1).mean()
    torch.testing.assert_close(utilization(q, z), wanted, rtol=1e-10, atol=1e-12)
    assert utilization(z[:5] * 3, z).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: mixed_keys(torch.zeros(3, 2), torch.zeros(2), torch.zeros(3), torch.zeros(3)), ShapeError),
        (lambda: mixed_keys(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1), torch.tensor([1.5])), DomainError),
        (lambda: metric.mixed_rows(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)), ShapeError),
        (lambda: metric.mixed_rows(torch.zeros(3, 2), torch.zeros(3)), ShapeError),
        (lambda: metric.mixing_pairs(torch.zeros(3, 2), torch.arange(3), k=0), ShapeError),
        (lambda: mixed_keys(*metric.mixed_rows(torch.eye(3), torch.arange(3)), anchor=torch.arange(3)), ShapeError),
        (lambda: utilization(torch.zeros(3, 2), torch.zeros(3, 4)), ShapeError),
        (lambda: angular(torch.eye(4), torch.arange(4), degrees=90.0), DomainError),
        (lambda: icnn(torch.eye(2), torch.arange(2)), DomainError),
        (lambda: icnn(torch.eye(4), torch.arange(4), k=0), DomainError),
        (lambda: lossary.triplet(margin=-1.0), DomainError),
    ],
)
def test_wrong_input_is_one_clear_error(call, error):
    with pytest.raises(error):
        call()


# --- few-shot episodes -----------------------------------------------------------------------------------------------
def test_proto_triplet_is_own_prototype_against_the_nearest_other():
    x, y = batch(20, 4)
    centre = torch.stack([x[y == c].mean(0) for c in range(4)])
    d = torch.cdist(x, centre)
    own = d.gather(1, y[:, None])[:, 0]
    other = d.masked_fill(torch.nn.functional.one_hot(y, 4).bool(), torch.inf).amin(1)
    got = lossary.proto_triplet()(x, y, keys=centre, key_target=torch.arange(4))
    torch.testing.assert_close(got, (0.5 + own - other).clamp(min=0).mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("k", [2, 4, 50])
def test_icnn_is_the_score_row_by_row(k):
    x, y = batch(20, 4)
    loops = Loops(x, y)
    k_used = min(k, 18)
    near, far, share = [], [], []
    for i in range(20):
        order = sorted((j for j in range(20) if j != i), key=lambda j: loops.d[i, j])[: k_used + 1]
        rivals = [loops.d[i, j] for j in order if y[j] != y[i]]
        rival = min(rivals) if rivals else math.inf
        ratio = [loops.d[i, j] / rival for j in order[:k_used]]
        same = [y[j] == y[i] for j in order[:k_used]]
        near.append([r / max(1, *ratio) for r, yes in zip(ratio, same, strict=True) if yes])
        far.append([loops.d[i, j] for j, yes in zip(order, same, strict=False) if not yes])
        share.append(sum(same) / k_used)
    most = max(max(f) for f in far if f)
    inner = 1 - average([average(n) for n in near if n])
    outer = average([average([v / most for v in f]) for f in far if f])
    count = average(share) if k_used + 2 < 20 else 1.0
    assert icnn(x, y, k=k).item() == pytest.approx(-math.log(((inner + outer) / 2 + count) / 2), rel=1e-6)


def test_icnn_is_lower_for_classes_that_are_apart():
    x, y = batch(40, 4)
    apart = x + 30 * torch.nn.functional.one_hot(y, 4)
    assert 0 <= icnn(apart, y).item() < icnn(x, y).item()
