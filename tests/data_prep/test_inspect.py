"""What data_prep.inspect says is what is in the folder, counted here a second time from the text and the rows."""

import collections
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_prep import inspect
from tests.data_prep.conftest import all_rows, error_of, flip, ids_of, text_mask, train_texts


@pytest.fixture
def look(tmp_path, capsys):
    """Runs the command; returns what it printed and inspect.json."""

    def run(folder, *more):
        output = tmp_path / "inspection"
        capsys.readouterr()
        assert inspect.main([str(word) for word in (folder.path, "--output_dir", output, "--overwrite", *more)]) == 0
        assert sorted(file.name for file in output.iterdir()) == ["inspect.json", "inspect.png"]
        assert (output / "inspect.png").read_bytes().startswith(b"\x89PNG")
        return capsys.readouterr().out, json.loads((output / "inspect.json").read_text())

    return run


@pytest.mark.parametrize("packing", ["packed", "one_document", "nsp"])
def test_figures_of_the_corpus(prepared, corpus, tokenizer, look, monkeypatch, packing):
    monkeypatch.setattr("data_prep.folders.PART_VALUES", 64 * 50)  # several parts
    folder, texts = prepared(packing=packing), train_texts(corpus)
    ids = ids_of(tokenizer, texts)
    printed, figures = look(folder)
    train = folder.manifest["splits"]["train"]
    for name in ("rows", "tokens", "documents", "text_bytes"):
        assert figures[name] == train[name]
    assert figures["rows_counted"] == figures["lengths"]["tokens_per_block"]["number"] == train["rows"]
    assert figures["padding_share"] == pytest.approx(1 - train["tokens"] / (64 * train["rows"]))
    assert figures["file_bytes"] == sum(file.stat().st_size for file in folder.path.glob("train-*.arrow"))
    counts = [entry["rows"] for entry in train["files"]]
    assert figures["rows_per_shard"] == {"min": min(counts), "max": max(counts)} and figures["shards"] == 3
    # Pairs repeat text, the last packed block too: neither counts. A filled block holds some [SEP] as well.
    tokens, size = sum(map(len, ids)), sum(len(text.encode()) for text in texts)
    assert figures["bytes_per_token"] == pytest.approx(size / tokens, rel=1e-4 if packing == "packed" else 1e-12)
    assert figures["tokens_per_byte"] == pytest.approx(1 / figures["bytes_per_token"])
    assert figures["characters_per_token"] == pytest.approx(figures["bytes_per_token"])  # ASCII
    assert figures["validation"] == {"fraction": 0.1, "text": None, "rule": 2}
    if packing == "one_document":
        counts = collections.Counter(i for document in ids for i in document)
        names = AutoTokenizer.from_pretrained(tokenizer).convert_ids_to_tokens(range(500))
        assert [entry["count"] for entry in figures["top_tokens"]] == [n for _, n in counts.most_common(20)]
        for entry in figures["top_tokens"]:
            assert counts[entry["id"]] == entry["count"] and names[entry["id"]] == entry["token"]
            assert entry["share"] == pytest.approx(entry["count"] / counts.total())
    if packing == "nsp":
        rows = all_rows(folder)
        for number, name in enumerate(("tokens_of_a", "tokens_of_b")):
            sizes = (text_mask(folder, rows["input_ids"]) & (rows["token_type_ids"] == number)).sum(axis=1)
            assert figures["lengths"][name]["mean"] == pytest.approx(sizes.mean())
            assert figures["lengths"][name]["median"] == np.percentile(sizes, 50, method="inverted_cdf")
        assert figures["random_pairs_share"] == pytest.approx(train["pairs"]["random"] / sum(train["pairs"].values()))
        assert f"random pairs    {figures['random_pairs_share']:.2%}" in printed
    assert f"{train['rows']:,} blocks of 64 positions" in printed and f"packing         {packing}" in printed


