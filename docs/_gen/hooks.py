"""What mkdocs calls while it builds: generated pages in, formulas drawn, nothing fetched."""

from __future__ import annotations

import html
import re
from typing import Any

import pages
from mathml import mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

#: a picture of a benchmark by itself in a paragraph: it is put into the page, where it takes the page's colours
PICTURE = re.compile(r"^!\[(.+)\]\(\.\./\.\./(benchmarks/\w+\.svg)\)$", re.M)
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.S)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put what the catalogue and docs/design hold into the navigation."""
    design = sorted((pages.ROOT / "docs" / "design").glob("*.md"), key=lambda f: (f.stem != "core", f.stem))
    grown: dict[str, Any] = {
        "Methods": pages.nav(),
        "Papers": [{"Coverage": "papers/index.md"}, *pages.papers_nav()],
        "Design": [*(f"design/{file.name}" for file in design), "glossary.md"],
    }
    config.nav = [{k: _whole(grown.get(k, v)) for k, v in item.items()} for item in config.nav or []]
    return config


def _whole(section: Any) -> Any:
    """A section of pages with those added that lie in their folder and are not named."""
    folders = {page.split("/")[0] for page in section if isinstance(page, str)} if isinstance(section, list) else set()
    if len(folders) != 1:
        return section
    there = sorted((pages.ROOT / "docs" / folders.pop()).glob("*.md"))
    return [*section, *(page for f in there if (page := f"{f.parent.name}/{f.name}") not in section)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in pages.build().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the pictures of benchmarks."""

    def figure(found: re.Match[str]) -> str:
        drawn = " ".join((pages.ROOT / found[2]).read_text("utf-8").split())
        return f'<figure class="drawn" data-search-exclude>{drawn}<figcaption>{found[1]}</figcaption></figure>'

    return PICTURE.sub(figure, text)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the formulas."""

    def draw(found: re.Match[str]) -> str:
        tex = html.unescape(found[2]).strip()
        block = found[1] == "div"
        drawn = mathml(tex[2:-2], block)  # without \( \) or \[ \]
        return f'<div class="formula">{drawn}</div>' if block else drawn

    return FORMULA.sub(draw, text)
