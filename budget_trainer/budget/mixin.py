"""The budget and its schedule for any subclass of Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.curves import Curve, make_curve
from budget_trainer.budget.lead import ENDLESS_STEPS
from budget_trainer.budget.scheduler import TimeScheduler
from budget_trainer.core.errors import InputError

# lr_scheduler_type: the curve that is its like over a budget
_CURVE_OF = {"linear": "linear", "cosine": "cosine", "inverse_sqrt": "inverse_sqrt", "warmup_stable_decay": "wsd"}
_CURVE_OF |= dict.fromkeys(("constant", "constant_with_warmup"), "constant")


class TimeScheduleMixin:
    """Adds the budget and its learning-rate curve to any Trainer: `class MySFT(TimeScheduleMixin, SFTTrainer)`.

    `total_training_time` (`"2h"`) makes the callback, or hand in `time_budget`. `curve` is a name of `CURVES` with
    `warmup_proportion` and `curve_options`, or a function of the progress. Where they are not given, `lr_scheduler_type`
    and a `warmup_steps` below 1 of the TrainingArguments say which curve (linear) and which warm-up (0.06); two that differ,
    and what no curve can follow, are an InputError. With `schedule="step"` the progress is step over `max_steps` and time
    only stops the run. `learning_rate_factor` multiplies every rate of the curve: what recovers from divergence lowers it.
    """

    learning_rate_factor = 1.0
    leads = True  # False in a Trainer that plans its steps and its end by the budget itself

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(TimeScheduleMixin)]
        for base in before:
            if base.__name__ == "Trainer" and base.__module__ == "transformers.trainer":
                raise TypeError(f"class {cls.__name__}: TimeScheduleMixin comes first, before the Trainer class")

    def __init__(
        self,
        *args: Any,
        total_training_time: str | float | timedelta | None = None,
        time_budget: TimeBudgetCallback | None = None,
        schedule: str = "time",
        curve: str | Curve | None = None,
        warmup_proportion: float | None = None,
        curve_options: dict[str, Any] | None = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ) -> None:
        if schedule not in ("time", "step"):
            raise InputError(f"schedule: {schedule!r} is unknown; choose time or step")
        if time_budget is not None and total_training_time is not None:
            raise InputError(
                f"total_training_time: {total_training_time!r} stands beside time_budget; give one of the two"
            )
        self.time_budget = time_budget or TimeBudgetCallback(total_training_time)
        self.schedule = schedule
        kwargs["callbacks"] = [self.time_budget, *(callbacks or [])]
        if not self.leads:
            self.time_budget.lead = None
        lead = self.time_budget.lead
        found = (value for value in (kwargs.get("args"), *args) if isinstance(value, TrainingArguments))
        arguments = next(found, None) if lead is not None else None
        if arguments is not None:
            curve, warmup_proportion = _asked_for(arguments, schedule, curve, warmup_proportion)
        if callable(curve) and (curve_options or warmup_proportion is not None):
            raise InputError(
                "curve: a function takes no warmup_proportion and no curve_options; let it do the warm-up itself"
            )
        warmup = 0.06 if warmup_proportion is None else warmup_proportion
        self.curve = curve if callable(curve) else make_curve(curve or "linear", warmup, **(curve_options or {}))
        if lead is None:
            super().__init__(*args, **kwargs)
            return
        lead.schedule = schedule
        endless = arguments is not None and arguments.max_steps <= 0 and not has_length(kwargs.get("train_dataset"))
        if arguments is not None and endless and schedule == "time":  # Trainer takes a stream with max_steps alone
            arguments.max_steps, before = ENDLESS_STEPS, arguments.max_steps
            try:
                super().__init__(*args, **kwargs)
                self.args.max_steps = before  # type: ignore[attr-defined]
            finally:
                arguments.max_steps = before
        else:
            super().__init__(*args, **kwargs)
        trainer: Any = self
        if trainer.lr_scheduler is not None:
            raise InputError(
                f"optimizers: {type(trainer.lr_scheduler).__name__} stands beside the curve of TimeScheduleMixin; hand in "
                "(optimizer, None), or take TimeBudgetCallback without the mixin"
            )

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
        with self.time_budget.running_clock.phase("data_wait"):
            return super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the used budget to every log line, so that it reaches `log_history` and all trackers."""
        logs = {**logs, "elapsed_seconds": round(self.time_budget.reading.elapsed, 3), "share": self.time_budget.share}
        super().log(logs, start_time)  # type: ignore[misc]


def _asked_for(
    args: TrainingArguments, schedule: str, curve: str | Curve | None, warmup: float | None
) -> tuple[str | Curve | None, float | None]:
    """Curve and warm-up by the mixin's arguments or by Trainer's, InputError where the two differ or no curve can follow."""
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    usual = getattr(type(args), "lr_scheduler_type", "linear")
    beside = f"stands beside curve {getattr(curve, '__name__', curve)}; give one of the two"
    if args.lr_scheduler_kwargs:
        raise InputError(f"lr_scheduler_kwargs: {args.lr_scheduler_kwargs} are not the curve's; use curve_options")
    deepspeed = getattr(args, "hf_deepspeed_config", None)
    if deepspeed is not None and "scheduler" in deepspeed.config:
        raise InputError("deepspeed: its block 'scheduler' stands beside the curve of TimeScheduleMixin; remove it")
    if kind != str(getattr(usual, "value", usual)):
        like = _CURVE_OF.get(kind)
        if curve is not None and curve != like:
            raise InputError(f"lr_scheduler_type: {kind!r} {beside}")
        if like is None:
            known = ", ".join(_CURVE_OF)
            raise InputError(
                f"lr_scheduler_type: {kind!r} does not follow total_training_time; choose one of {known}, or a curve"
            )
        curve = like
        if kind == "constant" and warmup is None:
            warmup = 0.0
    share = float(args.warmup_steps or 0)
    if share >= 1 and schedule == "step" and args.max_steps > 0:
        share /= args.max_steps
    if not share or kind == "constant":
        return curve, warmup
    if callable(curve):
        raise InputError(f"warmup_steps: {args.warmup_steps:g} {beside}")
    if share >= 1:
        raise InputError(
            f"warmup_steps: {args.warmup_steps:g} steps are no share of total_training_time; give warmup_proportion=0.06, or "
            "warmup_steps=0.06"
        )
    if warmup is not None and warmup != share:
        raise InputError(
            f"warmup_steps: {args.warmup_steps:g} stands beside warmup_proportion {warmup:g}; give one of the two"
        )
    return curve, share
