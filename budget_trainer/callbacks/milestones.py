"""What happens at shares of the budget: models kept, training checkpoints, validation."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer import checkpoints
from budget_trainer.callbacks.time_budget import TimeBudgetCallback
from budget_trainer.validation_plan import ValidationPlan

VALIDATION_KEY = "validation"  # in TrainerState.stateful_callbacks


def marker_folder(output_dir: Path, share: float) -> Path:
    """`finetune-<percent>`, without trailing zeros: 0.5 -> finetune-50, 0.125 -> finetune-12.5."""
    return output_dir / f"finetune-{round(share * 100, 6):g}"


class FinetuneMarkers(TrainerCallback):
    """Keeps the model at shares of the budget (`finetune_time_markers`), each once over all jobs of a run.

    `save_folder(path)` writes a model, complete or absent, and returns the seconds it took; every rank calls it.
    A marker that no longer fits beside the final save becomes a copy of it (`in_final`, `copy_final`): by then the
    weights are the same.
    """

    def __init__(
        self,
        time_budget: TimeBudgetCallback,
        markers: Sequence[float],
        output_dir: str | Path,
        save_folder: Callable[[Path], float],
    ) -> None:
        self.time_budget, self.save_folder = time_budget, save_folder
        self.output_dir = Path(output_dir)
        # The folder is the memory of a marker: asked once, at the start, where all ranks see the same.
        self.waiting = [share for share in markers if not marker_folder(self.output_dir, share).exists()]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for share in [share for share in self.waiting if self.time_budget.share >= share]:
            if self.time_budget.affords(self.time_budget.reading.save):
                self.waiting.remove(share)
                self.save_folder(marker_folder(self.output_dir, share))

    def in_final(self) -> list[str]:
        """After the budget has ended: the folders of the markers that lay within the reserve."""
        if self.time_budget.stop_reason != self.time_budget.end_reason:
            return []  # max_steps came first: their time never did
        end = self.time_budget.end_seconds / self.time_budget.total_seconds
        return [marker_folder(self.output_dir, share).name for share in self.waiting if share <= end]


def copy_final(final: Path, names: Sequence[str]) -> None:
    """Make the folders `names` beside `final` copies of it, those that are not there yet (main process only)."""
    for target in [final.with_name(name) for name in names]:
        if not target.exists():
            staging = checkpoints.staging_folder(target)
            shutil.copytree(final, staging, dirs_exist_ok=True)
            checkpoints.publish(staging, target)


class CheckpointCadence(TrainerCallback):
    """A training checkpoint every `every_seconds` of the budget and every `every_samples` samples.

    Both count from the start of the run, so that a resume keeps the rhythm. One that would endanger the final save
    is left out.
    """

    def __init__(
        self,
        time_budget: TimeBudgetCallback,
        every_seconds: float = math.inf,
        every_samples: int | None = None,
        samples: Callable[[], int] = lambda: 0,
    ) -> None:
        self.time_budget, self.every_seconds = time_budget, every_seconds
        self.every_samples, self.samples = every_samples, samples
        self._last = (0, 0)

    def _counts(self) -> tuple[int, int]:
        timed = int(self.time_budget.reading.elapsed // self.every_seconds)
        return timed, 0 if self.every_samples is None else self.samples() // self.every_samples

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last = self._counts()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        counts = self._counts()
        if counts != self._last and self.time_budget.affords(self.time_budget.reading.checkpoint):
            control.should_save = True
        self._last = counts


class ValidationCadence(TrainerCallback):
    """The pinned evaluation whenever `plan` says so; over the jobs of a run each mark once.

    `samples()` are those consumed so far. A validation that would endanger the final save is left out.
    """

    def __init__(self, time_budget: TimeBudgetCallback, plan: ValidationPlan, samples: Callable[[], int]) -> None:
        self.time_budget, self.plan, self.samples = time_budget, plan, samples
        self._last = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stored: Any = state.stateful_callbacks or {}
        self._last = int(stored.get(VALIDATION_KEY, {}).get("last", 0))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        mark = self.plan.mark(self._last, self.time_budget.share, self.samples())
        if mark > self._last and self.time_budget.affords(self.time_budget.reading.evaluate):
            control.should_evaluate = True
        self._last = mark
        stored: Any = state.stateful_callbacks
        stored[VALIDATION_KEY] = {"last": mark}
