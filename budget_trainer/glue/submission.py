"""The leaderboard's files: eleven TSVs of test predictions, and `glue_submission.zip` of them. Standard library only.

Which run is submitted: of each task the run of the best configuration whose dev score is the median over its seeds
(`TaskResult.median_run`). So the test scores are those of the run that stands in `glue_report.md` as the median; choosing the
best seed would report a higher dev score than the leaderboard can confirm. AX is answered by MNLI's run.

The leaderboard (gluebenchmark.com) wants all eleven files in one flat zip. Where some are missing there is no zip: the others
are in `submission/`, and `submission_missing.txt` says what is missing and why.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic
from budget_trainer.glue.results import Suite, read_object
from budget_trainer.glue.tasks import TASKS, Split, Task, find_task

_FOLDER, _ZIP, _MISSING = "submission", "glue_submission.zip", "submission_missing.txt"
_HEADER = "index\tprediction"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the earliest that the format knows
_PER_FILE = 5  # findings of one kind that are printed of one file


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
            contents[name] = _tsv(task, split, found)
    archive = output_dir / _ZIP
    if missing and archive.exists() and not overwrite:
        raise InputError(
            f"{archive}: a complete submission of earlier results, these lack {', '.join(missing)}; move it away, or add "
            "--overwrite_output_dir"
        )
    folder = output_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        (folder / name).unlink(missing_ok=True)  # of earlier results
    for name, content in contents.items():
        write_atomic(folder / name, content)
    if missing:
        archive.unlink(missing_ok=True)
        write_atomic(output_dir / _MISSING, _statement(contents, missing).encode())
    else:
        write_atomic(archive, _zip_bytes(contents))
        (output_dir / _MISSING).unlink(missing_ok=True)
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
    found = _read_predictions(path, task)
    if len(found) != split.rows:
        return f"{len(found):,} rows were predicted, the official file has {split.rows:,}"
    return found


def _read_predictions(path: Path, task: Task) -> list[int] | list[float]:
    """The class numbers, or scores, in a run's `predictions/<split>.json`, in the order of the official file.

    InputError for a file of another task, of other labels, or with anything that is no prediction.
    """
    again = "run the task again"
    content = read_object(path, again)
    names, found = content.get("label_names"), content.get("predictions")
    if names != list(task.labels) or not isinstance(found, list):
        raise InputError(
            f"{path}: no predictions of {task.name} (its labels are {names}, not {list(task.labels)}); {again}"
        )
    for row, value in enumerate(found):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not (task.regression or value in range(len(task.labels))):
            raise InputError(f"{path}: row {row} has the prediction {value!r}; {again}")
    return list(found)


def _tsv(task: Task, split: Split, predictions: Sequence[float]) -> bytes:
    """One file of the leaderboard: a header, then index and prediction of every row.

    Scores are clipped to 0..5 and given with 3 decimals; classes are names where the leaderboard wants words, else 0 and 1.
    """
    lines = [_HEADER, *(f"{row}\t{_word(task, value)}" for row, value in enumerate(predictions))]
    return ("\n".join(lines) + "\n").encode()


def _word(task: Task, value: float) -> str:
    return f"{min(5.0, max(0.0, value)):.3f}" if task.regression else _words(task)[int(value)]


def _words(task: Task) -> tuple[str, ...]:
    """The leaderboard's words for the classes of a task, in the order of their numbers."""
    return task.labels if task.submission_words else tuple(str(number) for number in range(len(task.labels)))


def _zip_bytes(contents: dict[str, bytes]) -> bytes:
    """A zip with the same bytes for the same contents: sorted names, one date, one mode."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, contents[name])
    return stream.getvalue()


def _statement(contents: dict[str, bytes], missing: dict[str, str]) -> str:
    lines = [f"{len(contents)} of {len(contents) + len(missing)} files for the GLUE leaderboard are in {_FOLDER}/."]
    lines += [f"There is no {_ZIP}: the leaderboard takes all of them together. Missing:"]
    return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in missing.items())]) + "\n"


def _read_files(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents in a zip or a folder; a zip can have a name twice. Only the leaderboard's files are read.

    InputError where there are none.
    """
    official = official_files()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if (path / _FOLDER).is_dir() and not any(file.name in official for file in path.iterdir()):
            raise InputError(f"submission: {path} holds a whole suite; give {path / _FOLDER} or {path / _ZIP}")
        names = [(str(file.relative_to(path)), file) for file in files]
        return [(name, file.read_bytes() if name in official else b"") for name, file in names]
    if not path.is_file():
        raise InputError(f"submission: {path} does not exist; give {_ZIP}, or a folder with the TSV files")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            return [(e.filename, archive.read(e) if e.filename in official else b"") for e in entries]
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"submission: {path} is not a zip that can be read ({error}); make it again") from None


