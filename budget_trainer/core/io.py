"""Files and folders that are complete or absent, checksums, and locks between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

from budget_trainer.core.errors import InputError, NoLocks

# Errors of the disk itself, which no other command line would avoid.
DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE})
# Where a folder was writable before, as that of a run, these say that the disk has become read-only.
WRITE_ERRNOS = DISK_ERRNOS | {errno.EROFS, errno.EACCES, errno.EPERM}
# A file system that cannot be asked to make a file or a folder durable (network disks, FUSE) answers so.
_NOT_SYNCED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.ENOTTY})
_MOST_TRIES = 100


@contextmanager
def open_atomic(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well: a reader sees the old file or the new one, never a part.

    `durable` waits until the disk has it, so that a power cut cannot lose both. OSError names `path`. Of a link what it
    points to is written; a device or a pipe is written as it is.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # renamed over it, a file would take the place of /dev/null
        with open(path, "wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    try:
        with open(aside, "wb") as file:
            yield file
            if durable:
                file.flush()
                _fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with suppress(OSError):  # a disk that takes nothing says so of this too
            aside.unlink()
        if isinstance(error, OSError) and error.filename in (None, aside, str(aside)):
            error.filename = str(path)
        raise


def write_atomic(path: str | os.PathLike[str], content: str | bytes, *, durable: bool = True) -> None:
    """Write a whole file as `open_atomic` does; text is UTF-8."""
    with open_atomic(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json_atomic(path: str | os.PathLike[str], value: Any, *, durable: bool = True) -> None:
    """`write_atomic` of `value` as indented JSON, in which NaN and infinity are null (see `json_types`)."""
    write_atomic(path, json.dumps(json_types(value), indent=2, allow_nan=False) + "\n", durable=durable)


def json_types(value: Any) -> Any:
    """`value` in the types of JSON: NaN and infinity as None, 0-d arrays as numbers, other objects as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(key): json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_types(item) for item in value]
    if getattr(value, "ndim", None) == 0:
        return json_types(value.item())
    return str(value)


