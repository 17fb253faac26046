"""The leaderboard's files: eleven TSVs of test predictions, and `glue_submission.zip` of them. Standard library only.

Which run is submitted: of each task the run of the best configuration whose dev score is the median over its seeds
(`TaskResult.median_run`). So the test scores are those of the run that stands in `glue_report.md` as the median; choosing the
best seed would report a higher dev score than the leaderboard can confirm. AX is answered by MNLI's run.

The leaderboard (gluebenchmark.com) wants all eleven files in one flat zip. Where some are missing there is no zip: the others
are in `submission/`, and `submission_missing.txt` says what is missing and why.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic
from budget_trainer.glue.results import Suite
from budget_trainer.glue.tasks import TASKS, Split, Task

FOLDER, ZIP, MISSING = "submission", "glue_submission.zip", "submission_missing.txt"
HEADER = "index\tprediction"
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the earliest that the format knows


def official_files() -> dict[str, tuple[Task, Split]]:
    """The leaderboard's files by name, in GLUE's order."""
    return {split.submission: (task, split) for task in TASKS.values() for split in task.test if split.submission}


@dataclass(frozen=True)
class Submission:
    """What was written: `files` in `submission/`, the `missing` ones with the reason, the `zip` where it is complete."""

    files: tuple[str, ...]
    missing: dict[str, str]
    zip: Path | None


def write_submission(suite: Suite, output_dir: Path, overwrite: bool = False) -> Submission:
    """Write the files of all test splits that have official predictions, and the zip where these are all.

    Made anew from the results each time, with the same bytes from the same results. InputError for predictions that are
    damaged, and where an older complete zip would stand beside an incomplete submission (with `overwrite` it goes).
    """
    contents: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    for name, (task, split) in official_files().items():
        found = _predictions(suite, task, split)
        if isinstance(found, str):
            missing[name] = found
        else:
            contents[name] = tsv(task, split, found)
    archive = output_dir / ZIP
    if missing and archive.exists() and not overwrite:
        raise InputError(
            f"{archive}: a complete submission of earlier results, these lack {', '.join(missing)}; move it away, or add "
            "--overwrite_output_dir"
        )
    folder = output_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        (folder / name).unlink(missing_ok=True)  # of earlier results
    for name, content in contents.items():
        write_atomic(folder / name, content)
    if missing:
        archive.unlink(missing_ok=True)
        write_atomic(output_dir / MISSING, _statement(contents, missing).encode())
    else:
        write_atomic(archive, zip_bytes(contents))
        (output_dir / MISSING).unlink(missing_ok=True)
    return Submission(tuple(contents), missing, None if missing else archive)


def _predictions(suite: Suite, task: Task, split: Split) -> list[int] | list[float] | str:
    """The predictions of the run that is submitted, or why there are none."""
    owner = task.shared or task.name
    result = suite.tasks.get(owner)
    if result is None:
        return suite.absent.get(owner, f"{owner} was not trained")
    if not result.dev:
        return f"{owner} has no dev score that could choose a run"
    run = result.median_run
    if split.name not in run.predictions:
        return f"{owner} has no predictions of {split.name}; add {split.files[0]} and run it again"
    path = run.folder / run.predictions[split.name]
    found = read_predictions(path, task)
    if len(found) != split.rows:
        return f"{len(found):,} rows were predicted, the official file has {split.rows:,}"
    return found


def read_predictions(path: Path, task: Task) -> list[int] | list[float]:
    """The class numbers, or scores, in a run's `predictions/<split>.json`, in the order of the official file.

    InputError for a file of another task, of other labels, or with anything that is no prediction.
    """
    again = "run the task again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, found = content["label_names"], content["predictions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error!r}); {again}") from None
    if tuple(names) != task.labels:
        raise InputError(f"{path}: its labels are {names}, those of {task.name} are {list(task.labels)}; {again}")
    for row, value in enumerate(found):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not (task.regression or value in range(len(task.labels))):
            raise InputError(f"{path}: row {row} has the prediction {value!r}; {again}")
    return list(found)


def tsv(task: Task, split: Split, predictions: Sequence[float]) -> bytes:
    """One file of the leaderboard: a header, then index and prediction of every row.

    Scores are clipped to 0..5 and given with 3 decimals; classes are names where the leaderboard wants words, else 0 and 1.
    """
    lines = [HEADER, *(f"{row}\t{_word(task, value)}" for row, value in enumerate(predictions))]
    return ("\n".join(lines) + "\n").encode()


def _word(task: Task, value: float) -> str:
    if task.regression:
        return f"{min(5.0, max(0.0, value)):.3f}"
    return task.labels[int(value)] if task.submission_words else str(int(value))


def zip_bytes(contents: dict[str, bytes]) -> bytes:
    """A zip with the same bytes for the same contents: sorted names, one date, one mode."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, contents[name])
    return stream.getvalue()


def _statement(contents: dict[str, bytes], missing: dict[str, str]) -> str:
    lines = [f"{len(contents)} of {len(contents) + len(missing)} files for the GLUE leaderboard are in {FOLDER}/."]
    lines += [f"There is no {ZIP}: the leaderboard takes all of them together. Missing:"]
    return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in missing.items())]) + "\n"
