"""Balancers by the losses alone: they answer with a total, whose gradient is that of the weighted losses.

Weights are held fixed while the total is differentiated, unless they are learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossary.balance import sac
from lossary.balance.terms import Losses
from lossary.errors import MissingInput, ShapeError
from lossary.methods import method


def floored(x: Tensor) -> Tensor:
    """x, at least 1e-19 or so: its logarithm and its inverse are numbers. Below, it has no gradient."""
    return x.clamp(min=torch.finfo(x.dtype).tiny ** 0.5)


def weighed(terms: Losses, weights: Tensor) -> Tensor:
    """The weighted sum."""
    return (weights.to(terms.losses.device) * terms.losses.to(terms.dtype)).sum()


def each(terms: Losses, given: Tensor | float | None, otherwise: float = 0.0) -> Tensor:
    """What is given for each term or for all alike, [T]."""
    found = torch.as_tensor(otherwise if given is None else given, dtype=terms.dtype, device=terms.losses.device)
    if found.ndim and found.shape != terms.losses.shape:
        raise ShapeError("numbers do not fit the terms", needed=f"{terms.count}", found=f"{list(found.shape)}")
    return found.expand(terms.count)


def spread(terms: Losses, logits: Tensor) -> Tensor:
    """T softmax(logits): weights that sum to T."""
    return terms.count * logits.softmax(-1)


def epochs(terms: Losses, every: int) -> Tensor:
    """Mean losses in the last two whole epochs of `every` steps, the later first: [2, T], NaN where there was none."""
    now = terms.losses.detach().to(terms.dtype)
    past = terms.kept("past", torch.full((2, terms.count), torch.nan, dtype=now.dtype, device=now.device))
    total, whole = terms.kept("running", 0.0) + now, (terms.steps + 1) % every == 0
    later = torch.stack([total / every, past[0]]) if whole else past
    terms.keep(past=later, running=torch.zeros_like(total) if whole else total)
    return past


@method("total", Losses, role="balance")
def total(terms: Losses) -> Tensor:
    """The plain sum of the losses."""
    return weighed(terms, torch.ones_like(terms.losses, dtype=terms.dtype))


@method("average", Losses, role="balance")
def average(terms: Losses) -> Tensor:
    """The mean of the losses."""
    return total.fn(terms) / terms.count


@method("fixed", Losses, role="balance")
def fixed(terms: Losses, *, weight: Tensor | float) -> Tensor:
    """Weights of one's own: [T], or one for all."""
    return weighed(terms, each(terms, weight))


@method("uncertainty", Losses, role="balance")
def uncertainty(terms: Losses, *, s: Tensor | float, regression: Tensor | float | None = None) -> Tensor:
    """Homoscedastic uncertainty (Kendall et al. 2018, eq. 7 and 10), s = log sigma^2, one a term, to be learned.

    A squared error costs exp(-s) / 2 of its loss, a cross-entropy exp(-s), and either s / 2 on top.
    regression: 1 for a squared error, 0 for a cross-entropy, one for all or [T] (None: 1).
    """
    kind = each(terms, regression, 1.0)
    level = each(terms, s)
    return ((1 - kind / 2) * (-level).exp() * terms.losses.to(terms.dtype) + level / 2).sum()


@method("imtl_l", Losses, role="balance")
def imtl_l(terms: Losses, *, s: Tensor | float) -> Tensor:
    """IMTL-L (Liu et al. 2021): sum of e^s L - s, s one a term, to be learned. At its best e^s L is 1."""
    level = each(terms, s)
    return (level.exp() * terms.losses.to(terms.dtype) - level).sum()


@method("gls", Losses, role="balance")
def gls(terms: Losses) -> Tensor:
    """The geometric mean of the losses (Chennupati et al. 2019): relative gains count alike. Losses above 0."""
    return floored(terms.losses.to(terms.dtype)).log().mean().exp()


@method("rlw", Losses, role="balance")
def rlw(terms: Losses, *, seed: int = 0) -> Tensor:
    """Random weights (Lin et al. 2022): softmax of standard normals, others in every step. They sum to 1."""
    drawn = torch.randn(terms.count, generator=terms.generator(seed), dtype=torch.float64)
    return weighed(terms, drawn.softmax(-1).to(terms.dtype))


@method("dwa", Losses, role="balance")
def dwa(terms: Losses, *, tau: float = 2.0, every: int = 100) -> Tensor:
    """Dynamic weight average (Liu et al. 2019, eq. 7): T softmax(r / tau), r the last epoch's loss over the one before.

    every: steps of an epoch. In the first two, all weights are 1.
    """
    last, before = epochs(terms, every)
    return weighed(terms, spread(terms, (last / floored(before)).nan_to_num(1.0) / tau))


