"""What the tools over finished data folders share: opening and checking them, their rows in the order of the corpus, and
dealing these anew to any number of shards."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.order import Rows
from data_prep.filters import Removed
from data_prep.losses import Losses
from data_prep.shards import ShardWriter

PART_VALUES = 2**20  # token positions that are read at a time: 8 MB of each column
_MADE_ANEW = ("format_version", "command", "created", "versions", "removed", "losses")
_NEEDED = "block_size validation_block_size packing dtype vocab_size special_ids sources command validation".split()
_ANEW = "make the folder anew with data_prep.blocks"


@dataclass(frozen=True)
class _Layout:
    """The columns of a split as its files hold them. dtypes: name -> dtype; scalars: those with one value per row
    instead of a list of `length`."""

    dtypes: dict[str, str]
    scalars: tuple[str, ...]
    length: int

    def parts(self, rows: int) -> Iterator[np.ndarray]:
        """The numbers 0 to rows - 1 in parts of about PART_VALUES token positions."""
        size = max(1, PART_VALUES // self.length)
        for start in range(0, rows, size):
            yield np.arange(start, min(start + size, rows))


class FinishedFolder(DataFolder):
    """A data folder whose files are all there, with the fields of the manifest that the tools read."""

    @classmethod
    def open(cls, path: str | Path) -> FinishedFolder:
        """InputError where it is none."""
        try:
            folder = cls(Path(path), DataFolder.open(path).manifest)
            missing = [name for name in _NEEDED if name not in folder.manifest]
            missing += [name for name in ("train", "validation") if name not in folder.manifest["splits"]]
        except (KeyError, TypeError, AttributeError) as error:
            fault = f"manifest.json is not that of a data folder ({error!r})"
            raise InputError(f"data folder {path}: {fault}; {_ANEW}") from error
        if missing:
            raise InputError(f"data folder {path}: manifest.json has no field {missing[0]!r}; {_ANEW}")
        return folder

    def split(self, name: str) -> dict[str, Any]:
        """What the manifest says of a split."""
        return dict(self.manifest["splits"][name])

    def check_all(self) -> int:
        """Compare every file that the manifest gives a checksum of; return how many. InputError names one that differs."""
        self.verify()
        text = self.split("validation").get("text")
        if text:
            file = self.path / text["name"]
            if not file.is_file() or sha256(file) != text["sha256"]:
                fault = "damaged: it does not match its checksum" if file.is_file() else "missing"
                raise InputError(f"data file {file} is {fault}; copy it again or {_ANEW}")
        files = sum(len(split["files"]) for split in self.manifest["splits"].values())
        return files + (2 if text else 1)  # tokenizer.json is one

    def layout(self, split: str) -> _Layout:
        """Read the schema of the split's first file. InputError: that is no file of a data folder."""
        file = self.path / self.split(split)["files"][0]["name"]
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
                fields = {field.name: field.type for field in reader.schema}
            listed = {name: kind for name, kind in fields.items() if isinstance(kind, pa.FixedSizeListType)}
            values = {name: listed[name].value_type if name in listed else kind for name, kind in fields.items()}
            dtypes = {name: np.dtype(kind.to_pandas_dtype()).name for name, kind in values.items()}
            length = listed["input_ids"].list_size
        except (pa.ArrowInvalid, KeyError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"data file {file} cannot be read ({reason}); copy it again or {_ANEW}") from error
        return _Layout(dtypes, tuple(name for name in fields if name not in listed), length)

    def reader(self, split: str, layout: _Layout) -> Rows:
        """Random access to a split's rows, all columns, numbered through the files."""
        entry = self.split(split)
        lengths = {name: 0 if name in layout.scalars else layout.length for name in layout.dtypes}
        return Rows([self.path / file["name"] for file in entry["files"]], lengths, int(entry["rows"]))

    def rows_in_order(self, split: str, layout: _Layout) -> Iterator[dict[str, np.ndarray]]:
        """All rows of a split, some at a time, as they were dealt: row k of the corpus is row k // n of shard k % n. Integer
        arrays [n, L] per column, [n] per scalar one. InputError: the counts are not those of rows that were dealt."""
        counts = [int(entry["rows"]) for entry in self.split(split)["files"]]
        total, shards = sum(counts), len(counts)
        if counts != [(total - shard + shards - 1) // shards for shard in range(shards)]:
            spread = f"{min(counts)} to {max(counts)} rows, not as they were dealt, so their order is unknown"
            raise InputError(f"data folder {self.path}: its {split} shards have {spread}; {_ANEW}")
        first = np.cumsum([0, *counts[:-1]])
        reader = self.reader(split, layout)
        for wanted in layout.parts(total):
            yield reader.take(first[wanted % shards] + wanted // shards)

    def origin(self) -> dict[str, Any]:
        """What the manifest of a folder that is made of this one says of it."""
        before = {key: value for key, value in self.manifest.items() if key in ("command", "made_from")}
        return {"path": str(self.path), "fingerprint": self.fingerprint, **before}


def remade(inputs: Sequence[FinishedFolder], num_shards: int | None, output: Path) -> dict[str, Any]:
    """Deal the rows of the data folders `inputs`, one after the other, anew to `num_shards` files (None: as many as they have
    together) in the empty folder `output`; return the content of its manifest, which has the first one's facts.

    InputError: a file that is damaged or missing, more shards than rows, files that hold different columns."""
    for folder in inputs:
        folder.check_all()
    first = inputs[0]
    tokenizer = first.manifest["tokenizer"]["folder"]
    shutil.copytree(first.path / tokenizer, output / tokenizer)
    train = _summed([folder.split("train") for folder in inputs])
    shards = num_shards or sum(len(folder.split("train")["files"]) for folder in inputs)
    train["files"] = _deal(inputs, "train", output, shards)
    return {
        **{key: value for key, value in first.manifest.items() if key not in _MADE_ANEW},
        "made_from": [folder.origin() for folder in inputs],
        "splits": {"train": train, "validation": _validation(inputs, output)},
        "sources": [source for folder in inputs for source in folder.manifest["sources"]],
        **_accounts([folder.manifest for folder in inputs]),
    }


def _accounts(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was lost and removed in all of them; losses are left out where one says nothing of them."""
    removed = Removed()
    for manifest in manifests:
        removed.merge(manifest.get("removed", {}))
    accounts = {"removed": removed.by} if any("removed" in manifest for manifest in manifests) else {}
    if all("losses" in manifest for manifest in manifests):
        return {**accounts, "losses": Losses(manifest["losses"] for manifest in manifests).facts()}
    print("losses: unknown, not all of the folders have counted them")
    return accounts


def _deal(folders: Sequence[FinishedFolder], split: str, output: Path, num_shards: int) -> list[dict[str, Any]]:
    """The manifest's entries of the new files. Memory is bounded by a part and by the writer's batches."""
    rows = sum(int(folder.split(split)["rows"]) for folder in folders)
    if num_shards > rows:
        raise InputError(f"num_shards {num_shards}: there are {rows} {split} rows; give at most so many shards")
    layout = folders[0].layout(split)
    for other in folders[1:]:
        if (found := other.layout(split)) != layout:
            raise InputError(f"input {other.path}: its {split} files hold {found}, those of the first {layout}")
    writer = ShardWriter(output, split, num_shards, layout.dtypes, layout.length, layout.scalars)
    parts = itertools.chain.from_iterable(folder.rows_in_order(split, layout) for folder in folders)
    with tqdm(desc=f"dealing {split}", total=rows, unit=" rows", disable=None) as progress:
        for part in parts:
            writer.add(**part)
            progress.update(len(part["input_ids"]))
    return writer.close()


def _validation(folders: Sequence[FinishedFolder], output: Path) -> dict[str, Any]:
    """The validation of all folders, in order; a --validation_text that they share is taken once."""
    splits = [folder.split("validation") for folder in folders]
    if len(folders) == 1 or folders[0].manifest["validation"]["text"]:
        for file in [*splits[0]["files"], splits[0].get("text")]:
            if file:
                shutil.copyfile(folders[0].path / file["name"], output / file["name"])
        return splits[0]
    merged = _summed(splits)
    if not merged["rows"]:
        return {**merged, "files": []}
    merged["files"] = _deal(folders, "validation", output, 1)
    text = output / splits[0]["text"]["name"]
    with text.open("wb") as joined:
        for folder, part in zip(folders, splits, strict=True):
            joined.write((folder.path / part["text"]["name"]).read_bytes())
    return {**merged, "text": {"name": text.name, "bytes": text.stat().st_size, "sha256": sha256(text)}}


def _summed(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several splits added up, also those within; what else they say is the first one's."""
    merged: dict[str, Any] = {}
    for name, value in facts[0].items():
        if any(name not in other for other in facts):  # of an older folder
            continue
        if isinstance(value, int):
            merged[name] = sum(other[name] for other in facts)
        elif isinstance(value, Mapping) and name != "text":
            merged[name] = _summed([other[name] for other in facts])
        elif name not in ("files", "text"):
            merged[name] = value
    return merged
