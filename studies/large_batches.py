"""Large batches: fixed weight norms (LAWN), and ghost batch normalisation with a longer regime.

- Gupta et al. (arXiv 2108.05839): Adam loses test accuracy as batches grow; with weight norms held
  after a free phase (LAWN) it loses less. Here: batches of 32 and of all 512 rows, the same 40 epochs; learning rates
  and free phases are chosen by the validation rows.
- Hoffer, Hubara and Soudry (arXiv 1705.08741): SGD with batch normalisation loses test accuracy in large batches
  because it makes few steps. A rate scaled by the square root and ghost batches of 32 win some of it back; as many
  steps as with small batches (regime adaptation) close the gap.

Blurred digits, MLPs. What would be shown was fixed before the first full run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lossary.catalogue import evidence
from lossary.step.optim import lawn
from lossary.step.schedules import GhostBatchNorm, adapted_regime, scaled_rate
from lossary.workbench.small import Splits, figures, together

CLAIM = (
    "On blurred digits, going from batches of 32 to 512 rows costs Adam more test accuracy with free weight norms than "
    "with LAWN; and with batch normalisation, a scaled rate and ghost batches are more accurate at 512 rows than the "
    "plain rate, and with as many steps as at 32 rows no more than a point is lost."
)
PARTS, HIDDEN, EPOCHS, SMALL, LARGE, BLUR = {"train": 512, "valid": 300, "test": 900}, 64, 40, 32, 512, 3.0
COUNT, RATES, FREE, BASE = 6, (3e-3, 1e-2, 3e-2), (0.1, 0.4), 0.1


def fit(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, batch: int, epochs: int, seed: int) -> nn.Module:
    """Train with fresh orders of the rows."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for at in torch.randperm(len(x), generator=draw).split(batch):
            optimizer.zero_grad()
            cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
    return model.eval()


def network(seed: int, norm: nn.Module | None = None) -> nn.Module:
    """An MLP, with a normalisation of its hidden layer if given."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, HIDDEN), *([norm] if norm else []), nn.ReLU(), nn.Linear(HIDDEN, 10))


@torch.no_grad()
def right(model: nn.Module, data: Splits, part: str, s: int) -> float:
    """Accuracy."""
    return (model(data.x[part][s]).argmax(1) == data.y[part][s]).double().mean().item()


def adam(data: Splits, s: int, batch: int, held: bool, epochs: int, seed: int) -> float:
    """Test accuracy of Adam, with or without LAWN, at the settings that validate best."""
    x, y, tried = data.x["train"][s], data.y["train"][s], []
    steps = epochs * -(-len(x) // batch)
    for lr in RATES:
        for free in FREE if held else FREE[:1]:
            model = network(seed)
            optimizer: Optimizer = torch.optim.Adam(model.parameters(), lr=lr)
            if held:
                optimizer = lawn(optimizer, max(1, int(free * steps)))
            fit(model, optimizer, x, y, batch, epochs, seed)
            tried.append((right(model, data, "valid", s), right(model, data, "test", s)))
    return max(tried, key=lambda one: one[0])[1]


def normalised(data: Splits, s: int, way: str, epochs: int, seed: int) -> float:
    """Test accuracy of SGD with batch normalisation."""
    batch = SMALL if way == "BN, 32" else LARGE
    lr = BASE if way in ("BN, 32", "BN, 512") else scaled_rate(BASE, LARGE, SMALL)
    if "longer" in way:
        epochs = adapted_regime([epochs], LARGE, SMALL)[0]
    model = network(seed, GhostBatchNorm(HIDDEN, SMALL) if "ghost" in way else nn.BatchNorm1d(HIDDEN))
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    fit(model, sgd, data.x["train"][s], data.y["train"][s], batch, epochs, seed)
    return right(model, data, "test", s)


WAYS = ("BN, 32", "BN, 512", "BN, 512, scaled", "BN, 512, scaled, ghost", "BN, 512, scaled, ghost, longer")


def run(seed: int = 0, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Train in every way on every split."""
    count, epochs = (2, 1) if quick else (COUNT, EPOCHS)
    data = Splits(PARTS, count, seed, blur=BLUR)
    lost: dict[str, list[dict[str, float]]] = {"Adam": [], "LAWN": []}
    table: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for s in range(count):
        own = 1000 * seed + s
        for name in lost:
            small, large = (adam(data, s, batch, name == "LAWN", epochs, own) for batch in (SMALL, LARGE))
            lost[name].append({"32": small, "512": large, "lost": small - large})
        for way in WAYS:
            table[way].append({"accuracy": normalised(data, s, way, epochs, own)})
        if progress is not None:
            progress(s + 1, count)
    found = figures(lost, data.ratio, against="Adam") | figures(table, data.ratio, against="BN, 512")
    found |= {
        k: v for k, v in figures(table, data.ratio, against="BN, 32").items() if k.endswith("longer - BN, 32: accuracy")
    }
    holds, ghost = found["LAWN - Adam: lost"], found["BN, 512, scaled, ghost - BN, 512: accuracy"]
    longer = found["BN, 512, scaled, ghost, longer - BN, 32: accuracy"]

    def said(low: float, high: float) -> str:
        return "shown" if low > 0 else "not shown" if high < 0 else "inconclusive"

    parts = {
        "R375, LAWN loses less": said(-holds["high"], -holds["low"]),
        "R476, ghost batches and a scaled rate": said(ghost["low"], ghost["high"]),
        "R476, a longer regime closes the gap": said(longer["low"] + 0.01, longer["high"] + 0.01),
    }
    verdict = together(*parts.values())
    return {
        "claim": CLAIM,
        "rows": ["R375", "R476"],
        "methods": ["lawn", "ghost_batch_norm", "scaled_rate"],
        "versions": evidence.versions(["lawn", "ghost_batch_norm", "scaled_rate"]),
        "setting": {
            "data": f"digits with noise of standard deviation {BLUR:g} on pixels of 0 to 16, {PARTS}",
            "model": f"MLP, {HIDDEN} hidden",
            "epochs": epochs,
            "Adam": {"rates": RATES, "free phases, share of the steps": FREE},
            "SGD": {"rate at 32 rows": BASE, "momentum": 0.9, "ghost batch": SMALL},
            "intervals": "95%, Nadeau-Bengio over splits",
        },
        "seeds": count,
        "seed": seed,
        "figures": found,
        "parts": dict.fromkeys(parts, "inconclusive") if quick else parts,
        "verdict": "inconclusive" if quick else verdict,
    }
