"""`lossary check`: what held is kept until something it depends on changes; what broke, and one's own, never is."""

import pytest
from typer.testing import CliRunner

from lossary import methods
from lossary.workbench import cli

QUESTION = ["check", "brier", "--law", "round_trip"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    methods.find("brier")  # the rooms are imported, and stay
    monkeypatch.setattr(methods, "REGISTRY", dict(methods.REGISTRY))
    return lambda *args: CliRunner().invoke(cli.app, list(args))


def test_what_held_is_told_again_at_once(run, monkeypatch):
    first = run(*QUESTION)
    assert (first.exit_code, "all hold" in first.stdout, "nothing was changed" in first.stdout) == (0, True, False)
    monkeypatch.setattr("lossary.laws.check", None)  # not needed any more
    second = run(*QUESTION)
    assert second.exit_code == 0
    assert "1 tries, all hold" in second.stdout
    assert "nothing was changed" in second.stdout
    assert second.stdout.split("\n")[:6] == first.stdout.split("\n")[:6]
    assert run(*QUESTION, "--again").exception is not None  # tried anew


def test_another_torch_is_tried_anew(run, monkeypatch):
    run(*QUESTION)
    monkeypatch.setattr(cli, "version", lambda name: "2.99")
    assert "nothing was changed" not in run(*QUESTION).stdout
    assert "nothing was changed" in run(*QUESTION).stdout


def test_what_breaks_and_what_is_not_ours_is_tried_each_time(run, tmp_path, monkeypatch):
    (tmp_path / "own_formulas.py").write_text(
        "from lossary.methods import method\nfrom lossary.views import Classes\n"
        "@method('mine_broken', Classes)\ndef broken(v):\n    return v.p_y / 0\n"
        "@method('mine_good', Classes)\ndef good(v):\n    return -v.log_p_y\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        found = run("check", "own_formulas:broken", "--law", "extremes")
        assert (found.exit_code, "breaks" in found.stdout) == (1, True)
        assert "nothing was changed" not in run("check", "own_formulas:good", "--law", "extremes").stdout
    assert not any("breaks" in f.read_text() or "extremes" in f.read_text() for f in tmp_path.glob("lossary/*"))


def test_a_cache_that_cannot_be_used_is_no_error(run, tmp_path, monkeypatch):
    (tmp_path / "lossary").write_text("a file where the folder should be")
    first = run(*QUESTION)
    assert first.exit_code == 0, first.stdout
    (tmp_path / "lossary").unlink()
    run(*QUESTION)
    for answer in tmp_path.glob("lossary/*.json"):
        answer.write_text("{")
    assert "nothing was changed" not in run(*QUESTION).stdout
