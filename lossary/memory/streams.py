"""What has gone by in the stream: the last features, and the mean of all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from lossary.errors import DataError, DomainError, MissingInput, ShapeError
from lossary.memory.base import Memory, size_of


class RunningMean(Memory):
    """Mean of vectors in the stream, [size]: an exponential mean over batches, each batch by its mean.

    Zeros before the first batch; the weights of the batches seen sum to 1. In eval mode nothing moves it.
    """

    def __init__(self, size: int, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise DomainError("momentum is out of range", needed="a number in [0, 1)", found=repr(momentum))
        self.size, self.momentum = size_of("size", size), float(momentum)
        self.total: Tensor
        self.mass: Tensor
        self.register_buffer("total", torch.zeros(self.size))
        self.register_buffer("mass", torch.zeros(()))

    def value(self) -> Tensor:
        """The mean so far."""
        return self.total / self.mass.where(self.mass > 0, 1)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take in a batch x [..., size]."""
        if x.shape[-1:] != (self.size,):
            raise ShapeError("a running mean of other vectors", needed=f"[..., {self.size}]", found=f"{list(x.shape)}")
        if self.training and x.numel():
            self.total.lerp_(x.detach().flatten(0, -2).mean(0).to(self.total), 1 - self.momentum)
            self.mass.lerp_(torch.ones_like(self.mass), 1 - self.momentum)


class Queue(Memory):
    """The last features of the stream, with their classes and the ids of their samples: keys for contrastive losses.

    features: d, of one row. size: how many rows are kept, or how many of each class in turn (`class_slots`), so that
    rare classes keep theirs. seed: start full of random directions, as MoCo and GML do; they have the class whose rows
    they hold (-1 in a queue for all classes) and id -1. None starts empty.

    Whoever owns the queue calls `push`, before or after reading `contents`, as its paper says; rows carry no gradient,
    and nothing moves in eval mode. The state is in the checkpoint. With several processes, gather the batch first.
    """

    def __init__(self, features: int, size: int | Sequence[int], seed: int | None = None) -> None:
        super().__init__()
        self.features, self.by_class, self.seed = size_of("features", features), not isinstance(size, int), seed
        room = [size] if isinstance(size, int) else [int(n) for n in size]
        if not room or min(room) < 1:
            raise DomainError(
                "size must be at least 1", needed="a whole number, or one for each class", found=repr(size)
            )
        self.size: int | list[int] = room if self.by_class else room[0]
        self.rows: Tensor
        self.target: Tensor
        self.ids: Tensor
        self.at: Tensor
        self.filled: Tensor
        self.room: Tensor
        self.ring: Tensor
        self.place: Tensor
        n, rings = sum(room), len(room)
        self.register_buffer("rows", torch.zeros(n, self.features))
        self.register_buffer("target", torch.full((n,), -1))
        self.register_buffer("ids", torch.full((n,), -1))
        self.register_buffer("at", torch.zeros(rings, dtype=torch.long))  # where the next row goes, in its ring
        self.register_buffer("filled", torch.zeros(rings, dtype=torch.long))
        sizes = torch.tensor(room)
        self.register_buffer("room", sizes, persistent=False)
        self.register_buffer("ring", torch.arange(rings).repeat_interleave(sizes), persistent=False)
        self.register_buffer("place", torch.cat([torch.arange(k) for k in room]), persistent=False)
        if seed is not None:
            self.rows.copy_(F.normalize(torch.randn(n, self.features, generator=torch.Generator().manual_seed(seed))))
            self.filled.copy_(sizes)
            if self.by_class:
                self.target.copy_(self.ring)

    def contents(self) -> tuple[Tensor, Tensor, Tensor]:
        """Copies of the features [M, d], their classes [M] and ids [M]; -1 where there is none."""
        if self.seed is not None:
            return self.rows.clone(), self.target.clone(), self.ids.clone()
        held = self.place < self.filled[self.ring]
        return self.rows[held], self.target[held], self.ids[held]

    def value(self) -> Tensor:
        """The features that are held, [M, d]."""
        return self.contents()[0]

    @torch.no_grad()
    def push(self, x: Tensor, target: Tensor | None = None, ids: Tensor | None = None) -> None:
        """Take in x [B, d] with classes [B] and ids [B]; the oldest rows (of their class) make room."""
        if (
            x.ndim != 2
            or x.shape[1] != self.features
            or any(
                given is not None and (given.shape != x.shape[:1] or given.is_floating_point())
                for given in (target, ids)
            )
        ):
            raise ShapeError(
                "what is pushed does not fit the queue",
                needed=f"features [B, {self.features}], integers [B]",
                found=", ".join(f"{g.dtype} {list(g.shape)}" for g in (x, target, ids) if g is not None),
            )
        if self.by_class and target is None:
            raise MissingInput("the queue keeps rows of each class", needed="the classes [B] of what is pushed")
        free = target is None or not self.by_class or target.device.type != "cpu"  # a GPU would be waited for
        if target is not None and not free and not bool(((target >= 0) & (target < len(self.at))).all()):
            raise DomainError("a target is not one of the classes", needed=f"0 to {len(self.at) - 1}")
        if not self.training or not len(x):
            return
        rings, b = len(self.at), len(x)
        none = torch.full((b,), -1, device=self.rows.device)
        label = none if target is None else target.to(none)
        own = label if self.by_class else torch.zeros_like(label)
        count = own.bincount(minlength=rings)
        order = own.argsort(stable=True)
        rank = torch.empty_like(own)
        rank[order] = torch.arange(b, device=own.device) - (count.cumsum(0) - count)[own[order]]
        first = self.room.cumsum(0) - self.room
        spot = first[own] + (self.at[own] + rank) % self.room[own]
        kept = rank >= (count - self.room)[own]  # of more than there is room for, the last
        self.rows[spot[kept]] = x.detach().to(self.rows)[kept]
        self.target[spot[kept]] = label[kept]
        self.ids[spot[kept]] = (none if ids is None else ids.to(none))[kept]
        self.at.copy_((self.at + count) % self.room)
        self.filled.copy_((self.filled + count).minimum(self.room))


def class_slots(counts: ArrayLike, size: int, least: int = 5) -> list[int]:
    """How many rows of a queue each class gets: `least`, and of the rest a share as in the training data.

    counts: training examples of each class [C]. As in the authors' code of GML (Suh and Seo, arXiv 2305.01160).
    """
    n = np.asarray(counts, dtype=float)
    if n.ndim != 1 or not len(n) or not (n >= 0).all() or n.sum() <= 0:
        raise DataError("counts must be one number a class", found=repr(counts))
    rest = size - least * len(n)
    if least < 1 or rest < 0:
        raise DomainError(
            "the queue is too small", needed=f"size of at least {max(least, 1) * len(n)}, least of at least 1"
        )
    ends = np.ceil(least * np.arange(1, len(n) + 1) + rest * (n.cumsum() / n.sum()) - 1e-6).astype(int)
    return [int(k) for k in np.diff(ends, prepend=0)]
