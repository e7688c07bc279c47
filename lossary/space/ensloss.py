"""EnsLoss: every batch is trained on another random, convex and calibrated loss of the margin.

Gradient descent sees a loss of the margin s = (2 y - 1) f only through its slopes on the batch. Any slopes that are
negative and rise with the margin belong to a convex calibrated loss; if they fade like 1/s beyond 1, to one bounded as
it should be. So slopes are drawn, sorted and handed out. Ben Dai 2024 (arXiv:2409.00908), binary classification.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossary.errors import DomainError, ShapeError
from lossary.memory import size_of
from lossary.views.base import lifted


def random_slopes(margin: Tensor, lam: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Slopes of a random calibrated loss at the margins [..., B], each row its own loss: in [-1, 0), rising with s.

    Normal numbers through the inverse Box-Cox transform with `lam` (0: the exponential), cut at 1, sorted by margin,
    divided by the margin where that is above 1.
    """
    draw = torch.randn(margin.shape, generator=generator, dtype=margin.dtype, device=margin.device)
    lam = torch.as_tensor(lam, dtype=margin.dtype, device=margin.device)
    flat = lam.abs() < 1e-6
    safe = lam.where(~flat, 1)
    base = (1 + safe * draw).clamp(min=0)
    size = torch.where(flat, draw.exp(), base ** (1 / safe)).clamp(max=1)
    ranked = (size.sort(-1, descending=True).values).gather(-1, margin.argsort(-1).argsort(-1))
    return -(ranked / margin.clamp(min=1) + 1e-6)  # never exactly flat: a loss is calibrated if its slope at 0 is not


class EnsLoss(nn.Module):
    """criterion(scores, target): scores [..., B] of the positive class (0 the border), targets 0 or 1. A scalar.

    Its gradient is that of the drawn loss; its value is only the product of slopes and margins, nothing to watch.
    Leading axes are models trained side by side, summed, each with its own losses. period: after how many batches in
    training mode `lam` is drawn anew from (-1, 1); 0 keeps the given one. Saving the generator is the caller's part.
    """

    lam: Tensor
    seen: Tensor

    def __init__(self, period: int = 10, lam: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not -1 <= lam <= 1:
            raise DomainError("lam is out of range", needed="a number in [-1, 1]", found=repr(lam))
        self.period = period if period == 0 else size_of("period", period)
        self.generator = generator
        self.register_buffer("lam", torch.tensor(float(lam)))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        if scores.shape != target.shape:
            needed, found = f"targets of shape {list(scores.shape)}", f"{list(target.shape)}"
            raise ShapeError("targets do not fit the scores", needed=needed, found=found, try_="scores.squeeze(-1)")
        y = target.to(lifted(scores).dtype)
        if y.numel() and not bool(((y == 0) | (y == 1)).all()):
            raise DomainError("targets must be 0 or 1", found=f"{y.min().item():g} to {y.max().item():g}")
        margin = (2 * y - 1) * lifted(scores)
        if self.training:
            if self.period and int(self.seen) % self.period == 0 and int(self.seen):
                draw = torch.rand((), generator=self.generator, device=margin.device)
                self.lam.copy_(2 * draw - 1)
            self.seen += 1
        slopes = random_slopes(margin.detach(), self.lam, self.generator)
        return (slopes * margin).sum() / max(1, margin.shape[-1])


__all__ = ["EnsLoss", "random_slopes"]
