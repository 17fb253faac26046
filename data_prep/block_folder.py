"""Groups of token ids -> a data folder: blocks of training and validation, the tokenizer, the content of the manifest."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from budget_trainer.data.whole_words import vocabulary_size
from data_prep import losses
from data_prep.corpus import END_CHARACTERS, HELD_OUT_RULE, TokenGroup, is_held_out
from data_prep.encoding import Encoder, load_tokenizer, special_ids
from data_prep.files import read_lines
from data_prep.next_sentence import SentencePairs
from data_prep.options import Options, flag
from data_prep.packing import LEAST_TOKENS, OneDocument, PackedBlocks, Packer, WholeSentences, validation_rows
from data_prep.shards import ShardWriter
from data_prep.sources import Source

PACKERS: dict[str, type[Packer]] = {
    "packed": PackedBlocks,
    "one_document": OneDocument,
    "sentences": WholeSentences,
    "nsp": SentencePairs,
}
_Facts = dict[str, Any]  # for the manifest
_HELD_OUT = "validation.txt"  # the text of the validation blocks, so that any other model can be scored on it
_CHECKED_BYTES = 64e6  # of text, between two looks at what was lost
_FEW = 20  # documents whose ends are enough for a small corpus
_SIZES = (16, 8192)
_BELOW_ONE = (0, math.nextafter(1, 0))
_PACKINGS = "several documents in a block, one only, one's whole sentences, or pairs for next-sentence prediction"


@dataclass(frozen=True)
class BlockOptions(Options):
    """How text becomes blocks: the flags of `data_prep.blocks`, and keys of a recipe for `data_prep.prepare`."""

    block_size: int = flag(128, "token positions of a block, [CLS] and [SEP] included", within=_SIZES)
    packing: str = flag("packed", _PACKINGS, tuple(PACKERS))
    short_seq_prob: float = flag(0.1, "share of blocks cut short (packing sentences and nsp)", within=(0, 1))
    num_shards: int = flag(8, "train files; they differ by at most one row")
    num_proc: int = flag(2, "processes that read dumps and tokenise; the result does not depend on it")
    validation_fraction: float = flag(0.01, "share of documents held out, by hash of their text", within=_BELOW_ONE)
    validation_text: str | None = flag(
        None, "corpus to validate on instead; then all of --input is for training", path=True
    )
    validation_block_size: int = flag(128, "128 is the pinned evaluation's", within=_SIZES)
    max_validation_blocks: int = flag(2000, "validation blocks beyond this are left out")
    max_unknown: float = flag(
        losses.REFUSE, "largest share of [UNK], or of letters that lose their mark", within=(0, 1)
    )

    @property
    def held_out_fraction(self) -> float:
        """The share of the corpus' documents that goes to validation."""
        return 0.0 if self.validation_text else self.validation_fraction

    @property
    def by_sentence(self) -> bool:
        """Whether documents must be tokenised sentence by sentence."""
        return PACKERS[self.packing].by_sentence


