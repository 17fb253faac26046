"""Wikitext -> plain text: the prose of a page, paragraph by paragraph.

Templates (but for those that carry words of a sentence, `inline_templates`), tables, references, files, categories,
comments, galleries, mathematics and listings are left out without a replacement; labels of links, list items, headings
of sections that hold text, <nowiki> and inline code are kept.
`mwparserfromhell` reads the links; brackets that do not match never reach it and are cleaned by patterns.
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
_BREAK = re.compile(r"<[/\\]?br(?:[\s/\\.][^<>]*)?>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_HEADING = re.compile(r"(={1,6})(.+?)\1")
_BULLET = re.compile(r"[*#:;][*#:;\s]*|-{4,}")
_WORD = re.compile(r"\w+")
_LINK = re.compile(r"\[\[[^\[\]]*\]\]|\[(?:https?:)?//[^\[\]]*\]|https?://\S+")
# Lists at the end below these are of sources, in the languages of larger Wikipedias.
_REFERENCE_HEADINGS = frozenset(
    "see also;references;external links;further reading;notes;footnotes;citations;bibliography;sources;works cited;"
    "notes and references;references and notes;xem thêm;tham khảo;chú thích;liên kết ngoài;đọc thêm;ghi chú;thư mục;"
    "siehe auch;einzelnachweise;weblinks;literatur;quellen;voir aussi;références;liens externes;notes et références;"
    "bibliographie;véase también;referencias;enlaces externos;bibliografía;note;collegamenti esterni;bibliografia;"
    "voci correlate;ver também;referências;ligações externas;ссылки;примечания;литература;см. также;参考文献;外部链接;"
    "外部連結;関連項目;外部リンク;脚注".split(";")
)
_LESS = "\4"  # stands for < while a line is parsed
_LINK_START = re.compile(r"\[\[|\[(?:https?:|ftps?:|mailto:|irc:|news:)?//", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?!(?:mw|wmf|doi|rfc)\b)(?:[a-z]{2,3}|simple)(?:-[a-z]+)*")  # not those of other sites
_INTERLANGUAGE_LINE = re.compile(rf"(?:\s*\[\[\s*{_LANGUAGE.pattern}\s*:[^\[\]|]*\]\])+\s*")
_QUOTES = re.compile("'{2,}")
_BRACKET_BEFORE_CUT = re.compile(rf"\([\s,;:]*{CUT}[\s,;:{CUT}]*(\))?")
_MARKS_AROUND_CUT = re.compile(rf"([,;:])\s*{CUT}[\s,;:{CUT}]*([,;:)])")
_CUTS = re.compile(rf" ?{CUT}[ {CUT}]*+([.,;:!?)])?")
_SPACES = re.compile(r"[ \t\u00a0\u2002\u2003\u2009\r\n\f\v]{2,}|[\t\u00a0\u2002\u2003\u2009\r\n\f\v]")

# For brackets that do not match.
_CLOSED_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]")
_CLOSED_URL = re.compile(r"\[(?:https?:|ftps?:)?//[^\s\[\]]*+\s*+([^\[\]]*+)\]", re.IGNORECASE)
_LEFT = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|\|-|</?ref", re.IGNORECASE)


@dataclass
class _Section:
    level: int = 1
    heading: str = ""
    paragraphs: list[str] = field(default_factory=list)
    only_list: bool = True  # no line but list items
    only_links: bool = True  # no line but list items that hold a link and at most 40 characters beside

    def is_no_prose(self) -> bool:
        """A list of links, or any list below a heading such as "Further reading"."""
        return self.only_links or (self.only_list and self.heading.lower() in _REFERENCE_HEADINGS)


class _PlainText:
    """Converter for one wiki. `invisible`: lower-case prefixes (namespace names) of links that show nothing."""

    def __init__(self, invisible: tuple[str, ...]) -> None:
        names = "|".join(re.escape(name).replace(r"\ ", "[ _]+") for name in invisible)
        self._invisible = re.compile(rf"[\s_]*(?:{names})[\s_]*:", re.IGNORECASE)
        self._open_file = re.compile(rf"\[\[{self._invisible.pattern}.*", re.IGNORECASE)

    def paragraphs(self, wikitext: str) -> list[str]:
        """The page's paragraphs, list items and headings in order; none where it holds no prose."""
        text, literals = cut_extensions(wikitext.replace("\r", "\n"))
        text = text.replace("{{!}}", "|") if "{{!}}" in text else text
        text = cut_nested(text, self._invisible)
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", _BREAK.sub(" ", text)))
        return [
            paragraph
            for section in _with_text(self._sections(text))
            for line in [section.heading, *section.paragraphs]
            if (paragraph := _finished(line, literals))
        ]

    def _sections(self, text: str) -> Iterator[_Section]:
        open_table = re.search(r"(?m)^[ \t:*#]*\{\|", text) is not None
        section = _Section(only_list=False, only_links=False)  # what stands before the first heading always stays
        for line in text.split("\n"):
            line = line.strip()
            if not line or line == CUT:
                continue
            if line[0] == "=" and (found := _HEADING.fullmatch(line.rstrip(f" {CUT}"))):
                yield section
                section = _Section(len(found[1]), self._plain(found[2].strip()))
            else:
                self._add(line, section, open_table)
        yield section

    def _add(self, line: str, section: _Section, open_table: bool) -> None:
        bullet = _BULLET.match(line)
        text = line[bullet.end() :] if bullet else line
        if not text or ("[[" in text and _INTERLANGUAGE_LINE.fullmatch(text)):
            return
        if text[0] in "|}" or text.startswith("{|") or (open_table and text[0] == "!"):
            return  # of a table or template that was not closed; only then "!" is a mark
        plain = self._plain(text)
        if _WORD.search(plain):
            rest = len(_LINK.sub("", text))
            section.paragraphs.append(plain)
            section.only_list &= bullet is not None
            section.only_links &= bullet is not None and rest < len(text) and rest <= 40

    def _plain(self, line: str) -> str:
        """The line without markup; what was cut and the numbers of literals are still in it."""
        if "[" in line and _LINK_START.search(line):
            line = self._with_labels(line)
        if "''" in line:
            line = _without_quotes(line)
        if "__" in line:
            line = re.sub(r"__[^\W\d_a-z]+(?:_[^\W\d_a-z]+)*__", "", line)
        if "-{" in line:
            line = re.sub(r"-\{(?:[^{}|]*+\|)?(?:[\w-]++:)?([^{};]*+)[^{}]*+\}-", r"\1", line)
        for _ in range(3):  # what is taken out may bring other marks together
            if not _LEFT.search(line):
                return line
            line = self._without_rest(line)
        return re.sub(r"[\[\]{}|]", "", line) if _LEFT.search(line) else line

    def _with_labels(self, line: str) -> str:
        """With the labels of links in their place. The parser sees no tags: what is left of them is text."""
        balanced = line.count("[") == line.count("]") and line.count("[[") == line.count("]]")
        if balanced and len(line) < 20_000:  # the parser's time may grow with the square of these
            with contextlib.suppress(ParserError):
                code = mwparserfromhell.parse(line.replace("<", _LESS), skip_style_tags=True)
                return self._shown(code).replace(_LESS, "<")
        line = self._open_file.sub(CUT, line)
        for _ in range(5):  # innermost first
            shorter = _CLOSED_LINK.sub(r"\1", line)
            if shorter == line:
                break
            line = shorter
        return _CLOSED_URL.sub(r"\1", line)

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
            elif isinstance(node, nodes.Heading):  # signs of equality around the line
                pieces.append(self._shown(node.title))
            elif isinstance(node, nodes.Tag) and node.contents is not None:
                pieces.append(self._shown(node.contents))
        return "".join(pieces)

    def _label(self, link: nodes.Wikilink) -> str:
        title = str(link.title).strip()
        if self._invisible.match(title):
            return CUT
        if link.text is not None and (label := self._shown(link.text)).strip():
            return label
        prefix, colon, _ = title.partition(":")
        if colon and _LANGUAGE.fullmatch(prefix.strip()):
            return CUT
        return title.removeprefix(":")

    def _without_rest(self, line: str) -> str:
        """Without what is open or closed twice: a file or template to the end of its line, else the marks alone."""
        line = re.sub(r"(?i)</?ref[^<>]*>?", "", self._open_file.sub(CUT, line))
        line = re.sub(r"\[\[[^\[\]|]*\|", "", re.sub(r"\{\{.*", CUT, line))
        line = re.sub(r"\}\}+|\[\[+|\]\]+|\|\}", "", line)
        return re.sub(r"\{+\|+", "{", re.sub(r"\|+-+", "-", line))


