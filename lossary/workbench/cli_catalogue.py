"""The commands that read the catalogue: search, show, cite, coverage, list. None of them imports PyTorch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from lossary.workbench.terminal import one_line, out

if TYPE_CHECKING:
    from lossary.catalogue.coverage import Mapped
    from lossary.catalogue.schema import Paper, Row

STYLES = {"works": "green", "partly": "yellow", "not yet": "dim"}
Json = Annotated[bool, typer.Option("--json", help="Plain JSON.")]


def search(
    words: Annotated[list[str] | None, typer.Argument(help="What it is about: noisy labels, focal, R17 ...")] = None,
    family: Annotated[str, typer.Option(help="noise, calibration, classification/noise ...")] = "",
    year: Annotated[str, typer.Option(help="2020, 2020-2023, 2020- or -2015.")] = "",
    state: Annotated[str, typer.Option(help="works, partly or not-yet.")] = "",
    kind: Annotated[str, typer.Option(help="formula, weight, reduce, track, alias; of papers method, survey ...")] = "",
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 12,
    as_json: Json = False,
) -> None:
    """Search the methods and the 479 source papers, built or not. Typos are forgiven."""
    from lossary.catalogue import search as engine

    query = " ".join(words or [])
    with one_line():
        hits = engine.search(query, family=family, year=year, state=state, kind=kind)
        near = [] if hits else engine.index().nearest(query)
    if as_json:
        _json([hit.plain() for hit in hits[:limit]])
    elif hits:
        wide = {"family": 0, "year": 0} if out.width >= 100 else {}
        table = _table(**{"": 0, "name": 4, "what": 6, **wide, "state": 0, "how to use it": 6})
        for n, hit in enumerate(hits[:limit], 1):
            e = hit.entry
            name = Text(e.name, style="bold") if e.id == e.name else Text.assemble((e.id, "dim"), " ", e.name)
            state_of = Text(e.state, style=STYLES[e.state]).append(f"\n{e.level}" if e.level else "", style="dim")
            about = [e.family.replace("/", "/\n"), str(e.year)] if wide else []
            table.add_row(str(n), name, Text(e.title), *about, state_of, Text(e.use))
        out.print(table)
        if len(hits) > limit:
            out.print(Text(f"and {len(hits) - limit} more: --limit {len(hits)}", style="dim"))
    if not hits:
        filters = any((family, year, state, kind))
        print(
            f"lossary: nothing found for {query!r}"
            + (" with these filters" if filters else "")
            + (f"; nearest words: {', '.join(near)}" if near else ""),
            file=sys.stderr,
        )
        raise typer.Exit(1)


def show(
    key: Annotated[str, typer.Argument(help="A method's key, or the row of a paper: dual_focal, R17.")],
    as_json: Json = False,
) -> None:
    """Show all that is known about a method or a paper: formula, hyperparameters, limits, evidence, citation."""
    from lossary.catalogue import schema

    with one_line():
        if key[:1] in "Rr" and key[1:].isdigit():
            paper = schema.find_paper(key)
            if as_json:
                from lossary.catalogue import coverage

                state = next(s for s in coverage.listed() if s["row"] == paper.row)
                _json({**schema.plain(paper), **{k: state[k] for k in ("state", "level", "uses", "does", "missing")}})
                return
            parts = list(_paper(paper))
        else:
            made = schema.find_method(key)
            if as_json:
                _json(_facts(made))
                return
            parts = list(_method(made))
    for part in parts:
        out.print(part)


def cite(
    config: Annotated[str, typer.Argument(help="An expression, a config's JSON file, or a report.json.")],
) -> None:
    """Print the BibTeX of exactly what is configured: its methods, weights and reductions."""
    from lossary.catalogue import cite as engine

    with one_line():
        found = engine.configured(config)
        print(engine.bibtex(engine.rows_of(part for parts in found.values() for part in parts)), end="")


def coverage(
    family: Annotated[str, typer.Option(help="Only one family of papers, row by row.")] = "",
    state: Annotated[str, typer.Option(help="Only papers in this state, row by row: works, partly or not-yet.")] = "",
    survey: Annotated[str, typer.Option(help="The losses and metrics of a survey: R203, R391 or R458.")] = "",
    as_json: Json = False,
) -> None:
    """Show how many of the 479 source papers work, by family; or what stands for each entry of a survey."""
    from lossary.catalogue import coverage as engine

    with one_line():
        if survey:
            read, entries = engine.survey(survey)
            if as_json:
                _json(
                    {
                        "survey": survey,
                        "read": read,
                        "entries": [{k: v for k, v in vars(e).items() if v} for e in entries],
                    }
                )
            else:
                out.print(_survey(read, entries))
                here = sum(e.present for e in entries)
                out.print(f"{len(entries)} entries, {here} with something to run, {len(entries) - here} without")
            return
        rows = engine.listed(family, state.replace("-", " "))
        totals = engine.summary(family)
    if as_json:
        _json({"families": totals, "rows": rows})
    elif family or state:
        out.print(_listed(rows))
        out.print(f"{len(rows)} papers")
    else:
        out.print(_totals(totals))
        count = {s: sum(int(t[s]) for t in totals) for s in engine.STATES}
        levels = [r["level"] or "tests" for r in rows if r["state"] == "works"]
        proof = ", ".join(f"{levels.count(level)} {level}" for level in dict.fromkeys(sorted(levels)))
        out.print(
            f"{len(rows)} papers: {', '.join(f'{n} {s}' for s, n in count.items())}. Evidence of what works: {proof}."
        )


def list_methods() -> None:
    """List every objective, weight, reduction and tracker, with what it is in one line."""
    from lossary.catalogue import schema, source

    with one_line():
        table = Table("name", "looks at", "hyperparameters", "what it is")
        for code in source.methods().values():
            table.add_row(code.path, code.view, ", ".join(code.hyper), Text(code.about))
        for key, made in schema.methods().items():
            if made.alias_of:
                stands_for = f"{made.alias_of}({', '.join(f'{k}={v!r}' for k, v in made.with_.items())})"
                path = source.PREFIX[made.role] + key
                table.add_row(path, made.view, ", ".join(made.hyper), Text(f"{made.title}: {stands_for}"))
    out.print(table)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("list")(list_methods)
    for command in (search, show, cite, coverage):
        app.command()(command)


# --- one method, one paper -------------------------------------------------------------------------------------------
def _facts(made: Row) -> dict[str, Any]:
    """A method as plain JSON, with what is computed."""
    from lossary.catalogue import evidence, latex, schema, source

    proof = evidence.evidence(made.key)
    code = source.methods()[made.alias_of or made.key]
    return {
        **schema.plain(made),
        "path": source.PREFIX[made.role] + made.key,
        "formula_text": latex.text(made.formula),
        "version": code.version,
        "file": f"{code.file}:{code.line}",
        "evidence": {
            "level": proof.level,
            "values": [{**vars(v), "numbers": list(v.numbers)} for v in proof.values],
            "studies": [{**vars(s), "stale": list(s.stale)} for s in proof.studies],
        },
    }


def _method(made: Row) -> Iterator[Any]:
    from lossary.catalogue import cite as citing
    from lossary.catalogue import evidence, latex, schema, source

    code = source.methods()[made.alias_of or made.key]
    proof = evidence.evidence(made.key)
    call = code.call({n: source.REQUIRED if h.default is None else h.default for n, h in made.hyper.items()})
    if made.alias_of:
        call = call.replace(f"{made.alias_of}(", f"{made.key}(")
    yield Text.assemble((made.key, "bold"), "  ", made.title, (f"  {made.family}, {made.role} of {made.view}", "dim"))
    yield Text(made.summary)
    yield Text(f"\n    {latex.text(made.formula)}\n", style="bold cyan")
    yield _line("use", call)
    if made.alias_of:
        yield _line("stands for", f"{made.alias_of} with {_settings(made.with_)}")
    if made.hyper:
        yield _hypers(made)
    for label, text in (
        ("use when", made.use_when),
        ("avoid when", made.avoid_when),
        ("leaves out", made.drops),
        ("cost", made.cost),
        ("properties", ", ".join(made.properties).replace("_", " ")),
    ):
        if text:
            yield _line(label, text)
    for limit in made.limits:
        other = f"{limit.equals}({_settings(limit.with_)})" if limit.with_ else limit.equals
        scale = "" if limit.scale == 1.0 else f"{limit.scale} × "
        offset = "" if limit.offset == 0.0 else f" + {limit.offset}"
        about = "about " if limit.tolerance > 1e-7 else ""
        yield _line("limit", f"{_settings(limit.at)}: {about}{scale}{other}{offset}")
    for key in made.confused_with:
        yield _line("not", f"{key} ({schema.methods()[key].title})")
    for peer, how in made.differs_from:
        yield _line("differs from", f"{peer}: {how}")
    yield _line("evidence", f"{proof.level} (version {code.version}, {code.file}:{code.line})")
    for value in proof.values:
        numbers = ", ".join(f"{x:.10g}" for x in value.numbers) + (", ..." if value.count > len(value.numbers) else "")
        yield _line("", f"{_settings(value.hyper) or 'as it is'} → {numbers}\n{value.source}")
    for study in proof.studies:
        stale = f", stale: {', '.join(study.stale)} changed since" if study.stale else ""
        yield _line("study", f"{study.name}: {study.verdict}{stale}. {study.claim}")
    yield _line("paper", f"{made.authors} ({made.year}). {made.paper}. {made.equation}.")
    links = [f"https://arxiv.org/abs/{made.arxiv}"] if made.arxiv else []
    yield _line("", "  ".join([*links, *([f"https://doi.org/{made.doi}"] if made.doi else [])]))
    if made.seed_rows:
        rows = [f"{row} ({schema.papers()[row].name})" for row in made.seed_rows]
        yield _line("in papers", ", ".join(rows) + ": lossary show " + made.seed_rows[0])
    yield Text("\n" + citing.bibtex([made]), style="dim")


def _hypers(made: Row) -> Table:
    from lossary.catalogue import latex

    table = Table("", "symbol", "default", "range", "searched", "default from", "what it does", box=box.SIMPLE_HEAD)
    for name, h in made.hyper.items():
        search = dict(h.search or {})
        searched = "–"
        if "choices" in search:
            searched = ", ".join(map(str, search["choices"]))
        elif search:
            searched = f"{search['low']:g} to {search['high']:g}" + (" (log)" if search.get("log") else "")
        bounds = ", ".join(h.choices) or (f"{h.range[0]:g} to {h.range[1]:g}" if h.range else "–")
        default = "from data" if h.default is None else str(h.default)
        table.add_row(
            Text(name, style="bold"), latex.text(h.symbol), default, bounds, searched, h.source, Text(h.meaning)
        )
    return table


def _paper(paper: Paper) -> Iterator[Any]:
    from lossary.catalogue import coverage as engine
    from lossary.catalogue import schema, source

    state = engine.states()[paper.row]
    yield Text.assemble((paper.row, "bold"), "  ", paper.name, (f"  {paper.family}, {paper.kind}", "dim"))
    sure = "" if paper.checked else " (id not verified)" if paper.arxiv else " (year not verified)"
    link = f", https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else ""
    yield Text(f"{paper.title} ({paper.year}){link}{sure}")
    yield Text(paper.summary)
    yield _line("about", ", ".join(paper.problems))
    yield _line("must offer", paper.offers)
    level = f" ({state.level})" if state.level else ""
    yield Text.assemble(("state".rjust(12), "dim"), "  ", (state.state + level, STYLES[state.state]))
    for label, text in (("is here", state.does), ("is missing", state.missing)):
        if text:
            yield _line(label, text)
    for key in state.uses:
        if "." in key:
            yield _line("use", key)
        else:
            made = schema.methods()[key]
            yield _line("use", f"lossary.{source.PREFIX[made.role]}{key}: {made.title} (lossary show {key})")


def _settings(hyper: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} = {v}" for k, v in hyper.items())


def _line(label: str, text: str) -> Table:
    """A labelled line whose text wraps beside the label."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", width=12, style="dim")
    grid.add_column()
    grid.add_row(label, Text(text))
    return grid


