"""What of the source papers works: from the methods' `seed_rows`, the judgements in coverage.toml, and the evidence.

A paper works only if all that its row says must be offered is there. A paper that no method names and nobody judged is
"not yet". Which methods a judgement rests on is data too: when one of them goes, the judgement fails its check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from lossary.catalogue import evidence, schema, tables
from lossary.errors import DataError, UnknownName

STATES = ("works", "partly", "not yet")
UNJUDGED = {"state": "not yet", "does": "Named by a method.", "missing": "A judgement: a row in coverage.toml."}
FIELDS = ("task", "name", "kind", "at", "use", "metric", "why_not", "note")  # of a survey's entry


@dataclass(frozen=True)
class State:
    """How far one paper is. `uses`: methods, and other parts by their Python path; `level`: evidence of the methods."""

    row: str
    state: str
    does: str
    missing: str
    uses: tuple[str, ...]

    @cached_property
    def level(self) -> str:
        """Of the evidence; empty where nothing is built."""
        methods = [k for k in self.uses if "." not in k]
        return evidence.lowest(methods, self.row) if self.state != "not yet" else ""


@dataclass(frozen=True)
class Mapped:
    """One loss or metric of a survey: what stands for it here, or why nothing does."""

    task: str
    name: str
    kind: str
    at: str
    use: str
    metric: str
    why_not: str
    note: str

    @property
    def present(self) -> bool:
        """Whether there is something to run."""
        return bool(self.use or self.metric)


@cache
def states() -> dict[str, State]:
    """Every paper's state by row. A DataError names a judgement that does not fit the methods."""
    named: dict[str, list[str]] = {row: [] for row in schema.papers()}
    for key, made in schema.methods().items():
        for row in made.seed_rows:
            named[row].append(key)
    judged = tables()["coverage.toml"]
    for row in judged:
        if row not in named:
            raise DataError(f"coverage.toml: {row} is no paper", needed="R1, R2, ...")
    return {row: _state(row, judged.get(row, UNJUDGED if keys else {}), keys) for row, keys in named.items()}


def _state(row: str, given: Mapping[str, Any], keys: list[str]) -> State:
    where = f"coverage.toml: {row}"
    extra = set(given) - {"state", "does", "missing", "uses"}
    if extra:
        raise DataError(f"{where}: {', '.join(sorted(extra))} is no field", needed="state, does, missing, uses")
    state, missing, does = given.get("state", "not yet"), given.get("missing", ""), given.get("does", "")
    uses = (*keys, *(k for k in given.get("uses", []) if k not in keys))
    if state not in STATES:
        raise DataError(f"{where}: unknown state", needed=" or ".join(STATES), found=repr(state))
    if (state == "works") == bool(missing) and given:
        raise DataError(f"{where}: {'works, yet something is missing' if missing else 'nothing is said to be missing'}")
    if given and (not does or (state != "not yet" and not uses)):
        raise DataError(f"{where}: what is there?", needed="does, and uses or a method's seed_rows")
    for key in uses:
        if "." not in key:
            schema.find_method(key)
    return State(row, state, does, missing, uses)


def summary(family: str = "") -> list[dict[str, Any]]:
    """How many papers of each family (or of one) are in each state, largest family first."""
    known = {p.family for p in schema.papers().values()}
    if family and family not in known:
        raise UnknownName.of("family", family, known)
    count: dict[str, Counter[str]] = {}
    for row, paper in schema.papers().items():
        if family in ("", paper.family):
            count.setdefault(paper.family, Counter())[states()[row].state] += 1
    rows = [{"family": f, "papers": c.total(), **{s: c[s] for s in STATES}} for f, c in count.items()]
    return sorted(rows, key=lambda r: (-int(r["papers"]), r["family"]))


def listed(family: str = "", state: str = "") -> list[dict[str, Any]]:
    """Every paper with its state, as plain JSON, by row."""
    if state and state not in STATES:
        raise UnknownName.of("state", state, STATES)
    out = []
    for row, made in states().items():
        paper = schema.papers()[row]
        if family in ("", paper.family) and state in ("", made.state):
            about = {"row": row, "name": paper.name, "family": paper.family, "priority": paper.priority}
            found = {"state": made.state, "level": made.level, "uses": list(made.uses)}
            out.append({**about, **found, "offers": paper.offers, "does": made.does, "missing": made.missing})
    return out


@cache
def surveys() -> dict[str, tuple[str, tuple[Mapped, ...]]]:
    """The surveys by row: which text was read, and what stands for each of their losses and metrics here."""
    from lossary.catalogue.cite import used

    out = {}
    for row, given in tables()["surveys.toml"].items():
        schema.find_paper(row)
        entries = []
        for n, entry in enumerate(given["entries"]):
            where = f"surveys.toml: {row}: {entry.get('name', n)}"
            extra = set(entry) - set(FIELDS)
            if extra or entry.get("kind") not in ("loss", "metric"):
                raise DataError(
                    f"{where}: wrong fields", needed="kind loss or metric; task, name, at, use, metric, why_not, note"
                )
            made = Mapped(*(entry.get(k, "") for k in FIELDS))
            if not made.name or not made.task or not (made.present or made.why_not):
                raise DataError(f"{where}: needs task, name, and one of use, metric, why_not")
            if made.use:
                used(made.use)
            entries.append(made)
        out[row] = (given["read"], tuple(entries))
    return out


def survey(row: str) -> tuple[str, tuple[Mapped, ...]]:
    """One survey, or an error that names those there are."""
    name = "R" + row.upper().lstrip("R")
    if name not in surveys():
        raise UnknownName(f"unknown survey {row!r}", needed=f"one of {', '.join(surveys())}")
    return surveys()[name]
