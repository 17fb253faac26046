"""What a text loses is counted, summed and said: the same by every way into blocks."""

import json
import random
import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from data_prep import blocks, inspect, losses, merge, prepare, tokenizer
from data_prep.corpus import TokenGroup
from data_prep.encoding import Encoder, load_tokenizer
from data_prep.next_sentence import SentencePairs
from tests.conftest import read_documents, words
from tests.data_prep.conftest import error_of
from tests.data_prep.test_prepare import recipe  # noqa: F401 (a fixture)

HINDI = "\u092f\u0939 \u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u0940 \u0915\u0925\u093e"  # two of its vowel signs are "Mn"

TEMPLATES = {"left_out": 5, "sentences": 2, "with_a_hole": 1, "sentences_dropped": 1, "most": {"x": 5}}


@pytest.fixture
def mixed(corpus, tmp_path):
    """Writes the corpus with a share of its lines in Chinese; returns the file."""

    def write(share):
        chance = random.Random(0)
        lines = corpus.read_text()[:90_000].split("\n")
        for number, line in enumerate(lines):
            if line and chance.random() < share:
                lines[number] = "".join(chr(0x4E00 + min(int(chance.expovariate(0.02)), 999)) for _ in range(60))
        (tmp_path / "mixed.txt").write_text("\n".join(lines))
        return tmp_path / "mixed.txt"

    return write


@pytest.fixture
def build(tokenizer, tmp_path):
    def run(name="blocks", **flags):
        options = {"tokenizer": tokenizer, "output_dir": tmp_path / name, "num_proc": 1, "kind": "text"}
        assert blocks.main(words({**options, "validation_fraction": 0.1, **flags})) == 0
        return DataFolder.open(tmp_path / name).manifest

    return run


def test_english_loses_nothing(build, corpus, capsys):
    manifest = build(input=corpus)
    unknown, marks = manifest["losses"]["unknown"], manifest["losses"]["marks"]
    assert unknown["tokens"] == marks["letters"] == 0
    text = "".join(text for text in read_documents(corpus))
    assert 0 < marks["of"] < sum(letter.isalpha() for letter in text) and 0 < unknown["of"]
    assert "lost" not in capsys.readouterr().out


def test_unknown_characters_are_counted_said_and_refused(build, mixed, corpus, tokenizer, tmp_path, capsys, recipe):  # noqa: F811
    """By blocks with one process and two, by prepare and after merging the same, in the manifest, at the end and by inspect."""
    file = mixed(0.02)
    one = build("one", input=file)
    line = next(line for line in capsys.readouterr().out.split("\n") if "[UNK]" in line)
    unknown = one["losses"]["unknown"]
    texts = list(read_documents(file, "text"))
    encoder, special = Encoder(str(tmp_path / "one" / "tokenizer" / "tokenizer.json")), one["special_ids"]
    ids = np.concatenate(encoder.encode([text for text in texts if not losses_of_validation(text, tmp_path / "one")]))
    assert unknown["of"] == len(ids) and unknown["tokens"] == (ids == special["unk"]).sum() > 0.02 * len(ids)
    assert unknown["scripts"] == {"CJK": unknown["lost"]} and unknown["lost"] == unknown["tokens"]
    most = list(unknown["characters"].items())[:5]
    assert f"{unknown['tokens'] / len(ids):.2%} of the tokens (CJK 100%; most: " in line
    assert ", ".join(f"{character} {count:,}" for character, count in most) in line
    assert "; warning: train the tokenizer on this text" in line
    assert build("two", input=file, num_proc=2)["losses"] == one["losses"]
    assert prepare.main([str(recipe(sources=[{"input": str(file), "kind": "text"}]))]) == 0
    assert line in capsys.readouterr().out
    assert DataFolder.open(tmp_path / "out").manifest["losses"] == one["losses"]
    build("english", input=corpus)
    assert (
        merge.main(
            words({"output_dir": tmp_path / "both"}) + ["--input", *map(str, (tmp_path / "one", tmp_path / "english"))]
        )
        == 0
    )
    both = DataFolder.open(tmp_path / "both").manifest["losses"]["unknown"]
    assert both["tokens"] == unknown["tokens"] and both["of"] > 1.5 * unknown["of"]
    old = json.loads((tmp_path / "english" / "manifest.json").read_text())
    del old["losses"], old["splits"]["validation"]["unknown_tokens"]  # as before these were counted
    (tmp_path / "english" / "manifest.json").write_text(json.dumps(old))
    flags = words({"output_dir": tmp_path / "old"}) + ["--input", str(tmp_path / "one"), str(tmp_path / "english")]
    assert merge.main(flags) == 0 and "losses: unknown" in capsys.readouterr().out
    assert "losses" not in DataFolder.open(tmp_path / "old").manifest
    assert inspect.main([str(tmp_path / "one")]) == 0
    assert line in capsys.readouterr().out


