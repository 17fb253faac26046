"""Rows of fixed-size integer columns over several memory-mapped Arrow stream files.

A random order of n things that is never written down: a keyed bijection of range(n).

Reads a data folder (see `data_prep.blocks`), in an order that is a pure function of (seed, sample number).

A data folder holds fixed-length blocks of token ids in Arrow stream files. Samples are numbered 0, 1, 2, ... for ever:
sample `s` belongs to epoch `s // rows` and is row `permute(s % rows, rows, seed, epoch)`. So the position of a run is
one integer, "samples consumed": resuming is O(1), exact, and the same for any number of ranks or workers.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256

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


_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the constants of splitmix64's finaliser


def permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
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


FORMAT_VERSION = 1
ENDLESS = 2**62  # len() of the endless data set: fits any signed 64-bit counter
STRETCH = 4096  # samples whose order is found at once: alone, 32 of them take half as long as these together
# Columns beside input_ids, and the packing whose folders hold them.
MADE_BY = {"document_ids": "packed", "token_type_ids": "nsp", "next_sentence_label": "nsp"}
_NO_DOCUMENTS_TO_PART = {
    "one_document": "a block holds one document, so there is nothing to mask",
    "sentences": "a block holds one document, so there is nothing to mask",
    "nsp": "a block holds one sentence pair, so there is nothing to mask",
}


@dataclass(frozen=True)
class DataFolder:
    """A data folder whose files are all there. Make one with `DataFolder.open(path)`."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> DataFolder:
        """Checks the manifest, the presence and byte size of every listed file, and that the tokenizer is the one the
        blocks were made with. InputError names what is wrong. `verify` looks at the contents."""
        path = Path(path)
        manifest = _read_manifest(path)
        for split in manifest["splits"].values():
            for entry in split["files"]:
                _check_file(path / entry["name"], entry["bytes"])
        tokenizer = manifest["tokenizer"]
        file = path / tokenizer["folder"] / "tokenizer.json"
        if not file.is_file():
            raise InputError(f"data folder {path}: {file} is missing; make the folder anew with data_prep.blocks")
        if sha256(file) != tokenizer["sha256"]:
            raise InputError(
                f"data folder {path}: tokenizer does not match: {file} is not the one the blocks were made "
                "with; restore it or make the folder anew with data_prep.blocks"
            )
        return cls(path, manifest)

    def verify(self, seconds: float = math.inf, threads: int = 4) -> float:
        """Compare the contents of the listed files with their SHA-256, as many as `seconds` allow; returns the share of
        the bytes that was compared. InputError names a file that does not match."""
        entries = [entry for split in self.manifest["splits"].values() for entry in split["files"]]
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(threads) as pool:  # hashing leaves the interpreter free
            compared = list(pool.map(lambda entry: self._matches(entry, end), entries))
        total = sum(int(entry["bytes"]) for entry in entries)
        return sum(compared) / total if total else 1.0

    def _matches(self, entry: Mapping[str, Any], end: float) -> int:
        """Bytes of a file whose checksum was right, 0 where the time ended before; InputError where it is wrong."""
        digest = hashlib.sha256()
        with open(self.path / entry["name"], "rb") as stream:
            while time.monotonic() < end and (part := stream.read(1 << 22)):
                digest.update(part)
            if stream.tell() < entry["bytes"]:
                return 0
        if digest.hexdigest() != entry["sha256"]:
            raise InputError(
                f"data file {self.path / entry['name']} is damaged: it does not match its checksum; copy it again or make "
                "the folder anew with data_prep.blocks"
            )
        return int(entry["bytes"])

    @property
    def block_size(self) -> int:
        """Token positions of one training block, the special tokens included."""
        return int(self.manifest["block_size"])

    @property
    def vocab_size(self) -> int:
        """Number of entries of the tokenizer."""
        return int(self.manifest["vocab_size"])

    @property
    def special_ids(self) -> dict[str, int]:
        """Token ids under the names pad, cls, sep, mask and (where the tokenizer has one) unk."""
        return dict(self.manifest["special_ids"])

    @property
    def fingerprint(self) -> str:
        """Identifies the training data: the contents and order of its files, the packing and the block size."""
        digest = hashlib.sha256(f"{self.manifest['packing']} {self.block_size}".encode())
        for entry in self.manifest["splits"]["train"]["files"]:
            digest.update(entry["sha256"].encode())
        return digest.hexdigest()

    @property
    def train_columns(self) -> tuple[str, ...]:
        """What the training rows hold, input_ids first; older folders do not list it."""
        old = ("input_ids", "document_ids") if self.manifest["packing"] == "packed" else ("input_ids",)
        return tuple(self.manifest["splits"]["train"].get("columns", old))

    def columns_for(self, *, document_mask: bool = False, next_sentence: bool = False) -> tuple[str, ...]:
        """The columns to train with: `document_ids` for a document mask, types and labels for next-sentence prediction.

        InputError names the flag (document_mask, add_nsp or data_dir) that this folder's packing does not serve: sentence
        pairs are for next-sentence prediction alone."""
        packing = self.manifest["packing"]
        if document_mask and packing in _NO_DOCUMENTS_TO_PART:
            raise InputError(
                f"document_mask: data folder {self.path} has packing {packing}: {_NO_DOCUMENTS_TO_PART[packing]}; leave "
                "document_mask out, or make the folder anew with `python -m data_prep.blocks --packing packed`"
            )
        if next_sentence and "next_sentence_label" not in self.train_columns:
            raise InputError(
                f"add_nsp: data folder {self.path} has packing {packing}, without sentence pairs; make the folder anew "
                "with `python -m data_prep.blocks --packing nsp`, or leave add_nsp out"
            )
        if not next_sentence and packing == "nsp":
            raise InputError(
                f"data_dir: {self.path} holds sentence pairs (packing {packing!r}), which only next-sentence prediction "
                "reads; add --add_nsp, or prepare it with another packing"
            )
        documents = ("document_ids",) if document_mask else ()
        pairs = ("token_type_ids", "next_sentence_label") if next_sentence else ()
        return ("input_ids", *documents, *pairs)

    def train(self, seed: int, columns: Sequence[str] = ("input_ids",)) -> BlockDataset:
        """The endless training set in the order of `seed`. InputError names a column that the folder does not have."""
        files, rows = self._files("train")
        for name in columns:
            if name not in ("input_ids", *MADE_BY):
                raise InputError(f"column {name!r} is unknown; choose of input_ids, {', '.join(MADE_BY)}")
            if name not in self.train_columns:
                raise InputError(
                    f"column {name}: data folder {self.path} (packing {self.manifest['packing']}) has none; make a folder "
                    f"with `python -m data_prep.blocks --packing {MADE_BY[name]}`"
                )
        lengths = {name: 0 if name == "next_sentence_label" else self.block_size for name in columns}
        return BlockDataset(files, rows, lengths, seed)

    def validation_rows(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first `limit` validation rows (all: None): input_ids and token_bytes, both int64 [n, Lv]."""
        files, rows = self._files("validation")
        length = int(self.manifest["validation_block_size"])
        wanted = np.arange(rows if limit is None else min(limit, rows))
        found = Rows(files, {"input_ids": length, "token_bytes": length}, rows).take(wanted)
        return found["input_ids"], found["token_bytes"]

    def load_tokenizer(self) -> Any:
        """The tokenizer the blocks were made with; never asks the network."""
        from transformers import AutoTokenizer  # late: seconds of import that reading blocks does not need

        return AutoTokenizer.from_pretrained(self.path / self.manifest["tokenizer"]["folder"], local_files_only=True)

    def unigram_counts(self, max_rows: int = 20000) -> np.ndarray:
        """Occurrences of each token, special ones included, in `max_rows` evenly spaced train rows: int64 [vocab]."""
        files, rows = self._files("train")
        reader = Rows(files, {"input_ids": self.block_size}, rows)
        wanted = np.arange(rows) if rows <= max_rows else np.arange(max_rows) * rows // max_rows
        counts = np.zeros(self.vocab_size, np.int64)
        for part in np.array_split(wanted, max(1, len(wanted) // 4096)):
            counts += np.bincount(reader.take(part)["input_ids"].ravel(), minlength=self.vocab_size)
        return counts

    def _files(self, split: str) -> tuple[list[Path], int]:
        entry = self.manifest["splits"].get(split, {"rows": 0, "files": []})
        if not entry["rows"]:
            raise InputError(
                f"data folder {self.path}: no {split} rows; make it anew with data_prep.blocks and "
                + ("more text" if split == "train" else "--validation_fraction or --validation_text")
            )
        return [self.path / file["name"] for file in entry["files"]], int(entry["rows"])


class BlockDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Endless training set indexed by the global sample number (module docstring). Pickles as its file names and
    opens the files on first use in each process, so it serves any number of forked or spawned DataLoader workers.

    `columns`: name -> values in each row, 0 for a single one (`Rows`)."""

    def __init__(self, files: Sequence[Path], rows: int, columns: Mapping[str, int], seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._reader = Rows(files, columns, rows)
        self._order: tuple[int, int, np.ndarray] | None = None  # epoch, stretch and rows of the last that was used

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """One sample: its columns, epoch and row, without the B of `__getitems__`."""
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
            self._order = epoch, stretch, permute(places, self.rows, self.seed, epoch)
        return self._order[2]


class ExactSampler(torch.utils.data.Sampler[int]):
    """Yields start, start + 1, ..., start + length - 1: the position of a run is `start`, the samples consumed."""

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.start + self.length))

    def __len__(self) -> int:
        return self.length


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError as error:
        raise InputError(
            f"data folder {path}: no manifest.json; make the folder with `python -m data_prep.blocks`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data folder {path}: manifest.json cannot be read ({error!r}); make the folder anew with data_prep.blocks"
        ) from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"data folder {path}: format_version {version!r}, this program reads {FORMAT_VERSION}; make "
            "the folder anew with data_prep.blocks"
        )
    return dict(manifest)


def _check_file(file: Path, size: int) -> None:
    if not file.is_file():
        raise InputError(f"data file {file} is missing; copy it again or make the folder anew with data_prep.blocks")
    if file.stat().st_size != size:
        raise InputError(
            f"data file {file} is truncated or changed: {file.stat().st_size} bytes, the manifest lists "
            f"{size}; copy it again or make the folder anew with data_prep.blocks"
        )
