"""The clock with time as a parameter: nothing here sleeps."""

import json
import math
import re
from datetime import UTC, datetime

import pytest

from budget_trainer.budget.clock import (
    BudgetClock,
    format_duration,
    keep_clock,
    parse_deadline,
    parse_duration,
    read_clock,
    seconds_until,
)
from budget_trainer.core.errors import InputError


class Time:
    now = 1000.0

    def __call__(self):
        return self.now


DURATIONS = {"24h": 86400, "90m": 5400, "1h30m": 5400, "45s": 45, "1d": 86400, "2.5h": 9000, " 10 min ": 600}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_parse_duration(text, seconds):
    assert parse_duration(text) == seconds == parse_duration(format_duration(seconds))


@pytest.mark.parametrize(
    "text", ["", "h", "-5m", "0s", "ten minutes", "5x", "24:00:00", "1e999h", "nan", "3m x", "30"]
)
def test_bad_durations_name_field_value_and_fix(text):
    with pytest.raises(InputError, match=f"^checkpoint_every: '{re.escape(text)}' .*write it as"):
        parse_duration(text, "checkpoint_every")


def test_format_of_durations_and_the_unit_of_a_flag():
    assert parse_duration("24", "total_training_time", "h") == 86400
    expected = {1.0: "1s", 12.34: "12.3s", 61: "1m1s", 90061: "25h1m1s", math.inf: "no limit"}
    assert {seconds: format_duration(seconds) for seconds in expected} == expected


@pytest.mark.parametrize(
    "text", ["2026-12-24T08:00+01:00", "2026-12-24T07:00Z", " 2026-12-24 02:00:00-05:00", "20261224T0800+0100"]
)
def test_a_deadline_is_a_moment_everywhere(text):
    moment = parse_deadline(text)
    assert seconds_until(moment, datetime(2026, 12, 24, 6, 30, tzinfo=UTC)) == 1800
    assert seconds_until(moment, datetime(2026, 12, 24, 8, tzinfo=UTC)) == -3600


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("2026-12-24T08:00", "has no time zone"),
        ("2026-12-24", "has no time zone"),
        ("24h", "is not a moment in ISO 8601"),
        ("2026-02-30T08:00Z", "is not a moment in ISO 8601"),
        ("", "is not a moment in ISO 8601"),
    ],
)
def test_bad_deadlines(text, problem):
    with pytest.raises(InputError, match=f"^deadline: '{re.escape(text)}' {problem}; write it as "):
        parse_deadline(text)


def test_seconds_by_phase_are_disjoint_and_add_up():
    time = Time()
    clock = BudgetClock("60s", time_fn=time)
    time.now += 5
    clock.enter("train")
    time.now += 10
    with clock.phase("save") as spent:
        time.now += 2
        with clock.phase("evaluate"):
            time.now += 1
    time.now += 3
    assert spent() == 2
    shares = clock.seconds_by_phase()
    assert shares == {"setup": 5, "compile": 0, "train": 13, "data_wait": 0, "evaluate": 1, "save": 2}
    assert sum(shares.values()) == clock.elapsed_seconds() == 21
    assert clock.remaining_seconds() == 39


def test_earlier_jobs_count_but_not_in_the_job_and_stopped_is_stopped():
    time = Time()
    clock = BudgetClock(time_fn=time)
    clock.restore({"train": 100.0, "save": 1.0})
    time.now += 4
    assert clock.elapsed_seconds() == 105 == clock.stop() and clock.job_seconds() == 4
    assert clock.seconds_by_phase()["train"] == 100 and math.isinf(clock.total_seconds)
    with clock.phase("evaluate"):
        time.now += 100
    assert clock.elapsed_seconds() == 105 and clock.seconds_by_phase()["evaluate"] == 0


def test_bad_budget_and_unknown_phase():
    with pytest.raises(ValueError, match="phase"):
        BudgetClock().enter("coffee")
    for bad in (0, -1, float("nan")):
        with pytest.raises(InputError, match="total_training_time"):
            BudgetClock(bad)


def test_clock_file_round_trip_and_damage(tmp_path):
    time = Time()
    clock = BudgetClock("1h", time_fn=time)
    path = tmp_path / "clock.json"
    assert read_clock(path) == {}
    with keep_clock(path, clock, every_seconds=0.01):
        time.now += 7
    assert read_clock(path) == clock.seconds_by_phase()
    assert json.loads(path.read_text())["elapsed_seconds"] == 7
    path.write_text('{"shares": {}}')
    with pytest.raises(InputError, match=r"clock\.json.*delete it"):
        read_clock(path)
