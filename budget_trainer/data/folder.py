"""Reads a data folder (see `data_prep.blocks`): blocks of token ids in Arrow stream files, a manifest and the tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from budget_trainer.data.order import BlockDataset, Rows

FORMAT_VERSION = 1
# Columns beside input_ids, and the packing whose folders hold them.
_MADE_BY = {"document_ids": "packed", "token_type_ids": "nsp", "next_sentence_label": "nsp"}
_ANEW = "make the folder anew with data_prep.blocks"


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
        for entry in (entry for split in manifest["splits"].values() for entry in split["files"]):
            _check_file(path / entry["name"], entry["bytes"])
        tokenizer = manifest["tokenizer"]
        file = path / tokenizer["folder"] / "tokenizer.json"
        if not file.is_file():
            raise InputError(f"data folder {path}: {file} is missing; {_ANEW}")
        if sha256(file) != tokenizer["sha256"]:
            raise InputError(f"data folder {path}: tokenizer does not match the blocks: {file} is another; {_ANEW}")
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
            file = self.path / entry["name"]
            raise InputError(f"data file {file} is damaged: it does not match its checksum; copy it again or {_ANEW}")
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
        """What the training rows hold, input_ids first."""
        return tuple(self.manifest["splits"]["train"]["columns"])

    def columns_for(self, *, document_mask: bool = False, next_sentence: bool = False) -> tuple[str, ...]:
        """The columns to train with: `document_ids` for a document mask, types and labels for next-sentence prediction.

        InputError names the flag (document_mask, add_nsp or data_dir) that this folder's packing does not serve."""
        packing = self.manifest["packing"]
        if document_mask and packing != "packed":
            content = "sentence pair" if packing == "nsp" else "document"
            raise InputError(
                f"document_mask: data folder {self.path} has packing {packing}: a block holds one {content}, so there is "
                "nothing to mask; leave it out, or make the folder anew with `python -m data_prep.blocks --packing packed`"
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
        for name in columns:
            if name not in ("input_ids", *_MADE_BY):
                raise InputError(f"column {name!r} is unknown; choose of input_ids, {', '.join(_MADE_BY)}")
            if name not in self.train_columns:
                raise InputError(
                    f"column {name}: data folder {self.path} (packing {self.manifest['packing']}) has none; make a folder "
                    f"with `python -m data_prep.blocks --packing {_MADE_BY[name]}`"
                )
        lengths = {name: 0 if name == "next_sentence_label" else self.block_size for name in columns}
        return BlockDataset(self._rows("train", lengths), seed)

    def validation_rows(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first `limit` validation rows (all: None): input_ids and token_bytes, both int64 [n, Lv]."""
        length = int(self.manifest["validation_block_size"])
        reader = self._rows("validation", {"input_ids": length, "token_bytes": length})
        found = reader.take(np.arange(len(reader) if limit is None else min(limit, len(reader))))
        return found["input_ids"], found["token_bytes"]

    def load_tokenizer(self) -> Any:
        """The tokenizer the blocks were made with; never asks the network."""
        from transformers import AutoTokenizer  # late: seconds of import that reading blocks does not need

        return AutoTokenizer.from_pretrained(self.path / self.manifest["tokenizer"]["folder"], local_files_only=True)

    def unigram_counts(self, max_rows: int = 20000) -> np.ndarray:
        """Occurrences of each token, special ones included, in `max_rows` evenly spaced train rows: int64 [vocab]."""
        reader = self._rows("train", {"input_ids": self.block_size})
        rows = len(reader)
        wanted = np.arange(rows) if rows <= max_rows else np.arange(max_rows) * rows // max_rows
        counts = np.zeros(self.vocab_size, np.int64)
        for part in np.array_split(wanted, max(1, len(wanted) // 4096)):
            found = np.bincount(reader.take(part)["input_ids"].ravel(), minlength=self.vocab_size)
            if len(found) > self.vocab_size:
                beyond = f"id {len(found) - 1} is beyond its vocabulary of {self.vocab_size}"
                raise InputError(f"data folder {self.path}: {beyond}; {_ANEW}")
            counts += found
        return counts

    def _rows(self, split: str, columns: Mapping[str, int]) -> Rows:
        entry = self.manifest["splits"].get(split, {"rows": 0, "files": []})
        if not entry["rows"]:
            more = "more text" if split == "train" else "--validation_fraction or --validation_text"
            raise InputError(f"data folder {self.path}: no {split} rows; {_ANEW} and {more}")
        return Rows([self.path / file["name"] for file in entry["files"]], columns, int(entry["rows"]))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError as error:
        raise InputError(
            f"data folder {path}: no manifest.json; make one with `python -m data_prep.blocks`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"data folder {path}: manifest.json cannot be read ({error!r}); {_ANEW}") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"data folder {path}: format_version {version!r}, this program reads {FORMAT_VERSION}; {_ANEW}"
        )
    return dict(manifest)


def _check_file(file: Path, size: int) -> None:
    if not file.is_file():
        raise InputError(f"data file {file} is missing; copy it again or {_ANEW}")
    if (found := file.stat().st_size) != size:
        raise InputError(
            f"data file {file} is truncated or changed: {found} bytes, the manifest lists {size}; copy it again or {_ANEW}"
        )
