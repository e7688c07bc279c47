"""Each test against an independent formula, and false-positive rates against the truth of a simulation."""

import json
import math

import baycomp
import numpy as np
import pytest
from scipy import stats

from lossary.errors import DataError, DomainError, ShapeError, UnknownName
from lossary.workbench import statistics as s
from lossary.workbench.studies import load

RATIO = 0.25  # 80/20 splits


@pytest.fixture
def d():
    return np.random.default_rng(4).normal(0.02, 0.03, 10)


def test_nadeau_bengio_is_its_formula(d):
    got = s.nadeau_bengio(d, RATIO)
    se = math.sqrt((1 / 10 + 0.25) * np.var(d, ddof=1))
    t = d.mean() / se
    assert got[:4] == pytest.approx((d.mean(), se, t, 9))
    assert got.p == pytest.approx(2 * (1 - stats.t.cdf(abs(t), 9)))
    assert (got.low, got.high) == pytest.approx(stats.t.interval(0.95, 9, d.mean(), se))
    wide = s.nadeau_bengio(d, RATIO, alpha=0.01)
    assert wide.low < got.low < got.high < wide.high


def test_naive_t_is_the_ordinary_paired_t(d):
    reference = stats.ttest_1samp(d, 0)
    assert (s.naive_t(d).t, s.naive_t(d).p) == pytest.approx((reference.statistic, reference.pvalue))
    assert s.naive_t(d).p < s.nadeau_bengio(d, RATIO).p


@pytest.mark.parametrize("size", [2, 3, 10])
def test_no_variance_is_never_nan(size):
    zero = s.nadeau_bengio(np.zeros(size), RATIO)
    assert (zero.t, zero.p, zero.low, zero.high) == (0, 1, 0, 0)
    for value in (0.1, -3e-9):
        same = s.nadeau_bengio(np.full(size, value), RATIO)
        assert (same.p, same.se, same.low, same.high) == (0, 0, pytest.approx(value), pytest.approx(value))
        assert same.t == math.copysign(math.inf, value)


def test_rounding_is_not_variance():
    a, b = np.array([0.9, 0.8, 0.95, 0.3]), np.array([0.85, 0.75, 0.9, 0.25])  # 0.05 each, up to 1e-16
    assert np.ptp(a - b) > 0
    assert s.nadeau_bengio(a - b, RATIO).se == 0


@pytest.mark.parametrize("scale", [1e-200, 1e-5, 1e5, 1e200])
def test_the_test_does_not_depend_on_units(d, scale):
    one, other = s.nadeau_bengio(d, RATIO), s.nadeau_bengio(d * scale, RATIO)
    assert (other.t, other.p) == pytest.approx((one.t, one.p))
    assert other.high / scale == pytest.approx(one.high)


@pytest.mark.parametrize("bad", [[], [0.1], [[0.1, 0.2]], [0.1, math.nan], [0.1, math.inf]])
def test_differences_that_cannot_be_tested_are_refused(bad):
    with pytest.raises(DataError):
        s.nadeau_bengio(bad, RATIO)
    with pytest.raises(DataError):
        s.naive_t(bad)


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf])
def test_a_ratio_must_be_positive(d, ratio):
    with pytest.raises(DomainError, match="n_test / n_train"):
        s.nadeau_bengio(d, ratio)
    with pytest.raises(DomainError, match="n_test / n_train"):
        s.bayes_rope(d, ratio, 0.01)


def test_holm_by_hand_and_against_the_definition():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.9, 0.6]).tolist() == [1.0, 1.0]
    assert s.holm([]).tolist() == []
    p = np.random.default_rng(0).random(12) ** 3
    # Adjusted <= alpha must be the step-down procedure at alpha: stop at the first that fails.
    for alpha in np.linspace(0.001, 0.999, 97):
        rejected = np.zeros(12, bool)
        for step, i in enumerate(np.argsort(p)):
            if p[i] > alpha / (12 - step):
                break
            rejected[i] = True
        assert ((s.holm(p) <= alpha) == rejected).all()
    for bad in ([1.1], [-0.1], [math.nan]):
        with pytest.raises(DomainError):
            s.holm(bad)


