"""Readers: every kind of corpus becomes a stream of documents, one line of text each.

A document is a str without line breaks: its paragraphs stripped and joined by one space. That is the form of the
pinned evaluation, so that held-out blocks made here equal those it makes from the same text.
"""

import itertools
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from data_prep.books import book_lines
from data_prep.extracted import json_line_texts, text_paragraphs, wikiextractor_articles
from data_prep.files import files_below, is_archive, lines, members, plain_name

KINDS = ("auto", "text", "books", "wikiextractor", "mediawiki", "docstrings", "dataset", "jsonl")
# A document is held in memory while it is tokenised; a longer one (a dump without blank lines) is cut at a line end.
MAX_DOCUMENT_CHARACTERS = 4_000_000
_DATASET_SUFFIXES = (".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".json")
_RANK_NAME = re.compile(r"\d+\.jsonl")  # as datatrove names its files, which need not have the same columns
_TEXT_NAME = re.compile(r"\.txt$|^wiki_\d+$")
_XML_HEAD = re.compile(r"\s*<(?:\?xml|!DOCTYPE|!--|mediawiki\b)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Source:
    """Where documents come from. `path`: a file, folder, archive, `datasets` name, or for docstrings "installed" (this
    interpreter's packages) or a folder of Python files. kind "auto" is replaced by the kind found. `cache_dir` takes
    what the `datasets` library must keep on disk. `num_proc`: processes that convert the pages of a MediaWiki dump; the
    documents do not depend on it. `max_documents`: it ends behind so many. `dropped`: pages of a dump that the last
    reading left out, by reason. InputError: nothing there, or a kind that it cannot be."""

    path: str
    kind: str = "auto"
    errors: str = "strict"
    dataset_config: str | None = None
    dataset_split: str = "train"
    text_column: str = "text"
    cache_dir: Path | None = None
    num_proc: int = 1
    max_documents: int | None = None
    dropped: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r} is unknown; give one of {', '.join(KINDS)}")
        if self.kind == "auto":
            self.kind = find_kind(self.path)

    def documents(self) -> Generator[str, None, None]:
        """The documents in order, with a bar of what was read; InputError if there is not one."""
        empty = True
        self.dropped.clear()
        # Averaged over the whole reading: in between, others work with what was read.
        with tqdm(desc=Path(self.path).name, total=self._bytes(), unit="B", unit_scale=True, smoothing=0) as bar:
            for document in itertools.islice(self._read(bar.update), self.max_documents):
                empty = False
                if bar.total is None:
                    bar.update(len(document))
                yield document
        if empty:
            raise InputError(f"input {self.path}: no text found when read as {self.kind}; check the file or --kind")

    def _bytes(self) -> int | None:
        """How much there is to read from the disk; None where that cannot be known."""
        if self.kind in ("dataset", "docstrings"):
            return None
        return sum(file.stat().st_size for file in files_below(Path(self.path)) if file.is_file())

    def _read(self, told: Callable[[int], object]) -> Iterator[str]:
        if self.kind == "dataset":
            from data_prep.dataset_rows import read_rows  # late: a second of import

            where = (self.path, self.dataset_config, self.dataset_split, self.text_column, self.cache_dir)
            return (
                document for text in read_rows(*where) for document in paragraphs_to_documents(text_paragraphs(text))
            )
        if self.kind == "docstrings":
            from data_prep.docstrings import installed_roots, read_docstrings  # late: only this kind needs it

            return read_docstrings(installed_roots() if self.path == "installed" else [Path(self.path)])
        if self.kind == "mediawiki":
            from data_prep.mediawiki import read_articles  # late: only this kind needs the parser

            articles = read_articles(Path(self.path), self.errors, self.num_proc, self.dropped, told)
            return (document for article in articles for document in paragraphs_to_documents(article))
        readers = {"text": _text_file, "books": _book_file, "wikiextractor": _extracted, "jsonl": self._json_lines}
        reader = readers[self.kind]
        return (
            document
            for name, stream in members(Path(self.path), told)
            for document in reader(name, lines(name, stream, self.errors))
        )

    def _json_lines(self, name: str, text: Iterable[str]) -> Iterator[str]:
        if not plain_name(name).endswith(".jsonl"):  # statistics or logs beside the texts
            return iter(())
        texts = json_line_texts(name, text, self.text_column)
        return (document for paragraphs in texts for document in paragraphs_to_documents(paragraphs))


def read_documents(path: str | Path, kind: str = "auto", **options: Any) -> Iterator[str]:
    """Streams the documents at `path`; `options` are the other fields of `Source`."""
    return Source(str(path), kind, **options).documents()


def paragraphs_to_documents(paragraphs: Iterable[str]) -> Iterator[str]:
    """Splits at blank lines, strips the lines in between and joins each group with spaces."""
    document: list[str] = []
    size = 0
    for paragraph in paragraphs:
        paragraph = paragraph.strip()
        if paragraph and size < MAX_DOCUMENT_CHARACTERS:
            document.append(paragraph)
            size += len(paragraph)
        elif document:
            yield " ".join(document)
            document = [paragraph] if paragraph else []
            size = len(paragraph)
    if document:
        yield " ".join(document)


def find_kind(path: str) -> str:
    """The kind of corpus at `path`, from names first and then from the first 200 lines; InputError if undecidable."""
    here = Path(path)
    if not here.exists():
        if path == "installed":
            return "docstrings"
        if _HUB_NAME.fullmatch(path) and not here.parent.exists():
            return "dataset"
        raise InputError(f"input {path}: no such file or folder; give a path that exists")
    texts: list[str] = []
    others: list[str] = []
    data: set[str] = set()
    for name, stream in members(here):
        plain = plain_name(name)
        if plain.endswith(_DATASET_SUFFIXES):
            data.add("jsonl" if _RANK_NAME.fullmatch(plain) else "dataset")
            continue
        head = [line for line, _ in zip(lines(name, stream, "replace"), range(200), strict=False)]
        if _is_dump("\n".join(head)):  # what lies beside it is its index
            return "mediawiki"
        (texts if _TEXT_NAME.search(plain) else others).append(_kind_of_lines(head))
        if len(texts) == 3:
            break
    if not texts and data:  # beside texts, a table is their index
        return data.pop() if len(data) == 1 else "dataset"
    kinds = texts or others
    if not kinds:
        raise InputError(f"input {path}: the folder holds no files; give one with text")
    many = here.is_dir() or is_archive(here.name)
    return max(kinds, key=kinds.count) if many or kinds[0] != "books" else "text"


def _is_dump(head: str) -> bool:
    """Whether a file that begins like this is a MediaWiki dump, or claims to be one behind a DOCTYPE."""
    return _XML_HEAD.match(head) is not None and "<mediawiki" in head


def _kind_of_lines(head: list[str]) -> str:
    """wikiextractor by its marks; text (title, then one long line per paragraph, blank line between documents) against
    books (blank lines between paragraphs, or hard-wrapped lines) by whether most groups of lines hold a long line that
    follows another line."""
    first = next((line.strip() for line in head if line.strip()), "")
    if first.startswith("<doc ") or (first.startswith("{") and '"text"' in first):
        return "wikiextractor"
    groups = [group.split("\n") for group in re.split(r"\n\s*\n", "\n".join(head).strip())]
    titled = sum(any(len(line) > 100 for line in group[1:]) for group in groups)
    return "text" if 2 * titled >= len(groups) else "books"


def _text_file(name: str, text: Iterable[str]) -> Iterator[str]:
    return paragraphs_to_documents(text)


def _book_file(name: str, text: Iterable[str]) -> Iterator[str]:
    if not plain_name(name).endswith(".txt"):  # an index or a licence beside the books
        return iter(())
    return paragraphs_to_documents(book_lines(text))


def _extracted(name: str, text: Iterable[str]) -> Iterator[str]:
    articles = wikiextractor_articles(name, text)
    return (document for article in articles for document in paragraphs_to_documents(article))
