"""Masking is a function of (seed, epoch, row, position) and nothing else."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from budget_trainer.core.errors import InputError
from budget_trainer.data import masking
from budget_trainer.data.masking import REPLACED, Bigrams, hash64, prediction_slots, uniform
from tests.data.blocks import CLS, MASK, PAD, SEP, SPECIAL, VOCAB, batch, collator, ordinary, same, samples, take


def test_a_block_gets_the_same_mask_in_any_batch_on_any_rank():
    source = batch()
    whole = collator()(source)
    for rank in range(3):
        part = collator()(take(source, slice(rank, None, 3)))
        assert same(part, {name: tensor[rank::3] for name, tensor in whole.items()})
    shuffled = np.random.default_rng(1).permutation(64)
    assert same(collator()(take(source, shuffled)), {name: tensor[shuffled] for name, tensor in whole.items()})
    samples = [take(source, i) for i in range(64)]
    assert same(pickle.loads(pickle.dumps(collator()))(samples), whole)


def test_seed_epoch_and_row_each_change_the_mask():
    source = batch()
    first = collator()(source)
    for masker, change in (
        (collator(seed=8), {}),
        (collator(), {"epoch": source["epoch"] + 1}),
        (collator(), {"row": source["row"] + 1000}),
    ):
        assert not torch.equal(first["masked_positions"], masker(source | change)["masked_positions"])


def test_dup_factor_repeats_the_maskings():
    masker, source = collator(dup_factor=3), batch()
    results = [masker(source | {"epoch": np.full(64, epoch)}) for epoch in range(6)]
    assert all(same(results[epoch], results[epoch + 3]) for epoch in range(3))
    assert not same(results[0], results[1])
    assert same(results[0], collator()(source))
    assert not same(results[3], collator()(source | {"epoch": np.full(64, 3)}))


@pytest.mark.parametrize("slots", [None, 2, 60])
def test_number_order_and_labels_of_the_chosen_tokens(slots):
    source = batch()
    original = source["input_ids"].copy()
    out = {k: v.numpy() for k, v in collator(max_predictions_per_seq=slots)(source).items()}
    assert (source["input_ids"] == original).all(), "the caller's array was written to"
    size = slots or prediction_slots(0.15, 32)
    assert out["masked_positions"].shape == out["labels"].shape == (64, size)
    assert out["input_ids"].dtype == out["labels"].dtype == np.int64
    for i, row in enumerate(original):
        may = ordinary(row)
        wanted = min(size, max(1, round(0.15 * may.sum())), may.sum())
        used = out["labels"][i] != -100
        assert used.sum() == wanted and used[:wanted].all()
        positions = out["masked_positions"][i][used]
        assert (np.diff(positions) > 0).all() and may[positions].all()
        assert (out["labels"][i][used] == row[positions]).all()
        assert (out["masked_positions"][i][~used] == 0).all()
        elsewhere = np.setdiff1d(np.arange(32), positions)
        assert (out["input_ids"][i][elsewhere] == row[elsewhere]).all()
        assert (out["attention_mask"][i] == (row != PAD)).all()


def test_shares_of_the_three_actions_and_uniform_replacement():
    rows = 4000
    ids = np.full((rows, 32), 50)
    ids[:, 0], ids[:, -1] = CLS, SEP
    out = collator(has_padding=False)(samples(ids))
    assert "attention_mask" not in out
    seen = out["input_ids"].gather(1, out["masked_positions"])[out["labels"] != -100]
    total = len(seen)
    assert total == rows * round(0.15 * 30)
    # Four standard deviations of a share p of N: 4 * sqrt(p * (1 - p) / N).
    random = seen[(seen != MASK) & (seen != 50)]
    words = VOCAB - 5
    for count, share in (
        ((seen == MASK).sum(), 0.8),
        (len(random), 0.1 * (1 - 1 / words)),
        ((seen == 50).sum(), 0.1 + 0.1 / words),
    ):
        assert abs(float(count) / total - share) < 4 * (share * (1 - share) / total) ** 0.5
    counts = torch.bincount(random, minlength=VOCAB)
    assert counts[:5].sum() == 0, "a special token was drawn"
    assert (counts[5:] == 0).sum() <= 5  # 10 expected of each; exp(-10) * 195 are expected to be missing
    # Every position of a block is chosen equally often.
    often = torch.bincount(out["masked_positions"].flatten(), minlength=32)[1:31].double() / rows
    assert (often - 4 / 30).abs().max() < 5 * (4 / 30 * 26 / 30 / rows) ** 0.5


def test_kept_and_replaced_shares_at_their_limits():
    source = batch()
    masked = collator(mask_replace_prob=1.0, random_replace_prob=0.0)(source)
    shown = masked["input_ids"].gather(1, masked["masked_positions"])
    assert (shown[masked["labels"] != -100] == MASK).all()
    kept = collator(mask_replace_prob=0.0, random_replace_prob=0.0)(source)
    assert (kept["input_ids"].numpy() == source["input_ids"]).all() and torch.equal(kept["labels"], masked["labels"])


def test_blocks_without_ordinary_tokens_shorter_ones_and_other_integer_types():
    out = collator()(samples(np.array([[2, 3] + [0] * 30, [2, 9, 3] + [0] * 29])))
    assert (out["labels"][0] == -100).all() and out["labels"][1].tolist().count(9) == 1
    source = batch(length=16)
    source |= {"input_ids": source["input_ids"].astype(np.uint16), "token_type_ids": source["input_ids"] * 0}
    out = collator(block_size=128, max_predictions_per_seq=20)(source)
    assert out["labels"].shape == (64, 20) and out["token_type_ids"].shape == (64, 16)


@pytest.mark.parametrize(("rate", "size", "slots"), [(0.15, 128, 19), (0.15, 512, 76), (0.4, 128, 50), (0.01, 16, 1)])
def test_default_slots_are_what_a_full_block_needs(rate, size, slots):
    assert prediction_slots(rate, size) == slots


# SHA-256 of what the first released collator made of `_golden_source`: another value would change runs in progress.
GOLDEN = {
    "plain": ({}, "f4381d21f77463415a3ec2cc2a5c4c0bef88c8f4fe6bcde87cf490b32c7d856f"),
    "full blocks": ({"has_padding": False}, "00045683f07f63bed2b2a0eb1bdb9163db116c3329a2fb915f6dd6f010067f51"),
    "slots": ({"max_predictions_per_seq": 3}, "17ecb621f15fb75dd7bc40dd6ab85ad8e00d738d094ed0fb166b41483d8ffdfc"),
    "many slots": (
        {"max_predictions_per_seq": 50, "mlm_probability": 0.6},
        "95ba8ce17e8fdd13b31a3c40c450501b5d8b1abd518c6e6eb7d6d9152e1122f5",
    ),
    "dup_factor": ({"dup_factor": 2, "seed": -5}, "7a9332ac427816043ec3890d512c09b9dd9f0aa236cd6a69fabbc8bc186fc410"),
    "no masks": (
        {"mask_replace_prob": 0.0, "random_replace_prob": 1.0, "mlm_probability": 0.3},
        "a17428b1dc3ab6e930011db6913226a2d834f95de1b30f6b63410c67bfd9c837",
    ),
}


def _golden_source(padded, rows=40, length=32):
    """Blocks made of hashes: numpy's generators may change, this does not."""
    numbers = np.arange(rows * length, dtype=np.uint64).reshape(rows, length)
    ids = (hash64(np.array([99], dtype=np.uint64), numbers) % np.uint64(VOCAB - 5)).astype(np.int64) + 5
    ids[:, 0], ids[:, 20], ids[:, -1] = CLS, SEP, SEP
    for i in range(0, rows if padded else 0, 2):
        ids[i, 2 + i % 29 :] = PAD
    return {"input_ids": ids, "epoch": np.arange(rows) // 10, "row": np.arange(rows) * 7}


@pytest.mark.parametrize("name", GOLDEN)
def test_masks_are_those_of_the_first_release(name):
    options, expected = GOLDEN[name]
    masker = collator(**options)
    out = masker(_golden_source(masker.has_padding))
    digest = hashlib.sha256()
    for key in sorted(out):
        digest.update(f"{key} {tuple(out[key].shape)}".encode() + out[key].numpy().astype("<i8").tobytes())
    assert digest.hexdigest() == expected


@pytest.mark.parametrize("limit", [0, 2**20], ids=["shared memory", "pipe"])
def test_a_worker_hands_the_same_batch_over(limit, monkeypatch):
    monkeypatch.setattr(masking, "PIPE_BYTES", limit)
    rows = [take(batch(), i) for i in range(64)]
    here, there = (
        list(DataLoader(rows, batch_size=16, collate_fn=collator(), num_workers=workers)) for workers in (0, 1)
    )
    assert len(here) == 4
    for mine, received in zip(here, there, strict=True):
        assert type(received) is dict and list(received) == list(mine) and same(received, mine)
        assert all(tensor.dtype == torch.int64 for tensor in received.values())
        received["input_ids"] += 1  # a read-only array behind it would warn, or crash
        assert torch.equal(received["input_ids"], mine["input_ids"] + 1)


def test_columns_besides_the_ids_are_passed_on_as_int64():
    source = batch(8)
    extra = {"document_ids": np.arange(8 * 32, dtype=np.uint16).reshape(8, 32)}
    extra |= {"token_type_ids": np.ones((8, 32), np.uint8), "next_sentence_label": np.arange(8, dtype=np.uint8) % 2}
    out = collator()(source | extra)
    for name, values in extra.items():
        assert out[name].dtype == torch.int64 and (out[name].numpy() == values).all()
    assert same({name: out[name] for name in collator()(source)}, collator()(source))
    assert same(collator()([take(source | extra, i) for i in range(8)]), out)


def test_hash_is_pinned_and_spreads():
    # The masks of a run that is resumed must not change with a new version of this package.
    assert int(hash64(np.array([0], dtype=np.uint64), np.array([0], dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF
    values = uniform(hash64(np.arange(1000, dtype=np.uint64)[:, None], np.arange(100, dtype=np.uint64)))
    assert 0 <= values.min() and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.004 and abs(values.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mlm_probability": 0}, "mlm_probability=0"),
        ({"mlm_probability": 1.5}, "mlm_probability=1.5"),
        ({"mask_replace_prob": -0.1}, "mask_replace_prob=-0.1"),
        ({"random_replace_prob": 0.3}, "random_replace_prob=0.3"),
        ({"max_predictions_per_seq": 0}, "max_predictions_per_seq=0"),
        ({"dup_factor": 0}, "dup_factor=0"),
        ({"block_size": 2}, "block_size=2"),
        ({"vocab_size": 5}, "vocab_size=5"),
        ({"vocab_size": 3}, "special_ids"),
        ({"special_ids": {"pad": 0}}, "unk"),
        ({"special_ids": {"pad": 3, "unk": 1, "cls": 2, "sep": 3, "mask": 4}}, "roles share an id; give each its own"),
        ({"has_padding": False}, "has_padding=False"),  # when it comes
    ],
)
def test_bad_arguments_name_the_field(changes, field):
    with pytest.raises(InputError, match=field):
        collator(**changes)(batch())


# ---- tokens that follow the same token elsewhere ----


def followed():
    """Rows in which 10 is followed by 20 three times of four and by 21 else, and 11 only by special tokens."""
    return np.array([[CLS, 10, 20, 10, 20, 11, SEP], [CLS, 10, 20, 10, 21, 11, PAD]])


def test_a_bigram_draw_has_the_frequencies_of_the_corpus():
    bigrams, bits = (
        Bigrams(followed(), VOCAB, SPECIAL),
        hash64(np.array([1], dtype=np.uint64), np.arange(4000, dtype=np.uint64)),
    )
    drawn = bigrams.draw(np.full(4000, 10), bits)
    assert set(drawn) == {20, 21} and (drawn == 20).mean() == pytest.approx(0.75, abs=0.03)
    unknown = bigrams.draw(np.full(4000, 11), bits)
    assert set(unknown) == {10, 11, 20, 21}, "any second token of all, and never a special one"
    assert drawn.dtype == np.int64 and np.array_equal(drawn, bigrams.draw(np.full(4000, 10), bits))


@pytest.mark.parametrize("parts", [1, 2])
def test_blocks_with_passages_twice_show_tokens_that_follow_what_stands_before_them(parts):
    ids = np.random.default_rng(3).integers(10, 74, (400, 64))
    ids[:, 0], ids[:, -1] = CLS, SEP
    options = {"block_size": 64, "has_padding": False, "mlm_probability": 0.3, "sequence_parts": parts}
    options["twin_probability"] = 0.5
    bigrams = {"bigrams": Bigrams(np.tile(np.arange(10, 74), (2, 1)), VOCAB, SPECIAL)}  # n + 1 follows n
    text = collator(**options, mask_replace_prob=0.0, random_replace_prob=0.0)(samples(ids))["input_ids"]
    masked, whole = collator(**options, **bigrams)(samples(ids)), collator(**options)(samples(ids))
    for name in ("masked_positions", "labels"):
        assert torch.equal(masked[name], whole[name])
    once = collator(**options | {"twin_probability": 0.0})(samples(ids))
    repeated = (once["labels"] != whole["labels"]).any(1)
    assert torch.equal(masked["input_ids"][~repeated], whole["input_ids"][~repeated]), "masked as ever"
    positions, labels = masked["masked_positions"][repeated], masked["labels"][repeated]
    shown, before = (
        masked["input_ids"][repeated].gather(1, positions),
        text[repeated].gather(1, (positions - 1).clamp(min=0)),
    )
    known = (before >= 10) & (before < 73) & (labels != -100)  # of other tokens nothing is known: any may come
    fits = (shown == before + 1)[known].float().mean().item()
    assert fits == pytest.approx(REPLACED, abs=0.04) and known.sum() > 2000
    assert (shown == MASK)[known].float().mean().item() == pytest.approx((1 - REPLACED) * 0.8, abs=0.04)
    assert (shown == labels)[known].float().mean().item() == pytest.approx((1 - REPLACED) * 0.1, abs=0.04)
