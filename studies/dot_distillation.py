"""Distillation with two momenta (DOT) against SGD on the sum of both losses.

Zhao et al. (ICCV 2023, arXiv 2307.08436): adding the distillation loss keeps the task's loss from converging; with a
larger momentum for the distillation's gradients and a smaller one for the task's, both training losses end lower and
the student is more accurate. Digits, an MLP with 256 hidden units teaches one with 8: cross-entropy plus T^2 KL at
T = 4. Momentum 0.9, delta 0.075 as published; every way has three learning rates, of which each split's validation
rows choose. What would be shown was fixed before the first full run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lossary.catalogue import evidence
from lossary.step.optim import DOT
from lossary.step.schedules import cosine
from lossary.workbench.small import Splits, Stack, batches, figures, pick, together

CLAIM = (
    "On digits, a student trained with DOT ends with a lower training loss, both of the task and of the distillation, "
    "and a higher test accuracy than with SGD of the same momentum on the sum."
)
PARTS, TEACHER, STUDENT, STEPS, BATCH, COUNT = {"train": 800, "valid": 300, "test": 600}, 256, 8, 600, 64, 10
RATES, MOMENTUM, DELTA, T, DECAY = (0.003, 0.01, 0.03), 0.9, 0.075, 4.0, 5e-4
WAYS = ("SGD", "DOT")


def distilled(z: Tensor, t: Tensor) -> Tensor:
    """T^2 KL(teacher, student), the mean over rows, summed over networks; logits [D, n, C]."""
    p, log_q = (t / T).softmax(-1), (z / T).log_softmax(-1)
    return T * T * (p * (p.clamp_min(1e-12).log() - log_q)).sum(-1).mean(1).sum()


def task(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, the mean over rows, summed over networks."""
    return len(z) * cross_entropy(z.flatten(0, 1), y.flatten())


def trained(data: Splits, teacher: Tensor, way: str, lr: float, steps: int, seed: int) -> Stack:
    """One student for each split. teacher: its logits of the training rows, [D, n, C]."""
    model, at = Stack(data.count, 64, STUDENT, 10, seed), batches(data.count, PARTS["train"], BATCH, seed)
    sgd = torch.optim.SGD(model.params, lr=lr, momentum=MOMENTUM, weight_decay=DECAY)
    dot = DOT(model.params, lr=lr, momentum=MOMENTUM, delta=DELTA, weight_decay=DECAY)
    optimizer: torch.optim.Optimizer = dot if way == "DOT" else sgd
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(steps))
    for step in range(steps):
        rows = at(step)
        z = model(pick(data.x["train"], rows))
        first, second = distilled(z, pick(teacher, rows)), task(z, pick(data.y["train"], rows))
        optimizer.zero_grad()
        if way == "DOT":
            first.backward(retain_graph=True)
            dot.take_distillation()
            second.backward()
        else:
            (first + second).backward()
        optimizer.step()
        schedule.step()
    return model


def run(seed: int = 0, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Train teachers, then students in both ways at every rate."""
    count, steps = (2, 3) if quick else (COUNT, STEPS)
    data = Splits(PARTS, count, seed)
    at = batches(count, PARTS["train"], BATCH, seed)

    def lesson(step: int) -> Tensor:
        rows = at(step)
        return task(big(pick(data.x["train"], rows)), pick(data.y["train"], rows))

    big = Stack(count, 64, TEACHER, 10, seed + 1)
    big.train(lesson, steps)
    teacher = big.outputs(data.x["train"])
    table: dict[str, list[dict[str, float]]] = {}
    for w, way in enumerate(WAYS):
        tried: list[list[dict[str, float]]] = []
        for i, lr in enumerate(RATES):
            model = trained(data, teacher, way, lr, steps, seed)
            z = model.outputs(data.x["train"])
            right = {
                part: (model.outputs(data.x[part]).argmax(2) == data.y[part]).double().mean(1)
                for part in ("valid", "test")
            }
            tried.append(
                [
                    {
                        "valid": right["valid"][s].item(),
                        "accuracy": right["test"][s].item(),
                        "task loss": task(z[s : s + 1], data.y["train"][s : s + 1]).item(),
                        "distillation loss": distilled(z[s : s + 1], teacher[s : s + 1]).item(),
                    }
                    for s in range(count)
                ]
            )
            if progress is not None:
                progress(w * len(RATES) + i + 1, len(WAYS) * len(RATES))
        table[way] = [max((rows[s] for rows in tried), key=lambda one: one["valid"]) for s in range(count)]
    table["teacher"] = [
        {**dict.fromkeys(table["SGD"][0], 0.0), "accuracy": right.item()}
        for right in (big.outputs(data.x["test"]).argmax(2) == data.y["test"]).double().mean(1)
    ]
    found = figures({w: table[w] for w in WAYS}, data.ratio, against="SGD")
    found["teacher: accuracy"] = figures({"teacher": table["teacher"]}, data.ratio, against="")["teacher: accuracy"]

    def said(key: str, sign: int) -> str:
        low, high = sorted(sign * found[f"DOT - SGD: {key}"][end] for end in ("low", "high"))
        return "shown" if low > 0 else "not shown" if high < 0 else "inconclusive"

    parts = {
        "lower task loss": said("task loss", -1),
        "lower distillation loss": said("distillation loss", -1),
        "higher accuracy": said("accuracy", 1),
    }
    verdict = together(*parts.values())
    return {
        "claim": CLAIM,
        "rows": ["R85"],
        "methods": ["dot"],
        "versions": evidence.versions(["dot"]),
        "setting": {
            "data": f"digits, {PARTS}",
            "model": f"MLP of {STUDENT} hidden, taught by one of {TEACHER}",
            "momentum": f"{MOMENTUM}, delta {DELTA}",
            "rates": RATES,
            "batch": BATCH,
            "steps": steps,
            "intervals": "95%, Nadeau-Bengio over splits",
        },
        "seeds": count,
        "seed": seed,
        "figures": found,
        "parts": dict.fromkeys(parts, "inconclusive") if quick else parts,
        "verdict": "inconclusive" if quick else verdict,
    }
