"""Templates of Wikipedia in prose -> the words that they show; names of namespaces and of redirects. The data: templates.json.

A pattern is text with parameters in braces: {2|text} is the first of them that is given, {*} all without a name one after the
other, {2@fr} the month of that number in French, {0} the template's name, {@} the page's title. What stands in [] shows only
where every parameter in it is given, the whole only where every other one is. "" shows nothing, and nothing is missed; `=name`
is a function of this module, `=fr:name` one with words of a language.
"""

import calendar
import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError

Parameters = dict[str, str]
Pairs = tuple[tuple[str, str], ...]  # name and pattern

_PARAMETER = re.compile(r"(?:^|\|)((?:\[\[[^\[\]]*+\]\]|[^|])*+)")  # a | in a link is the link's
_NAMED = re.compile(r"\s*+([^=|\[\]{}<>\"'&:/?]{1,40})=(.*)", re.DOTALL)
_NAME = re.compile(r"([^|{}\[\]<>\n:]{0,120}+)(:|\s*+(?:\||\}\}))")
MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # of direction: MediaWiki takes them out of names
_SPACE = re.compile(rf"[\s_{MARKS}]+")
_PART = re.compile(r"\[([^\[\]]*)\]|\{([^{}]*)\}")
_PATTERN = re.compile(r"(?:[^][{}]|\{[^][{}]+\}|\[(?:[^][{}]|\{[^][{}]+\})*\])*")
_RANGES = {"-": "–", "–": "–", "&ndash;": "–", "to": " to ", "to(-)": " to ", "and": " and ", "and(-)": " and "}
_RANGES |= {"or": " or ", "by": " by ", "x": " × ", "xx": " × ", "×": " × ", "*": " × ", "±": " ± ", "+/-": " ± "}
# {{convert}}'s codes where they are no words: km2, sqmi, e6acre, Goilbbl, PD/sqmi (people).
_UNITS = {"^C$": "°C", "^F$": "°F", "(?<=m)2$": "²", "(?<=m)3$": "³", "(sq|cu)(?=mi|ft|in|yd)": r"\1 "}
_UNITS |= {"oil(?=bbl)": "", "^PD/": "per ", "^e3": "thousand ", "^e6": "million ", "^e9": "billion "}
_UNITS["^e12"] = "trillion "
_SMALLER_UNITS = frozenset(("in", "inch", "inches", "ft", "foot", "feet", "yd", "oz", "lb"))  # 6 ft 2 in, 4 st 3 lb


