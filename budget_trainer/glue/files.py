"""The files of a run and of a suite by name; and writing one so that a reader never sees a part. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from budget_trainer.core.errors import RunError

RESULT, RUNS_FILE = "result.json", "glue_runs.json"
RESULT_FORMAT, RUNS_FORMAT = 1, 1  # raise one when what is in the file comes to mean something else


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` aside and rename it; RunError where the disk does not take it, and the old file stays."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may write the same report
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written ({error.strerror}); what was there stays") from error
