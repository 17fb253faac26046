"""What a sweep was asked to do: its file, over which the command line wins, checked against itself."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from budget_trainer import recipes
from budget_trainer.clock import format_duration, parse_duration
from budget_trainer.errors import InputError
from budget_trainer.recipe_file import NULLS, read_recipe, recipe_words
from budget_trainer.sweep.objective import Objective, read_objective
from budget_trainer.sweep.space import Space, as_flag, grid_size, read_space
from budget_trainer.watch_checks import EPOCHS, PROPORTIONS, parse_share

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
        return [*searched, *recipe_words(self.fixed, recipes.KEYS)]


def read_spec(path: Path, flags: dict[str, str], dry_run: bool) -> SweepSpec:
    """The sweep of a file in this project's form. Raises InputError for anything that contradicts itself."""
    content: dict[str, Any] = {**read_recipe(path), **flags}
    for key in content:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            fix = f"did you mean {close[0]}?" if close else "flags of train_mlm.py stand under fixed or parameters"
            raise InputError(f"{key}: unknown key (sweep file {path}); {fix}")
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
