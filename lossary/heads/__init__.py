"""Heads: output layers that belong to an objective, because how they score classes is half of it.

`HarmonicHead` scores by distance to a class centre; `SphericalOutput` takes the exact step of a spherical loss at a
cost that does not depend on the number of classes. `LegendreLink` and `CanonicalLink` learn the map from logits to
probabilities, and with it a proper loss. `CosineHead` scores by the angle to class centres, for losses with a margin in
the angle. `Router` sends tokens to experts and balances them without a loss. `lossary.heads.simplex` has maps to
probabilities that can be exactly 0. Big layers under any other objective: `lossary.folds`.
"""

from lossary.heads.cosine import CosineHead, batch_negatives, hash_codes
from lossary.heads.harmonic import HarmonicHead
from lossary.heads.legendre import CanonicalLink, LegendreLink
from lossary.heads.router import Router, Routes, balance_loss, max_violation
from lossary.heads.spherical import SphericalOutput

__all__ = [
    "CanonicalLink",
    "CosineHead",
    "HarmonicHead",
    "LegendreLink",
    "Router",
    "Routes",
    "SphericalOutput",
    "balance_loss",
    "batch_negatives",
    "hash_codes",
    "max_violation",
]
