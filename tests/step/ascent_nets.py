"""A small net, batches and rules for the tests of the two-pass engine."""

import torch
import torch.nn.functional as F
from torch import nn

from lossary.step import asam, awp, friendly_sam, gsam, random_perturbation, rwp, sam

RULES = {
    "sam": lambda: sam(0.1),
    "asam": lambda: asam(0.5),
    "gsam": lambda: gsam(0.1, alpha=0.3),
    "friendly": lambda: friendly_sam(0.1, sigma=0.8, decay=0.7),
    "awp": lambda: awp(0.1),
    "rwp": lambda: rwp(0.1, steps=3),
    "random_perturbation": lambda: random_perturbation(0.1, alpha=0.7, seed=5),
}


def mlp(seed=0, norm=False, dropout=0.0):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(6)] if norm else []
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)).double()


def batches(n=5, size=8):
    g = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 4, generator=g, dtype=torch.float64), torch.randint(3, (size,), generator=g))
        for _ in range(n)
    ]


def sgd(model, **more):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-3, **more})


def loss_of(model, batch):
    return lambda: F.cross_entropy(model(batch[0]), batch[1])


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **tolerance)
