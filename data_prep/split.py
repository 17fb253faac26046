"""Data folder -> the same rows in another number of shards, more or fewer, that differ by at most one row.

    python -m data_prep.split --input data/blocks --output_dir data/blocks-64 --num_shards 64

The rows stay in the order of the corpus, so the shards are those that `data_prep.blocks --num_shards` would have made.
Validation and tokenizer are copied.
"""

import functools
import sys
from pathlib import Path

from data_prep.cli import Output, Parser, command
from data_prep.folders import FinishedFolder, remade


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("split", __doc__)
    parser.add_argument("--input", type=Path, required=True, help="a data folder")
    parser.add_output()
    parser.add_argument("--num_shards", type="count", required=True, help="train files of the new folder")
    args = parser.parse(argv)
    output = Output(args.output_dir, args.overwrite)
    build = functools.partial(remade, [FinishedFolder.open(args.input)], args.num_shards)
    content = output.write(build, args.command_line, [args.input])
    print(f"{output.summary(content)} in {len(content['splits']['train']['files'])} shards")


if __name__ == "__main__":
    sys.exit(main())
