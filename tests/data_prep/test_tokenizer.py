"""The tokenizer stage: every type that it trains, through all that comes behind it; other people's from any usual form."""

import base64
import itertools
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.whole_words import continues_word, vocabulary_size
from budget_trainer.fill_mask import _fill_mask
from data_prep import blocks, inspect
from data_prep import tokenizer as stage
from data_prep.encoding import Encoder, load_tokenizer, special_ids
from data_prep.packing import _token_bytes
from data_prep.sentences import split_sentences
from data_prep.tokenizer_training import SPECIAL_TOKENS, TYPES, TokenizerOptions, _text_to_learn, train_tokenizer
from tests.conftest import SHARED_DATA, TINY, read_documents, report, train, words
from tests.data_prep.conftest import dealt_rows, error_of, ids_of, text_mask, train_texts

NEW = ("bpe", "unigram")
ENGLISH = (
    "Paris is not paris. It takes two Caf\u00e9s, doesn't it?  3.5 (or 12) of them! The caf\u00e9 is two times new."
)
ODD = [
    ENGLISH,
    "\u00dcber na\u00efve \u00bd \ufb01ne e\u0301 \u4e2d\u6587a \U0001f600 \ud7a3\uac01 \u00a0 \u2028x",
    "",
]
ODD += [" two  spaces \ttab ", "\u2581 x\u2581y ##z \u0120q", "   "]
CONTROL = "\x0bx\u2028y  z\u00a0w \x00, \u0301, e\u0301 \u4e2d\u6587a\u0130 \u03a3\u03a3. \x85,\x1fq\ud7a3\u1100\u1161"


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory):
    """The folder of a tokenizer, trained once for the same options on `corpus` and some English."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n".join([*read_documents(corpus), *[ENGLISH] * 20]) + "\n", encoding="utf-8")
    made = {}

    def folder(kind, lowercase=True):
        if (kind, lowercase) not in made:
            made[kind, lowercase] = tmp_path_factory.mktemp("trained") / kind
            train_tokenizer(text, TokenizerOptions(500, kind, lowercase)).save_pretrained(made[kind, lowercase])
        return made[kind, lowercase]

    return folder


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_it_loads_as_a_stock_tokenizer(trained, kind, lowercase):
    loaded = AutoTokenizer.from_pretrained(trained(kind, lowercase), trust_remote_code=False)
    assert type(loaded).__name__.startswith("BertTokenizer") is (kind == "wordpiece")
    assert loaded.is_fast and 300 < len(loaded) <= 500 and loaded.model_max_length == 512
    assert loaded.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    found = load_tokenizer(str(trained(kind, lowercase)))
    assert special_ids(found) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    plain = loaded(ENGLISH, add_special_tokens=False)["input_ids"]
    assert loaded(ENGLISH)["input_ids"] == [2, *plain, 3] and 1 not in plain
    assert loaded("two", ENGLISH)["input_ids"] == [*loaded("two")["input_ids"], *plain, 3]
    spelled, wanted = loaded.decode(plain), ENGLISH.lower().replace("\u00e9", "e") if lowercase else ENGLISH
    if kind != "bpe":  # only it keeps two spaces, and only WordPiece has none before a comma
        space = "" if kind == "wordpiece" else " "
        spelled, wanted = space.join(spelled.split()), space.join(wanted.split())
    assert spelled == wanted
    assert (loaded.tokenize("a Paris") == loaded.tokenize("a paris")) is lowercase


@pytest.mark.parametrize("kind", NEW)
def test_a_mask_stands_for_a_word_and_its_space(trained, kind):
    loaded = AutoTokenizer.from_pretrained(trained(kind))
    texts = ("it is two times", "it is [MASK] times")
    word, masked = (loaded(text, add_special_tokens=False)["input_ids"] for text in texts)
    place = masked.index(4)
    end = len(word) - len(masked) + place + 1
    assert masked[:place] == word[:place] and masked[place + 1 :] == word[end:] and end < len(word)
    assert loaded.decode(word[place:end]).strip() == "two"


@pytest.mark.parametrize("kind", TYPES)
def test_training_is_deterministic(corpus, tmp_path, kind):
    made = []
    for name in "ab":
        flags = {"input": corpus, "vocab_size": 400, "tokenizer_type": kind, "output_dir": tmp_path / name}
        assert stage.main(words(flags)) == 0
        made.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert made[0] == made[1] and len(AutoTokenizer.from_pretrained(tmp_path / "a")) <= 400


@pytest.mark.parametrize("limit", [20, 60])
def test_the_alphabet_is_limited(trained, tmp_path, limit):
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{chr(0x4E00 + i)}word {chr(0x4E00 + i)} some {'x' * i}\n" for i in range(100)))
    vocab = train_tokenizer(file, TokenizerOptions(200, "unigram", limit_alphabet=limit)).get_vocab()
    assert len({character for piece in set(vocab) - set(SPECIAL_TOKENS) for character in piece} - {"\u2581"}) == limit
    bpe, unigram = (AutoTokenizer.from_pretrained(trained(kind)) for kind in NEW)
    text = "two \u4e2d\u6587 times \U0001f600"
    assert bpe.unk_token_id not in bpe(text)["input_ids"] and bpe.decode(bpe(text)["input_ids"][1:-1]) == text
    assert unigram(text)["input_ids"].count(unigram.unk_token_id) == 2
    file.write_text("abcabcabc xyz\n" * 3)
    assert train_tokenizer(file, TokenizerOptions(100, limit_alphabet=3)).tokenize("xyz") == ["[UNK]"]


def test_small_corpus_says_so(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("some words and no more\n")
    out = tmp_path / "tokenizer"
    assert stage.main(["--input", str(tmp_path / "t.txt"), "--output_dir", str(out)]) == 0
    assert "--vocab_size 8192: no other piece occurs twice in the text" in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["losses.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_bytes_of_the_tokens_are_those_of_the_text(trained, kind, lowercase):
    backend = AutoTokenizer.from_pretrained(trained(kind, lowercase)).backend_tokenizer
    for text in ODD:
        text = text.replace(
            "e\u0301", "\u00e9"
        )  # a combining mark of its own stands in no token, in none of the types
        encoding = backend.encode(text, add_special_tokens=False)
        sizes = _token_bytes(text, encoding.offsets)
        assert len(sizes) == len(encoding.ids) and sum(sizes) == len("".join(text.split()).encode()), text


@pytest.mark.parametrize(
    "text, spans, expected",
    [
        ("ab cd", [(0, 2), (3, 5)], [2, 2]),
        ("ab cd", [(0, 2), (2, 5)], [2, 2]),  # the space in its word's token
        ("ab  cd", [(0, 2), (2, 3), (3, 6)], [2, 0, 2]),
        ("\u4e2d\u6587", [(0, 1)] * 3 + [(1, 2)] * 3, [3, 0, 0, 3, 0, 0]),
        ("x\u00e9y", [(0, 2), (1, 3)], [3, 1]),
        ("x" * 70_000, [(0, 70_000)], [65_535]),
        ("", [], []),
    ],
)
def test_bytes_of_tokens(text, spans, expected):
    assert _token_bytes(text, spans) == expected


@pytest.mark.parametrize("kind", NEW)
def test_sentences_and_whole_words(trained, kind):
    encoder = Encoder(str(trained(kind) / "tokenizer.json"))
    for text in ODD:
        whole, *parts = encoder.encode([text, *split_sentences(text)])
        assert list(itertools.chain(*parts)) == whole.tolist()
    assert len(split_sentences(ENGLISH)) == 4
    tokenizer = load_tokenizer(str(trained(kind)))
    continues = continues_word(tokenizer)
    ids = tokenizer(ENGLISH, add_special_tokens=False)["input_ids"]
    starts = [0, *[place for place in range(1, len(ids)) if not continues[ids[place]]], len(ids)]
    found = [tokenizer.decode(ids[a:b]).strip() for a, b in itertools.pairwise(starts)]
    wanted = ENGLISH.lower().replace("\u00e9", "e").split()
    assert [word for word in found if word] == wanted and not continues[tokenizer.all_special_ids].any()


@pytest.mark.parametrize(
    "kind, packing", [("bpe", "packed"), ("bpe", "sentences"), ("unigram", "one_document"), ("unigram", "nsp")]
)
def test_blocks_hold_the_text(prepared, trained, corpus, tmp_path, kind, packing):
    folder = prepared(tokenizer=trained(kind), packing=packing)
    rows = {name: dealt_rows(folder, column=name) for name in folder.manifest["splits"]["train"]["columns"]}
    text = text_mask(folder, rows["input_ids"])
    part_of = rows.get("document_ids", rows.get("token_type_ids", np.zeros_like(text)))
    assert part_of[text].max() == {"packed": part_of.max(), "nsp": 1}.get(packing, 0) >= (packing == "packed")
    if packing == "nsp":
        text &= (part_of == 0) | (rows["next_sentence_label"] == 0)[:, None]
    found = rows["input_ids"][text].tolist()
    wanted = list(itertools.chain(*ids_of(trained(kind), train_texts(corpus))))
    assert found[: len(wanted)] == wanted and found[len(wanted) :] == wanted[: len(found) - len(wanted)]
    backend = AutoTokenizer.from_pretrained(trained(kind)).backend_tokenizer
    text = "\n".join(backend.normalizer.normalize_str(document) for document in read_documents(corpus))
    assert inspect.main([str(folder.path), *words({"samples": 10, "output_dir": tmp_path / "inspection"})]) == 0
    for sample in json.loads((tmp_path / "inspection" / "inspect.json").read_text())["samples"]:
        assert sample["parts"] and all(part["text"] in text for part in sample["parts"])
    held_out = "".join((folder.path / "validation.txt").read_text().split())
    assert 0.95 * len(held_out) < folder.validation_rows()[1].sum() <= len(held_out.encode())


@pytest.mark.parametrize(
    "line, limit, expected",
    [("same words", 10, 4), ("{} cd", 100, 4), ("{} cd", 8, 2), ("{} cd", 4, 1)],
)
@pytest.mark.parametrize("drop", [None, {ord("z"): " "}])
def test_a_text_of_too_many_words_is_thinned(tmp_path, capsys, line, limit, expected, drop):
    lines = [line.format(f"{word} {word * 2}") for word in "abef"]
    (tmp_path / "text").write_text("".join(f"{line}\n" for line in lines))
    with _text_to_learn(tmp_path / "text", drop, limit) as file:
        found = file.read_text().splitlines()
    assert len(found) == expected and set(found) <= set(lines)
    assert ("spread evenly" in capsys.readouterr().out) is (expected < 4)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("full_stop", ["", "\u3002"])
def test_no_word_without_an_end_goes_to_a_trainer(tmp_path, full_stop):
    """Unigram's ended the process with a segmentation fault at 300,000 characters."""
    word = f"{'x' * 700}{full_stop}" * 400
    (tmp_path / "text").write_text(f"some words\n{word} and {word[:1000]}\n", encoding="utf-8")
    with _text_to_learn(tmp_path / "text", cut=True) as file:
        found = file.read_text(encoding="utf-8")
    assert max(map(len, found.split())) == 1000 and found.count("\n") == (401 if full_stop else 281)
    assert "".join(found.split()) == "".join((tmp_path / "text").read_text(encoding="utf-8").split())


