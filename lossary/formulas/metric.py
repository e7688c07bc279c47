"""Metric losses on pairs. View `Pairs`: a row is an item, the anchor of its pairs and triplets [r, M] -> [r].

Distances are Euclidean. `v.dist` and `v.dist2` are of the embeddings as they are, `chord` of embeddings of length 1,
where d^2 = 2 - 2 cos. What a paper averages over all pairs or triplets of a batch is averaged over those of each anchor
here, so that an anchor counts as much as any other; `active_triplets` gives the weights that undo this.

Two losses relate the positives' own negatives, which no row of similarities holds: `lifted_structure` and `angular` are
functions of the embeddings of a whole batch. So is `tcm_batch`, whose normalisers are counts over the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lossary.errors import DomainError, ShapeError
from lossary.methods import listed, method
from lossary.views import Pairs
from lossary.views.base import lifted
from lossary.views.pairs import unit


def chord(v: Pairs) -> Tensor:
    """Distances of embeddings of length 1, [r, M], at most 2; the gradient at 0 is 0."""
    squared = 2 - 2 * v.sim
    tiny = 4 * torch.finfo(squared.dtype).eps  # what rounding leaves of 0
    return squared.clamp(min=tiny).sqrt().where(squared > tiny, 0)


# --- pairs -----------------------------------------------------------------------------------------------------------
@method("contrastive", Pairs)
def contrastive(v: Pairs, *, margin: float = 1.0) -> Tensor:
    """Half squared distances of positives, half squared shortfalls of negatives from a margin; the mean over pairs."""
    return v.mean(torch.where(v.pos, v.dist2, (margin - v.dist).clamp(min=0).square()), v.any) / 2


@method("circle", Pairs)
def circle(v: Pairs, *, margin: float = 0.25, scale: float = 80.0) -> Tensor:
    """Pairs weighed by how far they are from where they should be; an item's positives against its negatives."""
    s = v.sim
    up = -scale * (1 + margin - s.detach()).clamp(min=0) * (s - (1 - margin))
    down = scale * (s.detach() + margin).clamp(min=0) * (s - margin)
    return F.softplus(v.lse(up, v.pos) + v.lse(down, v.neg))


@method("multi_similarity", Pairs)
def multi_similarity(
    v: Pairs, *, scale_pos: float = 2.0, scale_neg: float = 50.0, threshold: float = 0.5, slack: float = 0.1
) -> Tensor:
    """Soft maxima of cosines on the wrong side of a threshold, over pairs that are hard beside the other kind's."""
    s = v.sim
    near, far = v.largest(s, v.neg)[:, None], -v.largest(-s, v.pos)[:, None]
    hard_pos, hard_neg = v.pos & (s - slack < near), v.neg & (s + slack > far)
    pull = F.softplus(v.lse(scale_pos * (threshold - s), hard_pos)) / scale_pos
    return pull + F.softplus(v.lse(scale_neg * (s - threshold), hard_neg)) / scale_neg


@method("tcm", Pairs)
def tcm(
    v: Pairs, *, margin_pos: float = 0.9, margin_neg: float = 0.5, weight_pos: float = 1.0, weight_neg: float = 1.0
) -> Tensor:
    """Mean shortfall of positives' cosines and mean excess of negatives', beyond their margins."""
    low, high = v.pos & (v.sim <= margin_pos), v.neg & (v.sim >= margin_neg)
    return weight_pos * v.mean(margin_pos - v.sim, low) + weight_neg * v.mean(v.sim - margin_neg, high)


@method("n_pair", Pairs)
def n_pair(v: Pairs) -> Tensor:
    """Each positive's softmax against the negatives alone, of inner products; the mean over positives."""
    return v.mean(F.softplus(v.lse(v.dot, v.neg)[:, None] - v.dot), v.pos)


