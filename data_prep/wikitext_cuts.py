"""Cuts out of wikitext what shows no prose and may nest or be left open: one pass each, linear in the page's length."""

import re
from typing import NamedTuple

from data_prep.templates import Templates, rendered

# Characters that XML cannot contain, so that no page does: where something was cut; around the number of a literal.
CUT, LITERAL, LITERAL_END = "\3", "\1", "\2"  # not "\0", where the parser stops reading
# Behind a CUT: which of the page's holes it is. A hole is what showed words that are not known.
HOLES = "\ud800-\udfff"
_CODE = frozenset(("syntaxhighlight", "source"))
_FORMULAS = frozenset(("math", "chem", "ce"))
_PLAIN = re.compile(r"\s*+[^][{}|\\^_&$<>'\n]{1,40}")  # a formula that is text: x, f(x), a = b + 1
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
_FRACTION = re.compile(r"\d+/\d")
_REF = re.compile(r"<ref(?:\s[^<>]*[^<>/])?>", re.IGNORECASE)  # one that opens


Holes = dict[str, str]  # what showed words that are not known: the character of each name


def _hole(holes: Holes, name: str) -> str:
    return CUT + holes.setdefault(name, chr(0xD800 + min(len(holes), 2047)))


def cut_extensions(text: str, holes: Holes | None = None) -> tuple[str, list[str]]:
    """Without comments and the tags whose content is not wikitext (references, mathematics, galleries, listings).
    What <nowiki>, inline code and formulas without commands hold is returned apart, and its number left in the text; other
    formulas are `holes`."""
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
            formula = name in _FORMULAS
            if (
                name == "nowiki"
                or (name in _CODE and "inline" in attributes)
                or (formula and _PLAIN.fullmatch(text, at, end))
            ):
                pieces.append(f"{LITERAL}{len(literals)}{LITERAL_END}")
                literals.append(text[at:end].replace("\n", " "))
            elif name not in _QUIET:
                pieces.append(CUT if holes is None or not formula else _hole(holes, f"<{name}>"))
            at = text.index(">", end) + 1
    pieces.append(text[at:])
    return "".join(pieces), literals


def _closing(text: str, name: str, at: int, ends: dict[str, int]) -> int:
    """Where the tag's content ends; the text's length where it is not closed, so that only the tag itself is cut."""
    end = ends.get(name, -1)
    if end < at:
        found = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(text, at)
        end = ends[name] = found.start() if found else len(text)
    if name == "ref" and end < len(text):
        again = _REF.search(text, at, end)  # another opens first, paragraphs later: this one was left open
        if again and text.find("\n\n", at, again.start()) >= 0:
            return len(text)
    return end


def cut_nested(text: str, invisible: re.Pattern[str], templates: Templates, title: str, holes: Holes) -> str:
    """Without closed templates (but for the text that they show), tables, and links to what `invisible` matches behind the
    brackets. What is left open or closed twice stays."""
    nesting = _Nesting(text, invisible, templates, title, holes)
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token == "[[" or token.startswith("{{"):
            nesting.open(token[:2], found.start(), len(token))
        elif token.endswith("{|"):
            nesting.open("{|", found.end() - 2)
        elif token.startswith("}}"):
            nesting.close_braces(found.end(), len(token))
        elif token.startswith("]]"):
            nesting.close_links(found.end(), len(token))
        elif token[0] == "<" and token[1] != "/":
            nesting.open("<table", found.start())
        else:
            nesting.close("<table" if token[0] == "<" else "{|", found.end())
    return _replaced(text, 0, len(text), nesting.cuts)


class _Cut(NamedTuple):
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

    def __init__(self, text: str, invisible: re.Pattern[str], templates: Templates, title: str, holes: Holes) -> None:
        self.cuts: list[_Cut] = []
        self._text, self._invisible = text, invisible
        self._templates, self._title, self._holes = templates, title, holes
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

    def close_links(self, end: int, brackets: int) -> None:
        """]] and longer, but never across a template or table."""
        while brackets >= 2 and self._open and self._open[-1][0] == "[[":
            start = self._pop("[[")[1]
            brackets -= 2
            if self._invisible.match(self._text, start + 2):
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
        if not is_template:
            self.cuts.append(_Cut(start, end))
            return
        name, body = self._templates.at(self._text, start + 2)
        pattern = self._templates.pattern(name)
        depth = 1 + max((cut.depth for cut in inner), default=0) if pattern else 0
        shown = CUT
        if pattern is None or depth > 4:  # rendering what nests deeper than anybody writes would take quadratic time
            shown = _hole(self._holes, name)
        elif pattern:
            words = rendered(pattern, name, _replaced(self._text, body, end - 2, inner), self._title)
            shown = _hole(self._holes, name) if words is None else words or CUT
            if _FRACTION.match(shown) and self._text[start - 1 : start].isdigit():
                shown = f" {shown}"  # 5{{frac|1|2}}
        self.cuts.append(_Cut(start, end, shown, depth))
