"""What is searched: lists of values, and ranges. Standard library and the reading of recipes; Optuna only where it is used.

What is made best: the pinned evaluation of a trial's model, or its score on a task of GLUE.

What a sweep was asked to do: its file, over which the command line wins, checked against itself.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.budget.clock import format_duration, parse_duration
from budget_trainer.config.parser import NULLS, read_recipe, recipe_words, unknown_keys, yaml_typed
from budget_trainer.config.recipe import EPOCHS, PROPORTIONS, parse_share
from budget_trainer.core.errors import InputError

RANGE_KEYS = ("low", "high", "step", "log")
_WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class Choices:
    """One of several values: text, numbers, true or false. A mapping (`model_config`) is one as JSON."""

    values: tuple[Any, ...]

    def points(self) -> list[Any]:
        return list(self.values)

    def probes(self) -> list[Any]:
        """Values to check before anything starts."""
        return list(self.values)

    def as_yaml(self) -> Any:
        return list(self.values)

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def count(self) -> int | None:
        """How many values there are."""
        return len(self.values)


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included; `whole` numbers where both are written as such."""

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    def points(self) -> list[Any] | None:
        """All values; None where there is no step between them."""
        count, step = self.count(), self._step()
        if count is None or step is None:
            return None
        return [self._number(self.low + place * step) for place in range(count)]

    def count(self) -> int | None:
        """How many values there are, without making them; None where there is no step between them."""
        step = self._step()
        return None if step is None else int(round((self.high - self.low) / step)) + 1

    def _step(self) -> float | None:
        return self.step if self.step is not None else 1 if self.whole and not self.log else None

    def probes(self) -> list[Any]:
        """Values to check before anything starts."""
        return [self._number(self.low), self._number(self.high)]

    def _number(self, value: float) -> float:
        return int(value) if self.whole else round(value, 12)

    def as_yaml(self) -> Any:
        found: dict[str, Any] = {"low": self._number(self.low), "high": self._number(self.high)}
        return found | ({"step": self.step} if self.step is not None else {}) | ({"log": True} if self.log else {})

    def distribution(self) -> Any:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


Space = dict[str, Choices | Range]


def read_space(parameters: Any) -> Space:
    """The `parameters` of a sweep file, scalars as text (`1e-4` is a number, whatever YAML thinks).

    Raises:
        InputError: nothing to search, an empty list, a value twice, a range that is none.
    """
    if not isinstance(parameters, dict) or not parameters:
        raise InputError("parameters: nothing to search; write one `flag: [value, value]` or {low: , high: } per line")
    return {name: _read_one(name, given) for name, given in parameters.items()}


def _read_one(name: str, given: Any) -> Choices | Range:
    if isinstance(given, dict) and "choices" in given:
        other = [key for key in given if key != "choices"]
        if other:
            raise InputError(f"{name}: {other[0]!r} beside choices; a list of values has nothing else")
        given = given["choices"]
    if isinstance(given, list):
        return _choices(name, given)
    if isinstance(given, dict):
        return _range(name, given)
    raise InputError(f"{name}: {given!r} is one value; put it under fixed, or write {name}: [{given}, ...]")


def _choices(name: str, given: list[Any]) -> Choices:
    if not given:
        raise InputError(f"{name}: an empty list leaves nothing to try; write {name}: [first, second]")
    values: list[Any] = []
    for text in given:
        if isinstance(text, list) or text in NULLS:
            raise InputError(f"{name}: {text!r} is not one value; write a number, a word or a mapping")
        value = yaml_typed(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}: {text!r} is not finite; take it out")
        value = json.dumps(value) if isinstance(value, dict) else value
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values):
            raise InputError(f"{name}: {text} stands twice; take one out")
        values.append(value)
    return Choices(tuple(values))


