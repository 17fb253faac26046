"""The Trainer of one run on GLUE: a budget where one was given, our evaluation, and a loss that is a mean."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from budget_trainer.curves import make_curve
from budget_trainer.errors import InputError, RunError
from budget_trainer.glue.best import Best
from budget_trainer.mixin import TimeScheduleMixin
from budget_trainer.scheduler import TimeScheduler

log = logging.getLogger(__name__)
CURVES = {"linear": "linear", "polynomial": "linear", "cosine": "cosine", "constant": "constant"}
CURVES |= {"constant_with_warmup": "constant"}  # lr_scheduler_type: the curve over the time of a budget


class GlueTrainer(TimeScheduleMixin, Trainer):
    """`evaluate` scores the dev splits through `best`, which keeps the best weights.

    Under a budget the learning rate follows whichever comes first, the end of the time or of `num_train_epochs`: it is down
    at both. Without one it is Trainer's own.
    """

    def __init__(self, *args: Any, best: Best, patience: int = -1, **kwargs: Any) -> None:
        self.best = best
        super().__init__(*args, **kwargs)
        # The library's classifiers take **kwargs, from which Trainer concludes that they divide by num_items_in_batch;
        # they do not: with N accumulation steps the gradient would be N times too large.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(_Course(self, patience))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if math.isinf(self.time_budget.total_seconds):
            return super(TimeScheduleMixin, self).create_scheduler(num_training_steps, optimizer)
        trainer: Any = self
        if trainer.lr_scheduler is None:
            warmup = min(0.5, self.args.get_warmup_steps(num_training_steps) / max(1, num_training_steps))
            curve = make_curve(curve_name(self.args), warmup)

            def progress() -> float:
                return max(self.time_budget.progress, min(1.0, self._steps_done() / num_training_steps))

            trainer.lr_scheduler = TimeScheduler(
                optimizer or trainer.optimizer, curve, progress, lambda: self.time_budget.rate_factor
            )
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    @property
    def evaluated(self) -> bool:
        """Whether the weights of the last step have been scored."""
        return bool(self.best.evaluations) and self.best.evaluations[-1]["step"] == self.state.global_step

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the dev splits: `eval_<metric>`, with the split in between where there are two (MNLI)."""
        clock = self.time_budget.clock
        assert clock is not None
        begin = clock.shares()["evaluate"]
        with clock.phase("evaluate"):
            model: Any = self.model
            model.to(self.args.device)  # an engine has not placed it yet where nothing is trained
            try:
                found = self.best.evaluate(model, self.state.epoch or 0.0, self.state.global_step, self._state_dict)
            except RunError as error:
                return self._end_diverged(error)
        self.time_budget.evaluate_seconds = clock.shares()["evaluate"] - begin
        flat = {
            f"eval_{name}" if len(found["metrics"]) == 1 else f"eval_{split}_{name}": value
            for split, metrics in found["metrics"].items()
            for name, value in metrics.items()
        }
        if self.args.should_log:
            mark = " (best)" if self.best.since == 0 else ""
            text = ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in flat.items())
            log.info("%s, epoch %.2f, step %d: %s%s", self.best.task.name, found["epoch"], found["step"], text, mark)
        self.log(dict(flat))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, flat)
        return flat

    def _end_diverged(self, error: RunError) -> dict[str, float]:
        """Weights that have diverged (on all ranks alike): what was best before stays, and training ends."""
        if self.best.place is None:
            raise error
        log.warning("%s; the best of the evaluations before is kept", error)
        self.time_budget.stop_reason = "diverged"
        self.control.should_training_stop = True
        return {}

    def settle_best(self) -> None:
        """After training: score the last weights where that has not been done; without dev data they are the best."""
        if not self.best.dev:
            self.best.state = self._state_dict()
        elif not self.evaluated and self.time_budget.stop_reason != "diverged":
            self.evaluate()

    def _state_dict(self) -> dict[str, torch.Tensor] | None:
        """A copy of the whole weights on the CPU of the process that saves; all ranks call it."""
        if not self.args.do_train:
            return None  # what was loaded is the best
        model: Any = self.model_wrapped
        state = self.accelerator.get_state_dict(model)
        if not self.args.should_save:
            return None
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


class _Course(TrainerCallback):
    """Early stopping, evaluations only where the budget carries them, and no training checkpoints: a run is begun anew."""

    def __init__(self, trainer: GlueTrainer, patience: int) -> None:
        self.trainer, self.patience = trainer, patience

    def _settle(self, control: TrainerControl) -> None:
        control.should_save = False
        budget = self.trainer.time_budget
        if control.should_evaluate and not budget.affords(budget.reading.evaluate):
            control.should_evaluate = (
                False  # all ranks have the same reading; the reserve holds the time of the last one
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._settle(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._settle(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        budget = self.trainer.time_budget
        if 0 < self.patience <= self.trainer.best.since and budget.stop_reason is None:
            budget.stop_reason = "early_stopping"
            control.should_training_stop = True


def curve_name(args: TrainingArguments) -> str:
    """The curve over a budget that `lr_scheduler_type` asks for."""
    name = getattr(args.lr_scheduler_type, "value", str(args.lr_scheduler_type))
    if name not in CURVES:
        raise InputError(
            f"lr_scheduler_type: {name!r} does not follow total_training_time; choose one of {', '.join(CURVES)}"
        )
    return CURVES[name]
