"""Lossary: the training objective as a first-class object.

>>> import torch, lossary
>>> criterion = lossary.focal(gamma=2.0)
>>> loss = criterion(torch.randn(8, 3), torch.randint(3, (8,)))

Every formula is a name here (`lossary.focal`), the other rooms are modules (`lossary.weigh.effective_number`,
`lossary.reduce.cvar`, `lossary.track.aum`, `lossary.memory.Learned`). Nothing is imported before it is used: the
catalogue can be searched without waiting for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lossary.errors import LossaryError

if TYPE_CHECKING:
    from lossary import (
        balance,
        expression,
        folds,
        formulas,
        icon,
        laws,
        measure,
        memory,
        reduce,
        repair,
        space,
        step,
        track,
        views,
        weigh,
    )
    from lossary.balance.named import terms
    from lossary.expression import parse
    from lossary.formulas.auc import *  # noqa: F403
    from lossary.formulas.calibration import *  # noqa: F403
    from lossary.formulas.classes import *  # noqa: F403
    from lossary.formulas.contrastive import *  # noqa: F403
    from lossary.formulas.families import *  # noqa: F403
    from lossary.formulas.labels import *  # noqa: F403
    from lossary.formulas.longtail import *  # noqa: F403
    from lossary.formulas.margins import *  # noqa: F403
    from lossary.formulas.metric import *  # noqa: F403
    from lossary.formulas.multilabel import *  # noqa: F403
    from lossary.formulas.neighbours import *  # noqa: F403
    from lossary.formulas.pixels import *  # noqa: F403
    from lossary.formulas.residual import *  # noqa: F403
    from lossary.methods import REGISTRY, find, method
    from lossary.objective import Objective
    from lossary.step.ascent import asam, awp, friendly_sam, gsam, random_perturbation, rwp, sam
    from lossary.workbench.compare import compare

__version__ = "0.1.0"

_ROOMS = (
    "balance", "catalogue", "data", "errors", "expression", "folds", "formulas", "heads",
    "icon", "laws", "measure", "memory", "reduce", "repair", "space", "step", "track", "views", "weigh",
)  # fmt: skip
_HOMES = {
    "REGISTRY": "methods",
    "find": "methods",
    "method": "methods",
    "Objective": "objective",
    "parse": "expression",
    "compare": "workbench.compare",
    "sam": "step.ascent",
    "asam": "step.ascent",
    "gsam": "step.ascent",
    "awp": "step.ascent",
    "random_perturbation": "step.ascent",
    "rwp": "step.ascent",
    "friendly_sam": "step.ascent",
    "terms": "balance.named",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: a room, one of the few functions of the core, or a formula by its key."""
    if name.startswith("__"):
        raise AttributeError(name)
    value: Any = None
    if name in _ROOMS:
        return import_module(f"lossary.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"lossary.{_HOMES[name]}"), name)
    else:
        import_module("lossary.formulas")
        methods = import_module("lossary.methods")
        value = methods.REGISTRY.get(name) or methods.alias(name)
        if value is None or value.role != "formula":
            raise AttributeError(f"module 'lossary' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    import_module("lossary.formulas")
    methods = import_module("lossary.methods")
    keys = [*(k for k, m in methods.REGISTRY.items() if m.role == "formula"), *methods.aliases("formula")]
    return sorted({*globals(), *_ROOMS, *_HOMES, *keys})


__all__ = [
    "REGISTRY",
    "LossaryError",
    "Objective",
    "__version__",
    "compare",
    "expression",
    "find",
    "formulas",
    "laws",
    "memory",
    "method",
    "parse",
    "reduce",
    "track",
    "views",
    "weigh",
]
