"""Steps: `lossary.step(model, optimizer, ...)`, and training algorithms that cannot be said as a loss of one batch.

Optimizers are in `lossary.step.optim`, schedules in `lossary.step.schedules`; each is imported when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lossary.step.adawac import AdaWAC
from lossary.step.ascent import Ascent, asam, awp, friendly_sam, gsam, random_perturbation, rwp, sam
from lossary.step.cached import cached
from lossary.step.engine import Step
from lossary.step.gsr import GSR, gsr
from lossary.step.prospect import Prospect, smoothed_risk, spectrum, worst_weights

if TYPE_CHECKING:
    from lossary.step import optim, schedules

__all__ = [
    "GSR",
    "AdaWAC",
    "Ascent",
    "Prospect",
    "Step",
    "asam",
    "awp",
    "cached",
    "friendly_sam",
    "gsam",
    "gsr",
    "optim",
    "random_perturbation",
    "rwp",
    "sam",
    "schedules",
    "smoothed_risk",
    "spectrum",
    "worst_weights",
]


def __getattr__(name: str) -> Any:
    if name in ("optim", "schedules"):
        return import_module(f"lossary.step.{name}")
    raise AttributeError(f"module 'lossary.step' has no attribute {name!r}")


class _Room(ModuleType):
    """The room can be called: `lossary.step(model, optimizer, ...)` makes a `Step`."""

    def __call__(self, *args: Any, **given: Any) -> Step:
        return Step(*args, **given)


sys.modules[__name__].__class__ = _Room
