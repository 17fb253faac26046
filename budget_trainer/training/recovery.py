"""What a run does about bad steps, a stuck loss scale, loss spikes and memory that is refused.

`BadSteps` takes the effect of a step away whose loss or gradient is not finite, on its own device and rank. `Guard` reacts to
what all ranks have agreed on: it goes back to the last good checkpoint, or ends the run.
"""

from __future__ import annotations

import logging
import math
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.budget.callback import store_state, stored_state
from budget_trainer.core.errors import RunError

if TYPE_CHECKING:
    from budget_trainer.training.trainer import TimeBudgetTrainer

log = logging.getLogger(__name__)
_STATE_KEY = "guard"  # in TrainerState.stateful_callbacks
_LOWEST_SCALE = 1.0
_LINES_FOR_SPIKES = 20


class BadSteps:
    """Judges steps and takes the effect of bad ones away, without the host waiting for the device.

    On a CPU the gradients are dropped: the optimizer leaves weights and moments as they are. On a GPU a fused Adam is
    told not to step, other optimizers get gradients of zero (their momentum still moves the weights), and what was bad
    is known one step later. DeepSpeed and fp16's scaler skip such steps themselves.
    """

    def __init__(self) -> None:
        self._last: bool | torch.Tensor = False
        # Whether the newest step whose work is known to be done was bad: this one on a CPU, the one before on a GPU.
        self.finished: bool | torch.Tensor = False

    def judge(self, value: Any, model: torch.nn.Module, optimizer: Any) -> torch.Tensor:
        """Whether `value` of the step to be taken is not finite: bool []. The gradient norm is the same on all ranks."""
        if hasattr(value, "full_tensor"):  # FSDP's norm is a DTensor
            value = value.full_tensor()
        bad = ~torch.isfinite(torch.as_tensor(0.0 if value is None else value).detach())
        if bad.device.type == "cpu":
            self.finished = bool(bad)
            for parameter in model.parameters() if self.finished else ():
                parameter.grad = None
        else:
            self.finished = self._last
            self._last = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
            withhold(bad, model, optimizer)
        return bad


