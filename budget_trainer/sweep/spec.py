"""What a sweep was asked to do: what is searched, what is made best, and in which time; checked against itself.

What is searched is Optuna's: a range, of numbers or of whole numbers, or choices (text, numbers, true and false; a mapping such
as `model_config` is one as JSON).
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget_trainer.budget.clock import format_duration, parse_duration
from budget_trainer.config import parser
from budget_trainer.config.parser import NULLS, Flag, flag, read_recipe, recipe_words, unknown_keys, yaml_typed
from budget_trainer.config.recipe import EPOCHS, PROPORTIONS, parse_share
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import user_path
from budget_trainer.core.package_data import profile_path, recipe_path

if TYPE_CHECKING:  # --help answers without Optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    Searched = CategoricalDistribution | FloatDistribution | IntDistribution

SEARCHES = ("grid", "random", "tpe", "successive_halving", "hyperband")
WHOLE = 1000  # a share of a trial's budget is Optuna's step in thousandths
FIRST_OVERHEAD = 10.0  # seconds: a guess at starting and evaluating a trial, until one was measured
HALVING = ("successive_halving", "hyperband")
_MOST_POINTS = 10_000  # of a grid
_PARSED_POINTS = 300  # of a grid that are all checked (about 2 ms each)
_SHARES = {"random": "0.25,0.5", "tpe": "0.25,0.5", "successive_halving": "0.125,0.25,0.5", "hyperband": "0.111,0.333"}
_LEAST_STEP = 20  # thousandths of a trial's budget between two validations
# Flags of finetune_glue.py that a trial's score cannot have: the sweep gives them, or there would be several scores.
_NOT_FOR_A_SCORE = "task_name model_name_or_path output_dir overwrite_output_dir checkpoints".split()
# Flags of train_mlm.py that the sweep gives to each trial itself, or that have no sense in one.
_OF_THE_SWEEP = {
    "output_dir": "each trial has a folder in the sweep's output_dir",
    "total_training_time": "time_per_trial is the budget of each trial",
    "deadline": "time_per_trial is the budget of each trial",
    "resume_from_checkpoint": "the sweep resumes trials itself",
    "job_time_limit": "a trial is one job",
    "early_exit_time_marker": "lower time_per_trial instead",
    "push_to_hub": "publish the best trial with python -m budget_trainer.publish",
    "hub_token": "trials are not published, and a token has no place in a study",
    "plan": "it predicts one run of another budget",
}


def format_value(value: Any) -> str:
    """A value in a few characters: four digits of a fraction, all of a whole number."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 10 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def numbers_of(searched: Searched) -> list[float]:
    """Both ends of a range, or the choices; empty where one of these is no number."""
    found: Sequence[Any] = searched.choices if hasattr(searched, "choices") else (searched.low, searched.high)
    return [*found] if all(isinstance(value, int | float) and not isinstance(value, bool) for value in found) else []


def _count(searched: Searched) -> int | None:
    """How many values there are, without making them; None for a range without a step."""
    if hasattr(searched, "choices"):
        return len(searched.choices)
    return None if searched.log or searched.step is None else round((searched.high - searched.low) / searched.step) + 1


def grid_points(searched: Searched) -> list[Any]:
    """All values; none of a range without a step."""
    if hasattr(searched, "choices"):
        return list(searched.choices)
    return [round(searched.low + n * (searched.step or 0), 12) for n in range(_count(searched) or 0)]


def _read_dimension(name: str, given: Any) -> Searched:
    if isinstance(given, dict) and given.keys() == {"choices"}:
        given = given["choices"]
    if isinstance(given, list):
        return _read_choices(name, given)
    if isinstance(given, dict):
        return _read_range(name, given)
    raise InputError(f"{name}: {given!r} is one value; put it under fixed, or write {name}: [{given}, ...]")


def _read_choices(name: str, given: list[Any]) -> CategoricalDistribution:
    from optuna.distributions import CategoricalDistribution

    if not given:
        raise InputError(f"{name}: an empty list leaves nothing to try; write {name}: [first, second]")
    values: list[Any] = []
    for text in given:
        value = None if text in NULLS else yaml_typed(text)
        if value is None or isinstance(value, list) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{name}: {text!r} is not one value; write a finite number, a word or a mapping")
        value = json.dumps(value) if isinstance(value, dict) else value
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values):
            raise InputError(f"{name}: {text} stands twice; take one out")
        values.append(value)
    return CategoricalDistribution(values)


