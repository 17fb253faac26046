"""Wikitext -> plain text: the prose of a page, paragraph by paragraph.

Of a template the words stay that it shows in a sentence (data_prep.templates); a sentence that lost others in its middle, or
a formula, is left out and counted. Tables, references, files, categories, comments, galleries and listings are left out
without a replacement; labels of links, list items, headings of sections that hold text, <nowiki> and inline code are kept.
`mwparserfromhell` reads the links; brackets that do not match never reach it and are cleaned by patterns.
"""

import contextlib
import functools
import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

import mwparserfromhell
from mwparserfromhell import nodes
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from data_prep.sentences import split_sentences
from data_prep.templates import MARKS, Lost, Pairs, Templates, words_of
from data_prep.wikitext_cuts import CUT, HOLES, LITERAL, LITERAL_END, Holes, cut_extensions, cut_nested

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
_LESS = "\4"  # stands for < while a line is parsed
_BROKEN = "\5"  # where a sentence lost words
_READING = re.compile(r"<(rt|rp|rtc)\b[^<>]*>[^<>]*(?:</\1\s*>)?", re.IGNORECASE)  # above the characters of a <ruby>
_FILE_END = r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|djvu|pdf|og[gagv]|webm|mp[34]|wav|flac|midi?|stl)\s*(?:[|\]]|$)"
# Most are; the parser would take as long as all else.
_PLAIN_LINK = re.compile(r"\[\[([^\[\]|{}<>\4\n]+)(?:\|([^\[\]|{}<>\4]*))?\]\]")
_LINK_START = re.compile(r"\[\[|\[(?:https?:|ftps?:|mailto:|irc:|news:)?//", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?!(?:mw|wmf|doi|rfc)\b)(?:[a-z]{2,3}|simple)(?:-[a-z]+)*")  # not those of other sites
_INTERLANGUAGE_LINE = re.compile(rf"(?:\s*\[\[\s*{_LANGUAGE.pattern}\s*:[^\[\]|]*\]\])+\s*")
# Chinese: -{flags|zh-hans:one; zh-hant:other}-; with flags that define a rule alone it shows nothing.
_VARIANTS = re.compile(r"-\{(?:\s*([A-Z;-]*)\s*\|)?(?:[^{}|:;=]*+=>)?(?:\s*[a-z][\w-]*\s*:)?([^{}|;]*+)[^{}]*+\}-")
_VARIANT_TEMPLATE = re.compile(r"-\{\{\{(?!\{)")  # -{{{lang|ja|a}}}-
_QUOTES = re.compile("'{2,}")
_HOLE = re.compile(f"[{HOLES}]")
_TRAIL = f" {CUT}" + "".join(map(chr, range(0xD800, 0xE000)))
_BRACKET_BEFORE_CUT = re.compile(rf"([(（])[\s,;:，；：、]*{CUT}[\s,;:，；：、{CUT}{HOLES}]*([)）])?")
_MARKS_AROUND_CUT = re.compile(rf"([,;:，；：、])\s*{CUT}[\s,;:，；：、{CUT}{HOLES}]*([,;:)，；：、）])")
_CUTS = re.compile(rf" ?{CUT}[ {CUT}{HOLES}]*+([.,;:!?)。，；：！？、）।؟،])?")
_SENTENCE_END = re.compile(r"[.!?\u2026。！？।؟۔]['\"\u201d\u2019\u00bb)\]」』]*\s*$")
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
        return self.only_links or (self.only_list and self.heading.lower() in words_of("references"))


class _PlainText:
    """Converter for one wiki. `invisible`: lower-case prefixes (namespace names) of links that show nothing; `prefixes`: those
    of templates; `more`: patterns that go before those of data_prep.templates. Without `drop_holes` sentences with one stay."""

    def __init__(
        self,
        invisible: tuple[str, ...] = (),
        language: str = "",
        prefixes: tuple[str, ...] = (),
        more: Pairs = (),
        drop_holes: bool = True,
    ) -> None:
        known = words_of("file") | words_of("category") | set(invisible)
        names = "|".join(re.escape(name).replace(r"\ ", "[ _]+") for name in sorted(known, key=len, reverse=True))
        captions = "|".join(map(re.escape, sorted(words_of("caption"), key=len, reverse=True)))
        file = rf"[^:]+:[^\[\]|]*(?:{_FILE_END}|\|\s*(?:{captions})\s*[|\]])"
        names = rf"(?=[^\[\]|:{{}}]{{1,40}}:)[\s_{MARKS}]*(?:(?:{names})[\s_{MARKS}]*:|{file})"
        self._invisible = re.compile(names, re.IGNORECASE)
        self._open_file = re.compile(rf"\[\[{self._invisible.pattern}.*", re.IGNORECASE)
        self._templates = Templates(language, prefixes, more)
        self._drop_holes = drop_holes

    def paragraphs(self, wikitext: str, title: str = "", lost: Lost | None = None) -> list[str]:
        """The page's paragraphs, list items and headings in order; none where it holds no prose. Adds to `lost`."""
        holes: Holes = {}
        text, literals = cut_extensions(wikitext.replace("\r", "\n"), holes)
        text = text.replace("{{!}}", "|") if "{{!}}" in text else text
        text = _VARIANT_TEMPLATE.sub("-{<wbr>{{", text) if "-{{{" in text else text
        text = cut_nested(text, self._invisible, self._templates, title, holes)
        text = _READING.sub("", text) if _READING.search(text) else text
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", _BREAK.sub(" ", text)))
        kept = list(self._sections(text))
        while kept and kept[-1].is_no_prose():
            kept.pop()
        finish = _Finish(literals, {hole: name for name, hole in holes.items()}, self._drop_holes, lost or Lost())
        for section in kept:
            section.heading = finish(section.heading)
            section.paragraphs = list(filter(None, map(finish, section.paragraphs)))
        return [line for section in _with_text(kept) for line in (section.heading, *section.paragraphs) if line]

    def _sections(self, text: str) -> Iterator[_Section]:
        open_table = re.search(r"(?m)^[ \t:*#]*\{\|", text) is not None
        section = _Section(only_list=False, only_links=False)  # what stands before the first heading always stays
        for line in text.split("\n"):
            line = line.strip()
            if not line or line == CUT:
                continue
            if line[0] == "=" and (found := _HEADING.fullmatch(line.rstrip(_TRAIL))):
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
            line = _VARIANTS.sub(lambda found: "" if found[1] and set(found[1]) & set("HTDN-") else found[2], line)
        for _ in range(3):  # what is taken out may bring other marks together
            if not _LEFT.search(line):
                return line
            line = self._without_rest(line)
        return re.sub(r"[\[\]{}|]", "", line) if _LEFT.search(line) else line

    def _with_labels(self, line: str) -> str:
        """With the labels of links in their place. The parser sees no tags: what is left of them is text."""
        plain = _PLAIN_LINK.sub(lambda found: self._label(found[1].strip(), found[2]), line)
        if "[" not in plain:
            return plain
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
                pieces.append(
                    self._label(str(node.title).strip(), None if node.text is None else self._shown(node.text))
                )
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

    def _label(self, title: str, label: str | None) -> str:
        if ":" in title and self._invisible.match(title):
            return CUT
        if label and label.strip():
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


