"""The original project's HDF5 shards -> a data folder: the masked tokens put back, copies that differ by their masks dropped.

    python -m data_prep.hdf5 --input shards/ --tokenizer google-bert/bert-large-uncased --output_dir data/blocks

Reads what `create_pretraining_data` wrote: input_ids, input_mask, segment_ids, masked_lm_positions, masked_lm_ids and, where
there are sentence pairs, next_sentence_labels. Files named test* are the held-out text; without them a share of the blocks is
held out by hash (its neighbours of the same document may be trained on). Memory is bounded by a few thousand rows.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from data_prep.blocks import split_entry, write_validation
from data_prep.cli import Parser, command_line, positive
from data_prep.duplicates import digest_of_bytes, find_duplicates, is_duplicate
from data_prep.held_out import is_held_out, validation_facts
from data_prep.manifest import write_manifest, written_aside
from data_prep.shards import ShardWriter
from data_prep.tokenizer import load_tokenizer, special_ids

NEEDED = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids")
LABELS = "next_sentence_labels"
ROWS = 4096  # at a time


class Shards:
    """The files of one or several folders, all of one form. InputError: none, one that is damaged, or of another form."""

    def __init__(self, paths: Iterable[str], special: dict[str, int], vocab_size: int) -> None:
        found = [file for path in paths for file in _files(Path(path))]
        self.train = [file for file in found if not file.name.startswith("test")]
        self.test = [file for file in found if file.name.startswith("test")]
        if not self.train:
            raise InputError(
                f"input {' '.join(paths)}: holds no .hdf5 file to train on; give the folder of the shards"
            )
        self.special, self.vocab_size = special, vocab_size
        self.block_size, self.pairs = self._form(self.train[0])

    def _form(self, file: Path) -> tuple[int, bool]:
        with _open(file) as data:
            missing = [name for name in NEEDED if name not in data]
            if missing:
                raise InputError(f"input {file}: has no data set {missing[0]}; give shards of create_pretraining_data")
            return int(data["input_ids"].shape[1]), LABELS in data

    def rows(self, files: Iterable[Path]) -> Iterator[dict[str, np.ndarray]]:
        """input_ids [n, L] as they were before masking, and for pairs token_type_ids [n, L], next_sentence_label [n]."""
        for file in files:
            form = self._form(file)
            if form != (self.block_size, self.pairs):
                raise InputError(
                    f"input {file}: blocks of {form[0]} or other labels than in {self.train[0]} "
                    f"({self.block_size}); convert them apart"
                )
            with _open(file) as data:
                for start in range(0, len(data["input_ids"]), ROWS):
                    yield self._restored(file, {name: data[name][start : start + ROWS] for name in self._names()})

    def _names(self) -> tuple[str, ...]:
        return (*NEEDED, LABELS) if self.pairs else NEEDED

    def _restored(self, file: Path, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = data["input_ids"].astype(np.int64)
        row, slot = np.nonzero(data["masked_lm_ids"])  # 0 is padding, here and in the original's reader
        ids[row, data["masked_lm_positions"][row, slot]] = data["masked_lm_ids"][row, slot]
        ids[data["input_mask"] == 0] = self.special["pad"]
        last = data["input_mask"].astype(bool).sum(1) - 1
        fits = (ids[:, 0] == self.special["cls"]).all() and (
            ids[np.arange(len(ids)), last] == self.special["sep"]
        ).all()
        if not fits or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise InputError(
                f"tokenizer: its ids are not those of {file}; give the vocabulary that the shards were made with"
            )
        if not self.pairs:
            return {"input_ids": ids}
        return {
            "input_ids": ids,
            "token_type_ids": data["segment_ids"].astype(np.int64),
            "next_sentence_label": data[LABELS].reshape(-1).astype(np.int64),
        }


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"input {path}: no such file or folder; give a path that exists")
    return sorted(file for file in path.rglob("*") if file.suffix in (".hdf5", ".h5"))


def _open(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"input {file}: reading it needs h5py ({error}); pip install 'budget-trainer[hdf5]'"
        ) from None
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise InputError(
            f"input {file}: damaged or no HDF5 file ({' '.join(str(error).split())}); fetch it again"
        ) from None


def build(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the data folder into the empty `folder`, all but manifest.json; returns the manifest's content."""
    tokenizer = load_tokenizer(args.tokenizer)
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer_file = folder / "tokenizer" / "tokenizer.json"
    special, dtype = special_ids(tokenizer), "uint16" if len(tokenizer) <= 2**16 else "uint32"
    shards = Shards(args.input, special, len(tokenizer))
    cache = folder / "cache"
    cache.mkdir()
    copies = None if args.keep_copies else _copies(shards, cache)
    with (cache / "held_out.txt").open("w", encoding="utf-8") as held_out:
        for rows in shards.rows(shards.test):
            held_out.writelines(f"{text}\n" for text in _texts(tokenizer, rows["input_ids"]))
        fraction = 0.0 if shards.test else args.validation_fraction
        train = _write_train(args, folder, shards, copies, tokenizer, fraction, held_out, dtype)
    args.validation_text = str(shards.test[0].parent) if shards.test else None
    validation = write_validation(args, folder, cache / "held_out.txt", tokenizer_file, special, dtype)
    shutil.rmtree(cache)
    return {
        "block_size": shards.block_size,
        "validation_block_size": args.validation_block_size,
        "packing": "nsp" if shards.pairs else "one_document",
        "dtype": dtype,
        "vocab_size": len(tokenizer),
        "special_ids": special,
        "tokenizer": {"folder": "tokenizer", "sha256": sha256(tokenizer_file)},
        "validation": validation_facts(fraction, args.validation_text),
        "splits": {"train": train, "validation": validation},
        "sources": [{"path": path, "kind": "hdf5"} for path in args.input],
    }