def _read_range(name: str, given: dict[str, Any]) -> Searched:
    """Of whole numbers where all are written as such. What contradicts itself is refused in Optuna's words."""
    from optuna.distributions import FloatDistribution, IntDistribution

    keys, fix = ("low", "high", "step", "log"), "a range has low, high, step and log, a list only choices"
    if unknown := [(key, f"parameters.{name}") for key in given if key not in keys]:
        raise unknown_keys(unknown, keys, fix)
    if missing := [key for key in ("low", "high") if key not in given]:
        raise InputError(f"{name}: {missing[0]} is missing; {fix}")
    values = {key: yaml_typed(text) for key, text in given.items()}
    for key, value in values.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or isinstance(value, bool) != (key == "log"):
            wanted = "true or false" if key == "log" else "a number"
            raise InputError(f"{name}: {key} {given[key]!r} is not {wanted}; correct it")
    whole = all(isinstance(value, int) for value in values.values())
    try:
        with warnings.catch_warnings(action="ignore"):  # of a `high` that is no multiple of `step`
            found = IntDistribution(**values) if whole else FloatDistribution(**values)
    except ValueError as error:
        raise InputError(f"{name}: {str(error).rstrip('.')}; correct it") from None
    if abs(found.high - values["high"]) > 1e-6 * (found.step or 1):  # a step of 0.333333333 reaches 1 well enough
        raise InputError(
            f"{name}: high {given['high']} is not low plus a multiple of step; write high: {found.high:g}"
        )
    return found


@dataclass(frozen=True)
class _Objective:
    """`metric` of the pinned evaluation: itself the objective, or with `task` what trials are compared by on the way.

    `task` names one of GLUE, or several with commas: then the mean of their scores is the objective.
    """

    metric: str = "bits_per_byte"
    task: str | None = None
    glue_flags: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.metric if self.task is None else f"glue: {self.task}"

    @property
    def direction(self) -> str:
        return "minimize" if self.task is None else "maximize"

    @property
    def sign(self) -> float:
        """What makes the smaller objective the better one."""
        return 1.0 if self.task is None else -1.0

    @property
    def is_suite(self) -> bool:
        """Whether a trial's score comes of several runs of finetune_glue.py."""
        return "," in str(self.task) or not {"grid", "seeds", "intermediate_task"}.isdisjoint(self.glue_flags)

    def of_evaluation(self, evaluation: Any) -> float | None:
        """The metric in an evaluation of `progress.jsonl` or `run_report.json`; None where it is not a finite number."""
        value = evaluation.get(self.metric) if isinstance(evaluation, dict) else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def words(self, model: str, output_dir: str) -> list[str]:
        """The command line of finetune_glue.py for a trial's model."""
        flags = {name: [value] if isinstance(value, str) else value for name, value in self.glue_flags.items()}
        own = [word for name, (first, *more) in flags.items() for word in (f"--{name}={first}", *more)]
        return ["--task_name", str(self.task), "--model_name_or_path", model, "--output_dir", output_dir, *own]


def _read_objective(given: Any) -> _Objective:
    """`bits_per_byte`, `loss`, or a mapping of `glue: TASK` (or `TASK,TASK`) and flags of finetune_glue.py."""
    if given in ("bits_per_byte", "loss"):
        return _Objective(given)
    if not isinstance(given, dict) or not isinstance(given.get("glue"), str):
        raise InputError(f"objective: {given!r} is unknown; write bits_per_byte, loss, or {{glue: CoLA}}")
    from budget_trainer.glue.tasks import find_tasks

    flags = {name: value for name, value in given.items() if name != "glue"}
    for name, value in flags.items():
        if name in _NOT_FOR_A_SCORE or not value or isinstance(value, dict):
            raise InputError(f"objective: {name} is not a flag that a trial's score can have; take it out")
    return _Objective(task=",".join(task.name for task in find_tasks([given["glue"]])), glue_flags=flags)


FILE_STORAGES = ("journal:", "sqlite:///")
STORAGES = "sqlite:///PATH, journal:PATH (on a shared disk: many machines, one study) or a database's URL"


