"""Sentence pairs for next-sentence prediction: [CLS] A [SEP] B [SEP], padded (Devlin et al. 2019, section 3.1).

As BERT's create_pretraining_data.py, with two differences. Segments are whole sentences and are never truncated: a
sentence of more than half a block is cut in advance, so that a pair always fits, nothing of a document is lost, and where a
segment ends tells nothing about the label. And the labels balance: where a document's last sentence stands alone, so that
its partner must be random, a later pair that would have been random as well is not.
"""

import hashlib
import struct
from bisect import bisect_right
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from budget_trainer.core.errors import InputError
from data_prep.corpus import TokenGroup
from data_prep.packing import Packer

RESERVOIR = 64  # documents of earlier groups that random segments may come from
FOLLOWS, RANDOM = 0, 1  # next_sentence_label, as in BertForPreTraining


@dataclass(frozen=True)
class _Document:
    """ids [n]; ends: the rising ends of its sentences, the last one n."""

    ids: np.ndarray
    ends: list[int]

    def last_end(self, start: int, room: int, sentences: int) -> int:
        """The last end at most `room` tokens behind `start`, but behind at least so many sentences where there are."""
        behind = bisect_right(self.ends, start)
        number = max(bisect_right(self.ends, start + room), behind + sentences)
        return self.ends[min(number, len(self.ends)) - 1]


# The random decisions of one pair: uniform whole numbers of 64 bits, a hash of the pair's number.
_Draws = namedtuple("_Draws", "label short length border document sentence")


