"""The data folder as a whole: written aside and renamed, so that it is complete or absent."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder, publish_folder

FORMAT_VERSION = 1
_LIBRARIES = ("datasets", "numpy", "pyarrow", "tokenizers", "transformers")


def refuse_occupied(output: Path, overwrite: bool, what: str, mark: str) -> None:
    """InputError where `output` holds a `what` already (fix: overwrite), or something else that is not empty."""
    occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if occupied and not (output / mark).is_file():
        raise InputError(f"output_dir {output} exists and is no {what}; give another path")
    if occupied and not overwrite:
        raise InputError(f"output_dir {output} already holds a {what}; give another path or --overwrite")


@contextlib.contextmanager
def written_aside(output: Path, overwrite: bool, what: str, mark: str) -> Iterator[Path]:
    """Gives a new folder beside `output` that takes its place when the block ends well and vanishes when it does not.

    `mark` is the file by which an existing output is recognised as `what`. InputError as `refuse_occupied`."""
    refuse_occupied(output, overwrite, what, mark)
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    try:
        yield fresh_folder(partial)
        publish_folder(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path, content: dict[str, Any], command: str) -> None:
    """Writes manifest.json: `content` with the format version, the command, the time and the versions of what ran."""
    versions = {"python": platform.python_version()}
    versions.update({name: importlib.metadata.version(name) for name in _LIBRARIES})
    manifest = {
        "format_version": FORMAT_VERSION,
        **content,
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
