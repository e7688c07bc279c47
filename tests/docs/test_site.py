"""The documentation site as built: no dead link, nothing asked of the network, every method with all its page owes.

Built once into a temporary folder by the command of `make docs`. The last tests open it there, in a real Chromium.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra 'docs')")
pytest.importorskip("material", reason="mkdocs-material is not installed (the extra 'docs')")

from lossary.catalogue import coverage, evidence
from lossary.catalogue.schema import Row, methods, papers

ROOT = Path(__file__).resolve().parents[2]
#: attributes a browser follows by itself; `a` is followed by a reader
FETCHED = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"), "video": ("src",),
    "audio": ("src",), "embed": ("src",), "object": ("data",), "use": ("href", "xlink:href"), "input": ("src",),
    "image": ("href", "xlink:href"),
}  # fmt: skip
RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


@dataclass
class Html(HTMLParser):
    """What a page offers and asks for. anchors: places on it; links: for the reader; fetched: by the browser."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    math: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        attrs = {k: v or "" for k, v in given}
        self.anchors |= {attrs[k] for k in ("id", "name") if k in attrs}
        self.math += tag == "math"
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "link" and set(attrs.get("rel", "").split()) & RELATIONS:
            self.fetched.append(attrs["href"])
        self.fetched += [attrs[k].split(" ")[0] for k in FETCHED.get(tag, ()) if attrs.get(k)]
        self.fetched += re.findall(r"url\(['\"]?([^'\")]+)", attrs.get("style", ""))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does, once for all parallel workers. Warnings are errors."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    out, said = shared / "site", shared / "site.said"
    try:
        (shared / "site.begun").touch(exist_ok=False)
    except FileExistsError:
        for _ in range(6000):
            if said.exists():
                break
            time.sleep(0.1)
    else:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        (shared / "site.new").write_text("" if done.returncode == 0 else done.stdout + done.stderr, encoding="utf-8")
        (shared / "site.new").rename(said)
    assert said.read_text(encoding="utf-8") == ""
    return out


