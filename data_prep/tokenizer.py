"""Trains a tokenizer (WordPiece, BPE or Unigram) on any corpus the readers know.

python -m data_prep.tokenizer --input corpus.txt --vocab_size 8192 --output_dir tokenizer
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from budget_trainer.core.io import write_json_atomic
from data_prep import losses
from data_prep.block_folder import BlockOptions
from data_prep.cli import Output, Parser, command
from data_prep.tokenizer_training import TokenizerOptions, train_tokenizer


def _copy_text(documents: Iterable[str], file: Path, max_bytes: float) -> None:
    """Writes one document per line until `max_bytes`: the text is read twice, and not every source can be."""
    size = 0
    with file.open("wb") as out:
        for document in documents:
            size += out.write(document.encode() + b"\n")
            if size >= max_bytes:
                print(f"stopped reading at --max_megabytes {max_bytes / 1e6:g}")
                return


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("tokenizer", __doc__)
    parser.add_sources()
    parser.add_output("tokenizer")
    parser.add_options(TokenizerOptions)
    parser.add_options(BlockOptions, ["max_unknown"])
    parser.set_defaults(vocab_size=8192)
    args = parser.parse(argv)
    options = args.options(TokenizerOptions)
    with Output(args.output_dir, args.overwrite, "tokenizer").new(args.input) as folder:
        cache = Path(tempfile.mkdtemp(dir=folder))
        sources = [args.source(path, cache) for path in args.input]
        entries: list[dict[str, Any]] = []
        documents = (text for source in sources for text in source.counted(entries))
        _copy_text(documents, cache / "text", args.max_megabytes * 1e6)
        documents.close()
        tokenizer = train_tokenizer(cache / "text", options)
        tokenizer.save_pretrained(folder)
        counts = losses.losses_of(cache / "text", folder / "tokenizer.json")
        counts.check(args.max_unknown, str(args.output_dir), "give a larger --vocab_size or --limit_alphabet")
        write_json_atomic(folder / "losses.json", counts.facts())
        shutil.rmtree(cache)
    for line in losses.lines({"losses": counts.facts(), "sources": entries}):
        print(line)
    why = f" (--vocab_size {args.vocab_size}: no other piece occurs twice in the text)"
    smaller = why if len(tokenizer) < args.vocab_size else ""
    print(f"{args.output_dir}: {len(tokenizer)} entries{smaller}")


if __name__ == "__main__":
    sys.exit(main())
