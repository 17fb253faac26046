"""Files and folders that are complete or absent, checksums, locks; and the one style of all pictures."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.core import io
from budget_trainer.core.errors import InputError, NoLocks
from budget_trainer.core.output import png_figure
from budget_trainer.training import run_folder
from budget_trainer.training.run_folder import RunFolder


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


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "place", ["folder", "empty", "link", "dangling", "mount", "busy", "moved", "parent", "here", "hidden"]
)
def test_a_folder_lands_where_its_path_points(tmp_path, monkeypatch, place):
    """Links stay links; what cannot be renamed keeps its place, and what is hidden in it."""
    target = real = tmp_path / "x"
    if place in ("link", "dangling"):
        real = tmp_path / "big" / "x"
        real.parent.mkdir()
        target.symlink_to("big/x")
    if place not in ("dangling", "empty"):
        written(real, "old")
        (real / "manifest.json").write_text("old")
        (real / "older").mkdir()
    if place == "hidden":
        (real / ".git").mkdir()
        (real / ".git" / "HEAD").write_text("kept")
    before = real.stat().st_ino if real.exists() else None
    if place == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == real)
    if place == "here":
        monkeypatch.chdir(real)
    if place == "parent":
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    rename, refused = os.rename, {"busy": errno.EBUSY, "moved": errno.EXDEV}

    def refuse(path, other):
        if real in (Path(path), Path(other)) and place in refused:
            raise OSError(refused[place], "no")
        rename(path, other)

    monkeypatch.setattr(os, "rename", refuse)
    staging = written(tmp_path / ".partial-x", "new")
    (staging / "manifest.json").write_text("new")
    io.publish_folder(staging, target)
    new = {"sub/file": "new", "manifest.json": "new"}
    assert contents(real) == new | ({".git/HEAD": "kept"} if place == "hidden" else {})
    assert not (real / "older").exists() and target.is_symlink() == (real != target)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["big", "x"] if real != target else ["x"])
    if place in ("mount", "busy", "moved", "parent", "here", "hidden"):
        assert real.stat().st_ino == before


def test_a_folder_that_keeps_its_place_is_put_back_where_that_fails(tmp_path, monkeypatch):
    target, staging = written(tmp_path / "x", "old"), written(tmp_path / ".partial-x", "new")
    (staging / "zero").write_text("")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == target)
    move = shutil.move

    def full(path, other):
        if path.name == "zero":
            raise OSError(errno.ENOSPC, "No space left on device")
        move(path, other)

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(OSError, match="No space"):
        io.publish_folder(staging, target)
    assert contents(target) == {"sub/file": "old"} and len(list(target.iterdir())) == 1


def test_a_file_is_written_where_its_path_points(tmp_path):
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):  # a dangling one, and one to a file
        io.write_atomic(tmp_path / "link", "text")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "text"
    (tmp_path / "null").symlink_to(os.devnull)
    io.write_atomic(tmp_path / "null", "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and len(list(tmp_path.iterdir())) == 3


def test_parents_go_again_where_nothing_came_of_them(tmp_path):
    for left in (False, True):
        with pytest.raises(ValueError), io.made_parents(tmp_path / "a" / "b" / "c"):
            (tmp_path / "a" / "b" / "c").touch() if left else None
            raise ValueError
        assert (tmp_path / "a").exists() == left


@pytest.mark.parametrize("place", ["file", "file/below/it"])
def test_what_can_be_no_folder_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="^output_dir: .*file is a file; give a folder"):
        io.check_writable(tmp_path / place)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("~", "HOME"),
        ("~/x y/z", "HOME/x y/z"),
        ("$DATA/a.txt", "/d/a.txt"),
        ("${DATA}s/$SUB", "/ds/s"),
        ("$TILDE/x", "HOME/x"),
        ("out/$SUB/~", "out/s/~"),
        ("cost$5", "cost$5"),
        ("a$NOPE.txt", "a$NOPE.txt"),  # a file of that name is there
        ("dir$NOPE/new/x", "dir$NOPE/new/x"),  # as its folder
        ("dir$NOPE/$SUB", "dir$NOPE/s"),
        ("./~/x", "CWD/~/x"),
        ("loop", "is a link that leads back to itself; give another path"),
        ("loop/x", "leads back to itself"),
        ("dangling", "dangling"),
        ("org/name", "org/name"),
        ("data/[v1]*?#%20\n", "data/[v1]*?#%20\n"),
        ("$NOPE/x", "'$NOPE/x' names the variable NOPE, which is not set; set it"),
        ("$EMPTY/x", "the variable EMPTY"),
        ("${NO PE}", "the variable NO PE"),
        ("~no_such_user/x", "home of a user who is not known"),
        (" ", "an empty path; give one"),
        (f"a/{'é' * 128}", "a name of more than 255 bytes"),
    ],
)
def test_a_path_is_what_a_shell_would_make_of_it(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    for name, value in (("HOME", "/home/me"), ("DATA", "/d"), ("SUB", "s"), ("TILDE", "~"), ("EMPTY", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOPE", raising=False)
    (tmp_path / "a$NOPE.txt").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("none/x")
    (tmp_path / "dir$NOPE").mkdir()
    try:
        found = io.user_path(text, "field")
    except InputError as error:
        assert str(error).startswith("field: ") and expected in str(error)
    else:
        assert found == expected.replace("HOME", "/home/me").replace("CWD", str(tmp_path))


def test_a_lock_file_of_another_user_gives_way_to_one_of_our_own(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    path.write_text("process 1 on other since then")
    theirs = path.stat().st_ino

    def refuse(name, mode, **given):
        if mode != "rb" and os.path.exists(name) and os.stat(name).st_ino == theirs:
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return open(name, mode, **given)

    monkeypatch.setattr(io, "open", refuse, raising=False)
    with open(path) as there:
        fcntl.flock(there, fcntl.LOCK_EX)
        assert io.try_lock(path) is None, "it is held all the same"
    with io.hold_folder(tmp_path), pytest.raises(InputError, match=rf"in use by process {os.getpid()} on"):
        with io.hold_folder(tmp_path):
            pass


UNKNOWN = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF]


@pytest.mark.parametrize("number", [*UNKNOWN, errno.EACCES, errno.EISDIR, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_what_a_file_system_cannot_make_durable_is_written_all_the_same(tmp_path, monkeypatch, call, number):
    real, passed = getattr(os, call), [*UNKNOWN, errno.EACCES, errno.EISDIR] if call == "open" else UNKNOWN

    def refuse(where, *rest, **given):
        if call == "fsync" or os.path.isdir(where):
            raise OSError(number, os.strerror(number), where)
        return real(where, *rest, **given)

    staging = written(tmp_path / "staging", "text")
    monkeypatch.setattr(os, call, refuse)
    if number in passed:
        io.publish_folder(staging, tmp_path / "x")
        io.write_atomic(tmp_path / "y", "text")
        assert (tmp_path / "x" / "sub" / "file").read_text() == (tmp_path / "y").read_text() == "text"
    else:
        with pytest.raises(OSError) as failed:
            io.publish_folder(staging, tmp_path / "x")
        assert failed.value.errno == number and not (tmp_path / "x").exists()


def test_a_lock_is_one_process_s_until_that_ends(tmp_path):
    """Also where a child that it has forked, as a loader's worker, lives on."""
    folder = tmp_path / "new" / "folder"
    code = """import os, sys, time; from pathlib import Path; from budget_trainer.core.io import hold_folder
with hold_folder(Path(sys.argv[1])):
    os.write(1, b"%d\\n" % os.fork()); time.sleep(99)"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    said = {holder.stdout.readline().strip(), holder.stdout.readline().strip()}
    (child,) = said - {"0"}
    assert io.try_lock(folder / ".lock") is None
    with pytest.raises(InputError) as refused, io.hold_folder(folder):
        pass
    who = rf"process {holder.pid} on {re.escape(socket.gethostname())} since 2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{{4}}"
    assert re.fullmatch(
        rf"output_dir: {folder} is in use by {who}; wait for it, or give another folder", str(refused.value)
    )
    holder.kill()
    holder.wait()
    with io.hold_folder(folder):
        assert Path(f"/proc/{child}").exists() and io.try_lock(folder / ".lock") is None
    os.kill(int(child), 9)
    holder.stdout.close()
    assert not list(folder.iterdir())


def test_a_lock_that_its_holder_deletes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    real, taken = fcntl.flock, []

    def slow(descriptor, how):  # between opening the file and locking it
        if not taken:
            taken.append(path.unlink())
        real(descriptor, how)

    path = tmp_path / "lock"
    monkeypatch.setattr(fcntl, "flock", slow)
    with io.try_lock(path):
        assert path.exists() and io.try_lock(path) is None


def test_what_a_killed_job_has_left_goes(tmp_path):
    left = [
        "checkpoint-3",
        "checkpoint-3.trainer",
        "checkpoint-3.old",
        "finetune-12.5",
        "finetune-5",
        "final",
        "rehearsal",
    ]
    for name in [*left, "notes", "checkpoint-3.notes"]:
        (tmp_path / f".partial-{name}").mkdir()
    run_folder.discard(tmp_path / "checkpoint-3")
    assert not (tmp_path / ".partial-checkpoint-3.trainer").exists()
    RunFolder(tmp_path).begin({}, 1)
    assert {path.name for path in tmp_path.iterdir()} == {".partial-notes", ".partial-checkpoint-3.notes", "run.json"}


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/nowhere/x")])
def test_what_is_no_lock_file_is_named(tmp_path, make):
    make(tmp_path / ".lock")
    with pytest.raises(InputError, match=rf"^output_dir: {tmp_path}/.lock is no file that can be locked; delete it$"):
        io.try_lock(tmp_path / ".lock")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EACCES, errno.EAGAIN, errno.EIO])
def test_only_would_block_means_that_somebody_holds_it(tmp_path, monkeypatch, caplog, number):
    def refuse(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(io, "_MOST_TRIES", 2)
    run, alone = RunFolder(tmp_path / "run"), ControlChannel()
    if number == errno.EAGAIN:
        assert io.try_lock(tmp_path / "x" / "lock") is None
        with pytest.raises(InputError, match="is in use by another process"), run.owned(alone):
            pass
        return
    if number == errno.EIO:
        with pytest.raises(OSError, match=r"\[Errno 5\] .*/run/\.lock"), run.owned(alone):
            pass
        return
    why = f"the file system of {tmp_path / 'x'} has no locks ({os.strerror(number)})"
    with pytest.raises(NoLocks) as refused:
        io.try_lock(tmp_path / "x" / "lock", "storage")
    assert str(refused.value) == f"storage: {why}; give a place on another disk"
    assert not list((tmp_path / "x").iterdir())
    with pytest.raises(ZeroDivisionError), run.owned(alone):  # one run works as well without
        assert not list(run.path.iterdir())
        raise ZeroDivisionError
    assert "has no locks" in caplog.text and "a second run in this folder would not be noticed" in caplog.text
    assert not run.path.exists(), "what it made for nothing is gone"


def test_equal_pictures_have_equal_bytes():
    pictures = []
    for _ in range(2):
        with png_figure(3, 2) as (figure, png):
            figure.subplots().plot([1, 2], [3, 4])
        pictures.append(png.getvalue())
    assert pictures[0] == pictures[1] and pictures[0].startswith(b"\x89PNG")
