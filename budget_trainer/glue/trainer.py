"""Rows of token ids, GLUE's metrics, and the Trainer of one run on GLUE: under a budget, scored, the best weights kept.

The metrics are an `evaluate.Metric` of this package, under the keys of the Hub's `glue` metric.
`evaluate.load("glue")` downloads code and runs it; this computes the same with scikit-learn and scipy. Where a metric is not
defined it is 0.0, so that no NaN hides in a mean: Matthews where predictions or labels are all of one class (as the leaderboard
has it), F1 where nothing is true or predicted, correlations where one side is constant or has fewer than two values.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from budget_trainer.budget.channel import Agreement
from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.mixin import TimeScheduleMixin
from budget_trainer.budget.scheduler import TimeScheduler
from budget_trainer.core.errors import InputError, RunError, StopAsked
from budget_trainer.glue.data import Examples
from budget_trainer.glue.tasks import UNLABELLED, Task, find_task

log = logging.getLogger(__name__)
_TOKENIZED_TOGETHER = 1000  # examples
_POLL_EVERY = 20  # batches of an evaluation between two questions whether a signal has come
_CURVES = {"linear": "linear", "polynomial": "linear", "cosine": "cosine"}  # lr_scheduler_type: that over a budget
_CURVES |= dict.fromkeys(("constant", "constant_with_warmup"), "constant")


class Rows(Dataset):
    """The token ids of a split as flat arrays, row i from `offsets[i]` on; an item has `label` and lists, as `input_ids`.

    A row has at most `max_seq_length` ids; of a pair the longer sentence is cut first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, examples: Examples, max_seq_length: int) -> None:
        columns: dict[str, list[list[int]]] = {}
        options = {"truncation": True, "max_length": max_seq_length, "return_attention_mask": False}
        options["split_special_tokens"] = True  # "[SEP]" in a sentence is text
        for begin in range(0, len(examples), _TOKENIZED_TOGETHER):
            texts = (column[begin : begin + _TOKENIZED_TOGETHER] for column in examples.columns.values())
            for name, rows in tokenizer(*texts, **options).items():
                columns.setdefault(name, []).extend(rows)
        self.offsets = np.cumsum([0, *map(len, columns["input_ids"])], dtype=np.int64)
        self.columns = {
            name: np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(self.offsets[-1]))
            for name, rows in columns.items()
        }
        self.labels = np.asarray(examples.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        begin, end = self.offsets[row], self.offsets[row + 1]
        item: dict[str, Any] = {name: values[begin:end].tolist() for name, values in self.columns.items()}
        return {**item, "label": self.labels[row].item()}

    def longest_first(self) -> np.ndarray:
        """The numbers of the rows in the order of their length: batches of equal lengths need no padding."""
        return np.argsort(-np.diff(self.offsets), kind="stable")


def _correlation(function: Any, references: np.ndarray, predictions: np.ndarray) -> float:
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    value = float(function(predictions, references)[0])
    return value if np.isfinite(value) else 0.0  # nearly constant input


_COMPUTE = {
    "accuracy": lambda references, predictions: float(accuracy_score(references, predictions)),
    "f1": lambda references, predictions: float(f1_score(references, predictions, zero_division=0.0)),
    "matthews_correlation": lambda references, predictions: float(matthews_corrcoef(references, predictions)),
    "pearson": lambda references, predictions: _correlation(pearsonr, references, predictions),
    "spearmanr": lambda references, predictions: _correlation(spearmanr, references, predictions),
}


class GlueMetric(evaluate.Metric):
    """The metrics of one task: `GlueMetric("mrpc").compute(predictions=[0, 1], references=[0, 1])`.

    Predictions and references are one number a row: a class, or a score (STS-B). Values are shares from 0 to 1
    (correlations from -1), as the Hub's metric gives them. InputError for rows without label (test).
    """

    def __init__(self, config_name: str, **kwargs: Any) -> None:
        self.task = find_task(config_name, "config_name")
        super().__init__(config_name=self.task.config, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kind = "float64" if self.task.regression else "int64"
        return evaluate.MetricInfo(
            description=f"GLUE, {self.task.name}: {', '.join(self.task.metrics)}.",
            citation="Wang et al., GLUE (ICLR 2019), arXiv 1804.07461",
            inputs_description="predictions and references: class numbers, or scores (STS-B).",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        if (references == UNLABELLED).any():
            raise InputError(f"references: {self.task.name} has rows without label (-1); score train or dev")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one class, or nearly constant: defined as 0.0, see above
            return {name: _COMPUTE[name](references, predictions) for name in self.task.metrics}


def predict(task: Task, split: str, logits: np.ndarray) -> np.ndarray:
    """Class numbers of a split's `logits` [rows, classes], or the scores of a regression [rows, 1], as they are.

    RunError where a logit is not finite: training has diverged.
    """
    if not np.isfinite(logits).all():
        where = f"{task.name}, {split}"
        raise RunError(f"predictions: {where}, has some that are not finite: training diverged; lower learning_rate")
    return logits.reshape(len(logits)).astype(np.float64) if task.regression else logits.argmax(axis=-1)


@dataclass
class Predictor:
    """Runs a model over rows, longest first, divided over the ranks: each row exactly once, whatever their number.

    Every rank computes the same number of batches, so that all ask for signals together. `dtype` is autocast's, None for none.
    """

    collate: Callable[[list[dict[str, Any]]], Any]
    batch_size: int
    device: torch.device
    agreement: Agreement
    dtype: torch.dtype | None = None

    def logits(self, model: Any, rows: Rows, batches: int | None = None) -> np.ndarray:
        """Float32 [len(rows), classes], in the order of the rows, the same on every rank.

        With `batches` only the first so many of each rank (the others are zeros), to measure their time. Raises StopAsked on
        all ranks where a signal has come to any of them.
        """
        channel = self.agreement.channel
        order, together = rows.longest_first(), self.batch_size * channel.world_size
        steps = -(-len(rows) // together)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        was_training = model.training
        model.to(self.device)  # an engine has not placed it yet where nothing is trained
        model.eval()
        try:
            for step in range(steps if batches is None else min(batches, steps)):
                if step % _POLL_EVERY == _POLL_EVERY - 1 and self.agreement.agree_on_stop():
                    raise StopAsked(f"{self.agreement.stop_asked_by} during an evaluation")
                begin = step * together + channel.rank * self.batch_size
                mine = order[begin : begin + self.batch_size]
                outputs = self._forward(model, rows, mine if len(mine) else order[:1])
                found.append((mine, outputs[: len(mine)]))
        finally:
            model.train(was_training)
        parts = channel.gather(tuple(np.concatenate(part) for part in zip(*found, strict=True)))
        joined = np.zeros((len(rows), parts[0][1].shape[1]), dtype=np.float32)
        for numbers, outputs in parts:
            joined[numbers] = outputs
        return joined

    def _forward(self, model: Any, rows: Rows, numbers: np.ndarray) -> np.ndarray:
        batch = self.collate([rows[int(number)] for number in numbers])
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return model(**inputs).logits.float().cpu().numpy()


class GlueTrainer(TimeScheduleMixin, Trainer):
    """`evaluate` scores the splits of `dev` and keeps outputs and weights of the best evaluation so far.

    The best has the highest headline metric on the first dev split (MNLI: matched), of equals the earlier one. Its weights are
    kept in memory by the process that saves (340 M parameters take 1.3 GB). Under a budget the learning rate is down at
    whichever comes first, the end of the time or of `num_train_epochs`; without one it is Trainer's own. `patience` is the
    number of evaluations without a better one that ends training, -1 for none.
    """

    leads = False

    def __init__(
        self, *args: Any, task: Task, dev: dict[str, Rows], predictor: Predictor, patience: int = -1, **kwargs: Any
    ) -> None:
        self.task, self.dev, self.predictor = task, dev, predictor
        self.evaluations: list[dict[str, Any]] = []  # epoch, step, metrics by split
        self.best: dict[str, Any] | None = None  # of the evaluations
        self.best_logits: dict[str, np.ndarray] = {}
        self.best_state: dict[str, torch.Tensor] | None = None
        # In memory: the ranks of a run, and the runs of a suite, would otherwise share a cache file and its lock.
        self._metric = GlueMetric(task.name, keep_in_memory=True)
        super().__init__(*args, eval_dataset=next(iter(dev.values()), None), **kwargs)
        # The library's classifiers take **kwargs, from which Trainer concludes that they divide by num_items_in_batch;
        # they do not: with N accumulation steps the gradient would be N times too large.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(_GlueCallback(self, patience))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if math.isinf(self.time_budget.total_seconds):
            return super(TimeScheduleMixin, self).create_scheduler(num_training_steps, optimizer)
        trainer: Any = self
        if trainer.lr_scheduler is None:
            warmup = min(0.5, self.args.get_warmup_steps(num_training_steps) / max(1, num_training_steps))
            curve = make_curve(self.curve_name(self.args), warmup)

            def progress() -> float:
                return max(self.time_budget.progress, min(1.0, self._steps_done() / num_training_steps))

            trainer.lr_scheduler = TimeScheduler(optimizer or trainer.optimizer, curve, progress)
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    @staticmethod
    def curve_name(args: TrainingArguments) -> str:
        """The curve over a budget that `lr_scheduler_type` asks for; InputError where there is none."""
        name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        if name not in _CURVES:
            known = ", ".join(_CURVES)
            raise InputError(f"lr_scheduler_type: {name!r} does not follow total_training_time; choose one of {known}")
        return _CURVES[name]

    @property
    def headline(self) -> float | None:
        """The headline metric of the best evaluation on the first dev split; None where there was none."""
        return None if self.best is None else self._headline(self.best)

    def _headline(self, evaluation: dict[str, Any]) -> float:
        return next(iter(evaluation["metrics"].values()))[self.task.headline]

    @property
    def evaluations_since_best(self) -> int:
        return 0 if self.best is None else len(self.evaluations) - 1 - self.evaluations.index(self.best)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the dev splits: `eval_<metric>`, with the split in between where there are two (MNLI)."""
        clock = self.time_budget.clock
        assert clock is not None
        begin = clock.seconds_by_phase()["evaluate"]
        with clock.phase("evaluate"):
            logits = {name: self.predictor.logits(self.model, rows) for name, rows in self.dev.items()}
            try:
                metrics = {name: self._score(name, logits[name]) for name in self.dev}
            except RunError as error:
                return self._end_diverged(error)
            found = {"epoch": round(self.state.epoch or 0.0, 4), "step": self.state.global_step, "metrics": metrics}
            self.evaluations.append(found)
            if self.best is None or self._headline(found) > self._headline(self.best):
                self.best, self.best_logits, self.best_state = found, logits, self._state_dict()
        self.time_budget.evaluate_seconds = clock.seconds_by_phase()["evaluate"] - begin
        flat = {
            f"eval_{name}" if len(metrics) == 1 else f"eval_{split}_{name}": value
            for split, values in metrics.items()
            for name, value in values.items()
        }
        if self.args.should_log:
            mark = " (best)" if found is self.best else ""
            text = ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in flat.items())
            log.info("%s, epoch %.2f, step %d: %s%s", self.task.name, found["epoch"], found["step"], text, mark)
        self.log(dict(flat))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, flat)
        return flat

    def _score(self, split: str, logits: np.ndarray) -> dict[str, float]:
        predictions = predict(self.task, split, logits)
        return self._metric.compute(predictions=predictions, references=self.dev[split].labels)

    def _end_diverged(self, error: RunError) -> dict[str, float]:
        """Weights that have diverged (on all ranks alike): what was best before stays, and training ends."""
        if self.best is None:
            raise error
        log.warning("%s; the best of the evaluations before is kept", error)
        self.time_budget.stop_reason = "diverged"
        self.control.should_training_stop = True
        return {}

    def evaluate_last_weights(self) -> None:
        """Score the last weights of a training where that has not been done; without dev data they are the best."""
        if not self.dev:
            self.best_state = self._state_dict()
        elif self.time_budget.stop_reason != "diverged" and not (
            self.evaluations and self.evaluations[-1]["step"] == self.state.global_step
        ):
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


class _GlueCallback(TrainerCallback):
    """Early stopping, evaluations only where the budget has the time, and no training checkpoints: a run is begun anew."""

    def __init__(self, trainer: GlueTrainer, patience: int) -> None:
        self.trainer, self.patience = trainer, patience

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = False
        budget = self.trainer.time_budget
        # All ranks have the same reading; the time of the last evaluation is reserved.
        if control.should_evaluate and not budget.reserve(budget.reading.evaluate):
            control.should_evaluate = False

    on_epoch_end = on_train_end = on_step_end

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        budget = self.trainer.time_budget
        if 0 < self.patience <= self.trainer.evaluations_since_best and budget.stop_reason is None:
            budget.stop_reason = "early_stopping"
            control.should_training_stop = True
