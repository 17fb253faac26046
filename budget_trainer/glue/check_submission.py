"""Check files for the GLUE leaderboard against its format: `python -m budget_trainer.glue.check_submission ZIP_OR_FOLDER`.

One line per finding: file, row (from 0, as the leaderboard counts), what is wrong, and the fix. Exit code 0: as the leaderboard
wants it; 1: there are findings; 2: there is nothing to check (no such path, not a zip). Standard library only.
"""

from __future__ import annotations

import re
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from budget_trainer.core.command import Parser, run_command
from budget_trainer.core.errors import InputError
from budget_trainer.glue.submission import FOLDER, HEADER, ZIP
from budget_trainer.glue.tasks import SUBMISSION_FILES, Split, Task, find_task


def _check_submission(path: Path, partial: bool = False) -> list[str]:
    """The findings on a zip or a folder, none where it is complete and right; with `partial` files may be missing."""
    files, findings = _read_files(path), []
    for name, times in Counter(name for name, _ in files).items():
        if name not in SUBMISSION_FILES:
            findings.append(f"{name}: superfluous; {_advice(name)}")
        elif times > 1:
            findings.append(f"{name}: it is in the zip {times} times; keep one")
    there = {name: content for name, content in files if name in SUBMISSION_FILES}
    for name, (task, split) in SUBMISSION_FILES.items():
        if name in there:
            findings += _check_file(name, there[name], task, split)
        elif not partial:
            findings.append(f"{name}: missing; predict {task.name}'s {split.name} ({split.rows:,} rows) and add it")
    return findings


def _read_files(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents in a zip or a folder; a zip can have a name twice. Only the leaderboard's files are read."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if (path / FOLDER).is_dir() and not any(file.name in SUBMISSION_FILES for file in path.iterdir()):
            raise InputError(f"submission: {path} holds a whole suite; give {path / FOLDER} or {path / ZIP}")
        names = [(str(file.relative_to(path)), file) for file in files]
        return [(name, file.read_bytes() if name in SUBMISSION_FILES else b"") for name, file in names]
    if not path.is_file():
        raise InputError(f"submission: {path} does not exist; give {ZIP}, or a folder with the TSV files")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            return [(e.filename, archive.read(e) if e.filename in SUBMISSION_FILES else b"") for e in entries]
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"submission: {path} is not a zip that can be read ({error}); make it again") from None


def _advice(name: str) -> str:
    last = Path(name).name
    if last in SUBMISSION_FILES:
        return "put it at the top, not into a folder"
    try:
        task = find_task(Path(last).stem.removesuffix("-mm").removesuffix("-m"))
    except InputError:
        return "take it out"
    return f"did you mean {' or '.join(f'{split.column}.tsv' for split in task.test)}?"


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
    if header.removesuffix("\r") != HEADER:
        findings.append(f"{name}: header {header[:60]!r}; write {HEADER!r}")
        if header[:1].isdigit():  # there is none: the first line is a row
            rows = lines
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    for place, line in enumerate(rows):
        wrong = _wrong(place, line.removesuffix("\r"), seen, task, split)
        if wrong is not None:
            found.setdefault(wrong[0], []).append(f"{name}: row {place}: {wrong[1]}")
    for kind, lines_of_kind in found.items():
        findings += lines_of_kind[:5]
        if (more := len(lines_of_kind) - 5) > 0:
            findings.append(f"{name}: {more:,} more rows with {kind}; correct them all")
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
    right, wanted = prediction in task.submission_words, " or ".join(task.submission_words)
    if task.regression:
        right = re.fullmatch(r"\d+(\.\d+)?", prediction, re.ASCII) is not None and float(prediction) <= 5
        wanted = "a number from 0 to 5"
    return None if right else ("another prediction", f"{prediction[:40]!r}; write {wanted}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 right, 1 findings, 2 nothing to check."""
    parser = Parser("python -m budget_trainer.glue.check_submission", "Check files for the GLUE leaderboard.")
    parser.add_argument("path", type=Path, help="glue_submission.zip, or the folder submission/")
    parser.add_argument("--partial", action="store_true", help="files may be missing; check those that are there")

    def work() -> int:
        given = parser.parse_args(arguments)
        findings = _check_submission(given.path, given.partial)
        print("\n".join(findings) if findings else f"{given.path}: as the GLUE leaderboard wants it")
        return 1 if findings else 0

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
