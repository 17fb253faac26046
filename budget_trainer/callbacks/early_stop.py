"""Ends a run that is not worth the rest of its budget."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.callbacks.time_budget import TimeBudgetCallback

log = logging.getLogger(__name__)


class EarlyStop(TrainerCallback):
    """Stops where a validation after `early_stop_time` (seconds of the budget) has a loss above `early_stop_eval_loss`.

    The original's rule (run_pretraining.py:459). The run ends in good order, with its model and its report, and the stop
    reason `early_stop`. Every rank has the same reading and the same loss, so all stop at the same step.
    """

    def __init__(self, time_budget: TimeBudgetCallback, early_stop_time: float, early_stop_eval_loss: float) -> None:
        self.time_budget = time_budget
        self.early_stop_time, self.early_stop_eval_loss = early_stop_time, early_stop_eval_loss

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss, elapsed = (metrics or {}).get("eval_loss"), self.time_budget.reading.elapsed
        if loss is None or control.should_training_stop or elapsed < self.early_stop_time:
            return
        if not loss <= self.early_stop_eval_loss:
            self.time_budget.stop_reason = "early_stop"
            control.should_training_stop = control.should_log = True
            if state.is_world_process_zero:
                log.warning(
                    "step %d: training stops (early_stop): after %.0fs the validation loss is %.3f, above %g",
                    state.global_step,
                    elapsed,
                    loss,
                    self.early_stop_eval_loss,
                )
