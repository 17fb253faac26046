"""46 MB of Wikipedia to blocks and back: every document whole, in order, in blocks of its own, whatever the processes."""

import json

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep import blocks
from data_prep.corpus import is_held_out
from data_prep.documents import read_documents
from data_prep.tokenizer import main as train_tokenizer
from tests.conftest import SHARED_DATA

TEXT = SHARED_DATA / "wiki2018_00.txt.xz"
pytestmark = pytest.mark.skipif(not TEXT.exists(), reason="needs the shared data")


@pytest.mark.timeout(600)
def test_wikipedia_comes_back(tmp_path):
    trained = [
        "--input",
        str(TEXT),
        "--vocab_size",
        "8192",
        "--max_megabytes",
        "5",
        "--output_dir",
        str(tmp_path / "t"),
    ]
    assert train_tokenizer(trained) == 0
    for processes in (1, 2):
        flags = [
            "--input",
            str(TEXT),
            "--tokenizer",
            str(tmp_path / "t"),
            "--output_dir",
            str(tmp_path / f"{processes}"),
        ]
        flags += ["--packing", "one_document", "--num_proc", str(processes), "--num_shards", "2"]
        assert blocks.main(flags) == 0
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
    row = 0
    kept = [text for text in read_documents(TEXT) if not is_held_out(text, 0.01)]
    assert one["train"]["documents"] == len(kept) > 12_000
    for text, encoding in zip(kept, backend.encode_batch(kept, add_special_tokens=False), strict=True):
        ids: list[int] = []
        while len(ids) < len(encoding.ids):  # blocks of this document and of no other
            body = rows[row][1:]
            ids += body[: int((body == special["SEP"]).argmax())].tolist()
            row += 1
        assert ids == encoding.ids
        normal = backend.normalizer.normalize_str(text)
        if "[UNK]" not in encoding.tokens:  # what the tokens spell is the normalised text, but for its spaces
            spelled = "".join(token.removeprefix("##") for token in encoding.tokens)
            assert spelled == "".join(normal.split())
    assert row == len(rows)
