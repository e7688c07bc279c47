"""The catalogue, checked: what a row may say, and one error with file, key and field when it says something else.

A method's row is a table of a family's TOML file; docs/design/catalogue.md lists the fields. Each hyperparameter is a
table `hyper.<name>`; `limits` and `differs_from` are lists of tables. What can be computed (evidence, versions,
coverage) has no field.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from lossary.catalogue import files_of, rows
from lossary.errors import DataError, UnknownName

ROLES = ("formula", "weight", "reduce", "balance", "track", "ascent", "optimizer", "schedule", "batch")
SOURCES = ("paper", "code", "ours", "torch", "data")
KINDS = ("method", "analysis", "benchmark", "survey", "report")

Names = tuple[str, ...]


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter: the paper's symbol, the default, the allowed range, what is searched.

    `source`: of the default ("paper", "code" of the authors, "ours", "torch"; "data" where there is none).
    `from_`: "data" where only the data can tell it (counts). `search`: {low, high, log} or {choices}.
    """

    symbol: str
    meaning: str
    source: str
    default: Any = None
    range: tuple[float, float] | None = None
    search: Mapping[str, Any] | None = None
    choices: Names = ()
    from_: str = ""


@dataclass(frozen=True)
class Limit:
    """At `at` the method is scale * other + offset, the other at `with_`. Scale and offset may be expressions."""

    at: Mapping[str, Any]
    equals: str
    with_: Mapping[str, Any] = field(default_factory=dict)
    scale: float | str = 1.0
    offset: float | str = 0.0
    tolerance: float = 1e-8


@dataclass(frozen=True)
class Row:
    """Everything known about a method beyond its code. An alias has `alias_of`, `with_` and `settable`."""

    key: str
    title: str
    summary: str
    paper: str
    authors: str
    year: int
    family: str
    view: str
    formula: str
    cost: str
    use_when: str
    avoid_when: str
    arxiv: str = ""
    doi: str = ""
    equation: str = ""
    role: str = "formula"
    drops: str = ""
    hyper: Mapping[str, Hyper] = field(default_factory=dict)
    confused_with: Names = ()
    limits: tuple[Limit, ...] = ()
    properties: Names = ()
    differs_from: tuple[tuple[str, str], ...] = ()
    seed_rows: Names = ()
    alias_of: str = ""
    with_: Mapping[str, Any] = field(default_factory=dict)
    settable: Names = ()


@dataclass(frozen=True)
class Paper:
    """A source paper: what it is about in our own words, and what would have to exist for it to count as covered.

    `checked`: the arXiv number was compared with its source; elsewhere year and number are from memory.
    """

    row: str
    name: str
    title: str
    family: str
    kind: str
    priority: int
    year: int
    arxiv: str
    checked: bool
    summary: str
    problems: Names
    offers: str


class _Fields:
    """Reads the fields of one table, and says where it stands when one is wrong."""

    def __init__(self, where: str, given: Mapping[str, Any]) -> None:
        self.where, self.given, self.known = where, given, set[str]()

    def fail(self, name: str, what: str, *, needed: str = "", found: object = "") -> DataError:
        return DataError(f"{self.where}: {name} {what}", needed=needed, found=str(found))

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        self.known.add(name)
        if name not in self.given:
            if default is ...:
                raise self.fail(name, "is missing")
            return default
        value = self.given[name]
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is int)
        if wrong:
            names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
            raise self.fail(name, "has the wrong type", needed=" or ".join(names), found=repr(value))
        return value

    def text(self, name: str, default: Any = ..., *, form: str = "", one_of: Iterable[str] = ()) -> str:
        value: str = self.take(name, str, default)
        if default is ... and not value.strip():
            raise self.fail(name, "is empty")
        if value and form and not re.fullmatch(form, value):
            raise self.fail(name, "has the wrong form", needed=form, found=repr(value))
        if value and one_of and value not in (known := list(one_of)):
            raise self.fail(name, "is not known", needed="one of " + ", ".join(known), found=repr(value))
        return value

    def names(self, name: str, *, form: str = "", one_of: Iterable[str] = ()) -> Names:
        value, known = self.take(name, list, []), list(one_of)
        for item in value:
            if not isinstance(item, str) or (form and not re.fullmatch(form, item)) or (known and item not in known):
                raise self.fail(
                    name, "has an entry that is not known", needed=form or ", ".join(known), found=repr(item)
                )
        if len(set(value)) < len(value):
            raise self.fail(name, "says something twice", found=value)
        return tuple(value)

    def done(self) -> None:
        for name in self.given:
            if name not in self.known:
                if name == "evidence":
                    raise self.fail(name, "is computed and never written down")
                raise self.fail(name, "is no field", needed="one of " + ", ".join(sorted(self.known)))