def _range(name: str, given: dict[str, Any]) -> Range:
    for key in given:
        if key not in RANGE_KEYS:
            close = difflib.get_close_matches(key, (*RANGE_KEYS, "choices"), n=1)
            fix = f"did you mean {close[0]}?" if close else "a range has low, high, step and log"
            raise InputError(f"{name}: {key!r} is unknown; {fix}")
    for key in ("low", "high"):
        if key not in given:
            raise InputError(f"{name}: {key} is missing; write {name}: {{low: , high: }}")
    low, high = (_number(name, key, given[key]) for key in ("low", "high"))
    step = _number(name, "step", given["step"]) if "step" in given else None
    log = yaml_typed(given.get("log", "false"))
    if not isinstance(log, bool):
        raise InputError(f"{name}: log {given['log']!r} is not true or false; write log: true")
    if low > high:
        raise InputError(f"{name}: low {given['low']} is above high {given['high']}; exchange them")
    if log and low <= 0:
        raise InputError(f"{name}: low {given['low']} is not above 0, and log needs it; raise it, or leave log out")
    if log and step is not None:
        raise InputError(f"{name}: step beside log: true; leave one of them out")
    written = [given[key] for key in ("low", "high", "step") if key in given]
    whole = all(_WHOLE.fullmatch(text.strip()) for text in written)
    if step is not None:
        if step <= 0:
            raise InputError(f"{name}: step {given['step']} is not above 0; give a number above it")
        places = (high - low) / step
        if abs(places - round(places)) > 1e-6:
            last = f"{low + math.floor(places) * step:g}"
            raise InputError(f"{name}: high {given['high']} is not low plus a multiple of step; write high: {last}")
    return Range(low, high, step, log, whole)


def _number(name: str, key: str, text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name}: {key} {text!r} is not a number; correct it")
    return value


def grid_size(space: Space) -> int | None:
    """How many combinations there are; None where a range has no step."""
    counts = [dimension.count() for dimension in space.values()]
    return None if any(count is None for count in counts) else math.prod(count or 0 for count in counts)


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """All of them, in the order of the file; the last parameter changes fastest.

    Raises InputError for a range without a step.
    """
    lists = {name: dimension.points() for name, dimension in space.items()}
    for name, found in lists.items():
        if found is None:
            raise InputError(f"{name}: a range without step, and a grid needs points; add step, or list the values")
    for chosen in itertools.product(*(found or () for found in lists.values())):
        yield dict(zip(lists, chosen, strict=True))


def as_flag(name: str, value: Any) -> str:
    """`--name=value` as train_mlm.py reads it."""
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"


METRICS = ("bits_per_byte", "loss")
GLUE_OWN = ("task_name", "model_name_or_path", "output_dir", "overwrite_output_dir", "grid", "seeds", "checkpoints")


@dataclass(frozen=True)
class Objective:
    """`metric` of the pinned evaluation: itself the objective, or with `task` what trials are compared by on the way."""

    metric: str = "bits_per_byte"
    task: str | None = None
    glue_flags: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.metric if self.task is None else f"glue: {self.task}"

    @property
    def direction(self) -> str:
        return "minimize" if self.task is None else "maximize"

    def reported(self, value: float) -> float:
        """An evaluation on the way as the study wants it: in the direction of the objective."""
        return value if self.task is None else -value

    def of_evaluation(self, evaluation: Any) -> float | None:
        """The metric in an evaluation of `progress.jsonl` or `run_report.json`; None where it is not a finite number."""
        value = evaluation.get(self.metric) if isinstance(evaluation, dict) else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def words(self, model: str, output_dir: str) -> list[str]:
        """The command line of finetune_glue.py for a trial's model."""
        own = [f"--{name}={value}" for name, value in self.glue_flags.items()]
        return ["--task_name", str(self.task), "--model_name_or_path", model, "--output_dir", output_dir, *own]