converter = functools.cache(_PlainText)  # one per process and wiki


def _with_text(sections: Iterator[_Section]) -> list[_Section]:
    """Without lists of links at the end, then without headings that nothing follows."""
    kept = list(sections)
    while kept and kept[-1].is_no_prose():
        kept.pop()
    level = 0  # of the section that follows
    filled = []
    for section in reversed(kept):
        if section.paragraphs or level > section.level:
            filled.append(section)
            level = section.level
    return filled[::-1]


def _finished(line: str, literals: list[str]) -> str:
    """The line with its literals and characters for entities; brackets and spaces around what was cut are tidied."""
    if CUT in line:
        line = _BRACKET_BEFORE_CUT.sub(lambda found: CUT if found[1] else "(", _SPACES.sub(" ", line))
        line = _MARKS_AROUND_CUT.sub(lambda found: ")" if found[2] == ")" else found[1], line)
        line = _CUTS.sub(lambda found: found[1] or " ", line)
    if LITERAL in line:
        line = re.sub(rf"{LITERAL}(\d+){LITERAL_END}", lambda found: literals[int(found[1])], line)
    if "&" in line:
        line = re.sub(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|\w{2,31});", lambda found: html.unescape(found[0]), line)
    return _SPACES.sub(" ", line).strip()


def _without_quotes(line: str) -> str:
    """Bold and italics. Where both are left open, one ''' is an apostrophe and two quotes: l'''Iliade''."""
    runs = list(_QUOTES.finditer(line))
    threes = [found for found in runs if len(found[0]) == 3]
    if len(threes) % 2 and sum(len(found[0]) in (2, 5) for found in runs) % 2:
        at = next((run.end() for run in threes if run.start() and line[run.start() - 1].isalnum()), None)
        if at is not None:
            line = f"{line[: at - 3]}\4{line[at:]}"
    line = _QUOTES.sub(lambda run: "'" if len(run[0]) == 4 else "", line)
    return line.replace("\4", "'")
