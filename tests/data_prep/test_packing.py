"""Blocks from tokens: nothing lost, nothing crosses a border that it must not cross."""

import numpy as np
import pytest

from data_prep.packing import PackedBlocks, one_document_rows

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
GROUPS = ([7, 1, 14, 13], [30], [14, 14, 1], [2])  # lengths of documents; the body of a block is 14


def _tokens(groups):
    """Ids 10, 11, ... so that each token tells its place."""
    start = 10
    for lengths in groups:
        yield np.arange(start, start + sum(lengths)), np.array(lengths, np.int64)
        start += sum(lengths)


def _packed(groups, length=16):
    blocks = PackedBlocks(length, SPECIAL)
    parts = [blocks.add(ids, lengths) for ids, lengths in _tokens(groups)] + [blocks.finish()]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def test_packed_blocks_are_full_and_hold_every_token_in_order():
    ids, _ = _packed(GROUPS)
    assert (ids[:, 0] == SPECIAL["cls"]).all()
    assert (ids[:, -1] == SPECIAL["sep"]).all() and (ids != SPECIAL["pad"]).all()
    tokens = ids[ids >= 10].tolist()
    total = sum(map(sum, GROUPS))
    assert tokens[:total] == list(range(10, 10 + total))
    assert tokens[total:] == list(range(10, 10 + len(tokens) - total))  # the last block is filled from the beginning


@pytest.mark.parametrize("length, expected", [(14, 1), (13, 1), (3, 1), (15, 2)])
def test_the_last_block_is_full(length, expected):
    blocks = PackedBlocks(16, SPECIAL)
    first, _ = blocks.add(np.arange(10, 10 + length), np.array([length]))
    last, documents = blocks.finish()
    rows = np.concatenate([first, last])
    assert len(rows) == expected and (rows != SPECIAL["pad"]).all()
    assert len(last) == 0 or set(documents[0]) == ({0, 1} if blocks.filled else {0})


def test_packed_bodies_are_the_documents_joined_by_sep():
    ids, _ = _packed(GROUPS)
    stream = ids[:, 1:-1].ravel().tolist()
    documents, start = [], 10
    for size in (n for lengths in GROUPS for n in lengths):
        documents += [*range(start, start + size), SPECIAL["sep"]]
        start += size
    assert stream[: len(documents)] == documents
    assert stream[len(documents) :] == documents[: len(stream) - len(documents)]


def test_document_ids_count_the_documents_of_a_block():
    ids, documents = _packed(GROUPS)
    assert (documents[:, 0] == 0).all() and (documents[:, 1] == 0).all()
    for row, numbers in zip(ids, documents, strict=True):
        steps = np.diff(numbers)
        assert set(steps) <= {0, 1}
        # A number grows right after a [SEP], and after each [SEP] inside the body.
        after_sep = row[1:-1] == SPECIAL["sep"]
        after_sep[-1] = False  # the block's own [SEP] closes the last document
        assert (steps[1:][after_sep] == 1).all() and (steps[1:-1][~after_sep[:-1]] == 0).all()


def test_packing_does_not_depend_on_the_groups():
    flat = ([n for lengths in GROUPS for n in lengths],)
    single = tuple([n] for lengths in GROUPS for n in lengths)
    for groups in (flat, single):
        for got, expected in zip(_packed(groups), _packed(GROUPS), strict=True):
            assert (got == expected).all()


def test_packed_last_block_exactly_full_and_empty_input():
    assert _packed(([14],))[0].tolist() == [[2, *range(10, 24), 3]]
    assert _packed(([],))[0].shape == (0, 16)


@pytest.mark.parametrize("lengths", [[1], [14], [15], [28, 29, 1, 14, 3]])
def test_one_document_blocks_lose_nothing_and_cross_no_border(lengths):
    ((ids, sizes),) = _tokens((lengths,))
    rows = one_document_rows(ids, sizes, 16, SPECIAL)
    assert rows[rows >= 10].tolist() == ids.tolist()
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in rows:
        body = row[row >= 10]
        assert row.tolist() == [2, *body.tolist(), 3] + [0] * (14 - len(body))
        assert len(set(document_of[body - 10])) == 1
    assert len(rows) == sum(-(-n // 14) for n in lengths)


def test_one_document_without_documents():
    assert one_document_rows(np.zeros(0, int), np.zeros(0, int), 16, SPECIAL).shape == (0, 16)
