"""Blocks of whole sentences: full, of one document, some of them short; nothing lost."""

import numpy as np
import pytest

from data_prep.corpus import TokenGroup
from data_prep.packers import PACKERS, Packer
from data_prep.sentence_cuts import Cuts

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}


def group(documents):
    """Documents as lists of sentence lengths; the tokens are numbered through from 10."""
    sentences = np.array([length for document in documents for length in document])
    lengths = np.array([sum(document) for document in documents])
    return TokenGroup(np.arange(10, 10 + sentences.sum()), lengths, 0, [], sentences, {})


def test_a_sentence_that_does_not_fit_begins_the_next_block():
    cuts = Cuts(10, 0.0)
    found = cuts.sizes(np.array([22, 3, 10]), np.array([4, 5, 8, 5, 3, 10]))
    assert found.tolist() == [9, 8, 5, 3, 10] and cuts.cut == 0


def test_a_sentence_longer_than_a_block_is_cut():
    cuts = Cuts(10, 0.0)
    assert cuts.sizes(np.array([30, 5]), np.array([3, 25, 2, 5])).tolist() == [3, 10, 10, 7, 5] and cuts.cut == 2


@pytest.mark.parametrize("short", [0.0, 0.3])
def test_nothing_is_lost_whatever_the_groups(short):
    chance = np.random.default_rng(0)
    documents = [chance.integers(1, 40, chance.integers(1, 12)).tolist() for _ in range(200)]
    whole = _rows(PACKERS["sentences"](32, SPECIAL, short), [documents])
    assert (
        whole == _rows(PACKERS["sentences"](32, SPECIAL, short), [documents[:50], documents[50:51], documents[51:]])
    ).all()
    bodies = [row[(row != 0) & (row != 1) & (row != 2)] for row in whole]
    assert np.concatenate(bodies).tolist() == list(range(10, 10 + sum(map(sum, documents))))
    assert all(row[0] == 1 and row[len(body) + 1] == 2 for row, body in zip(whole, bodies, strict=True))
    borders = np.cumsum([sum(document) for document in documents])
    ends = set(np.cumsum([length for document in documents for length in document]).tolist())
    longest = {length for document in documents for length in document if length > 30}
    at = np.cumsum([len(body) for body in bodies]).tolist()
    assert set(borders.tolist()) <= set(at), "no block crosses a document"
    cut = [end for end in at if end not in ends]
    assert len(cut) <= sum(length > 30 for document in documents for length in document) and longest
    sizes = np.array([len(body) for body in bodies])
    assert (sizes < 15).mean() > (0.2 if short else 0.0) and sizes.max() == 30


def _rows(packer: Packer, groups):
    rows = [packer.add(group(documents))["input_ids"] for documents in groups]
    first, parts = 0, []
    for part, documents in zip(rows, groups, strict=True):  # the numbers go on from group to group
        moved = np.where(part >= 10, part + first, part)
        first += sum(map(sum, documents))
        parts.append(moved)
    assert len(packer.finish()["input_ids"]) == 0 and packer.facts()["filled"] == 0
    return np.concatenate(parts)


def test_half_as_many_short_blocks_as_asked_for_would_be_noticed():
    cuts = Cuts(126, 0.1)
    sizes = cuts.sizes(np.array([500_000]), np.full(500_000, 1))
    assert 0.09 < (sizes < 126).mean() < 0.11
    assert 40 < sizes[sizes < 126].mean() < 90
