"""GLUE's metrics as an `evaluate.Metric` of this package, under the keys of the Hub's `glue` metric.

`evaluate.load("glue")` downloads code and runs it; this computes the same with scikit-learn and scipy. Where a metric is not
defined it is 0.0, so that no NaN hides in a mean: Matthews where predictions or labels are all of one class (as the leaderboard
has it), F1 where nothing is true or predicted, correlations where one side is constant or has fewer than two values.
"""

from __future__ import annotations

import warnings
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.glue.tasks import UNLABELLED, Task, find_task


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
