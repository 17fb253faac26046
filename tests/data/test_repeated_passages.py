"""Blocks that hold a passage twice: what they are made of, and that they are a function of (seed, epoch, row) as masks are."""

import hashlib

import numpy as np
import pytest
import torch

from budget_trainer.core.errors import InputError
from budget_trainer.data.masking import hash64
from budget_trainer.data.repeated_passages import SMALLEST_COPY, repeat_passages
from tests.data.blocks import CLS, PAD, SEP, VOCAB, batch, collator, ordinary, same, samples, take

UNMASKED = {"mlm_probability": 1e-9, "mask_replace_prob": 0.0, "random_replace_prob": 0.0}


def full_rows(count=200, length=64):
    """Rows whose ordinary tokens all differ, so that a copy can be told from chance."""
    ids = np.stack([np.random.default_rng(row).permutation(np.arange(5, VOCAB))[:length] for row in range(count)])
    ids[:, 0], ids[:, -1], ids[:, length // 3] = CLS, SEP, SEP
    return ids


def made(ids):
    """All of them as twins: ids and passages."""
    bits = hash64(np.arange(len(ids), dtype=np.uint64)[:, None], np.arange(5, dtype=np.uint64))
    return repeat_passages(ids, ordinary(ids), bits[:, 0], bits[:, 1:], PAD, CLS, SEP)


def copies(piece):
    """The two copies in [CLS] a [SEP] b [SEP] padding."""
    used = piece[piece != PAD]
    assert used[0] == CLS and used[-1] == SEP and (piece[len(used) :] == PAD).all()
    (middle,) = np.flatnonzero(used[:-1] == SEP)
    assert CLS not in used[1:]
    return used[1:middle], used[middle + 1 : -1]


def test_the_second_copy_is_the_first_beginning_elsewhere():
    ids = full_rows()
    out, passages, written = made(ids)
    assert written.all()
    seen, turns = set(), set()
    for row, old, numbers in zip(out, ids, passages, strict=True):
        pieces = numbers.max() + 1
        seen.add(int(pieces))
        assert numbers.tolist() == np.repeat(np.arange(pieces), 64 // pieces).tolist()
        for piece, source in zip(np.split(row, pieces), np.split(old, pieces), strict=True):
            first, second = copies(piece)
            own = source[ordinary(source)]
            assert first.tolist() == own[: len(first)].tolist() and len(first) == (len(piece) - 3) // 2
            turn = first.tolist().index(second[0])
            assert turn > 0 and second.tolist() == [first[(turn + i) % len(first)] for i in range(len(second))]
            turns.add(turn)
    assert seen == {1, 2, 4} and len(turns) > 20


def test_padding_stays_and_what_is_too_short_is_left():
    ids = full_rows(400, 32)
    lengths = np.random.default_rng(0).integers(3, 33, 400)
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1], row[length:] = SEP, PAD
    out, passages, written = made(ids)
    assert ((out == PAD) == (ids == PAD)).all()
    left = 0
    for row, old, numbers, new in zip(out, ids, passages, written, strict=True):
        count = numbers.max() + 1
        for place, (piece, source) in enumerate(zip(np.split(row, count), np.split(old, count), strict=True)):
            used, own = np.count_nonzero(source != PAD), np.count_nonzero(ordinary(source))
            stays = min(own, (used - 3) // 2) < SMALLEST_COPY
            assert (new[numbers == place] == (not stays)).all()
            if stays:
                assert (piece == source).all()
                left += 1
            else:
                first, second = copies(piece)
                assert set(second) <= set(first) and len(first) + len(second) == used - 3
    assert 20 < left < 400


def test_few_tokens_between_many_separators_are_repeated():
    ids = np.full((1, 16), SEP)
    ids[0, 0], ids[0, [2, 5, 8, 11]] = CLS, [7, 8, 9, 10]
    first, second = copies(made(ids)[0][0])
    assert first.tolist() == [7, 8, 9, 10] and len(second) == 9 and second[:4].tolist() == second[4:8].tolist()
    wide = np.full((50, 64), SEP)
    wide[:, 0], wide[:, [2, 20, 40, 60]] = CLS, [7, 8, 9, 10]
    out, _, written = made(wide)
    assert (out[~written] == wide[~written]).all() and not written[:, 0].all()  # over and over would be no text


def test_a_share_of_the_blocks_whatever_the_batch_or_rank():
    source, masker = batch(rows=2000, length=64), collator(block_size=64, twin_probability=0.3)
    whole, plain = masker(source), collator(block_size=64)(source)
    assert torch.equal(whole["attention_mask"], plain["attention_mask"]), "lengths stay"
    for rank in range(3):
        part = masker(take(source, slice(rank, None, 3)))
        assert same(part, {name: tensor[rank::3] for name, tensor in whole.items()})
    unmasked = collator(block_size=64, twin_probability=0.3, **UNMASKED)(source)["input_ids"]
    share = (unmasked.numpy() != source["input_ids"]).any(axis=1).mean()
    assert 0.24 < share < 0.33  # three in ten, less the few that are too short
    equal = [row for row in range(2000) if all(torch.equal(plain[name][row], whole[name][row]) for name in plain)]
    assert 1320 < len(equal) < 1600, "the others keep their masks"
    assert same(collator(block_size=64, twin_probability=0.0)(source), plain)


def test_seed_and_epoch_give_other_twins_and_dup_factor_repeats_them():
    source = batch(rows=64, length=64)
    masker = collator(block_size=64, twin_probability=1.0, dup_factor=2, **UNMASKED)
    results = [masker(source | {"epoch": np.full(64, epoch)})["input_ids"] for epoch in range(3)]
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    other = collator(block_size=64, twin_probability=1.0, seed=8, **UNMASKED)(source)["input_ids"]
    assert not torch.equal(results[0], other)


def test_pinned_so_that_a_resumed_run_sees_the_same():
    ids = np.random.default_rng(0).integers(5, VOCAB, (300, 128))
    ids[:, 0], ids[:, -1] = CLS, SEP
    masker = collator(block_size=128, has_padding=False, twin_probability=0.3)
    for parts, digest in ((1, "df3954489cd82882"), (2, "c3937a28aab9d0f4")):
        out = masker.with_stage(sequence_parts=parts)(samples(ids))["input_ids"]
        assert hashlib.sha256(out.numpy().tobytes()).hexdigest()[:16] == digest


def test_both_copies_lie_in_one_document_and_in_one_part():
    source = samples(full_rows(60)) | {"document_ids": np.repeat(np.arange(2), 32)[None].repeat(60, 0)}
    masker = collator(block_size=64, has_padding=False, twin_probability=1.0, **UNMASKED)
    parts = masker.with_stage(sequence_parts=2)(source)
    assert parts["input_ids"].shape == (120, 32) and (parts["document_ids"][:, 0] == 0).all()
    for out in (masker(source), parts):
        for row, numbers in zip(out["input_ids"].numpy(), out["document_ids"].numpy(), strict=True):
            for number in range(numbers.max() + 1):
                first, second = copies(row[numbers == number])
                assert set(first) == set(second)


def test_what_stays_as_it_was_stays_apart_by_document():
    ids = np.full((300, 64), PAD)
    ids[:, :9] = [CLS, 10, 11, 12, SEP, 20, 21, 22, SEP]
    ids[150:] = full_rows(150)
    ids[150:, 39], ids[150:, 40:] = SEP, PAD
    documents = np.repeat((np.arange(64) > 4)[None].astype(int), 300, 0)
    source = samples(ids) | {"document_ids": documents}
    out = collator(block_size=64, twin_probability=1.0, **UNMASKED)(source)
    mixed = 0
    for row, old, numbers in zip(out["input_ids"].numpy(), ids, out["document_ids"].numpy(), strict=True):
        if (row == old).all():
            assert (numbers == documents[0]).all()  # nothing written: nothing changed
            continue
        written = [place for place in np.unique(numbers) if place < 4]
        for number in written:
            first, second = copies(row[numbers == number])
            assert set(first) == set(second)
        rest = ~np.isin(numbers, written)
        assert (row[rest] == old[rest]).all()
        mixed += bool((old[rest] != PAD).any())
    assert mixed > 20


def test_the_flag_reaches_the_collator(open_run):
    assert open_run(twin_probability=0.3).make_collator().twin_probability == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"twin_probability": -0.1}, "twin_probability: -0.1 is not a share; give one"),
        ({"twin_probability": 1.5}, "twin_probability: 1.5 is not a share; give one"),
        ({"twin_probability": float("nan")}, "twin_probability: nan is not a share; give one"),
        ({"block_size": 15}, "needs blocks of 16 tokens or more, and there are some of 15"),
        ({"block_size": 40}, "and there are some of 10; use longer ones, fewer parts"),
        ({}, "twin_probability: 0.5 beside sentence pairs"),  # when they come
    ],
)
def test_bad_input(changes, message):
    pairs = {"token_type_ids": np.zeros((8, 32), int), "next_sentence_label": np.zeros(8, int)}
    with pytest.raises(InputError, match=message):
        masker = collator(**{"twin_probability": 0.5, **changes})
        masker.with_stage(sequence_parts=4 if changes else 1)(batch(rows=8) | pairs)
