"""MediaWiki `pages-articles` dumps -> documents: one per article, its title first.

The main process reads the XML (schema 0.3 to 0.11) as a stream of pages; chunks of pages are converted by `num_proc` processes
and come back in order, so that the result does not depend on their number. A few chunks are under way at a time, whatever the
size of the dump.
"""

import codecs
import functools
import itertools
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn
from xml.parsers import expat

from budget_trainer.core.errors import InputError
from data_prep.files import Leave, form_of, ignore, members, naming_errors
from data_prep.templates import Lost, Pairs, languages, words_of
from data_prep.wikitext import converter
from data_prep.wikitext_cuts import cut_extensions

# MediaWiki saves no page of more than 2 MiB; the text of a longer one is not kept.
MAX_PAGE_CHARACTERS = 10_000_000
_MAX_TOKEN_BYTES = 16 * 1024**2  # one tag or comment; expat holds it until its end
_CHUNK_BYTES = 256 * 1024
# What every wiki understands, whatever its language; -2 Media, 6 File, 14 Category. The rest is for dumps without <ns>.
_NAMES = {-2: ["media"], 6: ["file", "image"], 14: ["category"], 1: ["talk"], 2: ["user"], 3: ["user talk"]}
_NAMES |= {4: ["wikipedia", "project"], 8: ["mediawiki"], 10: ["template"], 12: ["help"], 100: ["portal"]}
_NAMES |= {828: ["module"], 118: ["draft"]}
# Elements whose text is read, with their parents: <text> of other slots (below <content>) is not wikitext.
_READ = {("page", "title"), ("page", "ns"), ("revision", "model"), ("revision", "text"), ("namespaces", "namespace")}
_READ |= {("siteinfo", "dbname"), ("siteinfo", "base")}


@dataclass
class _Page:
    """`text`: wikitext of the last revision in the dump, empty where `too_large`. `namespace`: 0 for articles."""

    title: str = ""
    namespace: int | None = None
    text: str = ""
    redirect: bool = False
    model: str = "wikitext"
    too_large: bool = False


@dataclass
class _Site:
    """What the dump says about its wiki. `names`: lower-case namespace names and aliases by number. `language`: whose templates
    it has, "" where the data have none of it."""

    language: str = ""
    names: dict[int, list[str]] = field(default_factory=lambda: {key: list(names) for key, names in _NAMES.items()})

    def invisible(self) -> tuple[str, ...]:
        """Prefixes of links that show no text: files and categories."""
        return tuple(sorted(name for key in (-2, 6, 14) for name in self.names[key]))

    def speaks(self, code: str) -> None:
        """The first code that is known is the language: of the database, of the address, of the text."""
        code = code.lower().partition("-")[0]
        if not self.language and code in languages():
            self.language = code

    def namespace_of(self, title: str) -> int:
        """By the title's prefix, for dumps older than <ns>."""
        prefix = title.partition(":")[0].strip().lower() if ":" in title else ""
        return next((key for key, names in self.names.items() if prefix in names), 0)