@pytest.mark.parametrize(("folds", "runs"), [(10, 1), (5, 2), (5, 6)])
@pytest.mark.parametrize("rope", [0.001, 0.01, 0.2])
def test_bayes_rope_agrees_with_baycomp_on_folds(folds, runs, rope):
    rng = np.random.default_rng(folds * runs)
    x, y = rng.normal(0.8, 0.02, (2, folds * runs))
    expected = baycomp.CorrelatedTTest.probs(x, y, rope=rope, runs=runs)
    # k folds: n_test / n_train = 1/(k - 1), that is rho = 1/k
    assert s.bayes_rope(y - x, 1 / (folds - 1), rope) == pytest.approx(expected, abs=1e-12)


def test_bayes_rope_at_its_edges(d):
    worse, equivalent, better = s.bayes_rope(d, RATIO, 0.0)
    assert equivalent == pytest.approx(0, abs=1e-12)
    assert worse + better == pytest.approx(1)
    # With a flat prior the mass below 0 is the one-sided p of the corrected test.
    assert worse == pytest.approx(s.nadeau_bengio(d, RATIO).p / 2)
    assert s.bayes_rope(-d, RATIO, 0.01) == pytest.approx(s.bayes_rope(d, RATIO, 0.01)[::-1])
    assert s.bayes_rope(np.full(5, 0.02), RATIO, 0.01) == (0, 0, 1)
    assert s.bayes_rope(np.full(5, -0.02), RATIO, 0.01) == (1, 0, 0)
    assert s.bayes_rope(np.full(5, 0.005), RATIO, 0.01) == (0, 1, 0)
    for bad in (-0.1, math.nan):
        with pytest.raises(DomainError, match="rope"):
            s.bayes_rope(d, RATIO, bad)


@pytest.mark.parametrize(("df", "alpha"), [(1, 0.05), (2, 0.05), (9, 0.05), (9, 0.05 / 24), (29, 0.05)])
def test_detectable_is_detected_with_that_power(df, alpha):
    # Differences with a standard error of known scale: T = (z + delta/se) / sqrt(chi2/df), simulated.
    rng = np.random.default_rng(0)
    delta = s.detectable(0.02, df, alpha=alpha)
    n = 400_000
    t = (rng.normal(size=n) + delta / 0.02) / np.sqrt(rng.chisquare(df, n) / df)
    assert (t > stats.t.isf(alpha / 2, df)).mean() == pytest.approx(0.8, abs=0.004)


def test_detectable_scales_and_refuses_nonsense():
    assert s.detectable(0.0, 9) == 0
    assert s.detectable(0.04, 9) == pytest.approx(2 * s.detectable(0.02, 9))
    assert s.detectable(0.02, 9, power=0.9) > s.detectable(0.02, 9) > s.detectable(0.02, 29)
    assert s.detectable(1, 10_000) == pytest.approx(stats.norm.isf(0.025) + stats.norm.ppf(0.8), rel=1e-3)
    for bad in ({"se": -1, "df": 9}, {"se": 1, "df": 0}, {"se": 1, "df": 9, "power": 1.0}):
        with pytest.raises(DomainError, match="detectable"):
            s.detectable(**bad)


def scores(**means):
    """Ten splits whose difficulty is shared; each candidate has its mean and a little noise of its own."""
    rng = np.random.default_rng(1)
    hard = rng.normal(0.8, 0.05, 10)
    return {name: hard + mean + rng.normal(0, sd, 10) for name, (mean, sd) in means.items()}


def compare(table, **changes):
    options = {"ratio": RATIO, "rope": 0.01, "greater_is_better": True} | changes
    return {row["candidate"]: row for row in s.compare(table, "base", **options)}


