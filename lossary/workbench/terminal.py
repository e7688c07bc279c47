"""What all commands need to talk to a terminal: where to print, errors of one line, a bar of progress."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lossary.errors import LossaryError
from lossary.workbench.pace import Pace

out, err = Console(), Console(stderr=True)


@contextmanager
def one_line() -> Iterator[None]:
    """Errors meant for people: one line, exit code 2. Ctrl-C: how to go on, exit code 130."""
    try:
        yield
    except LossaryError as error:
        print(f"lossary: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        again = "lossary " + shlex.join(a for a in sys.argv[1:] if a != "--fresh")
        print(f"Stopped; what was finished is stored. To go on: {again}", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def bar() -> Iterator[Any]:
    """A bar in a terminal; in a log file a line now and then."""
    pace = Pace()
    if not err.is_terminal:
        yield _Lines(pace).tell
        return
    columns = [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    ]  # fmt: skip
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("starting", total=None, left="")

        def tell(note: str, done: int, total: int) -> None:
            progress.update(task, description=note, completed=done, total=total, left=pace.left(done, total))

        yield tell


class _Lines:
    """Progress as lines of text, one at the start of each stage and at most one in half a minute."""

    def __init__(self, pace: Pace, every: float = 30.0) -> None:
        self.pace, self.every, self.last, self.note = pace, every, -math.inf, ""

    def tell(self, note: str, done: int, total: int) -> None:
        left, now = self.pace.left(done, total), time.monotonic()
        if not done or (note == self.note and done < total and now - self.last < self.every):
            return
        self.note, self.last = note, now
        print(f"{note}: {done:,} of {total:,}" + (f", {left}" if left else ""), file=sys.stderr, flush=True)
