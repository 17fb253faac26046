"""What a run does about bad steps, a stuck loss scale and loss spikes: decided from what all ranks agreed on.

A step whose gradient is not finite has no effect; and the way back to the last good checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.core.errors import Diverged, RunError
from budget_trainer.training import checkpoints
from budget_trainer.training.engine import needs_conversion, restore_group_options

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


if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class BadSteps:
    """Judges steps and takes the effect of bad ones away, without the host waiting for the device.

    On a CPU the gradients are dropped: the optimizer leaves weights and moments as they are. On a GPU a fused Adam is
    told not to step, other optimizers get gradients of zero (their momentum still moves the weights), and what was bad
    is known one step later. DeepSpeed and fp16's scaler skip such steps themselves.
    """

    def __init__(self) -> None:
        self._now: bool | torch.Tensor = False
        self._before: bool | torch.Tensor = False

    def judge(self, value: Any, model: torch.nn.Module, optimizer: Any) -> torch.Tensor:
        """Whether `value` of the step to be taken is not finite: bool []. The gradient norm is the same on all ranks."""
        if hasattr(value, "full_tensor"):  # FSDP's norm is a DTensor
            value = value.full_tensor()
        bad = ~torch.isfinite(torch.as_tensor(0.0 if value is None else value).detach())
        self._before = self._now
        if bad.device.type != "cpu":
            self._now = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
            withhold(bad, model, optimizer)
        else:
            self._now = self._before = bool(bad)
            for parameter in model.parameters() if self._now else ():
                parameter.grad = None
        return bad

    def found(self) -> bool:
        """The verdict of the last step whose work is known to be done: this one on a CPU, the one before on a GPU."""
        return bool(self._before)


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


class GuardedSteps(_Base):
    """Mixed into a Trainer with a TimeBudgetCallback, whose control message tells all ranks of a bad step."""

    time_budget: TimeBudgetCallback
    _loss_before: torch.Tensor | None = None
    _line_began = 0  # the step of the last line of the log
    _bad_in_line: torch.Tensor | None = None  # bad steps since then, on the device

    def watch_steps(self) -> None:
        """Judge every step from now on (at the end of __init__)."""
        self.bad_steps = BadSteps()
        self.time_budget.found_bad_step = self.bad_steps.found

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        if self._loss_before is None:
            self._line_began = self.state.global_step
        self._loss_before = self._tr_loss.clone()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The seam between the gradients and the optimizer. The loss of a bad step does not count in the log.

        With fp16 an infinite norm only means that the loss scale is being sought; there this rank's loss decides.
        """
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        if self._loss_before is not None:
            bad = self.bad_steps.judge(self._tr_loss if self.args.fp16 else norm, model, self.optimizer)
            bad = bad.to(self._tr_loss.device)
            self._tr_loss = torch.where(bad, self._loss_before, self._tr_loss)
            self._bad_in_line = bad.long() if self._bad_in_line is None else self._bad_in_line + bad
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The loss of a line is the mean over its good steps (as this rank saw them), nan where there was none."""
        if "loss" in logs and self._bad_in_line is not None:
            steps, bad = self.state.global_step - self._line_began, int(self._bad_in_line)
            self._line_began, self._bad_in_line = self.state.global_step, None
            if bad:
                logs |= {"loss": logs["loss"] * steps / (steps - bad) if bad < steps else math.nan, "bad_steps": bad}
        super().log(logs, start_time)  # type: ignore[misc]

    def roll_back(self) -> Path | None:
        """Weights, optimizer and random states of the newest complete checkpoint; clock, data and schedule stay.

        Call it on all ranks between two steps. Returns the checkpoint, or None where there is none yet.
        """
        run_dir = Path(str(self.args.output_dir))
        budget, clock = self.time_budget, self.time_budget.clock
        assert clock is not None
        (step,), _ = budget.channel.agree(
            [max(map(checkpoints.step_of, checkpoints.checkpoints(run_dir)), default=-1)]
        )
        scheduler: Any = self.lr_scheduler
        if step < 0:
            scheduler.refresh()
            return None
        folder = run_dir / f"checkpoint-{int(step)}"
        with clock.phase("save"):
            checkpoints.verify(folder)
            self._load_weights(str(folder))
            self._load_optimizer_and_scheduler(str(folder))
            self._load_rng_state(str(folder))
            scheduler.refresh()  # the optimizer has brought its old rates back
            self.watch_steps()  # what was found before is of the old weights
            budget.channel.barrier()
        return folder

    def _load_weights(self, folder: str) -> None:
        """Of an engine that shards them with its optimizer state."""
        if not self.is_deepspeed_enabled:
            self._load_from_checkpoint(folder, self.model_wrapped if self.is_fsdp_enabled else None)
            return
        engine: Any = self.model_wrapped
        engine._config.load_universal_checkpoint = converted = needs_conversion(Path(folder), self.args)
        groups = [dict(group) for group in engine.optimizer.optimizer.param_groups]
        path, _ = engine.load_checkpoint(folder, load_lr_scheduler_states=False)
        if path is None:
            raise RunError(f"roll-back: DeepSpeed finds nothing to load in {folder}; resume from an older checkpoint")
        if converted:
            restore_group_options(engine.optimizer.optimizer, groups)

    def loss_scale(self) -> float | None:
        """fp16's present loss scale; reading it waits for the device. None without fp16."""
        if not self.args.fp16:
            return None
        if self.is_deepspeed_enabled:
            return float(self.model_wrapped.optimizer.loss_scale)  # type: ignore[union-attr,arg-type]
        return float(self.accelerator.scaler.get_scale()) if self.accelerator.scaler is not None else None