def test_compare_reaches_each_verdict():
    table = scores(base=(0, 0.001), up=(0.05, 0.004), down=(-0.05, 0.004), same=(0, 0.001), noisy=(0.01, 0.06))
    rows = compare(table)
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"up": "better", "down": "worse", "same": "equivalent", "noisy": "cannot tell"}
    assert list(rows) == ["up", "down", "same", "noisy"]
    json.dumps(list(rows.values()), allow_nan=False)
    for name, row in rows.items():
        assert set(row) == {
            *("candidate", "mean", "low", "high", "differences", "t", "df", "p", "p_holm", "failed"),
            *("p_better", "p_equivalent", "p_worse", "verdict", "detectable", "detectable_alone"),
        }
        test = s.nadeau_bengio(table[name] - table["base"], RATIO)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((test.mean, test.low, test.high))
        assert (row["t"], row["df"], row["p"]) == pytest.approx((test.t, 9, test.p))
        assert row["p_better"] + row["p_equivalent"] + row["p_worse"] == pytest.approx(1)
        assert row["detectable"] == pytest.approx(s.detectable(test.se, 9, alpha=0.05 / 4))
        assert row["differences"] == pytest.approx((table[name] - table["base"]).tolist())
    assert [r["p_holm"] for r in rows.values()] == pytest.approx(s.holm([r["p"] for r in rows.values()]))
    # An error rate: everything turns round, and nothing else changes.
    turned = compare(table, greater_is_better=False)
    assert {name: row["verdict"] for name, row in turned.items()} == verdicts | {"up": "worse", "down": "better"}
    assert turned["up"]["mean"] == pytest.approx(-rows["up"]["mean"])
    assert turned["up"]["p_holm"] == rows["up"]["p_holm"]


def test_a_real_difference_too_small_to_matter_is_equivalent():
    table = scores(base=(0, 0.0005), tiny=(0.004, 0.0005))
    row = compare(table)["tiny"]
    assert row["p_holm"] < 0.001
    assert row["low"] > 0
    assert row["verdict"] == "equivalent"
    assert compare(table, rope=0.001)["tiny"]["verdict"] == "better"


def test_trying_more_candidates_asks_for_more_evidence():
    table = scores(base=(0, 0.01), up=(0.028, 0.012))
    alone = compare(table)["up"]
    assert 0.05 / 20 < alone["p"] < 0.05
    assert alone["verdict"] == "better"
    rng = np.random.default_rng(3)
    crowd = {f"c{i}": table["base"] + rng.normal(0, 0.03, 10) for i in range(19)}
    crowded = compare(table | crowd)["up"]
    assert crowded["p"] == alone["p"]
    assert crowded["verdict"] == "cannot tell"
    assert crowded["detectable"] > alone["detectable"]


def test_an_identical_candidate_is_equivalent():
    table = scores(base=(0, 0.01))
    # The same scores averaged over seeds in another order: equal up to the last bit.
    row = compare(table | {"alias": np.nextafter(table["base"], np.tile([2, 2, 2, 2, 0], 2))})["alias"]
    assert (row["mean"], row["p"], row["verdict"]) == (0, 1, "equivalent")
    assert compare(table | {"alias": table["base"]}, rope=0.0)["alias"]["verdict"] == "equivalent"


