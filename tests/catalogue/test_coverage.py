"""Coverage and evidence are computed from what is there, and judgements fit it."""

import importlib
import json

import pytest

from lossary.catalogue import cite, coverage, evidence, schema, source, tables
from lossary.errors import DataError, UnknownName


# --- evidence --------------------------------------------------------------------------------------------------------
def record(folder, name="a", **change):
    made = {
        "study": name,
        "claim": "Something holds.",
        "rows": ["R134"],
        "methods": ["dual_focal"],
        "setting": "small",
        "seeds": 3,
        "verdict": "not shown",
        "versions": evidence.versions(["dual_focal"]),
        **change,
    }
    (folder / f"{name}.json").write_text(json.dumps({k: v for k, v in made.items() if v is not None}))


def test_levels_are_computed(tmp_path, monkeypatch):
    assert evidence.evidence("dual_focal", tmp_path).level == "reference"
    monkeypatch.setattr(evidence, "values", dict)
    assert evidence.evidence("dual_focal", tmp_path).level == "laws"
    record(tmp_path)
    found = evidence.evidence("dual_focal", tmp_path)
    assert (found.level, found.studies[0].verdict, found.studies[0].stale) == ("study", "not shown", ())
    assert evidence.evidence("focal", tmp_path).level == "laws"
    assert evidence.lowest(["dual_focal", "focal"], folder=tmp_path) == "laws"
    assert evidence.lowest([], "R134", tmp_path) == "study"
    assert evidence.lowest([], "R1", tmp_path) == ""


def test_a_study_counts_for_what_it_is_about_not_for_its_baselines(tmp_path):
    record(
        tmp_path,
        methods=["cross_entropy", "focal", "dual_focal"],
        versions=evidence.versions(["cross_entropy", "focal", "dual_focal"]),
    )
    assert [evidence.evidence(k, tmp_path).level for k in ("cross_entropy", "focal", "dual_focal")] == [
        "reference",
        "reference",
        "study",
    ]
    record(tmp_path, rows=[], methods=["focal"], versions=evidence.versions(["focal"]))
    assert evidence.evidence("focal", tmp_path).level == "study"


def test_other_code_has_versions_too(tmp_path):
    now = evidence.versions(["lossary.measure.f1.f1", "lossary.measure.f1.nothing", "focal", "os.path.join"])
    assert list(now) == ["lossary.measure.f1.f1", "focal"]
    record(tmp_path, rows=["R401"], methods=[], versions=now)
    assert evidence.lowest([], "R401", tmp_path) == "study"
    record(tmp_path, rows=["R401"], methods=[], versions={**now, "lossary.measure.f1.f1": "0123456789"})
    assert evidence.lowest([], "R401", tmp_path) == ""


def test_a_result_of_another_formula_is_stale(tmp_path):
    record(tmp_path, versions={"dual_focal": "0123456789"})
    found = evidence.evidence("dual_focal", tmp_path)
    assert found.level == "reference"
    assert found.studies[0].stale == ("dual_focal",)
    record(tmp_path, "b")
    assert evidence.evidence("dual_focal", tmp_path).level == "study"
    record(tmp_path, "b", versions={**evidence.versions(["dual_focal"]), "gone": "0123456789"})
    assert evidence.evidence("dual_focal", tmp_path).studies[1].stale == ("gone",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "yes"}, "verdict"),
        ({"versions": {}}, "no version of dual_focal"),
        ({"seeds": None}, "lacks seeds"),
    ],
)
def test_a_wrong_record_is_one_clear_error(tmp_path, change, words):
    record(tmp_path, **change)
    with pytest.raises(DataError, match=words) as caught:
        evidence.studies(tmp_path)
    assert "a.json" in str(caught.value)


