"""Exact de-duplication in bounded memory: digests go to disk, and are compared bucket by bucket.

Documents are the same where their words are, whatever case and spacing; the first one stays. A digest has 128 bits: among
10^9 documents two different ones meet with a chance of 10^-21.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from budget_trainer.core.io import write_atomic

DIGEST_BYTES = 16
BUCKET_DIGESTS = 4_000_000  # of a bucket on average: 100 MB while it is sorted
_READ = 1_000_000  # digests at a time
_KEYED = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("number", "<u8")])


def digest_of(document: str) -> bytes:
    """Of its words in lower case."""
    return digest_of_bytes(" ".join(document.casefold().split()).encode("utf-8", "replace"))


def digest_of_bytes(content: bytes) -> bytes:
    """DIGEST_BYTES of BLAKE2."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def find_duplicates(digest_files: Sequence[Path], target: Path) -> int:
    """Number the documents through `digest_files` (digests, one after the other) and write to `target` one bit for each:
    1 where an earlier one is the same. Returns how many there are. Written aside and renamed."""
    total = sum(file.stat().st_size for file in digest_files) // DIGEST_BYTES
    count = max(1, -(-total // BUCKET_DIGESTS))
    folder = target.with_name(f"{target.name}.buckets")
    folder.mkdir(exist_ok=True)
    buckets = [folder / f"{number:05d}" for number in range(count)]
    _deal(digest_files, buckets)
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


def _deal(digest_files: Iterable[Path], buckets: Sequence[Path]) -> None:
    """Sort the digests with their numbers into the buckets, by their last bytes."""
    for bucket in buckets:
        bucket.write_bytes(b"")
    number = 0
    for file in digest_files:
        digests = np.memmap(file, f"V{DIGEST_BYTES}", "r") if file.stat().st_size else np.empty(0, f"V{DIGEST_BYTES}")
        for start in range(0, len(digests), _READ):
            piece = np.array(digests[start : start + _READ])
            keyed = np.empty(len(piece), _KEYED)
            keyed["digest"], keyed["number"] = piece, np.arange(number, number + len(piece), dtype=np.uint64)
            of = piece.view("<u8").reshape(-1, 2)[:, 1] % len(buckets)
            for index in np.unique(of):
                with buckets[index].open("ab") as out:
                    keyed[of == index].tofile(out)
            number += len(piece)


def is_duplicate(file: Path, number: int) -> bool:
    """Whether document `number` is one, by the file that `find_duplicates` wrote."""
    return bool(_bits(file, file.stat().st_mtime_ns)[number // 8] >> (number % 8) & 1)


@functools.lru_cache(maxsize=4)
def _bits(file: Path, changed: int) -> np.ndarray:
    return np.memmap(file, np.uint8, "r")
