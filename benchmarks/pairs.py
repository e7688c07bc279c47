"""Contrastive losses on large batches beside the matrix of similarities, forward and backward, time and memory.

Rivals: the matrix by hand (`F.cross_entropy` both ways); the sigmoid loss by chunks of 512 columns, each kept for the
backward pass as open_clip keeps it; pytorch-metric-learning, where it is installed. Time as ratios of neighbouring
runs, memory as growth of a fresh process. `python -m benchmarks.pairs` measures how time and memory grow, and draws
benchmarks/pairs.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lossary
from benchmarks.timing import Row, fresh, grown, ratio, seconds
from lossary.folds.tiles import SIZES

N, D = 8192, 256


def by_hand(a: Tensor, b: Tensor) -> Tensor:
    """Symmetric InfoNCE, as it is usually written."""
    s, own = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.07, torch.arange(len(a))
    return (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2


def sigmoid_chunks(a: Tensor, b: Tensor, chunk: int = 512) -> Tensor:
    """The sigmoid loss, some columns at a time, each an autograd graph of its own."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    total = a.new_zeros(())
    for at in range(0, len(b), chunk):
        z = 10 * a @ b[at : at + chunk].T - 10
        sign = -torch.ones_like(z)
        sign[at : at + len(z.T)].fill_diagonal_(1.0)
        total = total - F.logsigmoid(sign * z).sum()
    return total / len(a)


def dense(objective: lossary.Objective, x: Tensor, y: Tensor) -> Tensor:
    """An objective on the whole matrix."""
    small, SIZES.small = SIZES.small, sys.maxsize
    try:
        return objective(x, y)
    finally:
        SIZES.small = small


def peers() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Losses of pytorch-metric-learning, if it is there."""
    try:
        losses = import_module("pytorch_metric_learning.losses")
    except ImportError:
        return {}
    return {"PML NTXentLoss": losses.NTXentLoss(0.1), "PML SupConLoss": losses.SupConLoss(0.1)}


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "symmetric InfoNCE, by hand": by_hand,
    "symmetric InfoNCE": lossary.clip(tau=0.07),
    "sigmoid loss, chunks of 512": sigmoid_chunks,
    "sigmoid loss": lossary.siglip(),
    "supcon": lossary.supcon(),
    "circle": lossary.circle(),
    "circle, whole matrix": lambda x, y: dense(lossary.circle(), x, y),
    "supcon (L_in)": lossary.supcon_in(),
    "supcon (L_in), whole matrix": lambda x, y: dense(lossary.supcon_in(), x, y),
    **peers(),
}
TOWERS = ("symmetric", "sigmoid")


def work(way: str, n: int = N, d: int = D) -> Callable[[], None]:
    """One forward and backward pass."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(n, d, generator=g).requires_grad_()
    other = torch.randn(n, d, generator=g).requires_grad_() if way.startswith(TOWERS) else torch.arange(n) // 2

    def step() -> None:
        a.grad = other.grad = None
        WAYS[way](a, other).backward()

    return step


def growth(way: str, n: int = N) -> float:
    """MB of one step, in a process that has not done much else."""
    return grown(work(way, n=64), work(way, n))


def peak(way: str, n: int = N) -> float:
    """The same in a fresh process."""
    return fresh("pairs", f"growth({way!r}, {n})")


def synchronous(fn: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of five calls, the device's work included; two calls before do not count."""

    def once() -> None:
        fn()
        if device == "cuda":
            torch.cuda.synchronize()

    once()
    once()
    return min(seconds(once) for _ in range(5))


def share_of_matrix_rate(n: int = 2**16, d: int = 512, device: str = "cuda") -> float:
    """Rate of symmetric InfoNCE, forward and backward, in units of that of a matrix product; embeddings in bfloat16.

    Counted are the four products that need no less: similarities twice, and a gradient by either tower. 8 N^2 d.
    """
    kind: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    a, b = (torch.randn(n, d, requires_grad=True, **kind) for _ in range(2))
    square = torch.randn(min(n, 2**13), min(n, 2**13), **kind)
    product = 2 * len(square) ** 3 / synchronous(lambda: square @ square, device)
    objective = lossary.clip(tau=0.07)
    return 8 * n**2 * d / synchronous(lambda: torch.autograd.grad(objective(a, b), [a, b]), device) / product


def allocated(n: int, d: int = 512) -> float:
    """MB that symmetric InfoNCE takes on a GPU beside the embeddings, at most."""
    a, b = (torch.randn(n, d, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    lossary.clip(tau=0.07)(a, b).backward()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def on_gpu() -> Iterator[Row]:
    """Rows that need a GPU."""
    name, rate = torch.cuda.get_device_name(), share_of_matrix_rate()
    yield (
        f"{2**16} x 512 in bfloat16, {name}: symmetric InfoNCE, share of matrix rate",
        rate,
        "at least 0.6",
        rate >= 0.6,
    )
    used = {n: allocated(n) for n in (2**15, 2**16, 2**17)}
    for n, mb in used.items():
        yield f"{n} x 512 in bfloat16, {name}: memory in MB", mb, "none", True
    grown_by = used[2**17] / used[2**16]
    yield "memory of twice as many rows / memory", grown_by, "at most 2.1", grown_by <= 2.1


def run() -> Iterator[Row]:
    """Ratios of time, and megabytes."""
    for ours, theirs, most in (
        ("symmetric InfoNCE", "symmetric InfoNCE, by hand", 0.5),
        ("sigmoid loss", "sigmoid loss, chunks of 512", 1.0),
        ("circle", "circle, whole matrix", 0.8),
        ("supcon (L_in)", "supcon (L_in), whole matrix", 0.8),
    ):
        r = ratio(work(ours), work(theirs), pairs=5, warm=1)
        yield f"{N} x {D}: {ours} / {theirs}, time", r, f"at most {most:g}", r <= most
        used, rival = peak(ours), peak(theirs)
        limit = 80.0 if most != 0.8 else rival / 5
        yield f"{N} x {D}: {ours}, memory in MB", used, f"at most {limit:.0f}", used <= limit
        yield f"{N} x {D}: {theirs}, memory in MB", rival, "none", True
    for name in peers():
        for n, fewest in ((512, 300.0 if "NTXent" in name else 1.0), (2048, 1.5)):
            if n == 2048 and "NTXent" in name:
                continue  # 140 GB
            r = ratio(work(name, n, 128), work("supcon", n, 128), pairs=3 if "NTXent" in name else 15, warm=1)
            yield f"{n // 2} pairs x 128: {name} / supcon, time", r, f"at least {fewest:g}", r >= fewest
    if torch.cuda.is_available():
        yield from on_gpu()
    used = peak("symmetric InfoNCE", 2**16)
    yield f"{2**16} x {D}: symmetric InfoNCE, memory in MB", used, "at most 500", used <= 500


def sweep() -> None:
    """Time and memory against the size of the batch, as a table and a picture."""
    from lossary.workbench.drawn import loglog

    sizes = [2**k for k in range(11, 17)]
    times, memory = [], []
    for n in sizes:
        times.append(min(seconds(work("symmetric InfoNCE", n)) for _ in range(2 if n < 2**15 else 1)))
        memory.append(max(peak("symmetric InfoNCE", n), 1.0))
        print(f"{n:>7}{times[-1]:>9.2f} s{memory[-1]:>8.0f} MB", flush=True)
    lines = {"seconds": times, "MB": memory}
    Path(__file__).with_name("pairs.svg").write_text(loglog(sizes, lines, "rows (256 dimensions)"), "utf-8")


if __name__ == "__main__":
    sweep()
