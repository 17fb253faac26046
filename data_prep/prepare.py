"""One file that says it all -> a data folder: read, clean, filter, de-duplicate, train a tokenizer, tokenise, cut into blocks.

    python -m data_prep.prepare recipes/data/wikibooks.yaml [--num_proc 16 --output_dir data/wikibooks]

The work is done in <output_dir>.work, piece by piece (about 128 MB of text): after a kill the same command goes on behind the
last finished piece, and the result is the same, byte for byte. When nothing has changed since, it does nothing. The command
line wins over the file, whose keys are:

  sources                    list of `{input: PATH, kind: ...}`; the other keys are flags of data_prep.blocks: errors,
                             encoding, documents, dataset_config, dataset_split, text_column, drop_holes; max_documents:
                             the first so many; templates: what those of a dump show, by name
  tokenizer                  folder, file or Hub name; or a mapping for one to be trained: tokenizer_type (wordpiece; bpe,
                             unigram), vocab_size (32768), lowercase (true), strip_accents (auto), limit_alphabet,
                             max_megabytes (300, spread evenly over the corpus)
  output_dir                 the data folder
  min_characters, max_characters  of a document (1, none), after cleaning: NFC, white space, invisible characters
  deduplicate                drop later copies: the same words, whatever case and spacing (true)
  language                   keep documents in this one, an ISO 639-1 code (none: all)
  max_tokens_per_character   drop what the tokenizer compresses worse (none; Cramming, arXiv 2212.14034, took 0.3)
  piece_megabytes            text between two points from which the work can go on (128)
  keep_work                  keep the folder of the work, so that other blocks from the same documents take less time (false)
  block_size, packing, short_seq_prob, num_shards, num_proc, validation_fraction, validation_text, validation_block_size,
  max_validation_blocks, max_unknown, overwrite  see data_prep.blocks; validation_text is read with the encoding, errors,
                             documents and text_column that all sources share
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder, fsync, hold_folder, write_json_atomic
from budget_trainer.core.package_data import recipe_path
from data_prep.block_folder import BlockFolder
from data_prep.cli import Output, Parser, command
from data_prep.corpus import PART_BYTES, TokenGroup, read_part, read_tokens, tokenise_part, write_part
from data_prep.encoding import Encoder
from data_prep.filters import Removed, Selection, digest_of, find_duplicates
from data_prep.recipe import DataRecipe
from data_prep.sources import Source
from data_prep.tokenizer_training import train_tokenizer


def _prepare(recipe: DataRecipe, inputs: list[str | Path | None], command: str) -> None:
    """Run the stages that are not done yet. `inputs` must not be where the output is."""
    output, work = recipe.output.path, recipe.output.work
    done = recipe.is_done()
    if not done:
        recipe.output.check(inputs)  # before any work is done for it
    if work.exists() and not (work / ".lock").is_file() and not (work.is_dir() and not any(work.iterdir())):
        what = f"{work}, where the work is to be done, exists and is not of this command"
        raise InputError(f"output_dir {output}: {what}; move it away, or give another path")
    with hold_folder(work, keep=True):
        if done:
            print(f"{output}: nothing has changed since it was made")
        else:
            content = _stages(recipe, work, command)
            for name, account in content["removed"].items():
                amount = f"{account['documents']:,} documents, {account['characters'] / 1e6:.1f} M characters"
                print(f"removed by {name}: {amount}", *(sample[:100] for sample in account["samples"]), sep="\n    ")
            print(recipe.output.summary(content))
        if not recipe.keep_work:
            shutil.rmtree(work)


def _stages(recipe: DataRecipe, work: Path, command: str) -> dict[str, Any]:
    """Everything from the sources to the data folder; returns the manifest's content."""
    print("1/4 documents", flush=True)
    pieces = _read_pieces(recipe, _open_stage(work / "documents", recipe.key("documents")))
    print("2/4 duplicates" + ("" if recipe.deduplicate else ": kept"), flush=True)
    duplicates = work / "documents" / "duplicates" if recipe.deduplicate else None  # made anew with the documents
    if duplicates is not None and not duplicates.exists():
        find_duplicates([piece.digests for piece in pieces], duplicates)
    print("3/4 tokenizer", flush=True)
    tokenizer = _tokenizer(recipe, pieces, work)
    print("4/4 blocks", flush=True)
    tokens = _open_stage(work / "tokens", recipe.key("tokens"))
    removed = Removed()
    for piece in pieces:
        removed.merge(piece.removed)

    def selection(piece: _Piece) -> Selection:
        return Selection(duplicates, piece.first, recipe.language, recipe.max_tokens_per_character)

    def kept(target: BlockFolder, pieces: list[_Piece]) -> Iterator[list[str]]:
        encoder = Encoder(str(target.tokenizer_file))
        for piece in pieces:
            select, first = selection(piece), 0
            for group in read_part(piece.file):
                yield select(group, first, encoder)[0]
                first += len(group)

    def groups(target: BlockFolder) -> Iterator[TokenGroup]:
        few, held_out = sum(piece.text_bytes for piece in pieces) < PART_BYTES, False
        ends_from = target.ends_from(kept(target, pieces)) if few else 0
        last = max((number for number, piece in enumerate(pieces) if piece.documents), default=0)
        for number, piece in enumerate(tqdm(pieces, desc="pieces", unit="piece")):
            if number == last and not (few or held_out):
                ends_from = target.ends_from(kept(target, pieces[number:]))
            for group in _tokenised(piece, tokens, target, selection(piece), ends_from):
                held_out = held_out or bool(group.held_out)
                removed.merge(group.removed)
                yield group

    def build(folder: Path) -> dict[str, Any]:
        target = BlockFolder(folder, tokenizer, recipe.blocks)
        validation = None
        if text := recipe.blocks.validation_text:
            first, shared = recipe.sources[0], {"errors", "encoding", "documents_end", "text_column"}
            alike = {n: v for n in shared if all((v := getattr(first, n)) == getattr(s, n) for s in recipe.sources)}
            if alike.get("documents_end") == "lines" and Source(text).kind not in ("text", "books"):
                del alike["documents_end"]
            validation = Source(text, cache_dir=target.cache, num_proc=recipe.blocks.num_proc, **alike)
            print(f"{text}: read as {validation.kind}")
        content = target.write(groups(target), _sources(recipe, pieces), validation)
        return {**content, "removed": removed.by, "recipe": recipe.key("blocks")}

    return recipe.output.write(build, command, aside=work / "blocks")


