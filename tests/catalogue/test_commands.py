"""The commands answer, quickly, and without PyTorch."""

import json
import os
import subprocess
import sys
import time

import pytest

RUN = """
import sys
from lossary.__main__ import main
try:
    main()
finally:
    print('torch' in sys.modules, file=sys.stderr)
"""


def lossary(*args, width=160):
    env = {**os.environ, "COLUMNS": str(width), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env=env,
        encoding="utf-8",
    )


ANSWERS = [
    (["search", "noisy", "labels"], ["active_passive", "R17", "works", "reference", "not yet"]),
    (["search", "focall"], ["dual_focal"]),
    (["search", "--family", "noise", "--state", "partly"], ["AUM"]),
    (
        ["show", "dual_focal"],
        ["−(1 − p_y + p_j)^γ log p_y", "lossary.dual_focal(gamma=5.0)", "0.05122545451", "mpmath"],
    ),
    (["show", "dual_focal"], ["@misc{tao2023dual", "0.5 to 7", "R134", "evidence", "differs from"]),
    (["show", "reduce.cvar"], ["worst fraction"]),
    (["show", "label_smoothing"], ["stands for", "cross_entropy with label_smoothing = 0.1", "Szegedy"]),
    (["show", "R17"], ["2112.14869", "works (", "lossary.ldr_kl", "must offer"]),
    (["show", "R4"], ["(id not verified)", "not yet"]),
    (["cite", "focal(gamma=2).weigh(effective_number)"], ["@misc{lin2017focal", "@misc{cui2019class"]),
    (["coverage"], ["479 papers", "classification", "compress"]),
    (["coverage", "--family", "calibration"], ["R134", "works", "R89"]),
    (["coverage", "--survey", "R391"], ["mae", "quantile", "MBE", "14 entries"]),
    (["study"], ["pinn-burgers", "A network that solves Burgers", "z-loss-ranking"]),
    (["list"], ["dual_focal", "reduce.cvar", "weigh.class_weight", "track.aum", "label_smoothing", "reduce.maximal"]),
]


@pytest.fixture(scope="module", autouse=True)
def _asked_before():
    """The first answer after a change reads all of the library, which takes two seconds; what it found is kept."""
    lossary("coverage")


@pytest.mark.parametrize(("args", "words"), ANSWERS, ids=lambda x: " ".join(x)[:40])
def test_answers_without_torch(args, words):
    begun = time.perf_counter()
    done = lossary(*args)
    seconds = time.perf_counter() - begun
    assert done.returncode == 0, done.stderr
    flat = " ".join(done.stdout.split())
    for word in words:
        assert word in flat, done.stdout
    assert done.stderr.split() == ["False"], "PyTorch was imported, or something was written to stderr"
    assert seconds < (2 if os.cpu_count() and os.getloadavg()[0] < os.cpu_count() else 10)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["show", "dual_focl"], 2, "dual_focal"),
        (["show", "R480"], 2, "R1 to R479"),
        (["cite", "focall"], 2, "focal"),
        (["search", "x", "--family", "noisy"], 2, "noise"),
        (["search", "x", "--year", "soon"], 2, "2020"),
        (["coverage", "--survey", "R17"], 2, "R203"),
        (["coverage", "--family", "nose"], 2, "noise"),
        (["coverage", "--state", "done"], 2, "works"),
        (["search", "qqqqzzzz"], 1, "nothing found for 'qqqqzzzz'; nearest words:"),
        (["search", "focal", "--year", "1900"], 1, "with these filters"),
    ],
)
def test_errors_are_one_line(args, code, words):
    done = lossary(*args)
    assert done.returncode == code
    message, torch_too = done.stderr.strip().splitlines()
    assert message.startswith("lossary: ")
    assert words in message
    assert torch_too == "False"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "read"),
    [
        (["search", "focal", "--json"], lambda j: j[0]["id"] == "focal" and j[0]["kind"] == "formula"),
        (["search", "qqqqzzzz", "--json"], lambda j: j == []),
        (["show", "focal", "--json"], lambda j: j["evidence"]["level"] in ("reference", "study")),
        (["show", "focal", "--json"], lambda j: j["hyper"]["gamma"]["range"] == [0.0, "inf"]),
        (["show", "R17", "--json"], lambda j: j["state"] == "works" and j["uses"] == ["ldr_kl", "aldr_kl"]),
        (["coverage", "--json"], lambda j: len(j["rows"]) == 479 and sum(f["papers"] for f in j["families"]) == 479),
        (["coverage", "--survey", "R203", "--json"], lambda j: len(j["entries"]) == 130),
    ],
)  # fmt: skip
def test_json(args, read):
    assert read(json.loads(lossary(*args).stdout))


def test_a_narrow_terminal_shows_every_row():
    done = lossary("search", "noisy", "labels", width=60)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 60
