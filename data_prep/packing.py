"""Packings: token ids of groups of documents -> the rows of training and validation.

A row is [CLS] body [SEP]: L positions, a body of L - 2. `packed` joins the documents with [SEP] and cuts full bodies, the last
one filled up with the corpus's first tokens: a block without padding needs no attention mask. `one_document` never crosses a
document's border and pads the shorter last piece; `sentences` also ends at the border of a sentence. Sentence pairs are in
`next_sentence`. No packing loses a token. Rows come as int64 [n, L].
"""

import hashlib
import struct
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.corpus import TokenGroup

LEAST_TOKENS = 16  # of a validation block: the pinned evaluation leaves shorter pieces out


class Packer(ABC):
    """Turns groups, in order, into the columns of the training rows.

    columns: name -> dtype of each column besides input_ids. scalars: those with one value per row. by_sentence: whether the
    groups must come with the lengths of their sentences."""

    columns: dict[str, str] = {}
    scalars: tuple[str, ...] = ()
    by_sentence = False

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.0) -> None:
        self.block_size, self.special_ids, self.short_seq_prob = block_size, special_ids, short_seq_prob
        self.body = block_size - 2

    @abstractmethod
    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """Return the rows that are complete with this group: int64 [n, L] per column, [n] per scalar one."""

    def finish(self) -> dict[str, np.ndarray]:
        """Return the rows that are left."""
        return {"input_ids": np.zeros((0, self.block_size), np.int64)}

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the training split besides its counts. filled: tokens that were repeated."""
        return {"filled": 0}


class PackedBlocks(Packer):
    """Documents joined with [SEP] in blocks without padding; what does not fill one is carried over to the next group."""

    columns = {"document_ids": "uint16"}

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.0) -> None:
        super().__init__(block_size, special_ids, short_seq_prob)
        self._ids = np.zeros(0, np.int64)
        self._documents = np.zeros(0, np.int64)  # number of the document each carried token belongs to
        self._next = 0
        self._first = np.zeros(0, np.int64)  # the corpus's first tokens, to fill the last block
        self._filled = 0  # how many of them it took

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """Return the blocks that are now full: input_ids and document_ids [n, L]."""
        ids, lengths = group.ids, group.lengths
        numbers = np.arange(self._next, self._next + len(lengths))
        self._next += len(lengths)
        # Every document is followed by one [SEP], so its tokens move by one place per document before it.
        stream = np.full(len(ids) + len(lengths), self.special_ids["sep"], np.int64)
        stream[np.arange(len(ids)) + np.repeat(np.arange(len(lengths)), lengths)] = ids
        body = self.body
        self._first = np.concatenate([self._first, stream[: body - len(self._first)]])
        self._ids = np.concatenate([self._ids, stream])
        self._documents = np.concatenate([self._documents, np.repeat(numbers, lengths + 1)])
        full = len(self._ids) // body * body
        rows = self._rows(self._ids[:full].reshape(-1, body), self._documents[:full].reshape(-1, body))
        self._ids, self._documents = self._ids[full:].copy(), self._documents[full:].copy()
        return rows

    def finish(self) -> dict[str, np.ndarray]:
        """Return the last block [1, L], filled up with the corpus's first tokens as one more document (a corpus of less than a
        block is repeated); [0, L] where nothing is left."""
        body = self.body
        if len(self._ids) <= 1:  # at most the [SEP] of a document that ended with its block, which has its own
            empty = np.zeros((0, body), np.int64)
            return self._rows(empty, empty)
        self._filled = body - len(self._ids)
        ids = np.concatenate([self._ids, np.resize(self._first, self._filled)])
        documents = np.concatenate([self._documents, np.full(self._filled, self._next)])
        return self._rows(ids[None], documents[None])

    def facts(self) -> dict[str, Any]:
        return {"filled": self._filled}

    def _rows(self, bodies: np.ndarray, documents: np.ndarray) -> dict[str, np.ndarray]:
        # [CLS] belongs to the first document of its block, the closing [SEP] to the last.
        ends = ((0, 0), (1, 1))
        ids = np.pad(bodies, ends, constant_values=self.special_ids["sep"])
        ids[:, 0] = self.special_ids["cls"]
        inside = np.pad(documents - documents[:, :1], ends, mode="edge") if len(ids) else ids
        return {"input_ids": ids, "document_ids": inside}


class OneDocument(Packer):
    """Blocks that do not cross the border of a document."""

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        return {"input_ids": self._rows(group.ids, group.lengths)}

    def _rows(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """ids [sum(lengths)], lengths (each at least 1) of what no row may cross -> input_ids [n, L], in order."""
        body = self.body
        blocks = -(-lengths // body)  # rounded up
        first_block = np.cumsum(blocks) - blocks
        position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # of a token in its document
        row = np.repeat(first_block, lengths) + position // body
        rows = np.full((int(blocks.sum()), self.block_size), self.special_ids["pad"], np.int64)
        rows[row, 1 + position % body] = ids
        rows[:, 0] = self.special_ids["cls"]
        sizes = np.bincount(row, minlength=len(rows))
        rows[np.arange(len(rows)), 1 + sizes] = self.special_ids["sep"]
        return rows


class WholeSentences(OneDocument):
    """Blocks of as many whole sentences of one document as fit, the paper's way. A sentence longer than a block is cut.

    A share `short_seq_prob` of the blocks, chosen by a hash of their number, has a random length to fill instead (but holds a
    sentence at least), as in BERT's preparation: fine-tuning sees short inputs."""

    by_sentence = True

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.0) -> None:
        super().__init__(block_size, special_ids, short_seq_prob)
        self._sentences = self._sentences_cut = 0
        self._number = 0  # of blocks so far

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        self._sentences += len(group.sentences)
        ends = np.cumsum(group.sentences).tolist()
        sizes, start = [], 0
        for border in np.cumsum(group.lengths).tolist():
            while start < border:
                end = min(self._end(ends, start), border)
                sizes.append(end - start)
                start = end
        return {"input_ids": self._rows(group.ids, np.array(sizes, np.int64))}

    def facts(self) -> dict[str, Any]:
        """See `Packer`. sentences_cut: the cuts within sentences that were longer than a block."""
        cuts = {"sentences": self._sentences, "sentences_cut": self._sentences_cut}
        return {"filled": 0, "short_seq_prob": self.short_seq_prob, **cuts}

    def _end(self, ends: list[int], start: int) -> int:
        """Where the block that begins at `start` ends; `ends` are the rising ends of all sentences."""
        self._number += 1
        digest = hashlib.blake2b(f"short {self._number}".encode(), digest_size=16).digest()
        chance, length = struct.unpack("<2Q", digest)
        room = 2 + length % (self.body - 1) if chance < self.short_seq_prob * 2.0**64 else self.body
        behind = bisect_right(ends, start)
        fitting = bisect_right(ends, start + room, lo=behind)
        end = ends[max(fitting - 1, behind)]
        if end - start <= self.body:
            return end
        self._sentences_cut += 1
        return start + self.body


