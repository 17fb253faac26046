"""What a run leaves: `predictions/<split>.json`, `model/`, and last, as the sign that it is finished, `result.json`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import write_atomic, write_json_atomic
from budget_trainer.glue.files import RESULT, RESULT_FORMAT
from budget_trainer.glue.scores import predict
from budget_trainer.glue.tasks import Task
from budget_trainer.training import run_folder
from budget_trainer.training.checkpoints import disk_failure

PREDICTIONS, MODEL = "predictions", "model"


def check_free(output_dir: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or holds a result that may not be replaced. Changes nothing."""
    run_folder.check_writable(output_dir)
    there = [name for name in (RESULT, PREDICTIONS, MODEL) if (output_dir / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"output_dir: {output_dir} already has {there[0]}; add --overwrite_output_dir to replace it, or give another "
            "folder"
        )


def clear(output_dir: Path) -> None:
    """Make the folder, and take away what an earlier run left of its result; nothing else in it is touched."""
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / RESULT).unlink(missing_ok=True)  # first: what is half gone is not finished
    for name in (PREDICTIONS, MODEL):
        shutil.rmtree(output_dir / name, ignore_errors=True)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, None where it is not finished or its predictions are not all there."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        complete = result["format"] == RESULT_FORMAT and all(
            (folder / path).is_file() for path in result["predictions"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if complete else None


def write_predictions(
    output_dir: Path, task: Task, split: str, logits: np.ndarray, references: np.ndarray | None
) -> str:
    """Write a split's outputs; returns the path inside of `output_dir`.

    `logits` [rows][classes] as the model gave them (STS-B: [rows][1], the score), `predictions` class numbers or scores,
    `label_names` in the order of the classes (empty for STS-B), `references` the labels of a dev split, null in test. Row i
    is row i of the split's official file. RunError where an output is not finite.
    """
    if not np.isfinite(logits).all():
        raise RunError(f"predictions: {task.name}, {split}, has some that are not finite; lower learning_rate")
    path = f"{PREDICTIONS}/{split}.json"
    (output_dir / PREDICTIONS).mkdir(exist_ok=True)
    predictions = predict(task, logits)
    content = {
        "task": task.name,
        "split": split,
        "rows": len(logits),
        "label_names": list(task.labels),
        "predictions": [float(p) for p in predictions] if task.regression else [int(p) for p in predictions],
        "references": None if references is None else references.tolist(),
        "logits": [[round(float(value), 6) for value in row] for row in logits],
    }
    write_atomic(output_dir / path, json.dumps(content) + "\n")
    return path


def write_result(output_dir: Path, result: dict[str, Any]) -> None:
    """The last file of a run, atomically."""
    write_json_atomic(output_dir / RESULT, {"format": RESULT_FORMAT, **result})


def told(error: Exception) -> Exception:
    """The error as a run on GLUE has to tell it: there is nothing to resume, the command is repeated."""
    reason = disk_failure(error) if isinstance(error, OSError) else None
    if reason is not None and isinstance(error, OSError):
        return RunError(f"{error.filename or 'a file'}: {reason}; mend that, then repeat the command")
    if not isinstance(error, RunError):
        return error
    text = str(error)
    for old in ("go on with --resume_from_checkpoint auto", "resume with --resume_from_checkpoint auto"):
        text = text.replace(old, "repeat the command")
    return type(error)(text)
