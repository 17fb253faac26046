"""Clean text, lengths, exact duplicates on disk."""

import random

import pytest

from data_prep import filters
from data_prep.filters import Lengths, Removed, _clean, digest_of, find_duplicates, is_duplicate


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  plain\ttext \u00a0 here\n", "plain text here"),
        ("cafe\u0301 \u1e9b\u0323", "caf\u00e9 \u1e9b\u0323"),  # composed, but not folded
        ("so\u00adft\u200b hyphen\ufeff", "soft hyphen"),
        ("bell\x07 and \x00 null \x85 line", "bell and null line"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\u3000\u4e2d\u6587\u3000", "\u4e2d\u6587"),
        ("half a pair \ud83d", "half a pair"),
        ("\u2028\u2029 ", ""),
    ],
)
def test_clean(raw, expected):
    assert _clean(raw) == expected and _clean(expected) == expected


def test_lengths_and_samples():
    removed = Removed()
    documents = ["", "ab", "abcd", "x" * 500, "abcde", *["y"] * 5]
    assert list(Lengths(3, 10).keep(documents, removed.add)) == ["abcd", "abcde"]
    assert removed.by["min_characters"] == {"documents": 6, "characters": 7, "samples": ["ab", "y", "y"]}
    assert removed.by["max_characters"]["characters"] == 500
    assert len(removed.by["max_characters"]["samples"][0]) == 200
    again = Removed()
    for _ in range(2):
        again.merge(removed.by)
    assert again.by["min_characters"]["documents"] == 12 and len(again.by["min_characters"]["samples"]) == 3
    assert removed.by["min_characters"]["documents"] == 6


@pytest.mark.parametrize("bucket", [4_000_000, 7])
def test_every_later_copy_is_found_and_no_other(tmp_path, monkeypatch, bucket):
    """Also with many buckets and digests read in pieces; files may be empty."""
    monkeypatch.setattr(filters, "BUCKET_DIGESTS", bucket)
    monkeypatch.setattr(filters, "READ_DIGESTS", 10)
    chance = random.Random(0)
    documents = [f"Document {chance.randrange(60)} of a kind" for _ in range(301)]
    expected = [document in documents[:number] for number, document in enumerate(documents)]
    files = []
    for number, (start, end) in enumerate([(0, 5), (5, 5), (5, 290), (290, 301)]):
        files.append(tmp_path / f"{number}.digests")
        files[-1].write_bytes(b"".join(map(digest_of, documents[start:end])))
    assert find_duplicates(files, tmp_path / "found") == sum(expected) > 200
    assert [is_duplicate(tmp_path / "found", number) for number in range(301)] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["found", *(file.name for file in files)])


def test_digests_are_of_the_words():
    assert digest_of("The  CAT sat") == digest_of(" the cat\u00a0sat ") != digest_of("the cats at")
