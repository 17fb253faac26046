"""GLUE's metrics as an `evaluate.Metric` of this package: nothing is downloaded, keys and values are the Hub's `glue`'s.

The runs themselves use `scores`, which is the same without `evaluate`: its import takes a second.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from budget_trainer.core.errors import InputError
from budget_trainer.glue.scores import score
from budget_trainer.glue.tasks import TASKS


class GlueMetric(evaluate.Metric):
    """The metrics of one task: `GlueMetric("mrpc").compute(predictions=[0, 1], references=[0, 1])`.

    Returns shares from 0 to 1 (correlations from -1), as the Hub's metric does.
    """

    def __init__(self, config_name: str, **kwargs: Any) -> None:
        self.task = next((task for task in TASKS.values() if config_name in (task.config, task.name)), None)
        if self.task is None:
            raise InputError(f"config_name: {config_name!r} is no task of GLUE; choose one of {', '.join(TASKS)}")
        super().__init__(config_name=self.task.config, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        assert self.task is not None
        kind = "float64" if self.task.regression else "int64"
        return evaluate.MetricInfo(
            description=f"GLUE, {self.task.name}: {', '.join(self.task.metrics)}.",
            citation="Wang et al., GLUE (ICLR 2019), arXiv 1804.07461",
            inputs_description="predictions and references: class numbers, or scores (STS-B).",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        assert self.task is not None
        return score(self.task, np.asarray(predictions), np.asarray(references))