def test_characters_and_unknown_tokens(prepared, tokenizer, tmp_path, look):
    text = tmp_path / "greek.txt"
    text.write_text("\n\n".join(f"bada kulo \u03b1\u03b2\u03b3 mina {number} " * 8 for number in range(100)))
    _, figures = look(prepared(input=text, packing="one_document", validation_fraction=0.3, max_unknown=1))
    unknown = AutoTokenizer.from_pretrained(tokenizer).unk_token_id
    texts = train_texts(text, 0.3)
    ids = [i for own in ids_of(tokenizer, texts) for i in own]
    assert ids.count(unknown) >= 8 * len(texts) > 0
    assert figures["unknown_rate"] == pytest.approx(ids.count(unknown) / len(ids))
    assert figures["bytes_per_token"] == pytest.approx(sum(len(t.encode()) for t in texts) / len(ids))
    assert figures["characters_per_token"] == pytest.approx(sum(map(len, texts)) / len(ids), rel=0.01)
    assert figures["characters_per_token"] < 0.95 * figures["bytes_per_token"]


def test_lengths_of_packed_blocks(prepared, look):
    folder = prepared(block_size=128)
    printed, figures = look(folder)
    rows = all_rows(folder)
    documents, pieces = [], []
    for ids, numbers in zip(rows["input_ids"], rows["document_ids"], strict=True):
        documents.append(len(set(numbers.tolist())))
        pieces += collections.Counter(numbers[text_mask(folder, ids)].tolist()).values()
    for name, values in {"documents_per_block": documents, "tokens_per_piece": pieces}.items():
        summary = figures["lengths"][name]
        assert summary["number"] == len(values) and summary["mean"] == pytest.approx(np.mean(values))
        expected = np.percentile(values, [0, 5, 25, 50, 75, 95, 100], method="inverted_cdf").tolist()
        assert [summary[key] for key in ("min", "p5", "p25", "median", "p75", "p95", "max")] == expected
        assert figures["histograms"][name] == {str(v): n for v, n in sorted(collections.Counter(values).items())}
    assert set(figures["histograms"]["tokens_per_block"]) == {"128"}
    assert "Piece of a document in a block (tokens of text)" in printed
    assert max(documents) > 2 and len(set(pieces)) > 20


@pytest.mark.parametrize("packing", ["packed", "one_document", "nsp"])
def test_samples_are_the_text_of_the_rows(prepared, tokenizer, look, packing):
    folder = prepared(packing=packing, block_size=128)
    printed, figures = look(folder, "--samples", 7)
    rows, loaded = all_rows(folder), AutoTokenizer.from_pretrained(tokenizer)
    assert len({sample["row"] for sample in figures["samples"]}) == 7
    files = {entry["name"]: entry["rows"] for entry in folder.manifest["splits"]["train"]["files"]}
    ends = dict(zip(files, itertools.accumulate(files.values()), strict=True))
    for sample in figures["samples"]:
        row = {name: values[sample["row"]] for name, values in rows.items()}
        assert 0 < ends[sample["file"]] - sample["row"] <= files[sample["file"]]
        part_of = row.get("document_ids", row.get("token_type_ids", np.zeros(128, int)))
        text = text_mask(folder, row["input_ids"])
        for number, part in enumerate(sample["parts"]):
            ids = row["input_ids"][text & (part_of == number)]
            assert part["text"] == loaded.decode(ids) and part["tokens"] == len(ids)
        assert f"row {sample['row']:,} ({sample['file']}), {sample['tokens']} tokens" in printed
        several = {"packed": [f"document {n + 1}" for n in range(part_of[-1] + 1)], "nsp": ["A", "B"]}
        names = several.get(packing, ["text"])
        assert [part["name"] for part in sample["parts"]] == names
        assert all(f"  {name} | " in printed for name in names)
        if packing == "nsp":
            assert sample["label"] == row["next_sentence_label"]
            said = "B is from another document" if sample["label"] else "B follows A"
            assert re.search(rf"row {sample['row']:,} .*label {sample['label']}: {said}", printed)
            sizes = [part["tokens"] for part in sample["parts"]]
            assert sizes[1] == row["token_type_ids"].sum() - 1 and sum(sizes) + 3 == sample["tokens"]
    if packing == "packed":
        assert max(len(sample["parts"]) for sample in figures["samples"]) > 1


