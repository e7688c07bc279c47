"""The command line as a new user meets it: exit codes, one-line errors, killing and going on, reports."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

QUICK = ["--splits", "3", "--trials", "2", "--seeds", "1", "--epochs", "4"]


def lossary(*args, cwd, wait=True, **options):
    command = [sys.executable, "-m", "lossary", *map(str, args)]
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    if not wait:
        # A shell starts what runs in the background with Ctrl-C ignored, and that is inherited.
        heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=cwd, text=True, env=env, preexec_fn=heard, **both)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=env, **options)


def test_compare_runs_report_list(tmp_path):
    done = lossary("compare", "sklearn:wine", "-o", "focal;brier", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cross_entropy" in done.stdout
    assert "tuning (splits" in done.stderr  # no terminal: lines instead of a bar
    assert "models; " in done.stdout
    (html,) = tmp_path.glob("lossary-runs/*/report.html")
    run = json.loads(html.with_suffix(".json").read_text())
    assert run["command"].startswith("lossary compare sklearn:wine")
    assert run["verdict"]["headline"] in done.stdout
    listed = lossary("runs", cwd=tmp_path)
    assert run["run"] in listed.stdout
    assert "finished" in listed.stdout
    html.unlink()
    redrawn = lossary("report", run["run"][:4], cwd=tmp_path)
    assert redrawn.returncode == 0
    assert html.exists()
    methods = lossary("list", cwd=tmp_path).stdout
    assert "dual_focal" in methods
    assert "reduce.cvar" in methods


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.normal(size=60), "b": rng.choice(["x", "y"], 60), "label": rng.choice(["p", "q"], 60)}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.assign(label="p").to_csv(tmp_path / "one.csv", index=False)
    frame.assign(label=["p"] * 58 + ["q"] * 2).to_csv(tmp_path / "rare.csv", index=False)
    frame[:0].to_csv(tmp_path / "empty.csv", index=False)
    frame.assign(label=[np.nan, *rng.normal(size=59)]).to_csv(tmp_path / "nan.csv", index=False)
    frame.assign(label=[np.inf, *rng.normal(size=59)]).to_csv(tmp_path / "inf.csv", index=False)
    (tmp_path / "twice.csv").write_text("a,a,label\n1,2,p\n3,4,q\n")
    np.savez(tmp_path / "text.npz", X=np.array([[1, "b"]] * 20, dtype=object), y=np.arange(20) % 2)
    (tmp_path / "own_bad_net.py").write_text("import torch.nn as nn\ndef bad():\n    return nn.Linear(3, 99)\n")
    (tmp_path / "not.db").write_text("this is not a database" * 100)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent.csv", "--target", "label"], "no such file"),
        (["t.csv", "--target", "lable"], "label"),
        (["t.csv"], "target"),
        (["empty.csv", "--target", "label"], "row"),
        (["one.csv", "--target", "label"], "class"),
        (["rare.csv", "--target", "label"], "'q'"),
        (["nan.csv", "--target", "label"], "no target"),
        (["inf.csv", "--target", "label"], "inf"),
        (["t.csv", "--target", "label", "--task", "regression"], "number"),
        (["text.npz"], "number"),
        (["twice.csv", "--target", "label"], "a"),
        (["sklearn:wine", "-o", "focall"], "focal"),
        (["sklearn:wine", "-o", "focal(gama=2)"], "gamma"),
        (["sklearn:wine", "-o", "focal;;(("], "read"),
        (["sklearn:wine", "--store", "nonsense://x"], "nonsense"),
        (["sklearn:wine", "--store", "not.db"], "not.db"),
        (["sklearn:wine", "--model", "own_bad_net:bad"], "own_bad_net:bad"),
        (["sklearn:wine", "--hidden", "a,b"], "hidden"),
        (["sklearn:wyne"], "wine"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(table, args, words):
    done = lossary("compare", *args, *QUICK, cwd=table)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    message = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(message) == 1, done.stderr
    assert message[0].startswith("lossary: ")
    assert words in message[0]


def wait_for_records(folder, process, least=1, timeout=120):
    import sqlite3

    begun = time.time()
    while time.time() - begun < timeout and process.poll() is None:
        database = folder / "lossary-runs" / "runs.db"
        if database.exists():
            try:
                with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as link:
                    (n,) = link.execute("select count(*) from lossary_records").fetchone()
                if n >= least:
                    return n
            except sqlite3.OperationalError:
                pass
        time.sleep(0.05)
    raise AssertionError(f"nothing was stored: {process.communicate()}")


LONGER = [
    "compare",
    "sklearn:digits",
    "-o",
    "focal;gce",
    "--splits",
    "4",
    "--trials",
    "4",
    "--seeds",
    "2",
    "--epochs",
    "25",
]


def test_kill_nine_loses_at_most_the_running_batch_and_the_same_command_goes_on(tmp_path):
    victim = lossary(*LONGER, cwd=tmp_path, wait=False)
    stored = wait_for_records(tmp_path, victim)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    listed = lossary("runs", cwd=tmp_path).stdout
    assert "unfinished" in listed
    done = lossary(*LONGER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on where it stopped" in done.stdout
    assert len(list(tmp_path.glob("lossary-runs/*/report.html"))) == 1
    assert stored > 0
    resumed = json.loads(next(tmp_path.glob("lossary-runs/*/report.json")).read_text())
    other = tmp_path / "whole"
    other.mkdir()
    assert lossary(*LONGER, cwd=other).returncode == 0
    whole = json.loads(next(other.glob("lossary-runs/*/report.json")).read_text())
    assert [c["scores"] for c in resumed["candidates"]] == [c["scores"] for c in whole["candidates"]]
    assert resumed["holdout"]["scores"] == whole["holdout"]["scores"]


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path):
    victim = lossary(*LONGER, cwd=tmp_path, wait=False)
    wait_for_records(tmp_path, victim)
    victim.send_signal(signal.SIGINT)
    _, errors = victim.communicate(timeout=60)
    assert victim.returncode == 130
    assert "To go on: lossary compare sklearn:digits" in errors
    assert "Traceback" not in errors
    assert "interrupted" in lossary("runs", cwd=tmp_path).stdout


def test_import_is_light():
    heavy = {"pandas", "sklearn", "optuna", "sqlalchemy", "typer", "plotly", "scipy", "tomllib"}
    loaded = [
        subprocess.run(
            [sys.executable, "-c", f"import sys, {what}; print(*sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for what in ("torch", "lossary")
    ]
    assert not heavy & (set(loaded[1]) - set(loaded[0]))


def test_a_missing_extra_is_named(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('no typer here')")
    done = lossary("list", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'lossary[cli]'" in done.stderr
