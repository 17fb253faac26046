"""Curves over the budget: parsing, what they ask for, and what is refused."""

import pytest

from budget_trainer.budget.stages import Stage, make_stages
from budget_trainer.core.errors import InputError

PLAIN = {"mlm_probability": 0.15, "gradient_accumulation_steps": 8, "block_size": 128}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.3", "cannot be read"),
        ("0.3@0;0.2@1", "cannot be read"),
        ("0.3@0.1", "says nothing of the start"),
        ("0.3@0,0.2@0", "not rising"),
        ("0.3@0,0.2@1", "not rising"),
        ("0.3@0,0.2@0.5,0.1@0.4", "not rising"),
        ("1.2@0", r"leaves \(0, 1\]"),
        ("0.3@0,0@0.5", r"leaves \(0, 1\]"),
        ("0.5@0,0.4@0.1,0.3@0.2,0.2@0.3,0.1@0.4", "has 5 stages; give at most 4"),
    ],
)
def test_refused(text, message):
    with pytest.raises(InputError, match=f"^mlm_probability_curve: .*{message}"):
        make_stages(**PLAIN, mlm_probability_curve=text)


def test_without_curves_nothing_changes():
    stages = make_stages(**PLAIN)
    assert stages.constant and stages.at(0.0) == stages.at(1.0) == Stage(0.15, 8, 1)
    shorter = make_stages(**PLAIN, sequence_length_curve="0.5@0", mlm_probability_curve="1@0")
    assert not shorter.constant and shorter.at(0.5) == Stage(1.0, 8, 2), "a length that stays is no plain run"


def test_each_curve_on_its_own_shares():
    stages = make_stages(
        **PLAIN,
        mlm_probability_curve="0.3@0,0.15@0.5",
        batch_size_curve="0.25@0,0.5@0.1,1@0.3",
        sequence_length_curve="0.25@0,0.5@0.2,1@0.4",
    )
    assert not stages.constant
    expected = {0.0: (0.3, 2, 4), 0.1: (0.3, 4, 4), 0.2: (0.3, 4, 2), 0.3: (0.3, 8, 2), 0.4: (0.3, 8, 1)}
    expected |= {0.5: (0.15, 8, 1), 1.0: (0.15, 8, 1)}
    assert {share: stages.at(share) for share in expected} == {k: Stage(*v) for k, v in expected.items()}