@method("generalized_lifted", Pairs)
def generalized_lifted(v: Pairs, *, margin: float = 1.0) -> Tensor:
    """Soft farthest positive against the soft nearest negative, hinged at a margin of distances."""
    return (v.lse(v.dist, v.pos) + v.lse(margin - v.dist, v.neg)).clamp(min=0)


@method("ranked_list", Pairs)
def ranked_list(
    v: Pairs,
    *,
    boundary: float = 1.2,
    margin: float = 0.4,
    weight_neg: float = 0.5,
    scale_pos: float = 0.0,
    scale_neg: float = 10.0,
) -> Tensor:
    """Positives within a ball, negatives beyond a wider one; those on the wrong side weighed by how far they are."""
    d = chord(v)
    late, early = d - (boundary - margin), boundary - d

    def weighed(excess: Tensor, over: Tensor, scale: float) -> Tensor:
        z = scale * excess
        share = (z - v.lse(z, over)[:, None]).masked_fill(~over, -math.inf).exp()
        return v.total(share * excess, over)

    pull = weighed(late, v.pos & (late > 0), scale_pos)
    return (1 - weight_neg) * pull + weight_neg * weighed(early, v.neg & (early > 0), scale_neg)


@method("fast_ap", Pairs)
def fast_ap(v: Pairs, *, bins: int = 10) -> Tensor:
    """One minus average precision, read from soft histograms of squared distances between unit embeddings."""
    z = (2 - 2 * v.sim) * (bins / 4)
    up_to_pos = up_to = precision = torch.zeros_like(v.positives)
    for edge in range(bins + 1):
        pulse = (1 - (z - edge).abs()).clamp(min=0)
        here = v.total(pulse, v.pos)
        up_to_pos, up_to = up_to_pos + here, up_to + v.total(pulse, v.any)
        precision = precision + here * up_to_pos / up_to.where(up_to > 0, 1)
    return 1 - precision / v.positives.where(v.positives > 0, 1)


# --- triplets --------------------------------------------------------------------------------------------------------
def hinges(v: Pairs, margin: float) -> tuple[Tensor, Tensor]:
    """The sum over triplets of max(0, margin + d_ap - d_an), [r], and how many of them are above 0, [r].

    Sorted together, a positive at margin + d_ap meets every negative that comes before it. So the sum is linear in the
    distances between two changes of order, with counts as coefficients: O(M log M) for a row, and autograd has only
    the last line to go through.
    """
    key = v.dist + margin * v.pos.to(v.dtype)
    above = torch.full_like(key, math.inf)
    at = torch.where(v.neg, key.nextafter(above), key).detach().argsort(-1)  # equal ones: the negative comes later
    on, off = (x.to(v.dtype) if v.pair_weight is None else x * v.pair_weight for x in (v.pos, v.neg))
    on, off = on.gather(-1, at), off.gather(-1, at)
    beaten, behind = on * off.cumsum(-1), on.flip(-1).cumsum(-1).flip(-1)
    pull = torch.zeros_like(on).scatter(-1, at, beaten - off * behind)
    return (pull * (key - key.detach().mean(-1, True))).sum(-1), beaten.sum(-1)


@method("triplet", Pairs)
def triplet(v: Pairs, *, margin: float = 0.2) -> Tensor:
    """The mean over all triplets of the anchor of max(0, margin + d_ap - d_an)."""
    total, count = hinges(v, margin)[0], v.positives * v.negatives
    return total / count.where(count > 0, 1)


@method("batch_all", Pairs)
def batch_all(v: Pairs, *, margin: float = 0.2) -> Tensor:
    """The mean of max(0, margin + d_ap - d_an) over those triplets of the anchor where it is above 0."""
    total, count = hinges(v, margin)
    return total / count.where(count > 0, 1)


@method("batch_hard", Pairs)
def batch_hard(v: Pairs, *, margin: float = 0.2) -> Tensor:
    """Triplets of the farthest positive and the nearest negative, hinged at a margin of distances."""
    return (margin + v.largest(v.dist, v.pos) + v.largest(-v.dist, v.neg)).clamp(min=0)


