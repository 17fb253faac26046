"""What the tools over finished data folders share: opening and checking them, their rows in the order of the corpus, and
dealing these anew to any number of shards."""

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
from budget_trainer.data.folder import DataFolder, Rows
from data_prep.shards import ShardWriter

PART_VALUES = 2**20  # token positions that are read at a time: 8 MB of each column
_MADE_BY_WRITE_MANIFEST = ("format_version", "command", "created", "versions")
_NEEDED = (
    "block_size",
    "validation_block_size",
    "packing",
    "dtype",
    "vocab_size",
    "special_ids",
    "sources",
    "command",
)


@dataclass(frozen=True)
class Layout:
    """The columns of a split as its files hold them. dtypes: name -> dtype; scalars: those with one value per row
    instead of a list of `length`."""

    dtypes: dict[str, str]
    scalars: tuple[str, ...]
    length: int

    @classmethod
    def of(cls, folder: DataFolder, split: str) -> "Layout":
        """Reads the schema of the split's first file. InputError: that is no file of a data folder."""
        file = folder.path / entries(folder, split)[0]["name"]
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
                fields = {field.name: field.type for field in reader.schema}
            listed = {name: kind for name, kind in fields.items() if isinstance(kind, pa.FixedSizeListType)}
            values = {name: listed[name].value_type if name in listed else kind for name, kind in fields.items()}
            dtypes = {name: np.dtype(kind.to_pandas_dtype()).name for name, kind in values.items()}
            length = listed["input_ids"].list_size
        except (pa.ArrowInvalid, KeyError, NotImplementedError) as error:
            raise InputError(
                f"data file {file} cannot be read ({str(error).splitlines()[0]}); copy it again or make the folder "
                "anew with data_prep.blocks"
            ) from error
        return cls(dtypes, tuple(name for name in fields if name not in listed), length)

    @property
    def lengths(self) -> dict[str, int]:
        """The columns as `Rows` wants them: 0 for one value per row."""
        return {name: 0 if name in self.scalars else self.length for name in self.dtypes}


