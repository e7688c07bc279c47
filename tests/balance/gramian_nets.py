"""Networks of the layers whose gradients have closed forms, and of some that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, T = 6, 5


class Tower(nn.Module):
    """A small transformer with positions as a table, as a sliced parameter and as a class token; layer scale."""

    def __init__(self, tied: bool, d: int = 8, size: int = 12) -> None:
        super().__init__()
        self.table = nn.Embedding(size, d, padding_idx=0)
        self.place = nn.Embedding(T + 2, d)
        self.more, self.token = nn.Parameter(torch.randn(1, T + 2, d)), nn.Parameter(torch.randn(1, 1, d))
        self.scale = nn.Parameter(torch.randn(d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(d, 3 * d, bias=False) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(d, d) for _ in range(2))
        self.head = nn.Linear(d, size, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids) + self.place(torch.arange(T)) + self.more[:, :T] + self.token.expand(len(ids), -1, -1)
        for norm, mix, out in zip(self.norms, self.mix, self.out, strict=True):
            q, k, v = mix(norm(h)).chunk(3, -1)
            h = h + out(F.scaled_dot_product_attention(q, k, v)) * self.scale
        return self.head(h)


class Lines(nn.Module):
    """Convolutions over a line, norms of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(3, 6, 3, stride=2, padding=1, dilation=2),
            nn.BatchNorm1d(6).eval(),
            nn.ReLU(inplace=True),
            nn.Conv1d(6, 6, 2, padding="same", groups=3),
            nn.LayerNorm([6, 7]),
            nn.RMSNorm(7),
            nn.Flatten(),
            nn.Linear(42, 4),
        )
        bn: Any = self.layers[1]
        bn.running_mean.uniform_(-1, 1), bn.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 9), nn.ReLU(inplace=True), nn.Linear(9, 9), nn.Dropout(0.3), nn.Tanh(), nn.Linear(9, 4)
    )


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, (3, 2), stride=(2, 1), padding=2, dilation=(2, 1), groups=4, bias=False),
        nn.Conv2d(8, 6, 3, padding="same", padding_mode="circular"),
        nn.Conv2d(6, 6, 1, stride=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(18, 4),
    )


def tokens() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 6), nn.ReLU(inplace=True), nn.Linear(6, 4, bias=False))


def attention() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 8), nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True), nn.Linear(8, 4)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "perceptron": (perceptron, (B, 7)),
    "images": (images, (B, 3, 8, 8)),
    "lines": (Lines, (B, 3, 15)),
    "tokens": (tokens, (B, T, 7)),
    "one token": (tokens, (B, 1, 7)),
    "two axes of tokens": (tokens, (B, 2, 3, 7)),
    "attention": (attention, (B, T, 7)),
    "tower": (lambda: Tower(False), None),
    "tied tower": (lambda: Tower(True), None),
}