def losses_of_validation(text, folder):
    return text in (folder / "validation.txt").read_text().split("\n")


def test_a_text_of_unknown_tokens_is_refused(build, mixed, corpus, tokenizer, tmp_path, capsys):
    flags = {"input": mixed(0.5), "tokenizer": tokenizer, "output_dir": tmp_path / "out", "validation_fraction": 0.1}
    error = error_of(blocks.main, words(flags), capsys)
    assert f"error: tokenizer {tokenizer}: " in error and "% of the tokens are [UNK] (CJK 100%; most: " in error
    assert "; give one trained on this text, or --max_unknown 0." in error and not (tmp_path / "out").exists()
    allowed = float(error.rpartition(" ")[2])
    share = build(input=flags["input"], max_unknown=allowed)["losses"]["unknown"]
    assert allowed - 0.01 <= share["tokens"] / share["of"] <= allowed
    assert losses.lines({}) == []
    # So is a text to validate on, of which the training text tells nothing.
    other = {**flags, "validation_text": flags["input"], "input": corpus}
    error = error_of(blocks.main, words(other), capsys)
    assert "validation_text" in error and "% of the tokens are [UNK] (CJK 100%" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_letters_that_lose_their_marks(tmp_path, form, lowercase):
    text = f"caf\u00e9 {HINDI} \u043c\u043e\u0439 \u0645\u06cc\u200c\u0631\u0648\u0645 \ud55c"
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", "the" if lowercase else "The"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab))
    load_tokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    encoder = Encoder(str(tmp_path / "tokenizer" / "tokenizer.json"))
    raw = unicodedata.normalize(form, text).encode()
    counts = losses.Meter(encoder).count([raw, b"[SEP] \xee\x80\x80\xe2\x80\x8b"], np.zeros(0))
    assert counts["special_tokens"] == {"[SEP]": 1} and counts["dropped"] == {"U+E000": 1, "U+200B": 1}
    marks = counts["marks"]
    found = {"LATIN": 1, "DEVANAGARI": 1, "CYRILLIC": 1} if lowercase else {}
    if form == "NFD" and lowercase:
        found = {"COMBINING": 2, "DEVANAGARI": 1}
    assert marks["scripts"] == found | {"JOINERS": 1}  # BERT's cleaning takes these, cased or not
    letters = sum(unicodedata.category(letter)[0] in "LM" for letter in raw.decode() + "SEP")
    assert marks["of"] == letters and marks["letters"] == sum(marks["scripts"].values())


