"""The data folder as the trainer reads it: exact order, complete or refused."""

import json
import pickle
import re
import shutil

import datasets
import numpy as np
import pytest
import torch

from budget_trainer import train_mlm
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.order import BlockDataset, ExactSampler, Rows, _permute
from data_prep.shards import ShardWriter


@pytest.fixture(scope="module")
def data(data_dir):
    return DataFolder.open(data_dir)


@pytest.fixture
def copy(data_dir, tmp_path):
    """A data folder that a test may damage."""
    return shutil.copytree(data_dir, tmp_path / "blocks")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 17, 100, 4096, 4097])
def test_permute_is_a_bijection_that_differs_by_epoch_and_seed(n):
    first = _permute(np.arange(n), n, seed=1, epoch=0)
    assert first.dtype == np.int64
    assert sorted(first) == list(range(n))
    if n >= 100:
        for seed, epoch in ((1, 1), (2, 0)):
            other = _permute(np.arange(n), n, seed, epoch)
            assert sorted(other) == list(range(n))
            assert (first == other).mean() < 0.1


def test_permute_looks_random():
    n = 10_007
    for epoch in range(5):
        order = _permute(np.arange(n), n, seed=3, epoch=epoch)
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05  # 5 standard deviations
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
        assert (np.diff(order) == 1).sum() < 10
        # Each tenth of the epoch holds about a tenth of each tenth of the corpus.
        table = np.histogram2d(np.arange(n), order, bins=10)[0]
        assert table.min() > 60 and table.max() < 140
    assert len({tuple(_permute(np.arange(3), 3, seed=0, epoch=epoch)) for epoch in range(200)}) == 6, "every order"


def test_permute_of_part_is_part_of_permute_and_needs_no_list():
    whole, positions = _permute(np.arange(1000), 1000, seed=0, epoch=2), np.array([[5, 999], [0, 5]])
    assert (_permute(positions, 1000, 0, 2) == whole[positions]).all()
    assert 0 <= _permute(np.array([10**12]), 10**12 + 39, 0, 0)[0] < 10**12 + 39


def test_every_row_once_per_epoch_and_order_is_pure(data):
    blocks, again, epochs = data.train(seed=5), data.train(seed=5), 3
    batch = blocks.__getitems__(range(epochs * blocks.rows))
    assert (batch["epoch"] == np.repeat(np.arange(epochs), blocks.rows)).all()
    for rows in batch["row"].reshape(epochs, -1):
        assert sorted(rows) == list(range(blocks.rows))
    for sample in (2 * blocks.rows + 1, 0, blocks.rows - 1, blocks.rows):  # any order, alone, across epochs
        one = again[sample]
        assert (one["input_ids"] == batch["input_ids"][sample]).all() and one["row"] == batch["row"][sample]
    assert (data.train(seed=6).__getitems__(range(blocks.rows))["row"] != batch["row"][: blocks.rows]).any()


