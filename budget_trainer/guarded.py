"""A step whose gradient is not finite has no effect; and the way back to the last good checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from budget_trainer import checkpoints
from budget_trainer.callbacks.time_budget import TimeBudgetCallback
from budget_trainer.errors import RunError
from budget_trainer.universal import is_needed, mend

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
        engine._config.load_universal_checkpoint = converted = is_needed(Path(folder), self.args)
        groups = [dict(group) for group in engine.optimizer.optimizer.param_groups]
        path, _ = engine.load_checkpoint(folder, load_lr_scheduler_states=False)
        if path is None:
            raise RunError(f"roll-back: DeepSpeed finds nothing to load in {folder}; resume from an older checkpoint")
        if converted:
            mend(engine.optimizer.optimizer, groups)

    def loss_scale(self) -> float | None:
        """fp16's present loss scale; reading it waits for the device. None without fp16."""
        if not self.args.fp16:
            return None
        if self.is_deepspeed_enabled:
            return float(self.model_wrapped.optimizer.loss_scale)  # type: ignore[union-attr,arg-type]
        return float(self.accelerator.scaler.get_scale()) if self.accelerator.scaler is not None else None