def validation_rows(
    documents: Iterable[str], tokenizer: Tokenizer, block_size: int, special_ids: dict[str, int], limit: int
) -> tuple[dict[str, np.ndarray], int, dict[str, int]]:
    """The first `limit` blocks of the pinned evaluation: one document per block, in document order, pieces under 16 tokens
    left out. Returns input_ids and token_bytes int64 [n, L], the latter 0 for special tokens and padding; how many of the
    first documents hold all the blocks; and facts for the manifest."""
    body = block_size - 2
    rows: list[list[int]] = []
    sizes: list[list[int]] = []
    total = seen = last = unknown = 0
    for seen, text in enumerate(documents, 1):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids, bytes_of_text = encoding.ids, _token_bytes(text, encoding.offsets)
        for start in range(0, len(ids), body):
            piece = ids[start : start + body]
            unknown += piece.count(special_ids.get("unk", -1))
            total += len(piece) >= LEAST_TOKENS
            if len(piece) < LEAST_TOKENS or total > limit:
                continue
            last = seen
            unused = body - len(piece)
            rows.append([special_ids["cls"], *piece, special_ids["sep"]] + [special_ids["pad"]] * unused)
            sizes.append([0, *bytes_of_text[start : start + body], 0] + [0] * unused)
    shape = (len(rows), block_size)
    columns = {"input_ids": rows, "token_bytes": sizes}
    arrays = {name: np.array(values, np.int64).reshape(shape) for name, values in columns.items()}
    return arrays, last, {"documents_held_out": seen, "rows_cut": max(0, total - limit), "unknown_tokens": unknown}


def _token_bytes(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes of the text that each token stands for, given where it begins and ends: the same sum whatever the
    tokenizer, so that bits per byte compare. White space does not count: only some tokenizers have it in their tokens. A
    character counts once, for the first of the tokens that share it (bytes of a byte-level BPE, parts of a letter)."""
    sizes, counted = [], 0
    for start, end in spans:
        own = text[max(start, counted) : end]
        # 65535: what the column holds; a longer token is a kilobytes-long unknown "word".
        sizes.append(min(len("".join(own.split()).encode()), 65535))
        counted = max(counted, end)
    return sizes
