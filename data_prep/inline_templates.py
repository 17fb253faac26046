"""The few templates that carry words of a sentence, as text: without them it has a hole ("a length of just .").

Everything else between double braces is left out. The names are those of the English Wikipedia, which most others share.
"""

import calendar
import re
from collections.abc import Callable

Parameters = dict[str, str]
Template = Callable[[Parameters], str]

_NAME = re.compile(r"[\s_]*+(\w[\w. -]{0,20})\s*(:|\||\}\})")
_LANGUAGE = re.compile(r"lang-[a-z]{2,3}(?:-[a-z]+)*")  # {{lang-fr|...}}
_PARAMETER = re.compile(r"(?:^|\|)((?:\[\[[^\[\]]*+\]\]|[^|])*+)")  # a | in a link is the link's
_NAMED = re.compile(r"\s*+(\w[\w -]{0,30})=(.*)", re.DOTALL)
_WORD = re.compile(r"\w")
_MIXED_NUMBER = re.compile(r"(?<=\d)\+(?=\d+/\d)")  # 5+1/2
_RANGES = {"-": "–", "–": "–", "&ndash;": "–", "to": " to ", "to(-)": " to ", "and": " and ", "and(-)": " and "}
_RANGES |= {"or": " or ", "by": " by ", "x": " × ", "xx": " × ", "×": " × ", "*": " × ", "±": " ± ", "+/-": " ± "}
# {{convert}}'s codes where they are no words: km2, sqmi, e6acre, Goilbbl, PD/sqmi (people).
_UNITS = [(re.compile(pattern), text) for pattern, text in (("^C$", "°C"), ("^F$", "°F"), ("(?<=m)2$", "²"))]
_UNITS += [
    (re.compile("(?<=m)3$"), "³"),
    (re.compile("(sq|cu)(?=mi|ft|in|yd)"), r"\1 "),
    (re.compile("oil(?=bbl)"), ""),
]
_UNITS += [(re.compile("^PD/"), "per "), (re.compile("^e3"), "thousand "), (re.compile("^e6"), "million ")]
_UNITS += [(re.compile("^e9"), "billion "), (re.compile("^e12"), "trillion ")]
_SMALLER_UNITS = frozenset(("in", "inch", "inches", "ft", "foot", "feet", "yd", "oz", "lb"))  # 6 ft 2 in, 4 st 3 lb
_MONTHS = dict(zip(map(str, range(1, 13)), calendar.month_name[1:], strict=True))


def _first(*names: str) -> Template:
    """What the first of the parameters that is given holds."""
    return lambda given: next((given[name] for name in names if given.get(name)), "")


def _unit(code: str) -> str:
    for pattern, text in _UNITS:
        code = pattern.sub(text, code)
    return code


def _convert(given: Parameters) -> str:
    """The measure as written: 5 km, 5–10 km, 6 ft 2 in; not what it is converted to."""
    values = [given.get(str(number), "") for number in range(1, 12)]
    text = values.pop(0)
    while values[2:] and values[0] in _RANGES:
        text += _RANGES[values[0]] + values[1]
        del values[:2]
    if not any(map(str.isdigit, text)):
        return ""
    text = f"{_MIXED_NUMBER.sub(' ', text)} {_unit(values[0])}"
    if len(values) > 2 and values[1][:1].isdigit() and values[2] in _SMALLER_UNITS:
        text += f" {values[1]} {values[2]}"
    return text


def _nihongo(given: Parameters) -> str:
    """English (kanji, romaji, remark); the first that there is stands before the bracket."""
    texts = [text for text in (given.get(name) for name in ("1", "2", "3", "4", "extra")) if text]
    return f"{texts[0]} ({', '.join(texts[1:])})" if texts[1:] else "".join(texts)


def _fraction(given: Parameters) -> str:
    numbers = [given[name] for name in "123" if given.get(name)]
    if len(numbers) < 2:
        return f"1/{numbers[0]}" if numbers else ""
    return " ".join([*numbers[:-2], "/".join(numbers[-2:])])


def _circa(given: Parameters) -> str:
    return " – ".join(f"c. {given[name]}" for name in "12" if given.get(name)) or "c."


def _as_of(given: Parameters) -> str:
    year, month, day = (given.get(name, "") for name in "123")
    if given.get("alt") or not year:
        return given.get("alt", "")
    month = _MONTHS.get(month.lstrip("0"), month)
    date = f"{month} {day}, {year}" if day and given.get("df", "").upper() == "US" else f"{day} {month} {year}"
    start = "Since" if given.get("since") else "As of"
    return f"{start.lower() if given.get('lc') else start} {' '.join(date.split())}"


_SENTENCE: dict[str, Template] = {
    **dict.fromkeys(("convert", "cvt"), _convert),
    "lang": _first("2", "text"),
    **dict.fromkeys(("transl", "transliteration"), _first("3", "2")),
    "nihongo": _nihongo,
    **dict.fromkeys(("nowrap", "nobr", "abbr", "formatnum:"), _first("1")),
    **dict.fromkeys(("frac", "fraction"), _fraction),
    **dict.fromkeys(("circa", "c.", "ca."), _circa),
    "as of": _as_of,
}
_LANG_OF_NAME = _first("1", "text")
_QUOTE = _first("1", "text", "quote")  # a paragraph of its own
_QUOTES = frozenset(("quote", "blockquote", "bquote", "cquote", "quotation"))


def template_at(text: str, start: int) -> tuple[str, int] | None:
    """Name and beginning of the parameters of a template that shows text; `start` is behind its braces."""
    found = _NAME.match(text, start)
    if found is None:
        return None
    colon = ":" if found[2] == ":" else ""
    name = found[1].replace("_", " ").strip().lower() + colon
    if name not in _SENTENCE and name not in _QUOTES and not _LANGUAGE.fullmatch(name):
        return None
    return name, found.start(2) if found[2] == "}}" else found.end()


def rendered(name: str, body: str) -> str:
    """What a template of `template_at` shows, "" for nothing; `body`: its parameters, without the braces."""
    given: Parameters = {}
    number = 0
    for piece in _PARAMETER.findall(body) if body else ():
        if named := _NAMED.match(piece):
            given[named[1].rstrip().lower()] = named[2].strip()
        else:
            number += 1
            given[str(number)] = piece.strip()
    if name in _QUOTES:
        text = _QUOTE(given)
        return f"\n{text}\n" if _WORD.search(text) else ""
    text = " ".join(_SENTENCE.get(name, _LANG_OF_NAME)(given).split())
    return text if _WORD.search(text) else ""