@method("stch", Losses, role="balance")
def stch(
    terms: Losses, *, mu: float = 1.0, weight: Tensor | float | None = None, ideal: Tensor | float | None = None
) -> Tensor:
    """Smooth Tchebycheff (Lin et al. 2024): mu log sum exp(weight (L - ideal) / mu), a soft worst term.

    mu: in units of the losses; towards 0 the worst term alone. ideal: what a loss cannot fall below (None: 0).
    weight, ideal: [T], or one for all.
    """
    above = terms.losses.to(terms.dtype) - each(terms, ideal)
    return mu * (each(terms, weight, 1.0) * above / mu).logsumexp(-1)


@method("igb", Losses, role="balance")
def igb(terms: Losses, *, every: int = 100) -> Tensor:
    """Improvable gap balancing, heuristic (Dai et al. 2023, IGBv1): sum of w log L, w = T softmax(L / base).

    base: the mean losses of the second epoch, of `every` steps; until it is over all w are 1. Losses above 0.
    """
    losses, past = floored(terms.losses.to(terms.dtype)), epochs(terms, every)
    base = past[0] if terms.steps == 2 * every else terms.kept("base", torch.nan)
    terms.keep(base=base)
    return (spread(terms, (losses.detach() / floored(base)).nan_to_num(0.0)) * losses.log()).sum()


@method("igb_rl", Losses, role="balance")
def igb_rl(
    terms: Losses, *, every: int = 100, rate: float = 3e-4, refresh: int = 50, size: int = 10_000, seed: int = 0
) -> Tensor:
    """Improvable gap balancing, learned (Dai et al. 2023, IGBv2): sum of w log L, w by a policy of soft actor-critic.

    It sees log(L / base), base as in `igb`, and is paid the smallest fall of L / base in a step. In the first five
    epochs w is random, T softmax of normals. From the fourth epoch on it learns, `refresh` updates of 256 of the last
    `size` steps every `refresh` steps, at `rate`. Losses above 0.
    """
    losses, past, g = floored(terms.losses.to(terms.dtype)), epochs(terms, every), terms.generator(seed)
    base = past[0] if terms.steps == 2 * every else terms.kept("base", torch.nan)
    state = (losses.detach() / floored(base)).log().clamp(-40, 40)
    noise = torch.randn(terms.count, generator=g, dtype=torch.float64).to(losses)
    agent = terms.all_kept(*sac.NAMES) or {k: v.to(losses) for k, v in sac.fresh(terms.count, g).items()}
    w = sac.act(agent["actor"][0], state, noise)[0] if terms.steps >= 5 * every else spread(terms, noise)
    memory = terms.kept("memory", losses.new_zeros(0, 3 * terms.count + 1))
    if terms.steps > 2 * every:
        before, done = terms.kept("state", 0.0), terms.kept("action", 1.0)
        paid = (before.exp() - state.exp()).amin().clamp(-10, 10).reshape(1)
        memory = torch.cat([memory, torch.cat([before, done, state, paid])[None]])[-size:]
    if len(memory) and terms.steps >= 3 * every and terms.steps % refresh == 0:
        n = min(256, len(memory))
        for _ in range(refresh):
            rows = memory[torch.randint(len(memory), (n,), generator=g)]
            s, a, later, paid = rows.split([terms.count, terms.count, terms.count, 1], -1)
            drawn = torch.randn(2, n, terms.count, generator=g).to(losses)
            agent = sac.learn(agent, (s, a, paid[:, 0], later), drawn, rate)
    terms.keep(base=base, state=state, action=w.detach(), memory=memory, **agent)
    return (w.detach() * losses.log()).sum()


def chased(terms: Losses, watched: Tensor, rate: float, decay: float) -> Tensor:
    """FAMO's weights, [T], sum 1: logits that fall where the logarithm of what is watched fell since the last step."""
    logits, now = terms.kept("logits", 0.0), floored(watched.detach().to(terms.dtype)).log()
    fell, z = terms.kept("last", now) - now, logits.softmax(-1)
    logits = logits - rate * (z * (fell - (z * fell).sum()) + decay * logits)
    terms.keep(logits=logits, last=now)
    return logits.softmax(-1)


