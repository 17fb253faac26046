"""Every type of tokenizer that can be trained, through everything that comes behind it."""

import itertools
import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from budget_trainer.data.whole_words import continues_word
from budget_trainer.fill_mask import fill_mask
from data_prep import inspect
from data_prep.corpus import split_sentences
from data_prep.encoding import Encoder, load_tokenizer, special_ids
from data_prep.packing import token_bytes
from data_prep.tokenizer import main as train
from data_prep.tokenizer_training import SPECIAL_TOKENS, TYPES, TokenizerOptions, text_to_learn, train_tokenizer
from tests.conftest import TINY, read_documents, report, words
from tests.conftest import train as train_model
from tests.data_prep.conftest import dealt_rows, ids_of, text_mask, train_texts

NEW = ("bpe", "unigram")
ENGLISH = (
    "Paris is not paris. It takes two Caf\u00e9s, doesn't it?  3.5 (or 12) of them! The caf\u00e9 is two times new."
)
ODD = [
    ENGLISH,
    "\u00dcber na\u00efve \u00bd \ufb01ne e\u0301 \u4e2d\u6587a \U0001f600 \ud7a3\uac01 \u00a0 \u2028x",
    " two  spaces \ttab ",
    "\u2581 x\u2581y ##z \u0120q",
    "",
    "   ",
]


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory):
    """The folder of a tokenizer, trained once for the same options on `corpus` and some English."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    documents = [*read_documents(corpus), *[ENGLISH] * 20]
    text.write_text("\n".join(documents) + "\n", encoding="utf-8")
    made = {}

    def folder(kind, lowercase=True):
        if (kind, lowercase) not in made:
            made[kind, lowercase] = tmp_path_factory.mktemp("trained") / kind
            options = TokenizerOptions(500, kind, lowercase)
            train_tokenizer(text, options).save_pretrained(made[kind, lowercase])
        return made[kind, lowercase]

    return folder


@pytest.fixture(scope="session")
def folder_of(trained, prepared):
    return lambda kind, packing: prepared(tokenizer=trained(kind), packing=packing)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", NEW)
def test_it_loads_as_a_stock_tokenizer(trained, monkeypatch, kind, lowercase):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = AutoTokenizer.from_pretrained(trained(kind, lowercase), trust_remote_code=False)
    assert loaded.is_fast and 300 < len(loaded) <= 500 and loaded.model_max_length == 512
    assert loaded.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    found = load_tokenizer(str(trained(kind, lowercase)))
    assert special_ids(found) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    plain = loaded(ENGLISH, add_special_tokens=False)["input_ids"]
    assert loaded(ENGLISH)["input_ids"] == [2, *plain, 3] and 1 not in plain
    pair = loaded("two", ENGLISH)["input_ids"]
    assert pair == [*loaded("two")["input_ids"], *plain, 3]
    spelled = loaded.decode(plain)
    wanted = " ".join(ENGLISH.split()) if kind == "unigram" else ENGLISH
    assert spelled == (wanted.lower().replace("\u00e9", "e") if lowercase else wanted)
    assert (loaded.tokenize("a Paris") == loaded.tokenize("a paris")) is lowercase


@pytest.mark.parametrize("kind", NEW)
def test_a_mask_stands_for_a_word_and_its_space(trained, kind):
    loaded = AutoTokenizer.from_pretrained(trained(kind))
    word = loaded("it is two times", add_special_tokens=False)["input_ids"]
    masked = loaded("it is [MASK] times", add_special_tokens=False)["input_ids"]
    place = masked.index(4)
    after = len(masked) - place - 1
    assert masked[:place] == word[:place] and masked[place + 1 :] == word[len(word) - after :] and after >= 1
    assert loaded.decode(word[place : len(word) - after]).strip() == "two"


@pytest.mark.parametrize("kind", TYPES)
def test_training_is_deterministic(corpus, tmp_path, kind):
    made = []
    for name in "abc":
        flags = {"input": corpus, "vocab_size": 400, "tokenizer_type": kind, "output_dir": tmp_path / name}
        assert train(words(flags)) == 0
        made.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert made[0] == made[1] == made[2]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert len(loaded) <= 400


@pytest.mark.parametrize("limit", [20, 60])
def test_the_alphabet_of_unigram_is_limited(trained, tmp_path, limit):
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{chr(0x4E00 + i)}word {chr(0x4E00 + i)} some {'x' * i}\n" for i in range(100)))
    options = TokenizerOptions(200, "unigram", limit_alphabet=limit)
    vocab = train_tokenizer(file, options).get_vocab()
    assert len({character for piece in set(vocab) - set(SPECIAL_TOKENS) for character in piece} - {"\u2581"}) == limit
    bpe, unigram = (AutoTokenizer.from_pretrained(trained(kind)) for kind in NEW)
    text = "two \u4e2d\u6587 times \U0001f600"
    assert bpe.unk_token_id not in bpe(text)["input_ids"] and bpe.decode(bpe(text)["input_ids"][1:-1]) == text
    assert unigram(text)["input_ids"].count(unigram.unk_token_id) == 2


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_bytes_of_the_tokens_are_those_of_the_text(trained, kind, lowercase):
    backend = AutoTokenizer.from_pretrained(trained(kind, lowercase)).backend_tokenizer
    for text in ODD:
        text = text.replace(
            "e\u0301", "\u00e9"
        )  # a combining mark of its own stands in no token, in none of the types
        encoding = backend.encode(text, add_special_tokens=False)
        sizes = token_bytes(text, encoding.offsets)
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
    assert token_bytes(text, spans) == expected


@pytest.mark.parametrize("kind", NEW)
def test_sentences_joined_are_the_document(trained, kind):
    encoder = Encoder(str(trained(kind) / "tokenizer.json"))
    for text in ODD:
        whole, *parts = encoder.encode([text, *split_sentences(text)])
        assert list(itertools.chain(*parts)) == whole.tolist()
    assert len(split_sentences(ENGLISH)) == 4


@pytest.mark.parametrize("packing", ["packed", "one_document", "sentences", "nsp"])
@pytest.mark.parametrize("kind", NEW)
def test_blocks_hold_the_text(folder_of, trained, corpus, tmp_path, kind, packing):
    folder = folder_of(kind, packing)
    expected = ids_of(trained(kind), train_texts(corpus))
    train = folder.manifest["splits"]["train"]
    rows = {name: dealt_rows(folder, column=name) for name in train["columns"]}
    found, ends = [], []
    for number in range(train["rows"]):
        row = {name: values[number] for name, values in rows.items()}
        text = text_mask(folder, row["input_ids"])
        part_of = row.get("document_ids", row.get("token_type_ids", np.zeros_like(row["input_ids"])))
        if packing == "nsp" and row["next_sentence_label"] == 1:
            text &= part_of == 0
        ends.append(int(part_of[text].max()) + 1)
        found += row["input_ids"][text].tolist()
    wanted = list(itertools.chain(*expected))
    assert found[: len(wanted)] == wanted and found[len(wanted) :] == wanted[: len(found) - len(wanted)]
    assert max(ends) == {"packed": max(ends), "nsp": 2}.get(packing, 1) and (packing != "packed" or max(ends) > 1)
    backend = AutoTokenizer.from_pretrained(trained(kind)).backend_tokenizer
    text = "\n".join(backend.normalizer.normalize_str(document) for document in read_documents(corpus))
    assert inspect.main([str(folder.path), *words({"samples": 10, "output_dir": tmp_path / "inspection"})]) == 0
    for sample in json.loads((tmp_path / "inspection" / "inspect.json").read_text())["samples"]:
        assert sample["parts"] and all(part["text"] in text for part in sample["parts"])
    ids, sizes = folder.validation_rows()
    text = (folder.path / "validation.txt").read_text()
    assert 0.95 * len("".join(text.split())) < sizes.sum() <= len("".join(text.split()).encode())


@pytest.mark.parametrize("kind", NEW)
def test_whole_words_are_those_between_spaces(trained, kind):
    tokenizer = load_tokenizer(str(trained(kind)))
    continues = continues_word(tokenizer)
    ids = tokenizer(ENGLISH, add_special_tokens=False)["input_ids"]
    starts = [0, *[place for place in range(1, len(ids)) if not continues[ids[place]]], len(ids)]
    found = [tokenizer.decode(ids[a:b]).strip() for a, b in itertools.pairwise(starts)]
    wanted = ENGLISH.lower().replace("\u00e9", "e").split()
    assert [word for word in found if word] == wanted and not continues[tokenizer.all_special_ids].any()


@pytest.mark.parametrize(
    "lines, limit, expected",
    [
        (["same words"] * 4, 10, 4),
        (["ab cd", "ef gh", "ij kl", "mn op"], 100, 4),
        (["ab cd", "ef gh", "ij kl", "mn op"], 8, 2),
        (["ab cd", "ef gh", "ij kl", "mn op"], 4, 1),
    ],
)
@pytest.mark.parametrize("drop", [None, {ord("z"): " "}])
def test_a_text_of_too_many_words_is_thinned(tmp_path, capsys, lines, limit, expected, drop):
    (tmp_path / "text").write_text("".join(f"{line}\n" for line in lines))
    with text_to_learn(tmp_path / "text", drop, limit) as file:
        found = file.read_text().splitlines()
    assert len(found) == expected and set(found) <= set(lines)
    assert ("spread evenly" in capsys.readouterr().out) is (expected < 4)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, packing, options",
    [
        ("bpe", "packed", {"model_type": "modernbert", "document_mask": True}),
        ("unigram", "one_document", {"model_type": "roberta"}),
    ],
)
def test_a_model_trains_on_it(folder_of, tmp_path, kind, packing, options):
    out = tmp_path / "out"
    flags = {"data_dir": folder_of(kind, packing).path, "output_dir": out, "total_training_time": "10m"}
    steps = {"lr_schedule": "step", "max_steps": 6, "use_cpu": True, "whole_word_mask": True}
    done = train_model({**TINY, **steps, **flags, **options})
    assert done.returncode == 0, done.stderr
    evaluation = json.dumps(report(out))
    assert "bits_per_byte" in evaluation
    answers = fill_mask(str(out / "final"), ["It is [MASK]."], top=4)
    assert len(answers[0]) == 4 and sum(share for _, share in answers[0]) <= 1
    AutoTokenizer.from_pretrained(out / "final")
