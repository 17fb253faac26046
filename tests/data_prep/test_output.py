"""Where the stages write: the path's own place, nothing of anybody else's, and never into what they read."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from budget_trainer.data.folder import DataFolder
from data_prep import blocks, docstrings, merge, prepare, split
from data_prep import tokenizer as tokenizing
from data_prep.cli import Output
from tests.conftest import words
from tests.data_prep.conftest import error_of


@pytest.fixture
def recipe(corpus, tokenizer, tmp_path):
    """Writes a recipe; returns its path as a list of words."""

    def write(**changes):
        content = {"sources": [str(corpus)], "tokenizer": str(tokenizer), "num_proc": 1, "validation_fraction": 0.1}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content | changes))
        return [str(tmp_path / "recipe.yaml")]

    return write


@pytest.mark.parametrize("name", ["tokenizer", "prepare", "split"])
def test_every_stage_writes_where_a_link_points_and_into_a_mount_point(
    prepared, corpus, recipe, tmp_path, monkeypatch, name
):
    main, argv, mark = {
        "tokenizer": (tokenizing.main, words({"input": corpus, "vocab_size": 200}), "tokenizer.json"),
        "prepare": (prepare.main, recipe(), "manifest.json"),
        "split": (split.main, words({"input": prepared().path, "num_shards": 2}), "manifest.json"),
    }[name]
    place, mount = tmp_path / "place", tmp_path / "disk" / "mount"
    (place / "big").mkdir(parents=True)
    (place / "out").symlink_to("big")
    assert main([*argv, "--output_dir", str(place / "out")]) == 0
    assert sorted(path.name for path in place.iterdir()) == ["big", "out"] and (place / "out").is_symlink()
    assert (place / "big" / mark).is_file()
    (mount / "lost+found").mkdir(parents=True)
    number = mount.stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mount)
    for more in ([], ["--overwrite", "true"] if name == "prepare" else ["--overwrite"]):
        assert main([*argv, "--output_dir", str(mount), *more]) == 0
        names = {path.name for path in mount.iterdir()}
        assert names == {path.name for path in (place / "big").iterdir()} | {"lost+found"}
        assert mount.stat().st_ino == number and [path.name for path in mount.parent.iterdir()] == ["mount"]


def test_folders_of_others_stay(recipe, tmp_path, capsys):
    """A name is no pattern; and nobody else's folder is taken for what a killed process has left."""
    others = ["data1.partial-77", "data[1].partial-77", "data[1].partial-notes", f"data[1].partial-{os.getpid()}"]
    for other in others:
        (tmp_path / other).mkdir()
        (tmp_path / other / "keep").touch()
    assert prepare.main(recipe(output_dir=str(tmp_path / "data[1]"))) == 0
    DataFolder.open(tmp_path / "data[1]")
    (tmp_path / "out.work" / "documents").mkdir(parents=True)
    (tmp_path / "out.work" / "documents" / "mine").touch()
    assert "out.work, where the work is to be done" in error_of(
        prepare.main, recipe(output_dir=str(tmp_path / "out")), capsys
    )
    assert (tmp_path / "out.work" / "documents" / "mine").exists()
    assert all((tmp_path / other / "keep").exists() for other in others)


