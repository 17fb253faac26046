"""The text that a tokenizer is trained on, one document per line: its characters, and as much as memory takes."""

import collections
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Bytes of different words. On 29 MB of text without spaces BPE took 100 times as much memory, Unigram 40: under 2 GiB.
MAX_DISTINCT_BYTES = 16e6
_WORDS = re.compile(r"\w+").findall


@contextmanager
def text_to_learn(
    file: Path, spaces_for: Mapping[int, str] | None = None, max_distinct: float = MAX_DISTINCT_BYTES
) -> Iterator[Path]:
    """A file with the documents, to be read at once by the trainer's threads: `file` itself, or one that is deleted in the
    end, with code points replaced by `spaces_for` and, where there are too many different words, a share of the documents,
    spread evenly.

    That is for text without spaces, where nearly every run of letters is different from all others."""
    share = 1.0
    if file.stat().st_size > max_distinct:
        distinct = _distinct_bytes(file)
        share = min(1.0, max_distinct / distinct)
    if share < 1:
        print(f"{distinct / 1e6:.1f} MB of different words: learning from {share:.0%} of the documents, spread evenly")
    if share == 1 and not spaces_for:
        yield file
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        target = Path(folder) / "text"
        with target.open("w", encoding="utf-8", newline="\n") as out:
            for number, line in enumerate(_read(file)):
                if int((number + 1) * share) > int(number * share):
                    out.write(line.translate(spaces_for or {}) + "\n")
        yield target


def characters_of(file: Path) -> "collections.Counter[str]":
    """How often each character occurs."""
    counts: collections.Counter[str] = collections.Counter()
    for line in _read(file):
        counts.update(line)
    return counts


def alphabet_of(file: Path, normalizer: Any, limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, in the order of their code points."""
    counts: collections.Counter[str] = collections.Counter()
    for character, count in characters_of(file).items():
        for part in normalizer.normalize_str(character).replace(" ", ""):
            counts[part] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:limit])


def _distinct_bytes(file: Path) -> int:
    """UTF-8 bytes of the different runs of letters and digits; at least 1."""
    seen: set[int] = set()  # hashes: a set of the words would take several times the memory
    size = 0
    for line in _read(file):
        new = {hash(word): len(word.encode()) for word in _WORDS(line)}
        size += sum(length for word, length in new.items() if word not in seen)
        seen.update(new)
    return max(1, size)


def _read(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield line.removesuffix("\n")
