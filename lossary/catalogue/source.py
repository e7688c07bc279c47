"""What the source text says about the methods, without importing it: importing PyTorch takes longer than an answer may.

A formula is known by the decorator `@method("key", View, role=...)`, a tracker by its base class `Tracker`, an
optimizer, ascent, schedule or loss of a whole batch by `@listed("key", role)`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lossary.catalogue import kept

PACKAGE = Path(__file__).resolve().parents[1]
ROOMS = ("formulas", "weigh", "reduce", "track", "balance", "step", "step/optim", "step/schedules")
PREFIX = {
    "formula": "",
    "weight": "weigh.",
    "reduce": "reduce.",
    "track": "track.",
    "balance": "balance.",
    "ascent": "step.",
    "optimizer": "step.optim.",
    "schedule": "step.schedules.",
    "batch": "formulas.metric.",
}
#: what these look at, and their arguments that are no hyperparameters
SEES = {"ascent": "Gradients", "optimizer": "Gradients", "schedule": "Steps", "batch": "Pairs"}
PLUMBING = frozenset(
    {"self", "params", "optimizer", "model", "maximize", "foreach", "last_epoch", "progress", "embeddings", "target"}
)
REQUIRED = inspect.Parameter.empty  # stands where a hyperparameter has no default


@dataclass(frozen=True)
class Code:
    """A method as its source shows it. `hyper`: default of each hyperparameter, `REQUIRED` where there is none."""

    key: str
    role: str
    view: str
    hyper: dict[str, Any]
    about: str
    file: str
    line: int
    name: str  # in Python, mostly the key

    @property
    def version(self) -> str:
        """Of the code: see `version_of`."""
        return version_of(_text(self.file), self.name)

    @property
    def path(self) -> str:
        """The name under `lossary.`: `focal`, `weigh.effective_number`, `track.aum`, `step.optim.Gravity`."""
        return PREFIX[self.role] + (self.name if self.role in SEES else self.key)

    def call(self, hyper: dict[str, Any] | None = None) -> str:
        """How it is written: `lossary.focal(gamma=2.0)`, with what only data can tell by its own name."""
        shown = [f"{k}={k if v is REQUIRED else repr(v)}" for k, v in (self.hyper if hyper is None else hyper).items()]
        return f"lossary.{self.path}({', '.join(shown)})"


@cache
def _text(file: str) -> str:
    return (PACKAGE.parent / file).read_text(encoding="utf-8")


@cache
def version_of(source: str, name: str) -> str:
    """A short hash of the code of `name` in a module's source, with all of the module that it uses.

    Docstrings, annotations, decorators and layout do not count; defaults do. The same on every Python.
    """
    wanted, used = [name], set[str]()
    while wanted:
        here = wanted.pop()
        if here in _top(source) and here not in used:
            used.add(here)
            wanted += _code(source, here)[1]
    text = repr([_code(source, name)[0], *(_code(source, k)[0] for k in sorted(used - {name}))])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@cache
def _top(source: str) -> dict[str, ast.stmt]:
    """What a module defines, by name."""
    return {defined: node for node in ast.parse(source).body for defined in _names(node)}


@cache
def _code(source: str, name: str) -> tuple[Any, list[str]]:
    """The code of one thing that a module defines, and the names in it."""
    names: list[str] = []
    return _plain(_top(source)[name], names), names


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [t.id for t in targets if isinstance(t, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _plain(node: Any, names: list[str]) -> Any:
    """Nested lists of a tree, without what changes no number: decorators, docstrings, annotations. It adds to `names`.

    `ast.dump` writes the same tree differently in different Pythons.
    """
    if isinstance(node, list):
        return [_plain(n, names) for n in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    out: list[Any] = [type(node).__name__]
    for field in node._fields:
        value = getattr(node, field, None)
        if field in ("decorator_list", "returns", "annotation") and isinstance(node, _BARE[field]):
            continue
        if field == "body" and isinstance(node, ast.FunctionDef | ast.ClassDef) and _docstring(node.body):
            value = node.body[1:]
        if field == "id" and isinstance(node, ast.Name):
            names.append(node.id)
        if value is not None and value != []:
            out.append([field, _plain(value, names)])
    return out


_BARE: dict[str, Any] = {
    "decorator_list": (ast.FunctionDef, ast.ClassDef),
    "returns": ast.FunctionDef,
    "annotation": ast.arg,
}


def _docstring(body: list[ast.stmt]) -> bool:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *_]:
            return True
    return False


def version(name: str) -> str:
    """The version of a method by its key, or of any function or class by the path of the module that defines it.

    `focal`, `lossary.step.prospect.Prospect`. Empty if there is no such thing (any more).
    """
    if name in methods():
        return methods()[name].version
    module, _, thing = name.rpartition(".")
    base = PACKAGE.parent / module.replace(".", "/")
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if module.startswith("lossary") and file.is_file():
            text = file.read_text(encoding="utf-8")
            return version_of(text, thing) if thing in _top(text) else ""
    return ""


@cache
def methods() -> dict[str, Code]:
    """Every formula, weight, reduction and tracker by key, in the order of the rooms. To parse all files takes a while:
    what they say is kept, the defaults as they are written."""

    def find() -> list[dict[str, Any]]:
        read = (code for room in ROOMS for file in sorted((PACKAGE / room).glob("*.py")) for code in _read(file))
        return [{**vars(c), "hyper": {n: None if v is REQUIRED else repr(v) for n, v in c.hyper.items()}} for c in read]

    out = {}
    for given in kept.found(find, "methods"):
        hyper = {n: REQUIRED if v is None else ast.literal_eval(v) for n, v in given["hyper"].items()}
        out[given["key"]] = Code(**{**given, "hyper": hyper})
    return out


def _read(file: Path) -> Iterator[Code]:
    where = file.relative_to(PACKAGE.parent).as_posix()
    for node in ast.parse(_text(where)).body:
        about = (
            (ast.get_docstring(node) or "").split("\n")[0] if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
        )
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for mark in node.decorator_list:
                match mark:
                    case ast.Call(
                        func=ast.Name(id="listed"),
                        args=[ast.Constant(value=str() as key), ast.Constant(value=str() as role)],
                    ):
                        yield Code(key, role, SEES[role], _arguments(node), about, where, node.lineno, node.name)
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                match mark:
                    case ast.Call(
                        func=ast.Name(id="method"), args=[ast.Constant(value=str() as key), ast.Name(id=view)]
                    ):
                        roles = [k.value.value for k in mark.keywords if isinstance(k.value, ast.Constant)]
                        role = str(roles[0]) if roles else "formula"
                        yield Code(key, role, view, _hyper(node), about, where, node.lineno, node.name)
        elif isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Tracker" for b in node.bases):
            yield Code(node.name, "track", "Classes", {"size": REQUIRED}, about, where, node.lineno, node.name)


def _arguments(node: ast.FunctionDef | ast.ClassDef) -> dict[str, Any]:
    """The hyperparameters of a function, or of what makes an instance of a class."""
    if isinstance(node, ast.ClassDef):
        node = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    given = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(given) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(given, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return {a.arg: REQUIRED if d is None else ast.literal_eval(d) for a, d in pairs if a.arg not in PLUMBING}


def _hyper(node: ast.FunctionDef) -> dict[str, Any]:
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {a.arg: REQUIRED if d is None else ast.literal_eval(d) for a, d in pairs}
