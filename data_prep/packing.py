"""Tokens -> blocks, with numpy only. A block is [CLS] body [SEP], L positions, body L - 2.

`packed` joins the documents with [SEP] and cuts full bodies; `one_document` never crosses a document's border and pads
the shorter last piece. Neither loses a token. Rows come as int64 [n, L].
"""

from collections.abc import Iterable
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

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids [sum(lengths)], lengths [documents] -> the blocks now full: (input_ids, document_ids), each [n, L]."""
        numbers = np.arange(self._next, self._next + len(lengths))
        self._next += len(lengths)
        # Every document is followed by one [SEP], so its tokens move by one place per document before it.
        stream = np.full(len(ids) + len(lengths), self._special["sep"], np.int64)
        stream[np.arange(len(ids)) + np.repeat(np.arange(len(lengths)), lengths)] = ids
        self._ids = np.concatenate([self._ids, stream])
        self._documents = np.concatenate([self._documents, np.repeat(numbers, lengths + 1)])
        body = self._length - 2
        full = len(self._ids) // body * body
        rows = self._rows(self._ids[:full].reshape(-1, body), self._documents[:full].reshape(-1, body))
        self._ids, self._documents = self._ids[full:].copy(), self._documents[full:].copy()
        return rows

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The last, padded block: [1, L], or [0, L] where nothing is left. Padding belongs to no document: it gets the
        number after the block's last."""
        tail, documents = self._ids[:-1], self._documents[:-1]  # the block's own [SEP] closes the last document
        if not len(tail):
            return self._rows(tail.reshape(0, self._length - 2), documents.reshape(0, self._length - 2))
        ids, document_ids = self._rows(tail[None], documents[None])
        padding = ((0, 0), (0, self._length - ids.shape[1]))
        pad_id, no_document = self._special["pad"], int(document_ids.max()) + 1
        return (
            np.pad(ids, padding, constant_values=pad_id),
            np.pad(document_ids, padding, constant_values=no_document),
        )

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
    """input_ids and token_bytes int64 [n, L]. token_bytes: UTF-8 bytes of the text each token stands for, 0 for
    special tokens and padding. cut: blocks beyond the limit. documents: the first so many hold all the blocks."""

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
        ids, spans = encoding.ids, encoding.offsets
        for start in range(0, len(ids), body):
            piece = ids[start : start + body]
            if len(piece) < MIN_VALIDATION_TOKENS:
                continue
            total += 1
            if total > limit:
                continue
            last = seen
            # 65535: what the column holds; a longer token is a kilobytes-long unknown "word".
            size = [min(len(text[a:b].encode()), 65535) for a, b in spans[start : start + body]]
            unused = body - len(piece)
            rows.append([special_ids["cls"], *piece, special_ids["sep"]] + [special_ids["pad"]] * unused)
            sizes.append([0, *size, 0] + [0] * unused)
    shape = (len(rows), block_size)
    ids_array, sizes_array = np.array(rows, np.int64).reshape(shape), np.array(sizes, np.int64).reshape(shape)
    return ValidationBlocks(ids_array, sizes_array, max(0, total - limit), last, seen)
