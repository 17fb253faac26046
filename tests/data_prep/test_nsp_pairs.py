"""Sentence pairs: [CLS] A [SEP] B [SEP], everything in them, half of them random, the same for any grouping."""

import numpy as np
import pytest

from budget_trainer.core.errors import InputError
from data_prep.nsp_pairs import FOLLOWS, RANDOM, RESERVOIR, SentencePairs

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
LENGTH = 32
ROOM = LENGTH - 3


def corpus(documents=300, seed=0, longest=8):
    """Sentence lengths of each document; token ids count on from 10, so that each tells its place."""
    random = np.random.default_rng(seed)
    return [random.integers(1, longest + 1, random.integers(1, 20)).tolist() for _ in range(documents)]


def pairs_of(texts, per_group=40):
    pairs = SentencePairs(LENGTH, SPECIAL)
    start, parts = 10, []
    for first in range(0, len(texts), per_group):
        group = texts[first : first + per_group]
        lengths = np.array([sum(sentences) for sentences in group], np.int64)
        ids = np.arange(start, start + lengths.sum())
        start += int(lengths.sum())
        parts.append(pairs.add(ids, lengths, np.array([n for sentences in group for n in sentences], np.int64)))
    pairs.check()
    return pairs, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def segments(rows):
    """(A, B, label) of each row, after checking its form."""
    for ids, types, label in zip(rows["input_ids"], rows["token_type_ids"], rows["next_sentence_label"], strict=True):
        middle, end = np.flatnonzero(ids == SPECIAL["sep"])
        assert ids[0] == SPECIAL["cls"] and (ids[end + 1 :] == SPECIAL["pad"]).all()
        assert (ids[: end + 1] != SPECIAL["pad"]).all()
        assert types.tolist() == [0] * (middle + 1) + [1] * (end - middle) + [0] * (LENGTH - 1 - end)
        first, second = ids[1:middle].tolist(), ids[middle + 1 : end].tolist()
        assert first and second and label in (FOLLOWS, RANDOM)
        yield first, second, int(label)


def places(texts):
    """Document number of each token, and which tokens end a sentence, with tokens counted from 10."""
    document = [-1] * 10 + [number for number, sentences in enumerate(texts) for _ in range(sum(sentences))]
    ends = set(np.cumsum([n for sentences in texts for n in sentences]) + 9)
    return document, ends


def test_nothing_is_lost_and_b_follows_or_is_of_another_document():
    texts = corpus()
    document, ends = places(texts)
    pairs, rows = pairs_of(texts)
    seen: list[int] = []
    for first, second, label in segments(rows):
        for segment in (first, second):
            assert segment == list(range(segment[0], segment[0] + len(segment)))
            assert segment[-1] in ends and (segment[0] - 1 in ends or segment[0] == 10), "part of a sentence"
            assert len({document[token] for token in segment}) == 1
        if label == FOLLOWS:
            assert second[0] == first[-1] + 1 and document[second[0]] == document[first[0]]
            seen += first + second
        else:
            assert document[second[0]] != document[first[0]]
            seen += first
    assert seen == list(range(10, 10 + sum(map(sum, texts))))
    assert pairs.counts == tuple(np.bincount(rows["next_sentence_label"]))


def test_half_of_the_pairs_are_random_and_most_are_full():
    _, rows = pairs_of(corpus(2000), per_group=100)
    n = len(rows["next_sentence_label"])
    assert n > 5000 and abs(rows["next_sentence_label"].mean() - 0.5) < 0.02  # 3 standard deviations
    used = (rows["input_ids"] != SPECIAL["pad"]).sum(axis=1) - 3
    assert used.max() == ROOM and 0.4 < (used >= ROOM - 8).mean() < 0.95
    # The random segments come from many documents and from their middles.
    document, _ = places(corpus(2000))
    partners = [document[second[0]] for _, second, label in segments(rows) if label == RANDOM]
    assert len(set(partners)) > 1000
    # Lengths say little about the label.
    for name, value in (("A", 0), ("B", 1)):
        sizes = [[], []]
        for *both, label in segments(rows):
            sizes[label].append(len(both[value]))
        assert abs(np.mean(sizes[0]) - np.mean(sizes[1])) < 0.25 * np.mean(sizes[0]), name


def test_short_documents_make_up_for_partners_that_must_be_random():
    _, rows = pairs_of([[5, 5]] * 1000 + [[7]] * 50)
    assert abs(rows["next_sentence_label"].mean() - 0.5) < 0.03


def test_long_sentences_are_cut_and_fit():
    texts = [[200], [3, 70, 2], [29, 1], [14, 14, 15]] * 5
    _, rows = pairs_of(texts, per_group=3)
    seen = [i for first, second, label in segments(rows) for i in (first + second if label == FOLLOWS else first)]
    assert seen == list(range(10, 10 + sum(map(sum, texts))))


def test_the_same_rows_twice_and_other_partners_in_other_groups_only():
    texts = corpus(100)
    one, again, other = pairs_of(texts)[1], pairs_of(texts)[1], pairs_of(texts, per_group=7)[1]
    for name in one:
        assert (one[name] == again[name]).all()
    assert (one["next_sentence_label"] == other["next_sentence_label"]).all()  # a hash of the pair's number


def test_a_group_of_one_document_takes_partners_of_earlier_groups():
    texts = corpus(150, longest=20)
    pairs, rows = pairs_of(texts, per_group=1)
    document, _ = places(texts)
    distances = [document[f[0]] - document[s[0]] for f, s, label in segments(rows) if label == RANDOM]
    # The first document waits for the second; after that partners come from before.
    assert {1} < {d for d in distances if d > 0} and max(distances) <= RESERVOIR and min(distances) == -1
    assert len(pairs._reservoir) == RESERVOIR and max(len(d.ids) for d in pairs._reservoir) <= 4 * ROOM
    assert all(d.ids.base is None for d in pairs._reservoir), "a view would keep its group in memory"


def test_groups_without_documents():
    pairs = SentencePairs(LENGTH, SPECIAL)
    none = np.zeros(0, np.int64)
    assert pairs.add(none, none, none)["input_ids"].shape == (0, LENGTH)
    pairs.check()


@pytest.mark.parametrize("texts, message", [([[5, 5, 5]], "one document only"), ([[5]] * 9, "no document has two")])
def test_a_corpus_without_pairs_is_refused(texts, message):
    with pytest.raises(InputError, match=f"packing nsp: .*{message}"):
        pairs_of(texts)