def _with_text(sections: list[_Section]) -> list[_Section]:
    """Without headings that nothing follows."""
    level = 0  # of the section that follows
    filled = []
    for section in reversed(sections):
        if section.paragraphs or level > section.level:
            filled.append(section)
            level = section.level
    return filled[::-1]


@dataclass
class _Finish:
    """The last step for a line of a page. `names`: of holes by their character."""

    literals: list[str]
    names: dict[str, str]
    drop_holes: bool
    lost: Lost

    def __call__(self, line: str) -> str:
        """The line with its literals and characters for entities; brackets and spaces around what was cut are tidied, and
        sentences with a hole are left out."""
        if CUT in line:
            line = _BRACKET_BEFORE_CUT.sub(self._bracket, _SPACES.sub(" ", line))
            line = _MARKS_AROUND_CUT.sub(self._marks, line)
            line = _CUTS.sub(self._cut, line)
        if LITERAL in line:
            line = re.sub(rf"{LITERAL}(\d+){LITERAL_END}", lambda found: self.literals[int(found[1])], line)
        if "&" in line:
            line = re.sub(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|\w{2,31});", lambda found: html.unescape(found[0]), line)
        line = _SPACES.sub(" ", line).strip()
        return self._whole(line) if line else ""

    def _whole(self, line: str) -> str:
        """Without sentences that lost words."""
        sentences = split_sentences(line.replace(_BROKEN, "X"))  # as a word, so that an end before it is one
        self.lost.sentences += len(sentences)
        if _BROKEN not in line:
            return line
        kept, at = "", 0
        for sentence in sentences:
            shown, at = line[at : at + len(sentence)], at + len(sentence)
            self.lost.holed += _BROKEN in shown
            kept += "" if _BROKEN in shown and self.drop_holes else shown
        return _SPACES.sub(" ", kept.replace(f" {_BROKEN}", "").replace(_BROKEN, "")).strip()

    def _count(self, found: re.Match[str]) -> bool:
        holes = _HOLE.findall(found[0])
        self.lost.templates.update(self.names[hole] for hole in holes)
        return bool(holes)

    def _bracket(self, found: re.Match[str]) -> str:
        """A closed one goes; in an open one words are missing if no mark stands behind them."""
        missing = self._count(found) and not re.search("[,;:，；：、]", found[0])
        return CUT if found[2] else found[1] + _BROKEN * missing

    def _marks(self, found: re.Match[str]) -> str:
        missing = self._count(found) and found[1] in ":："
        return (found[2] if found[2] in ")）" else found[1]) + _BROKEN * missing

    def _cut(self, found: re.Match[str]) -> str:
        """What stands for it. Words are missing in the middle of a sentence; at its end, unless it is joined to a word as notes
        are; and at its start, where no capital follows and it is no note of the sentence before."""
        line, start, end = found.string, found.start(), found.end()
        joined = " " not in found[0] and line[start - 1 : start] >= "\u0e00"  # Thai, Chinese, Japanese, Korean
        shown = found[1] or ("" if joined else " ")
        before, behind = line[max(0, start - 5) : start].rstrip(), line[end : end + 2].lstrip()
        if not _HOLE.search(found[0]):
            return shown
        note = found[0][0] != " " and not joined
        if not before:
            broken = inside = bool(found[1]) or behind[:1].islower() or behind[:1] in (*"–—-=(",)
        elif not found[1] and _SENTENCE_END.search(before):
            without_case = not note and unicodedata.category(behind[:1] or " ") == "Lo"
            broken, inside = behind[:1].islower() or without_case, bool(behind)
        else:
            broken = found[0][0] == " " or not (found[1] or not behind)
            inside = broken or bool(found[1])
        if inside or broken:
            self._count(found)
        space = " " if found[0][0] == " " else ""  # so that the sentence before ends there
        return f"{space}{_BROKEN}{shown}" if broken else shown


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