def _copies(shards: Shards, cache: Path) -> Path:
    """Which rows to train on are later copies of another one: the same text, whatever was masked in it."""
    digests = cache / "digests"
    with digests.open("wb") as out:
        for rows in tqdm(shards.rows(shards.train), desc="comparing", unit=f"x{ROWS} rows"):
            whole = np.concatenate([column.reshape(len(column), -1) for column in rows.values()], axis=1)
            out.writelines(digest_of_bytes(row.tobytes()) for row in whole)
    find_duplicates([digests], cache / "copies")
    return cache / "copies"


def _write_train(
    args: argparse.Namespace,
    folder: Path,
    shards: Shards,
    copies: Path | None,
    tokenizer: Any,
    fraction: float,
    held_out: Any,
    dtype: str,
) -> dict[str, Any]:
    columns = {"input_ids": dtype}
    columns |= {"token_type_ids": "uint8", "next_sentence_label": "uint8"} if shards.pairs else {}
    writer = ShardWriter(folder, "train", args.num_shards, columns, shards.block_size, ("next_sentence_label",))
    number = tokens = dropped = text_bytes = 0
    for rows in tqdm(shards.rows(shards.train), desc="writing", unit=f"x{ROWS} rows"):
        ids = rows["input_ids"]
        first = [row for row in range(len(ids)) if copies is None or not is_duplicate(copies, number + row)]
        number, dropped = number + len(ids), dropped + len(ids) - len(first)
        train = []
        for row, text in zip(first, _texts(tokenizer, ids[first]), strict=True):
            if fraction and is_held_out(text, fraction):
                held_out.write(f"{text}\n")
            else:
                train.append(row)
                text_bytes += len(text.encode())
        tokens += int((ids[train] != shards.special["pad"]).sum())
        writer.add(**{name: column[train] for name, column in rows.items()})
    if not writer.rows:
        raise InputError(f"input {' '.join(args.input)}: no block is left to train on; give more, or hold out less")
    split = split_entry(writer.rows, tokens, writer.rows, text_bytes, writer.close())
    return {"columns": list(columns), **split, "copies_dropped": dropped}


def _texts(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """The text of each block as far as its tokens tell it (an uncased vocabulary has no capitals)."""
    if not len(ids):
        return []
    return [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("hdf5", __doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="folders of .hdf5 shards, or files")
    add("--tokenizer", required=True, help="what they were made with: folder, tokenizer.json, vocab.txt or Hub name")
    add("--output_dir", type=Path, required=True, help="the data folder to make")
    add("--num_shards", type=positive, default=8, help="train files; they differ by at most one row")
    add("--keep_copies", action="store_true", help="keep blocks that differ by their masks only (dupe_factor)")
    add("--validation_fraction", type=float, default=0.01, help="share of the blocks held out where no test* file is")
    add("--validation_block_size", type=positive, default=128, help="128 is the pinned evaluation's")
    add("--max_validation_blocks", type=positive, default=2000, help="validation blocks beyond this are left out")
    add("--overwrite", action="store_true", help="replace an existing data folder")
    args = parser.parse_args(argv)
    if not 0 < args.validation_fraction < 1:
        parser.error(f"--validation_fraction {args.validation_fraction}: give a share between 0 and 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    args = _parse(argv)
    with written_aside(args.output_dir, args.overwrite, "data folder", "manifest.json") as folder:
        content = build(args, folder)
        write_manifest(folder, content, command_line("hdf5", argv))
    train, validation = content["splits"]["train"], content["splits"]["validation"]
    print(
        f"{args.output_dir}: {train['rows']:,} train blocks of {content['block_size']} ({train['tokens'] / 1e6:.1f} M tokens; "
        f"{train['copies_dropped']:,} copies were dropped), {validation['rows']:,} validation blocks"
    )


if __name__ == "__main__":
    sys.exit(main())
