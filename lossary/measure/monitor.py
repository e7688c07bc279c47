"""A monitor of training: what happens inside, step by step, kept as it happens and passed to other tools' writers.

Gradient norms, sizes of updates against weights, curvature against the step size, attention logits, and how the
gradients of several loss terms agree. Every record is one line of JSON, written at once: a crash loses nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lossary.errors import DomainError, MissingExtra, MissingInput, StoreError
from lossary.measure.landscape import pictures
from lossary.measure.landscape.base import Landscape
from lossary.measure.landscape.sharpness import edge
from lossary.measure.landscape.stability import Alarm, AttentionLogits, early_warning

Record = dict[str, Any]


class Writer(Protocol):
    """Takes the numbers of one step."""

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None: ...


class Monitor:
    """Watches a training loop.

    >>> monitor = Monitor(model, optimizer, path="run.jsonl", every=10)
    >>> with monitor.step(loss=loss):  # after backward(), around the optimizer's step
    ...     optimizer.step()

    Due steps (every `every`-th, from the first) get a record: "loss" and what else `step` is given, "gradient norm",
    "gradient rms", and "update / weight", the norm of the step over that of the weights. details: these for each tensor
    too. landscape: a `Landscape` of the loss; every `curvature_every` steps "curvature" and "edge" are added, the
    largest eigenvalue and its ratio to what the optimizer's step size bears. attention: an `AttentionLogits`. path: a
    JSON Lines file, continued if it exists. writers: see `tensorboard`, `mlflow`, `wandb`, or any function of
    (step, numbers). Without a model, `log` alone records what it is given.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        path: str | Path | None = None,
        writers: Sequence[Writer] = (),
        every: int = 1,
        details: bool = False,
        landscape: Landscape | None = None,
        curvature_every: int = 100,
        attention: AttentionLogits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if every < 1 or curvature_every < 1:
            raise DomainError("every is out of range", needed="at least 1", found=f"{every}, {curvature_every}")
        self.model, self.optimizer, self.writers = model, optimizer, list(writers)
        self.every, self.details, self.curvature_every = every, details, curvature_every
        self.landscape, self.attention, self.clock = landscape, attention, clock
        self.path = Path(path) if path is not None else None
        self.history: list[Record] = []
        if self.path is not None and self.path.exists():
            self.history = read(self.path)
            _mend(self.path)
        self.count = int(self.history[-1]["step"]) + 1 if self.history else 0
        self._pending: Record = {}

    # --- recording --------------------------------------------------------------------------------------------------
    def log(self, step: int | None = None, **numbers: float | Tensor | Mapping[str, Any]) -> Record:
        """Record numbers at a step, by default the next. Mappings are flattened: terms={"ce": 1} is "terms/ce"."""
        step = self.count if step is None else int(step)
        record: Record = {"step": step, "time": self.clock(), **self._pending, **_flat(numbers)}
        self._pending = {}
        self.count = step + 1
        self.history.append(record)
        if self.path is not None:
            self._write(record)
        floats = {k: v for k, v in record.items() if k not in ("step", "time") and isinstance(v, float)}
        for writer in self.writers:
            writer(step, floats)
        return record

    @property
    def due(self) -> bool:
        """Whether the next step is one of which there will be a record."""
        return self.count % self.every == 0

    @contextmanager
    def step(
        self, loss: float | Tensor | None = None, **numbers: float | Tensor | Mapping[str, Any]
    ) -> Iterator[Record]:
        """Around the optimizer's step. Its gradients are read after it, so they are unscaled and clipped; where it
        leaves none (`zero_grad` inside), those from before count. Gives a dict for numbers that are known only inside:
        `with monitor.step() as note: note["loss"] = sam_step(closure)`.
        """
        note: Record = {} if loss is None else {"loss": loss}
        if self.model is None:
            raise MissingInput("step needs the model", try_="Monitor(model), or monitor.log(loss=...)")
        if not self.due:
            yield note
            self._pending = {}
            self.count += 1
            return
        params = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        before = [p.detach().clone() for _, p in params]
        earlier = self._gradients(params)
        if self.landscape is not None and self.count % self.curvature_every == 0:
            self._pending |= self._curvature()  # at the point that the gradient is of
        yield note
        seen = self._gradients(params) or earlier
        moved = [p.detach() - old for (_, p), old in zip(params, before, strict=True)]
        change, size = _norm(moved), _norm(before)
        found: Record = {"update / weight": change / size if size else math.nan}
        if seen:
            total = _norm(list(seen.values()))
            found |= {"gradient norm": total, "gradient rms": total / math.sqrt(sum(g.numel() for g in seen.values()))}
        if self.details:
            for (name, _), step, old in zip(params, moved, before, strict=True):
                if name in seen:
                    rms = _norm([seen[name]]) / math.sqrt(old.numel())
                    found |= {f"{name}/gradient rms": rms}
                found |= {f"{name}/update / weight": _norm([step]) / (_norm([old]) or math.nan)}
        if self.attention is not None:
            found |= {f"attention/{n}/{k}": v for n, seen_ in self.attention.read().items() for k, v in seen_.items()}
        both: Record = {**note, **numbers, **found}
        self.log(None, **both)

    def terms(self, losses: Mapping[str, Tensor], params: Sequence[Tensor] | None = None) -> Record:
        """How the terms of an objective share loss and gradient, for the next record. Before backward().

        losses: scalars with a graph, which is kept. params: those that the terms share, by default the model's. Added
        are for each term "loss share", "gradient norm" and "gradient share" (of the sums of sizes), for each pair the
        cosine of their gradients, and "conflicts", the number of pairs whose cosine is below 0.
        """
        if not self.due:
            return {}
        given = list(params) if params is not None else [] if self.model is None else list(self.model.parameters())
        shared = [p for p in given if p.requires_grad]
        if not shared or len(losses) < 1:
            raise MissingInput("terms need losses and parameters", try_='monitor.terms({"a": a, "b": b}, params)')
        rows = []
        for one in losses.values():
            got = torch.autograd.grad(one, shared, retain_graph=True, allow_unused=True)
            rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(got, shared, strict=True)])
        return self.gradients(dict(zip(losses, rows, strict=True)), {k: v.item() for k, v in losses.items()})

    def gradients(self, gradients: Mapping[str, Sequence[Tensor]], losses: Mapping[str, float] | None = None) -> Record:
        """`terms` from gradients that are there already: those that a balancer was given."""
        flat = torch.stack([torch.cat([g.detach().reshape(-1).double() for g in one]) for one in gradients.values()])
        return self.gramian(list(gradients), flat @ flat.T, losses)

    def gramian(
        self,
        names: Sequence[str],
        gramian: Tensor,
        losses: Mapping[str, float] | None = None,
        weights: Tensor | None = None,
    ) -> Record:
        """`terms` from the inner products of the gradients [T, T]. weights [T]: of a balancer, recorded too."""
        if gramian.shape != (len(names), len(names)):
            raise DomainError(
                "the Gramian does not fit", needed=f"[{len(names)}, {len(names)}]", found=f"{gramian.shape}"
            )
        inner = gramian.detach().double().cpu()
        norms = inner.diagonal().clamp(min=0).sqrt()
        cosine = inner / norms[:, None] / norms  # NaN where a term has no gradient: it has no angle either
        whole = sum(map(abs, losses.values())) if losses is not None else 0.0
        out = Record()
        for i, name in enumerate(names):
            out[f"terms/{name}/gradient norm"] = float(norms[i])
            out[f"terms/{name}/gradient share"] = float(norms[i] / norms.sum()) if norms.sum() else math.nan
            if losses is not None:
                out[f"terms/{name}/loss"] = losses[name]
                out[f"terms/{name}/loss share"] = abs(losses[name]) / whole if whole else math.nan
            if weights is not None:
                out[f"terms/{name}/weight"] = float(weights[i])
            for j in range(i):
                out[f"cosine/{names[j]} and {name}"] = float(cosine[j, i])
        pairs = [cosine[j, i] for i in range(len(names)) for j in range(i)]
        out["conflicts"] = float(sum(bool(c < 0) for c in pairs))
        self._pending |= out
        return out

    def seen(self, seen: Any) -> Record:
        """What a `lossary.step` saw of its terms in the last step (`step.seen`), for the next record.

        With groups of parameters: angles and norms over all groups, and the weights of each.
        """
        losses = {k: float(v.detach()) for k, v in seen.losses.items()}
        if seen.groups and seen.gramian is not None:
            out = self.gramian(list(losses), seen.gramian.sum(0), losses)
            for group, weights in zip(seen.groups, seen.weights if seen.weights is not None else (), strict=False):
                out |= {
                    f"terms/{k}/weight in {group or 'the rest'}": float(w) for k, w in zip(losses, weights, strict=True)
                }
            self._pending |= out
            return out
        if seen.gramian is not None:
            return self.gramian(list(losses), seen.gramian, losses, seen.weights)
        whole = sum(map(abs, losses.values()))
        out = {f"terms/{k}/loss": v for k, v in losses.items()}
        out |= {f"terms/{k}/loss share": abs(v) / whole if whole else math.nan for k, v in losses.items()}
        if seen.weights is not None:
            out |= {f"terms/{k}/weight": float(w) for k, w in zip(losses, seen.weights, strict=True)}
        self._pending |= out
        return out

    def _curvature(self) -> Record:
        assert self.landscape is not None
        started = self.optimizer is not None and bool(self.optimizer.state)
        adaptive = isinstance(self.optimizer, torch.optim.Adam | torch.optim.AdamW)
        if self.optimizer is None or (adaptive and not started):  # Adam's scale is known after a step
            return {"curvature": edge(self.landscape, lr=1.0).curvature}
        found = edge(self.landscape, self.optimizer)
        return {"curvature": found.curvature, "edge": found.ratio}

    @staticmethod
    def _gradients(params: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {n: p.grad.detach().clone() for n, p in params if p.grad is not None}

    def _write(self, record: Record) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(pictures.plain(record)) + "\n")
        except OSError as error:
            raise StoreError("the record cannot be written", found=f"{self.path}: {error}") from error

    # --- reading ----------------------------------------------------------------------------------------------------
    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one number, where it was recorded."""
        found = [(int(r["step"]), float(r[key])) for r in self.history if key in r]
        return [s for s, _ in found], [v for _, v in found]

    def alarms(self, **settings: Any) -> list[Alarm]:
        """Early warnings so far; settings as `lossary.measure.landscape.early_warning` takes them."""
        return early_warning(self.history, **settings)

    def figure(self, keys: Sequence[str] | None = None) -> Any:
        """A Plotly figure, one panel below the other for each kind of number (those that end alike share one)."""
        from lossary.errors import need

        names = [k for k in dict.fromkeys(k for r in self.history for k in r) if k not in ("step", "time")]
        names.sort(key=lambda k: k != "loss")  # the loss on top
        names = [k for k in names if isinstance(next(r[k] for r in self.history if k in r), float)]
        if keys is not None:
            names = [k for k in names if k in keys]
        if not names:
            raise MissingInput("nothing was recorded", needed="at least one number")
        panels: dict[str, list[str]] = {}
        for name in names:
            kind = name.split("/")[0] if name.startswith("cosine/") else name.rsplit("/", 1)[-1].strip()
            kind = "update / weight" if name.endswith("update / weight") else kind
            panels.setdefault(kind, []).append(name)
        make = need("plotly.subplots", "report").make_subplots
        shown = make(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.3 / max(len(panels), 1) ** 1.1)
        colours = pictures.colours()
        for row, (kind, members) in enumerate(panels.items(), 1):
            values = [v for m in members for v in self.series(m)[1] if math.isfinite(v)]
            wide = bool(values) and min(values) > 0 and max(values) / min(values) > 30
            for i, name in enumerate(members):
                steps, y = self.series(name)
                line = {"color": colours[i % len(colours)], "width": 2}
                label = name.removeprefix("terms/").removesuffix(f"/{kind}")
                shown.add_scatter(
                    x=steps, y=y, name=label, mode="lines+markers" if len(y) < 40 else "lines", line=line,
                    legendgroup=kind, legendgrouptitle={"text": kind}, showlegend=len(members) > 1, row=row, col=1,
                )  # fmt: skip
            shown.update_yaxes(
                title_text=kind, type="log" if wide else "linear", exponentformat="power", row=row, col=1
            )
        look = pictures.layout("Training", "", "")
        axis = {k: v for k, v in look["xaxis"].items() if k != "title"}
        shown.update_xaxes(**axis)
        shown.update_yaxes(**axis)
        shown.update_xaxes(title_text="step", row=len(panels), col=1)
        rest = {k: v for k, v in look.items() if k not in ("xaxis", "yaxis")}
        shown.update_layout(**rest, height=90 + 190 * len(panels))
        if "edge" in panels:
            at = list(panels).index("edge") + 1
            shown.add_hline(y=1.0, line={"dash": "dash", "color": "#7d848e"}, row=at, col=1)
        return shown

    def save(self, path: str | Path) -> Path:
        """The picture as one HTML file, and the history as JSON beside."""
        return pictures.save(self.figure(), path, {"history": self.history})


def read(path: str | Path) -> list[Record]:
    """The records of a JSON Lines file. A last line that a crash cut short is left out."""
    out: list[Record] = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if i >= len(lines) - 1:
                break
            raise StoreError(f"line {i + 1} of {path} is not a record", found=line[:60]) from error
        out.append({k: float(v) if k != "step" and v in ("nan", "inf", "-inf") else v for k, v in record.items()})
    return out


def _mend(path: Path) -> None:
    """Cut off a last line without its end, so that the next record begins a line of its own."""
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


# --- writers of other tools -------------------------------------------------------------------------------------------
def tensorboard(writer: Any = None, *, folder: str | Path = "runs", prefix: str = "") -> Writer:
    """Pass numbers to TensorBoard. writer: a SummaryWriter, by default a new one into `folder`."""
    if writer is None:
        writer = _imported("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder))

    def write(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(prefix + name.replace(" / ", " per "), value, step)
        if hasattr(writer, "flush"):
            writer.flush()

    return write


def mlflow(run: Any = None, *, prefix: str = "") -> Writer:
    """Pass numbers to MLflow's active run. run: what has `log_metric(key, value, step=)`, by default mlflow itself."""
    target = _imported("mlflow", "mlflow") if run is None else run

    def write(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            # of other characters MLflow refuses the name
            target.log_metric(
                "".join(c if c.isalnum() or c in "_-. /" else "_" for c in prefix + name), value, step=step
            )

    return write


def wandb(run: Any = None, *, prefix: str = "") -> Writer:
    """Pass numbers to Weights & Biases. run: what `wandb.init` gave, by default the run that is active."""
    if run is None:
        run = _imported("wandb", "wandb").run
        if run is None:
            raise MissingInput("no W&B run is active", try_="wandb(wandb.init(...))")

    def write(step: int, numbers: Mapping[str, float]) -> None:
        run.log({prefix + name: value for name, value in numbers.items()}, step=step)

    return write


def _imported(module: str, package: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{package} is not installed",
            needed=f"{package}, or a writer of your own",
            try_=f"pip install {package}",
        ) from error


# --- helpers ----------------------------------------------------------------------------------------------------------
def _flat(numbers: Mapping[str, Any], prefix: str = "") -> Record:
    out: Record = {}
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, Tensor):
            if value.numel() != 1:
                raise DomainError(f"{prefix}{key} is not one number", found=f"shape {list(value.shape)}")
            out[prefix + key] = float(value.detach())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[prefix + key] = float(value)
        else:
            out[prefix + key] = value
    return out


def _norm(tensors: Sequence[Tensor]) -> float:
    """Of all together, in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


__all__ = ["Monitor", "Writer", "mlflow", "read", "tensorboard", "wandb"]
