"""The metrics against scikit-learn and scipy called by hand, against numbers worked out on paper, and where undefined."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.glue.metrics import GlueMetric
from budget_trainer.glue.scores import predict, score
from budget_trainer.glue.tasks import TASKS

PREDICTIONS, REFERENCES = (
    [1, 1, 0, 1, 0, 0, 1, 0],
    [1, 0, 0, 1, 1, 0, 1, 1],
)  # 3 true ones, 1 false one, 2 missed, 2 true zeros


def compute(config, predictions, references):
    return GlueMetric(config).compute(predictions=predictions, references=references)


def test_worked_out_on_paper():
    assert compute("sst2", PREDICTIONS, REFERENCES) == {"accuracy": 5 / 8}
    f1 = 2 * 3 / (2 * 3 + 1 + 2)
    assert compute("mrpc", PREDICTIONS, REFERENCES) == pytest.approx({"accuracy": 5 / 8, "f1": f1})
    matthews = (3 * 2 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2))
    assert compute("cola", PREDICTIONS, REFERENCES) == pytest.approx({"matthews_correlation": matthews})
    # x - mean: -1.5 -.5 .5 1.5; y - mean: -1 -2 2 1 -> 5 / sqrt(5 * 10); ranks of y: 2 1 4 3 -> 1 - 6 * 4 / (4 * 15)
    expected = {"pearson": 5 / math.sqrt(50), "spearmanr": 0.6}
    assert compute("stsb", [1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 4.0, 3.0]) == pytest.approx(expected)


@pytest.mark.parametrize("config", [task.config for task in TASKS.values()])
def test_equal_to_the_libraries(config):
    chance = np.random.default_rng(7)
    if config == "stsb":
        references, predictions = chance.uniform(0, 5, 300), chance.uniform(0, 5, 300)
        expected = {
            "pearson": stats.pearsonr(predictions, references)[0],
            "spearmanr": stats.spearmanr(predictions, references)[0],
        }
    else:
        classes = 3 if config in ("mnli", "ax") else 2
        references, predictions = chance.integers(0, classes, 300), chance.integers(0, classes, 300)
        expected = {"accuracy": metrics.accuracy_score(references, predictions)}
        if config in ("mrpc", "qqp"):
            expected["f1"] = metrics.f1_score(references, predictions)
        if config in ("cola", "ax"):
            expected = {"matthews_correlation": metrics.matthews_corrcoef(references, predictions)}
    assert compute(config, predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("config", "predictions", "references", "expected"),
    [
        ("cola", [1, 1, 1, 1], [1, 0, 1, 0], {"matthews_correlation": 0.0}),
        ("cola", [1, 0, 1, 0], [1, 1, 1, 1], {"matthews_correlation": 0.0}),
        ("cola", [1, 1], [1, 1], {"matthews_correlation": 0.0}),
        ("mrpc", [0, 0, 0], [1, 0, 0], {"accuracy": 2 / 3, "f1": 0.0}),
        ("mrpc", [0, 0, 0], [0, 0, 0], {"accuracy": 1.0, "f1": 0.0}),
        ("mrpc", [1, 1, 1], [1, 1, 1], {"accuracy": 1.0, "f1": 1.0}),
        ("stsb", [2.5, 2.5, 2.5], [1.0, 2.0, 3.0], {"pearson": 0.0, "spearmanr": 0.0}),
        ("stsb", [1.0, 2.0, 3.0], [4.0, 4.0, 4.0], {"pearson": 0.0, "spearmanr": 0.0}),
        ("stsb", [3.0], [2.0], {"pearson": 0.0, "spearmanr": 0.0}),
        ("mnli", [2, 2, 2], [0, 1, 2], {"accuracy": 1 / 3}),
    ],
)
def test_where_a_metric_is_not_defined(config, predictions, references, expected):
    assert compute(config, predictions, references) == pytest.approx(expected)
    if "matthews_correlation" in expected:
        assert metrics.matthews_corrcoef(references, predictions) == 0.0


def test_nearly_constant_scores_are_no_nan():
    found = compute("stsb", [1.0, 1.0, 1.0 + 1e-16, 1.0 + 3e-16], [1.0, 2.0, 3.0, 4.0])
    assert all(math.isfinite(value) for value in found.values())


def test_in_parts_as_evaluate_does_it():
    metric = GlueMetric("mrpc")
    for begin in (0, 4):
        metric.add_batch(predictions=PREDICTIONS[begin : begin + 4], references=REFERENCES[begin : begin + 4])
    assert metric.compute() == compute("mrpc", PREDICTIONS, REFERENCES)


def test_what_cannot_be_scored():
    with pytest.raises(InputError, match="without label"):
        score(TASKS["RTE"], np.array([0, 1]), np.array([-1, -1]))
    with pytest.raises(InputError, match="2 for 3 references"):
        score(TASKS["RTE"], np.array([0, 1]), np.array([0, 1, 1]))
    with pytest.raises(RunError, match="not finite: training diverged"):
        score(TASKS["STS-B"], np.array([np.nan, 1.0]), np.array([1.0, 2.0]))
    with pytest.raises(RunError, match="not finite"):
        logits = np.array([[np.nan, 0.0], [1.0, 2.0]])
        score(TASKS["RTE"], predict(TASKS["RTE"], logits), np.array([0, 1]))
    with pytest.raises(InputError, match="config_name: 'squad' is no task of GLUE"):
        GlueMetric("squad")


def test_from_logits():
    assert predict(TASKS["MNLI"], np.array([[0.1, 3.0, 0.2], [2.0, 1.0, 0.0]])).tolist() == [1, 0]
    assert predict(TASKS["STS-B"], np.array([[4.5], [-0.25]])).tolist() == [4.5, -0.25]
