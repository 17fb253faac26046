"""Folders dealt anew: the same rows in the same order, nothing lost, nothing leaked, refused in one line."""

import json
import resource
import shutil
from unittest.mock import Mock

import numpy as np
import pytest

from budget_trainer.data.folder import DataFolder
from data_prep import inspect, merge, shards, split
from tests.conftest import read_documents, words
from tests.data_prep.conftest import dealt_rows, error_of, flip, limited_to, text_mask

PACKINGS = ("packed", "one_document", "nsp")


def run_split(source, output, num_shards):
    assert split.main(words({"input": source.path, "output_dir": output, "num_shards": num_shards})) == 0
    return DataFolder.open(output)


def merging(folders, output, *more):
    return ["--input", *folders, "--output_dir", output, *more]


def run_merge(folders, output, *more):
    assert merge.main([str(word) for word in merging([folder.path for folder in folders], output, *more)]) == 0
    return DataFolder.open(output)


def contents(folder):
    """Name -> bytes of everything but the manifest, which has the time in it."""
    files = [file for file in folder.path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("packing", PACKINGS)
def test_splitting_is_what_building_with_so_many_shards_gives(prepared, tmp_path, monkeypatch, packing):
    monkeypatch.setattr(shards, "BATCH_BYTES", 2000)  # several record batches in each file
    monkeypatch.setattr("data_prep.folders.PART_VALUES", 64 * 50)  # several parts
    three, five, one = (prepared(packing=packing, num_shards=number) for number in (3, 5, 1))
    more = run_split(three, tmp_path / "five", 5)
    assert contents(more) == contents(five)
    assert more.manifest["splits"] == five.manifest["splits"] and more.fingerprint == five.fingerprint
    assert contents(run_split(more, tmp_path / "three", 3)) == contents(three)
    assert contents(run_split(more, tmp_path / "one", 1)) == contents(one)
    counts = [entry["rows"] for entry in more.manifest["splits"]["train"]["files"]]
    assert len(counts) == 5 and max(counts) - min(counts) <= 1
    assert more.verify() == 1.0


def test_a_limit_of_open_files_that_cannot_be_raised_is_one_line(prepared, tmp_path, monkeypatch, capsys):
    """As on macOS, which names no hard limit and has one."""
    source = prepared(block_size=16)
    refusal = ValueError("current limit exceeds maximum limit")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", Mock(side_effect=refusal))
    flags = {"input": source.path, "output_dir": tmp_path / "many", "num_shards": 1000}
    line = error_of(split.main, words(flags), capsys)
    assert "num_shards 1000" in line and line.endswith(f"give at most {256 - shards.OTHER_FILES}")
    assert not (tmp_path / "many").exists()


def test_a_thousand_shards(prepared, tmp_path, monkeypatch):
    source = prepared(block_size=16)
    monkeypatch.setattr(shards, "BATCH_BYTES", 32)  # every shard is written to, and open, from its first row on
    with limited_to(150):
        many = run_split(source, tmp_path / "many", 1000)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1000 + shards.OTHER_FILES
    assert len(list(many.path.glob("train-*.arrow"))) == 1000
    with limited_to(250):  # a reader keeps the maps, not the files
        assert np.array_equal(many.unigram_counts(10**9), source.unigram_counts(10**9))
        batch = many.train(0, ("input_ids", "document_ids")).__getitems__(range(8))
    assert batch["input_ids"].shape == batch["document_ids"].shape == (8, 16)
    monkeypatch.undo()
    twice = run_split(many, tmp_path / "three", 3)
    assert contents(twice) == contents(source)
    # The manifest says where the rows come from; the rest is the source's.
    assert twice.manifest["command"].startswith("python -m data_prep.split --input ")
    (origin,) = twice.manifest["made_from"]
    assert origin["fingerprint"] == many.fingerprint and origin["command"] == many.manifest["command"]
    assert origin["made_from"][0]["command"] == source.manifest["command"]
    new = {"command", "created", "made_from", "splits"}
    assert [(k, v) for k, v in twice.manifest.items() if k not in new] == [
        (k, v) for k, v in source.manifest.items() if k not in new
    ]


@pytest.mark.parametrize("packing", PACKINGS)
def test_merging_keeps_every_row_and_column_in_order(prepared, other_corpus, tmp_path, packing):
    one = prepared(packing=packing)
    two = prepared(packing=packing, input=other_corpus, num_shards=2)
    merged = run_merge([one, two], tmp_path / "merged")
    columns = merged.manifest["splits"]["train"]["columns"]
    assert columns == one.manifest["splits"]["train"]["columns"]
    shared = ("rows", "tokens", "documents", "text_bytes")
    for name, keys in {
        "train": (*shared, "filled"),
        "validation": (*shared, "documents_held_out", "rows_cut"),
    }.items():
        whole, *parts = (folder.manifest["splits"][name] for folder in (merged, one, two))
        for key in keys:
            assert whole[key] == sum(part[key] for part in parts), key
    if packing == "nsp":
        follows, random = np.bincount(dealt_rows(merged, column="next_sentence_label").ravel()).tolist()
        assert merged.manifest["splits"]["train"]["pairs"] == {"follows": follows, "random": random}
        assert min(follows, random) > 100
    assert merged.manifest["sources"] == one.manifest["sources"] + two.manifest["sources"]
    assert merged.manifest["command"].startswith("python -m data_prep.merge --input ")
    assert merged.manifest["validation"] == {"fraction": 0.1, "text": None, "rule": 2}
    assert [origin["fingerprint"] for origin in merged.manifest["made_from"]] == [one.fingerprint, two.fingerprint]
    for name, column in [*(("train", column) for column in columns), ("validation", "input_ids")]:
        parts = [dealt_rows(folder, name, column) for folder in (one, two)]
        assert np.array_equal(dealt_rows(merged, name, column), np.concatenate(parts)), (name, column)
    assert len(merged.manifest["splits"]["train"]["files"]) == 5
    assert merged.verify() == 1.0
    texts = [(folder.path / "validation.txt").read_bytes() for folder in (one, two, merged)]
    sizes = [folder.validation_rows()[1] for folder in (one, two, merged)]
    assert texts[2] == texts[0] + texts[1] and np.array_equal(sizes[2], np.concatenate(sizes[:2]))


def test_no_validation_document_is_trained_on_after_merging(prepared, corpus, other_corpus, tmp_path):
    """Half of the second corpus is that of the first: its documents must be on the same side in both."""
    both = tmp_path / "both.txt"
    both.write_text("\n\n".join([*list(read_documents(corpus))[:200], *read_documents(other_corpus)]))
    merged = run_merge([prepared(block_size=128), prepared(block_size=128, input=both)], tmp_path / "merged")
    blocks, ids = (rows.astype(np.uint16) for rows in (dealt_rows(merged), merged.validation_rows()[0]))
    stream = blocks[text_mask(merged, blocks)].tobytes()
    # Full ones: a short document of this language may well be a part of another one's sentence.
    pieces = [row[1:-1].tobytes() for row in ids if text_mask(merged, row[1:-1]).all()]
    assert len(pieces) > 20 and not any(piece in stream for piece in pieces)
    assert blocks[5][text_mask(merged, blocks[5])].tobytes() in stream  # what the search would find


def test_the_validation_of_a_merged_folder(prepared, other_corpus, tmp_path):
    """None where no folder has any; a text that both have is taken once."""
    folders = [prepared(validation_fraction=0), prepared(validation_fraction=0, input=other_corpus)]
    merged = run_merge(folders, tmp_path / "merged")
    assert merged.manifest["splits"]["validation"]["rows"] == 0
    assert {file.name for file in merged.path.iterdir() if "arrow" not in file.name} == {"manifest.json", "tokenizer"}
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"bada kulo {'mina ' * 20} {number}" for number in range(30)))
    copy = shutil.copy(text, tmp_path / "copy.txt")
    one, two = prepared(validation_text=text), prepared(validation_text=copy, input=other_corpus)
    merged = run_merge([one, two], tmp_path / "both")
    assert merged.manifest["splits"]["validation"] == one.manifest["splits"]["validation"]
    assert len(merged.validation_rows()[0]) == 30
    assert (merged.path / "validation.txt").read_bytes() == (one.path / "validation.txt").read_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"block_size": 32}, "block_size is 32, that of {one} is 64"),
        ({"validation_block_size": 64}, "validation_block_size is 64, that of {one} is 128"),
        ({"packing": "nsp"}, "packing is nsp, that of {one} is packed"),
        ({"tokenizer": "cased.json"}, "tokenizer is "),
        ({"validation_fraction": 0.2}, "validation fraction is 0.2, that of {one} is 0.1: one would train on"),
        ({"validation_text": "text.txt"}, "validation fraction is 0.0, that of {one} is 0.1"),
        ({"input": "few.txt"}, "it holds out the ends of its documents, so one would train on what the other is"),
    ],
)
def test_folders_that_do_not_go_together(
    prepared, corpus, other_corpus, tokenizer, tmp_path, monkeypatch, capsys, change, message
):
    monkeypatch.chdir(tmp_path)
    cased = json.loads((tokenizer / "tokenizer.json").read_text())
    cased["normalizer"]["lowercase"] = False
    (tmp_path / "cased.json").write_text(json.dumps(cased))
    shutil.copy(corpus, "text.txt")
    (tmp_path / "few.txt").write_text("One. " + corpus.read_text().replace("\n", " "))
    one, two = prepared(), prepared(**{"input": other_corpus, **change})
    line = error_of(merge.main, merging([one.path, two.path], tmp_path / "out"), capsys)
    assert f"input {two.path}: {message.format(one=one.path)}" in line
    assert not list(tmp_path.glob("out*"))


