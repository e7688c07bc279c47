"""Contrastive losses. View `Pairs`: a row is an item, its similarities to the columns [r, M] -> [r]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.methods import method
from lossary.views import Pairs


@method("supcon", Pairs)
def supcon(v: Pairs, *, tau: float = 0.1) -> Tensor:
    """L_out: minus the mean over positives of their log-softmax among all others. One positive: InfoNCE."""
    return v.lse(v.sim / tau) - v.mean(v.sim, v.pos) / tau


@method("supcon_in", Pairs)
def supcon_in(v: Pairs, *, tau: float = 0.1) -> Tensor:
    """L_in: minus the log of the mean over positives of their softmax among all others."""
    s = v.sim / tau
    return v.lse(s) - v.lse(s, v.pos) + v.positives.clamp(min=1).log()


@method("clip", Pairs)
def clip(v: Pairs, *, tau: float = 0.07) -> Tensor:
    """InfoNCE in both directions, the mean of rows against columns and columns against rows."""
    return (supcon.fn(v, tau=tau) + supcon.fn(v.mirror, tau=tau)) / 2


@method("siglip", Pairs)
def siglip(v: Pairs, *, scale: float = 10.0, bias: float = -10.0) -> Tensor:
    """Every pair by itself: the logistic loss of belonging together, summed over the columns."""
    z = scale * v.sim + bias
    return v.total(F.softplus(-z), v.pos) + v.total(F.softplus(z), v.neg)


@method("decoupled", Pairs)
def decoupled(v: Pairs, *, tau: float = 0.1) -> Tensor:
    """InfoNCE without the positive among the negatives, so that an easy row keeps its gradient. No negative: 0."""
    s = v.sim / tau
    return (v.lse(s, v.neg) - v.mean(s, v.pos)).where(v.negatives > 0, 0)


@method("hard_contrastive", Pairs)
def hard_contrastive(v: Pairs, *, tau: float = 0.3, share: float = 0.1) -> Tensor:
    """`supcon` in which only a share of a row's negatives count, the nearest ones (at least one, and ties)."""
    s = v.sim / tau
    ranked = s.detach().masked_fill(~v.neg, -torch.inf).sort(-1, descending=True).values
    last = (share * v.neg.sum(-1, keepdim=True) - 1e-6).ceil().long().clamp(min=1) - 1  # 0.07 * 100 is above 7
    near = v.neg & (s.detach() >= ranked.gather(-1, last))
    return v.lse(s, v.pos | near) - v.mean(s, v.pos)


@method("ccsl", Pairs)
def ccsl(v: Pairs, *, threshold_pos: float = 0.8, beta: float = 0.1) -> Tensor:
    """Squared distance to the own target, and beta times that to all others that are already near."""
    s, apart = v.sim.detach(), 2 - 2 * v.sim
    return v.total(apart, v.pos) + beta * v.total(apart, v.neg & (s >= threshold_pos))


@method("cssl", Pairs)
def cssl(v: Pairs, *, threshold_pos: float = 0.8, threshold_neg: float = 0.2, beta: float = 0.1) -> Tensor:
    """Logistic loss of the cosine with the own target, and beta times that of all others: near are on, far are off."""
    s, missed = v.sim.detach(), F.softplus(-v.sim)
    rest = v.total(missed, v.neg & (s >= threshold_pos)) + v.total(F.softplus(v.sim), v.neg & (s <= threshold_neg))
    return v.total(missed, v.pos) + beta * rest
