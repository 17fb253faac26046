"""Rows of fixed-size integer columns over several memory-mapped Arrow stream files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from budget_trainer.core.errors import InputError

I64 = NDArray[np.int64]

_FEW = 512  # rows up to which each is copied alone: 32 take a third of the time so, 8192 five times as long


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
