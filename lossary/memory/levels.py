"""Running levels of the losses of labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossary.errors import DomainError, ShapeError
from lossary.memory.base import Memory, size_of


class RunningLoss(Memory):
    """Mean binary cross-entropy of each label in the stream, [labels]: an exponential mean that starts alike.

    Takes the place of `level`: `bce().weigh(weigh.inverse_level(level=RunningLoss(11)))` balances labels.
    A label without a valid slot in a batch keeps its level.
    """

    def __init__(self, labels: int, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise DomainError("momentum is out of range", needed="a number in [0, 1)", found=repr(momentum))
        self.labels, self.momentum = size_of("labels", labels), float(momentum)
        self.level: Tensor
        self.register_buffer("level", torch.full((self.labels,), 1 / self.labels))

    def value(self) -> Tensor:
        """What the weight sees."""
        return self.level

    def update(self, view: Any) -> None:
        if view.shape[-1] != self.labels:
            raise ShapeError("running losses of other labels", needed=f"{self.labels}", found=f"{view.shape[-1]}")
        loss = -view.mix(view.log_p, view.log_q)
        kept = torch.ones_like(loss) if view.valid is None else view.valid.to(loss)
        total, n = (x.flatten(0, -2).sum(0).to(self.level) for x in (loss * kept, kept))
        self.level.lerp_(total / n.clamp(min=1), (1 - self.momentum) * (n > 0).to(self.level))
