"""Pairs: every row of embeddings against every column. A row is an item; columns are its positives and negatives.

A formula sees rows of the matrix of similarities and never has to know whether it sees all of them: it is written as if
the matrix were there, `[..., rows, columns]`, and takes whatever it needs of a row (a log-sum-exp, a sum over
positives, a maximum, a sort). Small batches run that way. In large ones `run` hands the formula a few rows at a time,
and the matrix never exists (`lossary.folds.pairs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossary.errors import DomainError, ShapeError
from lossary.views.base import Items, View, cached, lifted

#: what a formula may ask of a pair, and whether it is of embeddings of length 1
KINDS = {"sim": True, "dot": False, "dist2": False}


class Pairs(View):
    """embeddings [N, d] or [N, views, d] and integer labels [N] (or [N, views]): rows of one label are positives.

    Or the embeddings of another tower, [N, d]: row i and column i belong together. With `keys` [M, d] and `key_target`
    [M] the columns are other embeddings (a queue, a reference set, a momentum encoder's). A row is never its own
    positive or negative: not itself, and with `ids` [N] and `key_ids` [M] no column of the same sample. `pair_weight`
    [N, M], [1, M] or [N, 1]: how much a pair counts in sums.

    Shapes here: r rows (all N, or a few of them), M columns. A row without a positive is not valid.
    """

    example = "embeddings [N, d] and integer labels [N] (or the other tower's embeddings [N, d])"

    def __init__(
        self,
        rows: Tensor,
        cols: Tensor,
        label: Tensor | None = None,
        col_label: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        kept: Tensor | None = None,
        col_kept: Tensor | None = None,
        pair_weight: Tensor | None = None,
        shape: torch.Size | None = None,
        first: int = 0,
        alone: bool | None = None,
    ) -> None:
        super().__init__(ids=ids)
        self.rows, self.cols, self.label, self.col_label = rows, cols, label, col_label
        self.key_ids, self.kept, self.col_kept, self.pair_weight = key_ids, kept, col_kept, pair_weight
        self.first, self.dtype, self.compute = first, rows.dtype, rows.dtype
        self.alone = rows is cols if alone is None else alone  # one set against itself: row i is column first + i
        self.across: Any = None  # the process group whose rows the columns are
        self.apart = False  # whether they still are with their processes
        self.shape = rows.shape[:1] if shape is None else shape
        self.whole: tuple[Pairs, slice] | None = None  # what this is a part of

    @classmethod
    def build(  # type: ignore[override]
        cls,
        input: Tensor,
        target: Tensor,
        *,
        ids: Tensor | None = None,
        valid: Tensor | None = None,
        keys: Tensor | None = None,
        key_target: Tensor | None = None,
        key_ids: Tensor | None = None,
        pair_weight: Tensor | None = None,
        across: Any = None,
    ) -> Pairs:
        """The view of a batch: embeddings with labels, two towers, or embeddings against keys.

        across: a process group (True: all processes), whose batches together are the columns and the items reduced.
        """
        towers = target.is_floating_point()
        _checked(input, target, keys, key_target, ids, key_ids)
        across = None if across is False else across
        if across is not None and (keys is not None or pair_weight is not None):
            raise DomainError(
                "across gathers the embeddings of a batch, and nothing else",
                needed="across without keys and without pair_weight",
                found="keys" if keys is not None else "pair_weight",
                try_="a queue gathered by hand, keys=..., or no across",
            )
        shape = input.shape[:-1]
        flat = lifted(input).flatten(0, -2)
        kept = None if valid is None else _spread(valid, shape, "valid")
        if kept is not None:  # replaced, not multiplied: what is masked may hold NaN
            flat = torch.where(kept[:, None], flat, 0)
        spread_ids = None if ids is None else _spread(ids, shape, "ids")
        label = None if towers else _spread(target, shape, "target")
        more: dict[str, Any] = {"ids": spread_ids, "kept": kept, "shape": shape}
        if keys is not None:
            view = cls(flat, lifted(keys), label, key_target, key_ids=key_ids, **more)
        else:
            other = flat
            if towers:
                other = lifted(target).flatten(0, -2)
                other = other if kept is None else torch.where(kept[:, None], other, 0)
            if across is None:
                view = cls(flat, other, label, label, col_kept=kept, **more)
            else:
                view = cls._across(flat, other, label, across, more)
        if pair_weight is not None:
            view.pair_weight = _fitting(pair_weight, len(flat), len(view.cols)).to(view.dtype)
        columns = keys if keys is not None else target if towers else input
        half = input.dtype is columns.dtype is torch.bfloat16  # float16 would lose small slopes
        if half and input.is_cuda and torch.cuda.get_device_capability(input.device) >= (8, 0):
            view.compute = torch.bfloat16
        valid_rows = view.has_positive if kept is None else view.has_positive & kept
        view.valid = valid_rows.reshape(shape)
        return view

    @classmethod
    def _across(cls, flat: Tensor, other: Tensor, label: Tensor | None, group: Any, more: dict[str, Any]) -> Pairs:
        from lossary.folds.across import gathered, group_of, offset

        group, kept = group_of(group), more["kept"]
        first = offset(len(flat), group, flat.device)
        if label is None:  # two towers: gathered when it is known that the loss has no ring
            view = cls(flat, other, col_kept=kept, first=first, alone=False, **more)
            view.apart = True
        else:
            labels, col_kept = (None if x is None else gathered(x, group) for x in (label, kept))
            view = cls(flat, gathered(other, group), label, labels, col_kept=col_kept, first=first, alone=True, **more)
        view.across = group
        return view

    def _gather(self) -> None:
        """Make the columns of two towers those of all processes."""
        from lossary.folds.across import gathered

        rows, cols, kept = self.rows, self.cols, self.kept
        self.seen.clear()
        self.cols, self.col_kept = gathered(cols, self.across), None if kept is None else gathered(kept, self.across)
        self.seen["mirror"] = Pairs(  # made here: later there may be no graph to make it in
            cols, gathered(rows, self.across), kept=kept, col_kept=self.col_kept, first=self.first, alone=False
        )
        self.apart = False

    def collected(self, items: Items) -> Items:
        """The items of all processes, if the columns are theirs; every process then has the loss of the whole batch."""
        if self.across is None:
            return items
        from lossary.folds.across import gathered

        return Items(*(None if x is None else gathered(x, self.across) for x in items))  # type: ignore[arg-type]

    def part(self, at: slice) -> Pairs:
        """Some of the rows, against all columns."""
        cut: Any = lambda x: None if x is None else x[at]  # noqa: E731
        weight = self.pair_weight
        out = Pairs(
            self.rows[at],
            self.cols,
            cut(self.label),
            self.col_label,
            ids=cut(self.ids),
            key_ids=self.key_ids,
            kept=cut(self.kept),
            col_kept=self.col_kept,
            pair_weight=weight if weight is None or len(weight) == 1 else weight[at],
            first=self.first + at.start,
            alone=self.alone,
        )
        out.whole = (self, at)
        return out

    def run(self, fn: Callable[..., Tensor], hyper: dict[str, Any]) -> Tensor:
        """The items of a formula, of the items' shape: at once if they are few, else rows by rows."""
        from lossary.folds.pairs import few, stream

        if self.apart:
            from lossary.folds.quick import ring

            found = ring(self, fn, hyper)
            if found is not None:
                return found.reshape(self.shape)
            self._gather()
        loss = fn(self, **hyper) if few(self) else stream(self, fn, hyper)
        return loss.reshape(self.shape)

    # --- who belongs together -------------------------------------------------------------------------------------
    @cached
    def own(self) -> Tensor | None:
        """bool [r, M]: the same sample, which is neither positive nor negative; None where there is none."""
        if self.alone:
            return self._diagonal
        if self.ids is None or self.key_ids is None:
            return None
        return self.ids[:, None] == self.key_ids

    @cached
    def _diagonal(self) -> Tensor:
        at = torch.arange(self.first, self.first + len(self.rows), device=self.rows.device)
        return at[:, None] == torch.arange(len(self.cols), device=self.rows.device)

    @cached
    def _alike(self) -> Tensor:
        assert self.label is not None
        assert self.col_label is not None
        return self.label[:, None] == self.col_label.expand(1, -1)

    @cached
    def out(self) -> Tensor | None:
        """bool [r, M] or [M]: columns that take no part in a row; None where all do."""
        if self.col_kept is None:
            return self.own
        return ~self.col_kept if self.own is None else self.own | ~self.col_kept

    @cached
    def pos(self) -> Tensor:
        """bool [r, M]: positives."""
        if self.label is None:
            return self._diagonal
        return self._alike if self.out is None else self._alike & ~self.out

    @cached
    def neg(self) -> Tensor:
        """bool [r, M]: negatives."""
        other = ~self._diagonal if self.label is None else ~self._alike
        return other if self.out is None else other & ~self.out

    @cached
    def any(self) -> Tensor:
        """bool [r, M]: positives and negatives."""
        return self.pos | self.neg

    @cached
    def positives(self) -> Tensor:
        """How many positives a row has, [r], by their weights if pairs have any."""
        return self.total(self.pos.to(self.dtype), None)

    @cached
    def negatives(self) -> Tensor:
        """How many negatives a row has, [r], by their weights if pairs have any."""
        return self.total(self.neg.to(self.dtype), None)

    @cached
    def has_positive(self) -> Tensor:
        """bool [r], found without a matrix where labels alone decide."""
        if self.label is None or self.col_label is None:
            return torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
        if self.own is not None and not self.alone:  # samples may stand on both sides
            return torch.cat([self.part(slice(i, i + 256)).pos.any(-1) for i in range(0, len(self.rows), 256)])
        low = torch.iinfo(torch.long).min
        given = self.col_label if self.col_kept is None else self.col_label.where(self.col_kept, low)
        ranked, _ = given.long().sort()
        label = self.label.long().contiguous()
        count = torch.searchsorted(ranked, label, right=True) - torch.searchsorted(ranked, label)
        return count > (1 if self.alone else 0)

    # --- how near they are ------------------------------------------------------------------------------------------
    @cached
    def unit_rows(self) -> Tensor:
        """Rows of length 1, [r, d] (a row of zeros stays one)."""
        if self.whole is not None:
            return self.whole[0].unit_rows[self.whole[1]]
        return unit(self.rows)

    @cached
    def unit_cols(self) -> Tensor:
        """Columns of length 1, [M, d]."""
        if self.whole is not None:
            return self.whole[0].unit_cols
        return self.unit_rows if self.cols is self.rows else unit(self.cols)

    @cached
    def sim(self) -> Tensor:
        """Cosines, [r, M]."""
        return product("sim", self.unit_rows, self.unit_cols)

    @cached
    def dot(self) -> Tensor:
        """Inner products, [r, M]."""
        return product("dot", self.rows, self.cols)

    @cached
    def dist2(self) -> Tensor:
        """Squared distances, [r, M], never below 0."""
        return product("dist2", self.rows, self.cols)

    @cached
    def dist(self) -> Tensor:
        """Distances, [r, M]; the gradient at 0 is 0."""
        tiny = torch.finfo(self.dtype).tiny
        return self.dist2.clamp(min=tiny).sqrt().where(self.dist2 > tiny, 0)

    @cached
    def mirror(self) -> Pairs:
        """The same pairs seen from the columns: row i of it is column i of this, against all rows of this."""
        if self.alone:
            return self
        if self.whole is not None:
            return self.whole[0].mirror.part(self.whole[1])
        if len(self.rows) != len(self.cols) or self.label is not None:
            raise ShapeError(
                "only two towers of equal size can be seen from the other side",
                needed="objective(embeddings [N, d], other [N, d])",
                found=f"{len(self.rows)} rows, {len(self.cols)} columns",
            )
        turned = None if self.pair_weight is None else self.pair_weight.mT
        return Pairs(self.cols, self.rows, kept=self.col_kept, col_kept=self.kept, pair_weight=turned)

    # --- sums over a row ------------------------------------------------------------------------------------------
    def total(self, x: Tensor, over: Tensor | None) -> Tensor:
        """Sum of x [r, M] over the columns of a mask, [r]."""
        x = x if self.pair_weight is None else x * self.pair_weight
        return (x if over is None else x.masked_fill(~over, 0)).sum(-1)

    def mean(self, x: Tensor, over: Tensor) -> Tensor:
        """Mean of x [r, M] over the columns of a mask, [r]; 0 where there are none."""
        count = self.total(over.to(self.dtype), None)
        return self.total(x, over) / count.where(count > 0, 1)

    def lse(self, x: Tensor, over: Tensor | None = None) -> Tensor:
        """Log-sum-exp of x [r, M] over the columns of a mask, [r]; where there are none, a number like -1e38.

        Without a mask: over positives and negatives alike.
        """
        if self.pair_weight is not None:
            x = x + self.pair_weight.clamp(min=torch.finfo(self.dtype).tiny).log()
        gone = self.out if over is None else ~over
        return (x if gone is None else x.masked_fill(gone, torch.finfo(self.dtype).min / 8)).logsumexp(-1)

    def largest(self, x: Tensor, over: Tensor) -> Tensor:
        """Maximum of x [r, M] over the columns of a mask, [r]; where there are none, a number like -1e38."""
        if not x.shape[-1]:
            return x.sum(-1) + torch.finfo(self.dtype).min / 8  # with a graph
        return x.masked_fill(~over, torch.finfo(self.dtype).min / 8).amax(-1)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1; a vector of zeros stays one, without a gradient."""
    out: Tensor = _Unit.apply(x)
    return out


def _length(x: Tensor) -> Tensor:
    """|x|, with infinity in the place of 0."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size.where(size > 0, torch.inf)


class _Unit(torch.autograd.Function):
    """x / |x|. Its gradient needs one copy of the embeddings; autograd's own keeps four."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x / _length(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, out = ctx.saved_tensors  # the length is taken again from x, so that a second derivative sees it
        along = (grad * out).sum(-1, keepdim=True)  # no product that autocast would round
        return torch.addcmul(grad, out, along, value=-1) / _length(x)


class _Inner(torch.autograd.Function):
    """rows @ cols.T in the precision of the embeddings, also where the backward pass runs under autocast."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, cols: Tensor) -> Tensor:
        if rows.is_meta:
            return rows @ cols.mT
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ cols.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = ctx.saved_tensors
        return _Inner.apply(grad, cols.mT), _Inner.apply(grad.mT, rows.mT)


def product(kind: str, rows: Tensor, cols: Tensor) -> Tensor:
    """A kind of nearness of rows [r, d] and columns [M, d]."""
    s: Tensor = _Inner.apply(rows, cols.view_as(cols))  # the compiler refuses one tensor on both sides
    if kind != "dist2":
        return s
    return (rows.square().sum(-1)[:, None] + cols.square().sum(-1) - 2 * s).clamp(min=0)


def _spread(x: Tensor, shape: torch.Size, name: str) -> Tensor:
    """What is given for samples, or for every view of them, one a row."""
    if x.shape != shape[: x.ndim]:
        raise ShapeError(f"{name} does not fit the embeddings", needed=f"shape {list(shape)}", found=f"{list(x.shape)}")
    return x.reshape(*x.shape, *[1] * (len(shape) - x.ndim)).expand(shape).flatten()


def _fitting(weight: Tensor, rows: int, cols: int) -> Tensor:
    if weight.ndim != 2 or weight.shape[0] not in (1, rows) or weight.shape[1] not in (1, cols):
        needed = f"[{rows}, {cols}], [1, {cols}] or [{rows}, 1]"
        raise ShapeError("pair_weight does not fit the pairs", needed=needed, found=f"{list(weight.shape)}")
    return weight.detach()


def _checked(
    input: Tensor,
    target: Tensor,
    keys: Tensor | None,
    key_target: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
) -> None:
    if input.ndim not in (2, 3) or not input.is_floating_point():
        raise ShapeError("embeddings must be vectors", needed=Pairs.example, found=f"{input.dtype} {list(input.shape)}")
    if target.is_floating_point() and (target.shape != input.shape or keys is not None):
        raise ShapeError(
            "targets are labels or the other tower",
            needed=f"integers {list(input.shape[:1])} or embeddings {list(input.shape)}, the latter without keys",
            found=f"{target.dtype} {list(target.shape)}",
        )
    if not target.is_floating_point() and target.shape not in (input.shape[:1], input.shape[:-1]):
        raise ShapeError(
            "labels do not fit the embeddings",
            needed=f"integers of shape {list(input.shape[:1])} or {list(input.shape[:-1])}",
            found=f"{list(target.shape)}",
        )
    if (keys is None) != (key_target is None):
        raise DomainError("keys and key_target go together", try_="key_target=-1 for keys that are nobody's positive")
    if keys is None or key_target is None:
        return
    if keys.ndim != 2 or keys.shape[1] != input.shape[-1] or key_target.shape != keys.shape[:1]:
        raise ShapeError(
            "keys do not fit",
            needed=f"embeddings [M, {input.shape[-1]}] and integers [M]",
            found=f"{list(keys.shape)} and {list(key_target.shape)}",
        )
    if key_target.is_floating_point() or (key_ids is not None and key_ids.shape != key_target.shape):
        raise ShapeError("key_target and key_ids must be integers [M]", found=f"{key_target.dtype}")
    if (key_ids is None) != (ids is None) and key_ids is not None:
        raise DomainError("key_ids need the ids of the rows", try_="ids=..., one integer a sample")
