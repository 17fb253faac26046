"""Several data folders -> one: all rows of the first, then of the next, dealt anew; validation one after the other.

    python -m data_prep.merge --input data/wiki data/books --output_dir data/wikibooks

The folders must agree in tokenizer, block sizes, packing, columns and in what they held out. Documents are held out by a
hash of their text, so folders made with one --validation_fraction and one rule (the manifest's validation.rule) hold out
the same documents; with different ones, what one trains on could be what the other is validated on.
"""

import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError
from data_prep.cli import Output, Parser, command
from data_prep.folders import FinishedFolder, remade

_SAME = ("block_size", "validation_block_size", "packing", "dtype", "vocab_size", "special_ids")


def _merge(inputs: Sequence[Path], num_shards: int | None, output: Path) -> dict[str, Any]:
    """`remade` of the data folders `inputs`, where they go together. InputError: they do not, or one is given twice."""
    folders = [FinishedFolder.open(path) for path in inputs]
    for first, second in itertools.combinations(folders, 2):
        if first.fingerprint == second.fingerprint:
            raise InputError(f"input {first.path} and {second.path} hold the same training rows; give each once")
    for other in folders[1:]:
        _check_alike(folders[0], other)
    return remade(folders, num_shards, output)


def _check_alike(first: FinishedFolder, other: FinishedFolder) -> None:
    """InputError names the first field in which the folders differ, with both values. Neither may train on what the other is
    validated on: one fraction and rule for both, or one and the same text."""
    both = (first.manifest, other.manifest)
    held_out = [manifest["validation"] for manifest in both]
    anew = "make one of them anew with data_prep.blocks"
    leak = "one would train on what the other is validated on; "
    for folder, held in zip((first, other), held_out, strict=True):
        if held.get("ends"):
            fault = "it holds out the ends of its documents, so "
            raise InputError(f"input {folder.path}: {fault}{leak}make both with one --validation_text")
    fields = [("tokenizer", *(manifest["tokenizer"]["sha256"] for manifest in both), anew)]
    fields += [(name, *(manifest[name] for manifest in both), anew) for name in _SAME]
    fields.append(("columns", list(first.train_columns), list(other.train_columns), anew))
    why = f"{leak}make both with the same --validation_fraction"
    fields.append(("validation fraction", *(held["fraction"] for held in held_out), why))
    rules = [held["rule"] for held in held_out]
    if held_out[0]["fraction"]:
        older = (first, other)[rules[1] < rules[0]]
        fields.append(("validation rule", *rules, f"{leak}make {older.path} anew with data_prep of this version"))
    texts = [held["text"] for held in held_out]
    for name, wanted, found, why in fields:
        if wanted != found:
            raise InputError(f"input {other.path}: {name} is {found}, that of {first.path} is {wanted}: {why}")
    splits = [folder.split("validation") for folder in (first, other)]
    kept = [([entry["sha256"] for entry in split["files"]], split.get("text")) for split in splits]
    if any(texts) and (kept[0] != kept[1] or not kept[0][1]):
        found = f"validation text is {texts[1]}, that of {first.path} is {texts[0]}, with other blocks"
        raise InputError(f"input {other.path}: {found}: {leak}make both with the same --validation_text")


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("merge", __doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="two or more data folders, in order")
    parser.add_output()
    parser.add_argument("--num_shards", type="count", help="train files; as many as the inputs have together")
    args = parser.parse(argv)
    if len(args.input) < 2:
        parser.error(f"--input {args.input[0]}: give two or more data folders")
    output = Output(args.output_dir, args.overwrite)
    build = functools.partial(_merge, args.input, args.num_shards)
    content = output.write(build, args.command_line, args.input)
    print(f"{output.summary(content)} in {len(content['splits']['train']['files'])} shards")


if __name__ == "__main__":
    sys.exit(main())
