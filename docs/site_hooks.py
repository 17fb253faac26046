"""What mkdocs.yml cannot say. On GitHub the pages are read too: links are those of the repository, anchors GitHub's.

Some pages of the site lie outside of docs/. A link to the file of one becomes a link to its page; of another file that a page
links to, a source or a result of the board, the site has a copy as text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site, and the files of the repository that they are.
ELSEWHERE = {
    "overview.md": "README.md",
    "measured.md": "recipes/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
    "quickstart.ipynb": "notebooks/quickstart.ipynb",
}
# `](path#anchor)`, or `[name]: path#anchor` on a line of its own.
_LINK = re.compile(r"(\]\(|^\[[^\]\n]+\]: +)(?![a-z]+:|#)([^()\s#]+)(#[^()\s]*)?(?=\)|[ \t]*$)", re.M)
_COPIES = "files/"


def source_of(name: str) -> str:
    """The file of the repository that a page of the site is."""
    return ELSEWHERE.get(name, f"docs/{name}")


def _name_of(source: str) -> str | None:
    """What the site calls a file of the repository; None where there is no such file."""
    pages = {source: page for page, source in ELSEWHERE.items()}
    if source in pages or source.startswith("docs/"):
        return pages.get(source, source.removeprefix("docs/"))
    return f"{_COPIES}{source}.txt" if (ROOT / source).is_file() else None


def links_in_site(markdown: str, name: str) -> str:
    """The text of the page `name` with the links of the repository turned to the site's; others stay."""
    here = posixpath.dirname(source_of(name))

    def turned(found: re.Match[str]) -> str:
        there = _name_of(posixpath.normpath(posixpath.join(here, found[2])))
        if there is None:
            return found[0]
        return f"{found[1]}{posixpath.relpath(there, posixpath.dirname(name) or '.')}{found[3] or ''}"

    return _LINK.sub(turned, markdown)


def copied_files(name: str) -> set[str]:
    """The files of the repository that the page `name` links to and that the site has copies of."""
    here, text = posixpath.dirname(source_of(name)), (ROOT / source_of(name)).read_text(encoding="utf-8")
    linked = {posixpath.normpath(posixpath.join(here, found[2])) for found in _LINK.finditer(text)}
    return {source for source in linked if (_name_of(source) or "").startswith(_COPIES)}


def slugify(heading: str, separator: str) -> str:
    """The anchor that GitHub gives a heading: lower case, letters, digits, `_` and `-`, each space as `-`."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


# ---- called by MkDocs ----


def on_config(config: Any) -> Any:
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    own = [file.src_uri for file in files.documentation_pages()]
    pages = [name for name in (*own, *ELSEWHERE) if name.endswith(".md")]
    copies = {str(_name_of(source)): source for page in pages for source in copied_files(page)}
    for name, source in {**ELSEWHERE, **copies}.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return links_in_site(markdown, page.file.src_uri)
