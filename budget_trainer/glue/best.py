"""The evaluations of a run, and the best of them with its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

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
