"""How much the choice of the learning rate costs: MoMo against momentum, MoMo-Adam and Grams against Adam.

Two claims of two papers, on scikit-learn's digits, MLPs, no schedule:

- Schaipp et al. (arXiv 2305.07583): with MoMo in place of SGD with momentum, and MoMo-Adam in place of Adam, more
  learning rates are good. Here: the test accuracy averaged over ten rates, each about three times the last, is higher,
  and at the rate that validates best it is no more than a point lower.
- Cao et al. (arXiv 2412.17107): Grams falls faster than Adam and generalises better. Here: at the rate that validates
  best the training loss after 300 steps is lower and the test accuracy is higher.

Momentum is the averaging one (dampening), as in MoMo's paper. What would be shown was fixed before the first full run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lossary.catalogue import evidence
from lossary.step.optim import Grams, Momo, MomoAdam
from lossary.workbench.small import Splits, figures, together

CLAIM = (
    "On digits, the test accuracy averaged over ten learning rates is higher with MoMo than with SGD with momentum and "
    "with MoMo-Adam than with Adam, at no more than a point lost at the best rate; and at the best rate Grams ends "
    "with a lower training loss and a higher test accuracy than Adam."
)
PARTS, HIDDEN, STEPS, BATCH, COUNT = {"train": 1000, "valid": 300, "test": 400}, 32, 300, 32, 8
SGD_RATES, ADAM_RATES = (tuple(float(r) for r in np.geomspace(low, low * 10**4.5, 10)) for low in (3e-3, 1e-4))
Params = Iterable[nn.Parameter]
WAYS: dict[str, tuple[tuple[float, ...], Callable[[Params, float], Optimizer]]] = {
    "SGD-M": (SGD_RATES, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9)),
    "MoMo": (SGD_RATES, lambda p, lr: Momo(p, lr=lr)),
    "Adam": (ADAM_RATES, lambda p, lr: torch.optim.Adam(p, lr=lr)),
    "MoMo-Adam": (ADAM_RATES, lambda p, lr: MomoAdam(p, lr=lr)),
    "Grams": (ADAM_RATES, lambda p, lr: Grams(p, lr=lr)),
}
CODE = ("momo", "momo_adam", "grams")


def trained(
    make: Callable[[Params, float], Optimizer], lr: float, x: Tensor, y: Tensor, steps: int, seed: int
) -> nn.Module | None:
    """A network after `steps` steps at one rate, or None where its loss was no number any more."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    optimizer, draw = make(model.parameters(), lr), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        at = torch.randint(len(x), (BATCH,), generator=draw)
        optimizer.zero_grad()
        loss = cross_entropy(model(x[at]), y[at])
        if not loss.isfinite():
            return None
        loss.backward()
        optimizer.step(loss=loss) if isinstance(optimizer, Momo) else optimizer.step()
    return model


@torch.no_grad()
def measured(model: nn.Module | None, data: Splits, split: int) -> dict[str, float]:
    """Accuracies, and the training loss; what diverged guesses, and its loss is large."""
    if model is None:
        return {"valid": 0.1, "test": 0.1, "training loss": 10.0}
    out = {}
    for part in ("valid", "test"):
        out[part] = (model(data.x[part][split]).argmax(1) == data.y[part][split]).double().mean().item()
    loss = cross_entropy(model(data.x["train"][split]), data.y["train"][split]).item()
    return out | {"training loss": loss if loss < 10 else 10.0}


def judged(found: dict[str, dict[str, float]]) -> dict[str, str]:
    """A verdict for each claim by intervals that must lie on one side of 0."""

    def said(above: tuple[float, float]) -> str:
        return "shown" if above[0] > 0 else "not shown" if above[1] < 0 else "inconclusive"

    def wins(a: str, b: str, key: str, sign: int = 1, slack: float = 0.0) -> tuple[float, float]:
        held = found[f"{a} - {b}: {key}"]
        low, high = sorted((sign * held["low"], sign * held["high"]))
        return low + slack, high + slack

    out = {}
    for way, base in (("MoMo", "SGD-M"), ("MoMo-Adam", "Adam")):
        out[f"R412, {way} is better over all rates"] = said(wins(way, base, "accuracy over rates"))
        out[f"R412, {way} is no more than a point behind at the best rate"] = said(
            wins(way, base, "best accuracy", slack=0.01)
        )
    return out | {
        "R471, Grams falls faster": said(wins("Grams", "Adam", "training loss", -1)),
        "R471, Grams generalises better": said(wins("Grams", "Adam", "best accuracy")),
    }


def run(seed: int = 0, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Train at every rate on every split; over all rates, and at the one that validates best."""
    count, steps = (2, 5) if quick else (COUNT, STEPS)
    data = Splits(PARTS, count, seed)
    table: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    curves: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for s in range(count):
        for at, (way, (rates, make)) in enumerate(WAYS.items()):
            x, y = data.x["train"][s], data.y["train"][s]
            tried = [measured(trained(make, lr, x, y, steps, 1000 * seed + s), data, s) for lr in rates]
            best = max(tried, key=lambda one: one["valid"])
            curves[way].append([one["test"] for one in tried])
            table[way].append(
                {
                    "accuracy over rates": sum(curves[way][-1]) / len(rates),
                    "best accuracy": best["test"],
                    "training loss": best["training loss"],
                }
            )
            if progress is not None:
                progress(s * len(WAYS) + at + 1, count * len(WAYS))
    found: dict[str, dict[str, float]] = {}
    for ways, against in ((("SGD-M", "MoMo"), "SGD-M"), (("Adam", "MoMo-Adam", "Grams"), "Adam")):
        found |= figures({way: table[way] for way in ways}, data.ratio, against=against)
    parts = judged(found)
    verdict = together(*parts.values())
    return {
        "claim": CLAIM,
        "rows": ["R412", "R471"],
        "methods": [*CODE],
        "versions": evidence.versions(CODE),
        "setting": {
            "data": "digits, " + ", ".join(f"{n} {part}" for part, n in PARTS.items()),
            "model": f"MLP, {HIDDEN} hidden",
            "batch": BATCH,
            "steps": steps,
            "rates": {way: [round(r, 6) for r in rates] for way, (rates, _) in WAYS.items()},
            "accuracy at each rate": {way: np.round(np.mean(rows, 0), 4).tolist() for way, rows in curves.items()},
            "intervals": "95%, Nadeau-Bengio over splits",
        },
        "seeds": count,
        "seed": seed,
        "figures": found,
        "parts": dict.fromkeys(parts, "inconclusive") if quick else parts,
        "verdict": "inconclusive" if quick else verdict,
    }
