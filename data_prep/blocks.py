"""Corpus and tokenizer -> data folder: fixed-length blocks of token ids, split, sharded and described.

    python -m data_prep.blocks --input wiki.txt.xz books/ --tokenizer tokenizer --output_dir blocks --num_proc 8

While it runs it needs about 0.3 GB of disk beside --output_dir for temporary files, which it deletes.
"""

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from data_prep.cli import Parser, add_source_flags, command_line, positive, source_of
from data_prep.corpus import TokenGroup, text_parts, tokenise
from data_prep.documents import Source
from data_prep.encoding import load_backend
from data_prep.held_out import validation_facts
from data_prep.manifest import write_manifest, written_aside
from data_prep.packers import PACKERS, Packer
from data_prep.packing import validation_rows
from data_prep.shards import ShardWriter
from data_prep.tokenizer import load_tokenizer, special_ids

HELD_OUT = "validation.txt"  # the text of the validation blocks, so that any other model can be scored on it


# The groups of the corpus, given the tokenizer's file, the dtype of ids and whether sentences are to be marked.
Groups = Callable[[Path, str, bool], Iterator[TokenGroup]]


def build(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Writes the data folder that the command line `args` describes into the empty `folder`, all but manifest.json,
    and returns the manifest's content."""
    cache = folder / "cache"
    cache.mkdir()
    inputs = [source_of(args, path, cache) for path in args.input]
    sources: list[dict[str, Any]] = []
    parts = text_parts(_counted(inputs, sources), cache)

    def groups(tokenizer_file: Path, dtype: str, sentences: bool) -> Iterator[TokenGroup]:
        return tokenise(parts, tokenizer_file, dtype, held_out_share(args), args.num_proc, sentences)

    content = write_folder(args, folder, cache, groups, sources)
    shutil.rmtree(cache)
    return content


def held_out_share(args: argparse.Namespace) -> float:
    """The share of the corpus' documents that goes to validation."""
    return 0.0 if args.validation_text else float(args.validation_fraction)


def write_folder(
    args: argparse.Namespace, folder: Path, cache: Path, groups_of: Groups, sources: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything behind the groups. `cache` takes what is not kept; `sources` go into the manifest's content."""
    tokenizer = load_tokenizer(args.tokenizer)
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer_file = folder / "tokenizer" / "tokenizer.json"
    special = special_ids(tokenizer)
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    packer = PACKERS[args.packing](args.block_size, special, args.short_seq_prob)
    held_out = cache / "held_out.txt"
    groups = groups_of(tokenizer_file, dtype, packer.sentences)
    train = _write_train(args, folder, _setting_aside(groups, held_out), packer, special, dtype)
    if args.validation_text:
        _write_texts(_counted([source_of(args, args.validation_text, cache)], sources), held_out)
    validation = write_validation(args, folder, held_out, tokenizer_file, special, dtype)
    return {
        "block_size": args.block_size,
        "validation_block_size": args.validation_block_size,
        "packing": args.packing,
        "dtype": dtype,
        "vocab_size": len(tokenizer),
        "special_ids": special,
        "tokenizer": {"folder": "tokenizer", "sha256": sha256(tokenizer_file)},
        "validation": validation_facts(held_out_share(args), args.validation_text),
        "splits": {"train": train, "validation": validation},
        "sources": sources,
    }


def _counted(sources: list[Source], counts: list[dict[str, Any]]) -> Iterator[str]:
    """The documents of all sources; appends one entry per source to `counts`, for the manifest."""
    for source in sources:
        count: dict[str, Any] = {"path": source.path, "kind": source.kind, "documents": 0, "text_bytes": 0}
        counts.append(count)
        for document in source.documents():
            count["documents"] += 1
            count["text_bytes"] += len(document.encode())
            yield document
        if source.dropped:
            count["dropped"] = dict(source.dropped)


def _setting_aside(groups: Iterable[TokenGroup], file: Path) -> Iterator[TokenGroup]:
    """Passes the groups on and writes their held-out documents to `file`, one line each."""
    with file.open("w", encoding="utf-8", newline="\n") as out:
        for group in groups:
            out.writelines(f"{document}\n" for document in group.held_out)
            yield group


def _write_train(
    args: argparse.Namespace,
    folder: Path,
    groups: Iterable[TokenGroup],
    packer: Packer,
    special: dict[str, int],
    dtype: str,
) -> dict[str, Any]:
    columns = {"input_ids": dtype, **packer.columns}
    writer = ShardWriter(folder, "train", args.num_shards, columns, args.block_size, packer.scalars)
    documents = text_bytes = tokens = 0

    def write(rows: dict[str, np.ndarray]) -> None:
        nonlocal tokens
        tokens += int((rows["input_ids"] != special["pad"]).sum())
        writer.add(**rows)

    for group in groups:
        documents, text_bytes = documents + len(group.lengths), text_bytes + group.train_bytes
        write(packer.add(group))
    write(packer.finish())
    if not writer.rows:
        raise InputError(
            f"input {' '.join(args.input)}: no text is left to train on; give more documents or less validation"
        )
    split = split_entry(writer.rows, tokens, documents, text_bytes, writer.close())
    return {"columns": list(columns), **split, **packer.facts()}


def write_validation(
    args: argparse.Namespace, folder: Path, held_out: Path, tokenizer_file: Path, special: dict[str, int], dtype: str
) -> dict[str, Any]:
    """The first blocks of the held-out documents as the pinned evaluation would cut them, and their text."""
    if not args.validation_text and not args.validation_fraction:
        return split_entry(0, 0, 0, 0, [])
    blocks = validation_rows(
        _read_texts(held_out),
        load_backend(str(tokenizer_file)),
        args.validation_block_size,
        special,
        args.max_validation_blocks,
    )
    if not len(blocks.input_ids):
        flag = f"validation_text {args.validation_text}"
        if not args.validation_text:
            flag = f"validation_fraction {args.validation_fraction}"
        raise InputError(f"{flag} gives no validation block of 16 tokens or more; raise it or give --validation_text")
    columns = {"input_ids": dtype, "token_bytes": "uint16"}
    writer = ShardWriter(folder, "validation", 1, columns, args.validation_block_size)
    writer.add(input_ids=blocks.input_ids, token_bytes=blocks.token_bytes)
    used = itertools.islice(_read_texts(held_out), blocks.documents)
    documents, text_bytes = _write_texts((f"{text}\n" for text in used), folder / HELD_OUT)
    text_bytes -= documents  # the blank lines
    tokens = int((blocks.input_ids != special["pad"]).sum())
    text = {"name": HELD_OUT, "bytes": (folder / HELD_OUT).stat().st_size, "sha256": sha256(folder / HELD_OUT)}
    split = split_entry(writer.rows, tokens, documents, text_bytes, writer.close())
    return {**split, "documents_held_out": blocks.documents_seen, "rows_cut": blocks.cut, "text": text}


def split_entry(
    rows: int, tokens: int, documents: int, text_bytes: int, files: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"rows": rows, "tokens": tokens, "documents": documents, "text_bytes": text_bytes, "files": files}


def _write_texts(documents: Iterable[str], file: Path) -> tuple[int, int]:
    """One document per line; returns (documents, UTF-8 bytes without the line ends)."""
    count = size = 0
    with file.open("wb") as out:
        for document in documents:
            size += out.write(document.encode())
            out.write(b"\n")
            count += 1
    return count, size


def _read_texts(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield line.removesuffix("\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("blocks", __doc__.splitlines()[0] if __doc__ else None)
    add_source_flags(parser)
    add = parser.add_argument
    add("--tokenizer", required=True, help="folder, tokenizer.json, vocab.txt or Hub name")
    add("--output_dir", type=Path, required=True, help="the data folder to make")
    add("--block_size", type=positive, default=128, help="token positions of a block, [CLS] and [SEP] included")
    packing = "several documents in a block, one only, one's whole sentences, or pairs for next-sentence prediction"
    add("--packing", choices=tuple(PACKERS), default="packed", help=packing)
    add(
        "--short_seq_prob",
        type=float,
        default=0.1,
        help="share of blocks cut short (packing sentences and nsp), as BERT's",
    )
    add("--num_shards", type=positive, default=8, help="train files; they differ by at most one row")
    add(
        "--num_proc",
        type=positive,
        default=2,
        help="processes that read dumps and tokenise; the result does not depend on it",
    )
    add("--validation_fraction", type=float, default=0.01, help="share of documents held out, by hash of their text")
    add("--validation_text", default=None, help="corpus to validate on instead; then all of --input is for training")
    add("--validation_block_size", type=positive, default=128, help="128 is the pinned evaluation's")
    add("--max_validation_blocks", type=positive, default=2000, help="validation blocks beyond this are left out")
    add("--overwrite", action="store_true", help="replace an existing data folder")
    args = parser.parse_args(argv)
    for name in ("block_size", "validation_block_size"):
        if not 16 <= getattr(args, name) <= 8192:
            parser.error(f"--{name} {getattr(args, name)}: give 16 to 8192")
    if not 0 <= args.short_seq_prob <= 1:
        parser.error(f"--short_seq_prob {args.short_seq_prob}: give a share of 0 to 1")
    if not 0 <= args.validation_fraction < 1:
        parser.error(f"--validation_fraction {args.validation_fraction}: give a share of at least 0 and less than 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    args = parse(argv)
    start = time.monotonic()
    with written_aside(args.output_dir, args.overwrite, "data folder", "manifest.json") as folder:
        content = build(args, folder)
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
