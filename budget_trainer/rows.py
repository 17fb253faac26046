"""Rows of fixed-size integer columns over several memory-mapped Arrow stream files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from budget_trainer.errors import InputError

I64 = NDArray[np.int64]


@dataclass
class _Opened:
    """Where everything is. Record batch b has rows first[b] to ends[b] and is in file number file[b]; its values of a
    column begin at element starts[column][b] of that file, read as the column's type. windows[column][file[b]] are the
    L elements from each element of the file on."""

    first: I64
    ends: I64
    file: I64
    starts: dict[str, I64]
    windows: dict[str, list[NDArray[Any]]]


class Rows:
    """Random access to rows that are numbered through the files.

    `columns`: name -> values in each row, 0 for a column with one value per row and no list around it. `rows`: how many
    the files must hold. Pickles as the file names; the files are opened on first use in each process.
    """

    def __init__(self, files: Sequence[Path], columns: Mapping[str, int], rows: int) -> None:
        self.columns = dict(columns)
        self._files, self._rows = list(files), rows
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # maps are per process

    def take(self, rows: I64) -> dict[str, I64]:
        """Return int64 [len(rows), L] per column, [len(rows)] for one without lists.

        Raises:
            InputError: the files are damaged, or do not hold what was promised.
        """
        opened = self._opened = self._opened or self._open()
        batch = np.searchsorted(opened.ends, rows, side="right")
        within, file = rows - opened.first[batch], opened.file[batch]
        places = [(number, np.flatnonzero(file == number)) for number in np.unique(file).tolist()]
        out = {}
        for name, length in self.columns.items():
            width = max(1, length)
            start = opened.starts[name][batch] + within * width
            table = np.empty((len(rows), width), np.int64)
            for number, here in places:  # over the files, of which there are few; each is copied from in one go
                table[here] = opened.windows[name][number][start[here]]
            out[name] = table if length else table[:, 0]
        return out

    def _open(self) -> _Opened:
        counts: list[int] = []
        file_of: list[int] = []
        starts: dict[str, list[int]] = {name: [] for name in self.columns}
        windows: dict[str, list[NDArray[Any]]] = {name: [] for name in self.columns}
        for number, file in enumerate(self._files):
            try:
                sizes, found = _locate(file, self.columns)
            except (pa.ArrowInvalid, KeyError, OSError, ValueError) as error:
                raise InputError(
                    f"data file {file} cannot be read ({str(error).splitlines()[0]}); make the folder anew "
                    "with data_prep.blocks"
                ) from error
            counts += sizes
            file_of += [number] * len(sizes)
            for name, (places, whole) in found.items():
                starts[name] += places
                windows[name].append(np.lib.stride_tricks.sliding_window_view(whole, max(1, self.columns[name])))
        ends = np.cumsum(counts, dtype=np.int64)
        if not counts or ends[-1] != self._rows:
            raise InputError(
                f"data folder {self._files[0].parent}: the manifest lists {self._rows} rows, the files hold "
                f"{ends[-1] if counts else 0}; make the folder anew with data_prep.blocks"
            )
        first = ends - np.array(counts, np.int64)
        places_of = {name: np.array(places, np.int64) for name, places in starts.items()}
        return _Opened(first, ends, np.array(file_of, np.int64), places_of, windows)


def _locate(file: Path, columns: Mapping[str, int]) -> tuple[list[int], dict[str, tuple[list[int], NDArray[Any]]]]:
    """Return the rows of each record batch and, per column, where its values begin in the file, read as their type."""
    mapped = pa.memory_map(str(file)).read_buffer()
    table = pa.ipc.open_stream(mapped).read_all()
    sizes: list[int] = []
    found: dict[str, tuple[list[int], NDArray[Any]]] = {}
    for name, length in columns.items():
        chunks = [chunk for chunk in table.column(name).chunks if len(chunk)]
        sizes = [len(chunk) for chunk in chunks]
        places, dtype = [], np.dtype(np.uint8)
        for chunk in chunks:
            listed = isinstance(chunk, pa.FixedSizeListArray)
            values = chunk.flatten() if listed else chunk
            size = chunk.type.list_size if listed else 0
            if size != length or len(values) != len(chunk) * max(1, length) or not pa.types.is_integer(values.type):
                raise ValueError(f"column {name} is {chunk.type}, not {length or 'single'} integers per row")
            dtype = np.dtype(values.type.to_pandas_dtype())
            place, odd = divmod(values.buffers()[1].address - mapped.address, dtype.itemsize)
            place += values.offset
            if values.null_count or odd or not 0 <= place <= mapped.size // dtype.itemsize - len(values):
                raise ValueError(f"column {name} is not stored as plain values")  # missing ones, compressed, unaligned
            places.append(place)
        found[name] = places, np.frombuffer(mapped, dtype, count=mapped.size // dtype.itemsize)
    return sizes, found