@pytest.mark.slow
def test_a_trainer_survives_base64(tmp_path):
    """In a process of its own: a segmentation fault would end this one."""
    word = base64.b64encode(np.random.default_rng(0).bytes(225_000)).decode()
    (tmp_path / "t.txt").write_text("\n\n".join([*["some words of text"] * 50, word]))
    argv = {"input": tmp_path / "t.txt", "output_dir": tmp_path / "o", "vocab_size": 300, "tokenizer_type": "unigram"}
    ended = subprocess.run([sys.executable, "-m", "data_prep.tokenizer", *words(argv)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "1 words of more than 1000 characters (the longest 300000): cut before training" in ended.stdout


def test_the_alphabet_covers_the_text(tmp_path, capsys):
    """Ideographs as in text, 1/n: [UNK] for the rarest alone, and no entry that can never occur."""
    ranks = 1 / np.arange(1, 801)
    drawn = np.random.default_rng(0).choice(800, (200, 100), p=ranks / ranks.sum())
    text = "".join("".join(chr(0x4E00 + i) for i in line) + "\n" for line in drawn.tolist())
    (tmp_path / "text").write_text(text, encoding="utf-8")
    for kind in ("wordpiece", "unigram"):
        made = train_tokenizer(tmp_path / "text", TokenizerOptions(1600, kind))
        ids = made(text, add_special_tokens=False, verbose=False)["input_ids"]
        assert ids.count(made.unk_token_id) < 0.001 * len(text), kind
        assert not [entry for entry in made.get_vocab() if entry[:2] == "##" and "\u4e00" <= entry[2:] < "\ua000"]
    assert not capsys.readouterr().out
    made = train_tokenizer(tmp_path / "text", TokenizerOptions(400))
    assert "characters make 99.95% of the text; --vocab_size 400 keeps 300 (" in (said := capsys.readouterr().out)
    assert 1000 < int(said.split("give --vocab_size ")[1].split()[0]) < 1200 and len(made) == 400


def test_text_without_spaces(tmp_path):
    """Lines of Thai letters, longer than the 100 characters that BERT looks up."""
    letters = [chr(point) for point in range(0xE01, 0xE2F)]
    names = ["".join(letters[i] for i in row) for row in np.random.default_rng(0).integers(0, 46, (60, 4))]
    lines = ["".join(names[i] for i in row) for row in np.random.default_rng(1).integers(0, 60, (300, 40))]
    (tmp_path / "text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_tokenizer(tmp_path / "text", TokenizerOptions(400)).save_pretrained(tmp_path / "made")
    made = load_tokenizer(str(tmp_path / "made"))
    ids = made(lines[0], add_special_tokens=False)["input_ids"]
    assert 1 not in ids and 38 < len(ids) < 60 and "".join(made.decode(ids).split()) == lines[0]
    assert made.tokenize(f"{names[0]}\u200b{names[1]}") == made.tokenize(f"{names[0]} {names[1]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, packing, model", [("bpe", "packed", "modernbert"), ("unigram", "one_document", "roberta")]
)
def test_a_model_trains_on_it(prepared, trained, tmp_path, kind, packing, model):
    out, data = tmp_path / "out", prepared(tokenizer=trained(kind), packing=packing).path
    flags = {"data_dir": data, "output_dir": out, "total_training_time": "10m", "model_type": model}
    flags |= {"lr_schedule": "step", "max_steps": 6, "use_cpu": True, "whole_word_mask": True}
    train({**TINY, **flags, "document_mask": packing == "packed"}, ok=True)
    assert "bits_per_byte" in json.dumps(report(out))
    (answers,) = _fill_mask(str(out / "final"), ["It is [MASK]."], top=4)
    assert len(answers) == 4 and sum(share for _, share in answers) <= 1
    AutoTokenizer.from_pretrained(out / "final")


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_forms_of_other_peoples_tokenizers(tmp_path):
    with tarfile.open(SHARED_DATA / "vocab.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    vocab = tmp_path / "vocab"
    from_json = load_tokenizer(str(vocab / "bert-base-uncased-tokenizer.json"))
    from_json.save_pretrained(tmp_path / "saved")
    assert special_ids(from_json) == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    for form in (
        vocab / "bert-base-uncased-vocab.txt",
        vocab,
        tmp_path / "saved",
    ):  # a folder with one *tokenizer.json
        other = load_tokenizer(str(form))
        assert len(other) == len(from_json) == 30522 and special_ids(other) == special_ids(from_json)
        assert other(ENGLISH)["input_ids"] == from_json(ENGLISH)["input_ids"]
    assert "Paris" in load_tokenizer(str(vocab / "bert-base-cased-vocab.txt")).tokenize(ENGLISH)


def test_what_is_no_tokenizer_is_refused(tmp_path, tokenizer):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    plain = json.loads((tokenizer / "tokenizer.json").read_text())
    del plain["model"]["vocab"]["[MASK]"]
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] != "[MASK]"]
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    messages = {"missing": "no such file or folder", "empty": "found none", "bad.json": "cannot be loaded"}
    for name, message in {**messages, "plain.json": "has no mask token"}.items():
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
        (["--vocab_size", "1000000000"], "vocab_size 1000000000: give 1 to 4194304"),
        (["--vocab_size", "many"], "'many' is not a whole number"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(corpus, tmp_path, capsys, change, message):
    argv = ["--input", corpus, "--output_dir", tmp_path / "tokenizer", *change]
    assert message in error_of(stage.main, argv, capsys)
    assert not list(tmp_path.iterdir())


def test_existing_output_is_kept(tmp_path, corpus, tokenizer, capsys):
    before, argv = (tokenizer / "tokenizer.json").read_bytes(), ["--input", corpus, "--output_dir"]
    error = error_of(stage.main, [*argv, tokenizer], capsys)
    assert "already holds a tokenizer; give another path or --overwrite" in error
    assert (tokenizer / "tokenizer.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists and is no tokenizer" in error_of(stage.main, [*argv, tmp_path, "--overwrite"], capsys)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_special_tokens_in_a_text_are_text(trained, kind, lowercase, tmp_path):
    """Also where they were added as words, in a file that begins with a byte-order mark."""
    content = json.loads((trained(kind, lowercase) / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = lowercase
    (tmp_path / "words.json").write_text(json.dumps(content), encoding="utf-8-sig")
    load_tokenizer(str(tmp_path / "words.json")).save_pretrained(tmp_path)
    encoder = Encoder(str(tmp_path / "tokenizer.json"))
    texts = ["two [MASK] times [SEP]", "[CLS]new", f"not [PAD] {ENGLISH}"]
    ids = encoder.encode(texts)
    assert not {0, 2, 3, 4} & set(np.concatenate(ids).tolist())
    assert encoder.special_tokens(texts) == {"[MASK]": 1, "[SEP]": 1, "[CLS]": 1, "[PAD]": 1}
    assert not encoder.special_tokens([ENGLISH])
    assert encoder.unknown == (None if kind == "bpe" else 1)
    assert [encoder.is_unknown(character) for character in "t\u4e2d"] == [False, kind != "bpe"]


@pytest.mark.parametrize(
    "change, said",
    [
        (["the", "b"], "line 9 repeats line 6 ('the'): their ids stay unused"),
        (["", "b"], "1 blank lines: their ids stay unused"),
        (["\u3000", "b", ""], "a lowercase vocabulary"),
    ],
)
def test_a_line_of_a_vocabulary_is_an_id(tmp_path, corpus, capsys, change, said):
    """The largest id counts, not how many entries there are; a byte-order mark is no part of the first."""
    words_of_text = list(dict.fromkeys(corpus.read_text().lower().split()))[:500]
    lines = [*SPECIAL_TOKENS, "the", *"ac", *change, *words_of_text]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    argv = {"input": corpus, "tokenizer": tmp_path / "vocab.txt", "output_dir": tmp_path / "o", "num_proc": 1}
    assert blocks.main(words({**argv, "validation_fraction": 0.1})) == 0
    assert said in capsys.readouterr().out
    folder = DataFolder.open(tmp_path / "o")
    tokenizer = folder.load_tokenizer()
    assert folder.vocab_size == len(lines) == vocabulary_size(tokenizer) == len(continues_word(tokenizer))
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "b"]) == [0, lines.index("b")]
    assert folder.unigram_counts().sum() > 0
    folder.manifest["vocab_size"] = 10  # as older versions counted
    with pytest.raises(InputError, match="is beyond its vocabulary of 10; make the folder anew"):
        folder.unigram_counts()


@pytest.mark.parametrize(
    "entries, text, kind",
    [
        (["\ud55c\uad6d\uc5b4", "##\ub97c"], "\ud55c\uad6d\uc5b4\ub97c", "caseless"),
        (["caf\u00e9", "##s"], "Caf\u00e9s", "lowercase"),
    ],
)
def test_a_vocabulary_with_marks_keeps_them(tmp_path, capsys, entries, text, kind):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *entries]), encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).tokenize(text) == entries
    assert f"a {kind} vocabulary with accents and marks, which stay" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [{"vocab_size": 11}, {"vocab_size": 20, "limit_alphabet": 1000}])
