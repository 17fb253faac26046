"""Cuts out of wikitext what shows no prose and may nest or be left open: one pass each, linear in the page's length."""

import calendar
import re
from collections.abc import Callable
from typing import NamedTuple

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
_REF = re.compile(r"<ref(?:\s[^<>]*[^<>/])?>", re.IGNORECASE)  # one that opens


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
        found = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(text, at)
        end = ends[name] = found.start() if found else len(text)
    if name == "ref" and end < len(text):
        again = _REF.search(text, at, end)  # another opens first, paragraphs later: this one was left open
        if again and text.find("\n\n", at, again.start()) >= 0:
            return len(text)
    return end


def cut_nested(text: str, invisible: re.Pattern[str]) -> str:
    """Without closed templates (but for the text of those within a sentence), tables, and links to what `invisible` matches
    behind the brackets. What is left open or closed twice stays."""
    nesting = _Nesting(text, invisible)
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

    def __init__(self, text: str, invisible: re.Pattern[str]) -> None:
        self.cuts: list[_Cut] = []
        self._text, self._invisible = text, invisible
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
        found = _template_at(self._text, start + 2) if is_template else None
        if found is None:
            self.cuts.append(_Cut(start, end))
            return
        depth = 1 + max((cut.depth for cut in inner), default=0)
        shown = ""
        if depth <= 4:  # rendering those that nest deeper than anybody writes would take quadratic time
            name, body = found
            shown = _rendered(name, _replaced(self._text, body, end - 2, inner))
        self.cuts.append(_Cut(start, end, shown or CUT, depth))


_Parameters = dict[str, str]
_Template = Callable[[_Parameters], str]

_NAME = re.compile(r"[\s_]*+(\w[\w. -]{0,20})\s*(:|\||\}\})")
_LANGUAGE = re.compile(r"lang-[a-z]{2,3}(?:-[a-z]+)*")  # {{lang-fr|...}}
_PARAMETER = re.compile(r"(?:^|\|)((?:\[\[[^\[\]]*+\]\]|[^|])*+)")  # a | in a link is the link's
_NAMED = re.compile(r"\s*+(\w[\w -]{0,30})=(.*)", re.DOTALL)
_RANGES = {"-": "–", "–": "–", "&ndash;": "–", "to": " to ", "to(-)": " to ", "and": " and ", "and(-)": " and "}
_RANGES |= {"or": " or ", "by": " by ", "x": " × ", "xx": " × ", "×": " × ", "*": " × ", "±": " ± ", "+/-": " ± "}
# {{convert}}'s codes where they are no words: km2, sqmi, e6acre, Goilbbl, PD/sqmi (people).
_UNITS = {"^C$": "°C", "^F$": "°F", "(?<=m)2$": "²", "(?<=m)3$": "³", "(sq|cu)(?=mi|ft|in|yd)": r"\1 "}
_UNITS |= {"oil(?=bbl)": "", "^PD/": "per ", "^e3": "thousand ", "^e6": "million ", "^e9": "billion "}
_UNITS["^e12"] = "trillion "
_SMALLER_UNITS = frozenset(("in", "inch", "inches", "ft", "foot", "feet", "yd", "oz", "lb"))  # 6 ft 2 in, 4 st 3 lb


def _first(*names: str) -> _Template:
    """What the first of the parameters that is given holds."""
    return lambda given: next((given[name] for name in names if given.get(name)), "")


def _convert(given: _Parameters) -> str:
    """The measure as written: 5 km, 5–10 km, 6 ft 2 in; not what it is converted to."""
    values = [given.get(str(number), "") for number in range(1, 12)]
    text = values.pop(0)
    while values[2:] and values[0] in _RANGES:
        text += _RANGES[values[0]] + values[1]
        del values[:2]
    if not any(map(str.isdigit, text)):
        return ""
    unit = values[0]
    for pattern, shown in _UNITS.items():
        unit = re.sub(pattern, shown, unit)
    text = re.sub(r"(?<=\d)\+(?=\d+/\d)", " ", text) + f" {unit}"  # 5+1/2
    if len(values) > 2 and values[1][:1].isdigit() and values[2] in _SMALLER_UNITS:
        text += f" {values[1]} {values[2]}"
    return text


def _nihongo(given: _Parameters) -> str:
    """English (kanji, romaji, remark); the first that there is stands before the bracket."""
    texts = [text for text in (given.get(name) for name in ("1", "2", "3", "4", "extra")) if text]
    return f"{texts[0]} ({', '.join(texts[1:])})" if texts[1:] else "".join(texts)


def _fraction(given: _Parameters) -> str:
    numbers = [given[name] for name in "123" if given.get(name)]
    if len(numbers) < 2:
        return f"1/{numbers[0]}" if numbers else ""
    return " ".join([*numbers[:-2], "/".join(numbers[-2:])])


def _circa(given: _Parameters) -> str:
    return " – ".join(f"c. {given[name]}" for name in "12" if given.get(name)) or "c."


def _as_of(given: _Parameters) -> str:
    year, month, day = (given.get(name, "") for name in "123")
    if given.get("alt") or not year:
        return given.get("alt", "")
    if re.fullmatch("0*([1-9]|1[0-2])", month):
        month = calendar.month_name[int(month)]
    date = f"{month} {day}, {year}" if day and given.get("df", "").upper() == "US" else f"{day} {month} {year}"
    start = "Since" if given.get("since") else "As of"
    return f"{start.lower() if given.get('lc') else start} {' '.join(date.split())}"


_SENTENCE: dict[str, _Template] = {
    **dict.fromkeys(("convert", "cvt"), _convert),
    "lang": _first("2", "text"),
    **dict.fromkeys(("transl", "transliteration"), _first("3", "2")),
    "nihongo": _nihongo,
    **dict.fromkeys(("nowrap", "nobr", "abbr", "formatnum:"), _first("1")),
    **dict.fromkeys(("frac", "fraction"), _fraction),
    **dict.fromkeys(("circa", "c.", "ca."), _circa),
    "as of": _as_of,
}
_QUOTES = frozenset(("quote", "blockquote", "bquote", "cquote", "quotation"))  # paragraphs of their own


def _template_at(text: str, start: int) -> tuple[str, int] | None:
    """Name and beginning of the parameters of a template that shows text; `start` is behind its braces."""
    found = _NAME.match(text, start)
    if found is None:
        return None
    colon = ":" if found[2] == ":" else ""
    name = found[1].replace("_", " ").strip().lower() + colon
    if name not in _SENTENCE and name not in _QUOTES and not _LANGUAGE.fullmatch(name):
        return None
    return name, found.start(2) if found[2] == "}}" else found.end()


def _rendered(name: str, body: str) -> str:
    """What a template of `_template_at` shows, "" for nothing; `body`: its parameters, without the braces."""
    given: _Parameters = {}
    number = 0
    for piece in _PARAMETER.findall(body) if body else ():
        if named := _NAMED.match(piece):
            given[named[1].rstrip().lower()] = named[2].strip()
        else:
            number += 1
            given[str(number)] = piece.strip()
    if name in _QUOTES:
        text = f"\n{_first('1', 'text', 'quote')(given)}\n"
    else:
        text = " ".join(_SENTENCE.get(name, _first("1", "text"))(given).split())
    return text if re.search(r"\w", text) else ""