def read_objective(given: Any) -> Objective:
    """`bits_per_byte`, `loss`, or a mapping of `glue: TASK` and flags of finetune_glue.py. Raises InputError."""
    if isinstance(given, str) and given in METRICS:
        return Objective(given)
    if not isinstance(given, dict) or not isinstance(given.get("glue"), str):
        raise InputError(f"objective: {given!r} is unknown; write bits_per_byte, loss, or {{glue: CoLA}}")
    from budget_trainer.glue.tasks import find_task

    flags = {name: value for name, value in given.items() if name != "glue"}
    for name, value in flags.items():
        if name in GLUE_OWN or not isinstance(value, str):
            raise InputError(f"objective: {name} is not a flag that a trial's score can have; take it out")
    return Objective(task=find_task(given["glue"]).name, glue_flags=flags)


SEARCHES = ("grid", "random", "tpe", "successive_halving", "hyperband")
MOST_POINTS = 10_000  # of a grid
HALVING = ("successive_halving", "hyperband")
KEYS = """search recipe script fixed parameters objective total_time time_per_trial trials parallel_trials
accelerate_config seed prune_at storage output_dir job_name keep_models""".split()
# What the sweep itself says to each trial.
OWN = {
    "output_dir": "each trial has a folder in the sweep's output_dir",
    "total_training_time": "time_per_trial is the budget of each trial",
    "resume_from_checkpoint": "the sweep resumes trials itself",
    "job_time_limit": "a trial is one job",
    "early_exit_time_marker": "lower time_per_trial instead",
    "push_to_hub": "publish the best trial with python -m budget_trainer.publish",
    "hub_token": "trials are not published, and a token has no place in a study",
    "plan": "it predicts one run of another budget",
}
VALIDATION = ("validate_every", *EPOCHS, *PROPORTIONS)  # said by prune_at, where there is one
WHOLE = 1000  # a share of a trial's budget is Optuna's step in thousandths
START_SECONDS = 10.0  # of the sweep itself: imports, checks, the end
FIRST_OVERHEAD = 10.0  # seconds: a guess at starting and evaluating a trial, until one was measured
DEFAULT_SHARES = {"grid": "", "random": "0.25,0.5", "tpe": "0.25,0.5", "successive_halving": "0.125,0.25,0.5"}


@dataclass(frozen=True)
class SweepSpec:
    """A sweep, checked. Times are seconds, infinite where there is no limit; `steps` are thousandths of a trial's budget."""

    name: str
    search: str
    space: Space
    fixed: dict[str, Any]  # flags of every trial, as text
    recipe: Path | None
    objective: Objective
    total_seconds: float
    trial_seconds: float
    trials: int | None
    parallel: int | None
    accelerate_config: Path | None
    seed: int
    steps: tuple[int, ...]
    output_dir: Path
    storage: str
    keep_all_models: bool

    @property
    def reduction_factor(self) -> int:
        """Of successive_halving and hyperband: one of so many trials goes on at each share."""
        return round(self.steps[1] / self.steps[0]) if len(self.steps) > 1 else max(2, round(WHOLE / self.steps[0]))

    @property
    def limit(self) -> int | None:
        """How many trials there may be over all processes; None where time alone ends the sweep."""
        size = grid_size(self.space)
        if self.search == "grid" or self.exhaustive:
            return min(size or 0, self.trials or size or 0)
        return self.trials

    @property
    def exhaustive(self) -> bool:
        """Whether a halving search goes through a grid, so that no point is tried twice. `trials` may change between two
        starts, and is no part of it."""
        size = grid_size(self.space)
        return self.search in HALVING and size is not None and size <= MOST_POINTS

    def words(self, parameters: dict[str, Any]) -> list[str]:
        """The flags of a trial that are not the sweep's own."""
        searched = [as_flag(name, value) for name, value in parameters.items()]
        return [*searched, *recipe_words(self.fixed)]


