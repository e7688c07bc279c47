"""What every memory is, and those of one number: learned, counted, one a sample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossary.errors import DomainError, MissingInput, ShapeError, UnknownName


def size_of(name: str, given: Any) -> int:
    """A count of things, at least 1."""
    if not isinstance(given, int) or given < 1:
        raise DomainError(f"{name} must be a whole number of at least 1", found=repr(given))
    return given


class Memory(nn.Module):
    """A hyperparameter with a life: `value()` is read when items are computed, `update` runs once after them.

    The objective calls `update` only in training mode and not inside `frozen()`. All state is in buffers or
    parameters, so it is in `objective.state_dict()`.
    """

    def value(self) -> Tensor:
        """What the formula sees."""
        raise TypeError(f"{type(self).__name__} has no value()")

    def update(self, view: Any) -> None:
        """Take in one batch. Called without gradients."""

    def config(self) -> dict[str, Any]:
        """Plain JSON: the class and its arguments."""
        names = list(inspect.signature(type(self)).parameters)
        return {"memory": type(self).__name__, **{name: getattr(self, name) for name in names}}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Memory:
        """The inverse of `config`. Known classes only: a config never imports code."""
        known = {c.__name__: c for c in Memory.__subclasses__() if c.__module__.startswith(__package__ + ".")}
        if config["memory"] not in known:
            raise UnknownName.of("memory", config["memory"], known)
        return known[config["memory"]](**{k: v for k, v in config.items() if k != "memory"})

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={v!r}" for k, v in self.config().items() if k != "memory")
        return f"lossary.memory.{type(self).__name__}({args})"


class Learned(Memory):
    """A positive scalar trained with the model, kept positive by its logarithm: `focal(gamma=Learned(2.0))`.

    Give `objective.parameters()` to the optimizer.
    """

    def __init__(self, init: float) -> None:
        super().__init__()
        if not init > 0:
            raise DomainError("a learned hyperparameter starts above 0", found=repr(init))
        self.init = float(init)
        self.log = nn.Parameter(torch.tensor(self.init).log())

    def value(self) -> Tensor:
        return self.log.exp()


class LearnedReal(Memory):
    """A number of either sign, trained with the model: `siglip(scale=Learned(10.0), bias=LearnedReal(-10.0))`.

    size: as many numbers, [size]: `balance.uncertainty(s=LearnedReal(0.0, size=3))`.
    """

    def __init__(self, init: float, size: int | None = None) -> None:
        super().__init__()
        if not math.isfinite(init):
            raise DomainError("a learned hyperparameter starts at a finite number", found=repr(init))
        self.init, self.size = float(init), None if size is None else size_of("size", size)
        self.at = nn.Parameter(torch.full(() if size is None else (size,), self.init))

    def value(self) -> Tensor:
        return self.at


class RunningFrequency(Memory):
    """Class frequencies of the stream, [classes]: an exponential mean with a uniform start.

    Takes the place of `counts` when the training distribution is not known beforehand. `size`, the number of training
    examples, turns shares into counts, for what depends on more than shares (effective_number).
    """

    def __init__(self, classes: int, momentum: float = 0.99, size: float = 1.0) -> None:
        super().__init__()
        if not size > 0:
            raise DomainError("size is out of range", needed="a number above 0", found=repr(size))
        if not 0 <= momentum < 1:
            raise DomainError("momentum is out of range", needed="a number in [0, 1)", found=repr(momentum))
        self.classes, self.momentum, self.size = size_of("classes", classes), float(momentum), float(size)
        self.frequency: Tensor
        self.register_buffer("frequency", torch.full((self.classes,), 1.0 / self.classes))

    def value(self) -> Tensor:
        """What the formula sees: never 0, so that the logarithm of a class that does not come stays finite."""
        return self.size * self.frequency.clamp(min=torch.finfo(self.frequency.dtype).tiny)

    def update(self, view: Any) -> None:
        labels = getattr(view, "y", None)
        if labels is not None:  # of Labels: how often each is on
            kept = torch.ones_like(labels) if view.valid is None else view.valid.to(labels)
            on, seen = (x.flatten(0, -2).sum(0).to(self.frequency) for x in (labels * kept, kept))
            self.frequency.lerp_(on / seen.clamp(min=1), (1 - self.momentum) * (seen > 0).to(self.frequency))
            return
        kept = view.valid if view.valid is not None else torch.ones_like(view.target, dtype=torch.bool)
        share = getattr(view, "share", None)
        if share is None:
            share = (torch.arange(self.classes, device=view.target.device) == view.target[..., None]).float()
        n = kept.sum()
        now = (share * kept[..., None]).flatten(0, -2).sum(0) / n.clamp(min=1)
        self.frequency.lerp_(now.to(self.frequency), (1 - self.momentum) * (n > 0).to(self.frequency))


def check_ids(ids: Tensor | None, shape: torch.Size, size: int) -> None:
    """Refuse ids [B] that do not say which of `size` samples each of the items, of a shape [B], belongs to."""
    if ids is None:
        raise MissingInput(
            "per-sample memory needs the identity of each sample",
            needed="ids, integers [B]",
            try_="objective(logits, target, ids=ids) with a data set that returns its index",
        )
    if len(shape) != 1 or ids.shape != shape:
        raise ShapeError(
            "per-sample memory holds one number per sample",
            needed=f"ids of shape {list(shape)}",
            found=f"ids {list(ids.shape)}, items {list(shape)}",
        )
    if not torch.compiler.is_compiling() and ids.device.type == "cpu" and ids.numel():  # a GPU would be waited for
        low, high = ids.min().item(), ids.max().item()
        if low < 0 or high >= size:
            raise DomainError(
                "an id is not one of the samples",
                needed=f"integers from 0 to {size - 1}",
                found=f"{low if low < 0 else high}",
                try_="a larger size: that of the data set",
            )


class PerSample(Memory):
    """One running sum per sample of the data set, [size], with how often each was seen."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size_of("size", size)
        self.total: Tensor
        self.seen: Tensor
        self.register_buffer("total", torch.zeros(self.size))
        self.register_buffer("seen", torch.zeros(self.size, dtype=torch.long))

    def value(self) -> Tensor:
        """The mean of what was added, [size]; NaN for samples never seen."""
        return self.total / self.seen.where(self.seen > 0, torch.nan)

    def check(self, ids: Tensor | None, x: Tensor) -> None:
        """Refuse ids [B] that do not say which sample each of x [B] belongs to."""
        check_ids(ids, x.shape, self.size)

    def add(self, ids: Tensor | None, x: Tensor, valid: Tensor | None = None) -> None:
        """Add x [B] to the samples `ids` [B]."""
        self.check(ids, x)
        assert ids is not None
        keep = torch.ones_like(x) if valid is None else valid.to(x)
        self.total.index_add_(0, ids, torch.where(keep > 0, x, 0).to(self.total))
        self.seen.index_add_(0, ids, keep.to(self.seen))
