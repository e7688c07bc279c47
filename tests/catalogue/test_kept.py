"""Answers that are kept: given again while nothing changed, found anew as soon as something did, never a failure."""

import json
import tomllib

import pytest

from lossary import catalogue
from lossary.catalogue import coverage, evidence, kept, source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of the library, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "formula.py").write_text("a = 1")
    monkeypatch.setattr(kept, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(kept, "source", lambda: whole(tmp_path / "package"))
    return tmp_path / "package"


whole = kept.source.__wrapped__


def test_an_answer_is_found_once(package):
    asked = []
    for _ in range(3):
        assert kept.found(lambda: asked.append(1) or {"a": (1, 2)}, "what", 1) == {"a": [1, 2]}
    assert asked == [1]
    assert kept.found(lambda: 5, "what", 2) == 5


@pytest.mark.parametrize("change", ["content", "new file", "renamed", "table", "python"])
def test_it_is_found_anew_when_what_it_came_from_changed(package, change, monkeypatch):
    kept.write("old", "q")
    assert kept.read("q").answer == "old"
    match change:
        case "content":
            (package / "formula.py").write_text("a = 2")
        case "new file":
            (package / "more.py").write_text("")
        case "renamed":
            (package / "formula.py").rename(package / "other.py")
        case "table":
            (package / "rows.toml").write_text("")
        case "python":
            monkeypatch.setattr("sys.version", "3.99")
    assert kept.read("q") is None
    assert kept.found(lambda: "new", "q") == "new"
    assert len(list(kept.folder().glob("*"))) == 1  # the old answer has gone


def test_what_else_it_depends_on_counts_and_installations_do_not_mix(package, monkeypatch, tmp_path):
    kept.write("old", "q", depends="torch 1")
    assert kept.read("q", depends="torch 1").answer == "old"
    assert kept.read("q", depends="torch 2") is None
    first = kept.path("q")
    monkeypatch.setattr(kept, "PACKAGE", tmp_path / "elsewhere")
    assert kept.path("q") != first


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"answer": 1}', "\x00\xff"])
def test_what_cannot_be_read_is_found_anew(package, content):
    kept.write("old", "q")
    kept.path("q").write_text(content)
    assert kept.found(lambda: "new", "q") == "new"
    assert kept.read("q").answer == "new"


def test_a_folder_that_cannot_be_written_costs_only_time(package, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert kept.found(lambda: [1], "q") == [1]
    assert kept.found(lambda: [2], "q") == [2]


def test_without_a_home_folder_nothing_is_kept(package, monkeypatch):
    """As in a container whose user has no entry: `Path.home()` raises."""
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(kept.Path, "home", home)
    assert kept.found(lambda: [1], "q") == [1]
    assert kept.found(lambda: [2], "q") == [2]


def test_what_is_kept_of_the_library_is_what_is_found(monkeypatch, tmp_path):
    """Found anew, read again, and straight from the files: the same tables, methods, defaults and versions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tables, methods, versions = (f.__wrapped__ for f in (catalogue.tables, source.methods, evidence._studied))
    fresh, again = ((tables(), methods(), versions()) for _ in range(2))
    assert json.dumps(fresh[0]) == json.dumps(again[0])
    assert fresh[1:] == again[1:]
    folder = source.PACKAGE / "catalogue"
    for name in ("optim.toml", "values/optim.toml", "coverage.toml"):
        assert fresh[0][name] == tomllib.loads((folder / name).read_text("utf-8"))
    straight = {
        c.key: c for room in source.ROOMS for f in sorted((source.PACKAGE / room).glob("*.py")) for c in source._read(f)
    }
    assert fresh[1] == straight
    assert any(isinstance(v, tuple) for c in straight.values() for v in c.hyper.values())  # JSON knows no tuples
    assert fresh[2] == {name: source.version(name) for name in fresh[2]}
    assert coverage.states()
