"""Readers: every kind of corpus becomes a stream of documents, one line of text each.

A document is a str without line breaks: its paragraphs stripped and joined by one space. That is the form of the
pinned evaluation, so that held-out blocks made here equal those it makes from the same text.
"""

from __future__ import annotations

import functools
import html
import itertools
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from data_prep.files import count_unread, files_below, form_of, lines, members, plain_name, unread_line
from data_prep.options import Options, flag
from data_prep.prose import read_docstrings
from data_prep.tables import JSON_LINES, TABLES, NoColumn, column_texts, json_text, parsed_json, table_form
from data_prep.templates import Lost, check_pattern

KINDS = ("auto", "text", "books", "wikiextractor", "mediawiki", "docstrings", "dataset", "jsonl")
# A document is held in memory while it is tokenised; a longer one (a dump without blank lines) is cut at a line end.
MAX_DOCUMENT_CHARACTERS = 4_000_000
# What lies beside texts. It is read where nothing else is there.
_BESIDE = {
    "markdown": "md markdown rst",
    "table": "csv tsv json jsonl ndjson jl",
    "markup": "xml html htm xhtml tex bib",
    "program": "py ipynb js css sh c h cpp java r pl sql yaml yml toml ini cfg lock md5 sha1 sha256 sha512 log",
}
_BESIDE_SUFFIX = {f".{suffix}": what for what, suffixes in _BESIDE.items() for suffix in suffixes.split()}
_ABOUT = re.compile(r"(?i)(?:readme|licen[cs]e|copying|change(?:log|s)|(?:md5|sha\d*)sums?)(?:[._-]\w{1,8}){0,2}")
# A dataset's splits by the names of its files, as the `datasets` library takes them.
_SPLIT = re.compile(
    r"(?i)(?:^|[\W_\d])(?:(train(?:ing)?)|(test(?:ing)?|eval(?:uation)?)|(dev|val(?:id(?:ation)?)?))(?=[\W_\d]|$)"
)
_FILE = re.compile(
    r"(?i).*\.(?:txt|csv|tsv|jsonl?|ndjson|jl|parquet|arrow|xml|zip|tar|t?[gx]z|bz2|zst)"
)  # no Hub's name


