"""The original project's HDF5 shards -> a data folder: the masked tokens put back, copies that differ by their masks dropped.

    python -m data_prep.hdf5 --input shards/ --tokenizer google-bert/bert-large-uncased --output_dir data/blocks

Reads what `create_pretraining_data` wrote: input_ids, input_mask, segment_ids, masked_lm_positions, masked_lm_ids and, where
there are sentence pairs, next_sentence_labels. Files named test* are the held-out text; without them a share of the blocks is
held out by hash (its neighbours of the same document may be trained on). Memory is bounded by a few thousand rows.
"""

from __future__ import annotations

import argparse
import errno
import functools
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from data_prep.block_folder import BlockFolder, BlockOptions
from data_prep.cli import Output, Parser, command
from data_prep.corpus import is_held_out
from data_prep.files import count_unread, files_below, form_of
from data_prep.filters import digest_of, find_duplicates, is_duplicate
from data_prep.next_sentence import SentencePairs
from data_prep.packing import LEAST_TOKENS

_NEEDED = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids")
_LABELS = "next_sentence_labels"
_ROWS = 4096  # at a time
_FLAGS = ("max_unknown", "num_shards", "validation_fraction", "validation_block_size", "max_validation_blocks")


class _Shards:
    """The files of one or several folders, all of one form. InputError: none, one that is damaged, or of another form."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.sources: list[dict[str, Any]] = []
        found: list[Path] = []
        for path in paths:
            account: dict[str, Any] = {}
            leave = functools.partial(count_unread, account, path)
            for file in files_below(Path(path), leave):
                if file == Path(path) or file.suffix.lower() in (".hdf5", ".h5") or (form := _form_of(file)) == "hdf5":
                    found.append(file)
                else:
                    leave(str(file), form or "no HDF5")
            self.sources.append({"path": path, "kind": "hdf5", **({"account": account} if account else {})})
        self.train = [file for file in found if not file.name.startswith("test")]
        self.test = [file for file in found if file.name.startswith("test")]
        if not self.train:
            raise InputError(f"input {' '.join(paths)}: holds no .hdf5 file to train on; give the shards' folder")
        with _open(self.train[0]) as data:
            self.block_size, self.pairs = _form(data)
        self._names = (*_NEEDED, _LABELS) if self.pairs else _NEEDED

    def rows(self, files: Iterable[Path], target: BlockFolder) -> Iterator[dict[str, np.ndarray]]:
        """input_ids [n, L] as they were before masking, and for pairs token_type_ids [n, L], next_sentence_label [n]."""
        for file in files:
            with _open(file) as data:
                form = _form(data)
                if form != (self.block_size, self.pairs):
                    what = f"blocks of {form[0]} or other labels than in {self.train[0]} ({self.block_size})"
                    raise InputError(f"input {file}: {what}; convert them apart")
                for start in range(0, len(data["input_ids"]), _ROWS):
                    part = {name: data[name][start : start + _ROWS] for name in self._names}
                    ids = _unmasked(part, target, file)
                    pairs = {}
                    if self.pairs:
                        types, labels = part["segment_ids"].astype(np.int64), part[_LABELS].reshape(-1)
                        pairs = {"token_type_ids": types, "next_sentence_label": labels.astype(np.int64)}
                    yield {"input_ids": ids, **pairs}


def _unmasked(data: dict[str, np.ndarray], target: BlockFolder, file: Path) -> np.ndarray:
    """The ids [n, L] before masking."""
    special = target.special_ids
    ids = data["input_ids"].astype(np.int64)
    row, slot = np.nonzero(data["masked_lm_positions"])  # 0, where [CLS] is, fills up the rows
    ids[row, data["masked_lm_positions"][row, slot]] = data["masked_lm_ids"][row, slot]
    ids[data["input_mask"] == 0] = special["pad"]
    last = data["input_mask"].astype(bool).sum(1) - 1
    framed = (ids[:, 0] == special["cls"]).all() and (ids[np.arange(len(ids)), last] == special["sep"]).all()
    if not framed or ids.min() < 0 or ids.max() >= target.vocab_size:
        fix = "give the vocabulary that the shards were made with"
        raise InputError(f"tokenizer: its ids are not those of {file}; {fix}")
    return ids


def _form_of(file: Path) -> str:
    with file.open("rb") as stream:
        return form_of(stream)


def _form(data: Any) -> tuple[int, bool]:
    """The block size of an open file, and whether it holds pairs."""
    missing = [name for name in _NEEDED if name not in data]
    if missing:
        fix = "give shards of create_pretraining_data"
        raise InputError(f"input {data.filename}: has no data set {missing[0]}; {fix}")
    return int(data["input_ids"].shape[1]), _LABELS in data


def _open(file: Path) -> Any:
    if not file.is_file():
        raise InputError(f"input {file}: no such file or folder; give a path that exists")
    try:
        import h5py

        return h5py.File(file, "r")
    except ImportError as error:
        fix = "pip install 'budget-trainer[hdf5]'"
        raise InputError(f"input {file}: reading it needs h5py ({error}); {fix}") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        if error.errno is None:
            raise InputError(f"input {file}: damaged or no HDF5 file ({reason}); fetch it again") from None
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES) and "unable to lock" in reason:
            fix = "wait for it, or set HDF5_USE_FILE_LOCKING=FALSE"
            raise InputError(f"input {file}: another process has it open for writing; {fix}") from None
        if "unable to lock" in reason:
            fault = f"its file system has no locks ({os.strerror(error.errno)})"
            raise InputError(f"input {file}: {fault}; set HDF5_USE_FILE_LOCKING=FALSE") from None
        fix = "mend that, or give another copy"
        raise InputError(f"input {file}: cannot be opened ({os.strerror(error.errno)}); {fix}") from None


def _build(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the data folder into the empty `folder`, all but manifest.json; return the manifest's content."""
    shards = _Shards(args.input)
    options = BlockOptions(
        block_size=shards.block_size,
        packing="nsp" if shards.pairs else "one_document",
        validation_text=str(shards.test[0].parent) if shards.test else None,
        **{name: getattr(args, name) for name in _FLAGS},
    )
    target = BlockFolder(folder, args.tokenizer, options)
    copies = None if args.keep_copies else _copies(shards, target)
    held_out = target.cache / "held_out.txt"
    with held_out.open("w", encoding="utf-8") as out:
        unknown = 0  # [UNK] in what is held out, whose text does not show it
        for rows in shards.rows(shards.test, target):
            unknown += target.unknown_in(rows["input_ids"])
            out.writelines(f"{text}\n" for text in _texts(target.tokenizer, rows["input_ids"]))
        train, more = _write_train(shards, copies, target, out)
    if not train["rows"]:
        raise InputError(f"input {' '.join(args.input)}: no block is left to train on; give more, or hold out less")
    validation = {**target.write_validation(held_out), "unknown_tokens": unknown + more}
    return target.content(train, validation, shards.sources)


