"""The studies of the class losses run, say what they promise, and their verdicts follow from their intervals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lossary
from lossary.errors import LossaryError
from lossary.formulas import families  # noqa: F401
from lossary.workbench import trials
from lossary.workbench.studies import FOLDER, load

NAMES = (
    "circle_classes",
    "comp_sum_gaps",
    "contrastive_mnist",
    "encouraging",
    "ensloss_overfitting",
    "focal_rare",
    "harmonic_prototypes",
    "individual_temperatures",
    "label_robust",
    "metric_losses",
    "mixed_barlow_twins",
    "neighbour_debiasing",
    "orthogonal_frames",
    "orthohash",
    "poly_loss",
    "sparse_probabilities",
    "squentropy",
    "uniformity_tolerance",
    "z_loss_ranking",
)


@pytest.mark.parametrize("name", NAMES)
def test_its_result_is_stored_and_whole(name):
    result = json.loads(Path(FOLDER, "results", f"{name}.json").read_text())
    assert {"claim", "rows", "methods", "versions", "setting", "seeds", "figures", "verdict"} <= set(result)
    assert result["verdict"] in ("shown", "not shown", "inconclusive")
    assert result["study"] == name.replace("_", "-")
    assert set(result["methods"]) <= set(result["versions"])  # and other parts, by their path
    for key in result["methods"]:
        assert lossary.catalogue.row(key)


def blobs(rows=120):
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    return rng.normal(size=(rows, 4)) + 3 * np.eye(4)[y], y


def test_a_contest_picks_settings_by_validation_and_compares_in_pairs():
    X, y = blobs()
    candidates = {"same": [lossary.cross_entropy()], "twin": [lossary.cross_entropy()], "none": [0.0 * lossary.brier()]}
    held = trials.contest(X, y, candidates, {"accuracy": trials.accuracy}, splits=3, epochs=8, lrs=(1e-9, 1e-1))
    assert held.gain("accuracy", "same", over="twin") == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert all(chosen["lr"] == 1e-1 for chosen in held.chosen["same"])
    assert held.mean("accuracy", "same") > 0.9 > held.mean("accuracy", "none")
    assert held.ratio == pytest.approx(36 / 60)
    with pytest.raises(LossaryError, match="candidate"):
        held.mean("accuracy", "sam")


def test_a_contest_spoils_what_is_learned_from_and_never_the_test_rows():
    X, y = blobs()
    seen = []

    def wrong(labels, g):
        seen.append(len(labels))
        return (labels + 1) % 3

    candidates = {"cross_entropy": [lossary.cross_entropy()]}
    held = trials.contest(X, y, candidates, {"accuracy": trials.accuracy}, splits=2, epochs=8, lrs=(0.1,), spoil=wrong)
    assert sorted(seen) == [24, 24, 60, 60]
    assert held.mean("accuracy", "cross_entropy") < 0.1


def test_verdicts():
    up, down, wide = ({"low": a, "high": b} for a, b in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1)))
    assert trials.verdict(up, up) == "shown"
    assert trials.verdict(up, wide) == "inconclusive"
    assert trials.verdict(wide, down) == "not shown"
    assert trials.verdict(wide, above=-0.15) == "shown"


def test_the_gaps_of_a_realisable_problem_vanish():
    gaps = load("comp-sum-gaps")
    share = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    entropy = -(share * share.log()).sum().item()
    reached, _ = gaps.best(torch.eye(1).double(), share, 1.0, torch.zeros(1, 3).double(), 100)
    assert reached == pytest.approx(entropy, abs=1e-7)
    assert gaps.pointwise(1.0, 0.3, 3) == pytest.approx(-0.7 * np.log(0.7) - 0.3 * np.log(0.15), abs=1e-6)
    assert gaps.pointwise(0.0, 0.3, 2) == pytest.approx(2 * np.sqrt(0.21), abs=1e-6)  # of exp: 2 sqrt(p q)
