"""The evaluations of a run, and the best of them with its weights.

The outputs of a classifier for all rows of a split, each exactly once, whatever the number of processes.

The Trainer of one run on GLUE: a budget where one was given, our evaluation, and a loss that is a mean.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from budget_trainer.budget.channel import Agreement
from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.mixin import TimeScheduleMixin
from budget_trainer.budget.scheduler import TimeScheduler
from budget_trainer.core.errors import InputError, RunError, StopAsked
from budget_trainer.glue.encoding import Rows
from budget_trainer.glue.scores import predict, score
from budget_trainer.glue.tasks import Task


class Best:
    """Scores a model on the dev splits and keeps the outputs and weights of the best one so far.

    The best is the highest headline metric on the first dev split (MNLI: matched); of equals the earlier one. Weights are
    kept in the memory of the process that saves, once: a model of 340 M parameters takes 1.3 GB.
    """

    def __init__(self, task: Task, dev: dict[str, Rows], logits_of: Callable[[Any, Rows], np.ndarray]) -> None:
        self.task, self.dev, self._logits_of = task, dev, logits_of
        self.evaluations: list[dict[str, Any]] = []  # epoch, step, metrics by split
        self.place: int | None = None  # of the best, in `evaluations`
        self.logits: dict[str, np.ndarray] = {}  # of the best
        self.state: dict[str, torch.Tensor] | None = None  # of the best; main process only

    @property
    def since(self) -> int:
        """Evaluations since the best one."""
        return 0 if self.place is None else len(self.evaluations) - 1 - self.place

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        return {} if self.place is None else self.evaluations[self.place]["metrics"]

    def headline(self, metrics: dict[str, dict[str, float]]) -> float:
        return next(iter(metrics.values()))[self.task.headline]

    def evaluate(self, model: Any, epoch: float, step: int, state_dict: Callable[[], dict | None]) -> dict[str, Any]:
        """Score `model` (on all ranks); where it is the best so far, keep what `state_dict()` gives (called on all ranks)."""
        logits = {name: self._logits_of(model, rows) for name, rows in self.dev.items()}
        metrics = {
            name: score(self.task, predict(self.task, logits[name]), rows.labels) for name, rows in self.dev.items()
        }
        evaluation = {"epoch": round(epoch, 4), "step": step, "metrics": metrics}
        self.evaluations.append(evaluation)
        if self.place is None or self.headline(metrics) > self.headline(self.metrics):
            self.place, self.logits, self.state = len(self.evaluations) - 1, logits, state_dict()
        return evaluation


POLL_EVERY = 20  # batches between two looks at whether a signal has come


class Predictor:
    """Runs a model over rows, longest first, shared among the ranks.

    Every rank does the same number of batches, so that all look at the signals together; what a rank does beyond its share is
    thrown away. `dtype` is that of autocast, None for none.
    """

    def __init__(
        self,
        collate: Callable[[list[dict[str, Any]]], Any],
        batch_size: int,
        device: torch.device,
        agreement: Agreement,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.collate, self.batch_size, self.device = collate, batch_size, device
        self.agreement, self.dtype = agreement, dtype

    def logits(self, model: Any, rows: Rows, batches: int | None = None) -> np.ndarray:
        """Float32 [len(rows), classes], in the order of the rows, the same on every rank.

        Only the first `batches` of each rank with `batches` (the longest rows; the others are zeros): to measure. Raises
        StopAsked on all ranks where a signal has come to any of them.
        """
        channel = self.agreement.channel
        order, share = rows.longest_first(), self.batch_size * channel.world_size
        steps = -(-len(rows) // share)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        was_training = model.training
        model.eval()
        try:
            for step in range(steps if batches is None else min(batches, steps)):
                if step % POLL_EVERY == POLL_EVERY - 1 and self.agreement.agree_on_stop():
                    raise StopAsked(f"{self.agreement.stop_asked_by} during an evaluation")
                begin = step * share + channel.rank * self.batch_size
                mine = order[begin : begin + self.batch_size]
                outputs = self._forward(model, rows, mine if len(mine) else order[:1])
                found.append((mine, outputs[: len(mine)]))
        finally:
            model.train(was_training)
        return self._joined(found, len(rows))

    def _forward(self, model: Any, rows: Rows, numbers: np.ndarray) -> np.ndarray:
        batch = self.collate([rows[int(number)] for number in numbers])
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return model(**inputs).logits.float().cpu().numpy()

    def _joined(self, found: list[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
        mine = tuple(np.concatenate(part) for part in zip(*found, strict=True))
        parts = self.agreement.channel.gather(mine)
        joined = np.zeros((rows, parts[0][1].shape[1]), dtype=np.float32)
        for numbers, outputs in parts:
            joined[numbers] = outputs
        return joined


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

            trainer.lr_scheduler = TimeScheduler(optimizer or trainer.optimizer, curve, progress)
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
        begin = clock.seconds_by_phase()["evaluate"]
        with clock.phase("evaluate"):
            model: Any = self.model
            model.to(self.args.device)  # an engine has not placed it yet where nothing is trained
            try:
                found = self.best.evaluate(model, self.state.epoch or 0.0, self.state.global_step, self._state_dict)
            except RunError as error:
                return self._end_diverged(error)
        self.time_budget.evaluate_seconds = clock.seconds_by_phase()["evaluate"] - begin
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
        if control.should_evaluate and not budget.reserve(budget.reading.evaluate):
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
