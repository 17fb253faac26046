"""Files and folders that are complete or absent, checksums, locks; and the one style of all pictures."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from budget_trainer.core import io
from budget_trainer.core.output import png_figure


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_as_a_whole(tmp_path, durable):
    path = tmp_path / "file"
    path.write_bytes(b"something longer, from before")
    for content in ("ä\n", b"\0\xff"):
        io.write_atomic(path, content, durable=durable)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert io.sha256(path) == io.sha256(content) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, io.open_atomic(path) as file:
        file.write(b"new")
        raise error
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    if isinstance(error, OSError):
        assert raised.value.filename == str(path)
        with pytest.raises(FileNotFoundError, match="no/file"):
            io.write_json_atomic(tmp_path / "no" / "file", {})


def test_json_has_numbers_null_and_text(tmp_path):
    for value, expected in (
        ([math.nan, math.inf, -math.inf, 0.5], [None, None, None, 0.5]),
        ((np.float32(0.5), np.int64(3), np.array(2.0), np.float64("nan")), [0.5, 3, 2.0, None]),
        ({1: Path("x"), "b": True, "c": None, "d": {"e"}}, {"1": "x", "b": True, "c": None, "d": ["e"]}),
    ):
        io.write_json_atomic(tmp_path / "x.json", value)
        assert json.loads((tmp_path / "x.json").read_text()) == expected == io.json_types(value)


def written(folder, text):
    (io.fresh_folder(folder) / "sub").mkdir()
    (folder / "sub" / "file").write_text(text)
    return folder


def test_a_folder_takes_its_place_and_that_of_an_older_one(tmp_path):
    staging, target = tmp_path / ".partial-x", tmp_path / "x"
    for text in ("one", "two"):
        (staging / "left by a kill").mkdir(parents=True)
        io.publish_folder(written(staging, text), target)
        assert (target / "sub" / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["x"] and len(list(target.iterdir())) == 1


def test_a_folder_that_cannot_be_renamed_leaves_the_older_one(tmp_path):
    target = written(tmp_path / "x", "old")
    staging = written(tmp_path / ".partial-x", "new")
    (tmp_path / ".partial-x.old").write_text("a file where the older folder would wait")
    with pytest.raises(OSError):
        io.publish_folder(staging, target)
    assert (target / "sub" / "file").read_text() == "old"


def test_a_lock_is_one_process_s_until_that_ends(tmp_path):
    path = tmp_path / "lock"
    code = "import sys; from budget_trainer.core.io import try_lock; sys.exit(try_lock(sys.argv[1]) is None)"

    def other():
        return subprocess.run([sys.executable, "-c", code, str(path)]).returncode

    with io.try_lock(path):
        assert io.try_lock(path) is None and other() == 1
    assert other() == other() == 0, "released by its holder, and by one that ended"


def test_equal_pictures_have_equal_bytes():
    pictures = []
    for _ in range(2):
        with png_figure(3, 2) as (figure, png):
            figure.subplots().plot([1, 2], [3, 4])
        pictures.append(png.getvalue())
    assert pictures[0] == pictures[1] and pictures[0].startswith(b"\x89PNG")