def withhold(bad: torch.Tensor, model: torch.nn.Module, optimizer: Any) -> None:
    """Where `bad` (bool [], on the device) is true, keep the gradients from the optimizer, without reading it."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if getattr(inner, "_step_supports_amp_scaling", False):  # torch's fused Adam and AdamW
        inner.grad_scale, inner.found_inf = None, bad.float()
        return
    for parameter in model.parameters():
        grad: Any = parameter.grad
        if grad is not None:
            (grad.to_local() if hasattr(grad, "to_local") else grad).masked_fill_(bad, 0.0)


class Guard(TrainerCallback):
    """Goes back to the last good checkpoint where losses or gradients are not finite, and ends runs that diverge.

    After `max_bad_steps` in a row, or a validation loss that is not finite, `trainer.roll_back()` brings back the newest
    checkpoint (the weights stay where there is none), and from there on every learning rate is `roll_back_lr_factor` of
    what it would be; time and data go on. After `max_roll_backs` of these the run ends with RunError. fp16's loss scale at
    its lowest for `scale_cnt_limit` steps, seen at the lines of the log, ends it too. A logged loss of `loss_spike` nats
    above the median of the last lines is reported.
    """

    def __init__(
        self,
        trainer: TimeBudgetTrainer,
        *,
        max_bad_steps: int = 3,
        max_roll_backs: int = 3,
        roll_back_lr_factor: float = 0.5,
        scale_cnt_limit: int = 100,
        loss_spike: float = 1.0,
    ) -> None:
        self.trainer = trainer
        self.max_bad_steps, self.max_roll_backs = max_bad_steps, max_roll_backs
        self.roll_back_lr_factor, self.scale_cnt_limit = roll_back_lr_factor, scale_cnt_limit
        self.loss_spike = loss_spike
        self.bad_steps = self.roll_backs = self.loss_spikes = 0
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=_LINES_FOR_SPIKES)
        self._scale_low_since: int | None = None

    def counts(self) -> dict[str, Any]:
        """For the report: how often each of these happened over all jobs of the run, and the factor of the rates."""
        return {
            "bad_steps": self.bad_steps,
            "roll_backs": self.roll_backs,
            "loss_spikes": self.loss_spikes,
            "rate_factor": self.trainer.learning_rate_factor,
        }

    def restore(self, state: TrainerState) -> None:
        """Go on from the counts of earlier jobs of the run."""
        counts = {**self.counts(), **stored_state(state, _STATE_KEY)}
        self.trainer.learning_rate_factor = counts.pop("rate_factor")
        vars(self).update(counts)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.restore(state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.time_budget.bad_step:
            self.bad_steps += 1
            self._in_a_row += 1
            self._warn(state, "a loss or gradient is not finite, the step has no effect (%d in a row)", self._in_a_row)
            if not control.should_training_stop:
                control.should_save = False  # the last good checkpoint is the one before
        else:
            self._in_a_row = 0
        if self._in_a_row >= self.max_bad_steps and not control.should_training_stop:
            self._roll_back(state, f"{self._in_a_row} steps in a row had a loss or gradient that is not finite")
        store_state(state, _STATE_KEY, self.counts())

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = (kwargs.get("metrics") or {}).get("eval_loss")
        if loss is not None and not math.isfinite(loss) and not control.should_training_stop:
            control.should_save = False
            self._roll_back(state, "the validation loss is not finite")

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self._check_loss_scale(state)
        usual = median(self._losses) if len(self._losses) == _LINES_FOR_SPIKES else math.inf
        if math.isfinite(loss):
            self._losses.append(loss)
            if loss > usual + self.loss_spike:
                self.loss_spikes += 1
                self._warn(state, "loss spike: %.3f, the lines before had a median of %.3f", loss, usual)

    def _check_loss_scale(self, state: TrainerState) -> None:
        scale = self.trainer.loss_scale()
        if scale is None or scale > _LOWEST_SCALE:
            self._scale_low_since = None
            return
        if self._scale_low_since is None:
            self._scale_low_since = state.global_step
        steps = state.global_step - self._scale_low_since
        if steps >= self.scale_cnt_limit:
            raise RunError(
                f"fp16's loss scale is at {scale:g} for {steps} steps (scale_cnt_limit {self.scale_cnt_limit}) at step "
                f"{state.global_step}; use --bf16, or lower the learning rate"
            )

    def _roll_back(self, state: TrainerState, why: str) -> None:
        """Every rank comes here at the same step: what led here was agreed on."""
        if self.roll_backs >= self.max_roll_backs:
            raise RunError(
                f"step {state.global_step}: {why}, after {self.roll_backs} roll-backs (max_roll_backs "
                f"{self.max_roll_backs}); lower learning_rate"
            )
        self.trainer.learning_rate_factor *= self.roll_back_lr_factor
        checkpoint = self.trainer.roll_back() or "the weights as they are, there is no checkpoint yet"
        self.roll_backs += 1
        self._in_a_row = 0
        self._losses.clear()
        factor = self.trainer.learning_rate_factor
        self._warn(state, "%s: back to %s, from here %g of the learning rate", why, checkpoint, factor)

    @staticmethod
    def _warn(state: TrainerState, text: str, *values: Any) -> None:
        if state.is_world_process_zero:
            log.warning("step %d: " + text, state.global_step, *values)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error means that memory, a GPU's or the machine's, was refused."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def explain_out_of_memory(run: TrainingArguments) -> Iterator[None]:
    """RunError in the place of an error that means: a micro-batch did not fit into memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        size = run.per_device_train_batch_size
        smaller = f"give {size // 2} and twice the gradient_accumulation_steps" if size > 1 else "take a smaller model"
        asked = re.search(r"ried to allocate ([\d.]+ \w+)", text)
        wanted = f" ({asked.group(1)} more were asked for)" if asked else ""
        raise RunError(
            f"per_device_train_batch_size: {size} does not fit into the memory of rank {run.process_index}'s "
            f"{run.device.type}{wanted}",
            fix=smaller,
            resumable=True,
        ) from error
