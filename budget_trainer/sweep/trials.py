"""One trial on disk and as a process: `trial-0007/`, its log beside it, what it has reached, and how it ends."""

from __future__ import annotations

import fcntl
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from budget_trainer.core.jobs import Child
from budget_trainer.sweep.spec import WHOLE, Objective, SweepSpec, pruning_words, validate_every
from budget_trainer.training import run_folder

KEPT_FOLDERS = ("tensorboard", "glue")
GLUE = "glue"


def folder_name(number: int) -> str:
    """`trial-0007`."""
    return f"trial-{number:04d}"


class TrialLock:
    """Whose a trial is: held by the sweep that runs it, and by its launcher for as long as that lives.

    The system lets go of it however they end, so a trial whose lock is free has nobody who works on it.
    """

    def __init__(self, output_dir: Path, number: int) -> None:
        self._file = open(output_dir / "locks" / folder_name(number), "a", encoding="utf-8")

    def take(self) -> bool:
        """Whether it was free."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            self._file.close()
            return False

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def release(self) -> None:
        self._file.close()


class TrialRun:
    """A trial from its first process to its end. `poll` until it is `done`; then `value` or `error` say how it went.

    With a GLUE objective the score's process follows the training's.
    """

    def __init__(self, spec: SweepSpec, number: int, words: list[str], profile: Path, on_cpu: bool) -> None:
        self.spec, self.number, self.objective = spec, number, spec.objective
        self.folder = spec.output_dir / folder_name(number)
        self.log = spec.output_dir / f"{folder_name(number)}.log"
        self.done = False
        self.value: float | None = None
        self.error: str | None = None
        self.used_seconds = 0.0  # of the training's budget, where it has finished
        self._words, self._profile, self._on_cpu = words, profile, on_cpu
        self._child: Child | None = None
        self._progress = Progress(self.folder / run_folder.PROGRESS, self.objective, spec.steps)
        self._device: str | None = None
        self._held: int | None = None

    def begin(self, device: str | None, held: int) -> None:
        """Start what is left to do: nothing where a finished result lies there, the evaluation where that is missing."""
        self._device, self._held = device, held
        if self._evaluation() is not None:
            self._trained()
            return
        own = [f"--output_dir={self.folder}", f"--total_training_time={self.spec.trial_seconds}s"]
        own += pruning_words(self.spec.steps)
        if run_folder.awaits_evaluation(self.folder):
            own += ["--resume_from_checkpoint", "auto"]
        else:
            # From its beginning: going on behind a kill would charge it what the kill cost, and trials have to compare.
            shutil.rmtree(self.folder, ignore_errors=True)
        self._start("train_mlm", [*self._words, *own])

    def _start(self, script: str, words: list[str], append: bool = False) -> None:
        self._child = Child(script, words, self._profile, self.log, self._device, self._held, append)

    def new_values(self) -> list[tuple[int, float]]:
        """What the pinned evaluation gave at steps (thousandths of the budget) since the last call."""
        return self._progress.read()

    def has_stepped(self) -> bool:
        """Whether its training came as far as a step."""
        progress = self.folder / run_folder.PROGRESS
        return progress.is_file() and progress.stat().st_size > 0

    def is_scoring(self) -> bool:
        """Whether its training is behind it, and GLUE's has begun."""
        return (self.folder / GLUE).exists()

    def poll(self) -> None:
        """See whether the process has ended, and what follows from that."""
        if self._child is None or self._child.returncode is None:
            return
        child, self._child = self._child, None
        if self.is_scoring():
            self._scored(child)
        elif self._evaluation() is None:
            self.done, self.error = True, self._why(child)
        else:
            self._trained()

    def _evaluation(self) -> dict[str, Any] | None:
        """The pinned evaluation of a finished training; None where it is not finished."""
        evaluation = self._report().get("evaluation")
        return evaluation if isinstance(evaluation, dict) else None

    def _report(self) -> dict[str, Any]:
        return _report_in(self.folder)

    def _trained(self) -> None:
        """The training is finished: its evaluation is the objective, or the model goes to GLUE."""
        self.used_seconds = float(self._report().get("used_seconds") or 0.0)
        value = self.objective.of_evaluation(self._evaluation())
        if value is None:
            self.done, self.error = True, "the pinned evaluation is not a finite number: the trial diverged"
        elif self.objective.task is None:
            self.done, self.value = True, value
        elif not self._score():
            shutil.rmtree(self.folder / GLUE, ignore_errors=True)
            (self.folder / GLUE).mkdir()
            words = self.objective.words(str(self.folder / run_folder.FINAL), str(self.folder / GLUE))
            self._start("finetune_glue", [*words, *(["--use_cpu", "true"] if self._on_cpu else [])], append=True)

    def _score(self) -> bool:
        from budget_trainer.glue.results import read_result

        result = read_result(self.folder / GLUE)
        if result is not None:
            self.done, self.value = True, float(result["headline"]["value"])
        return result is not None

    def _scored(self, child: Child) -> None:
        if not self._score():
            self.done, self.error = True, f"{self.objective.task}: {self._why(child)}"

    @staticmethod
    def _why(child: Child) -> str:
        code = child.process.returncode
        return f"{' '.join(child.last_error().split())} (exit code {code})"

    def kill(self) -> None:
        """End its process now.

        SIGKILL: a request to stop would be answered by writing a checkpoint, which the sweep has no use for and would have
        to wait for. Nothing is lost with it: log and progress.jsonl are written line by line.
        """
        if self._child is not None:
            self._child.kill()
            self._child = None

    def clear(self) -> None:
        """Remove what takes room from a trial that has ended without a result: models, checkpoints, what is held free."""
        remove_models(self.folder)


