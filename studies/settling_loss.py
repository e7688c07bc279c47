"""How the loss surface settles as samples are added, and whether a small sample tells how many are enough.

Kiselev and Grabovoy (arXiv 2409.11995): around a minimum, |L_{k+1} - L_k| falls as samples are added, and its curve
tells a sufficient sample size. MLPs trained on digits; losses of every sample at ten random points around the end of
training. The size from which on one more sample moves the loss by less than a tolerance is extrapolated from 300
samples and then looked up with 1400. That curves are smoothed before a size is read off was added after a first look:
of a single size the change is noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossary.catalogue import evidence
from lossary.measure.landscape import Landscape, ball, settling
from lossary.workbench.small import Splits, figures, together

CLAIM = (
    "Around the minimum of an MLP on digits, one more sample moves the loss by about 1/k (exponent between 0.9 and "
    "1.1), and 300 samples foretell within a factor of 1.25 how many are enough."
)
PARTS, FEW, EPOCHS, RADIUS = {"train": 1400, "test": 350}, 300, 30, 0.02


def run(seed: int = 0, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Train a network on every split, and add samples."""
    count, epochs = (2, 2) if quick else (8, EPOCHS)
    data = Splits(PARTS, count, seed)
    rows = []
    for s in range(count):
        x, y = data.x["train"][s], data.y["train"][s]
        torch.manual_seed(seed + s)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(epochs):
            for at in torch.randperm(len(y)).split(50):
                adam.zero_grad()
                F.cross_entropy(model(x[at]), y[at]).backward()
                adam.step()

        def items(x: Tensor = x, y: Tensor = y, model: nn.Module = model) -> Tensor:
            return F.cross_entropy(model(x), y, reduction="none")

        landscape = Landscape(items, model)
        losses = ball(landscape, RADIUS, 10, seed=seed + s)
        whole = settling(losses, 0.0, orders=300, seed=seed)
        tolerance = float(whole.change[900:1100].mean())  # of which about 1000 samples are enough
        found, told = (settling(part, tolerance, orders=300, seed=seed) for part in (losses, losses[:, :FEW]))
        smooth = float(whole.samples[900:1100].mean())
        rows.append(
            {
                "exponent": whole.rate,
                "log10 of foretold over true size": math.log10(told.enough / smooth),
                "size found with all samples": found.enough,
            }
        )
        if progress is not None:
            progress(s + 1, count)
    seen = figures({"mlp": rows}, data.ratio, against="mlp")
    rate, off = seen["mlp: exponent"], seen["mlp: log10 of foretold over true size"]
    near = math.log10(1.25)
    parts = {
        "about 1/k": "shown" if rate["low"] > 0.9 and rate["high"] < 1.1 else "inconclusive",
        "foretold": "shown" if -near < off["low"] and off["high"] < near else "inconclusive",
    }
    if rate["high"] < 0.9 or rate["low"] > 1.1:
        parts["about 1/k"] = "not shown"
    if off["high"] < -near or off["low"] > near:
        parts["foretold"] = "not shown"
    verdict = together(*parts.values())
    return {
        "claim": CLAIM,
        "rows": ["R125"],
        "methods": [],
        "versions": evidence.versions(["lossary.measure.landscape.samples.settling"]),
        "setting": {
            "data": "digits",
            "model": "MLP, 32 hidden, ReLU",
            "epochs": epochs,
            "points": f"10, normal steps of {RADIUS} from the end of training",
            "tolerance": "the mean change at about 1000 samples",
            "intervals": "95%, Nadeau-Bengio over splits",
        },
        "seeds": count,
        "seed": seed,
        "figures": seen,
        "parts": dict.fromkeys(parts, "inconclusive") if quick else parts,
        "verdict": "inconclusive" if quick else verdict,
    }
