"""The site has every page, its links and anchors are those that work on GitHub, and MkDocs builds it without a warning."""

import json
import re
import sys

import pytest
import yaml

from docs import site_hooks
from docs.site_hooks import copied_files, links_in_site, slugify, source_of
from tests import documents
from tests.conftest import ROOT, run
from tests.documents import PAGES, name_of

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
ITEM = re.compile(r"( *)(?:[-*+]|\d+\.) ")


def pages(nav=CONFIG["nav"]):
    """The pages of a navigation, in its order."""
    return [
        page
        for entry in nav
        for value in entry.values()
        for page in (pages(value) if isinstance(value, list) else [value])
    ]


def test_the_navigation_has_every_page_once():
    assert sorted(ROOT / source_of(page) for page in pages()) == sorted([*PAGES, ROOT / "CHANGELOG.md"])


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("data.md", "../recipes/README.md#what-pays", "measured.md#what-pays"),
        ("recipes.md", "../README.md#publish", "overview.md#publish"),
        ("quickstart.md", "../notebooks/quickstart.ipynb", "quickstart.ipynb"),
        ("faq.md", "data.md#other-languages", "data.md#other-languages"),
        ("planning.md", "images/plan.png", "images/plan.png"),
        ("overview.md", "docs/recipes.md", "recipes.md"),
        ("contributing.md", "docs/architecture.md", "architecture.md"),
        ("measured.md", "../docs/images/plan.png", "images/plan.png"),
        ("measured.md", "#glue", "#glue"),
        ("overview.md", "#publish", "#publish"),
        ("data.md", "https://huggingface.co/docs/datasets", "https://huggingface.co/docs/datasets"),
        ("data.md", "../setup.cfg", "files/setup.cfg.txt"),
        ("measured.md", "glue/paper.yaml", "files/recipes/glue/paper.yaml.txt"),
        ("data.md", "../none.cfg", "../none.cfg"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(page, link, expected):
    assert links_in_site(f"See [it]({link}), `x`.", page) == f"See [it]({expected}), `x`."
    assert links_in_site(f"See [it][that].\n\n[that]: {link}\n", page) == f"See [it][that].\n\n[that]: {expected}\n"


def test_files_that_are_no_pages_are_copied(tmp_path, monkeypatch):
    assert "budget_trainer/model/attention.py" in copied_files("comparison.md")
    (tmp_path / "docs").mkdir()
    (tmp_path / "row.json").touch()
    text = "[a](../row.json), [b](other.md), [c](../README.md), [d](../none.json), [e](https://a.b/row.json)\n"
    (tmp_path / "docs" / "page.md").write_text(text)
    monkeypatch.setattr(site_hooks, "ROOT", tmp_path)
    assert copied_files("page.md") == {"row.json"}


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What is bit-equal, and what is not", "what-is-bit-equal-and-what-is-not"),
        ("budget_trainer.core.errors", "budget_trainercoreerrors"),
        ("A suite: grid, seeds, median", "a-suite-grid-seeds-median"),
        ("bf16 / fp16", "bf16--fp16"),
    ],
)
def test_anchors_are_those_of_github(heading, anchor, tmp_path):
    (tmp_path / "page.md").write_text(f"# {heading}\n")
    assert slugify(heading, "-") == anchor and documents.anchors(tmp_path / "page.md") == {anchor}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_lists_and_tables_are_such_for_python_markdown_too(page):
    """Which wants an empty line before them, four spaces for what is inside of an item, and code at the margin."""
    assert not [found[0] for found in documents.FENCE.finditer(page.read_text()) if found[1]]
    lines = documents.FENCE.sub("", page.read_text()).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        item = ITEM.match(line)
        if item and before.strip():
            assert ITEM.match(before) or before.startswith("  "), line
        assert not item or len(item[1]) % 4 == 0, line
        assert not line.startswith("|") or not before.strip() or before.startswith("|"), line
        assert before.strip() or not re.match(r" {1,3}\S", line), line


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_is_searched(tmp_path):
    pytest.importorskip("material", reason="the extra site is not installed")
    site = tmp_path / "site"
    done = run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site], ok=True)
    assert "WARNING -" not in done.stderr
    for page in pages():
        html = (site / page).with_suffix(".html").read_text()
        assert "<article" in html and "fonts.googleapis.com" not in html
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    assert {entry["location"].partition("#")[0] for entry in entries} >= {
        page.replace(".md", ".html") for page in pages()
    }
    found = [entry["location"] for entry in entries if "bits per byte" in entry["text"]]
    assert any(location.startswith("concepts.html") for location in found)
    assert not [*site.rglob("*.py")] and (site / "quickstart.ipynb").is_file()
