"""Wikitext -> plain text: the prose of a page, paragraph by paragraph.

Templates, tables, references, files, categories, comments, galleries, mathematics and listings are left out without
a replacement; labels of links, list items, headings of sections that hold text, <nowiki> and inline code are kept.
`mwparserfromhell` reads the links; markup that is not balanced never reaches it and is cleaned by patterns.
"""

import contextlib
import functools
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from data_prep.wikitext_cuts import CUT, LITERAL, LITERAL_END, cut_extensions, cut_nested

_BLOCKS = "p|div|center|blockquote|poem|ul|ol|li|dl|dt|dd|tr|td|th|tbody|thead|caption|table|hr|h[1-6]|pre"
_INLINE = (
    "span|small|big|sup|sub|b|i|u|s|del|ins|strike|em|strong|code|tt|kbd|samp|var|font|abbr|cite|dfn|q|bdi|bdo|mark|"
    "ruby|rb|rp|rt|rtc|time|data|wbr|a|nowiki|noinclude|onlyinclude|includeonly|section|translate|tvar|languages|"
    "indicator|phonos|ref|references|math|gallery|source|syntaxhighlight"
)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCKS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BREAK = re.compile(r"</?br(?:\s[^<>]*)?/?>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_HEADING = re.compile(rf"(={{1,6}})\s*(.+?)\s*\1[\s{CUT}]*")
_BULLET = re.compile(r"[*#:;][*#:;\s]*|-{4,}")
_WORD = re.compile(r"\w+")
_MAGIC_WORD = re.compile(r"__[^\W\d_a-z]+(?:_[^\W\d_a-z]+)*__")
_VARIANT = re.compile(r"-\{(?:[^{}|]*\|)?(?:[\w-]+:)?([^{};]*)[^{}]*\}-")
_QUOTES = re.compile("'{2,}")
_LINK = re.compile(r"\[\[[^\[\]]*\]\]|\[(?:https?:)?//[^\[\]]*\]|https?://\S+")
_NEEDS_PARSER = re.compile(r"\[\[|\[(?:https?:|ftps?:|mailto:|irc:|news:)?//", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}|simple)(?:-[a-z]+)*")
_OTHER_WIKIS = frozenset(("mw", "wmf", "doi", "rfc", "cz", "mos"))  # two or three letters, but no language
_INTERLANGUAGE_LINE = re.compile(rf"(?:\s*\[\[\s*{_LANGUAGE.pattern}\s*:[^\[\]|]*\]\])+\s*")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|\w{2,31});")
_IN_BRACKETS = re.compile(rf"\([\s,;:]*{CUT}[\s,;:{CUT}]*(\))?")
_BEFORE_STOP = re.compile(rf"[ {CUT}]*{CUT}[ {CUT}]*(?=[.,;:!?)])")
_CUTS = re.compile(rf" *{CUT}[ {CUT}]*")
_SPACES = re.compile(r"[ \t\u00a0\u2002\u2003\u2009\r\f\v]{2,}|[\t\u00a0\u2002\u2003\u2009\r\f\v]")
_SIMPLE_LINK = re.compile(r"\[\[(?:[^\[\]|\n]*\|)?([^\[\]]*)\]\]")
_OUTER_LINK = re.compile(r"\[(?:https?:|ftps?:)?//[^\s\[\]]*\s*([^\[\]]*)\]", re.IGNORECASE)
_REF_REST = re.compile(r"</?ref(?:erences)?\b[^<>]*>?", re.IGNORECASE)
_LEFT = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|\|-|<ref|</ref", re.IGNORECASE)
_LONG_LINE = 100_000  # characters; the parser's time may grow with the square
_LIST_OF_LINKS = 40  # characters beside the links up to which a list item is one


@dataclass
class _Section:
    level: int = 1
    heading: str = ""
    paragraphs: list[str] = field(default_factory=list)
    only_links: bool = True  # no line but list items that hold a link and little else