def test_the_seed_decides_the_samples(prepared, look):
    folder = prepared()
    first, again, other = (look(folder, "--seed", seed, "--samples", 3) for seed in (1, 1, 2))
    assert first[0] == again[0] and first[1]["samples"] == again[1]["samples"]
    assert first[1]["samples"] != other[1]["samples"]
    few = prepared(block_size=1024)
    rows = few.manifest["splits"]["train"]["rows"]
    for wanted, found in ((rows + 5, rows), (0, 0)):
        samples = look(few, "--samples", wanted)[1]["samples"]
        assert [sample["row"] for sample in samples] == list(range(found))


def test_some_evenly_spaced_rows(prepared, look):
    folder = prepared(packing="one_document")
    total = folder.manifest["splits"]["train"]["rows"]
    printed, figures = look(folder, "--max_rows", 50)
    rows = all_rows(folder)["input_ids"][np.arange(50) * total // 50]
    sizes = (rows != folder.special_ids["pad"]).sum(axis=1)
    assert figures["rows_counted"] == 50 and "50 evenly spaced rows" in printed
    assert figures["lengths"]["tokens_per_block"]["mean"] == pytest.approx(sizes.mean())
    assert figures["rows"] == total
    assert look(folder, "--max_rows", total + 1)[1]["rows_counted"] == total


def test_the_validation_split(prepared, look):
    folder = prepared(packing="nsp")
    printed, figures = look(folder, "--split", "validation")
    sizes = (folder.validation_rows()[0] != folder.special_ids["pad"]).sum(axis=1)
    assert figures["rows"] == figures["rows_counted"] == len(sizes) and figures["block_size"] == 128
    assert figures["lengths"]["tokens_per_block"]["mean"] == pytest.approx(sizes.mean())
    assert figures["bytes_per_token"] is None and "random pairs" not in printed


def test_damage_is_named(prepared, tmp_path, capsys):
    copy = shutil.copytree(prepared().path, tmp_path / "copy")
    file = copy / "train-00000-of-00003.arrow"
    row = all_rows(prepared())["input_ids"][0].astype(np.uint16)
    content = file.read_bytes()
    assert content.count(row.tobytes()) == 1
    row[5], known = 60_000, row.tobytes()
    file.write_bytes(content.replace(known, row.tobytes()))
    assert "column input_ids holds 60000, but 499 is the largest" in error_of(inspect.main, [copy], capsys)
    file.write_bytes(content)
    assert inspect.main([str(copy), "--verify", "--samples", "1"]) == 0
    assert f"{copy}: all 6 files match their checksums" in capsys.readouterr().out  # 3 + 1 shards, tokenizer, text
    for name in (
        "validation.txt",
        "validation-00000-of-00001.arrow",
        "train-00002-of-00003.arrow",
    ):  # the first is named
        flip(copy / name)
        assert f"{name} is damaged" in error_of(inspect.main, [copy, "--verify"], capsys)


def test_mistakes_are_one_line(prepared, tmp_path, capsys):
    folder, empty = prepared().path, prepared(validation_fraction=0).path
    copy = shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for argv, message in [
        ([tmp_path / "nothing"], "no manifest.json"),
        ([folder, "--samples", -1], "--samples -1: give 0 or more"),
        ([folder, "--max_rows", 0], "--max_rows"),
        ([empty, "--split", "validation"], "has no validation rows; give --split train"),
        ([copy, "--output_dir", copy / "inspection"], "overlap"),
        ([copy, "--output_dir", copy, "--overwrite"], "overlap"),
        ([folder, "--output_dir", tmp_path / "full", "--overwrite"], "exists and is no inspection"),
    ]:
        assert message in error_of(inspect.main, argv, capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "full"]