def test_a_broken_file_is_one_clear_error(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json is not JSON"):
        evidence.studies(tmp_path)


def test_an_alias_has_the_evidence_of_its_method():
    assert evidence.evidence("label_smoothing") == evidence.evidence("cross_entropy")
    assert all(v.source and v.numbers for v in evidence.values()["focal"])


def test_recorded_studies_can_be_read():
    for study in evidence.studies():
        assert set(study.methods) <= set(source.methods()), study.name
        assert set(study.rows) <= set(schema.papers()), study.name


# --- coverage --------------------------------------------------------------------------------------------------------
def test_every_row_that_a_method_names_is_judged():
    judged = tables()["coverage.toml"]
    named = {row for made in schema.methods().values() for row in made.seed_rows}
    assert not named - set(judged), f"judge {sorted(named - set(judged))} in coverage.toml"


def test_what_a_judgement_rests_on_exists():
    for row, state in coverage.states().items():
        for path in (u for u in state.uses if "." in u):
            module, _, name = path.rpartition(".")
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.import_module(path), row


def test_states_add_up():
    rows = coverage.listed()
    assert len(rows) == len(schema.papers()) == sum(t["papers"] for t in coverage.summary())
    for state in coverage.STATES:
        assert len(coverage.listed(state=state)) == sum(t[state] for t in coverage.summary())
    assert [r["family"] for r in coverage.listed("noise")] == ["noise"] * len(coverage.listed("noise"))
    assert [t["family"] for t in coverage.summary("noise")] == ["noise"]
    assert coverage.states()["R17"].state == "works"
    assert coverage.states()["R17"].level == evidence.lowest(["ldr_kl", "aldr_kl"])
    assert coverage.states()["R103"].state == "not yet"
    with pytest.raises(UnknownName):
        coverage.summary("nose")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"state": "works", "does": "All.", "missing": "Half."}, "something is missing"),
        ({"state": "partly", "does": "Half."}, "nothing is said to be missing"),
        ({"state": "works"}, "what is there"),
        ({"state": "done", "does": "x"}, "unknown state"),
        ({"state": "works", "does": "All.", "why": "x"}, "why is no field"),
    ],
)
def test_a_wrong_judgement_is_one_clear_error(given, words):
    with pytest.raises(DataError, match=words):
        coverage._state("R17", given, ["ldr_kl"])


def test_a_judgement_on_a_method_that_is_gone_fails():
    with pytest.raises(UnknownName, match="ldr_kl"):
        coverage._state("R17", {"state": "works", "does": "All.", "uses": ["ldr_k"]}, [])
    with pytest.raises(DataError, match="what is there"):
        coverage._state("R17", {"state": "works", "does": "All."}, [])


# --- surveys ---------------------------------------------------------------------------------------------------------
def test_surveys_are_complete():
    assert {row: len(entries) for row, (_, entries) in coverage.surveys().items()} == {
        "R203": 130,
        "R391": 14,
        "R458": 8,
    }
    names = [(e.task, e.kind, e.name) for e in coverage.survey("r203")[1]]
    assert len(set(names)) == len(names)
    with pytest.raises(UnknownName, match="R203"):
        coverage.survey("R17")


def test_what_a_survey_points_at_exists():
    import sklearn.metrics

    from lossary.workbench.metrics import METRICS

    ours = {name for task in METRICS.values() for name in task}
    for row, (_, entries) in coverage.surveys().items():
        for e in entries:
            where = f"{row}: {e.name}"
            if e.use:
                assert cite.used(e.use), where
            if e.metric.startswith("lossary:"):
                assert e.metric.removeprefix("lossary:") in ours, where
            elif e.metric.startswith("lossary."):
                assert source.version(e.metric), where
            elif e.metric.startswith("sklearn.metrics."):
                assert hasattr(sklearn.metrics, e.metric.rsplit(".", 1)[1]), where
            elif e.metric:
                assert e.metric.startswith("torchmetrics."), where
            if e.kind == "metric":
                assert not e.use, where


