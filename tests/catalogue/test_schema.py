"""The catalogue says what may be said, about all that exists and nothing else."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest

import lossary
from lossary import catalogue, laws, methods, track
from lossary.catalogue import latex, schema, source
from lossary.errors import DataError, UnknownName

ROOT = Path(lossary.__file__).parents[1]
REAL = [key for key, made in schema.methods().items() if not made.alias_of]
ALIASES = [key for key, made in schema.methods().items() if made.alias_of]


# --- code and rows ---------------------------------------------------------------------------------------------------
def test_every_key_in_code_has_a_row_and_every_row_a_key():
    assert set(REAL) == {*laws.known(), *methods.all_listed()}


def test_reading_the_source_finds_what_importing_it_finds():
    laws.known()
    found = source.methods()
    assert set(found) == {*lossary.REGISTRY, *track.TRACKERS, *methods.all_listed()}
    for key, one in methods.all_listed().items():
        assert (found[key].role, found[key].path, found[key].hyper) == (one.role, one.path, one.hyper), key
        assert found[key].about == inspect.cleandoc(one.made.__doc__).splitlines()[0]
    for key, method in lossary.REGISTRY.items():
        code = found[key]
        assert (code.role, code.view, code.hyper) == (method.role, method.view.__name__, method.hyper), key
        assert code.path == method.path
        assert code.version == method.version, key
        assert code.about == inspect.cleandoc(method.__doc__).splitlines()[0]


@pytest.mark.parametrize("key", REAL)
def test_a_row_says_what_the_code_says(key):
    made, code = schema.methods()[key], source.methods()[key]
    assert (made.role, made.view) == (code.role, code.view)
    assert set(made.hyper) == set(code.hyper), "an undocumented hyperparameter, or one that is gone"
    for name, default in code.hyper.items():
        stated = made.hyper[name].default
        if stated is None:
            assert made.hyper[name].from_ == "data", f"{name}: the row has no default, the code {default!r}"
        else:
            assert stated == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("key", REAL)
def test_texts_are_plain(key):
    """Pages mark names by themselves; a backquote would be shown as one."""
    made = schema.methods()[key]
    texts = (made.title, made.summary, made.drops, made.use_when, made.avoid_when, made.cost, made.equation)
    assert "`" not in " ".join([*filter(None, texts), *(how for _, how in made.differs_from)])


@pytest.mark.parametrize("key", REAL)
def test_stated_properties_are_laws(key):
    assert set(schema.methods()[key].properties) <= set(laws.rows.PROPERTIES)


def test_hyperparameters_have_names_of_the_glossary():
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", text, re.M))
    for key in REAL:
        for name in schema.methods()[key].hyper:
            assert name in rows, f"{name} of {key} is not in docs/glossary.md"
            assert f"`{key}`" in rows[name], f"docs/glossary.md does not say that {key} uses {name}"
    used = {name for key in REAL for name in schema.methods()[key].hyper}
    assert set(rows) <= used, f"nobody uses {set(rows) - used}"


# --- the schema refuses ----------------------------------------------------------------------------------------------
def a_row(**change):
    row = tomllib.loads((ROOT / "lossary" / "catalogue" / "classes.toml").read_text())["focal"]
    row = {**row, **change}
    return {k: v for k, v in row.items() if v is not None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": None}, "title is missing"),
        ({"title": ""}, "title is empty"),
        ({"year": "2017"}, "year has the wrong type"),
        ({"year": 217}, "year"),
        ({"arxiv": "arXiv:1708.02002"}, "arxiv has the wrong form"),
        ({"doi": "https://doi.org/10.1109/x"}, "doi has the wrong form"),
        ({"family": "imbalance"}, "family has the wrong form"),
        ({"role": "objective"}, "role is not known"),
        ({"evidence": "study"}, "evidence is computed"),
        ({"colour": "blue"}, "colour is no field"),
        ({"confused_with": ["sum", "sum"]}, "confused_with says something twice"),
        ({"seed_rows": ["17"]}, "seed_rows"),
        ({"settable": ["gamma"]}, "without alias_of"),
        ({"alias_of": "cross_entropy"}, "beside limits or properties"),
        ({"authors": "Lin,, He"}, "authors"),
        ({"limits": [{"at": {}}]}, "limits[0]: equals is missing"),
        ({"differs_from": [{"peer": "x"}]}, "differs_from[0]: how is missing"),
    ],
)
def test_a_wrong_row_is_one_clear_error(change, words):
    with pytest.raises(DataError) as caught:
        schema.method("focal", a_row(**change), where="classes.toml: focal")
    assert words in str(caught.value)
    assert str(caught.value).startswith("classes.toml: focal")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"default": -1.0}, "default lies outside"),
        ({"default": None}, "default is missing"),
        ({"range": [1.0, 0.0]}, "range is not"),
        ({"search": {"low": 0.5, "high": 0.1}}, "low is not below high"),
        ({"search": {"low": 0.0, "high": 1.0, "log": True}}, "above 0"),
        ({"search": {"low": -1.0, "high": 1.0}}, "outside the range"),
        ({"search": {"choices": []}}, "outside the range"),
        ({"source": "folklore"}, "source is not known"),
        ({"meaning": None}, "meaning is missing"),
        ({"unit": "m"}, "unit is no field"),
    ],
)
def test_a_wrong_hyperparameter_is_one_clear_error(change, words):
    gamma = {**a_row()["hyper"]["gamma"], **change}
    with pytest.raises(DataError) as caught:
        schema.hyper("classes.toml: focal.hyper.gamma", {k: v for k, v in gamma.items() if v is not None})
    assert words in str(caught.value)
    assert "focal.hyper.gamma" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"confused_with": ["fokal"]},
        {"seed_rows": ["R9999"]},
        {"limits": [{"at": {"gama": 0.0}, "equals": "cross_entropy"}]},
        {"limits": [{"at": {"gamma": 0.0}, "equals": "crossentropy"}]},
        {"limits": [{"at": {"gamma": 0.0}, "equals": "gce", "with": {"p": 1.0}}]},
    ],
)
def test_names_in_a_row_exist(change, monkeypatch):
    broken = {**catalogue.rows(), "focal": a_row(**change)}
    monkeypatch.setattr(schema, "rows", lambda: broken)
    with pytest.raises(DataError, match="focal"):
        schema.methods.__wrapped__()


def test_unknown_keys_get_the_nearest():
    with pytest.raises(UnknownName, match="dual_focal"):
        schema.find_method("dual_focl")
    with pytest.raises(UnknownName, match="R1 to R479"):
        schema.find_paper("R480")
    assert schema.find_method("lossary.reduce.cvar").key == "cvar"
    assert schema.find_paper("r17").row == "R17"


# --- papers ----------------------------------------------------------------------------------------------------------
def test_papers_are_complete_and_in_order():
    assert list(schema.papers()) == [f"R{n}" for n in range(1, 480)]


def test_a_number_that_a_method_cites_is_checked():
    cited = {made.arxiv for made in schema.methods().values() if made.arxiv}
    for paper in schema.papers().values():
        assert paper.checked or paper.arxiv not in cited, paper.row


def test_a_wrong_paper_is_one_clear_error():
    line = {**vars(schema.papers()["R17"])}
    line["problems"] = list(line["problems"])
    assert schema.paper(line).row == "R17"
    for change, words in (
        ({"kind": "talk"}, "kind"),
        ({"arxiv": "2112"}, "arxiv"),
        ({"checked": "yes"}, "checked"),
        ({"arxiv": "", "checked": True}, "checked"),
        ({"priority": 9}, "priority"),
    ):
        with pytest.raises(DataError, match=f"R17: .*{words}"):
            schema.paper({**line, **change})


# --- formulas as text ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r"\frac{1-p_y^{\,q}}{q}", "(1 − p_y^q)/q"),
        (r"-\alpha\log p_y", "−α log p_y"),
        (r"\frac{\varepsilon}{C}\sum_{k=1}^{C}\log p_k", "(ε/C) Σ_(k=1)^C log p_k"),
        (r"\frac12 x", "(1/2)x"),
        (r"\frac{1}{\alpha n} y", "(1/(αn))y"),
        (r"\Big(\frac{\min_j n_j}{n_k}\Big)^{1/4}", "((min_j n_j)/n_k)^(1/4)"),
        (r"e^{-t}", "e^(−t)"),
        (r"n_k^{-2}", "n_k⁻²"),
        (r"\begin{cases} r^2 / 2 & |r| \le 1 \\ 0 & |r| > 1 \end{cases}", "{ r²/2 if |r| ≤ 1; 0 if |r| > 1 }"),
        (r"\hat p_k", "p̂_k"),
        (r"\frac{a}{\alpha(\alpha-1)}", "a/(α(α − 1))"),
        (r"\frac{\exp(x + 1)}{e^{s(z)}}", "exp(x + 1)/e^(s(z))"),
        (r"\sum_{i \in \mathrm{on}} -\log \sigma(s)", "Σ_(i∈on) −log σ(s)"),
        (r"\alpha\text{-entmax of x}", "α-entmax of x"),
        (r"\Omega_\alpha^*(z) - 1", "Ω_α^*(z) − 1"),
        (r"z_y^{(t)}", "z_y^(t)"),
    ],
)
def test_formula_as_text(formula, text):
    assert latex.text(formula) == text


@pytest.mark.parametrize("key", schema.methods())
def test_every_formula_becomes_text(key):
    made = schema.methods()[key]
    for formula in (made.formula, *(h.symbol for h in made.hyper.values())):
        text = latex.text(formula)
        assert "\\" not in text, text
        assert all(text.count(a) == text.count(b) for a, b in ("()", "{}")), text


def test_an_open_bracket_is_an_error():
    with pytest.raises(DataError, match="cannot read the formula"):
        latex.text(r"\frac{1}{2")


# --- aliases ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ALIASES)
def test_an_alias_makes_the_methods_objective(key):
    import torch

    made = schema.methods()[key]
    alias = lossary.find(key)
    data = {name: [3.0, 2.0, 1.0] for name, h in made.hyper.items() if h.default is None}
    target = lossary.find(made.alias_of)
    part, plain = alias.bind(**data), target.bind(**made.with_, **data)
    assert part.config() == plain.config()
    assert lossary.find(made.alias_of) is part.method
    if made.role == "formula":
        objective = getattr(lossary, key)(**data)
        assert objective.config() == lossary.parse(f"{key}", data).config()
        assert lossary.parse(repr(objective)).config() == objective.config()
        if made.view == "Classes":
            x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
            assert torch.equal(objective(x, y), target(**made.with_, **data)(x, y))
    else:
        room = {"weight": lossary.weigh, "reduce": lossary.reduce, "balance": lossary.balance}[made.role]
        assert getattr(room, key).bind(**data).config() == plain.config()


def test_what_an_alias_stands_for_is_fixed_unless_it_is_settable():
    assert lossary.label_smoothing(0.3).config() == lossary.cross_entropy(label_smoothing=0.3).config()
    assert lossary.label_smoothing().hyper()["label_smoothing"] == 0.1
    assert lossary.balanced_softmax(counts=[1.0, 2.0]).hyper()["tau"] == 1.0
    with pytest.raises(UnknownName, match="delta"):
        lossary.smooth_l1(delta=2.0)
    given = lossary.reverse_cross_entropy(log_zero=-2.0).hyper()
    assert (given["alpha"], given["beta"], given["log_zero"]) == (0.0, 1.0, -2.0)


def test_what_an_alias_stands_for_is_not_tuned():
    assert ("logit_adjustment", "tau") in lossary.expression.typed("balanced_softmax")
    assert ("top_k", "k") in lossary.expression.typed("cross_entropy.reduce(maximal)")


def test_no_alias_hides_a_method_or_a_room():
    assert not set(ALIASES) & {*laws.known(), *lossary._ROOMS, *lossary._HOMES}


def test_unknown_names_also_suggest_aliases():
    with pytest.raises(UnknownName, match="smooth_l1"):
        lossary.find("smoth_l1")
    with pytest.raises(AttributeError, match="no reduce is called"):
        lossary.reduce.nothing  # noqa: B018
    with pytest.raises(AttributeError):
        lossary.weigh.maximal  # noqa: B018 - a reduction


# --- versions --------------------------------------------------------------------------------------------------------
MODULE = '''
import torch
SHIFT = 2.0

def helper(x):
    """Doc."""
    return x + SHIFT

def other(x):
    return x

@method("f", Classes)
def f(v: Classes, *, gamma: float = 2.0) -> Tensor:
    """What it is."""
    return helper(v.p_y) ** gamma
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""What it is."""', '"""Something else."""', True),
        ('"""Doc."""', "# a comment", True),
        ("v: Classes, *, gamma: float", "v: View, *, gamma: Tensor", True),
        ("    return helper(v.p_y) ** gamma", "    return (\n        helper(v.p_y)\n        ** gamma\n    )", True),
        ("def other(x):\n    return x", "def other(x):\n    return -x", True),
        ("** gamma", "* gamma", False),
        ("gamma: float = 2.0", "gamma: float = 3.0", False),
        ("x + SHIFT", "x - SHIFT", False),
        ("SHIFT = 2.0", "SHIFT = 2.5", False),
    ],
)
def test_a_version_changes_with_the_numbers_and_with_nothing_else(old, new, same):
    assert MODULE.count(old) == 1
    assert (source.version_of(MODULE, "f") == source.version_of(MODULE.replace(old, new), "f")) is same


def test_a_method_defined_inside_a_function_has_a_version_too():
    @lossary.method("local_for_this_test", lossary.views.Residual)
    def local(v):
        return v.r.square()

    try:
        assert re.fullmatch(r"[0-9a-f]{10}", local.version)
    finally:
        del lossary.REGISTRY["local_for_this_test"]
