"""What a sweep has found: its trials in order, which parameters made the difference, and the best trial as a recipe."""

from __future__ import annotations

import math
import textwrap
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from budget_trainer.budget.clock import format_duration
from budget_trainer.config.edit import WIDTH, edited, load, scalar
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.package_data import recipe_path
from budget_trainer.reporting.energy import account, add_up
from budget_trainer.sweep.spec import WHOLE, SweepSpec, format_value
from budget_trainer.sweep.trials import ENDED, ERROR, SECONDS, TrialFolder

BEST_SHARE = 0.3  # of the trials, which PED-ANOVA compares with all of them
_LEAST_FINISHED, _LEAST = 4, 10  # below this an importance is chance
# Of one run or of the machine it ran on, not of how to train: left out, also of the base recipe.
_OF_A_RUN = {"data_dir", "output_dir", "seed", "resume_from_checkpoint", "job_time_limit", "run_name", "plan"}
# Left out of a sweep's fixed flags: they are of its trials. A base recipe may keep them.
_OF_TRIALS = _OF_A_RUN | {"total_training_time", "early_exit_time_marker", "use_cpu", "disable_tqdm", "report_to"}
_OF_TRIALS |= {"push_to_hub", "hub_model_id", "hub_token", "project", "log_level", "local_rank"}
_OF_TRIALS |= {"country_iso_code", "price_per_hour"}


@dataclass(frozen=True)
class _TrialRecord:
    """One trial. `curve` has pairs of the share of its budget (0 to 1) and the pinned evaluation then."""

    number: int  # Optuna's
    state: str  # "finished", "pruned", "time" (ended because total_time was up), "failed", "running"
    parameters: dict[str, Any]
    objective: float | None  # of a finished trial
    curve: tuple[tuple[float, float], ...]
    seconds: float  # wall clock of the trial, launch and evaluation included
    folder: str  # relative to the sweep's output_dir
    error: str | None  # one line for a failed one
    energy: dict[str, Any] | None = None  # of `reporting/energy.py`; None where it is not known

    @classmethod
    def of(cls, spec: SweepSpec, trial: FrozenTrial) -> _TrialRecord:
        """A trial as it stands: its curve is what lies on disk, else what was reported; the final evaluation ends it."""
        folder, sign = TrialFolder(spec, trial.number), spec.objective.sign
        objective = trial.value if trial.state == TrialState.COMPLETE else None
        reported = [(step / WHOLE, sign * value) for step, value in sorted(trial.intermediate_values.items())]
        curve = folder.evaluations() or reported
        if objective is not None and spec.objective.task is None:
            curve = [*curve, (1.0, objective)]
        given = trial.user_attrs
        state = given.get(ENDED, "failed") if trial.state.is_finished() else "running"
        seconds, error = float(given.get(SECONDS, 0.0)), given.get(ERROR)
        name = folder.path.name
        more = (seconds, name, error, folder.energy())
        return cls(trial.number, state, dict(trial.params), objective, tuple(curve), *more)

    @property
    def value(self) -> float:
        """The objective of a trial that has one."""
        assert self.objective is not None
        return self.objective

    @property
    def given(self) -> str:
        """Its parameters, for people."""
        return ", ".join(f"{name} {format_value(value)}" for name, value in self.parameters.items())

    @property
    def last(self) -> tuple[float, float] | None:
        """The share of its time at which it was last evaluated, and the value; None where it never was."""
        return self.curve[-1] if self.curve else None


@dataclass(frozen=True)
class SweepRecord:
    """A sweep and its trials by number, as far as they have come after `used_seconds` of its time."""

    spec: SweepSpec
    used_seconds: float
    trials: tuple[_TrialRecord, ...]

    @classmethod
    def of(cls, spec: SweepSpec, study: optuna.Study, used_seconds: float) -> SweepRecord:
        """What the study and the folders hold; what waits to be run is no trial yet."""
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        return cls(spec, used_seconds, tuple(_TrialRecord.of(spec, trial) for trial in trials))

    @cached_property
    def energy(self) -> dict[str, Any]:
        """Of all trials together, however they ended, with emissions and cost where the fixed flags ask for them."""
        fixed, seconds = self.spec.fixed, sum(trial.seconds for trial in self.trials)
        price, together = fixed.get("price_per_hour"), add_up(trial.energy for trial in self.trials)
        return account(together, seconds, fixed.get("country_iso_code"), None if price is None else float(price))

    @cached_property
    def ranked(self) -> list[_TrialRecord]:
        """Best first; then those that were ended early, the furthest first and among these by their last value; then the rest.

        The values on the way are those of the pinned evaluation: lower is better, whatever the objective.
        """
        return sorted(self.trials, key=self._rank)

    def _rank(self, trial: _TrialRecord) -> tuple[float, ...]:
        if trial.objective is not None:
            return (0, self.spec.objective.sign * trial.objective, trial.number)
        if trial.state in ("pruned", "time"):
            share, value = trial.last or (0.0, math.inf)
            return (1, -share, value, trial.number)
        return (2 if trial.state == "running" else 3, trial.number)

    @cached_property
    def finished(self) -> list[_TrialRecord]:
        """Those with an objective, best first."""
        return [trial for trial in self.ranked if trial.objective is not None]


