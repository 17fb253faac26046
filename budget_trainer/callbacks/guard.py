"""What a run does about bad steps, a stuck loss scale and loss spikes: decided from what all ranks agreed on."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.callbacks.time_budget import TimeBudgetCallback
from budget_trainer.errors import Diverged

log = logging.getLogger(__name__)
STATE_KEY = "guard"  # in TrainerState.stateful_callbacks
REMEMBERED = ("bad_steps", "roll_backs", "loss_spikes", "rate_factor")
LOWEST_SCALE = 1.0
LINES_FOR_SPIKES = 20


class Guard(TrainerCallback):
    """Reacts where a loss or a gradient was not finite (such steps have no effect, see `guarded.BadSteps`).

    After `max_bad_steps` in a row `roll_back()` brings back the last good checkpoint (None: there is none yet, the weights
    stay), and from there on every learning rate is `roll_back_lr_factor` of what it would be (`rate_factor`, over all
    roll-backs, read by the schedule); time and data go on. After `max_roll_backs` of these the run ends with Diverged. A
    validation loss that is not finite counts as a full row. fp16's loss scale at LOWEST_SCALE for `scale_cnt_limit` steps,
    seen at the lines of the log, ends it too. A logged loss of `loss_spike` nats above the median of the last lines is
    reported.
    """

    def __init__(
        self,
        time_budget: TimeBudgetCallback,
        *,
        max_bad_steps: int = 3,
        max_roll_backs: int = 3,
        roll_back_lr_factor: float = 0.5,
        scale_cnt_limit: int = 100,
        loss_spike: float = 1.0,
        roll_back: Callable[[], Path | None] = lambda: None,
        loss_scale: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.time_budget, self.roll_back, self.loss_scale = time_budget, roll_back, loss_scale
        self.max_bad_steps, self.max_roll_backs = max_bad_steps, max_roll_backs
        self.roll_back_lr_factor, self.scale_cnt_limit = roll_back_lr_factor, scale_cnt_limit
        self.loss_spike = loss_spike
        self.bad_steps = self.roll_backs = self.loss_spikes = 0
        self.rate_factor = 1.0
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=LINES_FOR_SPIKES)
        self._scale_low_since: int | None = None

    def account(self) -> dict[str, Any]:
        """For the report: how often each of these happened over all jobs of the run."""
        return {name: getattr(self, name) for name in REMEMBERED}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore(state)

    def restore(self, state: TrainerState) -> None:
        """Take over what earlier jobs of the run have counted."""
        stored: Any = state.stateful_callbacks or {}
        for name, value in (stored.get(STATE_KEY) or {}).items():
            setattr(self, name, value)
        self.time_budget.rate_factor = self.rate_factor

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.time_budget.bad_step:
            self.bad_steps += 1
            self._in_a_row += 1
            self._say(state, "a loss or gradient is not finite, the step has no effect (%d in a row)", self._in_a_row)
            if not control.should_training_stop:
                control.should_save = False  # the last good checkpoint is the one before
        else:
            self._in_a_row = 0
        if self._in_a_row >= self.max_bad_steps and not control.should_training_stop:
            self._go_back(state, f"{self._in_a_row} steps in a row had a loss or gradient that is not finite")
        stored: Any = state.stateful_callbacks
        stored[STATE_KEY] = self.account()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_loss")
        if loss is not None and not math.isfinite(loss) and not control.should_training_stop:
            control.should_save = False
            self._go_back(state, "the validation loss is not finite")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self._watch_scale(state)
        usual = median(self._losses) if len(self._losses) == LINES_FOR_SPIKES else math.inf
        if math.isfinite(loss):
            self._losses.append(loss)
            if loss > usual + self.loss_spike:
                self.loss_spikes += 1
                self._say(state, "loss spike: %.3f, the lines before had a median of %.3f", loss, usual)

    def _watch_scale(self, state: TrainerState) -> None:
        scale = self.loss_scale()
        if scale is None or scale > LOWEST_SCALE:
            self._scale_low_since = None
            return
        if self._scale_low_since is None:
            self._scale_low_since = state.global_step
        steps = state.global_step - self._scale_low_since
        if steps >= self.scale_cnt_limit:
            raise Diverged(
                f"fp16's loss scale is at {scale:g} for {steps} steps (scale_cnt_limit {self.scale_cnt_limit}) at step "
                f"{state.global_step}; use --bf16, or lower the learning rate"
            )

    def _go_back(self, state: TrainerState, why: str) -> None:
        """Every rank comes here at the same step: what led here was agreed on."""
        where = f"step {state.global_step}: {why}"
        if self.roll_backs >= self.max_roll_backs:
            raise Diverged(
                f"{where}, after {self.roll_backs} roll-backs (max_roll_backs {self.max_roll_backs}); lower learning_rate"
            )
        self.rate_factor *= self.roll_back_lr_factor
        self.time_budget.rate_factor = self.rate_factor
        checkpoint = self.roll_back() or "the weights as they are, there is no checkpoint yet"
        self.roll_backs += 1
        self._in_a_row = 0
        self._losses.clear()
        self._say(state, "%s: back to %s, from here %g of the learning rate", why, checkpoint, self.rate_factor)

    @staticmethod
    def _say(state: TrainerState, text: str, *values: Any) -> None:
        if state.is_world_process_zero:
            log.warning("step %d: " + text, state.global_step, *values)