@functools.cache
def languages() -> dict[str, dict[str, Any]]:
    """The data by language; "*" is for all."""
    return dict(json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8")))


@functools.cache
def words_of(kind: str) -> frozenset[str]:
    """Of all languages, lower-case: names of the "file", "category" and "template" namespaces, "caption" words of files,
    "redirect" words, headings of "references", templates and ends of titles of disambiguation pages ("meanings", "titles")."""
    return frozenset(word for language in languages().values() for word in language.get(kind, ()))


@dataclass
class Lost:
    """What the prose of pages lost. `templates`: uses by name of what showed words that are not known; `sentences`: with those
    that were left out; `holed`: of them, with a hole in the middle."""

    templates: Counter[str] = field(default_factory=Counter)
    sentences: int = 0
    holed: int = 0

    def add(self, other: "Lost") -> None:
        self.templates.update(other.templates)
        self.sentences += other.sentences
        self.holed += other.holed

    def account(self, dropped: bool) -> dict[str, Any]:
        """For the manifest; `dropped`: whether sentences with a hole were left out."""
        most = dict(sorted(self.templates.items(), key=lambda use: (-use[1], use[0]))[:20])
        facts = {"left_out": self.templates.total(), "sentences": self.sentences, "with_a_hole": self.holed}
        return {**facts, "sentences_dropped": self.holed if dropped else 0, "most": most}


def templates_line(account: dict[str, Any]) -> str:
    """What is said of `Lost.account`."""
    share = account["with_a_hole"] / max(1, account["sentences"])
    fate = "dropped" if account["sentences_dropped"] else "kept, with a hole"
    most = ", ".join(f"{name} {number:,}" for name, number in [*account["most"].items()][:5])
    where = f"in {share:.1%} of the sentences ({fate})"
    return f"templates left out of prose: {account['left_out']:,} {where}; most: {most}"


class Templates:
    """The templates of one wiki. `prefixes`: lower-case names of its template namespace; `more` goes before the data."""

    def __init__(self, language: str, prefixes: tuple[str, ...], more: Pairs) -> None:
        self._prefixes = words_of("template").union(prefixes)
        self._patterns: dict[str, str | None] = {}
        self._wild: list[tuple[str, re.Pattern[str]]] = []
        large = language in languages()  # it borrows no words
        borrowed = r"=(?!\w\w:).*|(?:\W|\{[^{}@]*\})+" if large else r"[={].*"
        for other in sorted(languages().keys() - {"*", language}):
            self._add(other, re.compile(borrowed))
        self._add("*")
        self._add(language)
        self._patterns.update((self.at(f"{name}}}}}", 0)[0], pattern) for name, pattern in more)

    def _add(self, language: str, like: re.Pattern[str] = re.compile(r"(?s).*")) -> None:
        data = languages().get(language, {})
        for pattern, names in [*data.get("words", {}).items(), ("", data.get("silent", ()))]:
            if like.fullmatch(pattern):
                wild = [re.escape(name).replace(r"\*", ".+") for name in names if "*" in name and name != "*"]
                self._wild[:0] = [(pattern, re.compile("|".join(wild)))] if wild else []
                self._patterns.update(dict.fromkeys(names, pattern))

    def at(self, text: str, start: int) -> tuple[str, int]:
        """The lower-case name of the template whose braces end at `start`, that of a function with its colon, and where its
        parameters begin; "?" for a name that is made of other templates."""
        for _ in range(3):  # {{subst:Template:x}}
            found = _NAME.match(text, start)
            if found is None:
                return "?", start
            name = _SPACE.sub(" ", found[1]).strip().lower()
            start = found.end()
            if found[2] != ":":
                return name, found.start(2) if found[2][-1] == "}" else start
            if name not in self._prefixes:
                break
        return f"{name}:", start

    def pattern(self, name: str) -> str | None:
        """None where nothing is known of the template."""
        if name not in self._patterns:
            self._patterns[name] = next((pattern for pattern, wild in self._wild if wild.fullmatch(name)), None)
        return self._patterns[name]


def check_pattern(name: str, pattern: object) -> None:
    """InputError for what a user gives as a template's name or pattern and is none."""
    if not re.fullmatch(r"[^|{}\[\]<>\n]{0,119}[^|{}\[\]<>\s]", name):
        raise InputError(f"templates: {name!r} is no name of a template; give what stands between {{{{ and |")
    if not isinstance(pattern, str) or not (
        pattern[1:] in _FUNCTIONS if pattern[:1] == "=" else _PATTERN.fullmatch(pattern)
    ):
        wanted = f"text with {{1}} and [{{1}}] in it, or one of {', '.join(f'={function}' for function in _FUNCTIONS)}"
        raise InputError(f"templates: {name}: {pattern!r} is no pattern; give {wanted}")


def rendered(pattern: str, name: str, body: str, title: str) -> str | None:
    """What a template shows, "" for nothing, None where its first parameter has words that the pattern cannot show; `body`: its
    parameters, without the braces."""
    if not _PART.search(pattern) and pattern[:1] != "=":
        return pattern
    given: Parameters = {"@": title, "0": name}
    number = 0
    for piece in _PARAMETER.findall(body) if body else ():
        if named := _NAMED.match(piece):
            given[_SPACE.sub(" ", named[1]).strip().lower()] = named[2].strip()
        else:
            number += 1
            given[str(number)] = piece.strip()
    if "{*}" in pattern:
        given["*"] = "".join(given[str(n)] for n in range(1, number + 1) if str(n) in given)
    text = _FUNCTIONS[pattern[1:]](given) if pattern[:1] == "=" else _filled(pattern, given)
    if pattern[0] != "\n":  # a paragraph of its own
        text = " ".join(text.split())
    if re.search(r"\w", text):
        return text
    return None if "{1" in pattern and re.search(r"\w", given.get("1", "")) else ""


def _filled(pattern: str, given: Parameters) -> str:
    missing = False

    def shown(found: re.Match[str]) -> str:
        nonlocal missing
        if found[1] is not None:
            return _filled(found[1], given)
        text = next(filter(None, (_value(given, name) for name in found[2].split("|"))), "")
        missing |= not text
        return text

    text = _PART.sub(shown, pattern)
    return "" if missing else text


def _value(given: Parameters, name: str) -> str:
    number, _, language = name.partition("@")
    value = given.get(number or name, "")
    months = languages().get(language, {}).get("months")
    return str(months[int(value) - 1]) if months and re.fullmatch("0*([1-9]|1[0-2])", value) else value


def _convert(given: Parameters) -> str:
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


def _nihongo(given: Parameters) -> str:
    """English (kanji, romaji, remark); the first that there is stands before the bracket."""
    texts = [text for text in (given.get(name) for name in ("1", "2", "3", "4", "extra")) if text]
    return f"{texts[0]} ({', '.join(texts[1:])})" if texts[1:] else "".join(texts)


def _fraction(given: Parameters) -> str:
    numbers = [given[name] for name in "123" if given.get(name)]
    if len(numbers) < 2:
        return f"1/{numbers[0]}" if numbers else ""
    return " ".join([*numbers[:-2], "/".join(numbers[-2:])])


def _other_language(given: Parameters) -> str:
    """{{ill|Page|fr}}, and {{ill|fr|Page}} as it once was."""
    names = [given.get(name, "") for name in ("lt", "text", "1", "2")]
    swapped = re.fullmatch("[a-z]{2,3}", names[2]) and not re.fullmatch("[a-z]{2,3}", names[3] or "en")
    return names[0] or names[1] or names[3 if swapped else 2]


def _date(given: Parameters, american: bool = True) -> str:
    year, month, day = (given.get(name, "") for name in "123")
    if re.fullmatch("0*([1-9]|1[0-2])", month):
        month = calendar.month_name[int(month)]
    date = f"{month} {day}, {year}" if day and american else f"{day} {month} {year}"
    return " ".join(date.split())


def _polish_date(given: Parameters) -> str:
    """2000-01-02; and what is written out."""
    if numbers := re.fullmatch(r"(\d+)-(\d+)-0*(\d+)", given.get("1", "")):
        return _filled("{3} {2@pl} {1}", dict(zip("123", numbers.groups(), strict=True)))
    return " ".join(given[name] for name in "12" if given.get(name))


def _french_century(given: Parameters) -> str:
    """{{s|XX}}, {{s|I|er}}, {{s2|XIX|e|XX|e}}, {{sp|XIX|e|et|XX|e}}; {{-s|V}} before Christ; {{s mini|XX}} the number alone."""
    name, words = given["0"], list[str]()
    for word in (given.get(number, "") for number in "12345"):
        if word in ("e", "er", "ère", "re", "ème"):
            words[-1:] = [words[-1].removesuffix("e") + word] if words else []
        elif word:
            words.append(word + "e" * bool(re.fullmatch("[IVXLCivxlc]+", word)))
    if "s2" in name or "s-s" in name:
        words.insert(1, "et")
    if words and "mini" not in name:
        words.append("siècles" if len(words) > 2 and words[1] == "et" else "siècle")
    return " ".join([*words, *["av. J.-C."] * (name[0] == "-")]) if words else ""


def _spanish_century(given: Parameters) -> str:
    era = {"a": " a. C.", "d": " d. C."}.get(given.get("2", "")[:1].lower(), "")
    return f"siglo {given['1']}{era}" if given.get("1") else ""


def _as_of(given: Parameters) -> str:
    if given.get("alt") or not given.get("1"):
        return given.get("alt", "")
    start = "Since" if given.get("since") else "As of"
    return f"{start.lower() if given.get('lc') else start} {_date(given, given.get('df', '').upper() == 'US')}"


_FUNCTIONS: dict[str, Callable[[Parameters], str]] = {
    "convert": _convert,
    "nihongo": _nihongo,
    "fraction": _fraction,
    "as of": _as_of,
    "other language": _other_language,
    "date": lambda given: _date(given, not given.get("df")),
    "ipa": lambda given: (
        "" if given.get("2") else given.get("1", "")
    ),  # with two, it tells how the word before is spoken
    "if": lambda given: given.get("2" if given.get("1") else "3", ""),
    "ifeq": lambda given: given.get("3" if given.get("1") == given.get("2") else "4", ""),
    "pl:date": _polish_date,
    "fr:century": _french_century,
    "es:century": _spanish_century,
    "lower": lambda given: given.get("1", "").lower(),
    "upper": lambda given: given.get("1", "").upper(),
    "capital": lambda given: given.get("1", "")[:1].upper() + given.get("1", "")[1:],
}