@dataclass(frozen=True)
class SweepSpec:
    """A sweep, checked: the keys of its file. Those with a help text are flags too, which win over the file.

    Times are seconds, infinite where there is no limit; `prune_at` has thousandths of a trial's budget.
    """

    output_dir: Path = flag(None, "folder of the sweep: trials, their logs, the study, the report", unit="DIR")
    total_time: float = flag(math.inf, "wall clock of the whole sweep, everything included, as 8h", unit="TIME")
    time_per_trial: float = flag(None, "budget of each trial (its total_training_time), as 30m", unit="TIME")
    trials: int | None = flag(None, "how many trials, over all processes on the study; failed ones count", min=1)
    search: str = flag("grid", ", ".join(SEARCHES), choices=SEARCHES)
    recipe: Path | None = flag(
        None, "recipe (a file, or a name) that trials begin from; parameters and fixed win over it", unit="FILE"
    )
    objective: _Objective = flag(_Objective(), "bits_per_byte or loss of the pinned evaluation, or 'glue: CoLA'")
    parallel_trials: int | None = flag(None, "trials at the same time: auto (one per GPU) or a number", min=1)
    accelerate_config: Path | None = flag(None, "launch configuration of the trials: a file, or a name", unit="FILE")
    prune_at: tuple[int, ...] = flag((), "shares of a trial's time when trials are compared, as 0.25,0.5; []: never")
    storage: str = flag("", STORAGES, unit="URL")
    seed: int = flag(0, "of what is proposed", min=0)
    keep_models: str = flag("best", "which finished trials keep their models: best or all", choices=("best", "all"))
    job_name: str = flag("", "name of the study; default: the file's name", unit="NAME")
    parameters: dict[str, Any] = field(default_factory=dict)  # Optuna's distributions
    fixed: dict[str, Any] = field(default_factory=dict)  # flags of every trial, as text

    @classmethod
    def read(cls, content: dict[str, Any], default_name: str) -> SweepSpec:
        """The sweep of these keys, scalars as text, checked but for what train_mlm.py knows.

        Raises:
            InputError: a key has a wrong value or is missing; keys contradict each other.
        """
        values = {name: _read_key(FLAGS[name], given) for name, given in content.items() if name in FLAGS}
        parameters, fixed = content.get("parameters"), content.get("fixed", {})
        if not isinstance(parameters, dict) or not parameters:
            fix = "write one `flag: [value, value]` or {low: , high: } per line"
            raise InputError(f"parameters: nothing to search; {fix}")
        if not isinstance(fixed, dict):
            raise InputError("fixed: is not a mapping; write one `flag: value` per line")
        for name, fix in (("time_per_trial", "the budget of each trial, such as 30m"), ("output_dir", "a folder")):
            if name not in values:
                raise InputError(f"{name}: missing; give {fix}")
        if "accelerate_config" in values:
            values["accelerate_config"] = profile_path(str(values["accelerate_config"]), "accelerate_config")
        values["parameters"] = {name: _read_dimension(name, given) for name, given in parameters.items()}
        values["prune_at"] = _read_steps(values.get("search", "grid"), content.get("prune_at"))
        values.setdefault("storage", f"sqlite:///{values['output_dir'].absolute() / 'study.db'}")
        spec = cls(**{"job_name": default_name, **values, "fixed": fixed})
        _check(spec)
        return spec

    @property
    def reduction_factor(self) -> int:
        """Of successive_halving and hyperband: one of so many trials goes on at each share."""
        first, *more = self.prune_at
        return round(more[0] / first) if more else max(2, round(WHOLE / first))

    @property
    def validate_every(self) -> int:
        """How often a trial is validated, in thousandths of its budget, so that `prune_at` is met; 0: that is empty."""
        return math.gcd(*self.prune_at)

    @property
    def grid_size(self) -> int | None:
        """How many combinations there are; None where a range has no step."""
        counts = [_count(searched) for searched in self.parameters.values()]
        return None if None in counts else math.prod(count or 0 for count in counts)

    @property
    def limit(self) -> int | None:
        """How many trials there may be over all processes; None where time alone ends the sweep."""
        return min(self.grid_size or 0, self.trials or _MOST_POINTS) if self.exhaustive else self.trials

    @property
    def exhaustive(self) -> bool:
        """Whether it goes through a grid, so that no point is tried twice; a halving search does so where there is one.

        `trials` may change between two starts, and is no part of it.
        """
        size = self.grid_size
        return self.search == "grid" or (self.search in HALVING and size is not None and size <= _MOST_POINTS)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Every point of a grid, in the order of the file; the last parameter changes fastest."""
        for chosen in itertools.product(*map(grid_points, self.parameters.values())):
            yield dict(zip(self.parameters, chosen, strict=True))

    def probes(self) -> Iterator[dict[str, Any]]:
        """What is checked of the trials before one starts: every point of a grid of up to _PARSED_POINTS; else each value, or
        both ends of a range, beside the others' first."""
        size = self.grid_size
        if size is not None and size <= _PARSED_POINTS:
            yield from self.combinations()
            return
        values = {name: numbers_of(searched) or grid_points(searched) for name, searched in self.parameters.items()}
        first = {name: found[0] for name, found in values.items()}
        yield first
        yield from ({**first, name: value} for name, found in values.items() for value in found[1:])

    def base_recipe(self) -> dict[str, Any]:
        """The recipe of all trials, without what the sweep gives itself. Raises InputError where it cannot be read."""
        content = {} if self.recipe is None else read_recipe(Path(recipe_path(str(self.recipe), "recipe")))
        return {name: value for name, value in content.items() if why_not_searched(name, self.prune_at) is None}

    def folder(self, number: int) -> Path:
        """The folder of a trial."""
        return self.output_dir / f"trial-{number:04d}"

    def words(self, parameters: dict[str, Any], number: int) -> list[str]:
        """The command line of a trial, behind its recipe."""
        searched = [f"--{name}={str(v).lower() if isinstance(v, bool) else v}" for name, v in parameters.items()]
        time = format_duration(self.time_per_trial)  # whole seconds
        time = time if parse_duration(time, "time_per_trial") == self.time_per_trial else f"{self.time_per_trial}s"
        own = [f"--total_training_time={time}", f"--output_dir={self.folder(number)}"]
        own += [f"--validate_every={self.validate_every / WHOLE}"] if self.prune_at else []
        return [*searched, *recipe_words(self.fixed), *own]


