"""Stages of the budget: blocks cut into parts, other mask rates, the same places and hashes."""

import numpy as np
import pytest
import torch

from budget_trainer.core.errors import InputError
from budget_trainer.data.masking import prediction_slots
from tests.data.blocks import CLS, PAD, SEP, VOCAB, batch, collator, same, samples, take

LENGTH = 64


def source(rows=40, padded=True):
    if padded:
        return batch(rows, LENGTH)
    ids = np.random.default_rng(0).integers(5, VOCAB, (rows, LENGTH))
    ids[:, 0], ids[:, 30], ids[:, -1] = CLS, SEP, SEP
    return samples(ids)


def masker(**changes):
    return collator(block_size=LENGTH, **changes)


def uncorrupted(out):
    """The ids before corruption."""
    ids = out["input_ids"].clone()
    used = out["labels"] != -100
    ids[torch.nonzero(used)[:, 0], out["masked_positions"][used]] = out["labels"][used]
    return ids.numpy()


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("padded", [True, False])
def test_only_the_tokens_at_the_borders_change(parts, padded):
    data = source(padded=padded)
    out = masker(sequence_parts=parts, has_padding=padded)(data)
    size = LENGTH // parts
    assert out["input_ids"].shape == (40 * parts, size)
    assert out["labels"].shape == out["masked_positions"].shape == (40 * parts, prediction_slots(0.15, size))
    assert ("attention_mask" in out) == padded
    ids, original = uncorrupted(out), data["input_ids"].reshape(40 * parts, size)
    assert (ids[:, 0] == CLS).all()
    assert (ids[:, 1:-1] == original[:, 1:-1]).all()
    last = np.arange(40 * parts) % parts == parts - 1
    text = original[:, -1] != PAD
    assert (ids[text, -1] == SEP).all()
    assert (ids[~text, -1] == PAD).all() and (ids[last, -1] == original[last, -1]).all()


def test_empty_parts_predict_nothing_and_every_other_its_share():
    out = masker(sequence_parts=4)(source())
    mask, ids = out["attention_mask"].numpy(), uncorrupted(out)
    assert (mask == (ids != PAD)).all() and (mask[:, 0] == 1).all()
    empty = (ids[:, 1:] == PAD).all(axis=1)
    assert 10 < empty.sum() < 100
    assert (out["labels"].numpy()[empty] == -100).all()
    for row, positions, labels in zip(ids, out["masked_positions"].numpy(), out["labels"].numpy(), strict=True):
        count, used = (row > 4).sum(), labels != -100
        assert used.sum() == min(count, max(1, round(0.15 * count)), labels.size)
        assert (labels[used] == row[positions[used]]).all() and (np.diff(positions[used]) > 0).all()