class BlockFolder:
    """A data folder in the making, in an empty `folder`; all but manifest.json, whose content `write` returns.

    special_ids: token ids by role. frame: of those that stand for no text. dtype: of stored token ids. losses: what the
    tokenizer lost, as `Meter.count` says. by_ends: what is held out are ends, not whole documents. cache: a folder for what is
    not kept; `content` deletes it."""

    def __init__(self, folder: Path, tokenizer: str, options: BlockOptions) -> None:
        self.options = options
        self.tokenizer = load_tokenizer(tokenizer)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.tokenizer_file = folder / "tokenizer" / "tokenizer.json"
        self.special_ids = special_ids(self.tokenizer)
        self.frame = [self.special_ids[role] for role in ("pad", "cls", "sep")]
        self.vocab_size = vocabulary_size(self.tokenizer)
        self.dtype = "uint16" if self.vocab_size <= 2**16 else "uint32"
        self.cache = folder / "cache"
        self.cache.mkdir()
        self.losses = losses.Losses()
        self._folder, self._name = folder, tokenizer
        self.by_ends = False  # what is held out are the ends of documents

    @property
    def tokenising(self) -> _Facts:
        """How `tokenise` must make the groups for this folder."""
        options = self.options
        return {
            "tokenizer_file": str(self.tokenizer_file),
            "dtype": self.dtype,
            "num_proc": options.num_proc,
            "fraction": options.held_out_fraction,
            "sentences": options.by_sentence,
        }

    def ends_from(self, groups: Iterable[list[str]]) -> int:
        """0 where the whole corpus, `groups` of documents, has one that its hash holds out and that gives a validation block;
        else how many characters a document must have for its end to be held out instead, which is printed."""
        fraction, lengths = self.options.held_out_fraction, list[int]()
        if not fraction:
            return 0
        backend = Encoder(str(self.tokenizer_file)).backend
        for document in itertools.chain.from_iterable(groups):
            if is_held_out(document, fraction):
                head = backend.encode(document[:100_000], add_special_tokens=False)
                if len(head) >= LEAST_TOKENS:
                    return 0
            lengths.append(len(document))
        if not lengths:
            return 0
        self.by_ends = True
        lengths.sort(reverse=True)
        enough = max(_FEW, int(fraction * sum(lengths) / END_CHARACTERS))  # all together give about the share
        least = max(min(4 * END_CHARACTERS, lengths[0]), lengths[min(enough, len(lengths)) - 1])
        what = f"the last {100 * fraction:.3g}% of those of {least:,} characters or more is, of each {END_CHARACTERS} at least"
        print(f"validation_fraction {fraction} holds out none of {len(lengths):,} documents whole: {what}")
        return least

    def write(self, groups: Iterable[TokenGroup], sources: list[_Facts], validation: Source | None = None) -> _Facts:
        """Write the blocks of `groups`, made as `tokenising` says, and of a text to validate on, `validation`.

        sources: the manifest's entries of what the groups are made from; read when the groups are at their end. InputError:
        nothing is left to train on, or to validate on."""
        held_out = self.cache / "held_out.txt"
        train = self._write_train(groups, held_out, sources)
        if validation is not None:
            _write_lines(validation.counted(sources), held_out)
        split = self.write_validation(held_out)
        if validation is not None:
            lost = losses.losses_of(held_out, self.tokenizer_file)
            lost.check(self.options.max_unknown, f"{self._name}, validation_text {validation.path}")
            split["losses"] = lost.facts()
        return self.content(train, split, sources)

    def content(self, train: _Facts, validation: _Facts, sources: list[_Facts]) -> _Facts:
        """Delete the cache; return the manifest's content, given what it says of the splits and of the sources."""
        shutil.rmtree(self.cache)
        options = self.options
        return {
            "block_size": options.block_size,
            "validation_block_size": options.validation_block_size,
            "packing": options.packing,
            "dtype": self.dtype,
            "vocab_size": self.vocab_size,
            "special_ids": self.special_ids,
            "tokenizer": {"folder": "tokenizer", "sha256": sha256(self.tokenizer_file)},
            # How documents were held out: folders that are merged must agree in it.
            "validation": {
                "fraction": options.held_out_fraction,
                "text": options.validation_text,
                "rule": HELD_OUT_RULE,
                **({"ends": validation["documents_held_out"]} if self.by_ends else {}),
            },
            "splits": {"train": train, "validation": validation},
            "sources": sources,
            "losses": self.losses.facts(),
        }

    def shard_writer(self, columns: dict[str, str], scalars: tuple[str, ...]) -> ShardWriter:
        """The writer of the training rows, with `columns` besides input_ids."""
        options = self.options
        columns = {"input_ids": self.dtype, **columns}
        return ShardWriter(self._folder, "train", options.num_shards, columns, options.block_size, scalars)

    def check_losses(self) -> None:
        """InputError where they are above max_unknown."""
        self.losses.check(self.options.max_unknown, self._name)

    def _write_train(self, groups: Iterable[TokenGroup], held_out: Path, sources: list[_Facts]) -> _Facts:
        options = self.options
        packer = PACKERS[options.packing](options.block_size, self.special_ids, options.short_seq_prob)
        writer = self.shard_writer(packer.columns, packer.scalars)
        documents = text_bytes = tokens = checked = 0
        with held_out.open("w", encoding="utf-8", newline="\n") as out:
            for group in groups:
                out.writelines(f"{document}\n" for document in group.held_out)
                documents, text_bytes = documents + len(group.lengths), text_bytes + group.train_bytes
                self.losses.add(group.losses)
                if text_bytes - checked > _CHECKED_BYTES:
                    self.check_losses()
                    checked = text_bytes
                tokens += self.add_rows(writer, packer.add(group))
        self.check_losses()
        tokens += self.add_rows(writer, packer.finish())
        if not writer.rows:
            paths = " ".join(source["path"] for source in sources)
            raise InputError(f"input {paths}: no text is left to train on; give more documents or less validation")
        split = writer.close_split(tokens, documents, text_bytes)
        return {"columns": ["input_ids", *packer.columns], **split, **packer.facts()}

    def write_validation(self, held_out: Path) -> _Facts:
        """Write the first blocks of the documents in `held_out`, one a line, as the pinned evaluation would cut them, and
        their text; return what the manifest says of them."""
        options = self.options
        columns = {"input_ids": self.dtype, "token_bytes": "uint16"}
        writer = ShardWriter(self._folder, "validation", 1, columns, options.validation_block_size)
        if not options.validation_text and not options.validation_fraction:
            return writer.close_split(0, 0, 0)
        backend, size = Encoder(str(self.tokenizer_file)).backend, options.validation_block_size
        limit = options.max_validation_blocks
        rows, last, facts = validation_rows(read_lines(held_out), backend, size, self.special_ids, limit)
        if not last:
            name = "validation_text" if options.validation_text else "validation_fraction"
            what = f"{name} {getattr(options, name)} gives no validation block of {LEAST_TOKENS} tokens or more"
            other = "another" if options.validation_text else "a"
            raise InputError(f"{what}; give more and longer documents, or {other} --validation_text")
        tokens = self.add_rows(writer, rows)
        file = self._folder / _HELD_OUT
        used = itertools.islice(read_lines(held_out), last)
        _write_lines((f"{text}\n" for text in used), file)  # a blank line behind each
        size = file.stat().st_size
        split = writer.close_split(tokens, last, size - 2 * last)
        text = {"name": _HELD_OUT, "bytes": size, "sha256": sha256(file)}
        return {**split, **facts, "text": text}

    def unknown_in(self, ids: np.ndarray) -> int:
        """How many of the ids are [UNK]."""
        return int((ids == self.special_ids.get("unk", -1)).sum())

    def add_rows(self, writer: ShardWriter, rows: dict[str, np.ndarray]) -> int:
        """Add the rows to those of `writer`; return how many tokens they hold without padding."""
        writer.add(**rows)
        return int((rows["input_ids"] != self.special_ids["pad"]).sum())


def _write_lines(documents: Iterable[str], file: Path) -> None:
    with file.open("wb") as out:
        out.writelines(document.encode() + b"\n" for document in documents)