KEYS = parser.FlagParser("sweep", (SweepSpec,), ()).flags
FLAGS = {name: known for name, known in KEYS.items() if known.help}


def _read_key(known: Flag, given: Any) -> Any:
    """The value of a key that is a flag too; of `prune_at`, which needs others, as it was given."""
    if known.name == "objective":
        return _read_objective(given)
    if known.name == "prune_at":
        return given
    if known.unit == "TIME":
        return known.seconds(str(given))
    if known.unit in ("DIR", "FILE"):
        return Path(user_path(str(given), known.name))
    for scheme in FILE_STORAGES if known.name == "storage" else ():
        if str(given).startswith(scheme):
            return scheme + user_path(str(given).removeprefix(scheme), known.name)
    return None if known.name == "parallel_trials" and given == "auto" else known.convert((str(given),))


def why_not_searched(name: str, steps: Sequence[int]) -> str | None:
    """Why a flag cannot be one of trials, because the sweep gives it itself; None where it can."""
    name = name.removeprefix("no_")
    if steps and name in ("validate_every", *EPOCHS, *PROPORTIONS):
        return "prune_at says when trials are validated; leave one of the two out (prune_at: [] compares none)"
    return _OF_THE_SWEEP.get(name)


def _check(spec: SweepSpec) -> None:
    """Refuse a grid without points or of too many, a sweep without an end, and flags that no trial can have so."""
    if spec.search == "grid":
        for name, searched in spec.parameters.items():
            if _count(searched) is None:
                raise InputError(
                    f"{name}: a range without step, and a grid needs points; add step, or list the values"
                )
        if (size := spec.grid_size or 0) > _MOST_POINTS:
            fix = "larger steps, or random or tpe"
            raise InputError(f"search: a grid of {size:,} points, more than {_MOST_POINTS:,}; {fix}")
    for name in [*spec.parameters, *spec.fixed]:
        if (why := why_not_searched(name, spec.prune_at)) is not None:
            raise InputError(f"{name}: not a flag of trials; {why}")
    for name, value in spec.fixed.items():
        if name in spec.parameters:
            raise InputError(f"{name}: both under fixed and under parameters; take it out of one")
        if not isinstance(value, list | dict) and value in NULLS:
            raise InputError(f"{name}: null under fixed unsets nothing; give a value, or change the recipe")
    if spec.limit is None and math.isinf(spec.total_time):
        raise InputError(f"trials: missing, and total_time too: {spec.search} would never end; give one of them")


def _read_steps(search: str, given: Any) -> tuple[int, ...]:
    """`prune_at` in thousandths of a trial's budget; none: trials are not compared on the way."""
    shares = _SHARES.get(search, "") if given is None else given
    if isinstance(shares, str):
        shares = [part for part in shares.strip("[]").split(",") if part.strip()]
    if not isinstance(shares, list):
        raise InputError(f"prune_at: {given!r} is no list of shares; write prune_at: [0.25, 0.5]")
    steps = [round(parse_share(str(share), "prune_at") * WHOLE) for share in shares]
    if steps != sorted(set(steps)) or (steps and not 0 < steps[0] <= steps[-1] < WHOLE):
        raise InputError(f"prune_at: {given!r} are not rising shares below 1; write prune_at: [0.25, 0.5]")
    if search in HALVING:
        if not steps:
            raise InputError(f"prune_at: empty, and {search} compares trials on the way; leave it out, or give shares")
        factor = round(steps[1] / steps[0]) if len(steps) > 1 else 2
        if factor < 2 or any(abs(b / a - factor) > 0.02 * factor for a, b in itertools.pairwise(steps)):
            fix = f"{search} needs it; write 0.125,0.25,0.5"
            raise InputError(f"prune_at: {given!r} do not grow by one whole factor, and {fix}")
        steps = [steps[0] * factor**rung for rung in range(len(steps))]
    if steps and (every := math.gcd(*steps)) < _LEAST_STEP:
        fix = f"give shares that are multiples of one from {_LEAST_STEP / WHOLE:g} on"
        raise InputError(f"prune_at: {given!r} would need a validation every {every / 10:g} % of a trial; {fix}")
    return tuple(steps)
