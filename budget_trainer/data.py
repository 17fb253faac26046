"""Reads a data folder (see `data_prep.blocks`), in an order that is a pure function of (seed, sample number).

A data folder holds fixed-length blocks of token ids in Arrow stream files. Samples are numbered 0, 1, 2, ... for ever:
sample `s` belongs to epoch `s // rows` and is row `permute(s % rows, rows, seed, epoch)`. So the position of a run is
one integer, "samples consumed": resuming is O(1), exact, and the same for any number of ranks or workers.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from budget_trainer.errors import InputError

FORMAT_VERSION = 1
ENDLESS = 2**62  # len() of the endless data set: fits any signed 64-bit counter
_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the constants of splitmix64's finaliser


@dataclass(frozen=True)
class DataFolder:
    """A data folder whose files are all there. Make one with `DataFolder.open(path)`."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "DataFolder":
        """Checks the manifest, the presence and byte size of every listed file, and that the tokenizer is the one the
        blocks were made with. InputError names what is wrong. Contents are not hashed: that would cost budget."""
        path = Path(path)
        manifest = _read_manifest(path)
        for split in manifest["splits"].values():
            for entry in split["files"]:
                _check_file(path / entry["name"], entry["bytes"])
        tokenizer = manifest["tokenizer"]
        file = path / tokenizer["folder"] / "tokenizer.json"
        if not file.is_file():
            raise InputError(f"data folder {path}: {file} is missing; make the folder anew with data_prep.blocks")
        if hashlib.sha256(file.read_bytes()).hexdigest() != tokenizer["sha256"]:
            raise InputError(
                f"data folder {path}: tokenizer does not match: {file} is not the one the blocks were made "
                "with; restore it or make the folder anew with data_prep.blocks"
            )
        return cls(path, manifest)

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

    def train(self, seed: int) -> "BlockDataset":
        """The endless training set in the order of `seed`."""
        files, rows = self._files("train")
        return BlockDataset(files, rows, self.block_size, seed)

    def validation_rows(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first `limit` validation rows (all: None): input_ids and token_bytes, both int64 [n, Lv]."""
        files, rows = self._files("validation")
        length = int(self.manifest["validation_block_size"])
        wanted = np.arange(rows if limit is None else min(limit, rows))
        ids, sizes = (_Rows(files, column, length, rows).take(wanted) for column in ("input_ids", "token_bytes"))
        return ids, sizes

    def load_tokenizer(self) -> Any:
        """The tokenizer the blocks were made with; never asks the network."""
        from transformers import AutoTokenizer  # late: seconds of import that reading blocks does not need

        return AutoTokenizer.from_pretrained(self.path / self.manifest["tokenizer"]["folder"], local_files_only=True)

    def unigram_counts(self, max_rows: int = 20000) -> np.ndarray:
        """Occurrences of each token, special ones included, in `max_rows` evenly spaced train rows: int64 [vocab]."""
        files, rows = self._files("train")
        reader = _Rows(files, "input_ids", self.block_size, rows)
        wanted = np.arange(rows) if rows <= max_rows else np.arange(max_rows) * rows // max_rows
        counts = np.zeros(self.vocab_size, np.int64)
        for part in np.array_split(wanted, max(1, len(wanted) // 4096)):
            counts += np.bincount(reader.take(part).ravel(), minlength=self.vocab_size)
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
    opens the files on first use in each process, so it serves any number of forked or spawned DataLoader workers."""

    def __init__(self, files: Sequence[Path], rows: int, block_size: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._reader = _Rows(list(files), "input_ids", block_size, rows)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, sample: int) -> dict[str, Any]:
        """One sample: input_ids int64 [L], epoch and row int64 scalars."""
        return {name: values[0] for name, values in self.__getitems__([sample]).items()}

    def __getitems__(self, samples: Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of these samples, for torch's fetcher: input_ids [B, L], epoch [B], row [B], all int64."""
        numbers = np.asarray(samples, np.int64)
        epochs = numbers // self.rows
        rows = np.empty_like(numbers)
        for epoch in np.unique(epochs):  # nearly always one
            here = epochs == epoch
            rows[here] = permute(numbers[here] % self.rows, self.rows, self.seed, int(epoch))
        return {"input_ids": self._reader.take(rows), "epoch": epochs, "row": rows}


class ExactSampler(torch.utils.data.Sampler[int]):
    """Yields start, start + 1, ..., start + length - 1: the position of a run is `start`, the samples consumed."""

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.start + self.length))

    def __len__(self) -> int:
        return self.length


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


class _Rows:
    """Rows of one fixed-size column over several memory-mapped Arrow stream files, as zero-copy [n, L] views."""

    def __init__(self, files: list[Path], column: str, length: int, rows: int) -> None:
        self._files, self._column, self._length, self._rows = files, column, length, rows
        self._views: list[np.ndarray] | None = None
        self._ends = np.zeros(0, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": None}  # maps are per process: reopened on first use

    def take(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows), L]"""
        views = self._open() if self._views is None else self._views
        where = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((len(rows), self._length), np.int64)
        for i, (view, row) in enumerate(zip(where.tolist(), rows.tolist(), strict=True)):
            out[i] = views[view][row - self._ends[view]]  # ends[view] - row counts from the end: see _open
        return out

    def _open(self) -> list[np.ndarray]:
        views = []
        for file in self._files:
            try:
                table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
                chunks = table.column(self._column).chunks
            except (pa.ArrowInvalid, KeyError, OSError) as error:
                raise InputError(
                    f"data file {file} cannot be read ({str(error).splitlines()[0]}); make the folder anew "
                    "with data_prep.blocks"
                ) from error
            for chunk in chunks:
                if len(chunk):
                    views.append(chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, self._length))
        self._ends = np.cumsum([len(view) for view in views], dtype=np.int64)
        if not views or self._ends[-1] != self._rows:
            raise InputError(
                f"data folder {self._files[0].parent}: the manifest lists {self._rows} rows, the files hold "
                f"{self._ends[-1] if views else 0}; make the folder anew with data_prep.blocks"
            )
        self._views = views
        return views


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
