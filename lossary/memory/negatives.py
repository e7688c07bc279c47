"""Which mined negatives have become too easy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossary.errors import DomainError
from lossary.memory.base import check_ids, size_of


class HardNegatives(nn.Module):
    """When a query's mined negatives are no longer hard: their score has fallen well below what it was when they came.

    size: queries in the data set. `due(ids, score)`: bool [B], True where new negatives should be mined. score [B] is
    the mean cosine of a query to its own negatives now; the first one after a query's negatives changed is remembered.
    They are due when factor * score < that first score and |score| < ceiling. `renew(ids)` says that these queries have
    new negatives. Ask every hundred steps or so. The losses around it need nothing new: the negatives are `keys`.

    Conan-embedding (Li, Tang, Chen and Chen, 2024, arXiv 2408.15710), dynamic hard negative mining.
    """

    def __init__(self, size: int, *, factor: float = 1.15, ceiling: float = 0.8) -> None:
        super().__init__()
        if not (factor >= 1 and ceiling > 0):
            raise DomainError(
                "the rule never fires, or at once",
                needed="factor of at least 1, ceiling above 0",
                found=f"{factor, ceiling}",
            )
        self.size, self.factor, self.ceiling = size_of("size", size), float(factor), float(ceiling)
        self.first: Tensor
        self.rounds: Tensor
        self.register_buffer("first", torch.full((self.size,), torch.nan))
        self.register_buffer("rounds", torch.zeros(self.size, dtype=torch.long))

    @torch.no_grad()
    def due(self, ids: Tensor, score: Tensor) -> Tensor:
        """Which queries [B] should get new negatives. In eval mode no first score is remembered."""
        check_ids(ids, score.shape, self.size)
        now = score.detach().to(self.first)
        first = self.first[ids].where(~self.first[ids].isnan(), now)
        if self.training:
            self.first[ids] = first
        return (self.factor * now < first) & (now.abs() < self.ceiling)

    @torch.no_grad()
    def renew(self, ids: Tensor) -> None:
        """These queries [B] have new negatives: forget their first score, count one round more."""
        check_ids(ids, ids.shape, self.size)
        who = ids.unique()
        self.first[who] = torch.nan
        self.rounds[who] += 1
