"""The command line. Each command calls the function a Python user would call, and shows what it gives back."""

from __future__ import annotations

import json
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from lossary.catalogue import kept
from lossary.errors import DomainError
from lossary.workbench import cli_catalogue
from lossary.workbench.terminal import bar, one_line, out

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Which training objective should I use on my data, and does it help?",
)
Where = Annotated[str | None, typer.Option("--store", help="Database of runs: a path or an SQLAlchemy URL.")]


@app.command()
def compare(
    data: Annotated[
        str, typer.Argument(help="CSV, TSV, Parquet, NPZ, a folder of images by class, or sklearn:digits ...")
    ],
    target: Annotated[list[str] | None, typer.Option(help="Target column (repeat for several labels).")] = None,
    test: Annotated[str | None, typer.Option(help="Your own hold-out, of the same kind as DATA.")] = None,
    task: Annotated[str, typer.Option(help="auto, binary, multiclass, multilabel or regression.")] = "auto",
    drop: Annotated[list[str] | None, typer.Option(help="Columns to leave out.")] = None,
    objectives: Annotated[
        list[str] | None,
        typer.Option("--objectives", "-o", help="Expressions or presets, ';' between: 'focal(gamma=2);preset:noisy'."),
    ] = None,
    model: Annotated[str, typer.Option(help="linear, mlp, cnn, or your own module:function.")] = "mlp",
    hidden: Annotated[str | None, typer.Option(help="Widths of hidden layers: 64 or 128,64.")] = None,
    metric: Annotated[str, typer.Option(help="The metric that decides (default by task).")] = "",
    rope: Annotated[float | None, typer.Option(help="The largest difference that does not matter.")] = None,
    splits: Annotated[int, typer.Option(help="Random train/test splits.")] = 10,
    trials: Annotated[int, typer.Option(help="Tuning trials for each candidate and split.")] = 8,
    seeds: Annotated[int, typer.Option(help="Trainings of each tuned candidate on each split.")] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the training rows (0: about 1000 steps).")] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows per step (0: by the number of rows).")] = 0,
    test_fraction: Annotated[float, typer.Option(help="Share of rows tested in each split.")] = 0.2,
    holdout: Annotated[float, typer.Option(help="Share of rows never touched until the end (0: none).")] = 0.2,
    inject_noise: Annotated[
        float, typer.Option(help="Make this share of training labels wrong; tests stay clean.")
    ] = 0.0,
    inject_imbalance: Annotated[float, typer.Option(help="Subsample classes, largest : smallest = this.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="Error rate of the tests.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Decides splits, starts and batches.")] = 0,
    engine: Annotated[str, typer.Option(help="auto, batched or sequential.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    store: Where = None,
    output: Annotated[Path, typer.Option("--output", help="Folder for report.html and report.json.")] = Path(
        "lossary-runs"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew, also if the same comparison was interrupted.")
    ] = False,
) -> None:
    """Compare training objectives on your data: same splits, seeds and tuning for each; a verdict in words.

    Killed or interrupted, the same command goes on where it stopped.
    """
    from lossary.workbench.compare import compare as run_compare
    from lossary.workbench.data import load

    with one_line():
        dataset = load(data, target=target or None, task=task, test=test, drop=drop or [])
        names = [name.strip() for text in objectives or ["preset:all"] for name in text.split(";") if name.strip()]
        out.print(
            f"[bold]{_plain(dataset.name)}[/]: {len(dataset):,} rows, {len(dataset.features)} features, {dataset.task}"
            + (f", {len(dataset.classes)} classes" if dataset.classes and dataset.task != "multilabel" else "")
        )
        for note in dataset.notes:
            out.print(f"  [dim]{_plain(note)}[/]")
        with bar() as tell:
            made = run_compare(
                dataset,
                objectives=names,
                store=store,
                fresh=fresh,
                progress=tell,
                command="lossary " + shlex.join(sys.argv[1:]),
                on_run=_opened,
                splits=splits,
                test_fraction=test_fraction,
                holdout_fraction=holdout,
                trials=trials,
                seeds=seeds,
                epochs=epochs,
                batch_size=batch_size,
                model=model,
                hidden=_widths(hidden),
                metric=metric,
                rope=rope,
                alpha=alpha,
                seed=seed,
                noise=inject_noise,
                imbalance=inject_imbalance,
                engine=engine,
                device=device,
            )
        _show(made.run)
        _written(made.run, output / made.run["run"])


@app.command()
def runs(store: Where = None) -> None:
    """List the runs in the store."""
    from lossary.workbench.store import Store

    with one_line(), Store(store, create=False) as database:
        table = Table("run", "started", "status", "records", "command")
        for row in database.runs():
            status = row["status"] + (f": {row['message']}" if row["message"] else "")
            table.add_row(row["id"], row["created"], Text(status), str(row["records"]), Text(row["command"]))
        out.print(table)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="The run's id or its beginning (default: the newest).")] = "",
    store: Where = None,
    output: Annotated[Path, typer.Option("--output", help="Folder for the report.")] = Path("lossary-runs"),
) -> None:
    """Draw the report of a finished run again, and show its verdict."""
    from lossary.workbench.store import Store

    with one_line(), Store(store, create=False) as database:
        found = database.run(run)
        if found.result is None:
            raise DomainError(f"run {found.id} is {found.status}", needed="a finished run", try_=found.command)
        _show(found.result)
        _written(found.result, output / found.id)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Which study (none: list them).")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="A small version, to see that it runs.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    output: Annotated[Path, typer.Option("--output", help="Folder for the study's JSON.")] = Path("lossary-runs"),
) -> None:
    """Run a study: a claim, tried on data, with seeds and intervals."""
    from lossary.workbench import studies

    with one_line():
        if not name:
            table = Table("study", "claim")
            for key, file in studies.known().items():
                table.add_row(key, Text(studies.about(file)))
            out.print(table)
            return
        with bar() as tell:
            result = studies.run(name, seed=seed, quick=quick, progress=tell)
        out.print_json(json.dumps(result))
        path = studies.write(result, output)
        out.print(f"[bold]{_plain(result['verdict'])}[/]: {_plain(result['claim'])}\n  {path}")


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="A method's key, or your own as module:function.")],
    laws: Annotated[list[str] | None, typer.Option("--law", help="Only these laws.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Try anew what held in this same installation.")] = False,
) -> None:
    """Try every law on a method, also on one of your own, and show what holds. Exit code 1 if one breaks."""
    own = ":" in method
    asked, depends = ("check", method, laws), [version("torch"), version("numpy")]
    if not own and not again and (held := kept.read(*asked, depends=depends)):
        _laws([(name, tried, Text("holds", style="green"), says) for name, tried, says in held.answer])
        out.print(f"{sum(tried for _, tried, _ in held.answer)} tries, all hold", highlight=False)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(held.when))
        out.print(f"tried {when}; nothing was changed since, --again tries anew", style="dim", highlight=False)
        return
    from lossary.laws import LAWS
    from lossary.laws import check as run_check
    from lossary.workbench.models import imported

    with one_line():
        subject = imported(method, "method") if own else method
        with bar() as tell:
            done = run_check(subject, laws or None, progress=tell)
        rows = []
        for name in dict.fromkeys(o.law for o in done):
            mine = [o for o in done if o.law == name]
            broken = [o for o in mine if not o.holds]
            says = f"at {broken[0].hyper}: {broken[0].detail}" if broken else LAWS[name].about.splitlines()[0]
            mark = Text("breaks", style="red") if broken else Text("holds", style="green")
            rows.append((name, len(mine), mark, says))
        _laws(rows)
        failed = sum(not o.holds for o in done)
        out.print(f"{len(done)} tries, {failed} broken" if failed else f"{len(done)} tries, all hold")
        if failed:
            raise typer.Exit(1)
        if not own:
            kept.write([(name, tried, says) for name, tried, _, says in rows], *asked, depends=depends)


