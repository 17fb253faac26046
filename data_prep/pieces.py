"""The pieces that `data_prep.prepare` works on, each complete or absent: what is finished is never done twice."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from budget_trainer.core.io import fsync, write_json_atomic
from data_prep.corpus import Select, TokenGroup, read_part, read_tokens, tokenise_part, write_part
from data_prep.data_recipe import DataRecipe
from data_prep.documents import Source
from data_prep.duplicates import digest_of
from data_prep.processing import Removed


@dataclass(frozen=True)
class Piece:
    """Some documents of one source, up to `piece_megabytes`.

    `read` counts them as they came, `documents` those that were kept; `first` is the number of the first one among all
    that were kept; `last` says that the source ends here, and has what its reader left out of it, by reason, in `dropped`.
    """

    folder: Path
    source: int
    number: int
    first: int
    read: int = 0
    documents: int = 0
    text_bytes: int = 0
    last: bool = False
    removed: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"source-{self.source:03d}-piece-{self.number:05d}"

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.arrow"

    @property
    def digests(self) -> Path:
        return self.folder / f"{self.name}.digests"

    def groups(self) -> Iterator[list[str]]:
        return read_part(self.file)


def open_stage(folder: Path, key: dict[str, Any]) -> Path:
    """The folder of a stage, emptied where what it holds was made by another `key`."""
    mark = folder / "stage.json"
    try:
        same = json.loads(mark.read_text(encoding="utf-8")) == key
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json_atomic(mark, key)
    return folder


def read_pieces(recipe: DataRecipe, folder: Path) -> list[Piece]:
    """The pieces of all sources in order; those that are not in `folder` yet are made."""
    pieces: list[Piece] = []
    for number, source in enumerate(recipe.sources):
        done = list(_finished(folder, number, sum(piece.documents for piece in pieces)))
        pieces += done
        if not done or not done[-1].last:
            first = sum(piece.documents for piece in pieces)
            skip = sum(piece.read for piece in done)
            pieces += _make(recipe, source, folder, number, len(done), first, skip)
    return pieces


def _finished(folder: Path, source: int, first: int) -> Iterator[Piece]:
    for number in itertools.count():
        piece = Piece(folder, source, number, first)
        try:
            account = json.loads((folder / f"{piece.name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        yield replace(piece, **account)
        first += account["documents"]


def _make(
    recipe: DataRecipe, source: Source, folder: Path, number: int, piece: int, first: int, skip: int
) -> Iterator[Piece]:
    """Read a source from document `skip` on, and write one piece after the other."""
    cache = folder / "cache"
    cache.mkdir(exist_ok=True)
    source.cache_dir, size = cache, 1e6 * recipe.piece_megabytes
    with closing(source.documents()) as documents:
        counted = _Counted(recipe, source, itertools.islice(documents, skip, None))
        while True:
            made = _write(counted, Piece(folder, number, piece, first), size)
            yield made
            if made.last:
                break
            first, piece = first + made.documents, piece + 1
    shutil.rmtree(cache)


class _Counted:
    """Those of a source's `documents` that are kept, with an account of those since `start`."""

    def __init__(self, recipe: DataRecipe, source: Source, documents: Iterator[str]) -> None:
        self.source, self._kept = source, recipe.lengths.keep(self._counting(documents), self._remove)
        self.start()

    def start(self) -> None:
        self.read = self.text_bytes = 0
        self.removed = Removed()

    def _remove(self, name: str, document: str) -> None:
        self.removed.add(name, document)

    def _counting(self, documents: Iterator[str]) -> Iterator[str]:
        for document in documents:
            self.read += 1
            yield document

    def into(self, digests: Any) -> Iterator[str]:
        """The documents, each with its digest written to the open file `digests`."""
        for document in self._kept:
            self.text_bytes += len(document.encode())
            digests.write(digest_of(document))
            yield document


def _write(counted: _Counted, piece: Piece, piece_bytes: float) -> Piece:
    counted.start()
    aside = piece.file.with_suffix(".writing")
    with piece.digests.open("wb") as digests:
        documents, last = write_part(counted.into(digests), aside, piece_bytes)
    fsync(piece.digests)
    fsync(aside)
    aside.rename(piece.file)
    account: dict[str, Any] = {"read": counted.read, "documents": documents, "text_bytes": counted.text_bytes}
    account |= {"last": last, "removed": counted.removed.by}
    account["dropped"] = dict(counted.source.dropped) if account["last"] else {}
    write_json_atomic(piece.folder / f"{piece.name}.json", account)
    return replace(piece, **account)


@dataclass(frozen=True)
class TokenPieces:
    """Token ids of the pieces, in a folder of their own."""

    folder: Path
    tokenizer_file: Path
    dtype: str
    sentences: bool
    fraction: float
    num_proc: int

    def groups(self, piece: Piece, select: Select) -> Iterator[TokenGroup]:
        """The groups of one piece, tokenised where that is not done yet."""
        if not piece.documents:
            return
        mark = self.folder / f"{piece.name}.json"
        try:
            names = json.loads(mark.read_text(encoding="utf-8"))
        except FileNotFoundError:
            names = self._tokenise(piece, select, mark)
        yield from read_tokens([self.folder / name for name in names])

    def _tokenise(self, piece: Piece, select: Select, mark: Path) -> list[str]:
        for stale in self.folder.glob(f"{piece.name}.*"):
            stale.unlink()
        target = self.folder / f"{piece.name}.arrow"
        files = tokenise_part(
            piece.file,
            self.tokenizer_file,
            self.dtype,
            self.fraction,
            self.num_proc,
            self.sentences,
            select,
            target,
        )
        for file in files:
            fsync(file)
        names = [file.name for file in files]
        write_json_atomic(mark, names)
        return names