@cache
def read(path: Path) -> Html:
    return Html(path)


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def target(site: Path, page: Path, href: str) -> tuple[Path, str] | None:
    """The file and the anchor a link leads to; None for one that leaves the site."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc:
        return None
    path = unquote(parts.path)
    start = site if path.startswith("/") else page.parent
    file = (start / path.lstrip("/")).resolve() if path else page
    return (file / "index.html" if file.is_dir() else file), unquote(parts.fragment)


def test_no_dead_link(site: Path):
    dead, followed = [], 0
    for page in pages(site):
        for href in [*read(page).links, *read(page).fetched]:
            found = target(site, page, href)
            if found is None:
                continue
            file, anchor = found
            followed += 1
            if not file.is_file() or not file.is_relative_to(site):
                dead.append(f"{page.relative_to(site)}: {href}")
            elif anchor and file.suffix == ".html" and anchor not in read(file).anchors:
                dead.append(f"{page.relative_to(site)}: {href} (no such place on the page)")
    assert dead == []
    assert followed > 5000  # the check saw the site


def test_nothing_is_asked_of_the_network(site: Path):
    asked = [f"{page.name}: {url}" for page in pages(site) for url in read(page).fetched if urlsplit(url).netloc]
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        urls = [*re.findall(r"url\(\s*['\"]?([^'\")]+)", text), *re.findall(r"@import\s+['\"]([^'\"]+)", text)]
        asked += [f"{sheet.name}: {url}" for url in urls if urlsplit(url).netloc]
        dead = [
            u for u in urls if not u.startswith("data:") and not urlsplit(u).netloc and target(site, sheet, u) is None
        ]
        assert dead == []
    for script in (site / "assets").glob("*.js"):
        assert "://" not in script.read_text(encoding="utf-8").replace('"file:"', "").replace("from file://", "")
    assert asked == []


def test_links_that_leave_say_https(site: Path):
    outside = {href for page in pages(site) for href in read(page).links if urlsplit(href).scheme}
    assert {urlsplit(href).scheme for href in outside} == {"https"}


def test_every_method_has_its_page(site: Path):
    home = site / "methods" / "index.html"
    listed = {found[0] for href in read(home).links if (found := target(site, home, href))}
    for key, row in methods().items():
        page = site / "methods" / f"{key}.html"
        text = page.read_text(encoding="utf-8")
        assert page in listed, f"{key} is not on the page of methods"
        for heading in ("use-it-when", "avoid-it-when", "hyperparameters", "try-it", "evidence", "citation"):
            assert heading in read(page).anchors, f"{key}: {heading}"
        assert read(page).math >= 2, f"{key}: its formula is not drawn"
        assert "arithmatex" not in text
        assert ">prints<" in text, f"{key}: its example shows nothing"
        assert ("<figure" in text) == drawable(methods().get(row.alias_of, row)), f"{key}: picture"
        for name in row.hyper:
            assert f"<code>{name}</code>" in text, f"{key}: {name}"
        for other in (*row.confused_with, *(limit.equals for limit in row.limits)):
            assert f'href="{other}.html"' in text, f"{key} does not lead to {other}"


#: balancers whose weights are given, learned or drawn, or that do nothing in one step
STILL = {
    "total",
    "average",
    "fixed",
    "uncertainty",
    "imtl_l",
    "rlw",
    "dwa",
    "coba",
    "mft_self_paced",
    "conflict_free_momentum",
    "gradnorm",
}


def drawable(row: Row) -> bool:
    """Whether a curve says something: not of given weights, where other items decide, or of standardised logits."""
    if row.role in ("ascent", "optimizer", "schedule", "batch"):
        return False
    if row.role == "balance":
        return row.key not in STILL
    given = row.role == "weight" and "counts" not in row.hyper
    others = row.role == "formula" and "coupled" in row.properties
    return not given and not others and row.key not in ("forgetting", "z_loss")


def test_relations_lead_both_ways(site: Path):
    for key, row in methods().items():
        for limit in row.limits:
            if limit.equals != key:
                text = (site / "methods" / f"{limit.equals}.html").read_text(encoding="utf-8")
                assert f'href="{key}.html"' in text, f"{limit.equals} does not lead back to {key}"


def test_every_paper_is_there_with_its_state(site: Path):
    text = (site / "papers" / "index.html").read_text(encoding="utf-8")
    assert len(papers()) == 479
    shelves = {file: file.read_text(encoding="utf-8") for file in (site / "papers").glob("*.html")}
    for row, paper in papers().items():
        found = re.search(rf'<a href="([\w-]+\.html)#{row.lower()}">{row}</a>', text)
        assert found, f"{row} is not on the coverage page"
        shelf = site / "papers" / found[1]
        assert row.lower() in read(shelf).anchors, f"{row} is not on {found[1]}"
        assert paper.arxiv in shelves[shelf]
    shown = re.findall(r'<td><span class="state [\w-]+">([^<]+)</span>', text)
    assert [state.state for state in coverage.states().values()] == shown


def test_every_entry_of_the_surveys_is_there(site: Path):
    text = (site / "papers" / "surveys.html").read_text(encoding="utf-8")
    rows = len(re.findall(r"<td>(?:loss|metric)</td>", text))
    assert rows == sum(len(entries) for _, entries in coverage.surveys().values())


def test_every_study_is_there_with_its_verdict(site: Path):
    page = site / "papers" / "studies.html"
    text = page.read_text(encoding="utf-8")
    known = evidence.studies()
    texts = [(site / "methods" / f"{key}.html").read_text(encoding="utf-8") for key in methods()]
    shown = {anchor for method in texts for anchor in re.findall(r"studies\.html#([\w-]+)", method)}
    verdicts = re.findall(r'<p class="paper"><span class="verdict [\w-]+">([^<]+)</span>', text)
    assert sorted(verdicts) == sorted(s.verdict for s in known)
    for study in known:
        anchor = study.name.replace("_", "-")
        assert anchor in read(page).anchors, study.name
        assert (anchor in shown) == any(study in evidence.evidence(key).studies for key in methods()), study.name


def test_the_index_of_the_search_holds_papers_and_methods(site: Path):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    places = {entry["location"] for entry in index}
    for key in methods():
        assert f"methods/{key}.html" in places
    anchors = {place.partition("#")[2] for place in places if place.startswith("papers/")}
    assert {row.lower() for row in papers()} <= anchors
    noisy = [e["location"] for e in index if "noisy labels" in e["text"].lower()]
    assert any(place.startswith("papers/") for place in noisy)
    assert any(place.startswith("methods/") for place in noisy)
    assert not any("\\frac" in entry["text"] for entry in index)  # formulas are not words


# --- in a browser ----------------------------------------------------------------------------------------------------
needs_browser = [
    pytest.mark.browser,
]


LOOKED_AT = (
    "index.html", "tour.html", "methods/encouraging.html", "methods/classes.html", "papers/index.html",
    "guides/noise.html",
)  # fmt: skip


@pytest.fixture
def opened(browser: Any, site: Path) -> Iterator[Any]:
    """A function that opens a page of the site from its folder; at the end nothing was asked of anybody."""
    trouble: list[str] = []
    contexts = []

    def go(path: str, width: int = 1400, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: m.type in ("error", "warning") and trouble.append(m.text))
        page.on("pageerror", lambda e: trouble.append(str(e)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:", "about:")) or trouble.append(r.url))
        page.goto((site / path).as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.mark.parametrize("marks", [pytest.param(None, marks=needs_browser)])
def test_search_works_from_a_folder(opened: Any, marks: None):
    page = opened("index.html")
    page.click(".md-search__input")
    page.type(".md-search__input", "noisy labels")
    page.wait_for_selector(".md-search-result__item")
    page.wait_for_timeout(300)
    found = [a.get_attribute("href") for a in page.query_selector_all(".md-search-result__link")]
    assert any("papers/" in href for href in found)
    assert any("methods/" in href or "guides/noise" in href for href in found)


@pytest.mark.parametrize("path", [pytest.param(path, marks=needs_browser) for path in LOOKED_AT])
@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_wide_and_narrow_light_and_dark(opened: Any, path: str, dark: bool):
    for width in (1400, 390):
        page = opened(path, width, dark)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} at {width}: {wide} pixels too wide"
        scheme = page.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert scheme == ("slate" if dark else "default")
        sizes = page.evaluate("[...document.querySelectorAll('math')].map((m) => m.getBoundingClientRect().height)")
        assert all(height > 5 for height in sizes)


@pytest.mark.parametrize("marks", [pytest.param(None, marks=needs_browser)])
def test_the_table_of_papers_filters(opened: Any, marks: None):
    page = opened("papers/index.html")
    page.fill("#filter", "focal loss for dense")
    assert page.evaluate("[...document.querySelectorAll('.coverage tbody tr')].filter((r) => !r.hidden).length") == 1
    assert page.inner_text("#shown") == "1 of 479"
