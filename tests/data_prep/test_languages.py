"""What the three tokenizers and the packing of sentences keep of languages other than English: the table in docs/data.md."""

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_prep.corpus import TokenGroup
from data_prep.encoding import Encoder, load_tokenizer
from data_prep.packing import WholeSentences
from data_prep.sentences import split_sentences
from data_prep.tokenizer_training import TYPES, TokenizerOptions, train_tokenizer

TEXTS = json.loads(Path(__file__).with_name("languages.json").read_text(encoding="utf-8"))
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
_ACCENTS = re.compile("(?<=[a-zα-ωа-яё])[\u0300-\u036f]+")


def document(language):
    """The sentences eight times, in other orders."""
    sentences = TEXTS[language]
    space = "" if language in ("Chinese", "Japanese") else " "
    return space.join(space.join(sentences[i:] + sentences[:i]) for i in range(8))


def letters(text, form, accents=True):
    """The lower-cased text without white space."""
    parts = unicodedata.normalize("NFKD" if form == "NFKC" else "NFD", text).lower()
    return "".join(unicodedata.normalize("NFC", parts if accents else _ACCENTS.sub("", parts)).split())


def kept(language, folder):
    """The cell of the table: what decoding gives back, the share of [UNK], whether sentences are cut in blocks of 64 tokens."""
    tokenizer, text = load_tokenizer(str(folder)), document(language)
    encoder = Encoder(str(folder / "tokenizer.json"))
    sentences = encoder.encode(split_sentences(text))
    ids, sizes = np.concatenate(sentences), np.array([len(ids) for ids in sentences])
    found = "".join(tokenizer.decode(ids).split())
    names = {"all": ("NFC", True), "no accents": ("NFC", False), "NFKC": ("NFKC", True)}
    back = next((name for name, form in names.items() if letters(text, *form) == found), "damaged")
    packer = WholeSentences(64, {"pad": 0, "cls": 2, "sep": 3})
    packer.add(TokenGroup(ids, np.array([len(ids)]), 0, [], sizes, {}))
    unknown = np.mean(ids == tokenizer.unk_token_id)
    return f"{back}, {unknown:.1%}, {'cut' if packer.facts()['sentences_cut'] else 'whole'}"


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    made = {}
    for language in TEXTS:
        folder = tmp_path_factory.mktemp("language")
        text = folder / "text"
        text.write_text(f"{document(language)}\n" * 5, encoding="utf-8")
        for kind in TYPES:
            train_tokenizer(text, TokenizerOptions(400, kind)).save_pretrained(folder / kind)
            made[language, kind] = kept(language, folder / kind)
    return made


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "language, form, flags, words",
    [
        ("German", "NFC", {"strip_accents": "no"}, "gestern bücherei käfer straße"),
        ("German", "NFD", {"strip_accents": "no"}, "gestern bücherei käfer straße"),
        ("German", "NFC", {"lowercase": False}, "Gestern Bücherei Käfer Straße"),
        ("German", "NFC", {"lowercase": False, "strip_accents": "yes"}, "Gestern Bucherei Kafer Straße"),
        ("Vietnamese", "NFC", {"strip_accents": "yes"}, "quyen nuoc lanh"),
        ("Vietnamese", "NFD", {"lowercase": False}, "Nước quyển Mẹ"),
        ("Russian", "NFC", {"strip_accents": "no"}, "хлеб печёт твой"),
        ("Hindi", "NFC", {"lowercase": False}, "में मैं पेड़"),
        ("Japanese", "NFD", {}, "パンダ ハンタ バス"),
        ("Japanese", "NFD", {"lowercase": False}, "パンダ ハンタ バス"),
        ("Korean", "NFD", {}, "도서관 공원"),
        ("Persian", "NFC", {"lowercase": False}, "می‌روند کتاب‌خانه"),
    ],
)
def test_lower_case_and_accents(tmp_path, language, form, flags, words, kind):
    """Each by itself, whether the text is composed or not."""
    text = unicodedata.normalize(form, f"{document(language)} твой {words}")
    (tmp_path / "text").write_text(f"{text}\n" * 5, encoding="utf-8")
    train_tokenizer(tmp_path / "text", TokenizerOptions(400, kind, **flags)).save_pretrained(tmp_path / "made")
    tokenizer = load_tokenizer(str(tmp_path / "made"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = tokenizer.decode(ids)
    assert tokenizer.unk_token_id not in ids and unicodedata.is_normalized("NFC", found)
    assert [word for word in words.split() if word not in found.replace(" ", "")] == []


def test_english_needs_no_form_of_its_own(tmp_path):
    """A few words of other scripts and accents change nothing: files of English text are what they were."""
    line = "It is a café, naïve as it sounds, and the old man reads his book there every day of the year. "
    (tmp_path / "text").write_text(line * 400 + "में ひらがな می‌روم\n", encoding="utf-8")
    stock = {"wordpiece": "BertNormalizer", "bpe": "NFD StripAccents Lowercase"}
    stock["unigram"] = "NFKD StripAccents Lowercase Replace Strip"
    for kind in TYPES:
        made = train_tokenizer(tmp_path / "text", TokenizerOptions(400, kind)).backend_tokenizer
        normalizer = json.loads(made.to_str())["normalizer"]
        assert " ".join(part["type"] for part in normalizer.get("normalizers", [normalizer])) == stock[kind]


def test_the_table_of_the_docs(cells):
    rows = []
    for language, sentences in TEXTS.items():
        ends = f"{len(split_sentences(document(language)))} of {8 * len(sentences)}"
        rows.append(f"| {' | '.join([language, ends, *(cells[language, kind] for kind in TYPES)])} |")
    assert "\n".join(rows) in DOCS.read_text(encoding="utf-8"), "\n".join(rows)