def test_what_is_no_part_of_it_is_not_replaced(prepared, corpus, tokenizer, tmp_path, capsys):
    """A model's folder holds a tokenizer.json, a checkpoint's a manifest.json."""
    shutil.copytree(tokenizer, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").touch()
    command = [*words({"input": corpus, "vocab_size": 200, "output_dir": tmp_path / "model"}), "--overwrite"]
    error = error_of(tokenizing.main, command, capsys)
    assert "holds model.safetensors, which no tokenizer has; move it away, or give another path" in error
    shutil.copytree(prepared().path, tmp_path / "data")
    shutil.copy(corpus, tmp_path / "data" / "corpus.txt")
    merging = ["--input", str(tmp_path / "data" / "corpus.txt"), "--tokenizer", str(tokenizer)]
    for argv, message in (
        ([*merging, "--output_dir", str(tmp_path / "data"), "--overwrite"], "overlap"),
        (
            [*words({"input": corpus, "tokenizer": tokenizer, "output_dir": tmp_path / "data"}), "--overwrite"],
            "holds corp",
        ),
        (["--input", str(tmp_path / "data"), *merging[2:], "--output_dir", str(tmp_path / "data" / "new")], "overlap"),
    ):
        assert message in error_of(blocks.main, argv, capsys)
    assert (tmp_path / "data" / "corpus.txt").exists() and (tmp_path / "model" / "model.safetensors").exists()
    assert not (tmp_path / "data" / "new").exists()


def test_what_was_made_of_a_corpus_is_no_part_of_it(corpus, tokenizer, recipe, tmp_path, capsys):
    """Output below the input: no later run, not even the same one, reads what an earlier one has left there."""
    (tmp_path / "corpus").mkdir()
    shutil.copy(corpus, tmp_path / "corpus" / "a.txt")
    shutil.copytree(tokenizer, tmp_path / "corpus" / "tokenizer")
    flags = {"input": tmp_path / "corpus", "tokenizer": tmp_path / "corpus" / "tokenizer", "num_proc": 1}
    command = [*words({**flags, "output_dir": tmp_path / "corpus" / "blocks"}), "--overwrite"]
    found = set()
    for _ in range(2):
        assert blocks.main(command) == 0
        found.add(DataFolder.open(tmp_path / "corpus" / "blocks").fingerprint)
    output = {"output_dir": str(tmp_path / "corpus" / "prepared"), "overwrite": True, "validation_fraction": 0.01}
    for keep in (True, False):
        assert prepare.main(recipe(sources=[str(tmp_path / "corpus")], keep_work=keep, **output)) == 0
        found.add(DataFolder.open(tmp_path / "corpus" / "prepared").fingerprint)
    assert len(found) == 1 and "nothing has changed" in capsys.readouterr().out


def test_the_recipe_s_folder_is_not_the_output(recipe, tmp_path, capsys):
    for output in (tmp_path, tmp_path / ".." / tmp_path.name):
        assert "overlap" in error_of(prepare.main, recipe(output_dir=str(output)), capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "place, message",
    [
        ("file", "exists and is no data folder"),
        ("file/x", "is a file; give a folder"),
        ("/proc/none/x", "read-only for this user|No such file"),
        ("closed/x", "is read-only for this user; give a folder"),
    ],
)
def test_what_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch, place, message):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name not in ("closed", "proc") and access(path, mode)
    )
    with pytest.raises(ValueError, match=message), Output(tmp_path / place, False).new():
        raise AssertionError("the work has begun")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "file"]


def test_a_failure_leaves_no_folder(tmp_path, monkeypatch, capsys, corpus):
    monkeypatch.chdir(tmp_path)
    for main, argv in (
        (docstrings.main, ["--packages", "/nope", "--output_file", "a/b/x.txt"]),
        (blocks.main, ["--input", corpus, "--tokenizer", "./none", "--output_dir", "a/b/out"]),
        (merge.main, ["--input", "none", "no", "--output_dir", "a/b/"]),
    ):
        error_of(main, argv, capsys)
        assert not list(tmp_path.iterdir())


def test_sigterm_leaves_no_folder(tmp_path, monkeypatch, corpus, tokenizer):
    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("data_prep.blocks.token_groups", killed)
    before = signal.getsignal(signal.SIGTERM)
    argv = ["--input", corpus, "--tokenizer", tokenizer, "--output_dir", tmp_path / "a" / "out"]
    assert blocks.main(list(map(str, argv))) == 130 and not (tmp_path / "a").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_names_of_all_sorts(prepared, tmp_path, monkeypatch, capsys):
    """Spaces, line ends, patterns, a slash at the end, `..`, `.`: all are paths. Arrow opens no name that is not UTF-8."""
    source = tmp_path / "of [a] b?\n é"
    shutil.copytree(prepared().path, source)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for place in ("a b/c\nd/", "here/../y", "[1]*?", "%20#", "-x", "n" * 250):
        assert split.main(["--input", str(source), "--num_shards", "3", f"--output_dir={place}"]) == 0
        assert DataFolder.open(tmp_path / place).fingerprint == DataFolder.open(source).fingerprint
    latin = ["--input", str(source), "--num_shards", "2", "--output_dir", os.fsdecode(b"caf\xe9")]
    assert "is not UTF-8 in this locale; give another name" in error_of(split.main, latin, capsys)
    monkeypatch.chdir(tmp_path / "here")
    assert split.main(["--input", str(source), "--num_shards", "3", "--output_dir", "."]) == 0
    assert Path("manifest.json").is_file(), "the folder that we stand in is written into"
    assert not [path for path in tmp_path.rglob("*") if re.search("partial|old", path.name)]


def test_a_home_and_variables_are_expanded(recipe, corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, path in (("DATA", corpus.parent), ("TOK", tokenizer.parent)):
        monkeypatch.setenv(name, str(path))
    paths = {"tokenizer": "$TOK/tokenizer", "validation_text": "${DATA}/corpus.txt", "output_dir": "~/prepared"}
    assert prepare.main(recipe(sources=["$DATA/corpus.txt"], **paths)) == 0
    assert DataFolder.open(tmp_path / "home" / "prepared").manifest["sources"][0]["path"] == str(corpus)
    assert prepare.main(recipe(sources=["$DATA/corpus.txt"], **paths | {"output_dir": "$NOPE/x"})) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "recipe.yaml"]


def test_who_was_faster_is_not_replaced(tmp_path):
    with (
        pytest.raises(ValueError, match="exists and is no data folder"),
        Output(tmp_path / "out", False).new() as folder,
    ):
        (folder / "manifest.json").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "theirs").exists()
