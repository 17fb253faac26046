"""MediaWiki export XML (schema 0.3 to 0.11) as a stream of pages; a page is all that is held in memory."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, NoReturn
from xml.parsers import expat

from budget_trainer.core.errors import InputError
from data_prep.files import naming_errors

# MediaWiki saves no page of more than 2 MiB; the text of a longer one is not kept.
MAX_PAGE_CHARACTERS = 10_000_000
_MAX_TOKEN_BYTES = 16 * 1024**2  # one tag or comment; expat holds it until its end
_CHUNK_BYTES = 256 * 1024
# What every wiki understands, whatever its language; -2 Media, 6 File, 14 Category. The rest is for dumps without <ns>.
_NAMES = {-2: ["media"], 6: ["file", "image"], 14: ["category"], 1: ["talk"], 2: ["user"], 3: ["user talk"]}
_NAMES |= {4: ["wikipedia", "project"], 8: ["mediawiki"], 10: ["template"], 12: ["help"], 100: ["portal"]}
_NAMES |= {828: ["module"], 118: ["draft"]}
_INVISIBLE = (-2, 6, 14)
# Elements whose text is read, with their parents: <text> of other slots (below <content>) is not wikitext.
_READ = {("page", "title"), ("page", "ns"), ("revision", "model"), ("revision", "text"), ("namespaces", "namespace")}


@dataclass
class Page:
    """`text`: wikitext of the last revision in the dump, empty where `too_large`. `namespace`: 0 for articles."""

    title: str = ""
    namespace: int | None = None
    text: str = ""
    redirect: bool = False
    model: str = "wikitext"
    too_large: bool = False


@dataclass
class Site:
    """What the dump says about its wiki. `names`: lower-case namespace names and aliases by number."""

    names: dict[int, list[str]] = field(default_factory=lambda: {key: list(names) for key, names in _NAMES.items()})

    def invisible(self) -> tuple[str, ...]:
        """Prefixes of links that show no text: files and categories."""
        return tuple(sorted(name for key in _INVISIBLE for name in self.names[key]))

    def namespace_of(self, title: str) -> int:
        """By the title's prefix, for dumps older than <ns>."""
        prefix = title.partition(":")[0].strip().lower() if ":" in title else ""
        return next((key for key, names in self.names.items() if prefix in names), 0)


class _Reader:
    """expat's handlers; complete pages wait in `pages`."""

    def __init__(self, name: str, site: Site, encoding: str | None) -> None:
        self.name = name
        self.site = site
        self.pages: list[Page] = []
        self._page = Page()
        self._path: list[str] = []
        self._pieces: list[str] = []
        self._size = 0
        self._key = 0
        self.parser = parser = expat.ParserCreate(encoding)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._refuse_declaration
        parser.EntityDeclHandler = self._refuse_declaration

    def feed(self, data: bytes, last: bool = False) -> None:
        """InputError, naming line and column, for what is not XML."""
        try:
            self.parser.Parse(data, last)
        except expat.ExpatError as error:
            raise InputError(
                f"input {self.name}: broken XML at line {error.lineno}, column {error.offset} "
                f"({expat.errors.messages[error.code]}); fetch the file again"
            ) from error

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        path = self._path
        if not path and name != "mediawiki":
            self._refuse(f"the root element is <{name}>", "give a MediaWiki dump, <mediawiki>")
        parent = path[-1] if path else ""
        path.append(name)
        if name == "page":
            self._page = Page()
        elif name == "redirect" and parent == "page":
            self._page.redirect = True
        elif (parent, name) in _READ:
            if name == "namespace":
                self._key = self._number(attributes.get("key", ""), "namespace key")
            self._pieces, self._size = [], 0
            self.parser.CharacterDataHandler = self._characters

    def _characters(self, text: str) -> None:
        self._size += len(text)
        if self._size <= MAX_PAGE_CHARACTERS:
            self._pieces.append(text)
        else:
            self._pieces = []

    def _end(self, name: str) -> None:
        self._path.pop()
        if name == "page":
            self._close_page()
        elif self._path and (self._path[-1], name) in _READ:
            self.parser.CharacterDataHandler = None
            self._take(name, "".join(self._pieces))
            self._pieces = []

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
        elif text:
            self.site.names.setdefault(self._key, []).append(text.strip().lower())

    def _close_page(self) -> None:
        page = self._page
        if page.namespace is None:
            page.namespace = self.site.namespace_of(page.title)
        self.pages.append(page)
        self._page = Page()

    def _number(self, text: str, what: str) -> int:
        try:
            return int(text)
        except ValueError:
            self._refuse(f"{what} {text[:40]!r} is not a number", "fetch the file again")

    def _refuse_declaration(self, *_: object) -> None:
        self._refuse("a DOCTYPE or entity declaration, which no MediaWiki dump has", "give the dump as published")

    def _refuse(self, what: str, fix: str) -> NoReturn:
        at = f"line {self.parser.CurrentLineNumber}, column {self.parser.CurrentColumnNumber}"
        raise InputError(f"input {self.name}: {what} ({at}); {fix}")


def read_pages(name: str, stream: IO[bytes], site: Site, errors: str = "strict") -> Iterator[Page]:
    """The pages in order; `site` is filled before the first. errors="replace" makes U+FFFD of bytes that are not UTF-8.
    InputError: broken or cut off XML or compression, a DOCTYPE, markup of more than 16 MiB in one piece."""
    replace = errors == "replace"
    reader = _Reader(name, site, "utf-8" if replace else None)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    fed = 0
    with naming_errors(name):
        while chunk := stream.read(_CHUNK_BYTES):
            chunk = decoder.decode(chunk).encode() if replace else chunk
            reader.feed(chunk)
            fed += len(chunk)
            if fed - reader.parser.CurrentByteIndex > _MAX_TOKEN_BYTES:
                raise InputError(
                    f"input {name}: one tag or comment of more than {_MAX_TOKEN_BYTES} bytes from byte "
                    f"{reader.parser.CurrentByteIndex}; fetch the file again"
                )
            yield from reader.pages
            reader.pages.clear()
        reader.feed(b"", last=True)
    yield from reader.pages