@method("batch_hard_soft", Pairs)
def batch_hard_soft(v: Pairs) -> Tensor:
    """Triplets of the farthest positive and the nearest negative under log(1 + exp(d_ap - d_an)): no margin."""
    return F.softplus(v.largest(v.dist, v.pos) + v.largest(-v.dist, v.neg))


# --- of a whole batch ------------------------------------------------------------------------------------------------
def active_triplets(embeddings: Tensor, target: Tensor, *, margin: float = 0.2) -> Tensor:
    """How many triplets of each row cost something, [N] or [N, views], without a gradient.

    `batch_all(margin).reduce(mean(by="weight"))(x, y, weight=active_triplets(x, y, margin=margin))` is the mean over
    the batch's non-zero triplets, as Hermans et al. take it.
    """
    with torch.no_grad():
        v = Pairs.build(embeddings, target)
        count = hinges(v, margin)[1]
    return (count if v.valid is None else count.where(v.valid.flatten(), 0)).reshape(v.shape)


def _of_labels(embeddings: Tensor, target: Tensor, what: str) -> Pairs:
    """The view of one set of embeddings; an error for a second tower."""
    if target.is_floating_point():
        needed = "embeddings [N, d] and integer labels [N]"
        raise ShapeError(f"{what} is of embeddings with labels", needed=needed, found=f"{target.dtype}")
    return Pairs.build(embeddings, target)


def tcm_batch(
    embeddings: Tensor,
    target: Tensor,
    *,
    margin_pos: float = 0.9,
    margin_neg: float = 0.5,
    weight_pos: float = 1.0,
    weight_neg: float = 1.0,
) -> Tensor:
    """The threshold-consistent margin regulariser as the paper has it: both means over all pairs of the batch."""
    v = _of_labels(embeddings, target, "tcm_batch")
    low, high = v.pos & (v.sim <= margin_pos), v.neg & (v.sim >= margin_neg)
    pull, push = (v.total(x, over).sum() for x, over in ((margin_pos - v.sim, low), (v.sim - margin_neg, high)))
    return weight_pos * pull / low.sum().clamp(min=1) + weight_neg * push / high.sum().clamp(min=1)


@listed("lifted_structure", "batch")
def lifted_structure(embeddings: Tensor, target: Tensor, *, margin: float = 1.0) -> Tensor:
    """The mean over positive pairs (i, j) of max(0, J)^2 / 2; J: d_ij + log of summed exp(margin - d) to negatives.

    Oh Song et al. (CVPR 2016), Eq. 4. Distances of the embeddings as they are. A scalar; 0 without positive pairs.
    """
    v = _of_labels(embeddings, target, "lifted_structure")
    near = v.lse(margin - v.dist, v.neg)
    cost = (torch.logaddexp(near[:, None], near) + v.dist).clamp(min=0).square() / 2
    return v.total(cost, v.pos).sum() / v.pos.sum().clamp(min=1)


@listed("angular", "batch")
def angular(embeddings: Tensor, target: Tensor, *, degrees: float = 45.0) -> Tensor:
    """The mean over positive pairs (a, p) of log(1 + sum_n exp f), of embeddings of length 1; a scalar.

    f = 4 tan^2(degrees) (a + p) . n - 2 (1 + tan^2(degrees)) a . p, over the negatives n of the pair: Wang et al. (ICCV
    2017, arXiv 1708.01682), Eq. 7 and 8. 0 without positive pairs. Time: positive pairs times rows.
    """
    if not 0 < degrees < 90:
        raise DomainError("an angle between 0 and 90 degrees is needed", found=str(degrees))
    v, steep = _of_labels(embeddings, target, "angular"), math.tan(math.radians(degrees)) ** 2
    assert v.label is not None
    x, (a, p) = v.unit_rows, v.pos.nonzero().unbind(-1)
    sums = Pairs(x[a] + x[p], x, v.label[a], v.label)  # a row is a pair, so that large batches are streamed
    worst = sums.run(lambda s: s.lse(4 * steep * s.dot, s.neg), {})
    return F.softplus(worst - 2 * (1 + steep) * (x[a] * x[p]).sum(-1)).sum() / max(1, len(a))