def test_an_alphabet_leaves_room_for_the_special_tokens(tmp_path, flags):
    (tmp_path / "text").write_text(f"{ENGLISH}\n" * 9, encoding="utf-8")
    assert 5 < len(train_tokenizer(tmp_path / "text", TokenizerOptions(**flags))) <= flags["vocab_size"]


def test_a_zero_width_space_ends_a_word_of_a_cased_vocabulary(tmp_path):
    (tmp_path / "text").write_text("កខ\u200bគឃ\u200bងច\n" * 20, encoding="utf-8")
    made = train_tokenizer(tmp_path / "text", TokenizerOptions(100, lowercase=False))
    assert made.tokenize("កខ\u200bគឃ") == ["កខ", "គឃ"]


def test_a_tokenizer_is_checked_when_it_is_loaded(tmp_path, trained, capsys):
    shared = AutoTokenizer.from_pretrained(trained("bpe"))
    shared.pad_token = shared.sep_token
    shared.save_pretrained(tmp_path / "shared")
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "spiece.model").write_bytes(b"\n\x0e")
    named = {"shared": "pad and sep are both '\\[SEP\\]' \\(id 3\\); give each a token of its own"}
    for name in ("pieces", "pieces/spiece.model"):
        named[name] = "holds a sentencepiece model alone \\(spiece.model\\); load it where sentencepiece"
    (tmp_path / "lower.txt").write_text("\n".join([*map(str.lower, SPECIAL_TOKENS), "the"]))
    named["lower.txt"] = "no vocabulary of BERT's: it has no line \\[PAD\\]"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vocab.txt").write_text("\n".join([token for token in SPECIAL_TOKENS if token != "[UNK]"]))
    (tmp_path / "old" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    named["old"] = "cannot be used \\(WordPiece error: Missing \\[UNK\\] token"
    for name, message in named.items():
        with pytest.raises(InputError, match=message):
            load_tokenizer(str(tmp_path / name))
    own = AutoTokenizer.from_pretrained(trained("wordpiece"))
    own.save_pretrained(tmp_path / "own")
    content = json.loads((tmp_path / "own" / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Lowercase"}  # BertTokenizer makes it anew: this one is not used
    (tmp_path / "own" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert not capsys.readouterr().out
    load_tokenizer(str(tmp_path / "own"))
    assert "its class BertTokenizer reads 'Caf\u00e9" in (said := capsys.readouterr().out) and said.count("\n") == 1


def test_encoding_is_that_of_the_library(tokenizer, corpus, tmp_path):
    """Word by word for BERT's; a byte-level BPE's words are not apart."""
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(corpus)], vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert special_ids(load_tokenizer(str(tmp_path))) == {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 4}
    documents = list(read_documents(corpus))[:50]
    odd = [*ODD, "a [MASK] b [CLS]c <s>d<mask>", CONTROL, "x" * 300 + " supercalifragilistic"]
    more = load_tokenizer(str(tokenizer))  # a word whose id is counted on from a special token outside of the model
    more.add_tokens(["[DOC]"], special_tokens=True)
    more.add_tokens(["foobar"])
    more.save_pretrained(tmp_path / "more")
    odd.append("a foobar and [DOC] b")
    for folder in (tokenizer, tmp_path, tmp_path / "more"):
        encoder, reference = Encoder(str(folder / "tokenizer.json")), load_tokenizer(str(folder))
        for batch in (documents, odd[:1], odd[2:], documents, odd):
            plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            expected = [reference(text, **plain)["input_ids"] for text in batch]
            assert [ids.tolist() for ids in encoder.encode(batch)] == expected