@method("famo", Losses, role="balance")
def famo(terms: Losses, *, rate: float = 0.025, decay: float = 0.01, ideal: Tensor | float | None = None) -> Tensor:
    """FAMO (Liu et al. 2023, algorithm 1): the c sum of z log(L - ideal), c such that the losses' weights sum to 1.

    z: softmax of logits that learn, at `rate` and with a pull to 0 of `decay`, to raise what improved least. The
    improvement is seen at the next step's losses. ideal: what a loss cannot fall below, [T] or one for all (None: 0).
    """
    above = floored(terms.losses.to(terms.dtype) - each(terms, ideal))
    z = chased(terms, above, rate, decay)
    return (z * above.log()).sum() / (z / above.detach()).sum()


def held(terms: Losses) -> Tensor:
    """The losses on held-out data, [T]."""
    if terms.held is None:
        raise MissingInput(
            "this balancer watches losses on held-out data", needed="held [T]", try_="balance(losses, held=held_losses)"
        )
    return terms.held.to(terms.dtype)


@method("mft_convergence", Losses, role="balance")
def mft_convergence(terms: Losses, *, rate: float = 0.025, decay: float = 0.01) -> Tensor:
    """MFTCoder's convergence balancing (Liu et al. 2024): FAMO's weights by what held-out losses gain.

    The weighted sum of the training losses; the weights sum to 1. Needs `held`.
    """
    return weighed(terms, chased(terms, held(terms), rate, decay))


def slope(y: Tensor) -> Tensor:
    """Slopes [T] of straight lines fitted to y [n, T], one a step; 0 for a single one."""
    x = torch.arange(len(y), dtype=y.dtype, device=y.device)
    x = x - x.mean()
    return (x[:, None] * y).sum(0) / x.square().sum().clamp(min=0.5)


@method("mft_self_paced", Losses, role="balance")
def mft_self_paced(terms: Losses, *, tau: float = 50.0, window: int = 100) -> Tensor:
    """The self-paced weights of MFTCoder's code (Liu et al. 2024), by the slopes of the held-out losses.

    softmax of tau * s, where s = -a softmax(a) and a are the slopes over the mean of their sizes: most for terms that
    fall at a = -1, least for those that rise. Equal until `window` losses were seen. They sum to 1. Needs `held`.
    """
    now = held(terms).double()
    seen = torch.cat([terms.kept("seen", now.new_zeros(0, terms.count)), now[None]])[-window:]
    terms.keep(seen=seen)
    a = slope(seen) if len(seen) == window else torch.zeros_like(now)
    a = terms.count * a / a.abs().sum().clamp(min=torch.finfo(now.dtype).tiny)
    return weighed(terms, (-tau * a * a.softmax(-1)).softmax(-1).to(terms.dtype))


@method("coba", Losses, role="balance")
def coba(terms: Losses, *, tau: float = 5.0, window: int = 200, warmup: int = 100) -> Tensor:
    """CoBa (Gong et al. 2024): weights by the slopes of the held-out losses, each over its first value.

    RCS: softmax of the slopes among terms, slow ones first. ACS: softmax of each term's slope among its own in the
    window, sign turned: terms that diverge last. DF: how much of RCS; it falls when the largest slope rises, by tau.
    window: steps a line is fitted to. warmup: steps with equal weights. The weights sum to 1. Needs `held`.
    """
    now = held(terms).double()
    ratio = now / (first := terms.kept("first", floored(now)))
    seen = torch.cat([terms.kept("seen", now.new_zeros(0, terms.count)), ratio[None]])[-window:]
    slopes = torch.cat([terms.kept("slopes", now.new_zeros(0, terms.count)), (a := slope(seen))[None]])[-window:]
    worst = torch.cat([terms.kept("worst", now.new_zeros(0, 1)), a.max().reshape(1, 1)])
    terms.keep(first=first, seen=seen, slopes=slopes, worst=worst)
    if terms.steps < warmup:
        return weighed(terms, now.new_full((terms.count,), 1 / terms.count).to(terms.dtype))
    tiny, t = torch.finfo(now.dtype).tiny, len(worst)
    rcs = (terms.count * a / a.abs().sum().clamp(min=tiny)).softmax(-1)
    acs = (-len(slopes) * a / slopes.abs().sum(0).clamp(min=tiny)).softmax(-1)
    turned = -tau * t * worst[:, 0] / worst.abs().sum().clamp(min=tiny)
    df = (t * turned.softmax(-1)[-1]).clamp(max=1)
    return weighed(terms, (df * rcs + (1 - df) * acs).to(terms.dtype))


__all__ = [
    "average",
    "coba",
    "dwa",
    "famo",
    "fixed",
    "gls",
    "igb",
    "igb_rl",
    "imtl_l",
    "mft_convergence",
    "mft_self_paced",
    "rlw",
    "stch",
    "total",
    "uncertainty",
]