class _Reader:
    """expat's handlers; complete pages wait in `pages`."""

    def __init__(self, name: str, site: _Site, encoding: str | None) -> None:
        self.name, self.site, self.pages = name, site, list[_Page]()
        self._page, self._key = _Page(), 0
        self._path: list[str] = []
        self._pieces: list[str] = []
        self._size = 0
        self.parser = parser = expat.ParserCreate(encoding)
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        what = "a DOCTYPE or entity declaration, which no MediaWiki dump has"
        refuse = functools.partial(self._refuse, what, "give the dump as published")
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        path = self._path
        if not path:
            if name != "mediawiki":
                self._refuse(f"the root element is <{name}>", "give a MediaWiki dump, <mediawiki>")
            self._text_language = attributes.get("xml:lang", "")
        parent = path[-1] if path else ""
        path.append(name)
        if name == "page":
            self._page = _Page()
            self.site.speaks(self._text_language)
        elif name == "redirect" and parent == "page":
            self._page.redirect = True
        elif (parent, name) in _READ:
            if name == "namespace":
                self._key = self._number(attributes.get("key", ""), "namespace key")
            self._pieces, self._size = [], 0
            self.parser.CharacterDataHandler = self._characters

    def _characters(self, text: str) -> None:
        self._size += len(text)
        self._pieces.append(text)
        if self._size > MAX_PAGE_CHARACTERS:
            self._pieces = []

    def _end(self, name: str) -> None:
        self._path.pop()
        if name == "page":
            page = self._page
            if page.namespace is None:
                page.namespace = self.site.namespace_of(page.title)
            self.pages.append(page)
            self._page = _Page()
        elif self._path and (self._path[-1], name) in _READ:
            self.parser.CharacterDataHandler = None
            text, self._pieces = "".join(self._pieces), []
            self._take(name, text)

    def _take(self, name: str, text: str) -> None:
        page = self._page
        if name == "text":
            page.text, page.too_large = text, self._size > MAX_PAGE_CHARACTERS
        elif name == "title":
            page.title = " ".join(text.split())
        elif name == "ns":
            page.namespace = self._number(text, "<ns>")
        elif name == "model":
            page.model = text.strip()
        elif name == "dbname":
            self.site.speaks(re.sub(r"wik\w+$", "", text.strip()))
        elif name == "base":
            self.site.speaks(re.sub(r"^\s*(?:https?:)?//([\w-]+)\..*", r"\1", text.strip()))
        elif text:
            self.site.names.setdefault(self._key, []).append(text.strip().lower())

    def _number(self, text: str, what: str) -> int:
        try:
            return int(text)
        except ValueError:
            self._refuse(f"{what} {text[:40]!r} is not a number", "fetch the file again")

    def _refuse(self, what: str, fix: str, *_: object) -> NoReturn:
        at = f"line {self.parser.CurrentLineNumber}, column {self.parser.CurrentColumnNumber}"
        raise InputError(f"input {self.name}: {what} ({at}); {fix}")


def _read_pages(
    name: str, stream: IO[bytes], site: _Site, errors: str = "strict", replaced: Callable[[int], object] = abs
) -> Iterator[_Page]:
    """The pages in order; `site` is filled before the first. errors="replace" makes U+FFFD of bytes that are not UTF-8, of
    which `replaced` is told how many.
    InputError: broken or cut off XML or compression, a DOCTYPE, markup of more than 16 MiB in one piece."""
    replace = errors == "replace"
    reader = _Reader(name, site, "utf-8" if replace else None)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    fed, last = 0, False
    with naming_errors(name):
        while not last:
            chunk = stream.read(_CHUNK_BYTES)
            last = not chunk
            if replace:
                text = decoder.decode(chunk)
                replaced(text.count("\ufffd") - chunk.count("\ufffd".encode()))
                chunk = text.encode()
            try:
                reader.parser.Parse(chunk, last)
            except expat.ExpatError as error:
                at = f"at line {error.lineno}, column {error.offset} ({expat.errors.messages[error.code]})"
                raise InputError(f"input {name}: broken XML {at}; fetch the file again") from error
            fed += len(chunk)
            if not last and fed - reader.parser.CurrentByteIndex > _MAX_TOKEN_BYTES:
                what = f"more than {_MAX_TOKEN_BYTES} bytes from byte {reader.parser.CurrentByteIndex}"
                raise InputError(f"input {name}: one tag or comment of {what}; fetch the file again")
            yield from reader.pages
            reader.pages.clear()


_TEMPLATE = re.compile(r"\{\{([^{}|<\[\n]{2,120}+)(?:\||\}\}|\n)")
_NAME = re.compile(r"(?:.+[ -])?disambig(?:uation)?(?: page)?(?:[ -]cleanup)?")  # not "disambiguation needed"
_TITLE = re.compile(rf"\((?:{'|'.join(map(re.escape, words_of('titles')))})\)$", re.IGNORECASE)


def _is_disambiguation(title: str, wikitext: str) -> bool:
    """By a template, the magic word __DISAMBIG__ or the end of the title."""
    return bool(_TITLE.search(title)) or (_is_marked(wikitext) and _is_marked(cut_extensions(wikitext)[0]))


def _is_marked(wikitext: str) -> bool:
    if "__DISAMBIG__" in wikitext:
        return True
    for found in _TEMPLATE.finditer(wikitext):
        namespace, _, name = found[1].rpartition(":")
        name = name.replace("_", " ").strip().lower()
        is_function = namespace.isupper() or namespace.startswith("#")  # {{DEFAULTSORT:...}}, {{#if:...}}
        if (name in words_of("meanings") or _NAME.fullmatch(name)) and not is_function:
            return True
    return False


