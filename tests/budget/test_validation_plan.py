"""When to validate, as tables: shares of the budget, and the original's epochs."""

import pytest
from transformers import TrainerControl, TrainerState

from budget_trainer.budget.callback import Reading, TimeBudgetCallback
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.stages import EveryEpochs, EveryShare
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.training.callbacks import ValidationCadence
from tests.conftest import words


def marks(plan, points):
    """The points of (share, samples) at which a validation is due."""
    last, due = 0, []
    for share, samples in points:
        mark = plan.mark(last, share, samples)
        if mark > last:
            due.append((share, samples))
        last = mark
    return due


def test_every_share_and_every_epochs_which_is_denser_at_both_ends():
    points = [(0.011, 0), (0.039, 0), (0.0401, 0), (0.2, 0)]
    assert marks(EveryShare(0.02), points) == points[1:]
    plan = EveryEpochs(5, 1, 2, begin_proportion=0.1, end_proportion=0.2, samples_per_epoch=100)
    points = [(epoch / 40, epoch * 100) for epoch in range(1, 41)]
    epochs = [samples // 100 for _, samples in marks(plan, points)]
    assert epochs == [1, 2, 3, 8, 13, 18, 23, 28, 33, 35, 37, 39]


class Run:
    """What ValidationCadence asks of a trainer, without a model."""

    def __init__(self, state):
        self.time_budget = TimeBudgetCallback(clock=BudgetClock(100.0, time_fn=lambda: 0.0))
        self.state, self.samples_consumed = state, 0
        self.cadence = ValidationCadence(self, EveryEpochs(2, 2, 2, 0.0, 0.0, 10))
        self.cadence.on_train_begin(None, state, TrainerControl())

    def step(self, samples):
        """Whether a validation is due behind this step."""
        self.samples_consumed, control = samples, TrainerControl()
        self.time_budget.reading = Reading(elapsed=1.0, job=1.0, step=0.1, save=0.1, checkpoint=0.1, evaluate=0.1)
        self.cadence.on_step_end(None, self.state, control)
        return control.should_evaluate


def test_a_mark_is_passed_once_over_the_jobs_of_a_run():
    state = TrainerState()
    first = Run(state)
    assert [first.step(samples) for samples in (10, 20, 30)] == [False, True, False]
    resumed = Run(state)
    assert [resumed.step(samples) for samples in (30, 40)] == [False, True]


def recipe_of(folder, total_training_time="1h", **flags):
    limit = {"lr_schedule": "step", "max_steps": 10}
    if total_training_time is not None:
        limit = {"total_training_time": total_training_time}
    return parse_recipe(words({"data_dir": folder, "output_dir": folder / "out", **limit, **flags}))


def test_the_flags_make_the_plan(tmp_path):
    for flags, plan in (
        ({}, None),
        ({"validate_every": "2%"}, EveryShare(0.02)),
        ({"validation_epochs": 3, "validation_begin_proportion": 0.05}, EveryEpochs(3, 1, 1, 0.05, 0.1, 7)),
        ({"validation_epochs_end": 4}, EveryEpochs(10, 1, 4, 0.1, 0.1, 7)),
    ):
        assert recipe_of(tmp_path, **flags).validation_plan(7) == plan
    minutes = recipe_of(tmp_path, validate_every="5%", early_stop_time=180, early_stop_eval_loss=6)  # the original's
    assert minutes.early_stop_seconds == 180 * 60


BAD = [
    ({"validate_every": "2%", "validation_epochs": 3}, "validation_epochs: 3 beside validate_every 2%; leave one out"),
    ({"validation_begin_proportion": 0.2}, "validation_begin_proportion: 0.2 belongs to validation_epochs"),
    ({"validation_epochs": 0}, "validation_epochs: 0 is out of range"),
    ({"validation_epochs": 1, "validation_end_proportion": 1.5}, "validation_end_proportion: 1.5 is out of range"),
    ({"early_stop_time": "10m"}, "early_stop_time: 10m without early_stop_eval_loss"),
    ({"early_stop_eval_loss": 6}, "early_stop_eval_loss: 6.0 without early_stop_time"),
    ({"early_stop_time": 180, "early_stop_eval_loss": 6}, "early_stop_eval_loss: 6, and nothing validates"),
    ({"total_training_time": None, "validate_every": "2%"}, "validate_every: "),
    ({"total_training_time": None, "validation_epochs": 3}, "validation_epochs: "),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_contradictions(tmp_path, flags, message):
    with pytest.raises(InputError) as caught:
        recipe_of(tmp_path, **flags)
    assert str(caught.value).startswith(message), str(caught.value)
