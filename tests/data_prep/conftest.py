"""Finished data folders for the tools that work on them."""

import contextlib
import resource

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from budget_trainer.data.folder import DataFolder
from data_prep import blocks
from data_prep.corpus import is_held_out
from data_prep.folders import FinishedFolder
from tests.conftest import read_documents, words


@pytest.fixture(scope="session")
def other_corpus(corpus, tmp_path_factory):
    """150 documents that are not in `corpus`: some of its, read backwards."""
    file = tmp_path_factory.mktemp("other") / "other.txt"
    texts = list(read_documents(corpus))[:150]
    file.write_text("\n\n".join("\n".join(" ".join(line.split()[::-1]) for line in t.split("\n")) for t in texts))
    return file


@pytest.fixture(scope="session")
def prepared(corpus, tokenizer, tmp_path_factory):
    """Makes a data folder with `data_prep.blocks`, once for the same flags. Nobody may change it."""
    made = {}

    def prepare(**flags):
        key = str(sorted(flags.items()))
        if key not in made:
            output = tmp_path_factory.mktemp("prepared") / "blocks"
            options = {"input": corpus, "tokenizer": tokenizer, "num_proc": 1, "block_size": 64, "num_shards": 3}
            options |= {"validation_fraction": 0.1, "kind": "text", **flags, "output_dir": output}
            assert blocks.main(words(options)) == 0
            made[key] = output
        return DataFolder.open(made[key])

    return prepare


def all_rows(folder):
    """The train rows, all columns, as training numbers them."""
    finished = FinishedFolder.open(folder.path)
    reader = finished.reader("train", finished.layout("train"))
    return reader.take(np.arange(len(reader)))


def error_of(main, argv, capsys, code=2):
    """The one line that a refused command ends with; progress bars may stand before it."""
    capsys.readouterr()
    try:
        ended = main([str(word) for word in argv])
    except SystemExit as stop:
        ended = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert ended == code and lines[-1].startswith("error: "), lines
    assert "Traceback" not in "".join(lines) and sum(line.startswith("error: ") for line in lines) == 1, lines
    return lines[-1]


def train_texts(corpus, fraction=0.1, held_out=False):
    """The documents of a corpus that are trained on, or those that are held out."""
    return [text for text in read_documents(corpus) if is_held_out(text, fraction) == held_out]


def ids_of(tokenizer, texts):
    """Token ids of each text, without special tokens, by the tokenizer as Transformers loads it."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return [loaded(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]


def dealt_rows(folder, split="train", column="input_ids"):
    """The rows of a split in the order they were dealt, read by the `datasets` library."""
    files = [folder.path / entry["name"] for entry in folder.manifest["splits"][split]["files"]]
    shards = [np.array(datasets.Dataset.from_file(str(file))[column][:]) for file in files]
    rows = np.empty((sum(map(len, shards)), *shards[0].shape[1:]), np.int64)
    for number, shard in enumerate(shards):
        rows[number :: len(shards)] = shard
    return rows


def text_mask(folder, ids):
    """Which tokens are neither padding nor [CLS] nor [SEP]."""
    return ~np.isin(ids, [folder.special_ids[name] for name in ("pad", "cls", "sep")])


def flip(file):
    """Changes one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@contextlib.contextmanager
def limited_to(soft, kind=resource.RLIMIT_NOFILE):
    """A lower limit of this process for a while."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)