@dataclass
class Source(Options):
    """Where documents come from. `path`: a file, folder, archive, `datasets` name, or for docstrings "installed" (this
    interpreter's packages) or a folder of Python files. kind "auto" is replaced by the kind found. `cache_dir` takes
    what the `datasets` library must keep on disk. `num_proc`: processes that convert the pages of a MediaWiki dump; the
    documents do not depend on it. `documents_end`: of a text file. `dropped`: pages of a dump that the last reading left out,
    by reason. `account`: what it lost besides, in the types of JSON: files_not_read {number, by {reason: number}, names},
    replaced_characters, documents_cut, templates {left_out, sentences, with_a_hole, sentences_dropped, most {name: number}}.
    `templates`: patterns by a template's name, as in data_prep.templates. InputError: nothing there, a kind that it cannot be,
    an unknown encoding, or a pattern that is none."""

    path: str
    kind: str = flag("auto", "form of the input; auto looks and says what it found", KINDS)
    errors: str = flag("strict", "what to do with bytes that are not of the encoding", ("strict", "replace"))
    encoding: str = flag("utf-8", "of text files, CSV and JSON; a byte-order mark wins")
    documents_end: str = flag("blank", "what ends a document of a text file", ("blank", "lines"), name="documents")
    dataset_config: str | None = flag(None, "configuration of a `datasets` name, e.g. 20231101.en")
    dataset_split: str = flag("train", "split of a `datasets` name or folder")
    text_column: str = flag("text", "column of a dataset or table, or field of JSON (a.b: b in a), with the text")
    cache_dir: Path | None = None
    num_proc: int = 1
    max_documents: int | None = flag(None, "it ends behind so many")
    templates: dict | None = flag(
        None, "what templates of a MediaWiki dump show, by name; goes before what is known of them"
    )
    drop_holes: bool = flag(True, "drop sentences of a MediaWiki dump that lost words of a template or formula")
    dropped: dict[str, int] = field(default_factory=dict, init=False)
    account: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lost = Lost()
        for name, pattern in (self.templates or {}).items():
            check_pattern(str(name), pattern)
        try:
            b" ".decode(self.encoding, "replace")
        except (LookupError, ValueError):
            raise InputError(f"encoding {self.encoding!r} is unknown; give one of Python's, such as cp1252") from None
        if self.kind == "auto":
            self.kind = _find_kind(self.path, self.encoding)
            if self.documents_end == "lines" and self.kind == "books":
                self.kind = "text"
        if self.documents_end == "lines" and self.kind != "text":
            raise InputError(f"documents lines: only for kind text, and {self.path} is {self.kind}; leave it out")
        if self.templates and self.kind != "mediawiki":
            raise InputError(f"templates: only for kind mediawiki, and {self.path} is {self.kind}; leave it out")
        self._reading, self._unbroken = "", ""  # the file; what is said of one that may hold a document a line
        self._root = str(Path(self.path))
        self._leave = functools.partial(count_unread, self.account, self._root)
        self._replaced = functools.partial(self._count, "replaced_characters")

    def documents(self) -> Generator[str, None, None]:
        """The documents in order, with a bar of what was read; InputError if there is not one."""
        empty = True
        self.dropped.clear()
        self.account.clear()
        self._lost, self._unbroken = Lost(), ""
        # Averaged over the whole reading: in between, others work with what was read.
        size = None
        by_library = self.kind == "dataset" and self._is_for_library()
        if self.kind != "docstrings" and not by_library:
            size = sum(file.stat().st_size for file in files_below(Path(self.path)) if file.is_file())
        with tqdm(desc=Path(self.path).name, total=size, unit="B", unit_scale=True, smoothing=0) as bar:
            texts = map(_lines_of_text, self._dataset_rows()) if by_library else self._texts(bar.update)
            found = (document for text in texts for document in self._split(text))
            for document in itertools.islice(found, self.max_documents):
                empty = False
                if bar.total is None:
                    bar.update(len(document))
                yield document
        if self._lost.templates:
            self.account["templates"] = self._lost.account(self.drop_holes)
        if empty:
            left = f" ({unread_line(files)})" if (files := self.account.get("files_not_read")) else ""
            what = f"no text found when read as {self.kind}{left}"
            raise InputError(f"input {self.path}: {what}; check the file or --kind")
        if self._unbroken:
            print(f"{self.path}: {self._unbroken}")

    def counted(self, entries: list[dict[str, Any]]) -> Iterator[str]:
        """The documents; appends the manifest's entry for them to `entries`."""
        entry: dict[str, Any] = {"path": self.path, "kind": self.kind, "documents": 0, "text_bytes": 0}
        entries.append(entry)
        try:
            for document in self.documents():
                entry["documents"] += 1
                entry["text_bytes"] += len(document.encode())
                yield document
        finally:  # also where no more is wanted
            if self._lost.templates:
                self.account["templates"] = self._lost.account(self.drop_holes)
            entry |= self.losses()

    def losses(self) -> dict[str, Any]:
        """What the manifest's entry says of what the last reading left out; a key is there where there is something."""
        return {name: dict(value) for name in ("dropped", "account") if (value := getattr(self, name))}

    def _count(self, what: str, number: int = 1) -> None:
        if number:
            self.account[what] = self.account.get(what, 0) + number

    def _texts(self, advance: Callable[[int], object]) -> Iterator[Iterable[str]]:
        """The lines of each file, or of each article or row where these are apart; `advance` as in `members`."""
        path = Path(self.path)
        if self.kind == "docstrings":
            roots = None if self.path == "installed" else [path]
            yield from ([document] for document in read_docstrings(roots, leave=self._leave))
        elif self.kind == "mediawiki":
            from data_prep.mediawiki import read_articles  # late: only this kind needs the parser

            more = tuple((str(name), pattern) for name, pattern in (self.templates or {}).items())
            how = (path, self.errors, self.num_proc, self.dropped, advance, self._leave)
            yield from read_articles(*how, more, self.drop_holes, self._lost, self._replaced)
        elif self.kind in ("dataset", "jsonl"):
            yield from map(_lines_of_text, self._table_rows(advance))
        else:
            for name, stream in self._members(advance):
                content = self._lines(name, stream)
                self._reading = name
                if self.kind == "text":
                    yield content
                elif self.kind == "wikiextractor":
                    yield from _wikiextractor_articles(name, content)
                else:
                    yield _book_lines(content)

    def _lines(self, name: str, stream: BufferedReader) -> Iterator[str]:
        return lines(name, stream, self.errors, self.encoding, self.kind not in ("text", "books"), self._replaced)

    def _split(self, paragraphs: Iterable[str]) -> Iterator[str]:
        """Splits at blank lines, strips the lines in between and joins each group with spaces; or a document for each line."""
        if self.documents_end == "lines":
            yield from filter(None, map(str.strip, paragraphs))
            return
        document: list[str] = []
        size = number = ends = 0
        for paragraph in itertools.chain(map(str.strip, paragraphs), [""]):
            if document and (not paragraph or size >= MAX_DOCUMENT_CHARACTERS):
                yield " ".join(document)
                number, ends = number + len(document), ends + (not paragraph)
                self._count("documents_cut", int(bool(paragraph)))
                document, size = [], 0
            if paragraph:
                document.append(paragraph)
                size += len(paragraph)
        if self.kind == "text" and ends == 1 and number > 1000 and not self._unbroken:
            where = "" if self._reading == self._root else f"{plain_name(self._reading)}: "
            what = f"{number:,} lines and no blank line: one document; if each line is one, give --documents lines"
            self._unbroken = where + what

    def _members(self, advance: Callable[[int], object]) -> Iterator[tuple[str, BufferedReader]]:
        """What the kind reads of the files; `_leave` is told of the others. A file that was given itself is always read, and
        texts of any name where no name is one of a text."""
        path, found = Path(self.path), False
        for by_name in (True,) if self.kind in ("dataset", "jsonl") else (True, False):
            self.account.pop("files_not_read", None)
            for name, stream in members(path, advance, self._leave):
                if name != str(path):
                    reason = self._unfit(name, stream, by_name)
                elif reason := self._unfit(name, stream, False):
                    first = f"first bytes {stream.peek()[:4].hex(' ')}: {reason}"
                    wanted = "a table or JSON" if self.kind == "dataset" else "text"
                    raise InputError(f"input {path}: is no {wanted} ({first}); check the file, --kind or --encoding")
                if reason:
                    self._leave(name, reason)
                else:
                    found = True
                    yield name, stream
            if found:
                return

    @functools.cached_property
    def _nameless_split(self) -> str:
        """The split of files that name none: train, where none is named."""
        inside = (str(file.relative_to(self.path)) for file in files_below(Path(self.path)))
        tables = (file for file in inside if _FILE.fullmatch(file) and not plain_name(file).lower().endswith(".txt"))
        return "without a name" if any(map(_split_of, tables)) else "train"

    def _unfit(self, name: str, stream: BufferedReader, by_name: bool) -> str:
        """Why the kind does not read it, "" where it does."""
        form, plain = form_of(stream, self.encoding), plain_name(name)
        if self.kind == "dataset":
            if not table_form(name, stream, form):
                return form or "no table"
            split = _split_of(name.removeprefix(self._root)) or self._nameless_split
            return "" if not by_name or split == self.dataset_split else f"split {split}"
        if form or not by_name:
            return form
        if self.kind == "jsonl":
            return "" if JSON_LINES.search(plain) or table_form(name, stream, form) == "json" else "no JSON"
        suffix = Path(plain).suffix.lower()
        what = _BESIDE_SUFFIX.get(suffix, "about the files" if _ABOUT.fullmatch(plain) else "")
        return what or ("no .txt" if self.kind == "books" and suffix != ".txt" else "")

    def _table_rows(self, advance: Callable[[int], object]) -> Iterator[str]:
        """The texts of local tables, "" where a row has none."""
        path, column, split = Path(self.path), self.text_column, self.dataset_split
        missing, found = None, False
        for name, stream in self._members(advance):
            if name == str(path) and split != "train":
                raise InputError(f"dataset_split {split}: {path} is one file, without splits; leave it out")
            form = "json" if self.kind == "jsonl" else table_form(name, stream, form_of(stream, self.encoding))
            texts = column_texts(name, form, stream, self._lines(name, stream), column)
            try:
                first = next(texts, "")
            except NoColumn as error:
                if name == str(path) or (self.kind == "jsonl" and JSON_LINES.search(plain_name(name))):
                    raise
                missing = missing or error
                self._leave(name, f'no "{column}"')
                continue
            found = True
            yield first
            yield from texts
        if missing and not found:
            raise missing
        reasons = self.account.get("files_not_read", {"by": {}})["by"]
        splits = sorted(reason.removeprefix("split ") for reason in reasons if reason.startswith("split "))
        if splits and not found:
            raise InputError(f"dataset_split {split}: {path} has no file of it; it has {splits}")

    def _is_for_library(self) -> bool:
        """Whether `datasets` reads it: a name, and a folder of what it has saved, with a README of configurations, or without
        a table that is known here."""
        path = Path(self.path)
        if not path.exists() or self.dataset_config:
            return True
        if path.is_file() or "::" in str(path.resolve()):  # a chain of addresses to the library
            return False
        readme = path / "README.md"
        configured = readme.is_file() and re.match(r"(?ms)---\n.*?^configs:", readme.read_text("utf-8", "replace"))
        if configured or (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return True
        return not any(table_form(name, stream, form_of(stream)) for name, stream in members(path))

    def _dataset_rows(self) -> Iterator[str]:
        """The texts in the column, "" where a row has none; streamed. InputError: what cannot be reached or is not there."""
        path, split, column = self.path, self.dataset_split, self.text_column
        here = Path(path)
        if not here.exists() and (_FILE.fullmatch(path) or not re.fullmatch(r"\w[\w.-]*(?:/[\w.-]+)?", path)):
            raise InputError(f"input {path}: no such file or folder; give a path that exists")
        import datasets  # late: a second of import

        used: set[str] = set()
        try:
            if (here / "dataset_dict.json").exists() and (here / split / "state.json").exists():
                here /= split
            if (here / "state.json").exists():  # written by save_to_disk
                rows = datasets.load_from_disk(str(here))
            elif here.exists() and re.search(r"[*?\[\]]|::", str(here.resolve())):
                what = "`datasets` takes *, ?, [, ] and :: in the path of these files for a pattern"
                raise InputError(f"input {path}: {what}; rename the folder")
            else:
                cache = None if self.cache_dir is None else str(self.cache_dir)
                builder = datasets.load_dataset_builder(path, self.dataset_config, cache_dir=cache)
                rows = builder.as_streaming_dataset(split=split)
                # Of Parquet only the text is fetched; and files whose other columns differ in type, as datatrove's
                # "metadata" may, could not be read together.
                if getattr(builder.config, "columns", "") is None and column in (rows.features or ()):
                    builder.config.columns = [column]
                    rows = builder.as_streaming_dataset(split=split)
                used = set(map(str, (builder.config.data_files or {}).get(split, ())))
            for row in rows:
                if column not in row:
                    raise InputError(f"text_column {column!r} is not in {path}; it has {sorted(row)}")
                text = row[column]
                if not isinstance(text, str | None):
                    kind = type(text).__name__
                    raise InputError(f"text_column {column!r} of {path} holds {kind}, no text; name another")
                yield text or ""
            for file in files_below(here) if used and here.is_dir() else ():
                if str(file.resolve()) not in used:
                    self._leave(str(file), "not of the split")
        except InputError:
            raise
        except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            hint = " (pip install zstandard)" if "zstd" in reason else ""
            what = f"the dataset (config {self.dataset_config}, split {split}) cannot be read: {reason[:300]}{hint}"
            raise InputError(f"input {path}: {what}; check input, dataset_config and dataset_split") from error


def _find_kind(path: str, encoding: str) -> str:
    """The kind of corpus at `path`, from what the files are and then from the first 200 lines; InputError if undecidable."""
    here = Path(path)
    if not here.exists():
        if path == "installed":
            return "docstrings"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not here.parent.exists() and not _FILE.fullmatch(path):
            return "dataset"
        raise InputError(f"input {path}: no such file or folder; give a path that exists")
    kinds: dict[str, list[str]] = {"texts": [], "others": [], "beside": []}
    data: set[str] = set()
    account: dict[str, Any] = {}
    many, leave = here.is_dir(), functools.partial(count_unread, account, str(here))
    for name, stream in members(here, leave=leave):
        form, plain = form_of(stream, encoding), plain_name(name)
        many = many or name != str(here)
        if form in ("parquet", "arrow") or (TABLES.search(plain) and not form):
            # datatrove names its files by rank, which need not have the same columns.
            is_lines = JSON_LINES.search(plain) and (not many or re.fullmatch(r"\d+\.jsonl", plain))
            data.add("jsonl" if is_lines else "dataset")
            continue
        if form:
            leave(name, form)
            continue
        head = list(itertools.islice(lines(name, stream, "replace", encoding), 200))
        start = "\n".join(head)
        if re.match(r"\s*<(?:\?xml|!DOCTYPE|!--|mediawiki\b)", start) and "<mediawiki" in start:
            return "mediawiki"  # or what claims to be; beside it lies its index
        beside = _ABOUT.fullmatch(plain) or Path(plain).suffix.lower() in _BESIDE_SUFFIX
        rank = "beside" if beside else "texts" if re.search(r"(?i)\.txt$|^wiki_\d+$", plain) else "others"
        kinds[rank].append(_kind_of_lines(plain, head))
        if len(kinds["texts"]) == 3:
            break
    if not kinds["texts"] and data:  # beside texts, a table is their index
        return data.pop() if len(data) == 1 else "dataset"
    found = kinds["texts"] or kinds["others"] or kinds["beside"]
    if not found:
        what = f"no text ({unread_line(account['files_not_read'])})" if account else "no files"
        fix = "give text or a table" + ", or the encoding of UTF-16 without its mark (utf-16-le)" * (
            "(binary)" in what
        )
        raise InputError(f"input {path}: {'the folder ' * here.is_dir()}holds {what}; {fix}")
    return max(found, key=found.count) if many or found[0] != "books" else "text"


def _kind_of_lines(plain: str, head: list[str]) -> str:
    """wikiextractor by its marks, or JSON of others; text (title, then one long line per paragraph, blank line between
    documents) against books (blank lines between paragraphs, or hard-wrapped lines) by whether most groups of lines hold a
    long line that follows another line."""
    first = next((line.strip() for line in head if line.strip()), "")
    if first.startswith("<doc "):
        return "wikiextractor"
    if re.match(r'\s*(?:\{\s*"|\[\s*\{)', "\n".join(head)):
        return "wikiextractor" if plain.startswith("wiki_") or re.search(r'"title":.*"text":', first) else "jsonl"
    groups = [group.split("\n") for group in re.split(r"\n\s*\n", "\n".join(head).strip())]
    titled = sum(any(len(line) > 100 for line in group[1:]) for group in groups)
    return "text" if 2 * titled >= len(groups) else "books"


def _wikiextractor_articles(name: str, lines: Iterable[str]) -> Iterator[list[str]]:
    """The paragraphs of each article, without the entities that WikiExtractor leaves in it: <doc ...> paragraphs </doc>, or one
    JSON object with "text" per line; both may stand in one folder. InputError naming the line that is neither."""
    article: list[str] | None = None  # the lines since <doc>
    for number, line in enumerate(lines, 1):
        if line.startswith("<doc "):
            article = []
        elif line.strip() == "</doc>" and article is not None:
            yield _lines_of_text(_unescaped("\n".join(article)))
            article = None
        elif article is not None:
            article.append(line)
        elif line.startswith("{"):
            yield _lines_of_text(_unescaped(json_text(name, f"line {number}", parsed_json(line), "text")))
        elif line.strip():
            raise InputError(f"input {name}: line {number} stands outside <doc>...</doc>; check the file or --kind")
    if article is not None:
        raise InputError(f"input {name}: the last <doc> is not closed (cut off?); extract or fetch it again")


def _unescaped(text: str) -> str:
    """Without entities; html.unescape alone would take "&copy2" and "&#772:" for some, too."""
    return re.sub(r"&#?\w+;", lambda found: html.unescape(found[0]), text)


def _split_of(name: str) -> str:
    """The split in the name of a dataset's file, "" where there is none."""
    found = _SPLIT.search(name)
    return ("train", "test", "validation")[(found.lastindex or 1) - 1] if found else ""


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
