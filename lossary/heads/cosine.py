"""Cosine logits: class centres and embeddings of length 1, as the margin losses want them (`lossary.arcface`, ...).

`CosineHead` holds the centres: one or several a class (Sub-center ArcFace, SoftTriple), learned or fixed (the codes of
OrthoHash), all of them or a sample in each step (Partial FC). `batch_negatives` makes the pairs of a batch one more
logit (UNPG). The length of embeddings is lost in a cosine; `lossary.memory.FeatureNorms` reads it before (AdaFace).
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from lossary.errors import DomainError, ShapeError
from lossary.memory import size_of
from lossary.views.base import lifted


def unit(x: Tensor) -> Tensor:
    """x [..., d] at length 1, in float32 or better; a row of zeros stays one, and its gradient is finite."""
    x = lifted(x)
    length = x.norm(dim=-1, keepdim=True)
    return x / length.where(length > 0, 1)


class CosineHead(nn.Module):
    """embeddings [..., d] -> cosines [..., C] to the class centres, in float32 or better; in the place of `nn.Linear`.

    sub_centers: centres a class. The nearest counts (Deng et al., ECCV 2020), or, at softness above 0, their mean
    weighed by the softmax of cos / softness (SoftTriple, Qian et al., ICCV 2019).

    sample: with very many classes, how many take part in a step of training: `head(x, target)` gives the cosines [B, S]
    to the batch's own classes and to others drawn at random, and the targets as numbers among these S (Partial FC, An
    et al., arXiv 2010.05222). S is `sample`, or the batch size if that is more. In eval mode, and without `sample`, it
    gives all cosines and the target as it is. Negative targets (ignored ones) stay. Centres that are not drawn have the
    gradient 0: an optimizer with momentum or weight decay still moves them.

    `weight` [C, sub_centers, d] holds the centres, of any length.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        sub_centers: int = 1,
        generator: torch.Generator | None = None,
        *,
        softness: float = 0.0,
        sample: int | None = None,
    ) -> None:
        super().__init__()
        self.features, self.classes = size_of("features", features), size_of("classes", classes)
        self.sub_centers = size_of("sub_centers", sub_centers)
        self.sample = None if sample is None else min(size_of("sample", sample), classes)
        if not softness >= 0:
            raise DomainError("softness is out of range", needed="0 or more", found=repr(softness))
        self.softness = float(softness)
        self.weight = nn.Parameter(torch.randn(classes, sub_centers, features, generator=generator))

    @classmethod
    def fixed(cls, centres: Tensor) -> CosineHead:
        """A head with given centres [C, d] that are not trained: `CosineHead.fixed(hash_codes(10, 64))`."""
        head = cls(centres.shape[1], centres.shape[0])
        head.weight = nn.Parameter(lifted(centres.detach())[:, None].clone(), requires_grad=False)
        return head

    def cosines(self, x: Tensor, weight: Tensor) -> Tensor:
        """Cosines [..., S] of embeddings [..., d] to the classes with centres [S, K, d]."""
        if x.shape[-1] != self.features:
            raise ShapeError("embeddings do not fit the head", needed=f"[..., {self.features}]", found=f"{[*x.shape]}")
        with torch.autocast(x.device.type, enabled=False):  # half precision knows an angle near 0 to 2 degrees only
            each = (unit(x) @ unit(weight).flatten(0, 1).mT).unflatten(-1, weight.shape[:2])
        if self.sub_centers == 1:
            return each.squeeze(-1)
        if not self.softness:
            return each.amax(-1)
        return ((each / self.softness).softmax(-1) * each).sum(-1)

    @overload
    def forward(self, x: Tensor) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, target: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, x: Tensor, target: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if target is None:
            return self.cosines(x, self.weight)
        if self.sample is None or not self.training:
            return self.cosines(x, self.weight), target
        real = target >= 0
        score = torch.rand(self.classes, generator=generator, device=None if generator is None else generator.device)
        score = score.to(target.device).index_fill(0, target.where(real, target.clamp(min=0).amax()).flatten(), 2.0)
        drawn = score.topk(min(self.classes, max(self.sample, target.numel()))).indices.sort().values
        number = torch.searchsorted(drawn, target.clamp(min=0).contiguous())
        return self.cosines(x, self.weight[drawn]), number.where(real, target)

    def spread(self) -> Tensor:
        """SoftTriple's regulariser: the mean distance, at length 1, between centres of one class, over 2. A scalar.

        Added to the loss (the authors: times 0.2), it merges centres that a class does not need. 0 for one centre.
        """
        w, k = unit(self.weight), self.sub_centers
        pair = torch.triu_indices(k, k, 1, device=w.device)
        cosine = (w @ w.mT)[:, pair[0], pair[1]]
        return (2 + 1e-5 - 2 * cosine).sqrt().sum() / (self.classes * max(1, k * (k - 1)))

    def extra_repr(self) -> str:
        more = f", sub_centers={self.sub_centers}" if self.sub_centers > 1 else ""
        more += f", softness={self.softness:g}" if self.softness else ""
        return f"{self.features}, {self.classes}{more}" + (f", sample={self.sample}" if self.sample else "")


