"""The leaderboard's files: eleven TSVs of test predictions, and `glue_submission.zip` of them. Standard library only.

Of each task the run whose dev score is the median over the seeds is submitted (`TaskResult.median_run`): choosing the best
seed would report a higher dev score than the leaderboard can confirm. AX is answered by MNLI's run. The leaderboard wants all
eleven files in one flat zip. Where some are missing there is no zip: the others are in `submission/`, and
`submission_missing.txt` says what is missing and why.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic
from budget_trainer.glue.results import Suite, read_object
from budget_trainer.glue.tasks import SUBMISSION_FILES, Split, Task

FOLDER, ZIP, _MISSING = "submission", "glue_submission.zip", "submission_missing.txt"
HEADER = "index\tprediction"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the earliest that the format knows


def write_submission(suite: Suite, output_dir: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the files of all test splits that have official predictions, and the zip where these are all.

    Returns what was written: whether it is `complete`, the `files`, and why each other is `missing`. Made anew from the
    results each time, with the same bytes from the same results. InputError for predictions that are damaged, and where an
    older complete zip would stand beside an incomplete submission (with `overwrite` it goes).
    """
    found = {name: _tsv(suite, task, split) for name, (task, split) in SUBMISSION_FILES.items()}
    contents = {name: tsv for name, tsv in found.items() if isinstance(tsv, bytes)}
    missing = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    archive = output_dir / ZIP
    if missing and archive.exists() and not overwrite:
        lack = f"a complete submission of earlier results, these lack {', '.join(missing)}"
        raise InputError(f"{archive}: {lack}; move it away, or add --overwrite_output_dir")
    folder = output_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        (folder / name).unlink(missing_ok=True)  # of earlier results
    for name, content in contents.items():
        write_atomic(folder / name, content)
    if missing:
        archive.unlink(missing_ok=True)
        lines = [f"{len(contents)} of {len(found)} files for the GLUE leaderboard are in {FOLDER}/."]
        lines += [f"There is no {ZIP}: the leaderboard takes all of them together. Missing:"]
        lines += [f"  {name}: {reason}" for name, reason in missing.items()]
        write_atomic(output_dir / _MISSING, "\n".join(lines) + "\n")
    else:
        write_atomic(archive, _zip_bytes(contents))
        (output_dir / _MISSING).unlink(missing_ok=True)
    return {"complete": not missing, "files": list(contents), "missing": missing}


def _tsv(suite: Suite, task: Task, split: Split) -> bytes | str:
    """One file of the leaderboard, index and prediction of every row of the run that is submitted; or why there is none.

    Scores are clipped to 0..5 and given with 3 decimals; classes are names where the leaderboard wants words, else 0 and 1.
    """
    owner = task.shared or task.name
    result = suite.scored.get(owner)
    if result is None:
        return suite.unscored.get(owner, f"{owner} was not trained")
    if not result.dev:
        return f"{owner} has no dev score that could choose a run"
    run = result.median_run
    if split.name not in run.predictions:
        return f"{owner} has no predictions of {split.name}; add {split.files[0]} and run it again"
    found = _read_predictions(suite.folder / run.folder / run.predictions[split.name], task)
    if len(found) != split.rows:
        return f"{len(found):,} rows were predicted, the official file has {split.rows:,}"
    if task.regression:
        words = [f"{min(5.0, max(0.0, value)):.3f}" for value in found]
    else:
        words = [task.submission_words[int(value)] for value in found]
    return ("\n".join([HEADER, *(f"{row}\t{word}" for row, word in enumerate(words))]) + "\n").encode()


def _read_predictions(path: Path, task: Task) -> list[int] | list[float]:
    """The class numbers, or scores, in a run's `predictions/<split>.json`, in the order of the official file."""
    again = "run the task again"
    content = read_object(path, again)
    names, found = content.get("label_names"), content.get("predictions")
    if names != list(task.labels) or not isinstance(found, list):
        labels = f"its labels are {names}, not {list(task.labels)}"
        raise InputError(f"{path}: no predictions of {task.name} ({labels}); {again}")
    for row, value in enumerate(found):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not (task.regression or value in range(len(task.labels))):
            raise InputError(f"{path}: row {row} has the prediction {value!r}; {again}")
    return list(found)


def _zip_bytes(contents: dict[str, bytes]) -> bytes:
    """A zip with the same bytes for the same contents: sorted names, one date, one mode."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, contents[name])
    return stream.getvalue()
