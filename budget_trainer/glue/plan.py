"""Which runs a suite has: their configurations and seeds (a grid in YAML), order, names, and parts of the time."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from budget_trainer.config.parser import read_recipe, unknown_keys
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from budget_trainer.core.package_data import recipe_path
from budget_trainer.glue.arguments import COMPUTING, PARSER, Request, parse_request
from budget_trainer.glue.data import TaskData, load_task
from budget_trainer.glue.tasks import Task, find_task

_FROM_INTERMEDIATE = ("MRPC", "STS-B", "RTE")  # as in the paper
RESULTS_VERSION = 1  # raise it with every change that moves the scores of a run: finished runs are then made anew
_SECTIONS = ("seeds", "flags", "grid", "tasks")


@dataclass(frozen=True)
class _Grid:
    """`flags` of every run, `grid` of lists of which every combination is run, both also by task; values are text."""

    seeds: list[int]
    flags: dict[str, str] = field(default_factory=dict)
    grid: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, dict[str, dict]] = field(default_factory=dict)

    def configurations(self, task: Task, own: dict[str, str]) -> list[dict[str, str]]:
        """The configurations of a task, in the order of the file; `own` are the flags of the command line, which win."""
        special = self.tasks.get(task.name, {})
        flags = {**self.flags, **special.get("flags", {})}
        lists = {name: values for name, values in special.get("grid", self.grid).items() if name not in own}
        combinations = itertools.product(*lists.values())
        return [{**flags, **dict(zip(lists, values, strict=True)), **own} for values in combinations]


def read_grid(path: str | None, seeds: str | None, default_seed: int) -> _Grid:
    """The grid in a YAML file; without a file one configuration. `seeds` (`1,2,3`) wins over the file's."""
    content: dict[str, Any] = {} if path is None else read_recipe(Path(recipe_path(path, "grid", "glue")))
    where = f"grid: {path}"
    for key in sorted(content.keys() - set(_SECTIONS)):
        raise InputError(f"{where}: {key!r} is unknown; it has {', '.join(_SECTIONS)}")
    parts = [part for part in (content, *(content.get("tasks") or {}).values()) if isinstance(part, dict)]
    mappings = [part[key] for part in parts for key in ("flags", "grid") if isinstance(part.get(key), dict)]
    if unknown := [(name, where) for mapping in mappings for name in mapping if name not in PARSER.flags]:
        raise unknown_keys(unknown, sorted(COMPUTING), "use a flag of finetune_glue.py that changes a run")
    general = {key: _section(content, key, where) for key in ("flags", "grid")}
    tasks: dict[str, dict[str, dict]] = {}
    for name, special in (content.get("tasks") or {}).items():
        task = find_task(name)
        if not isinstance(special, dict) or not set(special) <= {"flags", "grid"}:
            raise InputError(
                f"{where}: tasks: {name} has to be a mapping of flags and grid; see recipes/glue/paper.yaml"
            )
        tasks[task.name] = {key: _section(special, key, where) for key in ("flags", *(set(special) & {"grid"}))}
    given = seeds.split(",") if seeds is not None else content.get("seeds") or [str(default_seed)]
    given = given if isinstance(given, list) else [given]
    numbers = [int(seed) if str(seed).strip().isdecimal() else -1 for seed in given]
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise InputError(f"seeds: {given!r} are not different whole numbers from 0 on; write 1,2,3,4,5")
    return _Grid(numbers, **general, tasks=tasks)


