"""Folders that are complete or absent: written aside, made durable, renamed; resume takes the newest complete checkpoint.

What a disk refuses ends the run in one line.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import WRITE_ERRNOS, publish_folder, sha256

_MANIFEST = "manifest.json"
_ROOM = ".room-for-final"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_PARTIAL = ".partial-"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what writing a checkpoint raises
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors writes in Rust
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container")


def disk_failure(error: BaseException) -> str | None:
    """Why a disk did not take what was written, in the words of the system; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := _OS_ERROR.search(str(error))):
        code = int(found.group(1))
    if code in WRITE_ERRNOS:
        return os.strerror(code)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER):
        return "the disk took a part of it"
    return None


def write_error(path: Path, reason: str, output_dir: Path) -> RunError:
    """The end of a run whose folder takes no more: what, why, what is left and how to go on."""
    there = next((folder for folder in (output_dir, *output_dir.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    newest = newest_checkpoint(output_dir)
    return RunError(
        f"output_dir: {path} could not be written ({reason}, {free / 1e6:.1f} MB free); make room there, then go on from "
        f"{newest or 'the beginning'} with --resume_from_checkpoint auto"
    )


def staging_folder(target: Path) -> Path:
    """The hidden neighbour in which `target` is written before it is complete; the same name on every rank."""
    return target.with_name(f"{_PARTIAL}{target.name}")


def publish(staging: Path, target: Path, manifest: dict[str, Any] | None = None) -> None:
    """Make `staging` durable and rename it to `target`, replacing an older one only at the last moment.

    With a `manifest` (a checkpoint), it is written beside the files with their sizes and SHA-256.
    """
    if manifest is not None:
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        listed = {
            str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        }
        text = json.dumps({**manifest, "files": listed}, indent=1) + "\n"
        (staging / _MANIFEST).write_text(text, encoding="utf-8")
    publish_folder(staging, target)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete checkpoint (every listed file there, with its size), else None."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
        complete = all((folder / name).stat().st_size == entry["bytes"] for name, entry in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def complete_manifest(folder: Path, *, checksums: bool = False) -> dict[str, Any]:
    """The manifest of a checkpoint; InputError where it is not complete, or with `checksums` where a file has changed."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            f"resume_from_checkpoint: {folder} is not a complete checkpoint; give another one, or 'auto' for the newest"
        )
    for name, entry in manifest["files"].items() if checksums else ():
        if sha256(folder / name) != entry["sha256"]:
            raise InputError(
                f"resume_from_checkpoint: {folder / name} does not match its checksum; delete {folder} and use an older one"
            )
    return manifest


def step_of(folder: Path) -> int:
    """The step in the name of a training checkpoint."""
    return int(folder.name.removeprefix("checkpoint-"))


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete training checkpoints of a run, oldest step first."""
    found = []
    for folder in output_dir.glob("checkpoint-*"):
        match = _CHECKPOINT.fullmatch(folder.name)
        if match and read_manifest(folder) is not None:
            found.append((int(match.group(1)), folder))
    return [folder for _, folder in sorted(found)]


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete training checkpoint."""
    return next(reversed(checkpoints(output_dir)), None)


def rotate(output_dir: Path, limit: int | None, *, before_save: bool = False) -> None:
    """Keep the newest `limit` complete checkpoints (all where None); the last complete one always stays.

    `before_save` makes room for one more, but only where the disk has none for another like the newest.
    """
    complete = checkpoints(output_dir)
    if limit is None or not complete:
        return
    if before_save:
        needed = sum(entry["bytes"] for entry in complete_manifest(complete[-1])["files"].values())
        if shutil.disk_usage(output_dir).free >= 1.1 * needed:
            return
        limit -= 1
    for folder in complete[: -max(limit, 1)]:
        retired = folder.with_name(f"{_PARTIAL}retired-{folder.name}")
        folder.rename(retired)  # first out of sight: a kill in the middle leaves no half checkpoint
        shutil.rmtree(retired, ignore_errors=True)


def discard(target: Path) -> None:
    """Delete what was written aside for `target`."""
    remove_partial(target.parent, f"{target.name}*")


def reserve_disk_space(output_dir: Path, size: int) -> None:
    """Keep `size` bytes of the disk for what is written last, in a file. RunError where there is no such room."""
    try:
        with open(output_dir / _ROOM, "wb") as room:
            if size > 0 and hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(room.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):  # file systems without it
            return
        release_disk_space(output_dir)
        raise write_error(output_dir / "final", os.strerror(error.errno or 0), output_dir) from error


def release_disk_space(output_dir: Path) -> None:
    """Give back what `reserve_disk_space` kept."""
    (output_dir / _ROOM).unlink(missing_ok=True)


def remove_partial(output_dir: Path, pattern: str = "*") -> None:
    """Delete the folders that killed jobs have left unfinished."""
    for folder in output_dir.glob(f"{_PARTIAL}{pattern}"):
        shutil.rmtree(folder, ignore_errors=True)
