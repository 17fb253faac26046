"""Our metrics against the Hub's `glue`, where it can be reached; GLUE_METRIC may name a copy of its script instead."""

import os
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest

from budget_trainer.glue.metrics import GlueMetric
from budget_trainer.glue.tasks import TASKS

NOT_ON_THE_HUB = ("ax",)  # the Hub's metric has no diagnostics
CONFIGS = [task.config for task in TASKS.values() if task.config not in NOT_ON_THE_HUB]
TOLERANCE = 1e-6  # the Hub's STS-B reads 32-bit floats


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
    classes = 3 if config == "mnli" else 2
    truth = chance.integers(0, classes, 400)
    yield chance.integers(0, classes, 400), truth
    yield np.where(chance.random(400) < 0.9, truth, 0), truth
    yield (truth + 1) % classes, truth
    yield np.ones_like(truth), truth
    yield (chance.random(400) < 0.1).astype(int), (chance.random(400) < 0.2).astype(int)  # few true ones


def assert_equal(config, theirs):
    """Every key and value of `theirs` (with `compute`) is ours, on every case."""
    for number, (predictions, references) in enumerate(cases(config)):
        expected = theirs.compute(predictions=predictions, references=references)
        ours = GlueMetric(config).compute(predictions=predictions, references=references)
        assert ours == pytest.approx(expected, abs=TOLERANCE), f"{config}, case {number}"


@pytest.fixture(scope="module")
def load():
    """`evaluate.load` of the Hub's metric; skips where the Hub is out of reach."""
    source = os.environ.get("GLUE_METRIC", "glue")
    try:
        evaluate.load(source, "sst2")
    except (OSError, ImportError, RuntimeError) as error:  # no network: ConnectionError, FileNotFoundError
        pytest.skip(f"the Hub's metric cannot be loaded: {' '.join(str(error).split())[:120]}")
    return lambda config: evaluate.load(source, config)


@pytest.mark.parametrize("config", CONFIGS)
def test_equal_to_the_hubs(config, load):
    assert_equal(config, load(config))


@pytest.mark.parametrize(
    ("config", "change"),
    [
        ("sst2", lambda scores: {"accuracy": scores["accuracy"] + 1e-4}),
        ("mrpc", lambda scores: {"accuracy": scores["accuracy"], "f1": scores["accuracy"]}),
        ("mrpc", lambda scores: {"accuracy": scores["accuracy"]}),  # a key is missing
        ("stsb", lambda scores: {"pearson": scores["spearmanr"], "spearmanr": scores["pearson"]}),
        ("cola", lambda scores: {"matthews_correlation": -scores["matthews_correlation"]}),
    ],
)
def test_a_difference_would_be_found(config, change):
    other = SimpleNamespace(compute=lambda **given: change(GlueMetric(config).compute(**given)))
    with pytest.raises(AssertionError):
        assert_equal(config, other)