# --- coverage --------------------------------------------------------------------------------------------------------
def _totals(totals: list[dict[str, Any]]) -> Table:
    table = Table("family", box=box.SIMPLE_HEAD)
    for name in ("papers", *STYLES):
        table.add_column(name, justify="right")
    table.add_column("")
    most = max(int(t["papers"]) for t in totals)
    for t in totals:
        bar = Text()
        for name, mark in zip(STYLES, "██░", strict=True):
            bar.append(mark * round(30 * int(t[name]) / most + 0.49 * bool(t[name])), style=STYLES[name])
        numbers = [Text(str(t[s]) if t[s] else "·", style=STYLES[s]) for s in STYLES]
        table.add_row(t["family"], str(t["papers"]), *numbers, bar)
    return table


def _listed(rows: list[dict[str, Any]]) -> Table:
    table = _table(**{"row": 0, "name": 4, "state": 3, "what is here": 5, "what is missing": 6})
    for r in rows:
        state = Text(r["state"], style=STYLES[r["state"]]).append(f" ({r['level']})" if r["level"] else "", style="dim")
        missing = r["missing"] or (r["offers"] if r["state"] == "not yet" else "")
        table.add_row(r["row"], Text(r["name"]), state, Text(r["does"]), Text(missing))
    return table


def _survey(read: str, entries: tuple[Mapped, ...]) -> Table:
    table = _table(**{"": 0, "loss or metric": 3, "here": 5, "why not, or what not": 4})
    table.caption = f"Read: {read}."
    task = ""
    for e in entries:
        if e.task != task:
            task = e.task
            table.add_row("", Text(task, style="bold"), "", "")
        here = Text(e.use or e.metric, style="green" if e.use else "cyan" if e.metric else "")
        if e.use and e.metric:
            here.append(f", {e.metric}", style="cyan")
        if e.note:
            here.append(f"  {e.note}", style="dim")
        table.add_row(Text(e.kind, style="dim"), Text(e.name), here, Text(e.why_not, style="dim"))
    return table


def _table(**columns: int) -> Table:
    """A table whose cells are wrapped and never cut off; a share of the width for each column (0: what it needs)."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, share in columns.items():
        table.add_column(name, overflow="fold", ratio=share or None, no_wrap=not share)
    table.expand = True
    return table


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))