def _inside(value: Any, bounds: tuple[float, float] | None) -> bool:
    if isinstance(value, list):
        return all(_inside(v, bounds) for v in value)
    return bounds is None or isinstance(value, str) or bounds[0] <= value <= bounds[1]


def hyper(where: str, given: Mapping[str, Any]) -> Hyper:
    """One `hyper` table, checked: the default and the search space lie in the range, data have no default."""
    f = _Fields(where, given)
    bounds = f.take("range", list, None)
    if bounds is not None:
        if len(bounds) != 2 or not all(isinstance(b, int | float) for b in bounds) or not bounds[0] < bounds[1]:
            raise f.fail("range", "is not [low, high]", found=bounds)
        bounds = (float(bounds[0]), float(bounds[1]))
    choices, default = f.names("choices"), f.take("default", (int, float, str, list), None)
    made = Hyper(
        symbol=f.text("symbol"),
        meaning=f.text("meaning"),
        source=f.text("source", one_of=SOURCES),
        default=default,
        range=bounds,
        search=f.take("search", dict, None),
        choices=choices,
        from_=f.text("from", "", one_of=["data"]),
    )
    f.done()
    if default is None and not made.from_:
        raise f.fail("default", "is missing", needed='a default, or from = "data"')
    if default is not None and (not _inside(default, bounds) or (choices and default not in choices)):
        raise f.fail("default", "lies outside what is allowed", needed=f"{choices or bounds}", found=repr(default))
    if made.search is not None:
        s = _Fields(f"{where}.search", made.search)
        if "choices" in made.search:
            points = s.take("choices", list)
        else:
            points = [s.take("low", (int, float)), s.take("high", (int, float))]
            if s.take("log", bool, False) and points[0] <= 0:
                raise s.fail("low", "must be above 0 on a log scale", found=points[0])
            if not points[0] < points[1]:
                raise s.fail("low", "is not below high", found=points)
        s.done()
        if not points or not all(_inside(p, bounds) for p in points):
            raise s.fail("points", "lie outside the range", needed=f"{bounds}", found=points)
    return made


def method(key: str, given: Mapping[str, Any], *, where: str = "") -> Row:
    """One method's row, checked by itself. `methods` also checks that the names in it exist."""
    where = where or key
    f = _Fields(where, given)
    alias = f.text("alias_of", "", form=r"[a-z][a-z0-9_]*")
    made = Row(
        key=key,
        title=f.text("title"),
        summary=f.text("summary"),
        paper=f.text("paper"),
        authors=f.text("authors"),
        year=f.take("year", int),
        arxiv=f.text("arxiv", "", form=r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}"),
        doi=f.text("doi", "", form=r"10\.\d{4,9}/\S+"),
        equation=f.text("equation"),
        formula=f.text("formula"),
        family=f.text("family", form=r"[a-z]+/[a-z]+"),
        view=f.text("view", form=r"[A-Z]\w+"),
        role=f.text("role", "formula", one_of=ROLES),
        drops=f.text("drops", ""),
        cost=f.text("cost"),
        use_when=f.text("use_when"),
        avoid_when=f.text("avoid_when"),
        hyper={n: hyper(f"{where}.hyper.{n}", h) for n, h in f.take("hyper", dict, {}).items()},
        confused_with=f.names("confused_with"),
        limits=tuple(_limit(f"{where}.limits[{i}]", one) for i, one in enumerate(f.take("limits", list, []))),
        properties=f.names("properties", form=r"[a-z_]+"),
        differs_from=tuple(
            _difference(f"{where}.differs_from[{i}]", d) for i, d in enumerate(f.take("differs_from", list, []))
        ),
        seed_rows=f.names("seed_rows", form=r"R[1-9]\d*"),
        alias_of=alias,
        with_=f.take("with", dict, {}),
        settable=f.names("settable"),
    )
    f.done()
    if not 1600 < made.year < 2100:
        raise f.fail("year", "is not a year", found=made.year)
    if not re.fullmatch(r"[^,]+(, [^,]+)*", made.authors):
        raise f.fail("authors", "must be full names with commas between", found=repr(made.authors))
    if alias and (made.limits or made.properties):
        raise f.fail("alias_of", "stands beside limits or properties: those are the method's own")
    if not alias and (made.with_ or made.settable):
        raise f.fail("with", "stands without alias_of")
    return made