def is_trained(output_dir: Path, number: int) -> bool:
    """Whether the training of a trial is finished: what follows it may be missing."""
    return is_evaluated(output_dir, number) or run_folder.awaits_evaluation(output_dir / folder_name(number))


def is_evaluated(output_dir: Path, number: int) -> bool:
    """Whether a trial is finished but for its score on GLUE, where that is the objective, and for the word."""
    return isinstance(_report_in(output_dir / folder_name(number)).get("evaluation"), dict)


def _report_in(folder: Path) -> dict[str, Any]:
    """`run_report.json`; empty where there is none."""
    try:
        report = json.loads((folder / run_folder.REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def remove_models(folder: Path) -> None:
    """Delete the folders of models and checkpoints in a trial's; logs, progress and reports stay."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if path.is_dir() and path.name not in KEPT_FOLDERS:
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder / GLUE / "model", ignore_errors=True)
    for path in folder.glob(".*") if folder.is_dir() else ():
        if path.is_file():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


class Progress:
    """`progress.jsonl` as it grows: each pinned evaluation counts for the step that it was due at."""

    def __init__(self, path: Path, objective: Objective, steps: tuple[int, ...]) -> None:
        self.path, self.objective, self.steps = path, objective, steps
        self._at = 0
        self._seen: set[int] = set()

    def read(self) -> list[tuple[int, float]]:
        """New evaluations as (step, metric), in order."""
        found = []
        for share, value in self._lines():
            due = [step for step in self.steps if share * WHOLE >= step - 0.5]
            # A late one, because the one that was due had no room, compares with none of the others'.
            if due and due[-1] not in self._seen and share * WHOLE < due[-1] + validate_every(self.steps):
                self._seen.add(due[-1])
                found.append((due[-1], value))
        return found

    def _lines(self) -> list[tuple[float, float]]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._at)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return evaluations(whole.decode("utf-8", "replace").splitlines(), self.objective)


def evaluations(lines: list[str], objective: Objective) -> list[tuple[float, float]]:
    """(share, metric) of the pinned evaluations among lines of progress.jsonl."""
    found = []
    for line in lines:
        with suppress(ValueError, TypeError, AttributeError):
            content = json.loads(line)
            value = objective.of_evaluation(content.get("evaluation"))
            if value is not None:
                found.append((float(content["share"]), value))
    return found


def read_curve(folder: Path, objective: Objective) -> list[tuple[float, float]]:
    """All pinned evaluations of a trial on the way, by share of its budget."""
    try:
        return evaluations((folder / run_folder.PROGRESS).read_text(encoding="utf-8").splitlines(), objective)
    except OSError:
        return []