def test_equal_differences_say_no_more_than_their_signs():
    base = np.linspace(0.5, 0.9, 5)
    row = compare({"base": base, "up": base + 1 / 32})["up"]
    assert (row["t"], row["p"]) == (None, 1 / 16)
    assert row["verdict"] == "cannot tell"
    long = np.linspace(0.5, 0.9, 12)
    assert compare({"base": long, "up": long + 1 / 32})["up"]["verdict"] == "better"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_candidate_is_told_not_tested(bad):
    table = scores(base=(0, 0.01), up=(0.1, 0.001), broken=(0, 0.01))
    table["broken"][[2, 5]] = bad
    rows = compare(table)
    broken = rows["broken"]
    assert (broken["verdict"], broken["failed"], broken["p_holm"]) == ("cannot tell", 2, 1)
    assert broken["mean"] is broken["detectable"] is broken["differences"][2] is None
    assert broken["differences"][0] == pytest.approx(table["broken"][0] - table["base"][0])
    assert rows["up"]["p_holm"] == pytest.approx(2 * rows["up"]["p"])  # still two tried
    json.dumps(list(rows.values()), allow_nan=False)
    table["base"][0] = bad
    assert {row["failed"] for row in compare(table).values()} == {1, 3}


def test_compare_refuses_what_does_not_fit():
    table = scores(base=(0, 0.01), up=(0.1, 0.01))
    with pytest.raises(UnknownName, match=r"bass.*base"):
        s.compare(table, "bass", ratio=RATIO, rope=0.01, greater_is_better=True)
    with pytest.raises(ShapeError, match="same splits"):
        compare(table | {"up": table["up"][:9]})
    with pytest.raises(DataError, match="too few splits"):
        compare({name: v[:1] for name, v in table.items()})
    with pytest.raises(DomainError, match="alpha"):
        compare(table, alpha=0)
    assert compare({"base": table["base"]}) == {}


def accuracy(y, pred):
    return float((y == pred).mean())


def test_bootstrap_covers_the_true_difference():
    # 400 hold-outs of 150 rows: A right with 80%, B with 70%, and on the same rows more often than not.
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(400):
        u = rng.random(150)
        y = np.zeros(150, int)
        a, b = (u > 0.8).astype(int), ((u > 0.65) & (rng.random(150) < 0.3 / 0.35)).astype(int)
        value, low, high = s.paired_bootstrap(accuracy, y, a, b, seed=i, stratified=False, n=200)
        assert value == pytest.approx((a == 0).mean() - (b == 0).mean())
        hits += low <= 0.1 <= high
    low, high = s.wilson(hits, 400)
    assert low <= 0.95 <= high + 0.02  # percentile intervals are a little short on few rows
    assert hits / 400 > 0.90


def test_bootstrap_is_paired_stratified_and_seeded():
    rng = np.random.default_rng(0)
    y = np.array([0] * 95 + [1] * 3)
    a = np.where(rng.random(98) < 0.1, 1 - y, y)
    same = s.paired_bootstrap(accuracy, y, a, a, seed=0, stratified=True, n=50)
    assert same == (0, 0, 0)  # the same rows of both

    def counts(y, pred):
        seen.append(int(y.sum()))
        return accuracy(y, pred)

    for stratified, expected in ((True, {3}), (False, {0, 1, 2, 3, 4, 5, 6})):
        seen = []
        s.paired_bootstrap(counts, y, a, y, seed=1, stratified=stratified, n=300)
        assert expected <= set(seen)
        assert stratified == (set(seen) == {3})
    first, again, other = (s.paired_bootstrap(accuracy, y, a, 0 * y, seed=k, stratified=True, n=99) for k in (1, 1, 2))
    assert first == again != other
    with pytest.raises(ShapeError, match="98, 97, 98"):
        s.paired_bootstrap(accuracy, y, a[1:], a, seed=0, stratified=True)
    with pytest.raises(ShapeError, match="strata"):
        s.paired_bootstrap(accuracy, y[:, None], a, a, seed=0, stratified=True)


def test_bootstrap_of_an_undefined_metric_is_nan():
    y = np.arange(6.0)
    value, low, high = s.paired_bootstrap(lambda *_: math.nan, y, y, y, seed=0, stratified=False, n=20)
    assert all(math.isnan(v) for v in (value, low, high))
    some = s.paired_bootstrap(
        lambda y, a: float(a.mean()) if y.min() == 0 else math.nan, y, y, y - 1, seed=0, stratified=False, n=50
    )
    assert some == pytest.approx((1, 1, 1))


