"""The tokenizer stage: what it trains is a stock BertTokenizer; other people's tokenizers load from any usual form."""

import json
import tarfile

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from budget_trainer.core.errors import InputError
from data_prep import tokenizer as stage
from data_prep.encoding import Encoder, load_tokenizer, special_ids
from data_prep.tokenizer_training import SPECIAL_TOKENS, TokenizerOptions, train_tokenizer
from tests.conftest import SHARED_DATA, read_documents
from tests.data_prep.conftest import error_of

TEXT = "The quick brown Fox jumps over the lazy dog. Caf\u00e9 na\u00efve \u00dcber 1234 (that) is \u2014 isn't it?"


def test_trained_tokenizer_loads_as_stock_bert(tokenizer, corpus, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert type(loaded).__name__.startswith("BertTokenizer") and loaded.is_fast
    assert len(loaded) <= 500 and loaded.model_max_length == 512
    assert [loaded.convert_ids_to_tokens(i) for i in range(5)] == list(SPECIAL_TOKENS)
    assert set(special_ids(loaded)) == {"pad", "unk", "cls", "sep", "mask"}
    text = next(iter(read_documents(corpus)))
    ids = loaded(text)["input_ids"]
    assert ids[0] == loaded.cls_token_id and ids[-1] == loaded.sep_token_id and loaded.unk_token_id not in ids
    assert loaded.decode(ids[1:-1]).replace(" ", "") == text.lower().replace(" ", "")


def test_case_is_kept_when_asked_for(tmp_path):
    file = tmp_path / "paris.txt"
    file.write_text("Paris is not paris\n" * 3)
    assert "paris" in train_tokenizer(file, TokenizerOptions(100)).tokenize("Paris")
    cased = train_tokenizer(file, TokenizerOptions(100, lowercase=False))
    assert cased.tokenize("Paris") == ["Paris"] and cased.tokenize("paris") == ["paris"]


def test_small_corpus_says_so_and_alphabet_is_limited(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("some words and no more\n")
    out = tmp_path / "tokenizer"
    assert stage.main(["--input", str(tmp_path / "t.txt"), "--output_dir", str(out)]) == 0
    assert "--vocab_size 8192: the corpus has no more" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    (tmp_path / "few.txt").write_text("abcabcabc xyz\n" * 3)
    few = train_tokenizer(tmp_path / "few.txt", TokenizerOptions(100, limit_alphabet=3))
    assert few.tokenize("xyz") == ["[UNK]"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_forms_of_other_peoples_tokenizers(tmp_path):
    with tarfile.open(SHARED_DATA / "vocab.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    vocab = tmp_path / "vocab"
    from_json = load_tokenizer(str(vocab / "bert-base-uncased-tokenizer.json"))
    from_vocab = load_tokenizer(str(vocab / "bert-base-uncased-vocab.txt"))
    from_folder = load_tokenizer(str(vocab))  # the only *tokenizer.json there
    from_json.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert special_ids(from_json) == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    for other in (from_vocab, from_folder, saved):
        assert len(other) == len(from_json) == 30522 and special_ids(other) == special_ids(from_json)
        assert other(TEXT)["input_ids"] == from_json(TEXT)["input_ids"]
    cased = load_tokenizer(str(vocab / "bert-base-cased-vocab.txt"))
    assert "Fox" in cased.tokenize(TEXT)


def test_what_is_no_tokenizer_is_refused(tmp_path, tokenizer):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    plain = json.loads((tokenizer / "tokenizer.json").read_text())
    del plain["model"]["vocab"]["[MASK]"]
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] != "[MASK]"]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    for name, message in (
        ("missing", "no such file or folder"),
        ("empty", "found none"),
        ("bad.json", "cannot be loaded"),
        ("plain.json", "has no mask token"),
    ):
        with pytest.raises(InputError, match=message):
            load_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize(
    "change, message",
    [
        (["--input", "nothing.txt"], "no such file"),
        (["--vocab_size", "5"], "vocab_size 5 is too small; give at least 11"),
        (["--vocab_size", "260", "--tokenizer_type", "bpe"], "vocab_size 260 is too small for bpe (256 bytes and 5"),
        (["--tokenizer_type", "bpe", "--limit_alphabet", "50"], "limit_alphabet 50: bpe has all bytes"),
        (["--tokenizer_type", "bytes"], "--tokenizer_type: invalid choice: 'bytes' (choose from"),
        (["--vocab_size", "many"], "'many' is not a whole number"),
        (["--kind", "hdf5"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(corpus, tmp_path, capsys, change, message):
    argv = ["--input", corpus, "--output_dir", tmp_path / "tokenizer", *change]
    assert message in error_of(stage.main, argv, capsys)
    assert not list(tmp_path.iterdir())


def test_existing_output_is_kept(tmp_path, corpus, tokenizer, capsys):
    before = (tokenizer / "tokenizer.json").read_bytes()
    argv = ["--input", corpus, "--output_dir"]
    assert "already holds a tokenizer; give another path or --overwrite" in error_of(
        stage.main, [*argv, tokenizer], capsys
    )
    assert (tokenizer / "tokenizer.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists and is no tokenizer" in error_of(stage.main, [*argv, tmp_path, "--overwrite"], capsys)


ODD = [
    TEXT,
    "a [MASK] b [CLS]c",
    "\x0bx\u2028y  z\u00a0w \x00, \u0301, e\u0301 \u4e2d\u6587a\u0130 \u03a3\u03a3. \x85,\x1fq\ud7a3\u1100\u1161",
    "x" * 300 + " supercalifragilistic",
    "",
]


def test_encoding_is_that_of_the_library(tokenizer, corpus, tmp_path):
    """Word by word for BERT's; a byte-level BPE's words are not apart."""
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(corpus)], vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert special_ids(load_tokenizer(str(tmp_path))) == {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 4}
    documents = list(read_documents(corpus))[:50]
    for folder in (tokenizer, tmp_path):
        encoder, reference = Encoder(str(folder / "tokenizer.json")), load_tokenizer(str(folder))
        for batch in (documents, ODD[:1], ODD[2:], documents, ODD):
            expected = [reference(text, add_special_tokens=False, verbose=False)["input_ids"] for text in batch]
            assert [ids.tolist() for ids in encoder.encode(batch)] == expected