def test_rows_are_those_of_the_files(data):
    files = data.manifest["splits"]["train"]["files"]
    tables = [datasets.Dataset.from_file(str(data.path / file["name"])) for file in files]
    expected = np.array([row for table in tables for row in table["input_ids"]])
    blocks = data.train(seed=0)
    batch = blocks.__getitems__(range(blocks.rows))
    assert batch["input_ids"].dtype == np.int64
    assert (batch["input_ids"] == expected[batch["row"]]).all()
    assert (data.unigram_counts() == np.bincount(expected.ravel(), minlength=data.vocab_size)).all()
    few = data.unigram_counts(max_rows=3)
    assert few.sum() == 3 * data.block_size and few[data.special_ids["cls"]] == 3


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three files of several record batches each, with columns of different types; and what they hold, by row."""
    folder = tmp_path_factory.mktemp("table")
    random, n, length = np.random.default_rng(0), 1000, 16
    types = {"input_ids": "uint32", "document_ids": "uint16"}
    types |= {"token_type_ids": "uint8", "next_sentence_label": "uint8"}
    rows = {name: random.integers(0, 200, (n, length)) for name in types}
    rows["input_ids"] += 2**20
    rows["next_sentence_label"] = random.integers(0, 2, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.shards.BATCH_BYTES", 77 * length * 4)  # rows of the largest column
        writer = ShardWriter(folder, "train", 3, types, length, scalars=("next_sentence_label",))
    for start in range(0, n, 130):
        writer.add(**{name: values[start : start + 130] for name, values in rows.items()})
    files = [folder / entry["name"] for entry in writer.close()]
    order = np.concatenate([np.arange(n)[shard::3] for shard in range(3)])
    return files, {name: values[order] for name, values in rows.items()}


def test_rows_of_any_columns_and_types(table):
    files, expected = table
    lengths = {name: 16 * (values.ndim - 1) for name, values in expected.items()}
    reader = Rows(files, lengths, 1000)
    for wanted in (np.arange(1000), np.array([999, 0, 333, 334, 0]), np.zeros(0, np.int64)):
        got = pickle.loads(pickle.dumps(reader)).take(wanted)
        assert got.keys() == expected.keys()
        for name, values in got.items():
            assert values.dtype == np.int64 and values.shape == expected[name][wanted].shape
            assert (values == expected[name][wanted]).all()
            values[...] = 0  # the caller's own, not the file's
    assert (Rows(files, {"token_type_ids": 16}, 1000).take(np.arange(9))["token_type_ids"][8] > 0).any()


@pytest.mark.parametrize(
    "columns, rows, message",
    [
        ({"input_ids": 16}, 999, "the manifest lists 999 rows, the files hold 1000"),
        ({"input_ids": 32}, 1000, "cannot be read .column input_ids is .*, not 32 integers per row"),
        ({"next_sentence_label": 16}, 1000, "cannot be read"),
        ({"token_bytes": 16}, 1000, "cannot be read"),
    ],
)
def test_files_that_do_not_hold_what_was_promised(table, columns, rows, message):
    with pytest.raises(InputError, match=message):
        Rows(table[0], columns, rows).take(np.zeros(1, np.int64))


def test_columns_of_the_training_rows(data):
    assert data.train_columns == ("input_ids", "document_ids")
    plain, both = data.train(seed=3), data.train(seed=3, columns=("input_ids", "document_ids"))
    samples = range(5, 45)
    first, second = plain.__getitems__(samples), both.__getitems__(samples)
    assert set(second) == {*first, "document_ids"} and all((second[name] == first[name]).all() for name in first)
    documents = second["document_ids"]
    assert documents.dtype == np.int64 and documents.shape == first["input_ids"].shape
    assert (documents[:, 0] == 0).all() and set(np.unique(np.diff(documents, axis=1))) == {0, 1}
    assert (pickle.loads(pickle.dumps(both))[7]["document_ids"] == documents[2]).all()
    assert set(both[0]) == {"input_ids", "document_ids", "epoch", "row"}


def test_columns_that_a_folder_does_not_have(data):
    for name, packing in (("token_type_ids", "nsp"), ("next_sentence_label", "nsp")):
        with pytest.raises(InputError, match=f"^column {name}: data folder .*blocks --packing {packing}`$"):
            data.train(seed=0, columns=("input_ids", name))
    with pytest.raises(InputError, match="column 'labels' is unknown; choose of input_ids, document_ids"):
        data.train(seed=0, columns=("input_ids", "labels"))


def _edited(folder, train=(), **changes):
    """The folder with other values in its manifest, at the top and of its training rows."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"] |= train
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return DataFolder.open(folder)