def importance(record: SweepRecord) -> tuple[dict[str, float], str | None]:
    """Parameter -> share of the importance (together 1), the largest first; or nothing, and why in one line.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) asks only which trials are among the best, and compares how their
    parameters are spread with how those of all trials are. So a pruned trial, which has no final objective but was behind, can
    be counted as worse than the finished ones, where fANOVA would have to fit its value; Optuna's own call leaves it out.
    Trials that the end of the time cut are left out: nobody knows how good they were.
    """
    varied = {name: searched for name, searched in record.spec.parameters.items() if not searched.single()}
    if len(varied) < 2:
        return {}, "not computed: one parameter was searched, so the differences are its, or of chance"
    finished = record.finished
    compared = [trial for trial in record.trials if trial.objective is not None or trial.state == "pruned"]
    if len(finished) < _LEAST_FINISHED or len(compared) < _LEAST:
        return {}, (
            f"not computed: PED-ANOVA needs at least {_LEAST_FINISHED} finished trials and {_LEAST} finished or "
            f"pruned ones; here are {len(finished)} and {len(compared)}"
        )
    sign = record.spec.objective.sign
    worse = sign * finished[-1].value + 1.0
    ranks = optuna.create_study(sampler=optuna.samplers.RandomSampler())  # in memory
    for trial in compared:
        rank = worse if trial.objective is None else sign * trial.objective
        params = {name: trial.parameters[name] for name in varied}
        ranks.add_trial(optuna.trial.create_trial(params=params, distributions={**varied}, value=rank))
    best = min(BEST_SHARE, len(finished) / len(compared))
    with warnings.catch_warnings():
        # It is experimental, and gives equal shares where nothing differs, which is answered below.
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
        found = optuna.importance.get_param_importances(ranks, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    if not total > 0:
        return {}, "not computed: the best trials lie where all the others do"
    return {name: share / total for name, share in found.items()}, None


def best_recipe_text(record: SweepRecord) -> str | None:
    """The base recipe with the fixed flags and the parameters of the best trial; None where no trial has an objective.

    The base recipe keeps its comments and its order. `train_mlm.py` runs the file as it is: on the sweep's data, for a trial's
    time, into a folder beside the trials. Raises RunError where the base recipe cannot be read any more.
    """
    if not record.finished:
        return None
    spec, best = record.spec, record.finished[0]
    base, stripped = _base_recipe(spec)
    content = load(base)
    values = {name: given for name, given in spec.fixed.items() if name not in _OF_TRIALS} | best.parameters
    run = {
        "data_dir": spec.fixed.get("data_dir", content.get("data_dir")),
        "output_dir": str(spec.output_dir / "best"),
        "total_training_time": f"{spec.time_per_trial:g}s",
    }
    run = {name: given for name, given in run.items() if given is not None and name not in values}
    left_out = (_OF_A_RUN | stripped | run.keys()) - values.keys()
    gone = (spec.fixed.keys() - values.keys()) | (content.keys() & left_out)
    head = _header(record, sorted(gone - run.keys())) + "# Of this run; the command line wins.\n"
    head += "".join(f"{name}: {scalar(given)}\n" for name, given in run.items()) + "\n"
    return edited(base, values, left_out, whose="the sweep", head=head)


def _base_recipe(spec: SweepSpec) -> tuple[str, set[str]]:
    """The text of the base recipe, and its keys that the trials did not have.

    The sweep's copy, without comments, of what its trials began with counts where the recipe was edited since, or is gone.
    """
    if spec.recipe is None:
        return "", set()
    copy = spec.output_dir / "recipe.yaml"
    kept = copy.read_text(encoding="utf-8") if copy.is_file() else None
    try:
        text = Path(recipe_path(str(spec.recipe), "recipe")).read_text(encoding="utf-8-sig")
        content = load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, InputError) as error:
        if kept is not None:
            return kept, set()
        reason = f"recipe: {spec.recipe} cannot be read any more ({' '.join(str(error).split())})"
        raise RunError(f"{reason}, so there is no best_recipe.yaml", fix="put it back") from error
    theirs = content if kept is None else load(kept)
    if kept is None or all(content.get(name) == given for name, given in theirs.items()):
        return text, content.keys() - theirs.keys()
    return kept, set()


def _header(record: SweepRecord, left_out: list[str]) -> str:
    spec, best = record.spec, record.finished[0]
    lines = [
        f"The best of the sweep {spec.job_name}: trial {best.number} of {len(record.trials)} "
        f"({len(record.finished)} finished), {spec.objective.name} {best.value:.5g}, to {spec.objective.direction}.",
        f"Found with {format_duration(spec.time_per_trial)} per trial; a longer run may want other values.",
        f"Base recipe: {f'{spec.recipe}, with its comments' if spec.recipe else 'none, the defaults of train_mlm.py'}.",
        f"Searched: {best.given}.",
        "Run it with: train_mlm.py best_recipe.yaml --total_training_time ...",
    ]
    if left_out:
        lines.append(f"Left out, because they are of a run and not of a recipe: {', '.join(left_out)}.")
    return "\n".join(map(_comment, lines)) + "\n\n"


def _comment(text: str) -> str:
    """Comment lines, out of which nothing can get: one text line each, and printable."""
    flat = "".join(character if character.isprintable() else " " for character in text)
    return textwrap.fill(" ".join(flat.split()), WIDTH, initial_indent="# ", subsequent_indent="#   ")