def test_what_is_said_of_each_loss():
    lost = {
        "unknown": {"tokens": 30, "of": 100, "lost": 0, "characters": {}, "scripts": {}},
        "marks": {"letters": 3, "of": 1000, "scripts": {"LATIN": 3}},
        "special_tokens": {"[SEP]": 1200},
        "dropped": {"U+FFFD": 7, "U+200E": 1000},
        "empty_documents": 2,
    }
    elsewhere = losses.Losses([{"marks": {"letters": 2, "of": 100, "scripts": {"JOINERS": 2}}}]).facts()
    content = {
        "losses": lost,
        "splits": {"train": {"sentences": 1000, "sentences_cut": 20}, "validation": {"losses": elsewhere}},
        "removed": {"duplicates": {"documents": 3}},
        "sources": [
            {"path": "a", "text_bytes": 1000, "account": {"replaced_characters": 50, "documents_cut": 0}},
            {"path": "b", "text_bytes": 9, "account": {"files_not_read": {"number": 2, "names": ["x.md", "y.csv"]}}},
            {"path": "c", "text_bytes": 9, "dropped": {"redirect": 4}, "account": {"templates": TEMPLATES}},
        ],
    }
    head, *rows = losses.lines(content)
    assert head.startswith("lost on the way") and len(rows) == 12
    unknown, marks, gone, empty, special, other, sentences, removed, replaced, files, pages, templates = rows
    assert "30.00% of the tokens (words of more than 100 characters" in unknown
    assert unknown.endswith("; warning: words without spaces, or parts of words: --tokenizer_type unigram or bpe")
    assert marks.split() == "marks of letters 0.30% of the letters (LATIN 100%)".split()
    assert "2.00% of the letters of validation_text (JOINERS 100%); warning: train the tokenizer on this" in other
    assert special.split(None, 2)[2] == "[SEP] 1,200: written out in the text, and taken as text"
    assert "1,007 by the tokenizer; most: U+200E 1,000, U+FFFD 7" in gone and "3 by duplicates" in removed
    assert "2 without a token" in empty
    assert "redirect 4 (c)" in pages and "5 in 50.0% of the sentences" in templates
    assert templates.endswith("; warning: give what they show as templates: of the source")
    assert "20 cuts within sentences longer than a block, of 1,000; warning: raise --block_size" in sentences
    assert "replaced characters" in replaced and "50 (a); warning: give the --encoding of the files" in replaced
    assert "2 files not read: x.md, y.csv (b)" in files and "warning" not in files


def test_letters_that_a_tokenizer_without_unknown_tokens_drops(tmp_path):
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    counts = losses.losses_of(_write(tmp_path / "text", "ab" * 300 + "中文é" * 200), tmp_path / "tokenizer.json")
    assert counts.facts()["dropped_letters"] == 600 and counts.facts()["unknown"]["tokens"] == 0
    assert "600 by the tokenizer; most: U+00E9 200, U+4E2D 200" in (
        line := losses.lines({"losses": counts.facts()})[1]
    )
    assert "; warning: train the tokenizer" in line
    with pytest.raises(InputError, match="tokenizer x: 50% of the letters are dropped, as it has no .UNK.; give one"):
        counts.check(0.2, "x")


def _write(file, text):
    file.write_text(text, encoding="utf-8")
    return file


def test_cut_sentences_of_pairs_are_counted():
    pairs = SentencePairs(16, {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4})  # 6 tokens of a sentence at most
    lengths = np.array([13, 6, 7], np.int64)
    pairs.add(TokenGroup(np.arange(26), np.array([19, 7]), 0, [], lengths, {}))
    assert (pairs.facts()["sentences"], pairs.facts()["sentences_cut"]) == (3, 3)


def test_a_tokenizer_says_what_it_loses_of_its_own_text(mixed, tmp_path, capsys):
    flags = {"input": mixed(0.7), "kind": "text", "vocab_size": 300, "output_dir": tmp_path / "tokenizer"}
    error = error_of(tokenizer.main, words({**flags, "limit_alphabet": 40}), capsys)
    assert "% of the tokens are [UNK] (CJK 9" in error
    assert "; give a larger --vocab_size or --limit_alphabet, or --max_unknown 0." in error
    assert not (tmp_path / "tokenizer").exists()
    assert tokenizer.main(words({**flags, "limit_alphabet": 40, "max_unknown": 1})) == 0
    assert "; warning: train the tokenizer on this text, with a larger --limit_alphabet" in capsys.readouterr().out
    counts = json.loads((tmp_path / "tokenizer" / "losses.json").read_text())
    assert counts["unknown"]["tokens"] > 0.2 * counts["unknown"]["of"]
