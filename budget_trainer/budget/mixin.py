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
    step over `max_steps` and time only stops the run. `learning_rate_factor` multiplies every rate of the curve: what
    recovers from divergence lowers it.
    """

    learning_rate_factor = 1.0

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
        """Trainer's hook that serves every engine; `num_training_steps` counts only for `schedule="step"`."""
        trainer: Any = self
        if trainer.lr_scheduler is None:
            trainer.lr_scheduler = TimeScheduler(
                optimizer or trainer.optimizer,
                self.curve,
                lambda: self.schedule_progress(self._steps_done(), num_training_steps),
                lambda: self.learning_rate_factor,
            )
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    def schedule_progress(self: Any, steps: int | None = None, max_steps: int | None = None) -> float:
        """Where on its curve the schedule stands, in [0, 1] and the same on all ranks.

        With `schedule="step"`: `steps` of `max_steps`, by default the steps done between two steps.
        """
        if self.schedule == "time":
            return self.time_budget.progress
        steps = self.state.global_step if steps is None else steps
        return min(1.0, steps / (max_steps or self.args.max_steps))

    def _steps_done(self: Any) -> int:
        """Updates done when the scheduler asks: Trainer asks once at creation, then just before it counts a step."""
        return self.state.global_step + 1 if self.is_in_train and self.lr_scheduler is not None else 0

    def get_batch_samples(self: Any, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        with self.time_budget.clock.phase("data_wait"):
            return super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the used budget to every log line, so that it reaches `log_history` and all trackers."""
        logs = {**logs, "elapsed_seconds": round(self.time_budget.reading.elapsed, 3), "share": self.time_budget.share}
        super().log(logs, start_time)  # type: ignore[misc]