def test_hashes_are_those_of_the_position_in_the_block():
    data = source(padded=False)
    options = {"mlm_probability": 1.0, "has_padding": False}  # every ordinary token is chosen
    whole, parts = masker(**options)(data), masker(sequence_parts=4, **options)(data)
    cut = whole["input_ids"].reshape(-1, LENGTH // 4)
    assert torch.equal(cut[:, 1:-1], parts["input_ids"][:, 1:-1]), "another action or another random token"
    # Of one part, what is chosen does not depend on the others.
    other = {**data, "input_ids": data["input_ids"].copy()}
    other["input_ids"][:, :40] = 7
    few = masker(sequence_parts=4, has_padding=False)
    assert torch.equal(few(data)["masked_positions"][3::4], few(other)["masked_positions"][3::4])
    assert len(set(map(tuple, few(data)["masked_positions"].tolist()))) > 40  # of 91 pairs


@pytest.mark.parametrize("whole_words", [None, np.arange(200) >= 120])
def test_the_same_parts_in_any_batch_on_any_rank(whole_words):
    cut, data = masker(sequence_parts=2, whole_words=whole_words), source()
    whole = cut(data)
    for rank in range(3):
        rows = np.arange(40)[rank::3]
        parts = np.stack([2 * rows, 2 * rows + 1], 1).ravel()
        assert same(cut(take(data, rows)), {name: tensor[parts] for name, tensor in whole.items()})


def test_whole_words_end_at_the_border_of_a_part():
    data = source(padded=False)
    data["input_ids"][:, 1:-1] = 150  # one long word
    data["input_ids"][:, 34] = 10
    out = masker(sequence_parts=2, has_padding=False, whole_words=np.arange(200) >= 120, mlm_probability=0.99)(data)
    predicted = (out["labels"] != -100).sum(dim=1)
    # The first part is one word of 30 tokens and fits (rounded); the second has two, of 1 and 29 tokens.
    assert set(predicted[::2].tolist()) == {30} and set(predicted[1::2].tolist()) == {30}


def test_document_ids_keep_their_form():
    data = source(6, padded=False)
    documents = np.cumsum(np.random.default_rng(1).random((6, LENGTH)) < 0.1, axis=1)
    documents -= documents[:, :1]
    out = masker(sequence_parts=4, has_padding=False)(data | {"document_ids": documents.astype(np.uint16)})
    got, size = out["document_ids"].numpy(), LENGTH // 4
    assert got.shape == (24, size) and (got[:, 0] == 0).all()
    cut = documents.reshape(24, size)
    assert (got[:, 1:-1] == cut[:, 1:-1] - cut[:, 1:2]).all()
    assert (got[:, 0] == got[:, 1]).all() and (got[:, -1] == got[:, -2]).all()
    whole = masker(has_padding=False)(data | {"document_ids": documents})["document_ids"]
    assert (whole.numpy() == documents).all()


def test_stages_are_copies_with_other_slots():
    first, data = masker(mlm_probability=0.3), source()
    late = first.with_stage(mlm_probability=0.15)
    short = late.with_stage(sequence_parts=2)
    assert same(short.with_stage(sequence_parts=1)(data), late(data))
    for stage, rate, parts, slots in ((first, 0.3, 1, 19), (late, 0.15, 1, 9), (short, 0.15, 2, 4)):
        assert (stage.mlm_probability, stage.sequence_parts, stage.slots) == (rate, parts, slots)
        assert same(stage(data), masker(mlm_probability=rate, sequence_parts=parts)(data))
    fixed = masker(mlm_probability=0.3, max_predictions_per_seq=21)
    for rate in (0.3, 0.15, 0.05):  # explicit slots stay over rates and are shared by the parts
        assert fixed.with_stage(mlm_probability=rate)(data)["labels"].shape == (40, 21)
    assert fixed.with_stage(sequence_parts=2)(data)["labels"].shape == (80, 11)
    assert fixed.with_stage(sequence_parts=4)(data)["labels"].shape == (160, 6)


@pytest.mark.parametrize("parts, message", [(3, "does not divide"), (0, "does not divide"), (8, "leaves 6 tokens")])
def test_parts_that_cannot_be(parts, message):
    for make in (lambda: masker(sequence_parts=parts), lambda: masker().with_stage(sequence_parts=parts)):
        with pytest.raises(InputError, match=f"sequence_parts={parts} {message}"):
            make()
    with pytest.raises(InputError, match="mlm_probability=1.5"):
        masker().with_stage(mlm_probability=1.5)


def test_sentence_pairs_are_not_cut():
    data = source(4) | {"next_sentence_label": np.zeros(4, int)}
    assert masker()(data)["next_sentence_label"].tolist() == [0] * 4
    with pytest.raises(InputError, match="sequence_parts=2 would cut sentence pairs apart"):
        masker(sequence_parts=2)(data)
    odd = source(4) | {"input_ids": source(4)["input_ids"][:, :63]}
    with pytest.raises(InputError, match="sequence_parts=2 does not divide the block's 63 tokens"):
        masker(sequence_parts=2)(odd)
