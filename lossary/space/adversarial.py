"""Smooth adversarial comp-sum losses: a comp-sum loss on clean inputs, and how far an attack can bend the margins.

Mao, Mohri & Zhong 2023 (arXiv:2304.07288). With margins D(x) = (f_y(x) - f_k(x))_k the loss of an item is
Phi_tau(sum_{k != y} exp(-D_k(x) / rho)) + nu sup_{|x' - x| <= radius} |D(x') - D(x)|_2. The first term is `comp_sum` of
logits / rho; for the supremum stands what a projected gradient attack finds.

Why this form: let a margin cost 1 - D / rho, cut to [0, 1], and let the adversarial comp-sum loss be the largest
Phi_tau(sum_k cost of D_k(x')) in the ball. Its parts have slopes of at most 1 (Phi_tau) and 1 / rho, the cost is below
exp(-D / rho), and a sum of C - 1 changes is at most sqrt(C - 1) times their length: so from nu = sqrt(C - 1) / rho on,
the smooth loss is never below the adversarial one. This bound is derived here and checked by the suite, not quoted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossary.errors import DomainError, ShapeError
from lossary.formulas.families import comp_sum


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """f_y - f_k, [B, C]; 0 at y."""
    return logits.gather(-1, target[..., None]) - logits


def smooth_adversarial(
    clean: Tensor, attacked: Tensor, target: Tensor, *, tau: float = 1.0, rho: float = 1.0, nu: float = 1.0
) -> Tensor:
    """The loss of each item, [B], from the logits [B, C] of clean and of attacked inputs."""
    if clean.shape != attacked.shape:
        raise ShapeError(
            "clean and attacked logits differ", needed=f"{list(clean.shape)}", found=f"{list(attacked.shape)}"
        )
    if not (rho > 0 and nu >= 0):
        raise DomainError("rho must be above 0 and nu at least 0", found=f"rho={rho!r}, nu={nu!r}")
    bend = torch.linalg.vector_norm(margins(attacked, target) - margins(clean, target), dim=-1)
    return comp_sum(tau=tau).items(clean / rho, target).loss + nu * bend.to(clean.dtype)


def attack(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    radius: float,
    *,
    steps: int = 10,
    norm: str = "inf",
    worst: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    low: float = -float("inf"),
    high: float = float("inf"),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs [B, ...] within `radius` of x (norm "inf" or "2") where |D(x') - D(x)| is large, by projected ascent.

    worst: something else to raise, (attacked logits, clean logits, target) -> [B]. low, high: the range of inputs.
    Starts at a random point; steps of 2.5 radius / steps. The model's own gradients are not touched.
    """
    if norm not in ("inf", "2"):
        raise DomainError("unknown norm", needed="'inf' or '2'", found=repr(norm))
    raising = worst or (lambda a, c, y: (margins(a, y) - margins(c, y)).square().sum(-1))
    with torch.no_grad():
        clean = model(x)
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) * 2 - 1
        moved = (x + _within(noise * radius, radius, norm)).clamp(low, high)
    for _ in range(steps):
        with torch.enable_grad():
            moved.requires_grad_()
            (grad,) = torch.autograd.grad(raising(model(moved), clean, target).sum(), moved)
        with torch.no_grad():
            step = grad.sign() if norm == "inf" else grad / _length(grad).clamp(min=1e-12)
            moved = (x + _within(moved + 2.5 * radius / steps * step - x, radius, norm)).clamp(low, high)
    return moved.detach()


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1).reshape(-1, *[1] * (x.ndim - 1))


def _within(shift: Tensor, radius: float, norm: str) -> Tensor:
    if norm == "inf":
        return shift.clamp(-radius, radius)
    return shift * (radius / _length(shift).clamp(min=radius))


__all__ = ["attack", "margins", "smooth_adversarial"]