def read_spec(path: Path, flags: dict[str, str], dry_run: bool) -> SweepSpec:
    """The sweep of a file in this project's form. Raises InputError for anything that contradicts itself."""
    content: dict[str, Any] = {**read_recipe(path), **flags}
    if unknown := [(key, f"sweep file {path}") for key in content if key not in KEYS]:
        raise unknown_keys(unknown, KEYS, "flags of train_mlm.py stand under fixed or parameters")
    content = {key: value for key, value in content.items() if value not in NULLS or key == "parameters"}
    if content.get("script", "train_mlm.py") != "train_mlm.py":
        raise InputError(f"script: {content['script']!r} cannot be searched; leave it out: trials run train_mlm.py")
    fixed = content.get("fixed", {})
    if not isinstance(fixed, dict):
        raise InputError("fixed: is not a mapping; write one `flag: value` per line")
    return make_spec(content, read_space(content.get("parameters")), fixed, path.stem, dry_run)


def make_spec(content: dict[str, Any], space: Space, fixed: dict[str, Any], stem: str, dry_run: bool) -> SweepSpec:
    """The sweep of these keys (as text), checked but for what train_mlm.py knows."""
    search = str(content.get("search", "grid"))
    if search not in SEARCHES:
        close = difflib.get_close_matches(search, SEARCHES, n=1)
        fix = f"did you mean {close[0]}?" if close else f"choose {', '.join(SEARCHES[:-1])} or {SEARCHES[-1]}"
        raise InputError(f"search: {search!r} is unknown; {fix}")
    if search == "grid":
        for name, dimension in space.items():
            if dimension.count() is None:
                raise InputError(
                    f"{name}: a range without step, and a grid needs points; add step, or list the values"
                )
        if (size := grid_size(space) or 0) > MOST_POINTS:
            raise InputError(
                f"search: a grid of {size:,} points, more than {MOST_POINTS:,}; larger steps, or random or tpe"
            )
    if "time_per_trial" not in content:
        raise InputError("time_per_trial: missing; add the budget of each trial, such as 30m")
    trial_seconds = parse_duration(content["time_per_trial"], "time_per_trial")
    total = parse_duration(content["total_time"], "total_time") if "total_time" in content else math.inf
    if total < trial_seconds + FIRST_OVERHEAD + START_SECONDS and not dry_run:
        beside = FIRST_OVERHEAD + START_SECONDS
        raise InputError(
            f"total_time: {content['total_time']} is smaller than one trial (time_per_trial {content['time_per_trial']}, "
            f"and about {beside:.0f}s to start and evaluate it); give {format_duration(trial_seconds + beside)} or more, "
            "or lower time_per_trial"
        )
    if "output_dir" not in content:
        raise InputError("output_dir: missing; add --output_dir with a folder for this sweep")
    output_dir = Path(content["output_dir"])
    recipe = Path(content["recipe"]) if "recipe" in content else None
    config = Path(content["accelerate_config"]) if "accelerate_config" in content else None
    if config is not None and not config.is_file():
        raise InputError(f"accelerate_config: {config} is not there; give a profile as in accelerate_configs/")
    parallel = str(content.get("parallel_trials", "auto"))
    keep = str(content.get("keep_models", "best"))
    if keep not in ("best", "all"):
        raise InputError(f"keep_models: {keep!r} is unknown; choose best or all")
    spec = SweepSpec(
        name=str(content.get("job_name", stem)),
        search=search,
        space=space,
        fixed=fixed,
        recipe=recipe,
        objective=read_objective(content.get("objective", "bits_per_byte")),
        total_seconds=total,
        trial_seconds=trial_seconds,
        trials=_count("trials", content["trials"]) if "trials" in content else None,
        parallel=None if parallel == "auto" else _count("parallel_trials", parallel),
        accelerate_config=config,
        seed=_count("seed", content.get("seed", "0"), least=0),
        steps=_steps(search, content.get("prune_at"), trial_seconds),
        output_dir=output_dir,
        storage=str(content.get("storage", f"sqlite:///{output_dir.absolute() / 'study.db'}")),
        keep_all_models=keep == "all",
    )
    check_flags(space, fixed, spec.steps)
    if spec.limit is None and math.isinf(total):
        raise InputError(f"trials: missing, and total_time too: search {search} would never end; give one of them")
    return spec


