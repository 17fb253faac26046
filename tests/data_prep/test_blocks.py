"""From text to a data folder: the same whatever the processes, nothing lost, the pinned evaluation's blocks."""

import itertools
import json
import resource
import runpy
import subprocess
import sys

import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from budget_trainer.core.io import sha256
from budget_trainer.data.folder import DataFolder
from data_prep import blocks, inspect
from data_prep.corpus import HASHED_WORDS, is_held_out, token_groups
from tests.conftest import ROOT, read_documents, words
from tests.data_prep.conftest import dealt_rows, error_of, ids_of, limited_to, text_mask, train_texts

BENCH = ROOT.parent / "shared" / "bench" / "eval_mlm.py"


@pytest.fixture
def build(corpus, tokenizer, tmp_path):
    """Runs the stage in this process; returns the opened folder."""

    def run(name="blocks", **flags):
        options = {"input": corpus, "tokenizer": tokenizer, "output_dir": tmp_path / name, "num_proc": 1}
        options |= {"num_shards": 3, "validation_fraction": 0.1, **flags}
        assert blocks.main(words(options)) == 0
        return DataFolder.open(options["output_dir"])

    return run


@pytest.mark.parametrize("packing", ["packed", "nsp"])
def test_same_bytes_for_any_number_of_processes(build, monkeypatch, packing):
    monkeypatch.setattr("data_prep.corpus.GROUP_CHARACTERS", 4000)  # several groups
    one, two = build("one", num_proc=1, packing=packing), build("two", num_proc=2, packing=packing)
    assert one.manifest["splits"] == two.manifest["splits"]
    files = [entry for split in one.manifest["splits"].values() for entry in split["files"]]
    assert len(files) == 4
    for entry in files:
        assert (one.path / entry["name"]).read_bytes() == (two.path / entry["name"]).read_bytes()
        assert sha256(one.path / entry["name"]) == entry["sha256"]


