"""Rows of fixed length -> Arrow stream files that differ by at most one row."""

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256

BATCH_BYTES = 2**20  # of one column in one record batch: the reader maps each batch as one array, so not too many
OTHER_FILES = 100  # that the process may need to open beside the shards


class ShardWriter:
    """Deals rows to `num_shards` files like cards: counts differ by at most one, and every file is a fair sample of
    the corpus. Memory is bounded by one record batch per file.

    columns: name -> dtype, of fixed-size lists of `length` values, or of one value where named in `scalars`."""

    def __init__(
        self,
        folder: Path,
        split: str,
        num_shards: int,
        columns: Mapping[str, str],
        length: int,
        scalars: Sequence[str] = (),
    ) -> None:
        _allow_open_files(num_shards)
        self._folder, self._split, self._length, self._scalars = folder, split, length, frozenset(scalars)
        self._columns = {name: np.dtype(dtype) for name, dtype in columns.items()}
        values = {name: datasets.Value(dtype) for name, dtype in columns.items()}
        lists = {
            name: datasets.Sequence(value, length=length) for name, value in values.items() if name not in scalars
        }
        self._schema = datasets.Features({**values, **lists}).arrow_schema
        itemsize = max(dtype.itemsize for dtype in self._columns.values())
        self._batch_rows = max(1, BATCH_BYTES // (length * itemsize))
        self._waiting: list[list[dict[str, np.ndarray]]] = [[] for _ in range(num_shards)]
        self._counts = [0] * num_shards
        self._sinks: list[Any] = [None] * num_shards
        self._writers: list[Any] = [None] * num_shards
        self.rows = 0

    def add(self, **columns: np.ndarray) -> None:
        """Appends rows: one integer array [n, length] per column, [n] per scalar one."""
        n = len(columns["input_ids"])
        for shard in range(len(self._counts)):
            mine = slice((shard - self.rows) % len(self._counts), n, len(self._counts))
            part = {name: columns[name][mine].astype(dtype) for name, dtype in self._columns.items()}
            if len(part["input_ids"]):
                self._waiting[shard].append(part)
                self._counts[shard] += len(part["input_ids"])
                self._flush(shard, self._batch_rows)
        self.rows += n

    def close(self) -> list[dict[str, Any]]:
        """Writes the rest, closes and names the files; returns their manifest entries. A shard without rows leaves no file."""
        used = [shard for shard, count in enumerate(self._counts) if count]
        entries = []
        for shard in used:
            self._flush(shard, 1)
            self._writers[shard].close()
            self._sinks[shard].close()
            file = self._folder / f"{self._split}-{shard:05d}-of-{len(used):05d}.arrow"
            self._unnamed(shard).rename(file)
            sizes = {"rows": self._counts[shard], "bytes": file.stat().st_size}
            entries.append({"name": file.name, **sizes, "sha256": sha256(file)})
        return entries

    def close_split(self, tokens: int, documents: int, text_bytes: int) -> dict[str, Any]:
        """Close the files; return what the manifest says of a split, given its counts."""
        counts = {"rows": self.rows, "tokens": tokens, "documents": documents, "text_bytes": text_bytes}
        return {**counts, "files": self.close()}

    def _unnamed(self, shard: int) -> Path:
        return self._folder / f"{self._split}-{shard:05d}.writing"  # the number of files is known at the end

    def _flush(self, shard: int, at_least: int) -> None:
        """Writes whole record batches of `_batch_rows` rows; with at_least=1 also the last, shorter one."""
        parts = self._waiting[shard]
        if sum(len(part["input_ids"]) for part in parts) < at_least:
            return
        self._waiting[shard] = []
        joined = {name: np.concatenate([part[name] for part in parts]) for name in self._columns}
        n = len(joined["input_ids"])
        full = n if at_least == 1 else n // self._batch_rows * self._batch_rows
        if self._writers[shard] is None:
            self._sinks[shard] = pa.OSFile(str(self._unnamed(shard)), "wb")
            self._writers[shard] = pa.ipc.new_stream(self._sinks[shard], self._schema)
        for start in range(0, full, self._batch_rows):
            arrays = []
            for name in self._columns:
                flat = pa.array(joined[name][start : min(start + self._batch_rows, full)].ravel())
                listed = name not in self._scalars
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, self._length) if listed else flat)
            self._writers[shard].write_batch(pa.record_batch(arrays, schema=self._schema))
        if full < n:
            self._waiting[shard].append({name: values[full:] for name, values in joined.items()})


def _allow_open_files(number: int) -> None:
    """Raises this process's limit so that it may hold so many files open; InputError where the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        fix = f"give {hard - OTHER_FILES}"
        raise InputError(f"num_shards {number}: this system lets a process open {hard} files; {fix}")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):  # macOS names no hard limit and has one
        fix = f"give at most {max(1, soft - OTHER_FILES)}"
        raise InputError(f"num_shards {number}: this system lets no process open {needed} files; {fix}") from None
