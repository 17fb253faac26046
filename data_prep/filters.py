"""Which documents are kept, and in what form. Every filter counts what it removes and keeps samples of it.

Exact duplicates are found in bounded memory: digests go to disk, and are compared bucket by bucket. Documents are the same
where their words are, whatever case and spacing; the first one stays. A digest has 128 bits: among 10^9 documents two
different ones meet with a chance of 10^-21.
"""

from __future__ import annotations

import functools
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic
from data_prep.encoding import I64, Encoder
from data_prep.options import Options, flag

SAMPLES, SAMPLE_CHARACTERS = 3, 200
# Nothing to see in them, and tokenizers disagree about them: soft hyphen, zero-width spaces and marks, BOM. The joiners
# (U+200C, U+200D) are letters of Persian and Indic words and stay.
_INVISIBLE = dict.fromkeys([0x00AD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF])


@dataclass
class Removed:
    """What each filter took: documents, characters, and the beginnings of the first SAMPLES of them."""

    by: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, document: str) -> None:
        self.merge({name: {"documents": 1, "characters": len(document), "samples": [document[:SAMPLE_CHARACTERS]]}})

    def merge(self, other: dict[str, dict[str, Any]]) -> None:
        for name, theirs in other.items():
            mine = self.by.setdefault(name, {"documents": 0, "characters": 0, "samples": []})
            mine["documents"] += theirs["documents"]
            mine["characters"] += theirs["characters"]
            mine["samples"] = (mine["samples"] + theirs["samples"])[:SAMPLES]


def _clean(text: str) -> str:
    """Unicode in its composed form (NFC), every run of white space one space, no invisible or control characters."""
    text = " ".join(text.split())
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
    if not text.isprintable():  # also private, unassigned and format characters are not; only control goes
        text = "".join(character for character in text if unicodedata.category(character) not in ("Cc", "Cs"))
    return " ".join(text.split())


@dataclass(frozen=True)
class Lengths(Options):
    """Bounds of a document in characters, both included."""

    min_characters: int = flag(1, "shorter documents are dropped")
    max_characters: int | None = flag(None, "longer documents are dropped")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise InputError(f"max_characters: {self.max_characters} is below min_characters {self.min_characters}")

    def keep(self, documents: Iterable[str], remove: Callable[[str, str], object]) -> Iterator[str]:
        """The documents that are kept, cleaned; `remove` is told the filter and the document of the others."""
        for raw in documents:
            document = _clean(raw)
            if document and len(document) < self.min_characters:
                remove("min_characters", document)
            elif self.max_characters is not None and len(document) > self.max_characters:
                remove("max_characters", document)
            elif document:
                yield document


@dataclass(frozen=True)
class Selection:
    """The filters that run beside the tokenizer, in its processes.

    duplicates: file of `find_duplicates`; offset: number of the first document of this piece in it. language: ISO 639-1 code.
    max_tokens_per_character: worse ones are dropped (Cramming, arXiv 2212.14034, section 4.4, used 0.3)."""

    duplicates: Path | None = None
    offset: int = 0
    language: str | None = None
    max_tokens_per_character: float | None = None

    def __call__(
        self, documents: list[str], first: int, encoder: Encoder
    ) -> tuple[list[str], list[I64] | None, dict[str, Any]]:
        """Those that are kept of a group whose first document is the piece's `first`, their ids where they had to be
        counted, and what was removed."""
        removed = Removed()
        kept = []
        for number, document in enumerate(documents, self.offset + first):
            if self.duplicates is not None and is_duplicate(self.duplicates, number):
                removed.add("duplicates", document)
            elif self.language is not None and _language_of(document) != self.language:
                removed.add("language", document)
            else:
                kept.append(document)
        limit = self.max_tokens_per_character
        if limit is None:
            return kept, None, removed.by
        encoded = encoder.encode(kept)
        fits = [len(ids) <= limit * len(text) for text, ids in zip(kept, encoded, strict=True)]
        for text in compress(kept, [not here for here in fits]):
            removed.add("max_tokens_per_character", text)
        return list(compress(kept, fits)), list(compress(encoded, fits)), removed.by


def check_language(code: str) -> None:
    """InputError where the identifier does not know the language."""
    known = sorted(map(str, _identifier().labels))
    if code not in known:
        raise InputError(f"language: {code!r} is not one that can be told; choose of {' '.join(known)}")


def _language_of(document: str) -> str:
    """ISO 639-1 code of the most likely language of the document's middle: its first line is often a name."""
    start = max(0, (len(document) - 2000) // 2)
    return str(_identifier().classify(document[start : start + 2000])[0])


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model comes with the package: nothing is fetched

    return LanguageIdentifier.from_model_file(MODEL_FILE)


DIGEST_BYTES = 16
BUCKET_DIGESTS = 4_000_000  # of a bucket on average: 100 MB while it is sorted
READ_DIGESTS = 1_000_000  # digests at a time
_KEYED = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("number", "<u8")])


def digest_of(content: str | bytes) -> bytes:
    """DIGEST_BYTES of BLAKE2, of a document's words in lower case or of bytes as they are."""
    if isinstance(content, str):
        content = " ".join(content.casefold().split()).encode("utf-8", "replace")
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def find_duplicates(digest_files: Sequence[Path], target: Path) -> int:
    """Number the documents through `digest_files` (digests, one after the other) and write to `target` one bit for each:
    1 where an earlier one is the same. Returns how many there are. Written aside and renamed."""
    total = sum(file.stat().st_size for file in digest_files) // DIGEST_BYTES
    folder = target.with_name(f"{target.name}.buckets")
    folder.mkdir(exist_ok=True)
    buckets = [folder / f"{number:05d}" for number in range(max(1, -(-total // BUCKET_DIGESTS)))]
    for bucket in buckets:
        bucket.write_bytes(b"")
    number = 0
    for file in filter(os.path.getsize, digest_files):
        digests = np.memmap(file, f"V{DIGEST_BYTES}", "r")
        for start in range(0, len(digests), READ_DIGESTS):
            piece = np.array(digests[start : start + READ_DIGESTS])
            keyed = np.empty(len(piece), _KEYED)
            keyed["digest"], keyed["number"] = piece, np.arange(number, number + len(piece), dtype=np.uint64)
            of = piece.view("<u8").reshape(-1, 2)[:, 1] % len(buckets)  # dealt by their last bytes
            for index in np.unique(of):
                with buckets[index].open("ab") as out:
                    keyed[of == index].tofile(out)
            number += len(piece)
    again = np.zeros(-(-total // 8), np.uint8)
    found = 0
    for bucket in buckets:
        keyed = np.fromfile(bucket, _KEYED)
        halves = keyed["digest"].copy().view("<u8").reshape(-1, 2)
        order = np.lexsort((keyed["number"], halves[:, 0], halves[:, 1]))
        halves, numbers = halves[order], keyed["number"][order]
        same = (halves[1:] == halves[:-1]).all(1)
        later = numbers[1:][same]
        np.bitwise_or.at(again, later // 8, (1 << (later % 8)).astype(np.uint8))
        found += len(later)
        bucket.unlink()
    folder.rmdir()
    write_atomic(target, again.tobytes())
    return found


def is_duplicate(file: Path, number: int) -> bool:
    """Whether document `number` is one, by the file that `find_duplicates` wrote."""
    return bool(_bits(file, file.stat().st_mtime_ns)[number // 8] >> (number % 8) & 1)


@functools.lru_cache(maxsize=4)
def _bits(file: Path, changed: int) -> np.ndarray:
    return np.memmap(file, np.uint8, "r")