def _copies(shards: _Shards, target: BlockFolder) -> Path:
    """Which rows to train on are later copies of another one: the same text, whatever was masked in it."""
    digests = target.cache / "digests"
    with digests.open("wb") as out:
        for rows in tqdm(shards.rows(shards.train, target), desc="comparing", unit=f"x{_ROWS} rows"):
            whole = np.concatenate([column.reshape(len(column), -1) for column in rows.values()], axis=1)
            out.writelines(digest_of(row.tobytes()) for row in whole)
    find_duplicates([digests], target.cache / "copies")
    return target.cache / "copies"


def _held_out_from(shards: _Shards, copies: Path | None, target: BlockFolder) -> float:
    """inf where there are many blocks, or one that its hash holds out and that gives a validation block; else the number of the
    first block of the share at the end that is held out instead, which is printed."""
    fraction, number, kept = target.options.held_out_fraction, 0, []
    for rows in shards.rows(shards.train, target) if fraction else ():
        ids = rows["input_ids"]
        first = [row for row in range(len(ids)) if copies is None or not is_duplicate(copies, number + row)]
        long = ids[first][(~np.isin(ids[first], target.frame)).sum(1) >= LEAST_TOKENS]
        if number > _ROWS or any(is_held_out(text, fraction) for text in _texts(target.tokenizer, long)):
            return math.inf
        kept += [number + row for row in first]
        number += len(ids)
    if not kept:
        return math.inf
    last = max(1, int(fraction * len(kept)))
    target.by_ends = True
    print(f"validation_fraction {fraction} holds out none of {len(kept):,} blocks: the last {last:,} are")
    return kept[-last]


def _write_train(
    shards: _Shards, copies: Path | None, target: BlockFolder, held_out: IO[str]
) -> tuple[dict[str, Any], int]:
    """Returns what the manifest says of the split, and how often [UNK] stands in what is held out."""
    columns = SentencePairs.columns if shards.pairs else {}
    writer = target.shard_writer(columns, SentencePairs.scalars)
    fraction = target.options.held_out_fraction
    number = tokens = dropped = text_bytes = unknown = 0
    from_row = _held_out_from(shards, copies, target)
    for rows in tqdm(shards.rows(shards.train, target), desc="writing", unit=f"x{_ROWS} rows"):
        ids = rows["input_ids"]
        first = [row for row in range(len(ids)) if copies is None or not is_duplicate(copies, number + row)]
        number, dropped = number + len(ids), dropped + len(ids) - len(first)
        train = []
        for row, text in zip(first, _texts(target.tokenizer, ids[first]), strict=True):
            if number - len(ids) + row >= from_row or (fraction and is_held_out(text, fraction)):
                held_out.write(f"{text}\n")
            else:
                train.append(row)
                text_bytes += len(text.encode())
        counts = {"tokens": target.unknown_in(ids[train]), "of": int((~np.isin(ids[train], target.frame)).sum())}
        target.losses.add({"unknown": counts})
        unknown += target.unknown_in(ids[first]) - counts["tokens"]
        tokens += target.add_rows(writer, {name: column[train] for name, column in rows.items()})
    target.check_losses()
    split = writer.close_split(tokens, writer.rows, text_bytes)
    return {"columns": ["input_ids", *columns], **split, "copies_dropped": dropped}, unknown


def _texts(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """The text of each block as far as its tokens tell it (an uncased vocabulary has no capitals)."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if len(ids) else []
    return [" ".join(text.split()) for text in texts]


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("hdf5", __doc__)
    add = parser.add_argument
    add("--input", type="path", nargs="+", required=True, help="folders of .hdf5 shards, or files")
    what = "what they were made with: folder, tokenizer.json, vocab.txt or Hub name"
    add("--tokenizer", type="path", required=True, help=what)
    parser.add_output()
    parser.add_options(BlockOptions, _FLAGS)
    add("--keep_copies", action="store_true", help="keep blocks that differ by their masks only (dupe_factor)")
    args = parser.parse(argv)
    if not 0 < args.validation_fraction < 1:
        parser.error(f"--validation_fraction {args.validation_fraction}: give a share between 0 and 1")
    output = Output(args.output_dir, args.overwrite)
    content = output.write(functools.partial(_build, args), args.command_line, args.input)
    print(f"{output.summary(content)}; {content['splits']['train']['copies_dropped']:,} copies were dropped")


if __name__ == "__main__":
    sys.exit(main())
