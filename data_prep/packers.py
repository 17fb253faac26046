"""The packings by name: each turns groups of documents into the columns of the training rows."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from data_prep.corpus import TokenGroup
from data_prep.nsp_pairs import SentencePairs
from data_prep.packing import PackedBlocks, one_document_rows
from data_prep.sentence_cuts import Cuts


class Packer(Protocol):
    """columns: name -> dtype of each column besides input_ids; scalars: those with one value per row; sentences:
    whether the groups must come with the lengths of their sentences."""

    columns: dict[str, str]
    scalars: tuple[str, ...]
    sentences: bool

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """The rows that are complete with this group: [n, L] per column, [n] per scalar one."""

    def finish(self) -> dict[str, np.ndarray]:
        """The rows that are left."""

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the training split besides its counts."""


class Packed:
    """Documents joined with [SEP] in blocks without padding (`PackedBlocks`)."""

    columns = {"document_ids": "uint16"}
    scalars: tuple[str, ...] = ()
    sentences = False

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.0) -> None:
        self._blocks = PackedBlocks(block_size, special_ids)

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """As `Packer`'s."""
        return dict(zip(("input_ids", "document_ids"), self._blocks.add(group.ids, group.lengths), strict=True))

    def finish(self) -> dict[str, np.ndarray]:
        """As `Packer`'s."""
        return dict(zip(("input_ids", "document_ids"), self._blocks.finish(), strict=True))

    def facts(self) -> dict[str, Any]:
        """filled: tokens that were repeated to fill the last block."""
        return {"filled": self._blocks.filled}


class OneDocument:
    """Blocks that do not cross the border of a document (`one_document_rows`)."""

    columns: dict[str, str] = {}
    scalars: tuple[str, ...] = ()
    sentences = False

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.0) -> None:
        self._block_size, self._special = block_size, special_ids

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """As `Packer`'s."""
        return {"input_ids": one_document_rows(group.ids, group.lengths, self._block_size, self._special)}

    def finish(self) -> dict[str, np.ndarray]:
        """As `Packer`'s: nothing is carried over from group to group."""
        return {"input_ids": np.zeros((0, self._block_size), np.int64)}

    def facts(self) -> dict[str, Any]:
        """Nothing is filled up."""
        return {"filled": 0}


class Sentences:
    """Blocks of whole sentences of one document (`Cuts`), the paper's way: a sentence that does not fit begins the next."""

    columns: dict[str, str] = {}
    scalars: tuple[str, ...] = ()
    sentences = True

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.0) -> None:
        self._block_size, self._special = block_size, special_ids
        self._cuts = Cuts(block_size - 2, short_seq_prob)

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """As `Packer`'s."""
        sizes = self._cuts.sizes(group.lengths, group.sentences)
        return {"input_ids": one_document_rows(group.ids, sizes, self._block_size, self._special)}

    def finish(self) -> dict[str, np.ndarray]:
        """As `Packer`'s: nothing is carried over from group to group."""
        return {"input_ids": np.zeros((0, self._block_size), np.int64)}

    def facts(self) -> dict[str, Any]:
        """short_seq_prob, and how many sentences were longer than a block."""
        return {"filled": 0, "short_seq_prob": self._cuts.short_seq_prob, "sentences_cut": self._cuts.cut}


class Nsp:
    """Sentence pairs for next-sentence prediction (`SentencePairs`)."""

    columns = {"token_type_ids": "uint8", "next_sentence_label": "uint8"}
    scalars: tuple[str, ...] = ("next_sentence_label",)
    sentences = True

    def __init__(self, block_size: int, special_ids: dict[str, int], short_seq_prob: float = 0.0) -> None:
        self._pairs = SentencePairs(block_size, special_ids, short_seq_prob)

    def add(self, group: TokenGroup) -> dict[str, np.ndarray]:
        """As `Packer`'s."""
        return self._pairs.add(group.ids, group.lengths, group.sentences)

    def finish(self) -> dict[str, np.ndarray]:
        """As `Packer`'s: checks that the corpus gave pairs of both kinds."""
        self._pairs.check()
        return self._pairs.stacked([])

    def facts(self) -> dict[str, Any]:
        """pairs: how many second segments really follow, and how many are random."""
        follows, random = self._pairs.counts
        return {
            "filled": 0,
            "short_seq_prob": self._pairs.short_seq_prob,
            "pairs": {"follows": follows, "random": random},
        }


# Made from the block size, the special ids and the share of blocks to be cut short (`sentences` and `nsp`).
PACKERS: dict[str, Callable[[int, dict[str, int], float], Packer]] = {
    "packed": Packed,
    "one_document": OneDocument,
    "sentences": Sentences,
    "nsp": Nsp,
}
BY_SENTENCE = ("sentences", "nsp")  # tokenised sentence by sentence
