"""GLUE's metrics by scikit-learn and scipy, under the keys of the Hub's `glue` metric.

Where a metric is not defined it is 0.0, so that a model that has learnt nothing counts as such and no NaN hides in a mean:
Matthews where predictions or labels are all of one class (as scikit-learn and the leaderboard have it), F1 where nothing is
true and nothing is predicted, Pearson and Spearman where one side is constant or has fewer than two values (scipy: NaN).
Predictions that are not finite are an error: they mean that training has diverged.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.glue.tasks import UNLABELLED, Task


def _correlation(function: Any, references: np.ndarray, predictions: np.ndarray) -> float:
    if len(references) < 2 or np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: the value is 0.0 below
        value = float(function(predictions, references)[0])
    return value if np.isfinite(value) else 0.0


_COMPUTE = {
    "accuracy": lambda references, predictions: float(accuracy_score(references, predictions)),
    "f1": lambda references, predictions: float(f1_score(references, predictions, zero_division=0.0)),
    "matthews_correlation": lambda references, predictions: float(matthews_corrcoef(references, predictions)),
    "pearson": lambda references, predictions: _correlation(pearsonr, references, predictions),
    "spearmanr": lambda references, predictions: _correlation(spearmanr, references, predictions),
}


def score(task: Task, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The metrics of `task` by name. Both arrays have one number a row: a class, or a score.

    InputError for rows without label (test); RunError for predictions that are not finite.
    """
    if len(predictions) != len(references) or not len(references):
        raise InputError(f"predictions: {len(predictions)} for {len(references)} references; give one for each")
    if (references == UNLABELLED).any():
        raise InputError(f"references: rows of {task.name} without label (-1); only train and dev can be scored")
    if not np.isfinite(predictions).all():
        raise RunError(
            f"predictions: {task.name} has some that are not finite: training diverged; lower learning_rate"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found")  # defined as 0.0, see above
        return {name: _COMPUTE[name](references, predictions) for name in task.metrics}


def predict(task: Task, logits: np.ndarray) -> np.ndarray:
    """Class numbers of `logits` (rows, classes), or the scores of a regression (rows, 1), as they are."""
    if task.regression:
        return logits.reshape(len(logits)).astype(np.float64)
    if not np.isfinite(logits).all():
        return np.full(len(logits), np.nan)
    return logits.argmax(axis=-1)