@dataclass(frozen=True)
class _Piece:
    """Some documents of one source, up to `piece_megabytes`: the Arrow `file`, the `digests` and an account.

    read: as they came; documents: those that were kept; first: the number of the first one among all that were kept; last:
    the source ends here; losses: then what its reader left out of it."""

    file: Path
    source: int
    first: int
    read: int = 0
    documents: int = 0
    text_bytes: int = 0
    last: bool = False
    removed: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)

    @property
    def digests(self) -> Path:
        return self.file.with_suffix(".digests")

    @property
    def account(self) -> Path:
        return self.file.with_suffix(".json")


def _read_mark(path: Path) -> Any:
    """What a step left when it was done; None where that is missing or damaged, and the step is to be done again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _open_stage(folder: Path, key: dict[str, Any]) -> Path:
    """The folder of a stage, emptied where what it holds was made by another `key`."""
    mark = folder / "stage.json"
    if _read_mark(mark) != key:
        fresh_folder(folder)
        write_json_atomic(mark, key)
    return folder


def _read_pieces(recipe: DataRecipe, folder: Path) -> list[_Piece]:
    """The pieces of all sources in order; those that are not in `folder` yet are made."""
    pieces: list[_Piece] = []
    for number, source in enumerate(recipe.sources):
        while account := _read_mark((piece := _following(pieces, folder, number)).account):
            pieces.append(replace(piece, **account))
        mine = [piece for piece in pieces if piece.source == number]
        if mine and mine[-1].last:
            continue
        source.cache_dir, last = folder / "cache", False
        source.cache_dir.mkdir(exist_ok=True)
        with closing(source.documents()) as documents:
            skipped = sum(piece.read for piece in mine)
            reader = _Reader(recipe, source, itertools.islice(documents, skipped, None))
            while not last:
                pieces.append(reader.write(_following(pieces, folder, number), 1e6 * recipe.piece_megabytes))
                last = pieces[-1].last
        shutil.rmtree(source.cache_dir)
    return pieces


def _following(pieces: list[_Piece], folder: Path, source: int) -> _Piece:
    """The next piece of the source, still empty."""
    number = sum(piece.source == source for piece in pieces)
    file = folder / f"source-{source:03d}-piece-{number:05d}.arrow"
    return _Piece(file, source, sum(piece.documents for piece in pieces))


class _Reader:
    """Those of a source's `documents` that are kept, written in pieces, each with an account."""

    def __init__(self, recipe: DataRecipe, source: Source, documents: Iterator[str]) -> None:
        self._source, self._removed = source, Removed()
        self._kept = recipe.lengths.keep(self._counted(documents), self._removed.add)
        self._read = self._text_bytes = 0  # of this piece, as what was removed

    def _counted(self, documents: Iterator[str]) -> Iterator[str]:
        for document in documents:
            self._read += 1
            yield document

    def _digested(self, digests: Any) -> Iterator[str]:
        for document in self._kept:
            self._text_bytes += len(document.encode())
            digests.write(digest_of(document))
            yield document

    def write(self, piece: _Piece, piece_bytes: float) -> _Piece:
        """The piece with its account; its files are complete or absent."""
        self._read = self._text_bytes = 0
        self._removed.by = {}
        aside = piece.file.with_suffix(".writing")
        with piece.digests.open("wb") as digests:
            documents, last = write_part(self._digested(digests), aside, piece_bytes)
        fsync(piece.digests)
        fsync(aside)
        aside.rename(piece.file)
        account: dict[str, Any] = {"read": self._read, "documents": documents, "text_bytes": self._text_bytes}
        losses = self._source.losses() if last else {}
        account |= {"last": last, "removed": self._removed.by, "losses": losses}
        write_json_atomic(piece.account, account)
        return replace(piece, **account)


