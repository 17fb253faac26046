"""What a sweep has found, apart from where it is stored. Standard library only.

The parameters of a sweep as a report needs them: their range or choices, in words, and where a value lies in it.

Trials in the order of a report, and what a sweep's time went into. Standard library only.

Which parameters made the difference: PED-ANOVA of Optuna, with the pruned trials counted as worse than the finished ones.

PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) asks only which trials are among the best, and compares how their parameters
are spread with how those of all trials are. So a pruned trial, which has no final objective but was behind, can be counted,
where fANOVA would have to fit its value. Trials that the end of the time cut are left out: nobody knows how good they were.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


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


NEAR = 0.05  # of the range, on its own scale: a best value so close to an end says that the range may be too narrow
ORDERED = 3  # of fewer choices one always is an end


@dataclass(frozen=True)
class Searched:
    """One parameter: either `low` and `high`, on a logarithmic scale where `log`, or `choices`."""

    name: str
    low: float | None
    high: float | None
    log: bool
    choices: tuple[Any, ...]
    step: float | None = None

    @property
    def words(self) -> str:
        if self.low is None or self.high is None:
            return "one of " + ", ".join(short(choice) for choice in self.choices)
        scale = (
            ", on a logarithmic scale"
            if self.log
            else ""
            if self.step is None
            else f", in steps of {short(self.step)}"
        )
        return f"{short(self.low)} to {short(self.high)}{scale}"

    @property
    def varies(self) -> bool:
        return len(self.choices) > 1 or self.low != self.high

    def numbers(self) -> list[float] | None:
        """The choices, or both ends of the range, as numbers; None where one is a word."""
        found = [number(given) for given in (self.choices if self.low is None else (self.low, self.high))]
        return None if None in found else [value for value in found if value is not None]

    def end(self, value: Any) -> str | None:
        """`lower` or `upper` where the value lies at that end of what was searched, else None."""
        at = number(value)
        if at is None or not self.varies:
            return None
        if self.low is None or self.high is None:
            numbers = self.numbers()
            if numbers is None or len(set(numbers)) < ORDERED:
                return None
            return "lower" if at <= min(numbers) else "upper" if at >= max(numbers) else None
        low, high = self.low, self.high
        if self.log and low > 0 and at > 0:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low)
        return "lower" if share < NEAR else "upper" if share > 1 - NEAR else None


def searched(space: Mapping[str, Any]) -> list[Searched]:
    """The space of a sweep file; numbers may be text (`1e-3` is, to YAML)."""
    return [_one(name, given) for name, given in space.items()]


def _one(name: str, given: Any) -> Searched:
    if isinstance(given, Mapping) and "low" in given:
        log = str(given.get("log", False)).lower() in ("true", "yes", "1")
        return Searched(name, number(given["low"]), number(given["high"]), log, (), number(given.get("step")))
    choices = given["choices"] if isinstance(given, Mapping) else given
    return Searched(name, None, None, False, tuple(choices) if isinstance(choices, list | tuple) else (choices,))


def number(value: Any) -> float | None:
    """`value` as a finite number, or None: words, true and false are none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def short(value: Any) -> str:
    """A value in a few characters: four digits of a fraction, all of a whole number."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 10 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


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


if TYPE_CHECKING:
    import optuna

BEST = 0.3  # the share of the trials that PED-ANOVA compares with all of them
LEAST_FINISHED, LEAST = 4, 10  # below this the answer is chance
METHOD = "PED-ANOVA"


def importance(record: SweepRecord, study: optuna.Study) -> tuple[dict[str, float], str | None]:
    """Parameter -> share of the importance (together 1), the largest first; or nothing, and why in one line."""
    import optuna

    if sum(parameter.varies for parameter in searched(record.space)) < 2:
        return {}, "not computed: one parameter was searched, so the differences are its, or of chance"
    ours = {trial.number: trial for trial in record.trials if has_value(trial) or trial.state == "pruned"}
    ends = [value(trial) for trial in ours.values() if has_value(trial)]
    if len(ends) < LEAST_FINISHED or len(ours) < LEAST:
        return {}, (
            f"not computed: {METHOD} needs at least {LEAST_FINISHED} finished trials and {LEAST} finished or pruned ones; "
            f"here are {len(ends)} and {len(ours)}"
        )
    direction = sign(record)
    worse = max(direction * end for end in ends) + 1.0
    ranks = _new_study()
    for trial in study.get_trials(deepcopy=False):
        if trial.number in ours:
            mine = ours[trial.number]
            rank = direction * value(mine) if has_value(mine) else worse
            varied = {name: dist for name, dist in trial.distributions.items() if not dist.single()}
            params = {name: trial.params[name] for name in varied}
            ranks.add_trial(optuna.trial.create_trial(params=params, distributions=varied, value=rank))
    counted = ranks.get_trials(deepcopy=False)
    best = min(BEST, len(ends) / len(counted))
    if best == 1.0:
        best = BEST
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and equal shares where nothing differs: said below
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
        found = optuna.importance.get_param_importances(ranks, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    if not total > 0:
        return {}, "not computed: the best trials lie where all the others do"
    return {name: share / total for name, share in found.items()}, None


def _new_study() -> optuna.Study:
    """One in memory, of which nothing is said: it is no study of the user's."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=optuna.samplers.RandomSampler())
    finally:
        optuna.logging.set_verbosity(before)
