"""Answers that are kept: what was found from the library's own files, until one of them changes.

What the laws say of a method takes seconds and PyTorch, to read the whole catalogue or all source text a good part of a
second, to read the answer again milliseconds. An answer is JSON in the user's cache folder, under a hash of its
question, and says by another hash what it was found from: when that is no longer so it is found anew and replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]


class Kept(NamedTuple):
    """An answer, and when it was found (seconds since the epoch)."""

    answer: Any
    when: float


def folder() -> Path:
    """Where answers are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lossary"


def path(*question: object) -> Path:
    """The file of an answer. Two installations keep their own."""
    return folder() / f"{_hash(str(PACKAGE), *question)}.json"


@cache
def source(package: Path = PACKAGE) -> str:
    """What the library's answers are found from: a hash of all of its files and of the Python that reads them."""
    seen = [f for f in package.rglob("*") if f.suffix in (".py", ".toml", ".jsonl")]
    content = [(f.relative_to(package).as_posix(), hashlib.sha256(f.read_bytes()).hexdigest()) for f in seen]
    return _hash(sys.version, sorted(content))


def read(*question: object, depends: object = "") -> Kept | None:
    """The kept answer to a question; None if there is none, or if it is no longer true.

    depends: what the answer was found from beside the library's files.
    """
    try:
        file = path(*question)
        held = json.loads(file.read_text("utf-8"))
        return Kept(held["answer"], file.stat().st_mtime) if held["from"] == _hash(source(), depends) else None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):  # RuntimeError: nobody knows the home folder
        return None


def write(answer: Any, *question: object, depends: object = "") -> None:
    """Keep an answer; a folder that cannot be written costs nothing but the next answer's time."""
    try:
        file = path(*question)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({"from": _hash(source(), depends), "answer": answer}), "utf-8")
        part.replace(file)  # whole or not at all
    except (OSError, RuntimeError):
        pass


def found(find: Callable[[], Any], *question: object) -> Any:
    """The kept answer, or what `find` says, kept from now on. Plain JSON either way."""
    held = read(*question)
    if held is None:
        answer = json.loads(json.dumps(find()))
        write(answer, *question)
        return answer
    return held.answer


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