def _tokenised(
    piece: _Piece, folder: Path, target: BlockFolder, select: Selection, ends_from: int
) -> Iterator[TokenGroup]:
    """The groups of one piece, tokenised into files of `folder` where that is not done yet."""
    if not piece.documents:
        return
    mark = folder / piece.account.name
    if (names := _read_mark(mark)) is None:
        for stale in folder.glob(f"{piece.file.stem}.*"):
            stale.unlink()
        how = {**target.tokenising, "select": select, "ends_from": ends_from}
        files = tokenise_part(piece.file, folder / piece.file.name, **how)
        for file in files:
            fsync(file)
        names = [file.name for file in files]
        write_json_atomic(mark, names)
    yield from read_tokens([folder / name for name in names])


def _tokenizer(recipe: DataRecipe, pieces: list[_Piece], work: Path) -> str:
    """The folder of the trained tokenizer, or the name of the one that was asked for."""
    options = recipe.tokenizer
    if isinstance(options, str):
        return options
    stage = _open_stage(work / "tokenizer", recipe.key("tokenizer"))
    target = stage / "trained"
    if not target.exists():
        with Output(target, True, "tokenizer").new() as folder:
            text = stage / "sample.txt"
            _write_sample(pieces, text, 1e6 * options.max_megabytes)
            train_tokenizer(text, options).save_pretrained(folder)
            text.unlink()
    return str(target)


def _write_sample(pieces: list[_Piece], file: Path, max_bytes: float) -> None:
    """Groups spread evenly over the corpus, so that its last source is in the vocabulary too."""
    size = sum(piece.text_bytes for piece in pieces)
    share = min(1.0, max_bytes / max(1, size))
    groups = (group for piece in pieces for group in read_part(piece.file))
    with file.open("wb") as out:
        for number, group in enumerate(groups):
            if int((number + 1) * share) > int(number * share):
                out.writelines(document.encode() + b"\n" for document in group)


def _sources(recipe: DataRecipe, pieces: list[_Piece]) -> list[dict[str, Any]]:
    """The manifest's account of each source: documents and bytes as read."""
    sources: list[dict[str, Any]] = []
    for number, source in enumerate(recipe.sources):
        mine = [piece for piece in pieces if piece.source == number]
        counts = {"documents": sum(p.read for p in mine), "text_bytes": sum(p.text_bytes for p in mine)}
        sources.append({"path": source.path, "kind": source.kind, **counts, **mine[-1].losses})
    return sources


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("prepare", __doc__)
    parser.usage, parser.description = "%(prog)s RECIPE [--key value ...]", __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = "a YAML file, such as recipes/data/wikibooks.yaml, or the name of one of the package: wikibooks"
    parser.add_argument("recipe", type=Path, help=what)
    args = parser.parse(argv, more=True)
    args.recipe = Path(recipe_path(str(args.recipe), "recipe", "data"))
    recipe = DataRecipe.read(args.recipe, args.others)
    inputs = [args.recipe, *(source.path for source in recipe.sources), recipe.blocks.validation_text]
    _prepare(recipe, inputs, args.command_line)


if __name__ == "__main__":
    sys.exit(main())
