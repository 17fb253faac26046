"""One trial on disk: `trial-0007/`, its log beside it, its lock, what it has reached."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from statistics import fmean
from typing import Any

from budget_trainer.core.io import Lock, try_lock
from budget_trainer.reporting.energy import add_up, kept_energy
from budget_trainer.sweep.spec import WHOLE, SweepSpec
from budget_trainer.training import run_folder

# User attributes of a trial in the study.
PLACE, ENDED, ERROR, SECONDS = "place", "ended", "error", "seconds"
AGAIN = "again"  # begun by one process, ended by another: its seconds are not a whole trial's


class TrialFolder:
    """What a trial has left on disk so far."""

    def __init__(self, spec: SweepSpec, number: int) -> None:
        self.path = spec.folder(number)
        self.log = self.path.with_suffix(".log")
        self.glue = self.path / "glue"
        self.model = self.path / run_folder.FINAL
        self._progress = self.path / run_folder.PROGRESS
        self._spec = spec
        self._read_to = 0  # bytes of progress.jsonl
        self._reported: set[int] = set()

    def lock(self) -> Lock | None:
        """Whose the trial is: held by the sweep that runs it, and by its launcher for as long as that lives; None: another's.

        The system lets go of it however they end, so a trial whose lock is free has nobody who works on it.
        """
        return try_lock(self._spec.output_dir / "locks" / self.path.name)

    def report(self) -> dict[str, Any]:
        """`run_report.json`; empty where there is none that can be read."""
        return run_folder.RunFolder(self.path).read_report() or {}

    def energy(self) -> dict[str, Any] | None:
        """What the training used, as its clock kept it to the second; with GLUE behind it of that too. None: not known."""
        from budget_trainer.glue.results import RUNS_FILE, read_result

        training = kept_energy(self.path / run_folder.CLOCK)
        if not training:
            return None
        result, glue = read_result(self.glue), kept_energy(self.glue / RUNS_FILE)
        parts = [training, glue or (result or {}).get("energy")]
        return add_up(part for part in parts if part)

    def evaluation(self) -> dict[str, Any] | None:
        """The pinned evaluation of a finished training; None where it is not finished."""
        return self.report().get("evaluation")

    def awaits_evaluation(self) -> bool:
        """Whether its training is finished, and the final evaluation is missing."""
        return run_folder.RunFolder(self.path).awaits_evaluation()

    def has_stepped(self) -> bool:
        """Whether its training came as far as a step."""
        return self._progress.is_file() and self._progress.stat().st_size > 0

    def is_scoring(self) -> bool:
        """Whether its training is behind it, and GLUE's has begun."""
        return self.glue.exists()

    def score(self) -> float | None:
        """The score on GLUE, of a suite the mean over the tasks of their medians; None where there is none."""
        from budget_trainer.glue.results import RUNS_FILE, read_result

        if self._spec.objective.is_suite:
            with suppress(OSError, ValueError, KeyError, TypeError):  # a task all runs of which failed has no headline
                tasks = json.loads((self.glue / RUNS_FILE).read_text(encoding="utf-8"))["tasks"]
                return fmean(tasks[name]["headline"]["median"] for name in str(self._spec.objective.task).split(","))
            return None
        result = read_result(self.glue)
        return None if result is None else result["headline"]["value"]

    def evaluations(self) -> list[tuple[float, float]]:
        """Pinned evaluations on the way since the last call, as (share of the budget, metric)."""
        found = []
        with suppress(OSError), open(self._progress, "rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                with suppress(ValueError):
                    content = json.loads(line)
                    if (value := self._spec.objective.of_evaluation(content.get("evaluation"))) is not None:
                        found.append((float(content["share"]), value))
        return found

    def new_values(self) -> list[tuple[int, float]]:
        """The `evaluations` that compare with others', as (step, metric), each at the step (thousandth) that it was due at."""
        found = []
        for share, value in self.evaluations():
            due = [step for step in self._spec.prune_at if share * WHOLE >= step - 0.5]
            # A late one, because the one that was due had no room, compares with none of the others'.
            if due and due[-1] not in self._reported and share * WHOLE < due[-1] + self._spec.validate_every:
                self._reported.add(due[-1])
                found.append((due[-1], value))
        return found

    def remove_models(self) -> None:
        """Delete models, checkpoints and what is held free; logs, progress and reports stay."""
        for path in self.path.glob("*"):
            if path.name.startswith(".") and path.is_file():
                path.unlink(missing_ok=True)
            elif path.is_dir() and path.name not in ("tensorboard", "wandb", "glue"):
                shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self.glue / "model", ignore_errors=True)
