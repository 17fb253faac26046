"""Corpus and tokenizer -> data folder: fixed-length blocks of token ids, split, sharded and described.

    python -m data_prep.blocks --input wiki.txt.xz books/ --tokenizer tokenizer --output_dir blocks --num_proc 8

While it runs it needs about 0.3 GB of disk beside --output_dir for temporary files, which it deletes.
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.block_folder import BlockFolder, BlockOptions
from data_prep.cli import Output, Parser, command
from data_prep.corpus import token_groups


def _build(args: argparse.Namespace, options: BlockOptions, folder: Path) -> dict[str, Any]:
    """Write the data folder into the empty `folder`, all but manifest.json; return the manifest's content."""
    target = BlockFolder(folder, args.tokenizer, options)
    inputs = [args.source(path, target.cache) for path in args.input]
    validation = args.source(args.validation_text, target.cache) if args.validation_text else None
    sources: list[dict[str, Any]] = []
    documents = (document for source in inputs for document in source.counted(sources))
    return target.write(
        token_groups(documents, target.cache, target.ends_from, **target.tokenising), sources, validation
    )


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("blocks", __doc__)
    parser.add_sources()
    parser.add_argument(
        "--tokenizer", type="path", required=True, help="folder, tokenizer.json, vocab.txt or Hub name"
    )
    parser.add_output()
    parser.add_options(BlockOptions)
    args = parser.parse(argv)
    output = Output(args.output_dir, args.overwrite)
    start = time.monotonic()
    build = functools.partial(_build, args, args.options(BlockOptions))
    content = output.write(build, args.command_line, [*args.input, args.validation_text])
    seconds = time.monotonic() - start
    train, validation = content["splits"]["train"], content["splits"]["validation"]
    print(
        f"{output.summary(content)} ({validation.get('rows_cut', 0)} more were cut by --max_validation_blocks); "
        f"{seconds:.1f} s, {train['text_bytes'] / 1e6 / seconds:.1f} MB of text per second"
    )


if __name__ == "__main__":
    sys.exit(main())
