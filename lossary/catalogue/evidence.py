"""How well a method is proved: laws < reference < study. Computed from what is there, never written down.

- laws: the suite tries every law that speaks about it (`lossary check KEY`).
- reference: at least one number found without this library is pinned in `catalogue/values/`, with its source.
- study: at least one result in `studies/results/` about one of its papers was made with the formulas as they are now.
  What it shows may be that the claim does not hold: the level says that it was tried. A result made with another
  version of a formula is stale. A study counts for the methods it is about, not for the baselines beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lossary.catalogue import kept, row, tables
from lossary.catalogue.source import version
from lossary.errors import DataError

LEVELS = ("laws", "reference", "study")
VERDICTS = ("shown", "not shown", "inconclusive")
RESULTS = Path(__file__).resolve().parents[2] / "studies" / "results"  # of a clone; an installed package has none


@dataclass(frozen=True)
class Pinned:
    """One reference value: the call, the first numbers it should give, and who says so."""

    key: str
    hyper: dict[str, Any]
    numbers: tuple[float, ...]
    count: int
    source: str


@dataclass(frozen=True)
class Study:
    """A study's result as recorded, with the version of each method then."""

    name: str
    claim: str
    verdict: str
    setting: Any
    seeds: Any
    rows: tuple[str, ...]
    methods: tuple[str, ...]
    versions: dict[str, str]

    @cached_property
    def stale(self) -> tuple[str, ...]:
        """The methods whose formula has changed since."""
        now = _studied()
        return tuple(k for k, then in self.versions.items() if (now[k] if k in now else version(k)) != then)


@dataclass(frozen=True)
class Evidence:
    """What there is for one method."""

    level: str
    values: tuple[Pinned, ...]
    studies: tuple[Study, ...]


@cache
def values() -> dict[str, tuple[Pinned, ...]]:
    """Every pinned value, by method."""
    out: dict[str, list[Pinned]] = {}
    for file, given in ((f, one) for f, t in tables().items() if f.startswith("values/") for one in t["value"]):
        where = f"{file}: {given.get('key')}"
        if not str(given.get("source", "")).strip():
            raise DataError(f"{where} does not say where its numbers come from", needed="source")
        numbers = list(_flat(given["items"] if "value" not in given else given["value"]))
        pinned = Pinned(given["key"], given.get("hyper", {}), tuple(numbers[:5]), len(numbers), given["source"])
        out.setdefault(given["key"], []).append(pinned)
    return {key: tuple(pinned) for key, pinned in out.items()}


def _flat(numbers: Any) -> Iterable[float]:
    if isinstance(numbers, list):
        for one in numbers:
            yield from _flat(one)
    else:
        yield float(numbers)


def studies(folder: Path | None = None) -> list[Study]:
    """Every recorded result of a study. A DataError says what a record lacks."""
    return _read(folder) if folder else _recorded()


@cache
def _recorded() -> list[Study]:
    return _read(RESULTS)


def _read(folder: Path) -> list[Study]:
    return [_study(file) for file in sorted(folder.glob("*.json"))] if folder.is_dir() else []


def _study(file: Path) -> Study:
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file.name} is not JSON", found=str(error)) from error
    lacks = {"study", "claim", "verdict", "setting", "seeds", "methods", "versions"} - set(given)
    if lacks:
        raise DataError(f"{file.name}: the record of a study lacks {', '.join(sorted(lacks))}")
    if given["verdict"] not in VERDICTS:
        raise DataError(f"{file.name}: unknown verdict", needed=" or ".join(VERDICTS), found=repr(given["verdict"]))
    bare = [key for key in given["methods"] if key not in given["versions"]]
    if bare:
        raise DataError(f"{file.name}: no version of {', '.join(bare)}", needed="versions: {method: version}")
    return Study(
        given["study"],
        given["claim"],
        given["verdict"],
        given["setting"],
        given["seeds"],
        tuple(given.get("rows", [])),
        tuple(given["methods"]),
        given["versions"],
    )


def versions(names: Iterable[str]) -> dict[str, str]:
    """The version of each method now, as a study's record keeps it; what is gone is left out.

    Takes keys, and paths of other functions and classes in the module that defines them (`lossary.step.gsr.gsr`).
    """
    return {name: now for name in names if (now := version(name))}


@cache
def _studied() -> dict[str, str]:
    """The version now of all that recorded studies name. To hash the code of all of it takes a while: it is kept."""
    names = sorted({name for study in _recorded() for name in study.versions})
    out: dict[str, str] = kept.found(lambda: {name: version(name) for name in names}, "versions", names)
    return out


def evidence(key: str, folder: Path | None = None) -> Evidence:
    """What there is for a method. An alias has the evidence of the method it stands for."""
    key = row(key).get("alias_of", key)
    pinned, about = values().get(key, ()), set(row(key).get("seed_rows", []))
    mine = tuple(s for s in studies(folder) if key in s.methods and (not s.rows or about & set(s.rows)))
    level = "study" if any(not s.stale for s in mine) else "reference" if pinned else "laws"
    return Evidence(level, pinned, mine)


def lowest(keys: Iterable[str], row: str = "", folder: Path | None = None) -> str:
    """The evidence of several methods together: that of the weakest. Without methods "study" or "", by the row."""
    levels = [evidence(key, folder).level for key in keys]
    tried = any(row in s.rows and not s.stale for s in studies(folder))
    return min(levels, key=LEVELS.index) if levels else "study" if tried else ""
