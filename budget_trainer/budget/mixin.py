"""The budget and its schedule for any subclass of Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.curves import Curve, make_curve
from budget_trainer.budget.scheduler import TimeScheduler
from budget_trainer.core.errors import InputError


class TimeScheduleMixin:
    """Adds the budget and its learning-rate curve to any Trainer: `class MySFT(TimeScheduleMixin, SFTTrainer)`.

    `total_training_time` (`"2h"`) makes the callback, or hand in `time_budget`. `curve` is a name of `CURVES` with
    `warmup_proportion` and `curve_options`, or a function of the progress. With `schedule="step"` the progress is
    step over `max_steps` and time only stops the run.
    """

    def __init__(
        self,
        *args: Any,
        total_training_time: str | float | None = None,
        time_budget: TimeBudgetCallback | None = None,
        schedule: str = "time",
        curve: str | Curve = "linear",
        warmup_proportion: float = 0.06,
        curve_options: dict[str, Any] | None = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ) -> None:
        if schedule not in ("time", "step"):
            raise InputError(f"schedule: {schedule!r} is unknown; choose time or step")
        self.time_budget = time_budget or TimeBudgetCallback(total_training_time)
        self.schedule = schedule
        self.curve = curve if callable(curve) else make_curve(curve, warmup_proportion, **(curve_options or {}))
        kwargs["callbacks"] = [self.time_budget, *(callbacks or [])]
        super().__init__(*args, **kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The seam that serves every engine; `num_training_steps` counts only for `schedule="step"`."""
        trainer: Any = self
        if trainer.lr_scheduler is None:

            def progress() -> float:
                if self.schedule == "time":
                    return self.time_budget.progress
                return min(1.0, self._steps_done() / num_training_steps)

            trainer.lr_scheduler = TimeScheduler(
                optimizer or trainer.optimizer, self.curve, progress, lambda: self.time_budget.rate_factor
            )
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    def stage_progress(self) -> float:
        """Where on its curve the schedule stands between two steps, the same on all ranks."""
        trainer: Any = self
        if self.schedule == "time":
            return self.time_budget.progress
        return min(1.0, trainer.state.global_step / trainer.args.max_steps)

    def _steps_done(self) -> int:
        """Updates done when the scheduler asks: Trainer asks once at creation, then just before it counts a step."""
        trainer: Any = self
        return trainer.state.global_step + 1 if trainer.is_in_train and trainer.lr_scheduler is not None else 0

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        clock = self.time_budget.clock
        assert clock is not None
        with clock.phase("data_wait"):
            return super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the used budget to every log line, so that it reaches `log_history` and all trackers."""
        logs = {**logs, "elapsed_seconds": round(self.time_budget.reading.elapsed, 3), "share": self.time_budget.share}
        super().log(logs, start_time)  # type: ignore[misc]
