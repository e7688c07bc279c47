"""The catalogue: everything known about a method beyond its code, one TOML file a family. Read when first asked.

`rows()` and `row(key)` are the plain tables of the files, for hot paths; `schema.methods()` gives them checked.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from lossary.catalogue import kept
from lossary.errors import UnknownName

NOT_METHODS = ("coverage.toml", "surveys.toml")
#: what an alias takes over from the method it stands for
INHERITED = ("formula", "family", "view", "role", "cost", "use_when", "avoid_when", "drops", "confused_with")


@cache
def tables() -> dict[str, dict[str, Any]]:
    """Every TOML file of the catalogue by name (`optim.toml`, `values/optim.toml`). Kept, as TOML is slow to read."""

    def find() -> dict[str, dict[str, Any]]:
        here, inner = files(__name__), files(__name__).joinpath("values")
        named = {f.name: f for f in here.iterdir()} | {f"values/{f.name}": f for f in inner.iterdir()}
        texts = {n: named[n].read_text(encoding="utf-8") for n in sorted(named) if n.endswith(".toml")}
        return {name: tomllib.loads(text) for name, text in texts.items()}

    out: dict[str, dict[str, Any]] = kept.found(find, "tables")
    return out


@cache
def rows() -> dict[str, dict[str, Any]]:
    """All rows by key. An alias has what it does not say itself from the method it stands for."""
    out: dict[str, dict[str, Any]] = {}
    for name, table in tables().items():
        if _of_methods(name):
            out.update((key, dict(facts)) for key, facts in table.items())
    for facts in out.values():
        target = out.get(facts.get("alias_of", ""), {})
        facts.update({k: target[k] for k in INHERITED if k in target and k not in facts})
        if "hyper" in target:
            fixed, free = facts.get("with", {}), facts.get("settable", [])
            hyper = {n: h for n, h in target["hyper"].items() if n not in fixed or n in free}
            facts["hyper"] = {n: {**h, "default": fixed[n]} if n in fixed else h for n, h in hyper.items()}
    return out


def _of_methods(file: str) -> bool:
    return "/" not in file and file not in NOT_METHODS


def files_of() -> dict[str, str]:
    """Which file a method's row stands in."""
    return {key: file for file, table in tables().items() if _of_methods(file) for key in table}


def row(key: str) -> dict[str, Any]:
    """The row of a method; empty for a method that has none (a user's own)."""
    return rows().get(key, {})


def known(key: str) -> dict[str, Any]:
    """The row of a method, or an error with the nearest names."""
    if key not in rows():
        raise UnknownName.of("method", key, rows())
    return rows()[key]
