"""Ascent rules: from parameters and their gradients to the displacement at which the second gradient is taken.

A rule is pure: `rule(params, grads, *, rho, ...) -> displacements`, three lists of tensors of the same shapes. Norms
and products are over all tensors together, in single precision or better. `rho` is a number, or one for each tensor.
The passes, their scaling and their restoration are in `lossary.step.ascent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
Radius = float | Sequence[float]

EPSILON = 1e-12  # added to the norm, as in the usual implementations: no gradient gives no displacement


def sam(params: Tensors, grads: Tensors, *, rho: Radius) -> list[Tensor]:
    """rho g / |g|: the worst point of a ball, to first order (Foret et al., ICLR 2021, eq. 2 with p = 2)."""
    return _scaled(grads, rho, _length(grads))


def asam(params: Tensors, grads: Tensors, *, rho: Radius, eta: float) -> list[Tensor]:
    """rho T^2 g / |T g| with T = |w| + eta: a ball that does not change when weights are rescaled.

    Kwon et al., ICML 2021. T is the same for every parameter; the authors' code has T = 1 (not |w| + eta) where a
    parameter's name lacks "weight". eta = 0 is the adaptive form of davda54/sam.
    """
    t = torch._foreach_add(torch._foreach_abs(list(params)), eta)
    pulled = torch._foreach_mul(t, list(grads))
    return _scaled(torch._foreach_mul(t, pulled), rho, _length(pulled))


def friendly(params: Tensors, grads: Tensors, *, rho: Radius, sigma: float, means: Tensors) -> list[Tensor]:
    """rho d / |d| with d = g - sigma m, m the running mean of gradients: the batch's noise (Li et al., CVPR 2024)."""
    noise = torch._foreach_add(list(grads), list(means), alpha=-sigma)
    return _scaled(noise, rho, _length(noise))


def layerwise(params: Tensors, grads: Tensors, *, rho: Radius) -> list[Tensor]:
    """rho |w_l| g_l / |g_l|, each layer l by itself (Wu et al., NeurIPS 2020).

    Tensors of fewer than two axes (biases, scales of norms) stay where they are, as in the authors' code.
    """
    sizes, lengths = (torch._foreach_norm(list(x), 2, dtype=_wide(x)) for x in (params, grads))
    parts = [
        g * (size / (length + EPSILON)).to(g) if g.ndim > 1 else torch.zeros_like(g)
        for g, size, length in zip(grads, sizes, lengths, strict=True)
    ]
    return _times(parts, rho)


def together(params: Tensors, grads: Tensors, *, rho: Radius) -> list[Tensor]:
    """rho |w| g / |g|, norms over all tensors of two axes and more; none for the others (Yu et al., IJCAI 2022)."""
    large = [g if g.ndim > 1 else torch.zeros_like(g) for g in grads]
    size = _length([p if p.ndim > 1 else torch.zeros_like(p) for p in params])
    return [g * size.to(g) for g in _scaled(large, rho, _length(large))]


def random(params: Tensors, grads: Tensors, *, rho: Radius, generator: torch.Generator) -> list[Tensor]:
    """Gaussian noise whose standard deviation is rho times the norm of the filter (Li et al., arXiv 2211.11489).

    A filter is what one index of the first axis holds; a tensor of fewer than two axes is one filter.
    """
    drawn = []
    for p in params:
        size = torch.linalg.vector_norm(p, dim=tuple(range(1, p.ndim)) if p.ndim > 1 else None, keepdim=True)
        noise = torch.randn(p.shape, generator=generator, device=generator.device, dtype=p.dtype)
        drawn.append(noise.to(p.device) * size)
    return _times(drawn, rho)


def without_orthogonal(first: Tensors, second: Tensors, *, alpha: float) -> list[Tensor]:
    """g_p - alpha g_o, g_o the part of the first gradient orthogonal to the second, g_p (Zhuang et al., ICLR 2022).

    A step along -g_p lowers the loss at the displaced point; the part +alpha g_o leaves that loss alone to first order
    and raises the loss where the model is, so that the gap between the two closes.
    """
    wide = _wide(second)
    dot = sum(((f * s).sum(dtype=wide).to(second[0].device) for f, s in zip(first, second, strict=True)))
    square = sum((s * s).sum(dtype=wide).to(second[0].device) for s in second)
    share = dot / torch.as_tensor(square).clamp(min=torch.finfo(wide).tiny)
    return [s - alpha * (f - share.to(s) * s) for f, s in zip(first, second, strict=True)]


def _wide(tensors: Tensors) -> torch.dtype:
    return reduce(torch.promote_types, {t.dtype for t in tensors}, torch.float32)


def _length(tensors: Tensors) -> Tensor:
    """The norm of all tensors as one vector, a scalar on the first one's device."""
    norms = torch._foreach_norm(list(tensors), 2, dtype=_wide(tensors))
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


def _scaled(tensors: Tensors, rho: Radius, length: Tensor) -> list[Tensor]:
    """rho tensors / length."""
    factor = (length + EPSILON).reciprocal()
    if len({t.device for t in tensors}) == 1:
        unit = torch._foreach_mul(list(tensors), factor)
    else:
        unit = tuple(t * factor.to(t.device) for t in tensors)
    return _times(unit, rho)


def _times(tensors: Tensors, rho: Radius) -> list[Tensor]:
    """rho tensors."""
    return list(torch._foreach_mul(list(tensors), rho if isinstance(rho, int | float) else list(rho)))
