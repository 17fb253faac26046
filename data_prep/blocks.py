"""Corpus and tokenizer -> data folder: fixed-length blocks of token ids, split, sharded and described.

    python -m data_prep.blocks --input wiki.txt.xz books/ --tokenizer tokenizer --output_dir blocks --num_proc 8

While it runs it needs about 0.3 GB of disk beside --output_dir for temporary files, which it deletes.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.block_folder import BlockFolder, BlockOptions, counted
from data_prep.cli import Parser, command, command_line, options_of, output_folder, source_of
from data_prep.corpus import text_parts, tokenise
from data_prep.shards import write_manifest


def _build(args: argparse.Namespace, options: BlockOptions, folder: Path) -> dict[str, Any]:
    """Write the data folder into the empty `folder`, all but manifest.json; return the manifest's content."""
    target = BlockFolder(folder, args.tokenizer, options)
    inputs = [source_of(args, path, target.cache) for path in args.input]
    text = options.validation_text
    validation = source_of(args, text, target.cache) if text else None
    sources: list[dict[str, Any]] = []
    parts = text_parts(counted(inputs, sources), target.cache)
    return target.write(tokenise(parts, **target.tokenising), sources, validation)


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("blocks", __doc__)
    parser.add_sources()
    parser.add_argument("--tokenizer", required=True, help="folder, tokenizer.json, vocab.txt or Hub name")
    parser.add_output()
    parser.add_options(BlockOptions)
    args = parser.parse_args(argv)
    options = options_of(args, BlockOptions)
    start = time.monotonic()
    with output_folder(args.output_dir, args.overwrite, "data folder", "manifest.json") as folder:
        content = _build(args, options, folder)
        write_manifest(folder, content, command_line("blocks", argv))
    train, validation = content["splits"]["train"], content["splits"]["validation"]
    seconds = time.monotonic() - start
    print(
        f"{args.output_dir}: {train['rows']} train blocks of {args.block_size} ({train['tokens'] / 1e6:.1f} M tokens, "
        f"{train['documents']} documents), {validation['rows']} validation blocks "
        f"({validation.get('rows_cut', 0)} more were cut by --max_validation_blocks); {seconds:.1f} s, "
        f"{train['text_bytes'] / 1e6 / seconds:.1f} MB of text per second"
    )


if __name__ == "__main__":
    sys.exit(main())