CHUNK_CHARACTERS = 512 * 1024
_Pages = list[tuple[str, str]]
_Wiki = tuple[tuple[str, ...], str, tuple[str, ...], Pairs, bool]  # of wikitext.converter
_Converted = list[tuple[str, list[str], Lost]]


def read_articles(
    path: Path,
    errors: str,
    num_proc: int,
    dropped: dict[str, int],
    advance: Callable[[int], object],
    leave: Leave = ignore,
    templates: Pairs = (),
    drop_holes: bool = True,
    lost: Lost | None = None,
    replaced: Callable[[int], object] = abs,
) -> Iterator[list[str]]:
    """[title, paragraph, ...] of every article in a dump or a folder of them. Counts in `dropped`, by reason, the pages
    that are none: other_namespace, redirect, disambiguation, not_wikitext (another content model), too_large (more than
    10 million characters), empty (no prose). `advance` and `leave` as in `members`, `templates` and `drop_holes` as in
    `Source`. Adds to `lost` what the articles lost. `replaced` as in `_read_pages`.

    InputError: damaged input, a process that was killed."""

    def drop(reason: str) -> None:
        dropped[reason] = dropped.get(reason, 0) + 1

    chunks = _chunks(path, errors, drop, advance, leave, (templates, drop_holes), replaced)
    for reason, document, less in itertools.chain.from_iterable(_converted(chunks, path, num_proc)):
        if lost is not None:
            lost.add(less)
        if reason:
            drop(reason)
        else:
            yield document


def _chunks(
    path: Path,
    errors: str,
    drop: Callable[[str], None],
    advance: Callable[[int], object],
    leave: Leave,
    options: tuple[Pairs, bool],
    replaced: Callable[[int], object],
) -> Iterator[tuple[_Wiki, _Pages]]:
    """(the wiki, [title, wikitext] of pages that may be articles), of one file each."""
    for name, stream in members(path, advance, leave):
        if name != str(path) and b"<mediawiki" not in stream.peek():
            leave(name, form_of(stream) or "no dump")  # an index or checksums beside the dumps
            continue
        site = _Site()
        chunk: _Pages = []
        size = 0
        for page in _read_pages(name, stream, site, errors, replaced):
            if reason := _no_article(page):
                drop(reason)
                continue
            chunk.append((page.title, page.text))
            size += len(page.text) + 200  # so that a chunk of empty pages ends, too
            if size >= CHUNK_CHARACTERS:
                yield (site.invisible(), site.language, tuple(site.names[10]), *options), chunk
                chunk, size = [], 0
        if chunk:
            yield (site.invisible(), site.language, tuple(site.names[10]), *options), chunk


def _no_article(page: _Page) -> str:
    """Why the page is dropped, "" where that cannot be said without looking for it in all of its text."""
    if page.namespace != 0:
        return "other_namespace"
    if page.redirect or (page.text.lstrip()[:1] in ("#", "＃") and _redirect().match(page.text)):
        return "redirect"
    if page.model != "wikitext":
        return "not_wikitext"
    return "too_large" if page.too_large else ""


@functools.cache
def _redirect() -> re.Pattern[str]:
    """For dumps without <redirect>."""
    return re.compile(rf"\s*[#＃](?:{'|'.join(sorted(words_of('redirect')))})[^\w\n]*\[\[", re.IGNORECASE)


def _convert(chunk: tuple[_Wiki, _Pages]) -> _Converted:
    """(reason to drop it or "", [title, paragraph, ...], what these lost) of every page."""
    wiki, pages = chunk
    converted: _Converted = []
    for title, text in pages:
        meanings, lost = _is_disambiguation(title, text), Lost()
        paragraphs = [] if meanings else converter(*wiki).paragraphs(text, title, lost)
        reason = "disambiguation" if meanings else "" if paragraphs else "empty"
        converted.append((reason, [title, *paragraphs], lost))
    return converted


def _converted(chunks: Iterator[Any], path: Path, num_proc: int) -> Iterator[_Converted]:
    if num_proc == 1:
        yield from map(_convert, chunks)
        return
    waiting: deque[Future[_Converted]] = deque()
    pool = ProcessPoolExecutor(num_proc, initializer=_watch_parent)
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_convert, chunk))
            if len(waiting) > 2 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        fix = "give a smaller --num_proc"
        raise InputError(f"input {path}: a process that converts pages was killed (out of memory?); {fix}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _watch_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
