"""What a sweep has found, apart from where it is stored. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `curve` has pairs of the share of its budget (0 to 1) and the pinned evaluation then."""

    number: int  # Optuna's
    state: str  # "finished", "pruned", "time" (ended because total_time was up), "failed", "running"
    parameters: dict[str, Any]
    objective: float | None  # final value of a finished trial
    curve: tuple[tuple[float, float], ...]
    seconds: float  # wall clock of the trial, launch and evaluation included
    folder: str  # relative to the sweep's output_dir
    error: str | None  # one line for a failed one


@dataclass(frozen=True)
class SweepRecord:
    """A sweep: what was searched, and its trials by number. Times are seconds."""

    name: str
    objective: str
    direction: str  # "minimize" or "maximize"
    search: str
    space: dict[str, Any]  # as in the YAML
    fixed: dict[str, Any]
    recipe: str | None
    time_per_trial_seconds: float
    total_seconds: float | None
    used_seconds: float
    trials: tuple[TrialRecord, ...]
