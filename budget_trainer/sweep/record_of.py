"""An Optuna study as a `SweepRecord`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from budget_trainer.sweep.records import SweepRecord, TrialRecord
from budget_trainer.sweep.spec import WHOLE, SweepSpec
from budget_trainer.sweep.trial_run import folder_name, read_curve

# User attributes of a trial.
PLACE, ENDED, ERROR, SECONDS = "place", "ended", "error", "seconds"
AGAIN = "again"  # begun by one process, ended by another: its seconds are not a whole trial's
STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def sweep_record(spec: SweepSpec, study: optuna.Study, used_seconds: float) -> SweepRecord:
    """All trials by number; what waits to be run is not one yet."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
    return SweepRecord(
        name=spec.name,
        objective=spec.objective.name,
        direction=spec.objective.direction,
        search=spec.search,
        space={name: dimension.as_yaml() for name, dimension in spec.space.items()},
        fixed=dict(spec.fixed),
        recipe=None if spec.recipe is None else str(spec.recipe),
        time_per_trial_seconds=spec.trial_seconds,
        total_seconds=None if math.isinf(spec.total_seconds) else spec.total_seconds,
        used_seconds=used_seconds,
        trials=tuple(trial_record(spec, trial) for trial in trials),
    )


def trial_record(spec: SweepSpec, trial: FrozenTrial) -> TrialRecord:
    """A trial as it stands. Its curve is what lies on disk, else what Optuna was told; the final evaluation ends it."""
    folder = spec.output_dir / folder_name(trial.number)
    finished = trial.state == TrialState.COMPLETE
    return TrialRecord(
        number=trial.number,
        state="time" if trial.user_attrs.get(ENDED) == "time" else STATES.get(trial.state, "running"),
        parameters=dict(trial.params),
        objective=trial.value if finished else None,
        curve=tuple(_curve(spec, trial, folder)),
        seconds=float(trial.user_attrs.get(SECONDS, 0.0)),
        folder=folder.name,
        error=trial.user_attrs.get(ERROR),
    )


def _curve(spec: SweepSpec, trial: FrozenTrial, folder: Path) -> list[tuple[float, float]]:
    told: dict[int, Any] = trial.intermediate_values
    sign = spec.objective.reported(1.0)
    found = read_curve(folder, spec.objective) or [
        (step / WHOLE, sign * value) for step, value in sorted(told.items())
    ]
    if trial.state == TrialState.COMPLETE and spec.objective.task is None and trial.value is not None:
        found = [*found, (1.0, trial.value)]
    return found
