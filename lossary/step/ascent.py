"""Sharpness-aware training: the rules by which `lossary.step` displaces the weights before a second gradient.

Foret et al., ICLR 2021, arXiv 2010.01412 (SAM); Kwon et al., ICML 2021, arXiv 2102.11600 (ASAM); Zhuang et al., ICLR
2022, arXiv 2203.08065 (GSAM); Li et al., CVPR 2024, arXiv 2403.12350 (Friendly-SAM); Wu et al., NeurIPS 2020, arXiv
2004.05884 (AWP); Yu et al., IJCAI 2022, arXiv 2205.14826 (RWP); Li et al., arXiv 2211.11489 (random perturbation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lossary.errors import DomainError
from lossary.methods import listed
from lossary.step import rules


@dataclass(frozen=True)
class Ascent:
    """A rule with its hyperparameters: what `Step` is given.

    rule: (params, grads, *, rho, ...) -> displacements; pure. hyper: its arguments, rho among them. decay: of a running
    mean of the first gradients, which the rule then gets as `means`. seed: of a `generator` that the rule then gets,
    another one for each displacement and process. steps: gradients uphill, each taken where the ones
    before led; the rule gets their sum. combine: (first, second) -> the gradients that the optimizer gets;
    homogeneous, so that it may be given both under a gradient scale.
    """

    name: str
    rule: Callable[..., list[Tensor]]
    hyper: dict[str, float] = field(default_factory=dict)
    decay: float | None = None
    seed: int | None = None
    steps: int = 1
    combine: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]] | None = None

    @property
    def plain(self) -> bool:
        """Whether the rule alone says all: nothing is remembered, drawn or combined."""
        return self.decay is None and self.seed is None and self.combine is None and self.steps == 1


@listed("sam", "ascent")
def sam(rho: float = 0.05) -> Ascent:
    """SAM: rho g / |g|. rho: length of the displacement, in units of the parameters."""
    return Ascent("sam", rules.sam, {"rho": _at_least_0("rho", rho)})


@listed("asam", "ascent")
def asam(rho: float = 0.5, eta: float = 0.01) -> Ascent:
    """ASAM: rho T^2 g / |T g|, T = |w| + eta, so rho is relative to the size of each weight. See `rules.asam`."""
    return Ascent("asam", rules.asam, {"rho": _at_least_0("rho", rho), "eta": _at_least_0("eta", eta)})


@listed("gsam", "ascent")
def gsam(rho: float = 0.05, alpha: float = 0.2) -> Ascent:
    """GSAM: SAM's gradient less alpha times the part of the plain gradient orthogonal to it. alpha = 0 is SAM.

    The paper moves rho with the learning rate: set `group["rho"]` of the optimizer's groups as a scheduler would.
    """
    _at_least_0("alpha", alpha)

    def combine(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        return rules.without_orthogonal(first, second, alpha=alpha)

    return Ascent("gsam", rules.sam, {"rho": _at_least_0("rho", rho)}, combine=combine)


@listed("friendly_sam", "ascent")
def friendly_sam(rho: float = 0.05, sigma: float = 1.0, decay: float = 0.9) -> Ascent:
    """Friendly SAM: along g - sigma m with m <- decay m + (1 - decay) g, which starts at 0 and has seen g.

    The authors' code (nblt/F-SAM) starts m at the first gradient and subtracts it before it has seen g. At sigma = 1
    that is the same direction but for the start, as g - m_t = decay (g - m_(t-1)). The equations are those of a summary
    of the paper, which does not say where m starts.
    """
    if not 0 <= decay < 1:
        raise DomainError("decay is out of range", needed="a number of at least 0 and below 1", found=repr(decay))
    hyper = {"rho": _at_least_0("rho", rho), "sigma": _at_least_0("sigma", sigma)}
    return Ascent("friendly_sam", rules.friendly, hyper, decay=decay)


@listed("awp", "ascent")
def awp(rho: float = 0.01) -> Ascent:
    """Adversarial weight perturbation: rho |w_l| g_l / |g_l| for every layer l. See `rules.layerwise`.

    Its paper trains on adversarial inputs: make these before the step, so that both passes see the same ones.
    """
    return Ascent("awp", rules.layerwise, {"rho": _at_least_0("rho", rho)})


@listed("rwp", "ascent")
def rwp(rho: float = 0.01, steps: int = 10) -> Ascent:
    """Robust weight perturbation: rho |w| s / |s|, s the sum of some steps' gradients. See `rules.together`.

    To be used with a loss of its own that leaves out what is hard already, `step(closure, uphill=easy)`; where all is
    hard its gradient is 0, and nothing moves.
    """
    if not isinstance(steps, int) or steps < 1:
        raise DomainError("steps is out of range", needed="a whole number above 0", found=repr(steps))
    return Ascent("rwp", rules.together, {"rho": _at_least_0("rho", rho)}, steps=steps)


@listed("random_perturbation", "ascent")
def random_perturbation(rho: float = 0.01, alpha: float = 0.5, seed: int = 0) -> Ascent:
    """Random weight perturbation: alpha of the gradient under filter-wise noise, the rest the plain one.

    See `rules.random` for the noise. alpha: within [0, 1]; 1 is the noisy gradient alone. The paper takes the two
    gradients on different batches: a closure that draws a batch at each call does so.
    """
    if not 0 <= alpha <= 1:
        raise DomainError("alpha is out of range", needed="a number within [0, 1]", found=repr(alpha))

    def combine(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        return list(torch._foreach_lerp(list(first), list(second), alpha))

    return Ascent("random_perturbation", rules.random, {"rho": _at_least_0("rho", rho)}, seed=seed, combine=combine)


def _at_least_0(name: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise DomainError(f"{name} is out of range", needed="a number of at least 0", found=repr(value))
    return float(value)


__all__ = ["Ascent", "asam", "awp", "friendly_sam", "gsam", "random_perturbation", "rwp", "sam"]