class PlainText:
    """Converter for one wiki. `invisible`: lower-case prefixes (namespace names) of links that show nothing."""

    def __init__(self, invisible: tuple[str, ...]) -> None:
        names = "|".join(re.escape(name).replace(r"\ ", "[ _]+") for name in invisible)
        self._invisible = re.compile(rf"[\s_]*(?:{names})[\s_]*:", re.IGNORECASE)
        self._file_rest = re.compile(rf"\[\[[\s_]*(?:{names})[\s_]*:.*?(?:\]\]|$)", re.IGNORECASE)

    def paragraphs(self, wikitext: str) -> list[str]:
        """The page's paragraphs, list items and headings in order; none where it holds no prose."""
        text, literals = cut_extensions(wikitext.replace("\r", "\n"))
        text = text.replace("{{!}}", "|") if "{{!}}" in text else text
        tables = text.count("{|")
        text = cut_nested(text, self._invisible)
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", _BREAK.sub(" ", text)))
        open_table = tables > 0 and "{|" in text
        sections = _with_text(self._sections(text, open_table))
        return [
            paragraph
            for section in sections
            for line in [section.heading, *section.paragraphs]
            if (paragraph := _finished(line, literals))
        ]

    def _sections(self, text: str, open_table: bool) -> Iterator[_Section]:
        section = _Section(only_links=False)  # what stands before the first heading is never a list of links
        for line in text.split("\n"):
            line = line.strip()
            if not line or line == CUT:
                continue
            if line[0] == "=" and (found := _HEADING.fullmatch(line)):
                yield section
                section = _Section(len(found[1]), self._plain(found[2]))
            elif not _is_table_row(line, open_table):
                self._add(line, section)
        yield section

    def _add(self, line: str, section: _Section) -> None:
        bullet = _BULLET.match(line)
        text = line[bullet.end() :] if bullet else line
        if _INTERLANGUAGE_LINE.fullmatch(text):
            return
        plain = self._plain(text)
        if not _WORD.search(plain):
            return
        section.paragraphs.append(plain)
        if section.only_links and not (bullet and _is_link_item(text)):
            section.only_links = False

    def _plain(self, line: str) -> str:
        """A line without the markup that stays within a line."""
        if "[" in line and _NEEDS_PARSER.search(line):
            line = self._parsed(line)
        if "''" in line:
            line = _without_quotes(line)
        if "__" in line:
            line = _MAGIC_WORD.sub("", line)
        if "-{" in line:
            line = _VARIANT.sub(r"\1", line)
        return self._without_rest(line) if _LEFT.search(line) else line

    def _parsed(self, line: str) -> str:
        """With the labels of links in their place."""
        if line.count("[[") == line.count("]]") and len(line) < _LONG_LINE:
            with contextlib.suppress(ParserError):
                return self._shown(mwparserfromhell.parse(line, skip_style_tags=True))
        return self._without_links(line)

    def _shown(self, code: Wikicode) -> str:
        pieces = []
        for node in code.nodes:
            if isinstance(node, nodes.Text):
                pieces.append(node.value)
            elif isinstance(node, nodes.Wikilink):
                pieces.append(self._label(node))
            elif isinstance(node, nodes.ExternalLink):
                label = self._shown(node.title) if node.title is not None else ""
                pieces.append(label if node.brackets else str(node.url))
            elif isinstance(node, nodes.HTMLEntity):
                pieces.append(str(node))
            elif isinstance(node, nodes.Tag):
                pieces.append(self._shown(node.contents) if node.contents is not None else "")
        return "".join(pieces)

    def _label(self, link: nodes.Wikilink) -> str:
        title = str(link.title).strip()
        if self._invisible.match(title):
            return CUT
        if link.text is not None and (label := self._shown(link.text)).strip():
            return label
        prefix = title.partition(":")[0].strip()
        if ":" in title and _LANGUAGE.fullmatch(prefix) and prefix not in _OTHER_WIKIS:
            return CUT
        return title.removeprefix(":")

    def _without_links(self, line: str) -> str:
        """For brackets that do not match: closed links innermost first, then what is left."""
        line = self._file_rest.sub(CUT, line)
        for _ in range(5):
            shorter = _SIMPLE_LINK.sub(r"\1", line)
            if shorter == line:
                break
            line = shorter
        return _OUTER_LINK.sub(r"\1", line)

    def _without_rest(self, line: str) -> str:
        """Without what is open or closed twice: a template to the end of its line, else the marks alone."""
        line = self._file_rest.sub(CUT, line)
        line = _REF_REST.sub("", line)
        line = re.sub(r"(?:\{\{|\{\|).*", CUT, line)
        line = re.sub(r"\[\[[^\[\]|]*\|", "", line)
        return re.sub(r"\{\{+|\}\}+|\[\[+|\]\]+|\{\||\|\}|\|-+", "", line)


@functools.cache
def converter(invisible: tuple[str, ...]) -> PlainText:
    """One per process and wiki."""
    return PlainText(invisible)


def _is_table_row(line: str, open_table: bool) -> bool:
    """Of a table or template that was not closed; only then "!" is a mark."""
    return line[0] in "|}" or line.startswith("{|") or (open_table and line[0] == "!")


def _is_link_item(text: str) -> bool:
    rest = _LINK.sub("", text)
    return len(rest) < len(text) and len(rest) <= _LIST_OF_LINKS


def _with_text(sections: Iterator[_Section]) -> list[_Section]:
    """Without lists of links at the end, then without headings that nothing follows."""
    kept = list(sections)
    while kept and kept[-1].only_links:
        kept.pop()
    level = 0  # of the section that follows
    filled = []
    for section in reversed(kept):
        if section.paragraphs or level > section.level:
            filled.append(section)
            level = section.level
    return filled[::-1]


def _without_quotes(line: str) -> str:
    """Bold and italics. Where both are left open, one ''' is an apostrophe and two quotes: l'''Iliade''."""
    runs = list(_QUOTES.finditer(line))
    threes = [found for found in runs if len(found[0]) == 3]
    if len(threes) % 2 and sum(len(found[0]) in (2, 5) for found in runs) % 2:
        at = next((run.end() for run in threes if run.start() and line[run.start() - 1].isalnum()), None)
        if at is not None:
            return _without_quotes(line[: at - 3]) + "'" + _without_quotes(line[at:])
    return _QUOTES.sub(lambda run: "'" * max(0, len(run[0]) - 5) if len(run[0]) != 4 else "'", line)


def _finished(line: str, literals: list[str]) -> str:
    """The line with its literals and characters for entities; brackets and spaces around what was cut are tidied."""
    if CUT in line:
        line = _IN_BRACKETS.sub(lambda found: "" if found[1] else "(", line)
        line = _CUTS.sub(" ", _BEFORE_STOP.sub("", line))
    if LITERAL in line:
        line = re.sub(rf"{LITERAL}(\d+){LITERAL_END}", lambda found: literals[int(found[1])], line)
    if "&" in line:
        line = _ENTITY.sub(lambda found: html.unescape(found[0]), line)
    return _SPACES.sub(" ", line).strip().replace("\n", " ")
