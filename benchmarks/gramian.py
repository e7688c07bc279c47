"""Gramians of gradients beside TorchJD's autogram engine, and what a balanced step costs beside a plain one.

Gramians are per sample: forward pass, losses [B], Gramian [B, B]. The step is one of three tasks on a shared trunk with
SGD, the cheapest optimizer: plain is forward, sum, backward, step; balanced is `lossary.step` with IMTL-G.
The first part needs TorchJD: `pip install --target DIR --no-deps torchjd quadprog qpsolvers`, and DIR on PYTHONPATH.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lossary
from benchmarks.timing import Row, ratio
from lossary.balance.gramian import record

Case = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def perceptron(batch: int) -> Case:
    """784-400-200-10, 396k parameters."""
    net = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 200), nn.ReLU(), nn.Linear(200, 10))
    return net, classified(torch.randn(batch, 784))


def digits() -> Case:
    """The network of PyTorch's MNIST example, without dropout; 1.2 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers), classified(torch.randn(16, 1, 28, 28))


def lenet() -> Case:
    """LeNet-5: so small that a pass is mostly calls."""
    layers: list[nn.Module] = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    layers += [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*layers), classified(torch.randn(16, 1, 28, 28))


def classified(x: Tensor) -> Callable[[nn.Module], Tensor]:
    """Cross-entropy [B] of ten classes."""
    y = torch.randint(10, (len(x),))
    return lambda net: F.cross_entropy(net(x), y, reduction="none")


class Attention(nn.Module):
    """One layer of a transformer."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(d), nn.LayerNorm(d)
        self.mix, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.feed = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (4, -1)).transpose(1, 2) for x in self.mix(self.first(h)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(attended.transpose(1, 2).flatten(2))
        return h + self.feed(self.second(h))


class Transformer(nn.Module):
    """Two layers of width d over `size` tokens."""

    def __init__(self, d: int, size: int) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(size, d), nn.Embedding(64, d)
        self.layers, self.last = nn.Sequential(Attention(d), Attention(d)), nn.LayerNorm(d)
        self.head = nn.Linear(d, size)

    def forward(self, ids: Tensor) -> Tensor:
        where = torch.arange(ids.shape[1]).expand_as(ids)  # TorchJD wants the batch everywhere
        return self.head(self.last(self.layers(self.table(ids) + self.place(where))))


def transformer(length: int) -> Case:
    """16 sequences, width 256, 100 tokens."""
    ids, target = torch.randint(100, (16, length)), torch.randint(100, (16, length))

    def losses(net: nn.Module) -> Tensor:
        return F.cross_entropy(net(ids).flatten(0, 1), target.flatten(), reduction="none").view(16, -1).mean(1)

    return Transformer(256, 100), losses


def ours(net: nn.Module, losses: Callable[[nn.Module], Tensor]) -> Callable[[], Tensor]:
    """Lossary's engine."""

    def step() -> Tensor:
        with record(net) as tape:
            items = losses(net)
        return tape.gradients(items, samples=True).gramian()

    return step


def theirs(net: nn.Module, losses: Callable[[nn.Module], Tensor]) -> Callable[[], Tensor]:
    """TorchJD's engine, on a copy: its hooks stay."""
    net = copy.deepcopy(net)
    engine: Any = import_module("torchjd.autogram").Engine(net, batch_dim=0)

    def step() -> Tensor:
        found = engine.compute_gramian(losses(net))
        return getattr(found, "tensor", found)

    return step


