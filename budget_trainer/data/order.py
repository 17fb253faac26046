"""The rows of a data folder, and the order of training samples: a pure function of (seed, sample number).

Samples are numbered 0, 1, 2, ... for ever: sample `s` belongs to epoch `s // rows` and is row
`_permute(s % rows, rows, seed, epoch)` of the data folder. So the position of a run is one integer, "samples consumed":
resuming is O(1), exact, and the same for any number of ranks or workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from budget_trainer.core.errors import InputError

I64 = NDArray[np.int64]
_ENDLESS = 2**62  # len() of the endless data set: fits any signed 64-bit counter
STRETCH = 4096  # samples whose order is found at once: alone, 32 of them take half as long as these together
_ROUNDS = 8
_FEW = 512  # rows up to which each is copied alone: 32 take a third of the time so, 8192 five times as long
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the constants of splitmix64's finaliser


class Rows:
    """Random access to rows that are numbered through the files.

    Each record batch is one numpy array over the mapped file, without a copy. 32 random rows of 128 tokens take 21 us;
    `datasets` takes 12 times, pyarrow's `take` 140 times as long. Pickles as the file names, opened on first use.

    Args:
        files: Arrow stream files, uncompressed.
        columns: name -> values in each row, 0 for a column with one value per row and no list around it.
        rows: how many the files must hold.
    """

    def __init__(self, files: Sequence[Path], columns: Mapping[str, int], rows: int) -> None:
        self._files, self._columns, self._rows = list(files), dict(columns), rows
        self._ends = np.zeros(0, np.int64)  # the number of the first row behind each record batch
        self._batches: dict[str, list[NDArray[Any]]] = {}  # by column: [rows, length] or [rows]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": {}}  # maps are per process

    def __len__(self) -> int:
        return self._rows

    def take(self, rows: I64) -> dict[str, I64]:
        """Int64 [len(rows), L] per column, [len(rows)] for one without lists. InputError: the files are damaged."""
        if not self._batches:
            self._open()
        batch = np.searchsorted(self._ends, rows, side="right")
        within = rows - np.concatenate([[0], self._ends])[batch]
        shapes = {name: (len(rows), length) if length else len(rows) for name, length in self._columns.items()}
        out = {name: np.empty(shape, np.int64) for name, shape in shapes.items()}
        places: list[tuple[Any, int, Any]]  # in the result, number of the record batch, in the record batch
        if len(rows) <= _FEW:
            places = list(zip(range(len(rows)), batch.tolist(), within.tolist(), strict=True))
        else:
            order = np.argsort(batch, kind="stable")  # each record batch is read from in one go
            groups = np.split(order, np.flatnonzero(np.diff(batch[order])) + 1)
            places = [(here, int(batch[here[0]]), within[here]) for here in groups]
        for name, table in out.items():
            arrays = self._batches[name]
            for here, number, row in places:
                table[here] = arrays[number][row]
        return out

    def _open(self) -> None:
        batches: dict[str, list[NDArray[Any]]] = {name: [] for name in self._columns}
        for file in self._files:
            try:
                table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
                for name, length in self._columns.items():
                    chunks = [chunk for chunk in table.column(name).chunks if len(chunk)]
                    batches[name] += [_as_array(name, chunk, length) for chunk in chunks]
            except (pa.ArrowInvalid, KeyError, OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"data file {file} cannot be read ({reason}); make the folder anew with data_prep.blocks"
                ) from error
        ends = np.cumsum([len(batch) for batch in next(iter(batches.values()))], dtype=np.int64)
        found = int(ends[-1]) if len(ends) else 0
        if not found or found != self._rows:
            raise InputError(
                f"data folder {self._files[0].parent}: the manifest lists {self._rows} rows, the files hold {found}; make "
                "the folder anew with data_prep.blocks"
            )
        self._ends, self._batches = ends, batches


def _as_array(name: str, chunk: Any, length: int) -> NDArray[Any]:
    """The values of a record batch, without a copy. ValueError: something else than `length` integers per row."""
    listed = isinstance(chunk, pa.FixedSizeListArray)
    values = chunk.flatten() if listed else chunk
    size = chunk.type.list_size if listed else 0
    if size != length or len(values) != len(chunk) * max(1, length) or not pa.types.is_integer(values.type):
        raise ValueError(f"column {name} is {chunk.type}, not {length or 'single'} integers per row")
    array: NDArray[Any] = values.to_numpy(zero_copy_only=True)  # ArrowInvalid where values are missing
    return array.reshape(-1, length) if length else array


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