class SentencePairs(Packer):
    """Memory is that of one group and of a piece of each of `RESERVOIR` documents before it. A share `short_seq_prob` of the
    pairs is cut to a random length, as in BERT: see `WholeSentences`."""

    columns = {"token_type_ids": "uint8", "next_sentence_label": "uint8"}
    scalars = ("next_sentence_label",)
    by_sentence = True

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.1) -> None:
        super().__init__(block_size, special_ids, short_seq_prob)
        self._room = block_size - 3  # for A and B
        self._longest = self._room // 2  # sentence
        self._reservoir: list[_Document] = []
        self._waiting: list[_Document] = []  # the first documents, as long as there is only one
        self._owed = 0  # pairs that had to be random and are not yet made up for; each is half a pair too many
        self._counts = [0, 0]  # pairs made so far, by label
        self._sentences = self._cuts = 0

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """Return input_ids and token_type_ids int64 [n, L] and next_sentence_label int64 [n]."""
        documents = self._waiting + list(self._documents(group))
        pool = self._reservoir + documents
        if len(pool) < 2:
            self._waiting = documents
            return self._stacked([])
        self._waiting = []
        first = len(self._reservoir)
        rows = [row for own in range(first, len(pool)) for row in self._rows(own, pool)]
        self._reservoir = [self._piece(document) for document in pool[-RESERVOIR:]]
        return self._stacked(rows)

    def finish(self) -> dict[str, np.ndarray]:
        """No row is left. InputError: a corpus of one document, or whose documents are single sentences."""
        if self._waiting:
            raise InputError("packing nsp: the corpus has one document only, so no random partner; give two or more")
        if sum(self._counts) and not self._counts[FOLLOWS]:
            fix = "give longer documents, or --packing packed"
            raise InputError(f"packing nsp: no document has two sentences, so nothing follows; {fix}")
        return self._stacked([])

    def facts(self) -> dict[str, Any]:
        """See `Packer`. pairs: how many second segments really follow, and how many are random; sentences_cut: the cuts within
        sentences that were longer than half a block."""
        pairs = {"follows": self._counts[FOLLOWS], "random": self._counts[RANDOM]}
        cuts = {"sentences": self._sentences, "sentences_cut": self._cuts}
        return {"filled": 0, "short_seq_prob": self.short_seq_prob, "pairs": pairs, **cuts}

    def _stacked(self, rows: list[tuple[np.ndarray, np.ndarray, int]]) -> dict[str, np.ndarray]:
        shape = (len(rows), self.block_size)
        return {
            "input_ids": np.array([ids for ids, _, _ in rows], np.int64).reshape(shape),
            "token_type_ids": np.array([types for _, types, _ in rows], np.int64).reshape(shape),
            "next_sentence_label": np.array([label for _, _, label in rows], np.int64),
        }

    def _documents(self, group: TokenGroup) -> Iterator[_Document]:
        # Sentences that are too long are cut into pieces of the longest length and a rest.
        pieces = -(-group.sentences // self._longest)
        self._sentences += len(pieces)
        self._cuts += int(pieces.sum()) - len(pieces)
        sizes = np.full(int(pieces.sum()), self._longest, np.int64)
        sizes[np.cumsum(pieces) - 1] = group.sentences - (pieces - 1) * self._longest
        ends, borders = np.cumsum(sizes), np.cumsum(group.lengths)
        inside = np.searchsorted(ends, borders)  # each document ends with a sentence
        start = first = 0
        for border, last in zip(borders.tolist(), inside.tolist(), strict=True):
            yield _Document(group.ids[start:border], (ends[first : last + 1] - start).tolist())
            start, first = border, last + 1

    def _rows(self, own: int, pool: list[_Document]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """The pairs of document number `own`: ids [L], types [L] and label. All its tokens are in them, in order."""
        document, start = pool[own], 0
        while start < len(document.ids):
            digest = hashlib.blake2b(f"nsp {sum(self._counts)}".encode(), digest_size=48).digest()
            draws = _Draws(*struct.unpack("<6Q", digest))
            short = draws.short < self.short_seq_prob * 2.0**64
            target = 2 + draws.length % (self._room - 1) if short else self._room
            end = document.last_end(start, target, sentences=2)
            # A leaves room for any first sentence of B, whatever the label.
            borders = document.ends[bisect_right(document.ends, start) : bisect_right(document.ends, end - 1)]
            borders = [border for border in borders if border - start <= self._room - self._longest]
            border = borders[draws.border % len(borders)] if borders else end
            label = self._label(draws, bool(borders))
            first = document.ids[start:border]
            second = document.ids[border:end]
            if label == RANDOM:
                second = _random_segment(draws, own, pool, target - len(first))
            self._counts[label] += 1
            yield *self._row(first, second), label
            start = end if label == FOLLOWS else border

    def _label(self, draws: _Draws, free: bool) -> int:
        """FOLLOWS or RANDOM, half and half on the whole; RANDOM where nothing follows."""
        if not free:
            self._owed += 1
            return RANDOM
        label = draws.label >> 63
        if label == RANDOM and self._owed >= 2:
            self._owed -= 2
            return FOLLOWS
        return label

    def _row(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = np.full(self.block_size, self.special_ids["pad"], np.int64)
        types = np.zeros(self.block_size, np.int64)
        middle = 1 + len(first)
        end = middle + 1 + len(second)
        ids[0], ids[middle], ids[end] = self.special_ids["cls"], self.special_ids["sep"], self.special_ids["sep"]
        ids[1:middle], ids[middle + 1 : end] = first, second
        types[middle + 1 : end + 1] = 1
        return ids, types

    def _piece(self, document: _Document) -> _Document:
        """Some sentences from the document's middle on, as a copy that does not keep its group in memory."""
        size = 4 * self._room
        if len(document.ids) <= size:
            return _Document(document.ids.copy(), document.ends)
        start = document.ends[len(document.ends) // 2 - 1] if len(document.ends) > 1 else 0
        end = document.last_end(start, size, sentences=1)
        ends = [value - start for value in document.ends if start < value <= end]
        return _Document(document.ids[start:end].copy(), ends)


def _random_segment(draws: _Draws, own: int, pool: list[_Document], room: int) -> np.ndarray:
    """Sentences of any other document in the pool, from any one on, as many as fit; at least one."""
    other = draws.document % (len(pool) - 1)
    document = pool[other + (other >= own)]
    number = draws.sentence % len(document.ends)
    start = document.ends[number - 1] if number else 0
    return document.ids[start : document.last_end(start, room, sentences=1)]
