"""Studies: short scripts that try a claim on data. They live in `studies/` of the source, beside the package."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lossary.errors import DataError, UnknownName

FOLDER = Path(__file__).resolve().parents[2] / "studies"


def known() -> dict[str, Path]:
    """The file of every study by name: a module with `run(seed, quick, progress) -> dict`. None is imported."""
    if not FOLDER.is_dir():
        raise DataError("the studies are not installed", needed="a clone of the source", found=str(FOLDER))
    return {file.stem.replace("_", "-"): file for file in sorted(FOLDER.glob("[a-z]*.py"))}


def about(file: Path) -> str:
    """What a study is about, in a line."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0]


def load(name: str) -> ModuleType:
    """A study, imported."""
    if name not in known():
        raise UnknownName.of("study", name, known(), try_="lossary study")
    file = known()[name]
    spec = importlib.util.spec_from_file_location(f"studies.{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    name: str, *, seed: int = 0, quick: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Run a study. Its result has at least claim, setting, seeds, verdict and figures with intervals."""
    tell = None if progress is None else lambda done, total: progress(name, done, total)
    result = load(name).run(seed=seed, quick=quick, progress=tell)
    return {"study": name, **result}


def write(result: dict[str, Any], folder: Path) -> Path:
    """Store a study's result as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"study-{result['study']}.json"
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return path
