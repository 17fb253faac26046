"""Tokens -> blocks, with numpy only. A block is [CLS] body [SEP], L positions, body L - 2.

`packed` joins the documents with [SEP] and cuts full bodies, the last one filled up with the corpus's first tokens: a
block without padding needs no attention mask. `one_document` never crosses a document's border and pads the shorter last
piece. Neither loses a token. Rows come as int64 [n, L].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

MIN_VALIDATION_TOKENS = 16  # a shorter piece is left out by the pinned evaluation


class PackedBlocks:
    """Packs a stream of groups; what does not fill a block is carried over to the next group."""

    def __init__(self, block_size: int, special_ids: dict[str, int]) -> None:
        self._length, self._special = block_size, special_ids
        self._ids = np.zeros(0, np.int64)
        self._documents = np.zeros(0, np.int64)  # number of the document each carried token belongs to
        self._next = 0
        self._first = np.zeros(0, np.int64)  # the corpus's first tokens, to fill the last block
        self.filled = 0  # how many of them it took

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids [sum(lengths)], lengths [documents] -> the blocks now full: (input_ids, document_ids), each [n, L]."""
        numbers = np.arange(self._next, self._next + len(lengths))
        self._next += len(lengths)
        # Every document is followed by one [SEP], so its tokens move by one place per document before it.
        stream = np.full(len(ids) + len(lengths), self._special["sep"], np.int64)
        stream[np.arange(len(ids)) + np.repeat(np.arange(len(lengths)), lengths)] = ids
        self._first = np.concatenate([self._first, stream[: self._length - 2 - len(self._first)]])
        self._ids = np.concatenate([self._ids, stream])
        self._documents = np.concatenate([self._documents, np.repeat(numbers, lengths + 1)])
        body = self._length - 2
        full = len(self._ids) // body * body
        rows = self._rows(self._ids[:full].reshape(-1, body), self._documents[:full].reshape(-1, body))
        self._ids, self._documents = self._ids[full:].copy(), self._documents[full:].copy()
        return rows

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The last block: [1, L], or [0, L] where nothing is left. Filled up with the corpus's first tokens as one more
        document; a corpus of less than a block is repeated."""
        body = self._length - 2
        if len(self._ids) <= 1:  # at most the [SEP] of a document that ended with its block, which has its own
            empty = np.zeros((0, body), np.int64)
            return self._rows(empty, empty)
        self.filled = body - len(self._ids)
        ids = np.concatenate([self._ids, np.resize(self._first, self.filled)])
        documents = np.concatenate([self._documents, np.full(self.filled, self._next)])
        return self._rows(ids[None], documents[None])

    def _rows(self, bodies: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # [CLS] belongs to the first document of its block, the closing [SEP] to the last.
        ends = ((0, 0), (1, 1))
        ids = np.pad(bodies, ends, constant_values=self._special["sep"])
        ids[:, 0] = self._special["cls"]
        if not len(ids):
            return ids, ids
        return ids, np.pad(documents - documents[:, :1], ends, mode="edge")


def one_document_rows(
    ids: np.ndarray, lengths: np.ndarray, block_size: int, special_ids: dict[str, int]
) -> np.ndarray:
    """ids [sum(lengths)], lengths [documents] (each at least 1) -> input_ids [n, L], in document order."""
    body = block_size - 2
    blocks = -(-lengths // body)  # rounded up
    first_block = np.cumsum(blocks) - blocks
    position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # of a token in its document
    row = np.repeat(first_block, lengths) + position // body
    rows = np.full((int(blocks.sum()), block_size), special_ids["pad"], np.int64)
    rows[row, 1 + position % body] = ids
    rows[:, 0] = special_ids["cls"]
    sizes = np.bincount(row, minlength=len(rows))
    rows[np.arange(len(rows)), 1 + sizes] = special_ids["sep"]
    return rows


@dataclass
class ValidationBlocks:
    """input_ids and token_bytes int64 [n, L]. token_bytes: as the function of this name has it, 0 for special
    tokens and padding. cut: blocks beyond the limit. documents: the first so many hold all the blocks."""

    input_ids: np.ndarray
    token_bytes: np.ndarray
    cut: int
    documents: int
    documents_seen: int


def validation_rows(
    documents: Iterable[str], tokenizer: Tokenizer, block_size: int, special_ids: dict[str, int], limit: int
) -> ValidationBlocks:
    """The first `limit` blocks of the pinned evaluation: one document per block, in document order, pieces under 16
    tokens left out."""
    body = block_size - 2
    rows: list[list[int]] = []
    sizes: list[list[int]] = []
    total = seen = last = 0
    for text in documents:
        seen += 1
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids, bytes_of_text = encoding.ids, token_bytes(text, encoding.offsets)
        for start in range(0, len(ids), body):
            piece = ids[start : start + body]
            if len(piece) < MIN_VALIDATION_TOKENS:
                continue
            total += 1
            if total > limit:
                continue
            last = seen
            unused = body - len(piece)
            rows.append([special_ids["cls"], *piece, special_ids["sep"]] + [special_ids["pad"]] * unused)
            sizes.append([0, *bytes_of_text[start : start + body], 0] + [0] * unused)
    shape = (len(rows), block_size)
    ids_array, sizes_array = np.array(rows, np.int64).reshape(shape), np.array(sizes, np.int64).reshape(shape)
    return ValidationBlocks(ids_array, sizes_array, max(0, total - limit), last, seen)


def token_bytes(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes of the text that each token stands for, given where it begins and ends: the same sum whatever the
    tokenizer, so that bits per byte compare.

    White space does not count: only some tokenizers have it in their tokens. A character counts once, for the first of the
    tokens that share it (bytes of a byte-level BPE, parts of a decomposed letter)."""
    sizes, counted = [], 0
    for start, end in spans:
        own = text[max(start, counted) : end]
        # 65535: what the column holds; a longer token is a kilobytes-long unknown "word".
        sizes.append(min(len("".join(own.split()).encode()), 65535))
        counted = max(counted, end)
    return sizes