def backward(net: nn.Module, losses: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    """Forward and backward pass of the sum."""

    def step() -> None:
        net.zero_grad()
        losses(net).sum().backward()

    return step


class Tasks(nn.Module):
    """Three tasks of ten classes on a trunk of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(3))

    def losses(self, x: Tensor, targets: list[Tensor]) -> list[Tensor]:
        h = self.trunk(x)
        return [F.cross_entropy(head(h), y) for head, y in zip(self.heads, targets, strict=True)]


def tasks(kind: str, width: int, batch: int) -> Callable[[], object]:
    """One whole step: plain, balanced, or by the matrix of all gradients."""
    torch.manual_seed(0)
    net, x, ys = Tasks(width), torch.randn(batch, 784), [torch.randint(10, (batch,)) for _ in range(3)]
    sgd = torch.optim.SGD(net.parameters(), 1e-3)
    trunk = list(net.trunk.parameters())
    balance = lossary.balance.imtl_g()
    step = lossary.step.Step(net, sgd, balance=balance)

    def plain() -> None:
        sgd.zero_grad()
        torch.stack(net.losses(x, ys)).sum().backward()
        sgd.step()

    def matrix() -> None:
        sgd.zero_grad()
        losses, rows = net.losses(x, ys), []
        for head, loss in zip(net.heads, losses, strict=True):
            own = list(head.parameters())
            found = torch.autograd.grad(loss, [*trunk, *own], retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in found[: len(trunk)]]))
            for p, g in zip(own, found[len(trunk) :], strict=True):
                p.grad = g
        jacobian = torch.stack(rows)
        weights = balance(torch.stack(losses).detach(), gramian=jacobian @ jacobian.T)
        for p, g in zip(trunk, (weights @ jacobian).split([p.numel() for p in trunk]), strict=True):
            p.grad = g.view_as(p)
        sgd.step()

    def balanced() -> object:
        return step(lambda: dict(zip("abc", net.losses(x, ys), strict=True)))

    return {"plain": plain, "balanced": balanced, "matrix": matrix}[kind]


def run() -> Iterator[Row]:
    """Ratios of times; the largest difference relative to the largest entry.

    TorchJD comes first: after the large matrices of the steps, what malloc gives has been touched before.
    """
    yield from beside()
    yield from steps()


def steps() -> Iterator[Row]:
    """Whole steps beside the plain one."""
    for width, batch in ((64, 128), (512, 128), (512, 256), (1024, 128), (2048, 128)):
        plain, balanced, matrix = (tasks(kind, width, batch) for kind in ("plain", "balanced", "matrix"))
        what = f"/ plain step, three tasks, width {width}, batch {batch}, time"
        r = ratio(balanced, plain, pairs=41, warm=3)
        small = width < 512  # where it is mostly calls
        yield f"balanced {what}", r, "none" if small else "at most 1.9", small or r <= 1.9
        yield f"by the matrix of gradients {what}", ratio(matrix, plain, pairs=21, warm=3), "none", True


def beside() -> Iterator[Row]:
    """Gramians beside TorchJD's."""
    try:
        import_module("torchjd.autogram")
    except ImportError:
        yield "TorchJD is not on the path: its rows are left out (see benchmarks/gramian.py)", math.nan, "none", True
        return
    for name, make, fewest, pairs in (
        ("perceptron, batch 32", lambda: perceptron(32), 20.0, 15),
        ("perceptron, batch 128", lambda: perceptron(128), 50.0, 9),
        ("MNIST example's network, batch 16", digits, 5.0, 9),
        ("two-layer transformer, 16 x 8 tokens", lambda: transformer(8), 5.0, 9),
        ("LeNet-5, batch 16", lenet, 0.0, 9),
        ("two-layer transformer, 16 x 32 tokens", lambda: transformer(32), 0.0, 5),
    ):
        torch.manual_seed(0)
        net, losses = make()
        a, b, c = ours(net, losses), theirs(net, losses), backward(net, losses)
        r = ratio(b, a, pairs=pairs, warm=1)
        target = f"at least {fewest:g}" if fewest else "none"
        yield f"{name}: TorchJD / ours, time", r, target, r >= fewest
        yield f"{name}: ours / forward and backward pass, time", ratio(a, c, pairs=pairs, warm=1), "none", True
        g, h = a(), b()
        off = float((g - h).abs().max() / h.abs().max())
        yield f"{name}: difference to TorchJD, relative", off, "at most 1e-05", off <= 1e-5
