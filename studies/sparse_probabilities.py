"""Sparsemax and 1.5-entmax losses: as accurate as softmax, with most probabilities exactly 0.

Martins & Astudillo (ICML 2016, arXiv:1602.02068): the sparsemax loss classifies about as well as logistic regression
while its posteriors are sparse. Here: scikit-learn's digits, linear models and MLPs in one contest each, losses of one
generator at alpha = 1, 1.5 and 2, tuned over the same learning rates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import lossary
from lossary.heads import simplex
from lossary.workbench.models import factory
from lossary.workbench.trials import accuracy, contest, report, verdict

CLAIM = (
    "On digits, linear models trained with the sparsemax and the 1.5-entmax loss are at most one point less accurate "
    "than with cross-entropy, and give over half of the classes a probability of exactly 0."
)


def zeros(alpha: float) -> Callable[[NDArray, NDArray], float]:
    """Share of probabilities that are exactly 0 under alpha-entmax."""
    return lambda y, logits: float((simplex.entmax(torch.as_tensor(logits), alpha) == 0).double().mean())


def run(seed: int = 0, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Train linear models over 12 splits."""
    pixels, digit = load_digits(return_X_y=True)
    held = contest(
        pixels / 16,
        digit,
        {
            "cross_entropy": [lossary.cross_entropy()],
            "entmax15": [lossary.fenchel_young(alpha=1.5)],
            "sparsemax": [lossary.sparsemax()],
        },
        {"accuracy": accuracy, "zeros at 1.5": zeros(1.5), "zeros at 2": zeros(2.0)},
        tune="accuracy",
        splits=3 if quick else 12,
        epochs=3 if quick else 40,
        lrs=(3e-3, 1e-2, 3e-2),
        make=factory("linear", (64,), 10),
        seed=seed,
        progress=progress,
    )
    gains = {
        f"{k} above cross-entropy": held.gain("accuracy", k, over="cross_entropy") for k in ("entmax15", "sparsemax")
    }
    sparse = {"entmax15": held.mean("zeros at 1.5", "entmax15"), "sparsemax": held.mean("zeros at 2", "sparsemax")}
    found = verdict(*gains.values(), above=-0.01)
    if min(sparse.values()) <= 0.5:
        found = "not shown"
    setting = {"data": "digits", "model": "linear", "alpha": [1.0, 1.5, 2.0]}
    figures = {**gains, "share of zeros": sparse}
    return report(CLAIM, ["R429"], ["cross_entropy", "fenchel_young", "sparsemax"], setting, held, figures, found, seed)
