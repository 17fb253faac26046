"""Files and folders that are complete or absent, checksums, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# Errors of the disk itself, which no other command line would avoid.
DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE})
# Where a folder was writable before, as that of a run, these say that the disk has become read-only.
WRITE_ERRNOS = DISK_ERRNOS | {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def open_atomic(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well: a reader sees the old file or the new one, never a part.

    `durable` waits until the disk has it, so that a power cut cannot lose both. OSError names `path`.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same file
    try:
        with open(aside, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
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


def publish_folder(staging: Path, target: Path) -> None:
    """Make what is in `staging` durable and rename it to `target`, which is then complete or absent.

    An older `target` is replaced only at the last moment, as `staging` with `.old` behind, and put back where the rename fails.
    """
    for path in (*staging.rglob("*"), staging):
        fsync(path)
    old = staging.with_name(f"{staging.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> AbstractContextManager[Any] | None:
    """Take the lock file `path`, to be held until the returned context ends; None where another process holds it.

    The system releases the lock of a killed process; the file stays.
    """
    from filelock import FileLock, Timeout

    try:
        return FileLock(path).acquire(blocking=False)
    except Timeout:
        return None
