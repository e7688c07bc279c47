"""The studies of routing, tasks and half precision: their records, and what they measure with."""

import json

import pytest
import torch

import lossary
from lossary.workbench import studies
from lossary.workbench.small import together

NAMES = ("loss_free_balancing", "mixed_precision", "task_losses")


@pytest.mark.parametrize("name", NAMES)
def test_its_record_says_what_the_study_claims(name):
    result = json.loads((studies.FOLDER / "results" / f"{name}.json").read_text())
    assert {"claim", "rows", "methods", "versions", "setting", "seeds", "figures", "verdict", "parts"} <= set(result)
    assert result["study"] == name.replace("_", "-")
    assert result["claim"] == studies.load(result["study"]).CLAIM
    worst = "not shown" if "not shown" in result["parts"].values() else "inconclusive"
    assert result["verdict"] == ("shown" if set(result["parts"].values()) == {"shown"} else worst)
    for figure in result["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_gradients_that_fp16_loses_are_counted():
    study = studies.load("mixed-precision")
    grads = [torch.tensor([1.0, 0.0, 2.0**-24]), torch.tensor([[2.0**-26, -(2.0**-40)]])]
    assert study.lost(grads, 1.0) == 0.5  # of four that are not 0
    assert study.lost(grads, 2.0**16) == 0.0
    count = study.exponents(grads)
    assert count.sum() == 4
    assert count[-24 - study.LOWEST] == 1
    assert count[-study.LOWEST] == 1


def test_the_mixture_of_experts_is_its_chosen_experts():
    study = studies.load("loss-free-balancing")
    torch.manual_seed(0)
    model = study.Model(letters=11, u=1e-3)
    x = torch.randint(11, (5, study.CONTEXT))
    z, routes = model(x)
    h = model.enter(model.embed(x).flatten(-2)).relu()
    for t in range(5):
        out = h[t].clone()
        for i, g in zip(routes.expert[t].tolist(), routes.gate[t], strict=True):
            out = out + g * ((h[t] @ model.up[i]).relu() @ model.down[i])
        torch.testing.assert_close(z[t], model.leave(out))


def test_no_task_model_sees_the_character_it_predicts():
    study = studies.load("task-losses")
    torch.manual_seed(0)
    model = study.network(9)
    rows = torch.randint(1, 9, (2, 20))
    other = rows.clone()
    other[:, 12:] = 3
    (a, target), (b, _) = study.logits_and_targets(model, rows), study.logits_and_targets(model, other)
    assert torch.equal(a[:, :13], b[:, :13])
    assert not torch.equal(a[:, 13:], b[:, 13:])
    padded = torch.where(torch.arange(20) < 15, rows, -100)
    assert lossary.cross_entropy()(a, torch.where(torch.arange(20) < 15, target, -100)).isfinite()
    assert study.logits_and_targets(model, padded)[0].isfinite().all()


@pytest.mark.parametrize("file", sorted(studies.FOLDER.glob("results/*.json")), ids=lambda file: file.stem)
def test_a_recorded_verdict_is_that_of_its_parts(file):
    record = json.loads(file.read_text(encoding="utf-8"))
    if "parts" in record:
        assert record["verdict"] == together(*record["parts"].values())
