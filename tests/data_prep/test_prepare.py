"""One recipe to a data folder: filters that account for themselves, kills that change nothing, what is refused."""

import bz2
import contextlib
import json
import os
import resource
import shutil
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks import prepare_kills
from benchmarks.prepare_kills import made
from budget_trainer.core.io import try_lock
from budget_trainer.data.folder import DataFolder
from data_prep import blocks, prepare
from data_prep.corpus import is_held_out, read_part
from tests.conftest import read_documents, run, words
from tests.data_prep.conftest import error_of, flip, limited_to


@pytest.fixture
def recipe(corpus, tokenizer, tmp_path):
    """Writes a recipe; returns its path."""

    def write(name="recipe", **changes):
        content = {"sources": [str(corpus)], "tokenizer": str(tokenizer), "output_dir": str(tmp_path / "out")}
        content |= {"num_proc": 1, "num_shards": 3, "validation_fraction": 0.1, "piece_megabytes": 0.02, **changes}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def times(folder, pattern="*"):
    """When each file below a folder was written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob(pattern) if file.is_file()}


@pytest.mark.parametrize("few", [False, True])
def test_it_gives_the_blocks_of_the_single_stage(recipe, corpus, tokenizer, tmp_path, few):
    """The corpus is clean and without copies: nothing is removed, and pieces leave no trace."""
    if few:
        text = corpus.read_text().replace("\n\n", " ")
        corpus = tmp_path / "few.txt"
        corpus.write_text(f"{text[:30_000]}\n\n{text[30_000:]}")
    assert prepare.main([str(recipe(sources=[{"input": str(corpus), "kind": "text"}]))]) == 0
    flags = {"num_proc": 1, "num_shards": 3, "validation_fraction": 0.1, "input": corpus, "tokenizer": tokenizer}
    flags |= {"kind": "text"}
    assert blocks.main(words({**flags, "output_dir": tmp_path / "single"})) == 0
    (mine, manifest), (theirs, single) = made(tmp_path / "out"), made(tmp_path / "single")
    assert mine == theirs and manifest.pop("removed") == {} and manifest == single
    assert single["validation"].get("ends", 0) == 2 * few
    assert not (tmp_path / "out.work").exists()
    DataFolder.open(tmp_path / "out")


def test_nothing_is_done_again_when_nothing_has_changed(recipe, corpus, tmp_path, capsys):
    text = tmp_path / "far" / "own.txt"  # found behind a link
    for folder in (text.parent, tmp_path / "near"):
        folder.mkdir()
    (tmp_path / "near" / "link").symlink_to("../far")
    text.write_text(corpus.read_text())
    path = recipe(sources=[str(tmp_path / "near")])
    assert prepare.main([str(path)]) == 0
    before = times(tmp_path / "out")
    capsys.readouterr()
    assert prepare.main([str(path), "--num_proc", "2"]) == 0
    assert "nothing has changed" in capsys.readouterr().out and times(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letters").touch()
    (tmp_path / "busy.work").mkdir()
    with try_lock(tmp_path / "busy.work" / ".lock"):
        for flags, message in (
            (["--block_size", "64"], "already holds a data folder"),
            (["--output_dir", "a: b: c"], "--output_dir 'a: b: c' is no YAML value"),
            (["--output_dir", tmp_path / "other", "--overwrite", "true"], "exists and is no data folder"),
            (["--output_dir", tmp_path / "busy"], "busy.work is in use by process"),
        ):
            assert message in error_of(prepare.main, [path, *flags], capsys)
    assert not (tmp_path / "other.work").exists()
    os.utime(text, ns=(1, 1))
    assert prepare.main([str(path)]) == 2
    assert prepare.main([str(path), "--overwrite", "true"]) == 0
    assert times(tmp_path / "out") != before


def test_what_has_not_changed_is_kept(recipe, tmp_path, monkeypatch):
    path = recipe(keep_work=True, overwrite=True)

    def changed(*flags):
        """The folders of the work whose files are made anew with these flags, of so many files."""
        before = times(tmp_path / "out.work", "*.arrow")
        assert prepare.main([str(path), *flags]) == 0
        now = times(tmp_path / "out.work", "*.arrow")
        return len(before), {file.parent.name for file in before if now.get(file) != before[file]}

    assert changed() == (0, set())
    number, folders = changed("--block_size", "64")
    assert number > 4 and not folders and DataFolder.open(tmp_path / "out").block_size == 64
    marks = [mark for mark in (tmp_path / "out.work").glob("*/*.json") if mark.name != "stage.json"]
    for mark in marks:
        mark.write_text("")  # a power cut, or a disk that lost it
    assert changed("--validation_fraction", "0.2")[1] > {"tokens"} and all(mark.stat().st_size for mark in marks)
    with monkeypatch.context() as before:
        before.setattr("data_prep.recipe.HELD_OUT_RULE", 1)
        assert changed("--validation_fraction", "0.2")[1] == {"tokens"}
    assert prepare.main([str(path), "--validation_fraction", "0.2", "--overwrite", "false"]) == 2, "another rule"
    assert changed("--validation_fraction", "0.2")[1] == {"tokens"}
    for name in ("WordPiece", "BPE", "Unigram", "BPE"):  # another type is trained anew
        flags = ["--tokenizer", f"{{vocab_size: 300, tokenizer_type: {name.lower()}}}"]
        assert changed(*flags)[1] == {"tokens"}
        content = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text())
        assert content["model"]["type"] == name


ENGLISH = "This sentence is about nothing but the weather, and the weather is what it has always been in the town. "
GERMAN = "Dieser Satz handelt von nichts als dem Wetter, und das Wetter ist, was es in der Stadt immer gewesen ist. "
RARE = "Zebras quickly jinx a dwarf of phlox, and five boxing wizards will vex Joseph before the quartz judge. "


def test_every_filter_says_what_it_took(recipe, tmp_path, capsys):
    documents = [f"Number {i}. " + ENGLISH * (1 + i % 3) for i in range(40)]
    documents += [documents[3].upper(), documents[4].replace(" ", "  "), "Short.", GERMAN * 3, RARE * 3]
    documents += ["Soft\u00adhy\u200bphen and cafe\u0301 and a \x07bell. " + ENGLISH, "Long. " + ENGLISH * 50]
    (tmp_path / "text.txt").write_text("\n\n".join(documents), encoding="utf-16-le")
    filters = {"min_characters": 20, "max_characters": 4000, "language": "en", "max_tokens_per_character": 0.32}
    sources = [
        {"input": str(tmp_path / "text.txt"), "kind": "text", "encoding": "utf-16-le"}
    ]  # and so the validation's
    tokenizer = {"vocab_size": 200, "lowercase": True, "strip_accents": False}  # YAML reads yes and no so
    options = {"tokenizer": tokenizer, "validation_text": str(tmp_path / "text.txt")}
    path = recipe(sources=sources, keep_work=True, **options, **filters)
    assert prepare.main([str(path)]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    removed = {name: account["documents"] for name, account in manifest["removed"].items()}
    assert manifest["recipe"]["tokenizer"]["strip_accents"] == "no"
    taken = {"min_characters": 1, "max_characters": 1, "duplicates": 2, "language": 1, "max_tokens_per_character": 1}
    assert removed == taken
    samples = {name: account["samples"][0] for name, account in manifest["removed"].items()}
    assert samples["language"].startswith("Dieser") and samples["max_tokens_per_character"].startswith("Zebras")
    assert manifest["removed"]["min_characters"]["samples"] == ["Short."]
    assert (manifest["splits"]["train"]["documents"], manifest["sources"][0]["documents"]) == (41, len(documents))
    out = capsys.readouterr().out
    assert "removed by duplicates: 2 documents" in out and "    Short." in out
    piece = tmp_path / "out.work" / "documents" / "source-000-piece-00000.arrow"
    kept = [document for group in read_part(piece) for document in group]
    assert any(document.startswith("Softhyphen and caf\u00e9 and a bell. This") for document in kept)


def test_documents_that_a_filter_takes_are_not_held_out(recipe, tmp_path):
    """The one that its hash would hold out is in another language: the ends of the others are."""
    texts = (f"{number}. {text * 9}" for number in range(99) for text in (GERMAN, ENGLISH))
    groups = {(text[-99:] in GERMAN * 9, is_held_out(text, 0.1)): text for text in texts}
    (tmp_path / "text.txt").write_text("\n\n".join([groups[True, True], groups[False, False]]))
    sources = [{"input": str(tmp_path / "text.txt"), "kind": "text"}]
    path = recipe(sources=sources, language="en", tokenizer={"vocab_size": 200})
    assert prepare.main([str(path)]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["removed"]["language"]["documents"] == manifest["validation"]["ends"] == 1
    assert manifest["splits"]["train"]["documents"] == 1


def test_the_benchmark_of_kills_sees_what_differs(recipe, tmp_path, capsys, monkeypatch):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert prepare.main([str(recipe(output_dir=str(whole)))]) == 0
    shutil.copytree(whole, again)
    assert prepare_kills.differences(again, whole) == []
    flip(again / "train-00001-of-00003.arrow")
    flip(again / "tokenizer" / "tokenizer.json")
    (again / "more.arrow").touch()
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps({**manifest, "command": "another", "block_size": 1}))
    (tmp_path / "again.work").mkdir()
    different = ["more.arrow", "tokenizer/tokenizer.json", "train-00001-of-00003.arrow", "block_size", "again.work"]
    assert prepare_kills.differences(again, whole) == different

    def start(command, log):  # in this process
        with log.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = prepare.main(command[3:])
        return SimpleNamespace(wait=lambda: code, returncode=code)

    done = ([{"kill": 1, "stage": "tokens", "files": 1}], ["block_size"])
    monkeypatch.setattr(prepare_kills, "disturbed", lambda a, folder, reference: done)
    monkeypatch.setattr(prepare_kills, "start", start)
    with pytest.raises(SystemExit, match="1"):
        prepare_kills.main(["--recipe", str(recipe()), "--output_dir", str(tmp_path / "kills")])
    assert "DIFFERENT: block_size" in capsys.readouterr().out
    for flags, message in (
        (["--kills", "0"], "kills: 0 is below 1"),
        (["--output_dir", str(tmp_path)], "is not empty"),
        (["--recipe", str(recipe(block_size=4))], "recipe: data_prep.prepare ended with 2 (error: block_size 4"),
    ):
        defaults = [] if "--output_dir" in flags else ["--output_dir", str(tmp_path / "refused")]
        assert message in error_of(prepare_kills.main, [*flags, *defaults], capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sourcse": []}, "the key 'sourcse' is unknown; did you mean sources?"),
        ({"sources": None}, "sources is missing; give it"),
        ({"sources": "text"}, "sources: not a list"),
        ({"sources": [{"kind": "text"}]}, "sources: number 1 has no input"),
        ({"sources": [{"input": "x", "knid": "text"}]}, "the key 'knid' is unknown; did you mean kind?"),
        ({"sources": ["/no/such/file"]}, "no such file or folder"),
        ({"sources": [{"input": "x.txt", "text_column": 5}]}, "text_column: 5 is not a str"),
        (
            {"sources": [{"input": "x.txt", "errors": "ignore"}]},
            "errors 'ignore' is unknown; choose of strict, replace",
        ),
        ({"sources": [{"input": "x.txt", "max_documents": "all"}]}, "max_documents: 'all' is not a int"),
        ({"sources": [{"input": "x.txt", "max_documents": 0}]}, "max_documents 0: give 1 or more"),
        ({"tokenizer": 5}, "tokenizer: 5 is neither a name nor a mapping"),
        ({"tokenizer": {"vocab_size": 3}}, "tokenizer: vocab_size 3 is too small"),
        ({"tokenizer": {"max_megabytes": 0}}, "tokenizer: max_megabytes 0: give 1 or more"),
        ({"tokenizer": {"tokenizer_type": "bytes"}}, "tokenizer: tokenizer_type 'bytes' is unknown; choose"),
        ({"language": "xx"}, "language: 'xx' is not one that can be told"),
        ({"language": False}, "language: False is not a str (YAML reads some words"),
        ({"min_characters": 0}, "min_characters 0: give 1 or more"),
        ({"min_characters": 9, "max_characters": 5}, "max_characters: 5 is below min_characters 9"),
        ({"max_tokens_per_character": -1}, "max_tokens_per_character -1"),
        ({"block_size": 4}, "block_size 4: give 16 to 8192"),
        ({"deduplicate": "sometimes"}, "deduplicate: 'sometimes' is not a bool"),
        ({"min_characters": 10**9}, "no text is left to train on"),
    ],
)
def test_bad_recipes_end_in_one_line(changes, message, recipe, tmp_path, capsys):
    assert message in error_of(prepare.main, [recipe(**changes)], capsys)
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_keeps_what_was_finished(recipe, corpus, tmp_path, capsys):
    packed = bz2.compress(corpus.read_bytes() * 3, 1)  # some blocks
    (tmp_path / "text.txt.bz2").write_bytes(packed[: len(packed) // 2])
    path = recipe(sources=[str(corpus), {"input": str(tmp_path / "text.txt.bz2"), "kind": "text"}])
    assert "damaged or cut off" in error_of(prepare.main, [path], capsys)
    assert list((tmp_path / "out.work" / "documents").glob("source-000-*.json")) and not (tmp_path / "out").exists()


def test_a_file_that_cannot_grow_keeps_what_was_finished(recipe, corpus, tmp_path, capsys):
    """As on a full disk; the same command goes on, and the data is that of an undisturbed run."""
    text = tmp_path / "text.txt"
    long = " ".join(f"{line} number {number}" for number in range(9) for line in corpus.read_text().split("\n\n"))
    assert len(long) > 500_000
    text.write_text(corpus.read_text() + "\n\n" + long.replace("\n", " ") + "\n\nThe last one.\n")
    changes = {"sources": [{"input": str(text), "kind": "text"}], "piece_megabytes": 0.1, "num_shards": 8}
    small, work = tmp_path / "small", tmp_path / "small.work"
    path = recipe("small", output_dir=str(small), **changes)
    with limited_to(400_000, resource.RLIMIT_FSIZE):
        assert "File too large" in error_of(prepare.main, [path], capsys, code=1)
    kept = times(work / "documents", "source-*.json")
    assert len(kept) >= 2 and not small.exists()
    assert prepare.main([str(path), "--keep_work", "true"]) == 0
    assert kept.items() <= times(work / "documents", "source-*.json").items(), "not read again"
    assert prepare.main([str(recipe("whole", **changes))]) == 0
    assert made(small) == made(tmp_path / "out")


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_name_that_cannot_be_reached(environment, recipe, tmp_path):
    path = recipe(sources=[{"input": "nobody/nothing", "dataset_config": "en"}])
    environment = {"HF_HOME": str(tmp_path / "home"), **environment}
    done = run([sys.executable, "-m", "data_prep.prepare", path], env=environment)
    error = done.stderr.strip().split("\n")[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    start = "error: input nobody/nothing: the dataset (config en, split train) cannot be read: Couldn't"
    assert error.startswith(start) and "check input, dataset_config and dataset_split" in error


@pytest.mark.slow
def test_processes_and_kills_change_nothing(recipe, corpus, tmp_path):
    """kill -9 of the whole process group at random moments, with two processes that tokenise."""
    documents, folder = list(read_documents(corpus)), tmp_path / "rows"
    folder.mkdir()
    for part in range(3):
        pq.write_table(pa.table({"body": documents[part::3]}), folder / f"{part}.parquet", row_group_size=50)
    source = {"input": str(folder), "kind": "dataset", "text_column": "body"}
    path = recipe(sources=[source, {**source, "max_documents": 100}], tokenizer={"vocab_size": 300})
    kills = tmp_path / "kills"
    flags = ["--recipe", str(path), "--kills", "2", "--output_dir", str(kills), "--", "--num_proc", "2"]
    assert prepare_kills.main(flags) == 0
    result = json.loads((kills / "prepare_kills.json").read_text())
    assert len(result["kills"]) == 2 and result["different"] == [] and (kills / "disturbed" / "tokenizer").is_dir()
    assert prepare.main([str(path)]) == 0
    assert prepare_kills.differences(tmp_path / "out", kills / "disturbed") == []
    manifest = made(tmp_path / "out")[1]
    assert [source["documents"] for source in manifest["sources"]] == [400, 100]
    assert manifest["removed"]["duplicates"]["documents"] == 100