def sha256(content: str | bytes | Path) -> str:
    """Hexadecimal SHA-256 of a text, of bytes, or of a file (read in pieces)."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def fresh_folder(folder: Path) -> Path:
    """An empty `folder`, whatever a killed process has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish_folder(staging: Path, target: Path, last: str = "manifest.json") -> None:
    """Make what is in `staging` durable and rename it to `target`, which is then complete or absent.

    An older `target` is replaced only at the last moment, as `staging` with `.old` behind, and put back where the rename fails.
    Of a link what it points to is written. A `target` that keeps its place, or is on another disk, is written into: the
    file `last` leaves it first and comes at the end; hidden entries stay.
    """
    target = Path(os.path.realpath(target))
    for path in (*staging.rglob("*"), staging):
        fsync(path)
    old = staging.with_name(f"{staging.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if keeps_its_place(target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
        if target.exists():
            target.rename(old)
        try:
            staging.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        if error.errno not in _NOT_RENAMED:
            raise
        target.mkdir(exist_ok=True)
        _replace_content(staging, target, last)
    else:
        shutil.rmtree(old, ignore_errors=True)
        fsync(target.parent)


# A mount point, another disk, a parent that is not ours.
_NOT_RENAMED = frozenset({errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM})


def keeps_its_place(folder: Path) -> bool:
    """Whether `folder` is there and cannot or must not be renamed: a mount point, the one we stand in, one whose parent takes
    no new names, or one that holds hidden entries, which are not ours."""
    return folder.is_dir() and (
        os.path.ismount(folder)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
        or _stands_in(folder)
        or any(is_hidden(path) for path in folder.iterdir())
    )


def _stands_in(folder: Path) -> bool:
    with suppress(FileNotFoundError):  # where we stand was deleted
        return Path.cwd().is_relative_to(folder)
    return False


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is none of those that a command makes or reads: `.name`, and lost+found of a disk."""
    return path.name.startswith(".") or path.name == "lost+found"


def _replace_content(staging: Path, target: Path, last: str) -> None:
    """What is in `staging` in the place of what is in `target`, entry by entry; what was there is put back where that fails."""
    old, new = target / f".{staging.name}.old", []
    old.mkdir()
    try:
        for path in sorted(target.iterdir(), key=lambda path: path.name != last):
            if not is_hidden(path):
                path.rename(old / path.name)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == last):
            new.append(target / path.name)
            shutil.move(path, new[-1])  # copies to another disk
            for written in (new[-1], *new[-1].rglob("*")):
                fsync(written)
        fsync(target)
    except BaseException:
        for path in new:
            with suppress(OSError):  # what was there goes back all the same
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for path in old.iterdir():
            path.rename(target / path.name)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
    staging.rmdir()


@contextmanager
def made_parents(path: Path) -> Iterator[None]:
    """The folders that lead to `path`; those that it made and that are still empty go again where the block fails."""
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise


def check_writable(folder: Path, field: str = "output_dir") -> None:
    """Refuse a folder that this process can neither write in nor make, before any work is done for it. Writes nothing."""
    there = Path(existing_part(os.path.realpath(folder)))
    if not there.is_dir():
        raise InputError(f"{field}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{field}: {there} is read-only for this user; give a folder that can be written")


_NAME_BYTES = 255  # the most that file systems take
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_]\w*))")


def existing_part(path: str) -> str:
    """The longest beginning of `path` that is there under this very name, so no pattern and no variable; "" where none is."""
    while path and not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def user_path(text: str, field: str) -> str:
    """The path that a person means by `text`: `~` and `$VAR` as a shell takes them, but for what is there under its own name.

    InputError naming `field`: nothing, no UTF-8 (Arrow opens no such file), a name that is too long, a user or a variable that
    is not known, a circle.
    """
    if not text.strip():
        raise InputError(f"{field}: an empty path; give one")
    if text != text.encode(errors="replace").decode():
        raise InputError(f"{field}: {text!r} is not UTF-8 in this locale; give another name, or set LC_ALL=C.UTF-8")
    if any(len(name.encode()) > _NAME_BYTES for name in text.split("/")):
        raise InputError(f"{field}: a name of more than {_NAME_BYTES} bytes in {text[:50]!r}...; give a shorter path")
    path = os.path.expanduser(text)
    there = existing_part(path)

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name or ""):
            what = f"{text!r} names the variable {name}, which is not set"
            raise InputError(f"{field}: {what}; set it, or write the path out")
        return os.environ[name]

    path = os.path.expanduser(there + _VARIABLE.sub(value, path[len(there) :]))
    if re.match(r"~[^/]*/|~$", path) and not os.path.lexists(path.split("/")[0]):
        raise InputError(f"{field}: {text!r} names the home of a user who is not known; write the path out")
    if os.path.islink(existing_part(os.path.realpath(path))):
        raise InputError(f"{field}: {text!r} is a link that leads back to itself; give another path")
    return os.path.abspath(path) if os.path.normpath(path).startswith("~") else path  # ./~ is no home, for nobody


def fsync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder; nothing where the file system cannot be asked for that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and error.errno in _NOT_SYNCED | {errno.EACCES, errno.EPERM, errno.EISDIR}:
            return  # some take a folder for nothing that can be opened
        raise
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise


class Lock:
    """A locked file, this process's until `release` or the end of a `with` block; made by `try_lock`."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        _locks.add(self)

    @property
    def descriptor(self) -> int:
        """A child process that inherits it keeps the lock until it ends, whatever happens to this process."""
        return self._file.fileno()

    def release(self) -> None:
        """Let go of it, without taking it from a child that has inherited it."""
        self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


_locks: WeakSet[Lock] = WeakSet()


def _forget_locks() -> None:
    for lock in list(_locks):
        lock.release()


# A loader's worker that outlives its killed parent for some seconds would keep the parent's locks.
os.register_at_fork(after_in_child=_forget_locks)


def try_lock(path: Path, field: str = "output_dir") -> Lock | None:
    """Take the lock file `path`, whose folder is made where there is none; None where another process holds it.

    The system releases the lock of a killed process; the file stays, with a line that says who took it last. Raises
    NoLocks, which begins with `field`, where the file system knows no locks.
    """
    for _ in range(_MOST_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(
            FileNotFoundError, IsADirectoryError
        ):  # the folder or the file was just deleted by its last holder
            try:
                lock = Lock(open(path, "ab+", buffering=0))
            except PermissionError:
                if not path.exists() or not os.access(path, os.R_OK):
                    raise
                lock = Lock(open(path, "rb", buffering=0))  # another user's
            try:
                fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.release()
                return None
            except OSError as error:
                lock.release()
                if error.errno in DISK_ERRNOS:
                    raise OSError(error.errno, error.strerror, str(path)) from None
                if not path.stat().st_size:  # made here, and of no use
                    path.unlink()
                what = f"the file system of {path.parent} has no locks ({error.strerror})"
                raise NoLocks(f"{field}: {what}; give a place on another disk") from None
            if os.path.samestat(os.fstat(lock.descriptor), path.stat()):
                if not lock._file.writable():
                    with suppress(PermissionError):
                        path.unlink()
                        continue  # with one that says who holds it
                begin = time.strftime("%Y-%m-%d %H:%M:%S %z")
                with suppress(OSError):  # a full disk, a file of another user
                    os.ftruncate(lock.descriptor, 0)
                    os.write(
                        lock.descriptor, f"process {os.getpid()} on {socket.gethostname()} since {begin}".encode()
                    )
                return lock
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{field}: {path} is no file that can be locked; delete it")
    return None


@contextmanager
def hold_folder(folder: Path, keep: bool = False) -> Iterator[None]:
    """Hold `folder`, which is made where there is none, by the file `.lock` in it; that goes at the end, or stays to `keep`.

    Raises:
        InputError: another process holds it; the line names its host and number.
        NoLocks: the file system knows no locks.
    """
    path = Path(os.path.realpath(folder)) / ".lock"
    if (lock := try_lock(path)) is None:
        raise InputError(f"output_dir: {folder} is in use by {_holder(path)}; wait for it, or give another folder")
    with lock:
        try:
            yield
        finally:
            if not keep:
                with suppress(OSError):
                    path.unlink()


def _holder(path: Path) -> str:
    for _ in range(_MOST_TRIES):
        with suppress(OSError):
            if text := path.read_text("utf-8", "replace"):
                return text
        time.sleep(0.01)  # between taking the lock and saying so
    return "another process"