def test_folders_that_were_split_by_another_rule(prepared, other_corpus, change, tmp_path, capsys):
    def with_rule(folder, name):
        new = {**folder.manifest["validation"], "rule": 1}
        return DataFolder.open(change(name, lambda path: edit_manifest(path, validation=new), folder))

    one, two = prepared(), prepared(input=other_corpus)
    old, older = with_rule(two, "old"), with_rule(one, "older")
    for pair, rules in (([one, old], (1, 2)), ([old, one], (2, 1))):
        line = error_of(merge.main, merging([folder.path for folder in pair], tmp_path / "out"), capsys)
        assert f"validation rule is {rules[0]}, that of {pair[0].path} is {rules[1]}: one would train on" in line
        assert f"make {old.path} anew with data_prep" in line and not (tmp_path / "out").exists()
    merged = run_merge([older, old], tmp_path / "both").manifest
    assert merged["validation"]["rule"] == 1, "which is still known of what they became"
    nothing = [prepared(validation_fraction=0), prepared(validation_fraction=0, input=other_corpus)]
    run_merge([nothing[0], with_rule(nothing[1], "nothing")], tmp_path / "none")
    assert inspect.main([str(old.path)]) == 0


def test_different_validation_texts_and_manifests_that_do_not_say(
    prepared, corpus, other_corpus, change, tmp_path, capsys
):
    one, two = prepared(validation_text=corpus), prepared(validation_text=other_corpus, input=other_corpus)
    nothing = prepared(validation_fraction=0, input=other_corpus)
    old = change("old", lambda path: edit_manifest(path, lambda manifest: manifest.pop("validation")), nothing)
    for other, message in (
        (two.path, f"validation text is {other_corpus}, that of {one.path} is {corpus}"),
        (nothing.path, "validation text is None"),
        (old, "manifest.json has no field 'validation'"),
    ):
        assert message in error_of(merge.main, merging([one.path, other], tmp_path / "out"), capsys)


