"""The original's shards, written here in its form: masks taken off, copies dropped, labels kept."""

import errno
import fcntl
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizer

from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from data_prep import hdf5
from data_prep.corpus import HELD_OUT_RULE, is_held_out
from tests.conftest import read_documents, words
from tests.data_prep.conftest import error_of

h5py = pytest.importorskip("h5py", reason="needs the extra hdf5")
LENGTH, SLOTS = 32, 5


@pytest.fixture(scope="module")
def text_rows(corpus, tokenizer):
    """input_ids [n, L], padded, how many of each are not, and the tokenizer."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    documents = list(read_documents(corpus))[:200]
    rows = loaded(documents, truncation=True, max_length=LENGTH, padding="max_length")["input_ids"]
    rows = np.unique(np.array(rows), axis=0)
    return rows, (rows != loaded.pad_token_id).sum(1), loaded


def test_without_h5py_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "shard.hdf5").touch()
    with pytest.raises(InputError, match=r"needs h5py .*; pip install 'budget-trainer\[hdf5\]'$"):
        hdf5._open(tmp_path / "shard.hdf5")


def write(file, rows, sizes, tokenizer, seed, labels=None):
    """What create_pretraining_data writes: [MASK], random or the same at some positions, their ids beside it."""
    chance = np.random.default_rng(seed)
    ids, positions, answers = rows.copy(), *np.zeros((2, len(rows), SLOTS), np.int32)
    for i, size in enumerate(sizes):
        count = min(SLOTS, max(1, size // 7))
        chosen = np.sort(chance.choice(np.arange(1, size - 1), count, replace=False))
        positions[i, :count], answers[i, :count] = chosen, ids[i, chosen]
        ids[i, chosen] = np.where(chance.random(count) < 0.8, tokenizer.mask_token_id, chance.integers(5, 90, count))
    types = np.arange(LENGTH) > LENGTH // 2
    columns = {"input_ids": ids.astype("i4"), "input_mask": (np.arange(LENGTH) < sizes[:, None]).astype("i1")}
    columns |= {"segment_ids": np.tile(types.astype("i1"), (len(rows), 1))}
    columns |= {"masked_lm_positions": positions, "masked_lm_ids": answers}
    columns |= {} if labels is None else {"next_sentence_labels": labels.astype("i1")}
    with h5py.File(file, "w") as out:
        for name, column in columns.items():
            out.create_dataset(name, data=column, compression="gzip")


def convert(folder, tokenizer, out, *flags):
    options = {
        "input": folder,
        "tokenizer": tokenizer,
        "output_dir": out,
        "num_shards": 3,
        "validation_block_size": 32,
    }
    return hdf5.main([*words(options), *flags])


def rows_of(data, *columns):
    blocks = data.train(seed=0, columns=columns)
    return blocks.__getitems__(range(blocks.rows))


def test_masks_come_off_and_copies_go(text_rows, tokenizer, tmp_path, capsys):
    rows, sizes, loaded = text_rows
    half, shards = len(rows) // 2, tmp_path / "shards"
    shards.mkdir()
    for copy in range(3):  # dupe_factor
        write(shards / f"train_shard_{copy}.hdf5", rows[:half], sizes[:half], loaded, seed=copy)
    write(shards / "test_shard_0.hdf5", rows[half:], sizes[half:], loaded, seed=9)
    (shards / "train_shard_1.hdf5").rename(shards / "train_shard_1.of 3")  # a file is what it holds
    (shards / "README.md").write_text("Made by create_pretraining_data.")
    (shards / "more.hdf5.gz").write_bytes(b"\x1f\x8b\x08")
    assert convert(shards, tokenizer, tmp_path / "out") == 0
    data = DataFolder.open(tmp_path / "out")
    assert data.manifest["sources"][0]["account"]["files_not_read"]["names"] == [
        "README.md (no HDF5)",
        "more.hdf5.gz (gzip)",
    ]
    assert "  2 files not read: README.md (no HDF5), more.hdf5.gz (gzip) (" in capsys.readouterr().out
    assert sorted(map(tuple, rows_of(data, "input_ids")["input_ids"])) == sorted(map(tuple, rows[:half]))
    train = data.manifest["splits"]["train"]
    assert train["copies_dropped"] == 2 * half and train["rows"] == half and data.manifest["packing"] == "one_document"
    assert train["tokens"] == sizes[:half].sum() and data.manifest["splits"]["validation"]["rows"] > 0
    assert data.manifest["validation"]["rule"] == HELD_OUT_RULE
    held = (tmp_path / "out" / "validation.txt").read_text()
    assert " ".join(loaded.decode(rows[half], skip_special_tokens=True).split()) in held
    assert convert(shards, tokenizer, tmp_path / "all", "--keep_copies") == 0
    assert DataFolder.open(tmp_path / "all").manifest["splits"]["train"]["rows"] == 3 * half


def test_pairs_keep_their_labels(text_rows, tmp_path):
    """Of a vocabulary whose id 0, which fills up the lists of masked tokens, is a word."""
    rows, sizes, loaded = text_rows
    order = np.arange(len(loaded))
    word = np.bincount(rows[rows > 4]).argmax()
    order[[0, word]] = word, 0
    own, rows = BertTokenizer({token: int(order[i]) for token, i in loaded.get_vocab().items()}), order[rows]
    own.save_pretrained(tmp_path / "own")
    labels = np.arange(len(rows)) % 2
    write(tmp_path / "train_shard_0.hdf5", rows, sizes, own, seed=1, labels=labels)
    shard = tmp_path / "train_shard_0.hdf5"
    assert convert(shard, tmp_path / "own", tmp_path / "out", "--validation_fraction", "0.2") == 0
    data = DataFolder.open(tmp_path / "out")
    assert data.manifest["packing"] == "nsp"
    got = rows_of(data, "input_ids", "token_type_ids", "next_sentence_label")
    expected = {tuple(row): label for row, label in zip(rows, labels, strict=True)}
    found = {tuple(row): int(label) for row, label in zip(got["input_ids"], got["next_sentence_label"], strict=True)}
    assert (np.asarray(got["input_ids"]) == 0).any()
    assert 0.6 * len(rows) < len(found) < len(rows) and all(expected[row] == label for row, label in found.items())
    assert (np.asarray(got["token_type_ids"]) == (np.arange(LENGTH) > LENGTH // 2)).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:500]), "damaged or no HDF5 file"),
        (lambda file: file.unlink(), "holds no .hdf5 file to train on"),
        (lambda file: h5py.File(file, "w").close(), "has no data set input_ids"),
    ],
)
def test_what_cannot_be_read(damage, message, text_rows, tokenizer, tmp_path, capsys):
    rows, sizes, loaded = text_rows
    write(tmp_path / "train_shard_0.hdf5", rows, sizes, loaded, seed=1)
    damage(tmp_path / "train_shard_0.hdf5")
    assert convert(tmp_path, tokenizer, tmp_path / "out") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    moved = np.where(rows == loaded.cls_token_id, loaded.sep_token_id, rows)  # another vocabulary
    write(tmp_path / "train_shard_0.hdf5", moved, sizes, loaded, seed=1)
    assert convert(tmp_path, tokenizer, tmp_path / "out") == 2
    assert "tokenizer: its ids are not those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "reason", "message"),
    [
        (
            errno.ENOLCK,
            "unable to lock file, errno = 37",
            "its file system has no locks (No locks available); set HDF5_USE_FILE_",
        ),
        (errno.EACCES, "unable to open file", "cannot be opened (Permission denied); mend that"),
        (errno.EIO, "file read failed", "cannot be opened (Input/output error); mend that"),
    ],
)
def test_a_file_that_cannot_be_opened_is_not_called_damaged(number, reason, message, tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(number, f"Unable to synchronously open file ({reason})")

    (tmp_path / "train_0.hdf5").touch()
    monkeypatch.setattr(h5py, "File", refuse)
    error = error_of(
        hdf5.main, words({"input": tmp_path, "tokenizer": "none", "output_dir": tmp_path / "out"}), capsys
    )
    assert message in error and "damaged" not in error


def test_a_file_that_another_process_writes(tmp_path, capsys):
    h5py.File(tmp_path / "train_0.hdf5", "w").close()
    with (tmp_path / "train_0.hdf5").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as the library does
        argv = words({"input": tmp_path, "tokenizer": "none", "output_dir": tmp_path / "out"})
        error = error_of(hdf5.main, argv, capsys)
    assert "has it open for writing; wait for it, or set HDF5_USE_FILE_LOCKING=FALSE" in error


def test_of_a_few_blocks_the_last_is_held_out_and_unknown_tokens_are_counted(text_rows, tokenizer, tmp_path, capsys):
    rows, sizes, loaded = (text_rows[0].copy(), *text_rows[1:])
    chosen = [
        row for row in range(len(rows)) if sizes[row] > 20 and not is_held_out(text_of(loaded, rows[row]), 0.01)
    ][:40]
    rows, sizes = rows[chosen], sizes[chosen]
    rows[:, 2] = np.where(np.arange(40) % 4 == 0, loaded.unk_token_id, rows[:, 2])
    rows[39, 3:5] = loaded.unk_token_id
    held_out = [row for row in range(39) if is_held_out(text_of(loaded, rows[row]), 0.01)]
    write(tmp_path / "train_0.hdf5", rows, sizes, loaded, seed=1)
    assert convert(tmp_path, tokenizer, tmp_path / "out", "--validation_fraction", "0.01") == 0
    assert not held_out and "holds out none of 40 blocks: the last 1 are" in capsys.readouterr().out
    manifest = DataFolder.open(tmp_path / "out").manifest
    assert (manifest["splits"]["train"]["rows"], manifest["validation"]["ends"]) == (39, 1)
    assert manifest["splits"]["validation"]["unknown_tokens"] == 2
    unknown = manifest["losses"]["unknown"]
    assert unknown == {"tokens": 10, "of": int((sizes[:39] - 2).sum())}
    rows[:, 3:20] = loaded.unk_token_id
    write(tmp_path / "train_0.hdf5", rows, sizes, loaded, seed=1)
    assert convert(tmp_path, tokenizer, tmp_path / "more", "--max_unknown", "0.5") == 2
    assert "% of the tokens are [UNK] (which characters is not known); give one" in capsys.readouterr().err


def text_of(loaded, row):
    return " ".join(loaded.decode(row, skip_special_tokens=True).split())