def said_by_sweep(name: str, steps: Sequence[int]) -> str | None:
    """Why a flag is the sweep's own and no trial's; None where it is not."""
    name = name.removeprefix("no_")
    if steps and name in VALIDATION:
        return "prune_at says when trials are validated; leave one of the two out (prune_at: [] compares none)"
    return OWN.get(name)


def check_flags(space: Space, fixed: dict[str, Any], steps: Sequence[int]) -> None:
    """Refuse what the sweep decides itself, what stands twice, and a null, which would unset nothing."""
    for name in [*space, *fixed]:
        if (why := said_by_sweep(name, steps)) is not None:
            raise InputError(f"{name}: not a flag of trials; {why}")
    for name, value in fixed.items():
        if name in space:
            raise InputError(f"{name}: both under fixed and under parameters; take it out of one")
        if not isinstance(value, list | dict) and value in NULLS:
            raise InputError(f"{name}: null under fixed unsets nothing; give a value, or change the recipe")


def _count(name: str, text: Any, least: int = 1) -> int:
    value = int(text) if str(text).isdecimal() else -1
    if value < least:
        also = " or auto" if name == "parallel_trials" else ""
        raise InputError(f"{name}: {text!r} is not a whole number from {least} on; give one{also}")
    return value


def _steps(search: str, given: Any, trial_seconds: float) -> tuple[int, ...]:
    """`prune_at` in thousandths of a trial's budget; none: trials are not compared on the way."""
    third = "0.111,0.333"
    shares = given if given is not None else DEFAULT_SHARES.get(search, third)
    if isinstance(shares, str):
        shares = [part for part in shares.strip("[]").split(",") if part.strip()]
    if not isinstance(shares, list):
        raise InputError(f"prune_at: {given!r} is no list of shares; write prune_at: [0.25, 0.5]")
    steps = [round(parse_share(str(share), "prune_at") * WHOLE) for share in shares]
    if steps != sorted(set(steps)) or (steps and not 0 < steps[-1] < WHOLE) or 0 in steps:
        raise InputError(f"prune_at: {given!r} are not rising shares below 1; write prune_at: [0.25, 0.5]")
    if search in HALVING:
        if not steps:
            raise InputError(f"prune_at: empty, and {search} compares trials on the way; leave it out, or give shares")
        factor = round(steps[1] / steps[0]) if len(steps) > 1 else 2
        if factor < 2 or any(abs(b / a - factor) > 0.02 * factor for a, b in zip(steps, steps[1:], strict=False)):
            raise InputError(
                f"prune_at: {given!r} do not grow by one whole factor, and {search} needs it; write 0.125,0.25,0.5"
            )
        steps = [steps[0] * factor**rung for rung in range(len(steps))]
    if steps and validate_every(steps) * trial_seconds < 0.02 * WHOLE * trial_seconds:
        raise InputError(
            f"prune_at: {given!r} would need a validation every {validate_every(steps) / 10:g} % of a trial; give shares "
            "that are multiples of one from 0.02 on"
        )
    return tuple(steps)


def pruning_words(steps: Sequence[int]) -> list[str]:
    """What a trial's command is told so that it can be compared at `steps` (thousandths of its budget)."""
    return [f"--validate_every={validate_every(steps) / WHOLE}"] if steps else []


def validate_every(steps: Sequence[int]) -> int:
    """The cadence, in thousandths of a trial's budget, that meets all steps."""
    return math.gcd(*steps)


def yaml_of(text: str) -> Any:
    """A value of the command line as the file would have it (`glue: CoLA` is a mapping), scalars as text."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return text
