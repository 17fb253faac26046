"""Readers: every kind of corpus becomes a stream of documents, one line of text each.

A document is a str without line breaks: its paragraphs stripped and joined by one space. That is the form of the
pinned evaluation, so that held-out blocks made here equal those it makes from the same text.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from data_prep.files import ARCHIVES, files_below, lines, members, plain_name
from data_prep.options import Options, flag
from data_prep.prose import read_docstrings

KINDS = ("auto", "text", "books", "wikiextractor", "mediawiki", "docstrings", "dataset", "jsonl")
# A document is held in memory while it is tokenised; a longer one (a dump without blank lines) is cut at a line end.
MAX_DOCUMENT_CHARACTERS = 4_000_000
_DATASET_SUFFIXES = (".parquet", ".arrow", ".csv", ".tsv", ".jsonl", ".json")


@dataclass
class Source(Options):
    """Where documents come from. `path`: a file, folder, archive, `datasets` name, or for docstrings "installed" (this
    interpreter's packages) or a folder of Python files. kind "auto" is replaced by the kind found. `cache_dir` takes
    what the `datasets` library must keep on disk. `num_proc`: processes that convert the pages of a MediaWiki dump; the
    documents do not depend on it. `dropped`: pages of a dump that the last reading left out, by reason. InputError:
    nothing there, or a kind that it cannot be."""

    path: str
    kind: str = flag("auto", "form of the input; auto looks and says what it found", KINDS)
    errors: str = flag("strict", "what to do with bytes that are not UTF-8", ("strict", "replace"))
    dataset_config: str | None = flag(None, "configuration of a `datasets` name, e.g. 20231101.en")
    dataset_split: str = flag("train", "split of a `datasets` name or folder")
    text_column: str = flag("text", "column of a `datasets` name or folder that holds the text")
    cache_dir: Path | None = None
    num_proc: int = 1
    max_documents: int | None = flag(None, "it ends behind so many")
    dropped: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "auto":
            self.kind = _find_kind(self.path)

    def documents(self) -> Generator[str, None, None]:
        """The documents in order, with a bar of what was read; InputError if there is not one."""
        empty = True
        self.dropped.clear()
        # Averaged over the whole reading: in between, others work with what was read.
        size = None
        if self.kind not in ("dataset", "docstrings"):
            size = sum(file.stat().st_size for file in files_below(Path(self.path)) if file.is_file())
        with tqdm(desc=Path(self.path).name, total=size, unit="B", unit_scale=True, smoothing=0) as bar:
            found = (document for text in self._texts(bar.update) for document in _split_at_blank_lines(text))
            for document in itertools.islice(found, self.max_documents):
                empty = False
                if bar.total is None:
                    bar.update(len(document))
                yield document
        if empty:
            raise InputError(f"input {self.path}: no text found when read as {self.kind}; check the file or --kind")

    def counted(self, entries: list[dict[str, Any]]) -> Iterator[str]:
        """The documents; appends the manifest's entry for them to `entries`."""
        entry: dict[str, Any] = {"path": self.path, "kind": self.kind, "documents": 0, "text_bytes": 0}
        entries.append(entry)
        for document in self.documents():
            entry["documents"] += 1
            entry["text_bytes"] += len(document.encode())
            yield document
        if self.dropped:
            entry["dropped"] = dict(self.dropped)

    def _texts(self, advance: Callable[[int], object]) -> Iterator[Iterable[str]]:
        """The lines of each file, or of each article or row where these are apart; `advance` as in `members`."""
        path = Path(self.path)
        if self.kind == "docstrings":
            yield from ([document] for document in read_docstrings(None if self.path == "installed" else [path]))
        elif self.kind == "dataset":
            yield from map(_lines_of_text, self._dataset_rows())
        elif self.kind == "mediawiki":
            from data_prep.mediawiki import read_articles  # late: only this kind needs the parser

            yield from read_articles(path, self.errors, self.num_proc, self.dropped, advance)
        else:
            for name, stream in members(path, advance):
                content, plain = lines(name, stream, self.errors), plain_name(name)
                if self.kind == "text":
                    yield content
                elif self.kind == "wikiextractor":
                    yield from _wikiextractor_articles(name, content)
                elif self.kind == "books" and plain.endswith(".txt"):  # not an index or a licence beside the books
                    yield _book_lines(content)
                elif self.kind == "jsonl" and plain.endswith(".jsonl"):  # not statistics or logs beside the texts
                    for number, line in enumerate(content, 1):
                        if line.strip():
                            fix = "check the file or text_column"
                            yield _paragraphs_of_object(name, number, line, self.text_column, fix)

    def _dataset_rows(self) -> Iterator[str]:
        """The texts in the column, "" where a row has none; streamed. InputError: what cannot be reached or is not there."""
        import datasets  # late: a second of import

        path, split, column = self.path, self.dataset_split, self.text_column
        try:
            if (Path(path) / "state.json").exists():  # written by save_to_disk
                rows = datasets.load_from_disk(path)
            else:
                cache = None if self.cache_dir is None else str(self.cache_dir)
                builder = datasets.load_dataset_builder(path, self.dataset_config, cache_dir=cache)
                rows = builder.as_streaming_dataset(split=split)
                # Of Parquet only the text is fetched; and files whose other columns differ in type, as datatrove's
                # "metadata" may, could not be read together.
                if getattr(builder.config, "columns", "") is None and column in (rows.features or ()):
                    builder.config.columns = [column]
                    rows = builder.as_streaming_dataset(split=split)
            for row in rows:
                if column not in row:
                    raise InputError(f"text_column {column!r} is not in {path}; it has {sorted(row)}")
                text = row[column]
                if not isinstance(text, str | None):
                    kind = type(text).__name__
                    raise InputError(f"text_column {column!r} of {path} holds {kind}, no text; name another")
                yield text or ""
        except InputError:
            raise
        except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            hint = " (pip install zstandard)" if "zstd" in reason else ""
            what = f"the dataset (config {self.dataset_config}, split {split}) cannot be read: {reason[:300]}{hint}"
            raise InputError(f"input {path}: {what}; check input, dataset_config and dataset_split") from error


def _split_at_blank_lines(paragraphs: Iterable[str]) -> Iterator[str]:
    """Splits at blank lines, strips the lines in between and joins each group with spaces."""
    document: list[str] = []
    size = 0
    for paragraph in itertools.chain(map(str.strip, paragraphs), [""]):
        if document and (not paragraph or size >= MAX_DOCUMENT_CHARACTERS):
            yield " ".join(document)
            document, size = [], 0
        if paragraph:
            document.append(paragraph)
            size += len(paragraph)


def _find_kind(path: str) -> str:
    """The kind of corpus at `path`, from names first and then from the first 200 lines; InputError if undecidable."""
    here = Path(path)
    if not here.exists():
        if path == "installed":
            return "docstrings"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not here.parent.exists():
            return "dataset"
        raise InputError(f"input {path}: no such file or folder; give a path that exists")
    texts: list[str] = []
    others: list[str] = []
    data: set[str] = set()
    for name, stream in members(here):
        plain = plain_name(name)
        if plain.endswith(_DATASET_SUFFIXES):
            # datatrove names its files by rank, which need not have the same columns.
            data.add("jsonl" if re.fullmatch(r"\d+\.jsonl", plain) else "dataset")
            continue
        head = list(itertools.islice(lines(name, stream, "replace"), 200))
        start = "\n".join(head)
        if re.match(r"\s*<(?:\?xml|!DOCTYPE|!--|mediawiki\b)", start) and "<mediawiki" in start:
            return "mediawiki"  # or what claims to be; beside it lies its index
        (texts if re.search(r"\.txt$|^wiki_\d+$", plain) else others).append(_kind_of_lines(head))
        if len(texts) == 3:
            break
    if not texts and data:  # beside texts, a table is their index
        return data.pop() if len(data) == 1 else "dataset"
    kinds = texts or others
    if not kinds:
        raise InputError(f"input {path}: the folder holds no files; give one with text")
    many = here.is_dir() or here.name.endswith(ARCHIVES)
    return max(kinds, key=kinds.count) if many or kinds[0] != "books" else "text"


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


def _wikiextractor_articles(name: str, lines: Iterable[str]) -> Iterator[list[str]]:
    """The paragraphs of each article: <doc ...> paragraphs </doc>, or one JSON object with "text" per line; both may stand in
    one folder. InputError naming the line that is neither."""
    article: list[str] | None = None  # the lines since <doc>
    for number, line in enumerate(lines, 1):
        if line.startswith("<doc "):
            article = []
        elif line.strip() == "</doc>" and article is not None:
            yield list(filter(str.strip, article))
            article = None
        elif article is not None:
            article.append(line)
        elif line.startswith("{"):
            yield _paragraphs_of_object(name, number, line, "text", "extract anew")
        elif line.strip():
            raise InputError(f"input {name}: line {number} stands outside <doc>...</doc>; check the file or --kind")
    if article is not None:
        raise InputError(f"input {name}: the last <doc> is not closed (cut off?); extract or fetch it again")


def _paragraphs_of_object(name: str, number: int, line: str, column: str, fix: str) -> list[str]:
    try:
        return _lines_of_text(json.loads(line)[column] or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'input {name}: line {number} is not a JSON object with "{column}"; {fix}') from error


def _lines_of_text(text: str) -> list[str]:
    """The lines that are not blank, in characters that UTF-8 can hold (JSON may hold half a surrogate pair)."""
    text = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return [line for line in text.split("\n") if line.strip()]


_HEAD_ENDS = re.compile(
    r"(?i)\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG|\*END ?\*? ?THE SMALL PRINT|\*\*\* ?START: FULL LICENSE"
)
_BOOK_ENDS = re.compile(
    r"(?i)\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|(?:This is the )?End of (?:the |this )?Project Gutenberg(?:['’]s)? "
)
_CREDIT = re.compile(r"(?i)(?:E-text |Etext |This (?:e-?text|ebook) was )?(?:Produced|Prepared|Transcribed) by ")


def _book_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a book that are not blank, without header and licence where it carries Gutenberg's marks: to the last of
    the header's in the first 1000 lines, with the credits ("Produced by ...") behind it, and from that of the end on."""
    lines = iter(lines)
    head = list(itertools.islice(lines, 1000))  # a header ends in these; older small print takes 300
    marks = [number for number, line in enumerate(head) if _HEAD_ENDS.match(line.strip())]
    if marks:
        head = list(itertools.dropwhile(lambda line: not line.strip(), head[marks[-1] + 1 :]))
        if head and _CREDIT.match(head[0].strip()):  # a paragraph that says who made the electronic text
            head = list(itertools.dropwhile(str.strip, head))
    for line in itertools.chain(head, lines):
        if _BOOK_ENDS.match(line.strip()):
            return
        if line.strip():
            yield line
