"""The documents as a reader sees them: pages, headings, links, blocks of code, and the commands in these."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PAGES = sorted(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md"))
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"^( *)(```+|~~~+)([\w-]*)[^\n]*\n(.*?)^\1\2 *$", re.M | re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]*)(?:\s+\"[^\"]*\")?\)")
SEPARATORS = ";&|()\n"  # of commands
KEYWORDS = {"until", "do", "then", "else", "if", "while", "time", "nice", "exec", "!"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page and number, text) of each block of code in `language`."""
    for page in PAGES:
        for number, found in enumerate(FENCE.finditer(page.read_text())):
            if found[3] == language:
                yield f"{name_of(page)}-{number}", found[4]


def without_code(page: Path) -> str:
    """The text of a page with neither blocks of code, nor code in a line, nor comments."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text()), flags=re.S)
    return re.sub(r"(`+)[^`].*?\1", "`code`", text)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """What `#...` may name on a page, as GitHub makes it: lower case, letters, digits, `_` and `-`, spaces as `-`."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", FENCE.sub("", page.read_text()), re.M):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"(?<!\w)[*_]+|[*_]+(?!\w)", "", heading).lower()).replace(" ", "-")
        found.add(next(name for name in (slug, *(f"{slug}-{count}" for count in range(1, 99))) if name not in found))
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", page.read_text()))


def links(page: Path) -> list[tuple[bool, str, str]]:
    """(is a picture, text, target) of each link of a page; of a picture that is a link, both."""
    text = without_code(page)
    found = [(bool(mark), words, target) for mark, words, target in LINK.findall(text)]
    found += [(True, *inner) for _, words, _ in found for inner in re.findall(r"!\[([^\]]*)\]\(([^)\s]*)\)", words)]
    found += [(False, name, target) for name, target in re.findall(r"^\[([^\]]+)\]: +(\S+)", text, re.M)]
    return found


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a block of shell: split as a shell splits it, without assignments and redirections."""
    if script.startswith("#!"):
        return  # a whole script: `bash -n`, and a test of its own
    text = re.sub(r"(?m)(?:^|\s)#.*$", "", script.replace("\\\n", " "))
    text += "".join(f"\n{inner}" for inner in re.findall(r"\$\(([^()]*)\)", text))  # commands whose output is a word
    text = re.sub(r"\$\([^()]*\)", "word", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=f"<>{SEPARATORS}")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    command: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif set(word) <= set(SEPARATORS):
            while command and (command[0] in KEYWORDS or re.match(r"\w+=", command[0])):
                command.pop(0)
            if command:
                yield command
            command = []
        elif set(word) <= set("<>&"):
            skip = True
            if command and command[-1].isdecimal():
                command.pop()  # the number of what is redirected
        else:
            command.append(word)