def batch_negatives(embedding: Tensor, target: Tensor, *, scale: float = 64.0, whisker: float = 1.5) -> Tensor:
    """UNPG: the cosines of all pairs of a batch with different labels, as one more column of cosines, [B, 1].

    `arcface(scale=s)(torch.cat([cosines, batch_negatives(x, y, scale=s)], 1), y)` has every such pair in every item's
    softmax, as Jung et al. (2022, arXiv 2203.11593) have it: one column, log-sum-exp of the scaled cosines over scale,
    stands for all of them, so memory is B^2, not B^3. Pairs outside [q1 - whisker iqr, q3 + whisker iqr], q1 and q3 the
    quartiles of all pairs and iqr their distance, are taken for noise and left out. embedding: [B, d], target: [B];
    `scale` must be that of the loss. Without any pair the column is so low that it does not count.
    """
    if embedding.ndim != 2 or target.shape != embedding.shape[:1]:
        found = f"{list(embedding.shape)} and {list(target.shape)}"
        raise ShapeError("embeddings and labels do not fit", needed="[B, d] and [B]", found=found)
    with torch.autocast(embedding.device.type, enabled=False):
        x = unit(embedding)
        i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
        s = (x @ x.mT)[i, j]
    none = s.new_full((1,), -1e4)  # below every cosine, so that there is always something to sum
    s, other = torch.cat([s, none]), torch.cat([target[i] != target[j], target.new_zeros(1, dtype=torch.bool)])
    ranked, n = s.detach().masked_fill(~other, torch.inf).sort().values, other.sum()
    low, high = ranked[n // 4], ranked[3 * n // 4]
    reach = whisker * (high - low)
    kept = other & (s >= low - reach) & (s <= high + reach)
    return (scale * s.masked_fill(~kept, -1e4)).logsumexp(0).div(scale).expand(len(x), 1)


def hash_codes(classes: int, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Binary target codes of -1 and 1, one a class, [classes, bits]: for `CosineHead.fixed` and `lossary.orthohash`.

    Orthogonal ones, rows of a Hadamard matrix with columns flipped at random, where bits is a power of 2 and at least
    the number of classes; else different random ones, orthogonal in expectation, as the authors' code draws them. Put
    `nn.BatchNorm1d(bits, affine=False)` before the head to balance the bits; the code of x is the sign of its output.
    """
    classes, bits = size_of("classes", classes), size_of("bits", bits)
    if classes > 2**bits:
        raise DomainError(
            "there are not enough codes", needed=f"at least {(classes - 1).bit_length()} bits", found=str(bits)
        )
    if bits & (bits - 1) == 0 and classes <= bits:
        rows = torch.ones(1, 1)
        while len(rows) < bits:
            rows = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), rows)
        flip = 2 * torch.randint(2, (bits,), generator=generator) - 1
        return rows[torch.randperm(bits, generator=generator)[:classes]] * flip
    made = torch.zeros(0, bits)
    while len(made) < classes:  # redrawn until all are different
        more = 2.0 * torch.randint(2, (classes, bits), generator=generator) - 1
        made = torch.cat([made, more]).unique(dim=0)
    return made[torch.randperm(len(made), generator=generator)[:classes]]


__all__ = ["CosineHead", "batch_negatives", "hash_codes", "unit"]