@pytest.mark.parametrize(
    "packing, block_size", [("packed", 64), ("packed", 16), ("one_document", 32), ("sentences", 32)]
)
def test_no_text_is_lost(build, corpus, tokenizer, packing, block_size):
    folder = build(packing=packing, block_size=block_size)
    rows = dealt_rows(folder)
    expected = ids_of(tokenizer, train_texts(corpus))
    tokens, wanted = rows[text_mask(folder, rows)].tolist(), [i for ids in expected for i in ids]
    assert tokens[: len(wanted)] == wanted
    repeated = tokens[len(wanted) :]
    assert repeated == wanted[: len(repeated)]
    train = folder.manifest["splits"]["train"]
    counts = {"documents": len(expected), "text_bytes": sum(len(text.encode()) for text in train_texts(corpus))}
    counts |= {"rows": len(rows), "tokens": (rows != folder.special_ids["pad"]).sum()}
    assert train.items() >= counts.items() and folder.train(0).rows == len(rows)
    padded = (rows == folder.special_ids["pad"]).any(1)
    assert train["columns"] == ["input_ids", "document_ids"][: 2 if packing == "packed" else 1]
    if packing == "packed":
        assert not padded.any() and len(repeated) <= train["filled"] < block_size - 2
        documents = dealt_rows(folder, column="document_ids")
        assert documents.shape == rows.shape and (documents[:, 0] == 0).all()
        joined = [i for ids in expected for i in [*ids, folder.special_ids["sep"]]]
        assert rows[:, 1:-1].ravel()[: len(joined)].tolist() == joined
    else:
        assert padded.any() and not repeated and train["filled"] == 0
        fewest = sum(-(-len(ids) // (block_size - 2)) for ids in expected)
        assert len(rows) == fewest if packing == "one_document" else len(rows) > fewest


@pytest.mark.parametrize("block_size", [16, 64])
def test_sentence_pairs(build, corpus, tokenizer, monkeypatch, block_size):
    monkeypatch.setattr("data_prep.corpus.GROUP_CHARACTERS", 20_000)  # several groups
    folder = build(packing="nsp", block_size=block_size)
    train = folder.manifest["splits"]["train"]
    assert folder.manifest["packing"] == "nsp" and folder.train_columns == tuple(train["columns"])
    assert train["columns"] == ["input_ids", "token_type_ids", "next_sentence_label"]
    rows = folder.train(0, folder.columns_for(next_sentence=True)).__getitems__(range(train["rows"]))
    ids, types, labels = (rows[name] for name in train["columns"])
    assert ids.shape == types.shape == (train["rows"], block_size) and labels.shape == (train["rows"],)
    assert train["pairs"] == {"follows": (labels == 0).sum(), "random": (labels == 1).sum()}
    assert abs(labels.mean() - 0.5) < 0.1
    sep, pad = folder.special_ids["sep"], folder.special_ids["pad"]
    assert ((ids == sep).sum(axis=1) == 2).all() and (ids[types == 1] != pad).all()
    assert train["tokens"] == (ids != pad).sum() < ids.size
    # In the order they were dealt, what belongs to A or follows is the text.
    ids, types, labels = (dealt_rows(folder, column=name) for name in train["columns"])
    belongs = text_mask(folder, ids) & ((types == 0) | (labels[:, None] == 0))
    assert ids[belongs].tolist() == [i for document in ids_of(tokenizer, train_texts(corpus)) for i in document]


def test_shards_are_balanced_and_readable_by_datasets(build, tmp_path):
    folder = build(num_shards=7, block_size=16)
    counts = [entry["rows"] for entry in folder.manifest["splits"]["train"]["files"]]
    assert len(counts) == 7 and max(counts) - min(counts) <= 1
    table = datasets.Dataset.from_file(str(folder.path / "train-00000-of-00007.arrow"))
    assert table.features["input_ids"] == datasets.Sequence(datasets.Value("uint16"), length=16)
    (tmp_path / "short.txt").write_text("only a few words of text\n")
    few = build("few", input=tmp_path / "short.txt", validation_fraction=0, num_shards=5)
    assert [entry["name"] for entry in few.manifest["splits"]["train"]["files"]] == ["train-00000-of-00001.arrow"]
    assert few.manifest["splits"]["validation"]["rows"] == 0
    with pytest.raises(ValueError, match="no validation rows"):
        few.validation_rows()


def test_split_is_stable_as_the_corpus_grows(build, corpus, tmp_path):
    texts = list(read_documents(corpus))
    extra = [f"A new document of number {i}, which says the word {i * 7} twice: {i * 7}." for i in range(200)]
    (tmp_path / "grown.txt").write_text("\n\n".join(extra[:100] + texts + extra[100:]))
    folders = build("before"), build("after", input=tmp_path / "grown.txt")
    before, after = (set((folder.path / "validation.txt").read_text().split("\n")) - {""} for folder in folders)
    assert before < after and after - before <= set(extra)
    assert 0.2 < np.mean([is_held_out(text, 0.3) for text in texts + extra]) < 0.4


@pytest.mark.parametrize("documents, ends", [(1, 1), (5, 5), (30, 1)])
def test_of_a_few_documents_the_ends_are_held_out(build, corpus, tmp_path, capsys, documents, ends):
    """Of one book, of five, of one beside short texts; none of them is held out by its hash."""
    texts = [f"Book {number}. " + " ".join(corpus.read_text().split()[number:12_000:ends]) for number in range(ends)]
    short = iter(f"Text {number} has a few words alone." for number in range(999))
    texts += itertools.islice((text for text in short if not is_held_out(text, 0.01)), documents - ends)
    assert not any(is_held_out(text, 0.01) for text in texts)
    (tmp_path / "few.txt").write_text("\n\n".join(texts))
    folder = build(input=tmp_path / "few.txt", validation_fraction=0.01, kind="text")
    validation = folder.manifest["splits"]["validation"]
    assert validation["rows"] > 0 and validation["documents_held_out"] == folder.manifest["validation"]["ends"] == ends
    said = f"validation_fraction 0.01 holds out none of {documents} documents whole: the last 1% of those of "
    assert said in capsys.readouterr().out
    assert inspect.main([str(folder.path)]) == 0 and f"the ends of {ends} documents" in capsys.readouterr().out
    tails = list(read_documents(folder.path / "validation.txt", "text"))
    for text, tail in zip(texts, tails, strict=False):
        assert text.endswith(tail) and 0 <= len(tail) - max(600, int(0.01 * len(text))) < 1000
    trained = sum(len(text.encode()) for text in texts) - sum(len(tail.encode()) + 1 for tail in tails)
    assert folder.manifest["splits"]["train"]["text_bytes"] == trained


def test_of_long_documents_in_several_parts_the_last_ends_are_held_out(build, corpus, tmp_path, monkeypatch):
    """And of none where a document of an earlier part is held out by its hash."""
    monkeypatch.setattr("data_prep.corpus.PART_BYTES", 40_000)
    monkeypatch.setattr("data_prep.corpus.GROUP_CHARACTERS", 20_000)
    words = corpus.read_text().split()
    texts = [f"Book {number}. " + " ".join(words[number:4_000]) for number in range(99)]
    some, other = ([text for text in texts if is_held_out(text, 0.1) == held][:6] for held in (False, True))
    (tmp_path / "long.txt").write_text("\n\n".join(some))
    folder = build(input=tmp_path / "long.txt", validation_fraction=0.1, kind="text")
    assert 0 < folder.manifest["validation"]["ends"] < len(some) and folder.manifest["splits"]["validation"]["rows"]
    (tmp_path / "held.txt").write_text("\n\n".join([other[0], *some]))
    folder = build("held", input=tmp_path / "held.txt", validation_fraction=0.1, kind="text")
    assert "ends" not in folder.manifest["validation"]
    assert folder.manifest["splits"]["validation"]["documents_held_out"] == 1


@pytest.mark.parametrize("count", [1, HASHED_WORDS, HASHED_WORDS + 1, 2 * HASHED_WORDS, 3 * HASHED_WORDS])
def test_copies_are_on_one_side_of_the_split(count):
    def sides(change):
        return [is_held_out(change([f"word{i}-{n}" for n in range(count)]), 0.5) for i in range(64)]

    plain = sides(" ".join)
    assert True in plain and False in plain
    assert sides(lambda text: " \n".join(text).upper() + "  ") == plain
    assert sides(lambda text: " ".join(["other", *text[1:]])) != plain
    assert count == 1 or sides(lambda text: " ".join([*text[:-1], "other"])) != plain
    middle = count - count // 2
    if count > 2 * HASHED_WORDS:  # what stands between the ends says nothing
        assert sides(lambda text: " ".join([*text[:middle], "other", *text[middle:]])) == plain


def _expected_validation(texts, tokenizer, limit=2000):
    """What the pinned evaluation does, written down once more."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    for text in texts:
        encoded = loaded(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        for start in range(0, len(ids), 126):
            piece = ids[start : start + 126]
            if len(piece) >= 16 and limit:
                limit -= 1
                size = [len(text[a:b].encode()) for a, b in spans[start : start + 126]]
                yield [loaded.cls_token_id, *piece, loaded.sep_token_id], [0, *size, 0]


def _assert_validation_is(folder, expected):
    ids, sizes = folder.validation_rows()
    pad = folder.special_ids["pad"]
    for row, size, (want, want_size) in zip(ids.tolist(), sizes.tolist(), expected, strict=True):
        assert row == want + [pad] * (128 - len(want)) and size == want_size + [0] * (128 - len(want))


def test_validation_blocks_are_those_of_the_pinned_evaluation(build, corpus, tokenizer):
    folder = build(block_size=64)  # whatever trains
    held_out = train_texts(corpus, held_out=True)
    _assert_validation_is(folder, _expected_validation(held_out, tokenizer))
    if BENCH.exists():
        theirs, loaded = runpy.run_path(str(BENCH))["blocks"], AutoTokenizer.from_pretrained(tokenizer)
        _assert_validation_is(folder, theirs(str(folder.path / "validation.txt"), loaded, 128, 2000))
    assert list(read_documents(folder.path / "validation.txt", "text")) == held_out
    split = folder.manifest["splits"]["validation"]
    assert split["documents"] == split["documents_held_out"] == len(held_out) and split["rows_cut"] == 0


def test_a_separate_validation_text_leaves_all_input_to_training(build, corpus, tokenizer, tmp_path):
    other = tmp_path / "other.txt"
    texts = ["Caf\u00e9 na\u00efve \u00dcber \u4e2d\u6587 bada kulo " * 10, *list(read_documents(corpus))[:20]]
    other.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    folder = build(validation_text=other)
    _assert_validation_is(folder, _expected_validation(read_documents(other), tokenizer))
    assert folder.manifest["splits"]["train"]["documents"] == 400
    assert [source["documents"] for source in folder.manifest["sources"]] == [400, 21]
    sizes = folder.validation_rows()[1]
    assert sizes.sum() > sum(len("".join(text.split())) for text in texts), "bytes, not characters, are counted"


def test_max_validation_blocks_cuts_and_says_so(build, corpus, tokenizer):
    whole = build("whole").manifest["splits"]
    folder = build("cut", max_validation_blocks=5)
    _assert_validation_is(folder, _expected_validation(train_texts(corpus, held_out=True), tokenizer, limit=5))
    split = folder.manifest["splits"]["validation"]
    assert split["rows"] == 5 and split["rows_cut"] == whole["validation"]["rows"] - 5
    assert split["documents"] < split["documents_held_out"]
    assert folder.manifest["splits"]["train"] == whole["train"]  # what was cut is not trained on


def test_large_vocabulary_is_stored_in_32_bits(build, tokenizer, tmp_path):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab.update({f"filler{i}": i for i in range(len(vocab), 70_000)})
    vocab["[MASK]"], vocab["filler69999"] = 69_999, vocab["[MASK]"]
    next(token for token in content["added_tokens"] if token["content"] == "[MASK]")["id"] = 69_999
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    folder = build(tokenizer=tmp_path / "tokenizer.json")
    assert folder.manifest["dtype"] == "uint32" and folder.vocab_size == 70_000
    assert folder.special_ids["mask"] == 69_999
    assert folder.train(0)[0]["input_ids"].dtype == np.int64


def test_several_inputs_and_the_manifest(corpus, tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text("One line of a book.\n\nAnother.\n")
    output = tmp_path / "both"
    command = ["--input", corpus, tmp_path / "book.txt", "--kind", "text", "--output_dir", output, "--num_proc", 1]
    assert blocks.main([str(word) for word in [*command, "--tokenizer", tokenizer]]) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert [source["documents"] for source in manifest["sources"]] == [400, 2]
    assert manifest["command"].startswith("python -m data_prep.blocks --input ")
    assert manifest["format_version"] == 1 and manifest["packing"] == "packed" and manifest["block_size"] == 128
    assert set(manifest["special_ids"]) == {"pad", "unk", "cls", "sep", "mask"}
    assert {"created", "versions", "tokenizer", "splits", "vocab_size", "validation_block_size"} <= set(manifest)
    listed = [entry["name"] for split in manifest["splits"].values() for entry in split["files"]]
    listed += ["tokenizer", "manifest.json", "validation.txt"]
    assert sorted(file.name for file in output.iterdir()) == sorted(listed)  # no temporary file is left


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": "nothing.txt"}, "input nothing.txt: no such file"),
        ({"tokenizer": "."}, "tokenizer .: one *tokenizer.json or *vocab.txt is needed"),
        ({"input": "latin.txt"}, "input latin.txt: byte 0xe9 at offset 3 is not UTF-8"),
        ({"input": "empty.txt"}, "no text found"),
        ({"input": "short.txt", "validation_fraction": "0.01"}, "validation_fraction 0.01 gives no validation block"),
        ({"validation_text": "short.txt"}, "validation_text short.txt gives no validation block"),
        ({"validation_fraction": "1.5"}, "validation_fraction 1.5"),
        ({"block_size": "15"}, "block_size 15: give 16 to 8192"),
        ({"packing": "nsp", "input": "short.txt", "validation_fraction": 0}, "nsp: the corpus has one document"),
        ({"seed": "1"}, "unrecognized arguments: --seed 1"),
        ({"output_dir": "latin.txt"}, "output_dir latin.txt exists and is no data folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(corpus, tokenizer, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty.txt").write_bytes(b"\n")
    (tmp_path / "short.txt").write_text("few words\n")
    before = sorted(tmp_path.iterdir())
    options = {"input": corpus, "tokenizer": tokenizer, "output_dir": "out", "num_proc": 1, "kind": "text", **change}
    assert message in error_of(blocks.main, words(options), capsys)
    assert sorted(tmp_path.iterdir()) == before  # nothing half made is left


def test_an_existing_folder_is_replaced_only_when_asked(build, corpus, tokenizer, capsys):
    first = build("same")
    options = {"input": corpus, "tokenizer": tokenizer, "output_dir": first.path, "num_proc": 1, "num_shards": 1}
    error = error_of(blocks.main, words(options), capsys)
    assert "already holds a data folder; give another path or --overwrite" in error
    with limited_to(60_000, resource.RLIMIT_FSIZE):  # a disk that takes no more
        assert "File too large" in error_of(blocks.main, [*words(options), "--overwrite"], capsys, code=1)
    assert DataFolder.open(first.path).fingerprint == first.fingerprint
    assert blocks.main([*words({**options, "block_size": 32}), "--overwrite"]) == 0
    assert DataFolder.open(first.path).block_size == 32
    assert [path.name for path in first.path.parent.iterdir()] == ["same"]


def test_nothing_is_left_at_home(corpus, tokenizer, tmp_path):
    """As a user runs it; the home folder of the libraries' caches is watched."""
    (tmp_path / "home").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text('{"text": "One more document, read by the datasets library."}\n')
    command = [sys.executable, "-m", "data_prep.blocks", "--input", corpus, tmp_path / "rows"]
    command += ["--tokenizer", tokenizer, "--output_dir", tmp_path / "out", "--validation_fraction", "0.1"]
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rows: read as dataset" in done.stdout and "tokenising: 100%" in done.stderr  # progress
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_groups_and_parts_keep_the_order_and_leave_nothing(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("data_prep.corpus.GROUP_CHARACTERS", 20_000)
    monkeypatch.setattr("data_prep.corpus.PART_BYTES", 100_000)
    texts = [f"document {i} " + "word " * (i % 50) for i in range(3000)]
    taken, groups = [], []
    documents = (taken.append(i) or text for i, text in enumerate(texts))
    options = {"tokenizer_file": f"{tokenizer}/tokenizer.json", "dtype": "uint16", "fraction": 0.0, "num_proc": 1}
    for group in token_groups(documents, tmp_path, **options):
        groups.append((group.ids.copy(), group.lengths.copy()))
        assert len(list(tmp_path.glob("part-?????.arrow"))) == 1
        assert len(groups) > 1 or len(taken) < 1500  # the rest of the corpus is not read yet
    expected = ids_of(tokenizer, texts)
    assert len(groups) > 10
    assert np.concatenate([ids for ids, _ in groups]).tolist() == [i for ids in expected for i in ids]
    assert np.concatenate([lengths for _, lengths in groups]).tolist() == [len(ids) for ids in expected]
    assert not list(tmp_path.iterdir())
