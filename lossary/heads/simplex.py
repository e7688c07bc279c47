"""Maps from scores to probabilities that can be exactly 0, their Jacobians, and products with them in O(K).

The losses that belong to them: `lossary.sparsemax`, `lossary.fenchel_young(alpha)`. Sources: Martins & Astudillo 2016
(arXiv:1602.02068) for sparsemax and its Jacobian; Peters, Niculae & Martins 2019 (arXiv:1905.05702) for alpha-entmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.errors import DomainError, ShapeError
from lossary.formulas.classes import log_tempered_softmax
from lossary.views.base import lifted


def sparsemax(scores: Tensor, dim: int = -1) -> Tensor:
    """The point of the simplex nearest to the scores, by one sort: O(K log K). Any shape; probabilities along `dim`.

    Differentiable (twice, too); half precision is computed in float32 and returned as such.
    """
    z = _floating(scores).movedim(dim, -1)
    z = z - z.detach().amax(-1, keepdim=True)
    ranked = z.sort(-1, descending=True).values
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    support = rank * ranked > ranked.cumsum(-1) - 1
    threshold = (torch.where(support, ranked, 0).sum(-1, keepdim=True) - 1) / support.to(z).sum(-1, keepdim=True)
    return (z - threshold).relu().movedim(-1, dim)


def entmax(scores: Tensor, alpha: float = 1.5, dim: int = -1) -> Tensor:
    """alpha-entmax, [(alpha - 1) z - threshold]_+^(1 / (alpha - 1)): softmax at 1, sparsemax at 2, sparse above 1."""
    if not 1 <= alpha <= 2:
        raise DomainError("alpha is out of range", needed="a number in [1, 2]", found=repr(alpha))
    if alpha == 2:
        return sparsemax(scores, dim)
    z = _floating(scores).movedim(dim, -1)
    return log_tempered_softmax(z, 2 - alpha).exp().movedim(-1, dim)


def jacobian(p: Tensor, alpha: float = 2.0) -> Tensor:
    """d p_i / d z_j at p = entmax(z, alpha), [..., K] -> [..., K, K]: diag(s) - s s^T / sum(s), s = p^(2 - alpha).

    s is 0 off the support; at alpha = 2 (sparsemax) it is 1 on it, at 1 (softmax) it is p. Symmetric, rows sum to 0.
    """
    s = _slopes(p, alpha)
    return s.diag_embed() - s[..., :, None] * s[..., None, :] / s.sum(-1)[..., None, None]


def jacobian_product(p: Tensor, vector: Tensor, alpha: float = 2.0) -> Tensor:
    """jacobian(p, alpha) @ vector without the matrix, O(K). Symmetric, so it is the backward pass too."""
    if vector.shape[-1:] != p.shape[-1:]:
        raise ShapeError("a vector does not fit", needed=f"[..., {p.shape[-1]}]", found=f"{list(vector.shape)}")
    s = _slopes(p, alpha)
    return s * (vector - (s * vector).sum(-1, keepdim=True) / s.sum(-1, keepdim=True))


def _slopes(p: Tensor, alpha: float) -> Tensor:
    on = p > 0
    return torch.where(on, p.where(on, 1) ** (2 - alpha), 0)


def _floating(scores: Tensor) -> Tensor:
    if not scores.is_floating_point():
        raise DomainError("scores must be floating point", found=str(scores.dtype))
    return lifted(scores)


__all__ = ["entmax", "jacobian", "jacobian_product", "sparsemax"]
