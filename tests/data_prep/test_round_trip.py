"""Wikipedia to blocks and back: every document whole, in order, in blocks of its own, whatever the processes."""

import itertools
import json

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from data_prep import blocks
from data_prep.corpus import is_held_out
from data_prep.tokenizer import main as train_tokenizer
from tests.conftest import SHARED_DATA, read_documents, words

TEXT = SHARED_DATA / "wiki2018_00.txt.xz"
pytestmark = pytest.mark.skipif(not TEXT.exists(), reason="needs the shared data")


def spelled(backend, tokens):
    """The normalised text, but for WordPiece without its spaces."""
    if isinstance(backend.model, models.WordPiece):
        return "".join(token.removeprefix("##") for token in tokens)
    return backend.decoder.decode(tokens)


def check_unknown(backend, text, names, offsets):
    """Nothing is lost beside an [UNK]: each stands for one word with a character that the vocabulary lacks (of Unigram for
    such characters alone), and what is between two of them, by the offsets, is what the tokens there spell."""
    wordpiece = isinstance(backend.model, models.WordPiece)
    known = {token.removeprefix("##") for token in backend.get_vocab()}

    def bare(part):
        return "".join(backend.normalizer.normalize_str(part).split())

    place, tokens = 0, []
    for token, (start, end) in [
        *zip(names, offsets, strict=True),
        ("[UNK]", (len(text), len(text))),
    ]:
        if token != "[UNK]":
            tokens.append(token.removeprefix("##") if wordpiece else token.replace("\u2581", ""))
            continue
        assert "".join(tokens) == bare(text[place:start])
        place, tokens = end, []
        unknown = bare(text[start:end])
        assert not text[start:end] or len(backend.pre_tokenizer.pre_tokenize_str(text[start:end])) == 1
        if wordpiece:
            assert start == len(text) or not known.issuperset(unknown) or len(unknown) > 100
        else:
            assert known.isdisjoint(unknown)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind, documents, alphabet", [("wordpiece", None, 1000), ("bpe", 1500, None), ("unigram", 1500, 400)]
)
def test_wikipedia_comes_back(tmp_path, kind, documents, alphabet):
    """All 46 MB for WordPiece, some for the slower others; with an alphabet that leaves out a few characters."""
    source = TEXT
    if documents:
        source = tmp_path / "wiki.txt"
        source.write_text("\n\n".join(itertools.islice(read_documents(TEXT), documents)), encoding="utf-8")
    flags = {"input": source, "vocab_size": 8192, "max_megabytes": 50, "output_dir": tmp_path / "t"}
    flags |= {"limit_alphabet": alphabet} if alphabet else {}
    assert train_tokenizer(words({**flags, "tokenizer_type": kind})) == 0
    for processes in (1, 2):
        flags = {"input": source, "tokenizer": tmp_path / "t", "output_dir": tmp_path / f"{processes}"}
        flags |= {"packing": "one_document", "num_proc": processes, "num_shards": 2}
        assert blocks.main(words(flags)) == 0
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text())["splits"] for name in ("1", "2"))
    assert one == two, "checksums too"

    files = [tmp_path / "1" / entry["name"] for entry in one["train"]["files"]]
    shards = [np.array(datasets.Dataset.from_file(str(file)).with_format("numpy")["input_ids"][:]) for file in files]
    rows = np.empty((sum(map(len, shards)), 128), np.int64)
    rows[0::2], rows[1::2] = shards
    backend = Tokenizer.from_file(str(tmp_path / "t" / "tokenizer.json"))
    backend.no_truncation()
    special = {name: backend.token_to_id(f"[{name}]") for name in ("PAD", "CLS", "SEP")}
    assert (rows[:, 0] == special["CLS"]).all() and ((rows == special["SEP"]).sum(1) == 1).all()
    row = unknown = 0
    kept = [text for text in read_documents(source) if not is_held_out(text, 0.01)]
    assert one["train"]["documents"] == len(kept) > 0.98 * (documents or 12_300)
    for text, encoding in zip(kept, backend.encode_batch(kept, add_special_tokens=False), strict=True):
        ids: list[int] = []
        while len(ids) < len(encoding.ids):  # blocks of this document and of no other
            body = rows[row][1:]
            ids += body[: int((body == special["SEP"]).argmax())].tolist()
            row += 1
        assert ids == encoding.ids
        normal = backend.normalizer.normalize_str(text)
        # By the ids: Unigram's `encoding.tokens` have the text itself where the id is that of [UNK].
        names = [backend.id_to_token(number) for number in ids]
        if "[UNK]" in names:
            unknown += 1
            check_unknown(backend, text, names, encoding.offsets)
            continue
        assert spelled(backend, names) == ("".join(normal.split()) if kind == "wordpiece" else normal)
    assert unknown == 0 if kind == "bpe" else 0 < unknown < 0.02 * len(kept)
    assert row == len(rows)
