"""One file that says it all -> a data folder: read, clean, filter, de-duplicate, train a tokenizer, tokenise, cut into blocks.

    python -m data_prep.prepare recipes/data/wikibooks.yaml [--num_proc 16 --output_dir data/wikibooks]

The work is done in <output_dir>.work, piece by piece (about 128 MB of text): after a kill the same command goes on behind the
last finished piece, and the result is the same, byte for byte. When nothing has changed since, it does nothing. The command
line wins over the file, whose keys are:

  sources                    list of `{input: PATH, kind: ...}`; the other keys are flags of data_prep.blocks: errors,
                             dataset_config, dataset_split, text_column; and max_documents: the first so many
  tokenizer                  folder, file or Hub name; or a mapping for one to be trained: tokenizer_type (wordpiece; bpe,
                             unigram), vocab_size (32768), lowercase (true), limit_alphabet, max_megabytes (300, spread
                             evenly over the corpus)
  output_dir                 the data folder
  min_characters, max_characters  of a document (1, none), after cleaning: NFC, white space, invisible characters
  deduplicate                drop later copies: the same words, whatever case and spacing (true)
  language                   keep documents in this one, an ISO 639-1 code (none: all)
  max_tokens_per_character   drop what the tokenizer compresses worse (none; Cramming, arXiv 2212.14034, took 0.3)
  piece_megabytes            text between two points from which the work can go on (128)
  keep_work                  keep the folder of the work, so that other blocks from the same documents take less time (false)
  block_size, packing, short_seq_prob, num_shards, num_proc, validation_fraction, validation_text, validation_block_size,
  max_validation_blocks, overwrite       see data_prep.blocks
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from budget_trainer import __version__
from budget_trainer.core.command import exit_codes_text, program, run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import try_lock
from data_prep import blocks
from data_prep.cli import command_line
from data_prep.corpus import TokenGroup
from data_prep.data_recipe import OUTPUT, DataRecipe, read_data_recipe
from data_prep.duplicates import find_duplicates
from data_prep.manifest import write_manifest, written_aside
from data_prep.pieces import Piece, TokenPieces, open_stage, read_pieces
from data_prep.processing import Removed, Selection
from data_prep.tokenizer_training import train_tokenizer


def prepare(recipe: DataRecipe, command: str) -> Path:
    """Run the stages that are not done yet; returns the data folder."""
    output = recipe.output_dir
    done = recipe.is_done()
    if not done:
        recipe.check_output()
    work = output.with_name(f"{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    lock = try_lock(work / ".lock")
    if lock is None:
        raise InputError(f"output_dir: another process works in {work}; wait for it, or end it")
    with lock:
        for left in output.parent.glob(f"{output.name}.partial-*"):  # of processes that were killed in the last stage
            shutil.rmtree(left)
        if done:
            print(f"{output}: nothing has changed since it was made")
        else:
            _say(output, _stages(recipe, work, command))
        if not recipe.keep_work:
            shutil.rmtree(work)
    return output


def _stages(recipe: DataRecipe, work: Path, command: str) -> dict[str, Any]:
    """Everything from the sources to the data folder; returns the manifest's content."""
    print("1/4 documents", flush=True)
    pieces = read_pieces(recipe, open_stage(work / "documents", recipe.key("documents")))
    print("2/4 duplicates" + ("" if recipe.deduplicate else ": kept"), flush=True)
    duplicates = _duplicates(pieces, work) if recipe.deduplicate else None
    print("3/4 tokenizer", flush=True)
    recipe.args.tokenizer = _tokenizer(recipe, pieces, work)
    print("4/4 blocks", flush=True)
    tokens = open_stage(work / "tokens", recipe.key("tokens"))
    removed = Removed()
    for piece in pieces:
        removed.merge(piece.removed)

    def groups(tokenizer_file: Path, dtype: str, sentences: bool) -> Iterator[TokenGroup]:
        share, num_proc = blocks.held_out_share(recipe.args), recipe.args.num_proc
        stage = TokenPieces(tokens, tokenizer_file, dtype, sentences, share, num_proc)
        for piece in tqdm(pieces, desc="pieces", unit="piece"):
            select = Selection(duplicates, piece.first, recipe.language, recipe.max_tokens_per_character)
            for group in stage.groups(piece, select):
                removed.merge(group.removed)
                yield group

    with written_aside(recipe.output_dir, recipe.args.overwrite, *OUTPUT) as folder:
        cache = folder / "cache"
        cache.mkdir()
        content = blocks.write_folder(recipe.args, folder, cache, groups, _sources(recipe, pieces))
        shutil.rmtree(cache)
        content |= {"removed": removed.by, "recipe": recipe.key("blocks")}
        write_manifest(folder, content, command)
    return content


