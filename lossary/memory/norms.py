"""The lengths of embeddings, as a measure of how good each input is."""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.errors import DomainError, MissingInput
from lossary.memory.base import Memory
from lossary.views.base import lifted


class FeatureNorms(Memory):
    """The quality of each embedding, from its length: `adaface(quality=norms)`, with `norms` a layer before the head.

    `cosines = head(norms(embedding))` passes embeddings [..., d] on as they are and notes (length - mean) / (std +
    0.001), times `concentration`, clipped to [-1, 1], without gradient; the objective reads that. Lengths are clipped
    to [0.001, 100]; mean and unbiased std are those of the stream: in training a batch takes part in its own statistics
    by `rate`. The objective stores them after its loss, so nothing moves in eval mode nor inside `frozen()`. valid:
    bool [...], rows that count. Kim, Jain and Liu, CVPR 2022 (arXiv 2204.00964), and their code.
    """

    def __init__(self, concentration: float = 0.333, rate: float = 0.01) -> None:
        super().__init__()
        if not concentration >= 0 or not 0 < rate <= 1:
            found = f"concentration={concentration!r}, rate={rate!r}"
            raise DomainError("norms are read wrongly", needed="concentration >= 0, rate in (0, 1]", found=found)
        self.concentration, self.rate = float(concentration), float(rate)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(20.0))  # where the authors start
        self.register_buffer("std", torch.tensor(100.0))
        self._next: tuple[Tensor, Tensor] | None = None
        self._quality: Tensor | None = None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            length = lifted(x).norm(dim=-1).clamp(0.001, 100).to(self.mean)
            kept = torch.ones_like(length) if valid is None else valid.to(length)
            length = torch.where(kept > 0, length, self.mean)
            count = kept.sum()
            mean = (kept * length).sum() / count.clamp(min=1)
            std = ((kept * (length - mean).square()).sum() / (count - 1).clamp(min=1)).sqrt()
            rate = self.rate * (count > 1).to(length) if self.training else torch.zeros_like(count)
            self._next = self.mean.lerp(mean, rate), self.std.lerp(std, rate)
            self._quality = self.concentration * (length - self._next[0]) / (self._next[1] + 1e-3)
        return x

    def value(self) -> Tensor:
        """The quality of the items of the last batch, [...], in [-1, 1]."""
        if self._quality is None:
            raise MissingInput("no embeddings were seen", try_="cosines = head(norms(embedding)), before the loss")
        return self._quality.clamp(-1, 1)

    def update(self, view: object) -> None:
        """Keep the statistics of the last batch."""
        if self.training and self._next is not None:
            self.mean.copy_(self._next[0])
            self.std.copy_(self._next[1])
