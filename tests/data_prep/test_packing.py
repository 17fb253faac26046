"""Blocks from tokens: nothing lost, nothing crosses a border that it must not cross, the same for any grouping."""

import itertools

import numpy as np
import pytest

from budget_trainer.core.errors import InputError
from data_prep.corpus import TokenGroup
from data_prep.next_sentence import FOLLOWS, RANDOM, RESERVOIR, SentencePairs
from data_prep.packing import OneDocument, PackedBlocks, WholeSentences
from data_prep.sentences import split_sentences

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
LENGTH = 32
GROUPS = ([[7], [1], [14], [13]], [[30]], [[14], [14], [1]], [[2]])  # documents; the body of a block of 16 is 14
FLAT = ([document for documents in GROUPS for document in documents],)


def groups_of(groups):
    """Groups of documents that are lists of sentence lengths; ids 10, 11, ... so that each token tells its place."""
    start = 10
    for documents in groups:
        lengths = np.array([sum(document) for document in documents], np.int64)
        sentences = np.array([length for document in documents for length in document], np.int64)
        yield TokenGroup(np.arange(start, start + lengths.sum()), lengths, 0, [], sentences, {})
        start += int(lengths.sum())


def rows_of(packer, groups):
    parts = [packer.add(group) for group in groups_of(groups)] + [packer.finish()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def packed(groups, length=16):
    return tuple(rows_of(PackedBlocks(length, SPECIAL), groups).values())


def test_packed_blocks_are_full_and_hold_the_documents_joined_by_sep():
    ids, numbers = packed(GROUPS)
    assert (ids[:, 0] == SPECIAL["cls"]).all()
    assert (ids[:, -1] == SPECIAL["sep"]).all() and (ids != SPECIAL["pad"]).all()
    stream = ids[:, 1:-1].ravel().tolist()
    documents, start = [], 10
    for (size,) in FLAT[0]:
        documents += [*range(start, start + size), SPECIAL["sep"]]
        start += size
    assert stream[: len(documents)] == documents
    assert stream[len(documents) :] == documents[: len(stream) - len(documents)]  # filled from the beginning
    assert packed([[[14]]])[0].tolist() == [[2, *range(10, 24), 3]] and packed([[]])[0].shape == (0, 16)
    # A document's number grows right after a [SEP], and after each [SEP] inside the body: the last closes the block.
    body = np.cumsum(ids[:, 1:-1] == SPECIAL["sep"], axis=1)
    assert (numbers[:, 2:-1] == body[:, :-1]).all() and (numbers[:, :2] == 0).all()
    assert (numbers[:, -1] == numbers[:, -2]).all()


@pytest.mark.parametrize("length, expected", [(14, 1), (13, 1), (3, 1), (15, 2)])
def test_the_last_block_is_full(length, expected):
    packer = PackedBlocks(16, SPECIAL)
    (group,) = groups_of([[[length]]])
    first, last = packer.add(group), packer.finish()
    assert len(first["input_ids"]) + len(last["input_ids"]) == expected
    assert all((part["input_ids"] != SPECIAL["pad"]).all() for part in (first, last))
    assert set(last["document_ids"].ravel()) <= ({0, 1} if packer.facts()["filled"] else {0})


@pytest.mark.parametrize("lengths", [[], [1], [14], [15], [28, 29, 1, 14, 3]])
def test_one_document_blocks_lose_nothing_and_cross_no_border(lengths):
    rows = rows_of(OneDocument(16, SPECIAL), [[[length] for length in lengths]])["input_ids"]
    assert rows[rows >= 10].tolist() == list(range(10, 10 + sum(lengths)))
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for row in rows:
        body = row[row >= 10]
        assert row.tolist() == [2, *body.tolist(), 3] + [0] * (14 - len(body))
        assert len(set(document_of[body - 10])) == 1
    assert len(rows) == sum(-(-n // 14) for n in lengths)


def sizes_of(packer, documents):
    return [int((row >= 10).sum()) for row in rows_of(packer, [documents])["input_ids"]]


def test_whole_sentences_and_what_is_cut():
    for documents, sizes, cut in (
        ([[4, 5, 8, 5], [3], [10]], [9, 8, 5, 3, 10], 0),
        ([[3, 25, 2], [5]], [3, 10, 10, 7, 5], 2),
    ):
        packer = WholeSentences(12, SPECIAL)
        assert sizes_of(packer, documents) == sizes and packer.facts()["sentences_cut"] == cut


@pytest.mark.parametrize("short", [0.0, 0.3])
def test_sentences_lose_nothing_whatever_the_groups(short):
    chance = np.random.default_rng(0)
    documents = [chance.integers(1, 40, chance.integers(1, 12)).tolist() for _ in range(200)]
    whole = rows_of(WholeSentences(32, SPECIAL, short), [documents])["input_ids"]
    parts = rows_of(WholeSentences(32, SPECIAL, short), [documents[:50], documents[50:51], documents[51:]])
    assert (whole == parts["input_ids"]).all()
    bodies = [row[row >= 10] for row in whole]
    assert np.concatenate(bodies).tolist() == list(range(10, 10 + sum(map(sum, documents))))
    assert all(row[0] == 2 and row[len(body) + 1] == 3 for row, body in zip(whole, bodies, strict=True))
    borders = set(np.cumsum([sum(document) for document in documents]).tolist())
    ends = set(np.cumsum(list(itertools.chain(*documents))).tolist())
    at = set(np.cumsum([len(body) for body in bodies]).tolist())
    assert borders <= at, "no block crosses a document"
    assert 0 < len(at - ends) <= sum(length > 30 for length in itertools.chain(*documents))
    sizes = np.array([len(body) for body in bodies])
    assert (sizes < 15).mean() > (0.2 if short else 0.0) and sizes.max() == 30
    sizes = np.array(sizes_of(WholeSentences(128, SPECIAL, short), [[1] * 500_000]))
    assert 0.9 * short <= (sizes < 126).mean() <= 1.1 * short + 1e-3
    assert not short or 40 < sizes[sizes < 126].mean() < 90


@pytest.mark.parametrize(
    "text, count",
    [
        ("", 0),
        ("One! Two? Three\u2026 Four... Five?! Six.", 6),
        ("It costs 3.5 pounds. 20 were sold.", 2),
        ("See e.g. this one, i.e. that.", 1),
        ('He said "Go." "No." (She left.) Then he went.', 4),
        ("\u201cOne.\u201d \u201cTwo.\u201d \u00abTrois.\u00bb \u00c9t\u00e9.", 4),
        ("One.Two is not split.", 1),
        ("One.\u00a0Two is.", 2),
        ("Spaces.   Many  of them.  ", 2),
        ("all lower case. no capitals. none", 1),
        ("\u201eKomm.\u201c Er ging. \u00bbJa.\u00ab \u201aNein.\u2018 So.", 5),
        ("\u00ab Oui. \u00bb Non. Hola. \u00bfQu\u00e9? \u00a1Bien! \u03a4\u03b9; \u039d\u03b1\u03b9.", 7),
        ("It says \u00ab\u03a4\u03b9; one\u00bb and (\u0964) to end, '\u061f', no more.", 1),
        ("今天好。你呢？好！", 3),
        ("「好。」他说：“走吧！”好?好!！（好。）", 5),
        ("“好。”他说。“走吧！”‘好！’“再见？”", 5),
        ("它是3.5元．次に。……", 2),
        ("e.g. 中文 and U.S. 中文, Yahoo! 知恵袋", 1),
        ("यह है।वह है। कौन? हम. नమ", 5),
        ("نعم؟ لا. هو في عام 1990. وہ ہے۔ ہاں", 5),
        ("سلام. حالت چطور است؟ خوبم!", 3),
        ("네. 아니요. 3개입니다.", 3),
        ("שלום. מה? კარგად. ხარ! நான். அவர்.", 6),
        ("Բարև։ Լավ։ እሺ። አይ፧ ဟုတ်။ မဟုတ်။ បាទ។ ទេ។", 8),
    ],
)
def test_sentences(text, count):
    sentences = split_sentences(text)
    assert len(sentences) == count
    assert "".join(sentences) == text
    assert all(sentence.strip() for sentence in sentences)
    assert not any(sentence.endswith("“") for sentence in sentences if "„" not in text)


def corpus(documents=300, seed=0, longest=8):
    """Sentence lengths of each document; token ids count on from 10, so that each tells its place."""
    random = np.random.default_rng(seed)
    return [random.integers(1, longest + 1, random.integers(1, 20)).tolist() for _ in range(documents)]


def pairs_of(texts, per_group=40):
    pairs = SentencePairs(LENGTH, SPECIAL)
    return pairs, rows_of(pairs, [texts[first : first + per_group] for first in range(0, len(texts), per_group)])


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
    document = np.repeat(np.arange(len(texts)), [sum(sentences) for sentences in texts])
    ends = set(np.cumsum(list(itertools.chain(*texts))) + 9)
    return [-1] * 10 + document.tolist(), ends


LONG = [[200], [3, 70, 2], [29, 1], [14, 14, 15]] * 5  # sentences that are cut to fit


@pytest.mark.parametrize("texts", [corpus(), LONG])
def test_no_pair_loses_anything_and_b_follows_or_is_of_another_document(texts):
    document, ends = places(texts)
    pairs, rows = pairs_of(texts)
    seen: list[int] = []
    for first, second, label in segments(rows):
        for segment in (first, second):
            assert segment == list(range(segment[0], segment[-1] + 1)) and len({document[i] for i in segment}) == 1
            whole = segment[-1] in ends and (segment[0] - 1 in ends or segment[0] == 10)
            assert whole or texts is LONG, "part of a sentence"
        assert (document[second[0]] == document[first[0]]) == (label == FOLLOWS)
        assert label == RANDOM or second[0] == first[-1] + 1
        seen += first + (second if label == FOLLOWS else [])
    assert seen == list(range(10, 10 + sum(map(sum, texts))))
    assert list(pairs.facts()["pairs"].values()) == np.bincount(rows["next_sentence_label"]).tolist()


def test_half_of_the_pairs_are_random_and_most_are_full():
    _, rows = pairs_of(corpus(2000), per_group=100)
    n = len(rows["next_sentence_label"])
    assert n > 5000 and abs(rows["next_sentence_label"].mean() - 0.5) < 0.02  # 3 standard deviations
    # Short documents, whose partners must be random, are made up for.
    assert abs(pairs_of([[5, 5]] * 1000 + [[7]] * 50)[1]["next_sentence_label"].mean() - 0.5) < 0.03
    used = (rows["input_ids"] != SPECIAL["pad"]).sum(axis=1) - 3
    assert used.max() == LENGTH - 3 and 0.4 < (used >= LENGTH - 11).mean() < 0.95
    # The random segments come from many documents and from their middles.
    document, _ = places(corpus(2000))
    partners = [document[second[0]] for _, second, label in segments(rows) if label == RANDOM]
    assert len(set(partners)) > 1000
    # Lengths say little about the label.
    for name, value in (("A", 0), ("B", 1)):
        sizes = [[len(found[value]) for found in segments(rows) if found[2] == label] for label in (FOLLOWS, RANDOM)]
        assert abs(np.mean(sizes[0]) - np.mean(sizes[1])) < 0.25 * np.mean(sizes[0]), name


def test_what_depends_on_the_groups():
    """Of packed blocks nothing; of pairs the partners, but no label, which is a hash of the pair's number."""
    for groups in (FLAT, tuple([document] for document in FLAT[0])):
        assert all((got == expected).all() for got, expected in zip(packed(groups), packed(GROUPS), strict=True))
    texts = corpus(100)
    one, again, other = pairs_of(texts)[1], pairs_of(texts)[1], pairs_of(texts, per_group=7)[1]
    assert all((one[name] == again[name]).all() for name in one)
    assert (one["next_sentence_label"] == other["next_sentence_label"]).all()


def test_a_group_of_one_document_takes_partners_of_earlier_groups():
    texts = corpus(150, longest=20)
    _, rows = pairs_of(texts, per_group=1)
    document, _ = places(texts)
    distances = [document[f[0]] - document[s[0]] for f, s, label in segments(rows) if label == RANDOM]
    # The first document waits for the second; after that partners come from before.
    assert {1} < {d for d in distances if d > 0} and max(distances) <= RESERVOIR and min(distances) == -1


@pytest.mark.parametrize("texts, message", [([[5, 5, 5]], "one document only"), ([[5]] * 9, "no document has two")])
def test_a_corpus_without_pairs_is_refused(texts, message):
    with pytest.raises(InputError, match=f"packing nsp: .*{message}"):
        pairs_of(texts)