def test_columns_for_what_is_trained(data, copy):
    assert data.columns_for() == ("input_ids",)
    assert data.columns_for(document_mask=True) == ("input_ids", "document_ids")
    pairs = ("input_ids", "token_type_ids", "next_sentence_label")
    nsp = _edited(copy, {"columns": pairs}, packing="nsp")
    assert nsp.columns_for(next_sentence=True) == pairs
    for folder, flags, message in (
        (data, {"next_sentence": True}, "add_nsp: data folder .* has packing packed, without sentence pairs; make"),
        (nsp, {}, r"data_dir: .* holds sentence pairs \(packing 'nsp'\), .*; add --add_nsp"),
        (nsp, {"document_mask": True}, "document_mask: .* packing nsp: a block holds one sentence pair, so there"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            folder.columns_for(**flags)


def test_the_document_mask_needs_several_documents_in_a_block(copy, tmp_path, capsys, monkeypatch):
    one = _edited(copy, {"columns": ["input_ids"]}, packing="one_document")
    with pytest.raises(InputError, match="blocks --packing packed"):
        one.train(seed=0, columns=("input_ids", "document_ids"))
    monkeypatch.setattr(train_mlm, "CLOCK", BudgetClock())
    flags = ["--data_dir", str(copy), "--output_dir", str(tmp_path / "out"), "--total_training_time", "30s"]
    assert train_mlm.main([*flags, "--document_mask", "true"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert re.search("document_mask: .* packing one_document: a block holds one document, .*nothing to mask", line)


@pytest.mark.parametrize("stretch", [1, 7, 10**6])
def test_the_order_does_not_depend_on_how_much_of_it_is_found_at_once(data, stretch, monkeypatch):
    numbers = np.random.default_rng(0).integers(0, 5 * data.train(seed=4).rows, 100)
    alone = [data.train(seed=4)[int(number)]["row"] for number in numbers]
    monkeypatch.setattr("budget_trainer.data.order.STRETCH", stretch)
    together = data.train(seed=4)
    assert together.__getitems__(numbers)["row"].tolist() == alone
    assert [together[int(number)]["row"] for number in numbers] == alone  # back and forth
    epochs, places = np.divmod(numbers, together.rows)
    assert alone == [int(_permute(np.array(p), together.rows, 4, int(e))) for e, p in zip(epochs, places, strict=True)]


def test_through_a_data_loader_with_workers(data):
    blocks = data.train(seed=1)
    start = blocks.rows - 3  # crosses an epoch
    got = {}
    for workers, context in ((0, None), (2, "fork"), (1, "spawn")):
        options = {"batch_size": 4, "num_workers": workers, "multiprocessing_context": context, "collate_fn": dict}
        loader = torch.utils.data.DataLoader(blocks, sampler=ExactSampler(start, 12), **options)
        got[context] = np.concatenate([batch["input_ids"] for batch in loader])
    assert got[None].shape == (12, data.block_size)
    assert (got["fork"] == got[None]).all() and (got["spawn"] == got[None]).all()


def test_endless_at_a_position_that_is_one_integer_and_pickles_as_file_names(data):
    assert list(ExactSampler(7, 3)) == [7, 8, 9] and len(ExactSampler(7, 3)) == 3
    blocks = data.train(seed=1)
    first, packed = blocks[0], pickle.dumps(blocks)
    assert len(blocks) > 10**15 and len(packed) < 5000
    copy = pickle.loads(packed)
    assert isinstance(copy, BlockDataset) and (copy[0]["input_ids"] == first["input_ids"]).all()


def test_validation_rows(data):
    ids, sizes = data.validation_rows()
    assert ids.dtype == sizes.dtype == np.int64
    assert ids.shape == sizes.shape == (data.manifest["splits"]["validation"]["rows"], 128)
    some, some_sizes = data.validation_rows(limit=2)
    assert (some == ids[:2]).all() and (some_sizes == sizes[:2]).all()
    special = np.isin(ids, [data.special_ids[name] for name in ("pad", "cls", "sep")])
    assert (sizes[special] == 0).all() and (sizes[~special] > 0).all()
    tokenizer = data.load_tokenizer()
    assert len(tokenizer) == data.vocab_size
    assert {name: getattr(tokenizer, f"{name}_token_id") for name in data.special_ids} == data.special_ids


def test_fingerprint_is_the_training_data(copy):
    data = DataFolder.open(copy)
    assert data.verify() == 1.0 and data.verify(seconds=0.0) == 0.0, "a share of the bytes, in the seconds it is given"
    assert data.fingerprint == _edited(copy, created="another day").fingerprint
    files = [file | {"sha256": "0" * 64} for file in data.manifest["splits"]["train"]["files"]]
    assert _edited(copy, {"files": files}).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("train-00001-of-00002.arrow", lambda content: content[:-100], "truncated"),
        ("train-00000-of-00002.arrow", None, "train-00000-of-00002.arrow is missing"),
        ("validation-00000-of-00001.arrow", None, "validation-00000-of-00001.arrow is missing"),
        (
            "tokenizer/tokenizer.json",
            lambda content: content.replace(b"[MASK]", b"[MUSK]"),
            "tokenizer does not match",
        ),
        ("tokenizer/tokenizer.json", None, "tokenizer.json is missing"),
        ("manifest.json", None, "no manifest.json"),
        ("manifest.json", lambda content: content[:9], "manifest.json cannot be read"),
        ("manifest.json", lambda content: content.replace(b'_version": 1', b'_version": 99'), "format_version 99"),
        ("train-00000-of-00002.arrow", lambda content: bytes(len(content)), "cannot be read|rows"),  # when it is read
    ],
)
def test_a_damaged_folder_is_refused(copy, name, change, message):
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if change:
        (copy / name).write_bytes(change(content))
    with pytest.raises(InputError, match=message) as caught:
        DataFolder.open(copy).train(seed=0)[0]
    assert "\n" not in str(caught.value)
