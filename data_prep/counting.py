"""Counts over the rows of a data folder, a part of them at a time: lengths, documents, tokens, labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from budget_trainer.core.errors import InputError

PERCENTILES = (5, 25, 50, 75, 95)
_FRAME = ("pad", "cls", "sep")  # tokens that stand for no text


class Lengths:
    """How often each whole number up to `longest` was seen: of `unit`, in each of `things`. counts [longest + 1]."""

    def __init__(self, title: str, unit: str, things: str, longest: int) -> None:
        self.title, self.unit, self.things = title, unit, things
        self.counts = np.zeros(longest + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Counts the whole numbers `values`."""
        self.counts += np.bincount(values.ravel(), minlength=len(self.counts))

    def seen(self) -> dict[int, int]:
        """Number -> how often, of those that were seen."""
        return {int(value): int(self.counts[value]) for value in np.flatnonzero(self.counts)}

    def summary(self) -> dict[str, float]:
        """number (how many were counted), mean, min, p5, p25, median, p75, p95, max; number alone where it is 0.

        A percentile is the smallest value that at least so many per cent do not exceed."""
        number = int(self.counts.sum())
        if not number:
            return {"number": 0}
        ranks = [-(-percent * number // 100) for percent in PERCENTILES]
        found = np.searchsorted(np.cumsum(self.counts), ranks).tolist()
        names = ["median" if percent == 50 else f"p{percent}" for percent in PERCENTILES]
        values = np.flatnonzero(self.counts)
        mean = float(self.counts @ np.arange(len(self.counts))) / number
        middle = dict(zip(names, found, strict=True))
        return {"number": number, "mean": mean, "min": int(values[0]), **middle, "max": int(values[-1])}


class Counts:
    """Counts of rows of `length` positions that have `columns`.

    rows; frequency [vocabulary] of the tokens; labels [2] of sentence pairs; own_text_tokens: tokens that stand for text,
    but for random second segments, whose text is in other rows as well; lengths by name."""

    def __init__(self, length: int, vocab_size: int, special_ids: Mapping[str, int], columns: Sequence[str]) -> None:
        self.length = length
        self.rows = self.own_text_tokens = 0
        self.frequency = np.zeros(vocab_size, np.int64)
        self.labels = np.zeros(2, np.int64)
        self._pad, self._frame = special_ids["pad"], [special_ids[role] for role in _FRAME]
        self.lengths = {
            "tokens_per_block": Lengths("Length of a block", "tokens, special ones included", "blocks", length)
        }
        text = "tokens of text"
        if "document_ids" in columns:
            self.lengths["documents_per_block"] = Lengths("Documents in a block", "documents", "blocks", length)
            self.lengths["tokens_per_piece"] = Lengths("Piece of a document in a block", text, "pieces", length)
        if "token_type_ids" in columns:
            self.lengths["tokens_of_a"] = Lengths("First segment of a pair (A)", text, "pairs", length)
            self.lengths["tokens_of_b"] = Lengths("Second segment of a pair (B)", text, "pairs", length)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.frequency.sum() - self.frequency[self._pad])

    @property
    def text_tokens(self) -> int:
        """Tokens that stand for text, unknown ones among them: at least 1, to divide by."""
        return max(1, int(self.frequency.sum() - self.frequency[self._frame].sum()))

    def most_frequent(self, number: int) -> list[tuple[int, int]]:
        """(token id, how often) of the most frequent tokens that stand for text."""
        text = self.frequency.copy()
        text[self._frame] = 0
        order = np.argsort(-text, kind="stable")[:number]
        return [(int(token), int(text[token])) for token in order if text[token]]

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Counts rows: int64 [n, L] per column, labels [n]. InputError: numbers that no data folder holds."""
        ids = rows["input_ids"]
        _check("input_ids", ids, len(self.frequency))
        self.rows += len(ids)
        self.frequency += np.bincount(ids.ravel(), minlength=len(self.frequency))
        self.lengths["tokens_per_block"].add((ids != self._pad).sum(axis=1))
        own = text = ~np.isin(ids, self._frame)
        if "document_ids" in rows:
            self._add_documents(rows["document_ids"], text)
        if "token_type_ids" in rows:
            own = self._add_pairs(rows["token_type_ids"], rows["next_sentence_label"], text)
        self.own_text_tokens += int(own.sum())

    def _add_documents(self, documents: np.ndarray, text: np.ndarray) -> None:
        _check("document_ids", documents, self.length)
        self.lengths["documents_per_block"].add(documents[:, -1] + 1)
        piece = documents + np.arange(len(documents))[:, None] * self.length
        sizes = np.bincount(piece[text])
        self.lengths["tokens_per_piece"].add(sizes[sizes > 0])  # a document's last [SEP] alone is no piece

    def _add_pairs(self, types: np.ndarray, labels: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Returns which tokens [n, L] are the row's own text."""
        _check("token_type_ids", types, 2)
        _check("next_sentence_label", labels, 2)
        second = types == 1
        self.lengths["tokens_of_a"].add((text & ~second).sum(axis=1))
        self.lengths["tokens_of_b"].add((text & second).sum(axis=1))
        self.labels += np.bincount(labels, minlength=2)
        return text & ~(second & (labels == 1)[:, None])


def _check(column: str, values: np.ndarray, end: int) -> None:
    if values.size and values.max() >= end:
        raise InputError(
            f"column {column} holds {values.max()}, but {end - 1} is the largest that can be; find the damaged file with "
            "--verify and copy it again"
        )


def parts_of_row(row: Mapping[str, np.ndarray], special_ids: Mapping[str, int]) -> list[tuple[str, Any]]:
    """The parts of one row, in order, as (name, token ids [n] that stand for text): its documents, segments, or text."""
    ids = row["input_ids"]
    text = ~np.isin(ids, [special_ids[role] for role in _FRAME])
    if "document_ids" in row:
        documents = row["document_ids"]
        return [(f"document {d + 1}", ids[text & (documents == d)]) for d in range(int(documents[-1]) + 1)]
    if "token_type_ids" in row:
        return [(name, ids[text & (row["token_type_ids"] == number)]) for number, name in enumerate("AB")]
    return [("text", ids[text])]
