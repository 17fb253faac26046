"""Cuts out of wikitext what shows no prose and may nest or be left open: one pass each, linear in the page's length."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.inline_templates import rendered, template_at

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

_MAX_RENDERED_DEPTH = 4


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
    """Without closed templates (but for the text of those within a sentence), tables, and links to what `invisible` matches
    behind the brackets. What is left open or closed twice stays."""
    nesting = _Nesting(text)
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
    return _replaced(text, 0, len(text), nesting.cuts)


@dataclass(frozen=True)
class _Cut:
    """What is closed from `start` to `end`, and the text in its place. `depth`: templates rendered one in another."""

    start: int
    end: int
    shown: str = CUT
    depth: int = 0


def _replaced(text: str, start: int, end: int, cuts: list[_Cut]) -> str:
    pieces: list[str] = []
    for cut in cuts:
        pieces += (text[start : cut.start], cut.shown)
        start = cut.end
    return "".join([*pieces, text[start:end]])


class _Nesting:
    """What is open, innermost last. `cuts`: what was closed, outermost only, in order."""

    def __init__(self, text: str) -> None:
        self.cuts: list[_Cut] = []
        self._text = text
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
            self._cut(start + opened, end - braces, is_template=used == 2)
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

    def _cut(self, start: int, end: int, is_template: bool = False) -> None:
        first = len(self.cuts)
        while first and self.cuts[first - 1].start >= start:
            first -= 1
        inner = self.cuts[first:]
        del self.cuts[first:]
        self.cuts.append((self._template(start, end, inner) if is_template else None) or _Cut(start, end))

    def _template(self, start: int, end: int, inner: list[_Cut]) -> _Cut | None:
        """One that shows text. Not where they nest deeper than anybody writes, which would take quadratic time."""
        found = template_at(self._text, start + 2)
        if found is None:
            return None
        depth = 1 + max((cut.depth for cut in inner), default=0)
        shown = ""
        if depth <= _MAX_RENDERED_DEPTH:
            name, body = found
            shown = rendered(name, _replaced(self._text, body, end - 2, inner))
        return _Cut(start, end, shown or CUT, depth)
