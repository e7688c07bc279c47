"""A range test and one cycle against constant rates that were searched for, with a third of the steps.

Smith (arXiv 1803.09820): a range test finds how large a learning rate may get, and one cycle up to it and back trains
in far fewer steps than a piecewise constant rate. Digits, MLPs, SGD with momentum. The cycle's peak is the rate at the
minimum of the range test over three: no other rate is tried. Against it, six constant rates, of which the validation
rows choose, with as many steps as the cycle has, and with three times as many (and a tenth of the rate in the last
third). The range test's own steps count as the cycle's. What would be shown was fixed before the first full run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossary.catalogue import evidence
from lossary.step.schedules import multi_step, one_cycle, range_test
from lossary.workbench.small import Splits, figures, together

CLAIM = (
    "On digits, one cycle to a peak from one range test is more accurate than the best of six constant rates with as "
    "many steps, and no more than a point less accurate than the best with three times as many."
)
PARTS, HIDDEN, STEPS, TEST, BATCH, COUNT = {"train": 1000, "valid": 300, "test": 400}, 32, 100, 40, 32, 8
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Run:
    """A network, its optimizer and its batches."""

    def __init__(self, x: Tensor, y: Tensor, lr: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.x, self.y, self.draw = x, y, torch.Generator().manual_seed(seed)

    def loss(self) -> Tensor:
        """The loss of the next batch, after its backward pass."""
        at = torch.randint(len(self.x), (BATCH,), generator=self.draw)
        loss = cross_entropy(self.model(self.x[at]), self.y[at])
        loss.backward()
        return loss

    def train(self, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> nn.Module:
        """Train under a schedule."""
        for step in range(steps):
            self.sgd.zero_grad()
            self.loss()
            self.sgd.step()
            if step < steps - 1:
                scheduler.step()
        return self.model


def constant(x: Tensor, y: Tensor, lr: float, steps: int, seed: int, drop: bool) -> nn.Module:
    """A constant rate, or one with a drop to a tenth in the last third."""
    run = Run(x, y, lr, seed)
    shape = multi_step(steps, at=(2 / 3,) if drop else (), factor=0.1)
    return run.train(torch.optim.lr_scheduler.LambdaLR(run.sgd, shape), steps)


def cycle(x: Tensor, y: Tensor, steps: int, tested: int, seed: int) -> tuple[nn.Module, float]:
    """One cycle to the peak that a range test suggests, and the peak."""
    run = Run(x, y, 0.1, seed)
    found = range_test(run.model, run.sgd, run.loss, low=1e-3, high=10.0, steps=tested)
    peak = 10 * found.tenth / 3
    return run.train(one_cycle(run.sgd, peak, steps), steps), peak


@torch.no_grad()
def right(model: nn.Module, data: Splits, part: str, s: int) -> float:
    """Accuracy."""
    return (model(data.x[part][s]).argmax(1) == data.y[part][s]).double().mean().item()


def run(seed: int = 0, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Train every way on every split."""
    count, steps, tested = (2, 8, 8) if quick else (COUNT, STEPS, TEST)
    data = Splits(PARTS, count, seed)
    table: dict[str, list[dict[str, float]]] = {"one cycle": [], "constant": [], "constant, three times": []}
    peaks, best = [], []
    for s in range(count):
        x, y, own = data.x["train"][s], data.y["train"][s], 1000 * seed + s
        model, peak = cycle(x, y, steps, tested, own)
        table["one cycle"].append({"accuracy": right(model, data, "test", s)})
        peaks.append(round(peak, 4))
        for name, long in (("constant", 1), ("constant, three times", 3)):
            tried = [constant(x, y, lr, long * (steps + tested), own, long > 1) for lr in RATES]
            at = max(range(len(RATES)), key=lambda i, t=tried: right(t[i], data, "valid", s))  # type: ignore[misc]
            table[name].append({"accuracy": right(tried[at], data, "test", s)})
            best.append(RATES[at])
        if progress is not None:
            progress(s + 1, count)
    found = figures(table, data.ratio, against="one cycle")
    same, longer = (found[f"{name} - one cycle: accuracy"] for name in ("constant", "constant, three times"))
    parts = {
        "more accurate with as many steps": (
            "shown" if same["high"] < 0 else "not shown" if same["low"] > 0 else "inconclusive"
        ),
        "no more than a point behind three times as many": (
            "shown" if longer["high"] < 0.01 else "not shown" if longer["low"] > 0.01 else "inconclusive"
        ),
    }
    verdict = together(*parts.values())
    return {
        "claim": CLAIM,
        "rows": ["R438"],
        "methods": ["one_cycle", "range_test"],
        "versions": evidence.versions(["one_cycle", "range_test", "lossary.step.schedules.range_test.RangeTest"]),
        "setting": {
            "data": f"digits, {PARTS}",
            "model": f"MLP, {HIDDEN} hidden",
            "batch": BATCH,
            "steps": f"{steps} in the cycle after {tested} in the range test; {steps + tested} and three times that",
            "rates": RATES,
            "peaks": peaks,
            "best constant rates, as many and three times": [best[i : i + 2] for i in range(0, len(best), 2)],
            "intervals": "95%, Nadeau-Bengio over splits",
        },
        "seeds": count,
        "seed": seed,
        "figures": found,
        "parts": dict.fromkeys(parts, "inconclusive") if quick else parts,
        "verdict": "inconclusive" if quick else verdict,
    }
