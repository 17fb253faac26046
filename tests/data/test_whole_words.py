"""Whole words: which tokens belong together, and that they are predicted together."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from budget_trainer.core.errors import InputError
from budget_trainer.data.masking import hash64, prediction_slots
from budget_trainer.data.whole_words import choose_words, continues_word, word_table
from tests.data import blocks
from tests.data.blocks import CLS, MASK, PAD, SEP, SPECIAL, ordinary, predicted, same, samples, take

VOCAB = 100
CONTINUES = np.arange(VOCAB) >= 60  # these tokens continue the word before them
TEXT = ["low lower lowest, newer wider", "a lower tower is newer than the widest tower"] * 3


def collator(**changes):
    return blocks.collator(**{"vocab_size": VOCAB, "whole_words": CONTINUES} | changes)


def batch(rows=200, high=VOCAB):
    random = np.random.default_rng(0)
    ids = random.integers(5, high, (rows, 32))
    ids[:, 0] = CLS
    for i, size in enumerate(random.integers(3, 33, rows)):
        ids[i, size - 1] = SEP
        ids[i, size // 2] = random.choice([SEP, SPECIAL["unk"], MASK])
        ids[i, size:] = PAD
    return {"input_ids": ids, "epoch": np.full(rows, 3), "row": np.arange(rows) + 11}


def words_of(row):
    """The words of a block, each a list of positions, by the definition."""
    words = []
    for place in np.flatnonzero(ordinary(row)):
        if words and CONTINUES[row[place]] and row[place - 1] not in SPECIAL.values():
            words[-1].append(place)
        else:
            words.append([place])
    return words


def expected_positions(row, epoch, number, wanted, seed=7):
    def key(value, *parts):
        value = np.array([value], dtype=np.uint64)
        for part in parts:
            value = hash64(value, np.array([part], dtype=np.uint64))
        return int(value[0])

    choice, chosen = key(seed, epoch, number) ^ 1, []
    for word in sorted(words_of(row), key=lambda word: key(choice, word[0])):
        if len(chosen) + len(word) <= wanted:
            chosen += word
    return sorted(chosen)


@pytest.mark.parametrize("options", [{}, {"mlm_probability": 0.5}, {"max_predictions_per_seq": 2}])
def test_the_chosen_words_are_those_of_the_definition(options):
    source, masker = batch(), collator(**options)
    out = {name: tensor.numpy() for name, tensor in masker(source).items()}
    assert out["labels"].shape == (200, masker.slots)
    for i, row in enumerate(source["input_ids"]):
        count = sum(map(len, words_of(row)))
        wanted = min(masker.slots, max(1, round(masker.mlm_probability * count)), count)
        used = out["labels"][i] != -100
        positions = expected_positions(row, 3, i + 11, wanted)
        assert out["masked_positions"][i][used].tolist() == positions
        assert used[: len(positions)].all() and (out["masked_positions"][i][~used] == 0).all()
        assert (out["labels"][i][used] == row[positions]).all()


def test_words_of_one_token_give_the_same_masks_as_tokens():
    assert not CONTINUES[:60].any()
    assert same(collator(whole_words=None)(batch(high=60)), collator()(batch(high=60)))


def test_a_block_gets_the_same_words_in_any_batch():
    source, masker = batch(64), collator()
    whole = masker(source)
    for part in (slice(start, start + 7) for start in range(0, 64, 7)):
        assert same(masker(take(source, part)), {name: tensor[part] for name, tensor in whole.items()})


def test_no_rows_no_candidates_and_a_word_that_never_fits():
    ids = np.array([[2, 10, 70, 71, 72, 73, 3] + [0] * 25])
    out = collator()(samples(ids))
    assert out["labels"].shape == (1, prediction_slots(0.15, 32)) and (out["labels"] == -100).all()
    assert (out["input_ids"].numpy() == ids).all()
    table = word_table(CONTINUES, [0, 1, 2, 3, 4], VOCAB)
    for rows in (0, 2):
        ids = np.zeros((rows, 8), np.int64)
        score = np.arange(8, dtype=np.uint64) + np.zeros((rows, 1), np.uint64)
        chosen = choose_words(table[ids], ids > 0, score, np.uint64(15), np.zeros(rows, np.int64))
        assert chosen.shape == (rows, 8) and not chosen.any()
    with pytest.raises(InputError, match=r"whole_words: shape \(99,\) for a vocabulary of 100"):
        collator(whole_words=CONTINUES[:99])


@pytest.mark.parametrize("flag", [{}, {"whole_word_mask": True}])
def test_the_flag_reaches_the_collator(open_run, flag):
    run = open_run(**flag)
    data, masker = run.data, run.make_collator()
    batch = data.train(seed=1).__getitems__(range(300))
    continues = continues_word(data.load_tokenizer())
    chosen = predicted(masker(batch))
    inner = continues[batch["input_ids"]][:, 1:] & (batch["input_ids"][:, :-1] > 4)
    split = (inner & (chosen[:, 1:] != chosen[:, :-1])).sum()
    assert inner.sum() > 1000 and ((split == 0) if flag else (split > 100))


def test_wordpiece(tokenizer):
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    continues, tokens = continues_word(loaded), loaded.convert_ids_to_tokens(range(len(loaded)))
    assert continues.dtype == bool and continues.tolist() == [t.startswith("##") and t != "##" for t in tokens]
    assert 0 < continues.sum() < len(tokens) and not continues[loaded.all_special_ids].any()


ADDED = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _wrapped(backend):
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>", **names)


def _bpe(**steps):
    """A byte-level BPE, or another one with these steps."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    for name, step in (steps or {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)}).items():
        setattr(backend, name, step)
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=60, special_tokens=ADDED, show_progress=False))
    return backend


def _unigram():
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=ADDED, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    return backend


def _replacing():
    """As Llama's: the mark comes from the normalizer."""
    return _bpe(normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]))


@pytest.mark.parametrize("make, mark", [(_bpe, "\u0120"), (_unigram, "\u2581"), (_replacing, "\u2581")])
def test_word_start_marks(make, mark):
    tokenizer = _wrapped(make())
    continues = continues_word(tokenizer)
    assert continues.shape == (len(tokenizer),) and not continues[tokenizer.all_special_ids].any()
    ids = tokenizer("lower newest, wide", add_special_tokens=False)["input_ids"]
    starts = [tokenizer.convert_ids_to_tokens(i).startswith(mark) for i in ids]
    assert [not c for c in continues[ids]] == starts and 2 <= sum(starts) < len(ids)


def test_where_it_cannot_be_told():
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    suffixed = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    suffixed.pre_tokenizer = pre_tokenizers.ByteLevel()
    for backend in (plain, suffixed):
        backend.add_special_tokens(ADDED)
        with pytest.raises(InputError, match="^whole_word_mask: the tokenizer \\(BPE\\) marks neither"):
            continues_word(_wrapped(backend))