def open_folder(path: Path) -> DataFolder:
    """A data folder whose files are all there, with the manifest's fields that the tools read; InputError otherwise."""
    try:
        folder = DataFolder.open(path)
        missing = [name for name in _NEEDED if name not in folder.manifest]
        missing += [name for name in ("train", "validation") if name not in folder.manifest["splits"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"data folder {path}: manifest.json is not that of a data folder ({error!r}); make the folder anew with "
            "data_prep.blocks"
        ) from error
    if missing:
        raise InputError(
            f"data folder {path}: manifest.json has no field {missing[0]!r}; make the folder anew with data_prep.blocks"
        )
    return folder


def verify(folder: DataFolder) -> int:
    """Compares every file that the manifest gives a checksum of; returns how many. InputError names one that differs."""
    folder.verify()
    count = sum(len(entries(folder, split)) for split in folder.manifest["splits"]) + 1  # and tokenizer.json
    text = folder.manifest["splits"]["validation"].get("text")
    if not text:
        return count
    file = folder.path / text["name"]
    if not file.is_file():
        raise InputError(f"data file {file} is missing; copy it again or make the folder anew with data_prep.blocks")
    if sha256(file) != text["sha256"]:
        raise InputError(
            f"data file {file} is damaged: it does not match its checksum; copy it again or make the folder anew with "
            "data_prep.blocks"
        )
    return count + 1


def refuse_overlap(output: Path, inputs: Sequence[Path]) -> None:
    """InputError where the output is an input, is inside of one, or has one inside (and would replace it)."""
    target = output.resolve()
    for path in inputs:
        source = path.resolve()
        if target == source or source in target.parents or target in source.parents:
            raise InputError(f"output_dir {output} and input {path} overlap; give a path outside of it")


def entries(folder: DataFolder, split: str) -> list[dict[str, Any]]:
    """The manifest's entries of a split's files, in order."""
    return list(folder.manifest["splits"][split]["files"])


def rows_in_order(folder: DataFolder, split: str, layout: Layout) -> Iterator[dict[str, np.ndarray]]:
    """All rows of a split, some at a time, as they were dealt: row k of the corpus is row k // n of shard k % n.

    Integer arrays [n, L] per column, [n] per scalar one. InputError: the counts are not those of rows that were dealt."""
    files = entries(folder, split)
    counts = [int(entry["rows"]) for entry in files]
    total, shards = sum(counts), len(files)
    if counts != dealt(total, shards):
        raise InputError(
            f"data folder {folder.path}: its {split} shards have {min(counts)} to {max(counts)} rows, not as they were "
            "dealt, so their order is unknown; make the folder anew with data_prep.blocks"
        )
    first = np.cumsum([0, *counts[:-1]])
    reader = Rows([folder.path / entry["name"] for entry in files], layout.lengths, total)
    for wanted in parts_of(total, layout.length):
        yield reader.take(first[wanted % shards] + wanted // shards)


def parts_of(rows: int, length: int) -> Iterator[np.ndarray]:
    """The numbers 0 to rows - 1 in parts of about PART_VALUES token positions, for rows of `length`."""
    size = max(1, PART_VALUES // length)
    for start in range(0, rows, size):
        yield np.arange(start, min(start + size, rows))


def dealt(rows: int, shards: int) -> list[int]:
    """How many of `rows` each of `shards` files gets."""
    return [(rows - shard + shards - 1) // shards for shard in range(shards)]


def deal(folders: Sequence[DataFolder], split: str, output: Path, num_shards: int) -> list[dict[str, Any]]:
    """Deals the rows of all `folders`, one after the other, to `num_shards` files in `output`; returns the manifest's
    entries. Memory is bounded by a part and by the writer's batches.

    InputError: more shards than rows, or folders whose files hold different columns."""
    rows = sum(int(folder.manifest["splits"][split]["rows"]) for folder in folders)
    if num_shards > rows:
        raise InputError(f"num_shards {num_shards}: there are {rows} {split} rows; give at most so many shards")
    layout = Layout.of(folders[0], split)
    for other in folders[1:]:
        if (found := Layout.of(other, split)) != layout:
            raise InputError(
                f"input {other.path}: its {split} files hold {found}, those of {folders[0].path} {layout}"
            )
    writer = ShardWriter(output, split, num_shards, layout.dtypes, layout.length, layout.scalars)
    parts = itertools.chain.from_iterable(rows_in_order(folder, split, layout) for folder in folders)
    with tqdm(desc=f"dealing {split}", total=rows, unit=" rows", disable=None) as progress:
        for part in parts:
            writer.add(**part)
            progress.update(len(part["input_ids"]))
    return writer.close()


def copy_files(folder: DataFolder, split: str, output: Path) -> None:
    """Copies the files of a split, and the validation's text, as they are."""
    names = [entry["name"] for entry in entries(folder, split)]
    text = folder.manifest["splits"][split].get("text")
    for name in [*names, *([text["name"]] if text else [])]:
        shutil.copyfile(folder.path / name, output / name)


def copy_tokenizer(folder: DataFolder, output: Path) -> None:
    """Copies the tokenizer's folder."""
    name = folder.manifest["tokenizer"]["folder"]
    shutil.copytree(folder.path / name, output / name)


def facts_of(folders: Sequence[DataFolder]) -> dict[str, Any]:
    """What the manifest of a folder made of `folders` takes over from the first, and where it says what it was made of."""
    manifest = folders[0].manifest
    kept = {key: value for key, value in manifest.items() if key not in _MADE_BY_WRITE_MANIFEST}
    return {**kept, "made_from": [_origin(folder) for folder in folders]}


def _origin(folder: DataFolder) -> dict[str, Any]:
    manifest: Mapping[str, Any] = folder.manifest
    origin = {"path": str(folder.path), "command": manifest["command"], "fingerprint": folder.fingerprint}
    return {**origin, **({"made_from": manifest["made_from"]} if "made_from" in manifest else {})}
