"""Cuts out of wikitext what shows no prose and may nest or be left open: one pass each, linear in the page's length."""

import functools
import re
from collections.abc import Callable

# Characters that XML cannot contain, so that no page does: where something was cut; around the number of a literal.
CUT, LITERAL, LITERAL_END = "\3", "\1", "\2"  # not "\0", where the parser stops reading
_CODE = frozenset(("syntaxhighlight", "source"))
_QUIET = frozenset(("ref", "references", "templatestyles", "section"))  # cut without a trace: they stand behind a word
_DROPPED = (
    "ref references templatestyles section math chem ce gallery timeline score graph imagemap hiero mapframe maplink "
    "categorytree inputbox templatedata includeonly pre syntaxhighlight source"
).split()
_EXTENSION = re.compile(rf"<!--|<(nowiki|{'|'.join(_DROPPED)})(\s[^<>]*)?>", re.IGNORECASE)
_TOKEN = re.compile(
    r"\{{2,}|\}{2,}|\[\[|\]{2,}|^[ \t:*#]*\{\||^[ \t]*\|\}(?:(?!\})|(?=\}\}(?!\})))|<table(?:\s[^<>]*)?>|</table\s*>",
    re.MULTILINE | re.IGNORECASE,
)


def cut_extensions(text: str) -> tuple[str, list[str]]:
    """Without comments and the tags whose content is not wikitext (references, mathematics, galleries, listings).
    What <nowiki> and inline code hold is returned apart, and its number left in the text."""
    pieces: list[str] = []
    literals: list[str] = []
    ends: dict[str, int] = {}  # by tag: where its next closing tag starts; the text's length if there is none
    at = 0
    while found := _EXTENSION.search(text, at):
        pieces.append(text[at : found.start()])
        at = found.end()
        name, attributes = (found[1] or "").lower(), found[2] or ""
        if not name:
            end = text.find("-->", at)
            at = len(text) if end < 0 else end + 3
        elif attributes.rstrip().endswith("/"):
            continue
        elif (end := _closing(text, name, at, ends)) < len(text):
            if name == "nowiki" or (name in _CODE and "inline" in attributes):
                pieces.append(f"{LITERAL}{len(literals)}{LITERAL_END}")
                literals.append(text[at:end].replace("\n", " "))
            elif name not in _QUIET:
                pieces.append(CUT)
            at = text.index(">", end) + 1
    pieces.append(text[at:])
    return "".join(pieces), literals


def _closing(text: str, name: str, at: int, ends: dict[str, int]) -> int:
    """Where the tag's content ends; the text's length where it is not closed, so that only the tag itself is cut."""
    end = ends.get(name, -1)
    if end < at:
        found = _closer(name).search(text, at)
        end = ends[name] = found.start() if found else len(text)
    if name == "ref" and end < len(text):
        again = _opener(name).search(text, at, end)  # another opens first, paragraphs later: this one was left open
        if again and text.find("\n\n", at, again.start()) >= 0:
            return len(text)
    return end


@functools.cache
def _closer(name: str) -> re.Pattern[str]:
    return re.compile(rf"</{name}\s*>", re.IGNORECASE)


@functools.cache
def _opener(name: str) -> re.Pattern[str]:
    return re.compile(rf"<{name}(?:\s[^<>]*[^<>/])?>", re.IGNORECASE)


def cut_nested(text: str, invisible: re.Pattern[str]) -> str:
    """Without closed templates, tables, and links to what `invisible` matches behind the brackets. What is left open or
    closed twice stays."""
    nesting = _Nesting()
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token == "[[" or token.startswith("{{"):
            nesting.open(token[:2], found.start(), len(token))
        elif token.endswith("{|"):
            nesting.open("{|", found.end() - 2)
        elif token.startswith("}}"):
            nesting.close_braces(found.end(), len(token))
        elif token.startswith("]]"):
            nesting.close_links(found.end(), len(token), lambda start: invisible.match(text, start + 2) is not None)
        elif token.startswith("</"):
            nesting.close("<table", found.end())
        elif token.startswith("<"):
            nesting.open("<table", found.start())
        else:
            nesting.close("{|", found.end())
    pieces = []
    at = 0
    for start, end in nesting.cuts:
        pieces.append(text[at:start])
        at = end
    return CUT.join([*pieces, text[at:]])


class _Nesting:
    """What is open, innermost last. `cuts`: (start, end) of what was closed, outermost only, in order."""

    def __init__(self) -> None:
        self.cuts: list[tuple[int, int]] = []
        self._open: list[tuple[str, int, int]] = []  # kind, start, braces
        self._count = dict.fromkeys(("{{", "{|", "<table", "[["), 0)

    def open(self, kind: str, start: int, braces: int = 0) -> None:
        self._open.append((kind, start, braces))
        self._count[kind] += 1

    def close(self, kind: str, end: int) -> None:
        """Closes the innermost of the kind, if there is one; what was opened inside of it stays open text."""
        if self._count[kind]:
            self._cut(self._pop(kind)[1], end)

    def close_braces(self, end: int, braces: int) -> None:
        """}} and }}}: two or three at a time, as they were opened."""
        while braces >= 2 and self._count["{{"]:
            _, start, opened = self._pop("{{")
            used = 3 if opened == 3 and braces >= 3 else 2
            braces -= used
            opened -= used
            self._cut(start + opened, end - braces)
            if opened >= 2:
                self.open("{{", start, opened)

    def close_links(self, end: int, brackets: int, invisible: Callable[[int], bool]) -> None:
        """]] and longer, but never across a template or table."""
        while brackets >= 2 and self._open and self._open[-1][0] == "[[":
            start = self._pop("[[")[1]
            brackets -= 2
            if invisible(start):
                self._cut(start, end - (brackets if brackets > 1 else 0))

    def _pop(self, kind: str) -> tuple[str, int, int]:
        while True:
            top = self._open.pop()
            self._count[top[0]] -= 1
            if top[0] == kind:
                return top

    def _cut(self, start: int, end: int) -> None:
        while self.cuts and self.cuts[-1][0] >= start:
            self.cuts.pop()
        self.cuts.append((start, end))