def test_wilson_is_its_formula():
    assert s.wilson(0, 0) == (0, 1)
    for k, n in ((0, 20), (1, 20), (13, 40), (40, 40)):
        z, p = stats.norm.isf(0.025), k / n
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
        assert s.wilson(k, n) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(DomainError, match="proportion"):
        s.wilson(3, 2)


def test_p_values_are_uniform_under_the_assumed_correlation():
    # Equicorrelated normal differences with rho = n_test / n are where the corrected test is exact.
    rng = np.random.default_rng(7)
    rho = RATIO / (1 + RATIO)
    d = math.sqrt(rho) * rng.normal(size=(2000, 1)) + math.sqrt(1 - rho) * rng.normal(size=(2000, 10))
    p = [s.nadeau_bengio(row, RATIO).p for row in d]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    naive = np.mean([s.naive_t(row).p < 0.05 for row in d])
    assert s.wilson(int(naive * 2000), 2000)[0] > 0.2


@pytest.fixture(scope="module")
def study():
    return load("compare-false-positives")


def test_overlapping_splits_of_real_data_fool_the_naive_test_only(study):
    seen = []
    result = study.run(quick=True, progress=lambda done, total: seen.append((done, total)))
    json.dumps(result, allow_nan=False)
    assert seen == [(i + 1, 600) for i in range(600)]
    rate = {(r["design"], r["splits"], r["test"]): r for r in result["rates"] if r["data"] == "both"}
    for splits in (10, 30):
        naive, corrected = (rate["mirror", splits, test] for test in study.TESTS)
        assert (naive["of"], corrected["of"]) == (200, 200)
        assert naive["low"] > 0.15
        assert corrected["low"] < 0.05 < 0.12 > corrected["high"]
        assert corrected["rejected"] < naive["rejected"]
    assert result["verdict"] in ("shown", "inconclusive")
    # With nothing but fresh seeds between them, splits are independent and the naive test is right.
    fresh = [c["value"] for c in result["correlation"] if c["design"] == "fresh seeds"]
    mirror = [c["value"] for c in result["correlation"] if c["design"] == "mirror"]
    assert max(fresh) < 0.05 < 0.1 < min(mirror)
    assert rate["fresh seeds", 10, "naive t"]["rate"] < 0.1


def test_the_study_is_seeded_and_its_null_is_exact(study):
    one, again, other = (study.run(seed=k, replications=4, splits=3) for k in (5, 5, 6))
    assert one == again
    assert one["correlation"] != other["correlation"]
    # Swapping all coins swaps the candidates: the differences change sign, so their mean is exactly 0.
    views, y = study._digits()
    rng = np.random.default_rng(0)
    there = study._differences("mirror", views, y, 4, rng)

    class Turned:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __getattr__(self, name):
            return getattr(self.rng, name)

        def random(self, size):
            return 1 - self.rng.random(size)

    assert study._differences("mirror", views, y, 4, Turned()) == pytest.approx(-there, abs=1e-12)
    assert np.abs(there).max() > 0


@pytest.mark.parametrize(
    ("naive", "corrected", "verdict"),
    [
        ((0.2, 0.3), (0.03, 0.07), "shown"),
        ((0.2, 0.3), (0.03, 0.16), "inconclusive"),
        ((0.1, 0.3), (0.03, 0.07), "inconclusive"),
        ((0.2, 0.3), (0.09, 0.16), "not shown"),
        ((0.05, 0.12), (0.03, 0.07), "not shown"),
    ],
)
def test_the_study_says_what_its_intervals_allow(study, naive, corrected, verdict):
    rows = [{"test": t, "low": i[0], "high": i[1]} for t, i in zip(study.TESTS, (naive, corrected), strict=True)]
    assert study._verdict(rows) == verdict