# --- citing ----------------------------------------------------------------------------------------------------------
def keys(text):
    return [made.key for made in cite.rows_of(cite.used(text))]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("focal", ["focal"]),
        ("lossary.focal(gamma=2)", ["focal"]),
        ("focal(gamma=2).weigh(effective_number)", ["focal", "effective_number"]),
        ("focal(2).weigh(weigh.effective_number(beta=0.9))", ["focal", "effective_number"]),
        ("focal.reduce(lossary.reduce.cvar(0.2))", ["focal", "cvar"]),
        ("0.1 * cross_entropy + brier", ["cross_entropy", "brier"]),
        ("(gce + brier).weigh(class_weight([1, 2]))", ["gce", "brier", "class_weight"]),
        ("cross_entropy.watching(track.aum(100)).ignoring(-1)", ["cross_entropy", "aum"]),
        ("focal(gamma=memory.Learned(2.0))", ["focal"]),
        ("label_smoothing", ["label_smoothing"]),
        ("cross_entropy(label_smoothing=0.2)", ["cross_entropy", "label_smoothing"]),
        ("symmetric_cross_entropy(alpha=0.0)", ["symmetric_cross_entropy", "reverse_cross_entropy"]),
        ("logit_adjustment", ["logit_adjustment"]),
        ("huber(delta=2.0)", ["huber"]),
    ],
)  # fmt: skip
def test_what_is_cited(text, wanted):
    assert keys(text) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("focall", "focal"),
        ("focal(gama=2)", "gamma"),
        ("focal(1, 2)", "takes 1"),
        ("focal.weigh(weigh.cvar)", "unknown weight 'cvar'"),
        ("focal.weigh(cvar", "cannot read"),
        ("focal[0]", "cannot read"),
        ("mine.focal", "cannot read"),
        ("1 + 2", "names no method"),
        ("focal(gamma=brier)", "cannot be a hyperparameter"),
        ("__import__('os').system('true')", "cannot read"),
        ("focal(gamma=open('x'))", "unknown method 'open'"),
        ("nowhere.json", "no such file"),
    ],
)
def test_what_cannot_be_cited_is_one_clear_error(text, words):
    with pytest.raises((UnknownName, DataError, ValueError), match=words.replace("(", r"\(")):
        cite.configured(text)


def test_citing_reads_expressions_as_parse_does():
    import lossary

    for text in (
        "focal(gamma=2).weigh(effective_number(counts=[3, 1])).reduce(cvar(0.2))",
        "0.1 * cross_entropy(label_smoothing=0.1) + brier",
        "label_smoothing(0.2)",
        "huber(1.5)",
        "bce.weigh(pos_weight(weight=[2.0])).reduce(tilted(t=-1.0))",
    ):
        config = lossary.parse(text).config()
        parts = [*config["terms"], *config["weigh"], config["reduce"]]
        made = schema.methods()
        named = [made[u.key].alias_of or u.key for u in cite.used(text)]
        assert named == [p["method"] for p in parts if p["method"] != "mean"]


def test_citing_files(tmp_path):
    import lossary

    objective = lossary.parse("focal(gamma=3.0).weigh(effective_number(counts=[3, 1])).watching(track.el2n(7))")
    config = tmp_path / "objective.json"
    config.write_text(json.dumps(objective.config()))
    (parts,) = cite.configured(str(config)).values()
    assert [p.key for p in parts] == ["focal", "effective_number", "el2n"]
    report = tmp_path / "report.json"
    report.write_text(
        json.dumps(
            {"candidates": [{"name": "cross_entropy", "spec": "cross_entropy"}, {"name": "x", "spec": "gce(q=0.5)"}]}
        )
    )
    assert list(cite.configured(str(report))) == ["cross_entropy", "gce(q=0.5)"]
    (tmp_path / "list.txt").write_text("# mine\nfocal\n\nbrier\n")
    assert list(cite.configured(str(tmp_path / "list.txt"))) == ["focal", "brier"]
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    for name in ("other.json", "broken.json"):
        with pytest.raises(DataError, match="JSON"):
            cite.configured(str(tmp_path / name))


def test_bibtex():
    text = cite.bibtex(cite.rows_of(cite.used("focal + sigmoid_focal + brier")))
    assert text.count("@misc{") == 2
    assert "% focal: Eq. 4" in text
    assert "% sigmoid_focal: Eq. 5" in text
    assert "@misc{lin2017focal,\n  title = {{Focal Loss for Dense Object Detection}},\n  author = {Tsung-Yi" in text
    assert "eprint = {1708.02002},\n  archivePrefix = {arXiv}" in text
    every = cite.bibtex(schema.methods().values())
    names = [line[6:-1] for line in every.splitlines() if line.startswith("@misc{")]
    assert len(set(names)) == len(names) == len({made.paper for made in schema.methods().values()})
    for entry in every.split("\n\n"):
        body = "\n".join(line for line in entry.splitlines() if not line.startswith("%"))
        assert body.count("{") == body.count("}")