def check_submission(path: Path, partial: bool = False) -> list[str]:
    """The findings on a zip or a folder, none where it is complete and right; with `partial` files may be missing."""
    files, official = _read_files(path), official_files()
    findings = []
    for name, times in Counter(name for name, _ in files).items():
        if name not in official:
            findings.append(f"{name}: superfluous; {_advice(name, official)}")
        elif times > 1:
            findings.append(f"{name}: it is in the zip {times} times; keep one")
    there = {name: content for name, content in files if name in official}
    for name, (task, split) in official.items():
        if name in there:
            findings += _check_file(name, there[name], task, split)
        elif not partial:
            findings.append(f"{name}: missing; predict {task.name}'s {split.name} ({split.rows:,} rows) and add it")
    return findings


def _advice(name: str, official: dict[str, tuple[Task, Split]]) -> str:
    last = Path(name).name
    if last in official:
        return "put it at the top, not into a folder"
    try:
        task = find_task(Path(last).stem.removesuffix("-mm").removesuffix("-m"))
    except InputError:
        return "take it out"
    return f"did you mean {' or '.join(split.submission or '' for split in task.test)}?"


def _check_file(name: str, content: bytes, task: Task, split: Split) -> list[str]:
    """The findings on one file, in the order of its rows; of each kind the first few."""
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        return [f"{name}: byte {error.start} is not UTF-8; write it as UTF-8"]
    if lines[-1] == "":
        lines.pop()
    findings = []
    header, rows = (lines[0], lines[1:]) if lines else ("", [])
    if header.removesuffix("\r") != _HEADER:
        findings.append(f"{name}: header {header[:60]!r}; write {_HEADER!r}")
        if header[:1].isdigit():  # there is none: the first line is a row
            rows = lines
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    for place, line in enumerate(rows):
        wrong = _wrong(place, line.removesuffix("\r"), seen, task, split)
        if wrong is not None:
            found.setdefault(wrong[0], []).append(f"{name}: row {place}: {wrong[1]}")
    for kind, lines_of_kind in found.items():
        findings += lines_of_kind[:_PER_FILE]
        if len(lines_of_kind) > _PER_FILE:
            findings.append(f"{name}: {len(lines_of_kind) - _PER_FILE:,} more rows with {kind}; correct them all")
    if len(rows) != split.rows:
        findings.append(f"{name}: {len(rows):,} rows; give one for each of the {split.rows:,} of {split.files[0]}")
    return findings


def _wrong(place: int, line: str, seen: set[int], task: Task, split: Split) -> tuple[str, str] | None:
    """What is wrong with a row: the kind of it, and the words."""
    parts = line.split("\t")
    if len(parts) != 2:
        return "other columns", f"{len(parts)} columns; write the index, a tab and the prediction"
    index, prediction = parts
    if not re.fullmatch(r"[0-9]{1,9}", index):
        return "no index", f"the index is {index[:40]!r}; write {place}"
    number = int(index)
    repeated = number in seen
    seen.add(number)
    if repeated:
        return "a repeated index", f"the index {number} is there twice; number the rows 0 to {split.rows - 1}"
    if number != place:
        return "another index", f"the index is {number}; write {place}, in the order of {split.files[0]}"
    wanted = _wanted(task, prediction)
    return ("another prediction", f"{prediction[:40]!r}; {wanted}") if wanted else None


def _wanted(task: Task, prediction: str) -> str | None:
    """How the prediction should read; None where it is right."""
    if task.regression:
        right = re.fullmatch(r"\d+(\.\d+)?", prediction, re.ASCII) is not None and float(prediction) <= 5
        return None if right else "write a number from 0 to 5"
    return None if prediction in _words(task) else f"write {' or '.join(_words(task))}"