def _laws(rows: list[tuple[str, int, Text, str]]) -> None:
    table = Table("law", "tried", "", "what it says, or what broke", box=box.SIMPLE_HEAD)
    for name, tried, mark, says in rows:
        table.add_row(name, str(tried), mark, Text(says))
    out.print(table)


cli_catalogue.register(app)


# --- helpers ---------------------------------------------------------------------------------------------------------
def _opened(run: Any) -> None:
    out.print(f"  [dim]run {run.id}" + (", going on where it stopped" if run.resumed else "") + "[/]")


def _plain(text: object) -> str:
    """Text from a user's file, with nothing in it taken for markup."""
    return str(text).replace("[", r"\[")


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        widths = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1:
        raise DomainError("cannot read --hidden", needed="widths like 64 or 128,64", found=repr(text))
    return widths


def _show(run: dict[str, Any]) -> None:
    from lossary.workbench.report import leaderboard_rows
    from lossary.workbench.report.tables import decimals

    metric = run["metrics"][run["protocol"]["metric"]]
    alpha = run["protocol"]["alpha"]
    table = Table(
        box=box.SIMPLE_HEAD, title=metric["label"], title_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("objective", overflow="fold", min_width=24)
    table.add_column("score", justify="right")
    table.add_column("better", justify="right")
    table.add_column(f"{1 - alpha:.0%} interval", justify="right", no_wrap=True)
    table.add_column("p Holm", justify="right")
    table.add_column("verdict", no_wrap=True, min_width=11)
    digits = f"{{:.{decimals(run, run['protocol']['metric'])}f}}"
    colours = {"better": "green", "worse": "red", "equivalent": "cyan", "baseline": "bold", "cannot tell": "dim"}
    for row in leaderboard_rows(run):
        verdict = row["verdict"] or "baseline"
        table.add_row(
            Text(_broken(row["name"])),
            _number(row["mean"], digits),
            _signed(row["diff"]),
            f"{_signed(row['low'])} to {_signed(row['high'])}" if row["low"] is not None else "",
            _number(row["p"], "{:.2g}"),
            Text(verdict, style=colours.get(verdict, "")),
        )
    out.print(table)
    out.print(Text(run["verdict"]["headline"], style="bold"))
    for sentence in run["verdict"]["words"]:
        out.print(Text(sentence))
    for aside in filter(None, (run["verdict"].get("left_out"), _effort(run))):
        out.print(Text(aside, style="dim"))


def _effort(run: dict[str, Any]) -> str:
    from lossary.workbench.report.tables import duration

    p, n = run["protocol"], len(run["candidates"])
    told = f"{n} objectives, {p['splits']} splits, tuning trials: {p['trials']}, seeds: {p['seeds']}"
    took = f"; {duration(run['seconds'])}" + (" since it went on" if run.get("resumed") else "")
    return told + (f"; {run['models']:,} models" if run.get("models") else "") + took


def _broken(name: str, width: int = 24) -> str:
    """A long expression on lines that begin where a weight or a reduction does."""
    return name if len(name) <= width else name.replace(".weigh(", "\n.weigh(").replace(".reduce(", "\n.reduce(")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}" if abs(value) < 10 else f"{value:+.4g}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _written(run: dict[str, Any], folder: Path) -> None:
    from lossary.workbench.report import write

    for path in write(run, folder):
        out.print(Text(f"  {path.resolve()}", style="dim"), soft_wrap=True)


if __name__ == "__main__":
    app()