def _limit(where: str, given: Mapping[str, Any]) -> Limit:
    f = _Fields(where, given)
    made = Limit(
        f.take("at", dict),
        f.text("equals"),
        f.take("with", dict, {}),
        f.take("scale", (int, float, str), 1.0),
        f.take("offset", (int, float, str), 0.0),
        f.take("tolerance", float, 1e-8),
    )
    f.done()
    return made


def _difference(where: str, given: Mapping[str, Any]) -> tuple[str, str]:
    f = _Fields(where, given)
    made = f.text("peer"), f.text("how")
    f.done()
    return made


@cache
def methods() -> dict[str, Row]:
    """Every method's row by key, checked by itself and against the others."""
    where = files_of()
    out = {key: method(key, given, where=f"{where.get(key, '?')}: {key}") for key, given in rows().items()}
    for key, made in out.items():
        f = _Fields(f"{where.get(key, '?')}: {key}", {})
        target = out.get(made.alias_of)
        if made.alias_of:
            if target is None or target.alias_of:
                raise f.fail("alias_of", "is no method", found=repr(made.alias_of))
            _exist(f, "with", made.with_, target.hyper)
            _exist(f, "settable", made.settable, made.with_)
        _exist(f, "confused_with", made.confused_with, out)
        for limit in made.limits:
            _exist(f, "limits: equals", [limit.equals], out)
            _exist(f, "limits: at", limit.at, made.hyper)
            _exist(f, "limits: with", limit.with_, out[limit.equals].hyper)
        _exist(f, "seed_rows", made.seed_rows, papers())
    return out


def _exist(f: _Fields, name: str, asked: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for one in asked:
        if one not in known:
            raise f.fail(name, "names something that does not exist", needed=", ".join(known[:12]), found=repr(one))


def paper(given: Mapping[str, Any], *, where: str = "papers.jsonl") -> Paper:
    """One line of papers.jsonl, checked."""
    f = _Fields(f"{where}: {given.get('row', '?')}", given)
    made = Paper(
        row=f.text("row", form=r"R[1-9]\d*"),
        name=f.text("name"),
        title=f.text("title"),
        family=f.text("family", form=r"[a-z]+"),
        kind=f.text("kind", one_of=KINDS),
        priority=f.take("priority", int),
        year=f.take("year", int),
        arxiv=f.text("arxiv", "", form=r"\d{4}\.\d{4,5}"),
        checked=f.take("checked", bool),
        summary=f.text("summary"),
        problems=f.names("problems"),
        offers=f.text("offers"),
    )
    f.done()
    if not 1 <= made.priority <= 3 or not 1990 < made.year < 2100:
        raise f.fail("priority or year", "is out of range", found=f"{made.priority}, {made.year}")
    if made.checked and not made.arxiv:
        raise f.fail("checked", "without an arXiv number")
    return made


@cache
def papers() -> dict[str, Paper]:
    """The source papers by row (R1, R2, ...), in order. A number that a method's row cites was checked for that."""
    text = files("lossary.catalogue").joinpath("papers.jsonl").read_text(encoding="utf-8")
    cited = {facts["arxiv"] for facts in rows().values() if facts.get("arxiv")}
    out = [paper(json.loads(line)) for line in text.splitlines()]
    return {p.row: dataclasses.replace(p, checked=p.checked or p.arxiv in cited) for p in out}


def find_method(key: str) -> Row:
    """The row of a method by its key (`focal`, also `lossary.reduce.cvar`), or an error with the nearest names."""
    name = key.removeprefix("lossary.").rsplit(".", 1)[-1]
    if name not in methods():
        raise UnknownName.of("method", key, methods(), try_=f"lossary search {name.replace('_', ' ')}")
    return methods()[name]


def find_paper(row: str) -> Paper:
    """The paper of a row, by its number as R17, r17 or 17."""
    name = "R" + row.upper().lstrip("R")
    if name not in papers():
        last = list(papers())[-1]
        raise UnknownName(f"unknown row {row!r}", needed=f"R1 to {last}", try_="lossary search ...")
    return papers()[name]


def plain(made: Row | Paper) -> dict[str, Any]:
    """A row or paper as plain JSON: what is empty is left out, infinities become texts."""

    def read(value: Any) -> Any:
        if isinstance(value, float) and math.isinf(value):
            return "inf" if value > 0 else "-inf"
        if isinstance(value, Mapping):
            return {k.rstrip("_"): read(v) for k, v in value.items() if v not in (None, "", (), {})}
        return [read(v) for v in value] if isinstance(value, list | tuple) else value

    out: dict[str, Any] = read(dataclasses.asdict(made))
    return out
