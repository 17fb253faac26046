"""Trials in the order of a report, and what a sweep's time went into. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from budget_trainer.sweep.records import SweepRecord, TrialRecord

STATES = ("finished", "pruned", "time", "failed", "running")
MEANING = {
    "finished": "reached the end of its time",
    "pruned": "stopped early, behind others at the same share of its time",
    "time": "ended because the sweep's total time was up",
    "failed": "ended with an error, or without a value",
    "running": "was under way when this was written",
}


@dataclass(frozen=True)
class Spread:
    """Of the finished trials: the best, the worst, and the median of their objectives."""

    best: TrialRecord
    worst: TrialRecord
    median: float


def has_value(trial: TrialRecord) -> bool:
    return trial.state == "finished" and trial.objective is not None and math.isfinite(trial.objective)


def ranked(record: SweepRecord) -> list[TrialRecord]:
    """Best first; then those that were ended early, the furthest first and among these by their last value; then the rest.

    The values on the way are those of the pinned evaluation: lower is better, whatever the objective. A finished trial whose
    objective is no number stands among the failed.
    """
    return sorted(record.trials, key=lambda trial: _key(trial, sign(record)))


def finished(record: SweepRecord) -> list[TrialRecord]:
    """Those with an objective, best first."""
    return [trial for trial in ranked(record) if has_value(trial)]


def spread(record: SweepRecord) -> Spread | None:
    """None where no trial has an objective."""
    trials = finished(record)
    if not trials:
        return None
    return Spread(trials[0], trials[-1], statistics.median(value(trial) for trial in trials))


def value(trial: TrialRecord) -> float:
    """The objective of a trial that has one."""
    assert trial.objective is not None
    return trial.objective


def sign(record: SweepRecord) -> float:
    """What makes the smaller objective the better one."""
    return -1.0 if record.direction == "maximize" else 1.0


def reached(trial: TrialRecord) -> float | None:
    """The share of its time at which a trial was last looked at; None where it never was."""
    return trial.curve[-1][0] if trial.curve else None


def seconds_by_state(trials: Sequence[TrialRecord]) -> dict[str, tuple[int, float]]:
    """State -> number of trials and their seconds, of the states that occur."""
    rows = {state: [trial.seconds for trial in trials if trial.state == state] for state in STATES}
    return {state: (len(seconds), sum(seconds)) for state, seconds in rows.items() if seconds}


def _key(trial: TrialRecord, direction: float) -> tuple[float, ...]:
    if has_value(trial):
        return (0, direction * value(trial), trial.number)
    if trial.state in ("pruned", "time"):
        last = trial.curve[-1] if trial.curve else (0.0, math.inf)
        return (1, -last[0], last[1] if math.isfinite(last[1]) else math.inf, trial.number)
    return (2 if trial.state == "running" else 3, trial.number)
