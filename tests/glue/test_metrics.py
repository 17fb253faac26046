"""The metrics against numbers worked out on paper, the libraries called by hand, the Hub's metric, and where undefined."""

import math
import os
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.glue.tasks import TASKS
from budget_trainer.glue.trainer import GlueMetric, predict

# 3 true ones, 1 false one, 2 missed, 2 true zeros
PREDICTIONS, REFERENCES = [1, 1, 0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0, 1, 1]
CONFIGS = [task.config for task in TASKS.values()]


def compute(config, predictions, references, **options):
    return GlueMetric(config, **options).compute(predictions=predictions, references=references)


def test_worked_out_on_paper():
    assert compute("sst2", PREDICTIONS, REFERENCES) == {"accuracy": 5 / 8}
    f1 = 2 * 3 / (2 * 3 + 1 + 2)
    assert compute("mrpc", PREDICTIONS, REFERENCES) == pytest.approx({"accuracy": 5 / 8, "f1": f1})
    matthews = (3 * 2 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2))
    assert compute("cola", PREDICTIONS, REFERENCES) == pytest.approx({"matthews_correlation": matthews})
    # x - mean: -1.5 -.5 .5 1.5; y - mean: -1 -2 2 1 -> 5 / sqrt(5 * 10); ranks of y: 2 1 4 3 -> 1 - 6 * 4 / (4 * 15)
    expected = {"pearson": 5 / math.sqrt(50), "spearmanr": 0.6}
    assert compute("stsb", [1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 4.0, 3.0]) == pytest.approx(expected)


def cases(config):
    """(predictions, references) at random, nearly right, all wrong and of one class: wherever both are defined."""
    chance = np.random.default_rng(11)
    if config == "stsb":
        truth = np.round(chance.uniform(0, 5, 400), 3)
        yield chance.uniform(0, 5, 400), truth
        yield truth + chance.normal(0, 0.3, 400), truth
        yield 5 - truth, truth
        yield np.round(truth), truth  # ties
        return
    classes = 3 if config in ("mnli", "ax") else 2
    truth = chance.integers(0, classes, 400)
    yield chance.integers(0, classes, 400), truth
    yield np.where(chance.random(400) < 0.9, truth, 0), truth
    yield (truth + 1) % classes, truth
    yield np.ones_like(truth), truth
    yield (chance.random(400) < 0.1).astype(int), (chance.random(400) < 0.2).astype(int)  # few true ones


LIBRARIES = {
    "accuracy": metrics.accuracy_score,
    "f1": metrics.f1_score,
    "matthews_correlation": metrics.matthews_corrcoef,
    "pearson": lambda references, predictions: stats.pearsonr(predictions, references)[0],
    "spearmanr": lambda references, predictions: stats.spearmanr(predictions, references)[0],
}


@pytest.mark.parametrize("task", TASKS.values(), ids=CONFIGS)
def test_bit_for_bit_the_libraries_values(task):
    config = task.config
    for predictions, references in cases(config):
        expected = {name: float(LIBRARIES[name](references, predictions)) for name in task.metrics}
        for in_memory in (True, False):
            assert compute(config, predictions, references, keep_in_memory=in_memory) == expected


@pytest.mark.parametrize("config", [config for config in CONFIGS if config != "ax"])  # the Hub's has no diagnostics
def test_equal_to_the_hubs(config):
    """Or to a copy of its script that GLUE_METRIC names; skips without either."""
    try:
        hubs = evaluate.load(os.environ.get("GLUE_METRIC", "glue"), config)
    except (OSError, ImportError, RuntimeError) as error:  # no network: ConnectionError, FileNotFoundError
        pytest.skip(f"the Hub's metric cannot be loaded: {' '.join(str(error).split())[:120]}")
    for predictions, references in cases(config):
        expected = hubs.compute(predictions=predictions, references=references)
        # the Hub's STS-B reads 32-bit floats
        assert compute(config, predictions, references) == pytest.approx(expected, abs=1e-6)


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
    nearly_constant = compute("stsb", [1.0, 1.0, 1.0 + 1e-16, 1.0 + 3e-16], [1.0, 2.0, 3.0, 4.0])
    assert all(math.isfinite(value) for value in nearly_constant.values())


def test_in_parts_as_evaluate_does_it(tmp_path: Path):
    metric = GlueMetric("mrpc", keep_in_memory=True, cache_dir=str(tmp_path))
    for _ in range(2):  # one object scores all evaluations of a run
        for begin in (0, 4):
            metric.add_batch(predictions=PREDICTIONS[begin : begin + 4], references=REFERENCES[begin : begin + 4])
        assert metric.compute() == compute("mrpc", PREDICTIONS, REFERENCES)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_cannot_be_scored():
    with pytest.raises(InputError, match="without label"):
        compute("rte", [0, 1], [-1, -1])
    with pytest.raises(ValueError, match="Mismatch in the number of predictions"):
        compute("rte", [0, 1], [0, 1, 1])
    with pytest.raises(InputError, match="config_name: 'squad' is no task of GLUE"):
        GlueMetric("squad")


def test_from_logits():
    assert predict(TASKS["MNLI"], "ax", np.array([[0.1, 3.0, 0.2], [2.0, 1.0, 0.0]])).tolist() == [1, 0]
    assert predict(TASKS["STS-B"], "dev", np.array([[4.5], [-0.25]])).tolist() == [4.5, -0.25]
    for name, logits in (("STS-B", [[np.nan], [1.0]]), ("RTE", [[np.inf, 0.0], [1.0, 2.0]])):
        with pytest.raises(RunError, match=f"{name}, dev, has some that are not finite: training diverged"):
            predict(TASKS[name], "dev", np.array(logits))