@pytest.fixture
def change(prepared, tmp_path):
    """A copy of a data folder in `tmp_path / name`, changed by a function."""

    def make(name, edit, folder=None):
        path = shutil.copytree((folder or prepared()).path, tmp_path / name)
        edit(path)
        return path

    return make


def edit_manifest(path, edit=lambda manifest: None, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: (path / "manifest.json").write_text('{"format_version": 1}'), "is not that of a data folder"),
        (lambda path: edit_manifest(path, splits={"train": {"files": []}}), "has no field 'validation'"),
        (lambda path: (path / "train-00001-of-00003.arrow").unlink(), "train-00001-of-00003.arrow is missing"),
        (lambda path: flip(path / "train-00002-of-00003.arrow"), "train-00002-of-00003.arrow is damaged"),
        (lambda path: flip(path / "validation.txt"), "validation.txt is damaged"),
        (lambda path: (path / "validation.txt").unlink(), "validation.txt is missing"),
        # the longest shard named last, as nobody deals them
        (lambda path: edit_manifest(path, lambda m: m["splits"]["train"]["files"].reverse()), "its train shards have"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(prepared, other_corpus, change, tmp_path, capsys, damage, message):
    bad, good = change("bad", damage), prepared(input=other_corpus, num_shards=2).path
    more = ["--num_shards", 2]
    assert message in error_of(split.main, merging([bad], tmp_path / "out", *more), capsys)
    assert message in error_of(merge.main, merging([good, bad], tmp_path / "out", *more), capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["bad"]


def test_other_mistakes_are_one_line(prepared, other_corpus, change, tmp_path, capsys):
    one, two = prepared().path, prepared(input=other_corpus, num_shards=2).path
    rows, out = prepared().manifest["splits"]["train"]["rows"], tmp_path / "out"
    few = merging([one], out, "--num_shards", rows + 1)
    assert f"num_shards {rows + 1}: there are {rows} train rows" in error_of(split.main, few, capsys)
    assert "--num_shards" in error_of(split.main, [*few[:-1], 0], capsys)
    assert "give two or more" in error_of(merge.main, few, capsys)
    copy, link = change("copy", lambda path: None), tmp_path / "link"
    link.symlink_to(one)
    for again in (one, copy, link):
        line = error_of(merge.main, merging([one, two, again], out), capsys)
        assert f"input {one} and {again} hold the same training rows" in line
    for target in (copy, copy / "new", copy.parent):
        more = ["--num_shards", 2, "--overwrite"]
        assert "overlap" in error_of(split.main, merging([copy], target, *more), capsys)
        assert "overlap" in error_of(merge.main, merging([two, copy], target, *more), capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "link"]
    assert DataFolder.open(copy).verify() == 1.0


def test_an_existing_folder_is_replaced_only_when_asked(prepared, other_corpus, tmp_path, capsys):
    folders = [prepared(), prepared(input=other_corpus, num_shards=2)]
    one, two = (folder.path for folder in folders)
    there = run_split(folders[0], tmp_path / "there", 2)
    for main, sources in ((split.main, [one]), (merge.main, [one, two])):
        argv = merging(sources, there.path, "--num_shards", 1)
        assert "already holds a data folder" in error_of(main, argv, capsys)
        assert DataFolder.open(there.path).fingerprint == there.fingerprint
        assert [file.name for file in tmp_path.iterdir()] == ["there"]
    assert run_merge(folders, there.path, "--overwrite").fingerprint != there.fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["there"]