def _section(content: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """`flags`, with one value each, or `grid`, with a list of values each."""
    mapping, lists = content.get(key) or {}, key == "grid"
    if not isinstance(mapping, dict):
        example = "[value, value]" if lists else "value"
        raise InputError(f"{where}: {key} is not a mapping; write one `flag: {example}` per line")
    for name, value in mapping.items():
        if name not in COMPUTING:
            raise InputError(f"{where}: {name!r} cannot stand there; use a flag that changes what a run computes")
        if lists and not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
            raise InputError(f"{where}: {name} is no list of values; write {name}: [a, b]")
        if not lists and not isinstance(value, str):
            raise InputError(f"{where}: {name} has several values; put it under grid")
    return mapping


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run before it has a folder: `base` is the task whose best model it starts from, None for the checkpoint itself."""

    task: Task
    configuration: int  # its place among the task's
    flags: dict[str, str]
    seed: int
    base: str | None
    weight: float  # of its part in the time of the suite

    def words(self, model: str, output_dir: str) -> list[str]:
        """Its command line, without data, seed and time."""
        own = [f"--{name}={value}" for name, value in sorted(self.flags.items())]
        return ["--task_name", self.task.name, "--model_name_or_path", model, "--output_dir", output_dir, *own]

    def key(self, **made_from: Any) -> str:
        """Its folder's name: 16 hexadecimal digits of all that its content follows from, `made_from` being the suite's part."""
        content = {"task": self.task.name, "seed": self.seed, "flags": self.flags, "results_version": RESULTS_VERSION}
        content |= {**made_from, "libraries": [version(name) for name in ("torch", "transformers")]}
        return sha256(json.dumps(content, sort_keys=True))[:16]


@dataclass
class Plan:
    """All runs in order, what is `absent` and why, and which tasks another one's model `covers` (AX: MNLI)."""

    grid: _Grid
    runs: list[PlannedRun] = field(default_factory=list)
    data_digests: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    covered: dict[str, str] = field(default_factory=dict)
    intermediate: str | None = None

    def of(self, task_name: str | None) -> list[PlannedRun]:
        return [run for run in self.runs if run.task.name == task_name]


def make_plan(request: Request) -> Plan:
    """Load every task's data once, and list its runs: the intermediate task first, then from small to large.

    Small ones first, because what they leave of their time goes to the larger ones. A task that cannot be trained here is
    absent, with the reason; InputError for a damaged grid or data, where no task is left, and where the intermediate task
    cannot be.
    """
    plan = Plan(read_grid(request.suite.grid, request.suite.seeds, request.training.seed))
    asked = list(request.tasks)
    if request.suite.intermediate_task is not None:
        first = find_task(request.suite.intermediate_task)
        plan.intermediate = first.name
        asked += [first] if first not in asked else []
    loaded: dict[str, TaskData] = {}
    for task in (task for task in asked if task.shared is None):
        data = load_task(task, request.glue_dir, request.glue.dataset_name)
        try:
            data.check(do_train=True, do_eval=True, do_predict=False)
            loaded[task.name] = data
        except InputError as reason:
            plan.absent[task.name] = str(reason)
    for name, owner in ((task.name, task.shared) for task in asked if task.shared is not None):
        split = find_task(name).test[0].name
        if owner not in loaded:
            plan.absent[name] = f"task_name: {name} is answered by the model of {owner}, which is not run"
        elif split in loaded[owner].absent:
            plan.absent[name] = f"do_predict: {name} has no data for it ({loaded[owner].absent[split]})"
        else:
            plan.covered[name] = owner
    if plan.intermediate is not None and plan.intermediate not in loaded:
        missing = plan.absent[plan.intermediate]
        raise InputError(f"intermediate_task: {missing}; or leave it out, and all start from the checkpoint")
    if not loaded:
        raise InputError(f"task_name: no task can be run ({'; '.join(plan.absent.values())[:300]}); give their data")
    sizes = {name: (name != plan.intermediate, len(data.splits["train"])) for name, data in loaded.items()}
    for name in sorted(loaded, key=lambda name: sizes[name]):
        plan.data_digests[name] = loaded[name].digest
        plan.runs += _runs(loaded[name], plan, request)
    return plan


def _runs(data: TaskData, plan: Plan, request: Request) -> list[PlannedRun]:
    task, rows = data.task, len(data.splits["train"])
    base = plan.intermediate if task.name in _FROM_INTERMEDIATE and task.name != plan.intermediate else None
    others = sum(len(examples) for name, examples in data.splits.items() if name != "train")
    found = []
    for place, flags in enumerate(plan.grid.configurations(task, request.own_flags())):
        run = PlannedRun(task, place, flags, 0, base, 0.0)
        # Parsed as its process will, so that a mistake in a grid is seen before anything runs.
        parsed = parse_request(run.words(str(request.glue.model_name_or_path), str(request.output_dir)))
        trained = min(rows, parsed.glue.max_train_samples or rows) * parsed.training.num_train_epochs
        if parsed.training.max_steps > 0:
            batch = parsed.training.per_device_train_batch_size * parsed.training.gradient_accumulation_steps
            trained = parsed.training.max_steps * batch
        # The root, so that a task of 2,500 rows does not get a hundredth of what MNLI gets; a forward pass is a third.
        weight = math.sqrt(trained + others / 3)
        found += [replace(run, seed=seed, weight=weight) for seed in plan.grid.seeds]
    return found


def share(
    weights: Sequence[float], overhead: float, remaining: float, running: Sequence[float] = (), devices: int = 1
) -> float:
    """The seconds of the first of the runs that are left, start and end included.

    There are `remaining` seconds on each of the `devices`, less what the `running` ones may still use. Each run gets
    `overhead`, and of the rest a part by its weight; with less than the overhead for each, equal parts.
    """
    free = max(0.0, remaining * devices - sum(min(max(left, 0.0), remaining) for left in running))
    rest = free - overhead * len(weights)
    seconds = free / len(weights) if rest <= 0 else overhead + rest * weights[0] / sum(weights)
    return max(0.0, min(remaining, seconds))
