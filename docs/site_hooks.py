"""What mkdocs.yml cannot say. On GitHub the pages are read too: links are those of the repository, anchors GitHub's.

Some pages of the site lie outside of docs/. A link to the file of one becomes a link to its page.
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
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^()\s#]+)(#[^()\s]*)?\)")


def source_of(name: str) -> str:
    """The file of the repository that a page of the site is."""
    return ELSEWHERE.get(name, f"docs/{name}")


def links_in_site(markdown: str, name: str) -> str:
    """The text of the page `name` with the links of the repository turned to the site's; others stay."""
    pages = {source: page for page, source in ELSEWHERE.items()}
    here = posixpath.dirname(source_of(name))

    def turned(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, found[1]))
        page = pages.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is None:
            return found[0]
        return f"]({posixpath.relpath(page, posixpath.dirname(name) or '.')}{found[2] or ''})"

    return _LINK.sub(turned, markdown)


def slugify(heading: str, separator: str) -> str:
    """The anchor that GitHub gives a heading: lower case, letters, digits, `_` and `-`, each space as `-`."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


# ---- called by MkDocs ----


def on_config(config: Any) -> Any:
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, source in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return links_in_site(markdown, page.file.src_uri)