def _duplicates(pieces: list[Piece], work: Path) -> Path:
    """Which documents are later copies; made anew with the documents."""
    target = work / "documents" / "duplicates"
    if not target.exists():
        find_duplicates([piece.digests for piece in pieces], target)
    return target


def _tokenizer(recipe: DataRecipe, pieces: list[Piece], work: Path) -> str:
    """The folder of the trained tokenizer, or the name of the one that was asked for."""
    options = recipe.tokenizer
    if isinstance(options, str):
        return options
    stage = open_stage(work / "tokenizer", recipe.key("tokenizer"))
    target = stage / "trained"
    if not target.exists():
        with written_aside(target, True, "tokenizer", "tokenizer.json") as folder:
            text = stage / "sample.txt"
            _write_sample(pieces, text, 1e6 * options.max_megabytes)
            train_tokenizer(text, options).save_pretrained(folder)
            text.unlink()
    return str(target)


def _write_sample(pieces: list[Piece], file: Path, max_bytes: float) -> None:
    """Groups spread evenly over the corpus, so that its last source is in the vocabulary too."""
    size = sum(piece.text_bytes for piece in pieces)
    share = min(1.0, max_bytes / max(1, size))
    groups = (group for piece in pieces for group in piece.groups())
    with file.open("wb") as out:
        for number, group in enumerate(groups):
            if int((number + 1) * share) > int(number * share):
                out.writelines(document.encode() + b"\n" for document in group)


def _sources(recipe: DataRecipe, pieces: list[Piece]) -> list[dict[str, Any]]:
    """The manifest's account of each source: documents and bytes as read."""
    sources = []
    for number, source in enumerate(recipe.sources):
        mine = [piece for piece in pieces if piece.source == number]
        count: dict[str, Any] = {"documents": sum(p.read for p in mine), "text_bytes": sum(p.text_bytes for p in mine)}
        count |= {"dropped": mine[-1].dropped} if mine[-1].dropped else {}
        sources.append({"path": source.path, "kind": source.kind, **count})
    return sources


def _say(output: Path, content: dict[str, Any]) -> None:
    for name, account in content["removed"].items():
        print(f"removed by {name}: {account['documents']:,} documents, {account['characters'] / 1e6:.1f} M characters")
        for sample in account["samples"]:
            print(f"    {sample[:100]}")
    train, validation = content["splits"]["train"], content["splits"]["validation"]
    print(
        f"{output}: {train['rows']:,} train blocks of {content['block_size']} ({train['tokens'] / 1e6:.1f} M tokens, "
        f"{train['documents']:,} documents), {validation['rows']:,} validation blocks"
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if "-h" in words or "--help" in words:
        print(
            f"usage: {program('python -m data_prep.prepare')} RECIPE [--key value ...]\n\n{__doc__}\n{exit_codes_text()}"
        )
        return
    if "--version" in words:
        print(f"budget-trainer {__version__}")
        return
    if not words or words[0].startswith("-"):
        raise InputError("recipe: missing; give a YAML file, such as recipes/data/wikibooks.yaml, or see --help")
    prepare(read_data_recipe(Path(words[0]), words[1:]), command_line("prepare", argv))


if __name__ == "__main__":
    sys.exit(main())
