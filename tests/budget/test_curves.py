"""A schedule is a pure function: `linear(0.5) == 0.5` is its test."""

import pytest

from budget_trainer.budget.curves import CURVES, make_curve
from budget_trainer.core.errors import InputError


def test_table():
    for name, options, values in (
        ("linear", {}, {0: 1, 0.5: 0.5, 1: 0}),
        ("cosine", {}, {0: 1, 0.5: 0.5, 1: 0}),
        ("constant", {}, {0: 1, 0.5: 1, 1: 1}),
        ("exp", {}, {0: 1, 0.5: 0.1, 1: 0.01}),
        ("exp", {"decay_rate": 0.5, "decay_step": 0.25}, {0: 1, 0.25: 0.5, 0.5: 0.25, 1: 0.0625}),
        ("wsd", {}, {0: 1, 0.6: 1, 0.7: 0.5, 1: 0}),
        ("wsd", {"decay_proportion": 0.2, "decay_shape": "linear"}, {0.8: 1, 0.9: 0.5, 1: 0}),
        ("one_cycle", {}, {0: 0, 0.25: 0.5, 0.5: 1, 0.75: 0.5, 1: 0}),
        ("inverse_sqrt", {}, {0: 1, 0.15: 0.5}),
    ):
        curve = make_curve(name, 0.0, **options)
        assert {progress: curve(progress) for progress in values} == pytest.approx(values, abs=1e-9), name


@pytest.mark.parametrize("name", sorted(CURVES))
def test_every_curve_stays_in_bounds_behind_a_warmup(name):
    curve = make_curve(name, 0.1)
    assert all(0.0 <= curve(step / 1000) <= 1.0 for step in range(-10, 1011))
    assert curve(0.0) == 0.0 and curve(0.05) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "warmup", "options", "field"),
    [
        ("tanh", 0.0, {}, "curve"),
        ("linear", 1.0, {}, "warmup_proportion"),
        ("linear", -0.1, {}, "warmup_proportion"),
        ("wsd", 0.5, {"decay_proportion": 0.6}, "decay_proportion"),
        ("wsd", 0.0, {"decay_shape": "cubic"}, "decay_shape"),
        ("exp", 0.0, {"decay_rate": 0.0}, "decay_rate"),
    ],
)
def test_bad_input(name, warmup, options, field):
    with pytest.raises(InputError, match=f"^{field}: "):
        make_curve(name, warmup, **options)