# --- mixtures --------------------------------------------------------------------------------------------------------
class Mixed(NamedTuple):
    """Mixtures of rows in pairs: x [N, ...], the classes [N] of both, and the share [N] that is of the first."""

    x: Tensor
    first: Tensor
    second: Tensor
    share: Tensor


def mixing_pairs(embeddings: Tensor, target: Tensor, *, k: int = 1, own: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows to mix for which anchor (Metrix): row numbers of anchors, first and second rows, [M] each.

    First are the anchor's positives (own: the anchor itself), second its k nearest negatives; all combinations. As the
    authors' code mixes inputs (commit 7ce730c) but for one thing: it looks up the nearest in another anchor's list.
    """
    v = _of_labels(embeddings.detach(), target, "mixing_pairs")
    if target.ndim != 1 or embeddings.ndim != 2 or k < 1:
        found = f"{list(embeddings.shape)}, {list(target.shape)}, {k}"
        raise ShapeError("no rows to mix", needed="embeddings [N, d], integers [N], k at least 1", found=found)
    near, at = v.dist2.masked_fill(~v.neg, math.inf).topk(min(k, len(v.cols)), largest=False)
    hard = torch.zeros_like(v.neg).scatter(1, at, near < math.inf)
    anchor, first = (v.own if own and v.own is not None else v.pos).nonzero().unbind(1)
    pair, second = hard[anchor].nonzero().unbind(1)
    return anchor[pair], first[pair], second


def mixed_rows(
    x: Tensor,
    target: Tensor,
    *,
    alpha: float = 2.0,
    pairs: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Rows of inputs, features or embeddings [N, ...] mixed by twos, at shares from Beta(alpha, alpha).

    pairs: numbers of the first and second rows, [M] each (`mixing_pairs`). Without them, each row with another: a
    random cyclic shift of the batch, so that no row meets itself. One share is drawn for the batch, as in the code of
    Metrix (Venkataramanan et al., ICLR 2022, arXiv 2106.04990).
    """
    if len(x) < 2 or target.shape != x.shape[:1] or target.is_floating_point() or not alpha > 0:
        needed, found = (
            "x [N, ...], integers [N], N at least 2, alpha above 0",
            f"{list(x.shape)}, {list(target.shape)}, {alpha}",
        )
        raise ShapeError("rows cannot be mixed", needed=needed, found=found)
    seed, step = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((0, 2**62), (1, len(x))))
    one = torch.arange(len(x), device=x.device)
    first, second = (one, one.roll(step)) if pairs is None else pairs
    share = torch.full(first.shape, float(np.random.default_rng(seed).beta(alpha, alpha))).to(lifted(x[:0]))
    weight = share.reshape(-1, *[1] * (x.ndim - 1))
    return Mixed(weight * x[first] + (1 - weight) * x[second], target[first], target[second], share)


