"""Data folder -> the same rows in another number of shards, more or fewer, that differ by at most one row.

    python -m data_prep.split --input data/blocks --output_dir data/blocks-64 --num_shards 64

The rows stay in the order of the corpus, so the shards are those that `data_prep.blocks --num_shards` would have made.
Validation and tokenizer are copied.
"""

import sys
from pathlib import Path
from typing import Any

from data_prep.cli import Parser, command, command_line, output_folder, positive
from data_prep.folders import FinishedFolder, deal, facts_of
from data_prep.shards import write_manifest


def split(source: Path, output: Path, num_shards: int) -> dict[str, Any]:
    """Writes the rows of the data folder `source` in `num_shards` shards, validation and tokenizer into the empty folder
    `output`, all but manifest.json, and returns the manifest's content. InputError: no data folder, a file that is damaged
    or missing, more shards than rows."""
    folder = FinishedFolder.open(source)
    folder.check_all()
    folder.copy_tokenizer(output)
    folder.copy_files("validation", output)
    content = facts_of([folder])
    splits = content["splits"]
    train = {**splits["train"], "files": deal([folder], "train", output, num_shards)}
    return {**content, "splits": {**splits, "train": train}}


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("split", __doc__)
    add = parser.add_argument
    add("--input", type=Path, required=True, help="a data folder")
    parser.add_output()
    add("--num_shards", type=positive, required=True, help="train files of the new folder")
    args = parser.parse_args(argv)
    with output_folder(args.output_dir, args.overwrite, "data folder", "manifest.json", [args.input]) as folder:
        content = split(args.input, folder, args.num_shards)
        write_manifest(folder, content, command_line("split", argv))
    train = content["splits"]["train"]
    print(f"{args.output_dir}: {train['rows']} train blocks in {len(train['files'])} shards, validation as it was")


if __name__ == "__main__":
    sys.exit(main())
