"""Wikitext -> plain text: the prose of a page, paragraph by paragraph.

Templates (but for those that carry words of a sentence, `inline_templates`), tables, references, files, categories,
comments, galleries, mathematics and listings are left out without a replacement; labels of links, list items, headings
of sections that hold text, <nowiki> and inline code are kept.
`mwparserfromhell` reads the links; brackets that do not match never reach it and are cleaned by patterns.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.wikitext_cuts import CUT, cut_extensions, cut_nested
from data_prep.wikitext_lines import LineText, finished, is_interlanguage

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
_TABLE = re.compile(r"^[ \t:*#]*\{\|", re.MULTILINE)
# Lists at the end below these are of sources, in the languages of larger Wikipedias.
_REFERENCE_HEADINGS = frozenset(
    "see also;references;external links;further reading;notes;footnotes;citations;bibliography;sources;works cited;"
    "notes and references;references and notes;xem thêm;tham khảo;chú thích;liên kết ngoài;đọc thêm;ghi chú;thư mục;"
    "siehe auch;einzelnachweise;weblinks;literatur;quellen;voir aussi;références;liens externes;notes et références;"
    "bibliographie;véase también;referencias;enlaces externos;bibliografía;note;collegamenti esterni;bibliografia;"
    "voci correlate;ver também;referências;ligações externas;ссылки;примечания;литература;см. также;参考文献;外部链接;"
    "外部連結;関連項目;外部リンク;脚注".split(";")
)
_LIST_OF_LINKS = 40  # characters beside the links up to which a list item is one


@dataclass
class _Section:
    level: int = 1
    heading: str = ""
    paragraphs: list[str] = field(default_factory=list)
    only_list: bool = True  # no line but list items
    only_links: bool = True  # no line but list items that hold a link and little else

    def add(self, paragraph: str, is_item: bool, is_link: bool) -> None:
        self.paragraphs.append(paragraph)
        self.only_list &= is_item
        self.only_links &= is_item and is_link

    def is_no_prose(self) -> bool:
        """A list of links, or any list below a heading such as "Further reading"."""
        return self.only_links or (self.only_list and self.heading.lower() in _REFERENCE_HEADINGS)


class PlainText:
    """Converter for one wiki. `invisible`: lower-case prefixes (namespace names) of links that show nothing."""

    def __init__(self, invisible: tuple[str, ...]) -> None:
        self._lines = LineText(invisible)

    def paragraphs(self, wikitext: str) -> list[str]:
        """The page's paragraphs, list items and headings in order; none where it holds no prose."""
        text, literals = cut_extensions(wikitext.replace("\r", "\n"))
        text = text.replace("{{!}}", "|") if "{{!}}" in text else text
        text = cut_nested(text, self._lines.invisible)
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n", _BREAK.sub(" ", text)))
        return [
            paragraph
            for section in _with_text(self._sections(text))
            for line in [section.heading, *section.paragraphs]
            if (paragraph := finished(line, literals))
        ]

    def _sections(self, text: str) -> Iterator[_Section]:
        open_table = _TABLE.search(text) is not None
        section = _Section(only_list=False, only_links=False)  # what stands before the first heading always stays
        for line in text.split("\n"):
            line = line.strip()
            if not line or line == CUT:
                continue
            if line[0] == "=" and (found := _HEADING.fullmatch(line.rstrip(f" {CUT}"))):
                yield section
                section = _Section(len(found[1]), self._lines.plain(found[2].strip()))
            else:
                self._add(line, section, open_table)
        yield section

    def _add(self, line: str, section: _Section, open_table: bool) -> None:
        bullet = _BULLET.match(line)
        text = line[bullet.end() :] if bullet else line
        if not text or _is_table_row(text, open_table) or is_interlanguage(text):
            return
        plain = self._lines.plain(text)
        if _WORD.search(plain):
            section.add(plain, bullet is not None, _is_link_item(text))


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
    while kept and kept[-1].is_no_prose():
        kept.pop()
    level = 0  # of the section that follows
    filled = []
    for section in reversed(kept):
        if section.paragraphs or level > section.level:
            filled.append(section)
            level = section.level
    return filled[::-1]