def mixed_keys(
    keys: Tensor, first: Tensor, second: Tensor, share: Tensor, *, anchor: Tensor | None = None, rows: int = 0
) -> dict[str, Tensor]:
    """Mixed examples as keys of any loss on pairs: `loss(embeddings, labels, **mixed_keys(*mixed))` (Metrix).

    keys: [M, d], embeddings of mixtures (of mixed inputs or features, or mixed embeddings), of which a `share` [M] is
    of class `first` [M] and the rest of class `second` [M]. For an anchor, a key counts as a positive by the share
    that is of its class, and as a negative by the rest: each key stands there twice, once for each class, with its
    share as the weight of the pair. anchor: [M], for which of the `rows` anchors a mixture was made (`mixing_pairs`);
    it then counts for that one alone, and anchors without mixtures are not valid. Losses that take the largest of a row
    see the others all the same: use those that sum.
    """
    if keys.ndim != 2 or not first.shape == second.shape == share.shape == keys.shape[:1]:
        found = ", ".join(str(list(x.shape)) for x in (keys, first, second, share))
        raise ShapeError("mixtures and their shares do not fit", needed="[M, d], [M], [M], [M]", found=found)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise DomainError("shares lie between 0 and 1", found=f"{share.min().item():g} to {share.max().item():g}")
    weight = torch.cat([share, 1 - share])[None]
    given = {"keys": torch.cat([keys, keys]), "key_target": torch.cat([first, second])}
    if anchor is None:
        return {**given, "pair_weight": weight}
    if anchor.shape != share.shape or (len(anchor) and int(anchor.max()) >= rows):
        raise ShapeError("mixtures need anchors", needed=f"rows below {rows}, [M]", found=f"{list(anchor.shape)}")
    mine = torch.arange(rows, device=keys.device)[:, None] == anchor.repeat(2)
    return {**given, "pair_weight": weight * mine, "valid": mine.any(1)}


def utilization(queries: Tensor, embeddings: Tensor) -> Tensor:
    """Mean squared distance of queries [Q, d] to the nearest of the embeddings [M, d], both of length 1; a scalar.

    Large where test classes lie in a part of the space that training did not reach. Venkataramanan et al. (ICLR 2022,
    arXiv 2106.04990), eq. 12, which does not say whether embeddings have length 1; those of their code do.
    """
    if queries.ndim != 2 or embeddings.ndim != 2 or queries.shape[1] != embeddings.shape[1] or not len(embeddings):
        found = f"{list(queries.shape)} and {list(embeddings.shape)}"
        raise ShapeError("queries and embeddings do not fit", needed="[Q, d] and [M, d]", found=found)
    return (2 - 2 * (unit(queries) @ unit(embeddings).mT).amax(-1)).clamp(min=0).mean()


# --- few-shot episodes -----------------------------------------------------------------------------------------------
def icnn(embeddings: Tensor, target: Tensor, *, k: int = 4) -> Tensor:
    """Minus the logarithm of the inter- and intra-class nearest-neighbour score, between 0 and 1; a scalar.

    Among the k nearest of each row: those of its class should be near beside the nearest of another class, those of
    other classes far, and the neighbours of its class. The last part counts, and has no gradient. Mendez-Ruiz et al.
    (arXiv 2305.09062), as in the authors' code (`modified_score`, commit 249405f), without its 1e-6 under the root.
    """
    v = _of_labels(embeddings, target, "icnn")
    n, own = len(v.rows), v.own
    if n < 3 or k < 1 or own is None:
        raise DomainError("a score of neighbours needs rows", needed="k at least 1, 3 rows or more", found=f"{k}, {n}")
    k = min(k, n - 2)
    d, at = v.dist.masked_fill(own, math.inf).topk(k + 1, largest=False)
    same = v.pos.gather(1, at)
    near = (d / d.masked_fill(same, math.inf).amin(1, keepdim=True).clamp(min=1e-7))[:, :k]
    d, same = d[:, :k], same[:, :k]
    most = d.masked_fill(same, 0).amax()
    inner = 1 - _over_rows(near / near.amax(1, keepdim=True).clamp(min=1), same)
    outer = _over_rows(d, ~same) / most.where(most > 0, 1) + same.all()
    share = same.to(d.dtype).mean() if k + 2 < n else 1.0
    return -(((inner + outer) / 2 + share) / 2).log()


def _over_rows(x: Tensor, over: Tensor) -> Tensor:
    """The mean over rows that have any of their means over a mask [r, k], a scalar."""
    count = over.sum(1)
    return (x.where(over, 0).sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)
