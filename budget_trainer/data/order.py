"""The order of training samples: a pure function of (seed, sample number).

Samples are numbered 0, 1, 2, ... for ever: sample `s` belongs to epoch `s // rows` and is row
`_permute(s % rows, rows, seed, epoch)` of the data folder. So the position of a run is one integer, "samples consumed":
resuming is O(1), exact, and the same for any number of ranks or workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from budget_trainer.data.rows import Rows

_ENDLESS = 2**62  # len() of the endless data set: fits any signed 64-bit counter
STRETCH = 4096  # samples whose order is found at once: alone, 32 of them take half as long as these together
_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the constants of splitmix64's finaliser


def _permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a keyed bijection of range(n) sends `positions` (any shape, each in [0, n)): int64 of the same shape.

    A balanced Feistel network permutes the 4**k numbers that enclose range(n) (at most 4 n of them); a result outside
    is sent through again until it falls inside ("cycle walking", Black and Rogaway 2002), which keeps it a bijection.
    No memory beyond the positions: an epoch of a billion rows needs no list.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    values = np.array(positions, np.uint64)  # a copy: walked in place
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        mixed = right ^ key
        for shift, factor in zip((30, 27), _MIX, strict=True):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor  # array arithmetic wraps modulo 2**64
        # The high bits are the well mixed ones.
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)) & mask
    return (left << half) | right


class BlockDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Endless training set indexed by the global sample number (module docstring). Pickles as the file names of `reader`,
    which are opened on first use in each process, so it serves any number of forked or spawned DataLoader workers."""

    def __init__(self, reader: Rows, seed: int) -> None:
        self.rows, self.seed, self._reader = len(reader), seed, reader
        self._order: tuple[int, int, np.ndarray] | None = None  # epoch, stretch and rows of the last that was used

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """One sample, without the B of `__getitems__`."""
        return {name: values[0] for name, values in self.__getitems__([sample]).items()}

    def __getitems__(self, samples: Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of these samples, for torch's fetcher, all int64: input_ids [B, L] and whatever columns were asked
        for ([B, L], next_sentence_label [B]), epoch [B], row [B]."""
        epochs, places = np.divmod(np.asarray(samples, np.int64), self.rows)
        per_epoch = -(-self.rows // STRETCH)  # rounded up
        stretches = epochs * per_epoch + places // STRETCH
        rows = np.empty_like(places)
        for stretch in np.unique(stretches).tolist():  # nearly always one
            here = stretches == stretch
            rows[here] = self._order_in(*divmod(stretch, per_epoch))[places[here] % STRETCH]
        return {**self._reader.take(rows), "epoch": epochs, "row": rows}

    def _order_in(self, epoch: int, stretch: int) -> np.ndarray:
        """The rows at places stretch * STRETCH, ... of an epoch: int64 [STRETCH], or fewer at its end."""
        if self._order is None or self._order[:2] != (epoch, stretch):
            places = np.arange(stretch * STRETCH, min((stretch + 1) * STRETCH, self.rows))
            self._order = epoch, stretch, _permute(places, self.rows, self.seed, epoch)
        return self._order[2]


class ExactSampler(torch.utils.data.Sampler[int]):
    """Yields start, start + 1, ..., start + length - 1: the position of a run is `start`, the samples consumed."""

    def __init__(self, start: int, length: int) -> None:
        self.start, self.length = start, length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.start + self.length))

    def __len__(self) -> int:
        return self.length
