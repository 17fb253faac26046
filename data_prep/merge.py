"""Several data folders -> one: all rows of the first, then of the next, dealt anew; validation one after the other.

    python -m data_prep.merge --input data/wiki data/books --output_dir data/wikibooks

The folders must agree in tokenizer, block sizes, packing, columns and in what they held out. Documents are held out by a
hash of their text, so folders made with one --validation_fraction and one rule (the manifest's validation.rule) hold out
the same documents; with different ones, what one trains on could be what the other is validated on.
"""

import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from data_prep.cli import Parser, command, command_line, output_folder, positive
from data_prep.folders import FinishedFolder, deal, facts_of
from data_prep.shards import write_manifest

_SAME = ("block_size", "validation_block_size", "packing", "dtype", "vocab_size", "special_ids")


def _merge(inputs: Sequence[Path], output: Path, num_shards: int | None) -> dict[str, Any]:
    """Writes the rows of the data folders `inputs` into the empty folder `output`, all but manifest.json, and returns the
    manifest's content. num_shards: None for as many as the inputs have together.

    InputError: no data folder, one given twice, folders that do not go together, a file that is damaged or missing, more
    shards than rows."""
    folders = [FinishedFolder.open(path) for path in inputs]
    for first, second in itertools.combinations(folders, 2):
        if first.path.resolve() == second.path.resolve() or first.fingerprint == second.fingerprint:
            raise InputError(
                f"input {first.path} and {second.path} hold the same training rows; give each folder once"
            )
    for other in folders[1:]:
        _check_alike(folders[0], other)
    for folder in folders:
        folder.check_all()
    folders[0].copy_tokenizer(output)
    train = _summed([folder.split("train") for folder in folders])
    shards = num_shards or sum(len(folder.split("train")["files"]) for folder in folders)
    train["files"] = deal(folders, "train", output, shards)
    return {
        **facts_of(folders),
        "splits": {"train": train, "validation": _validation(folders, output)},
        "sources": [source for folder in folders for source in folder.manifest["sources"]],
    }


def _check_alike(first: FinishedFolder, other: FinishedFolder) -> None:
    """InputError names the first field in which the folders differ, with both values."""
    fields = [(name, first.manifest[name], other.manifest[name]) for name in _SAME]
    fields.insert(0, ("tokenizer", first.manifest["tokenizer"]["sha256"], other.manifest["tokenizer"]["sha256"]))
    fields.append(("columns", list(first.train_columns), list(other.train_columns)))
    for name, wanted, found in fields:
        if wanted != found:
            raise InputError(
                f"input {other.path}: {name} is {found}, that of {first.path} is {wanted}; make one of them anew with "
                "data_prep.blocks"
            )
    _check_held_out(first, other)


def _check_held_out(first: FinishedFolder, other: FinishedFolder) -> None:
    """Neither folder may train on what the other is validated on: one fraction for both, or one and the same text."""
    wanted, found = first.manifest["validation"], other.manifest["validation"]
    if wanted["fraction"] != found["fraction"]:
        raise InputError(
            f"input {other.path}: validation fraction is {found['fraction']}, that of {first.path} is "
            f"{wanted['fraction']}: one would train on documents that the other is validated on; make one of them anew "
            "with the other's --validation_fraction"
        )
    rules = wanted["rule"], found["rule"]
    if wanted["fraction"] and rules[0] != rules[1]:
        older = (first, other)[rules[1] < rules[0]]
        raise InputError(
            f"input {other.path}: validation rule is {rules[1]}, that of {first.path} is {rules[0]}: one would train on "
            f"documents that the other is validated on; make {older.path} anew with data_prep of this version"
        )
    if (wanted["text"] or found["text"]) and not _same_validation(first, other):
        raise InputError(
            f"input {other.path}: validation text is {found['text']}, that of {first.path} is {wanted['text']}, with other "
            "blocks: one could train on text that the other is validated on; make both with the same --validation_text"
        )


def _same_validation(first: FinishedFolder, other: FinishedFolder) -> bool:
    one, two = (folder.split("validation") for folder in (first, other))
    checksums = [[entry["sha256"] for entry in split["files"]] for split in (one, two)]
    return bool(one.get("text")) and checksums[0] == checksums[1] and one["text"] == two.get("text")


def _validation(folders: Sequence[FinishedFolder], output: Path) -> dict[str, Any]:
    """The validation of all folders, in order; a --validation_text that they share is taken once."""
    splits = [folder.split("validation") for folder in folders]
    if folders[0].manifest["validation"]["text"]:
        folders[0].copy_files("validation", output)
        return dict(splits[0])
    merged = _summed(splits)
    if not merged["rows"]:
        return {**merged, "files": []}
    merged["files"] = deal(folders, "validation", output, 1)
    name = splits[0]["text"]["name"]
    with (output / name).open("wb") as joined:
        for folder, part in zip(folders, splits, strict=True):
            with (folder.path / part["text"]["name"]).open("rb") as text:
                shutil.copyfileobj(text, joined)
    size = (output / name).stat().st_size
    return {**merged, "text": {"name": name, "bytes": size, "sha256": sha256(output / name)}}


def _summed(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all, added up, also those in mappings (pairs); of anything else that of the first, but no files."""
    merged: dict[str, Any] = {}
    for name, value in facts[0].items():
        if isinstance(value, int):
            merged[name] = sum(other[name] for other in facts)
        elif isinstance(value, Mapping) and name != "text":
            merged[name] = _summed([other[name] for other in facts])
        elif name not in ("files", "text"):
            merged[name] = value
    return merged


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("merge", __doc__)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, help="two or more data folders, in order")
    parser.add_output()
    add("--num_shards", type=positive, default=None, help="train files; as many as the inputs have together")
    args = parser.parse_args(argv)
    if len(args.input) < 2:
        parser.error(f"--input {args.input[0]}: give two or more data folders")
    with output_folder(args.output_dir, args.overwrite, "data folder", "manifest.json", args.input) as folder:
        content = _merge(args.input, folder, args.num_shards)
        write_manifest(folder, content, command_line("merge", argv))
    train, validation = content["splits"]["train"], content["splits"]["validation"]
    print(
        f"{args.output_dir}: {train['rows']} train blocks ({train['tokens'] / 1e6:.1f} M tokens) in "
        f"{len(train['files'])} shards and {validation['rows']} validation blocks of {len(args.input)} folders"
    )


if __name__ == "__main__":
    sys.exit(main())
