"""Finished data folders for the tools that work on them."""

import numpy as np
import pytest

from budget_trainer.data.folder import DataFolder
from data_prep import blocks
from data_prep.folders import FinishedFolder
from data_prep.sources import read_documents
from tests.conftest import words


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
    """The one line that a refused command says."""
    capsys.readouterr()
    try:
        ended = main([str(word) for word in argv])
    except SystemExit as stop:
        ended = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert ended == code and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def flip(file):
    """Changes one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
