"""Examples as token ids: compact rows, padded when a batch is made."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from budget_trainer.glue.data import Examples

_BATCH = 1000  # examples tokenized at a time


class Rows(Dataset):
    """A split as flat arrays: row i is `input_ids[offsets[i]:offsets[i + 1]]`, with its label.

    An item is a dict of lists (`input_ids`, where the model has them `token_type_ids`) and `label`.
    """

    def __init__(self, columns: dict[str, list[list[int]]], labels: list[int] | list[float]) -> None:
        lengths = [len(row) for row in columns["input_ids"]]
        self.offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.columns = {
            name: np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(self.offsets[-1]))
            for name, rows in columns.items()
        }
        self.labels = np.asarray(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        begin, end = self.offsets[row], self.offsets[row + 1]
        item: dict[str, Any] = {name: values[begin:end].tolist() for name, values in self.columns.items()}
        return {**item, "label": self.labels[row].item()}

    def longest_first(self) -> np.ndarray:
        """The numbers of the rows in the order of their length: batches of equal lengths need no padding."""
        return np.argsort(-np.diff(self.offsets), kind="stable")


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_seq_length: int) -> Rows:
    """The token ids of the examples, at most `max_seq_length` a row; of a pair the longer sentence is cut first."""
    columns: dict[str, list[list[int]]] = {}
    texts = list(examples.columns.values())
    for begin in range(0, len(examples), _BATCH):
        batch = tokenizer(
            *(column[begin : begin + _BATCH] for column in texts),
            truncation=True,
            max_length=max_seq_length,
            return_attention_mask=False,
        )
        for name, rows in batch.items():
            columns.setdefault(name, []).extend(rows)
    return Rows(columns, examples.labels)


def make_collator(
    tokenizer: PreTrainedTokenizerBase, device: torch.device, max_seq_length: int, pad_to_max_length: bool
) -> DataCollatorWithPadding:
    """Pads to the longest row of a batch (on a GPU to a multiple of 8, for its matrix units), or all to one length."""
    if pad_to_max_length:
        return DataCollatorWithPadding(tokenizer, padding="max_length", max_length=max_seq_length)
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if device.type == "cuda" else None)
