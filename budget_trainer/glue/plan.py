"""The runs of a suite: which there are, in which order, from which model, and what each is called."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from budget_trainer import __version__
from budget_trainer.errors import InputError
from budget_trainer.glue.data import TaskData, load_task
from budget_trainer.glue.grid import Grid
from budget_trainer.glue.parsing import Request, parse_request
from budget_trainer.glue.run import check_data
from budget_trainer.glue.tasks import Task, find_task

FROM_INTERMEDIATE = ("MRPC", "STS-B", "RTE")  # as in the paper
# The modules that make a run's numbers: a change of them makes all runs new.
CODE = [f"glue/{name}" for name in "account arguments best data encoding ending model prediction result run".split()]
CODE += [
    "glue/scores",
    "glue/tasks",
    "glue/trainer",
    "glue/tsv",
    "arguments",
    "attention",
    "callbacks/time_budget",
    "curves",
]
CODE += ["engine_config", "few_bit_dropout", "fused_attention", "mixin", "model_config", "scheduler"]


@dataclass
class PlannedRun:
    """A run before it has a folder: `base` is the task whose best model it starts from, None for the checkpoint itself."""

    task: Task
    configuration: int  # its place among the task's
    flags: dict[str, str]
    seed: int
    base: str | None
    weight: float  # of its share in the time of the suite


@dataclass
class Plan:
    """All runs in order, what is `absent` and why, and which tasks another one's model `covers` (AX: MNLI)."""

    runs: list[PlannedRun] = field(default_factory=list)
    data_digests: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    covered: dict[str, str] = field(default_factory=dict)
    intermediate: str | None = None

    def of(self, task_name: str) -> list[PlannedRun]:
        return [run for run in self.runs if run.task.name == task_name]


def make_plan(request: Request, grid: Grid) -> Plan:
    """Load every task's data once, and list its runs: the intermediate task first, then from small to large.

    Small ones first, because what they leave of their time goes to the larger ones. A task that cannot be trained here is
    absent, with the reason; InputError for damaged data, where no task is left, and where the intermediate task cannot be.
    """
    plan, asked = Plan(), list(request.tasks)
    if request.suite.intermediate_task is not None:
        first = find_task(request.suite.intermediate_task)
        plan.intermediate = first.name
        asked += [first] if first not in asked else []
    loaded: dict[str, TaskData] = {}
    for task in asked:
        if task.shared is not None:
            continue
        data = load_task(task, request.glue_dir, request.glue.dataset_name)
        try:
            check_data(data, do_train=True, do_eval=True, do_predict=False)
        except InputError as reason:
            plan.absent[task.name] = str(reason)
            continue
        loaded[task.name] = data
    for task in asked:
        if task.shared is not None:
            _cover(plan, task, loaded)
    if plan.intermediate is not None and plan.intermediate not in loaded:
        missing = plan.absent[plan.intermediate]
        raise InputError(f"intermediate_task: {missing}; or leave it out, and all start from the checkpoint")
    if not loaded:
        raise InputError(f"task_name: no task can be run ({'; '.join(plan.absent.values())[:300]}); give their data")
    for data in sorted(loaded.values(), key=lambda data: (data.task.name != plan.intermediate, _size(data))):
        plan.data_digests[data.task.name] = data.digest
        plan.runs += _runs(data, grid, request, plan.intermediate)
    return plan


def _cover(plan: Plan, task: Task, loaded: dict[str, TaskData]) -> None:
    owner = loaded.get(str(task.shared))
    if owner is None:
        plan.absent[task.name] = f"task_name: {task.name} is answered by the model of {task.shared}, which is not run"
    elif task.test[0].name in owner.absent:
        plan.absent[task.name] = f"do_predict: {task.name} has no data for it ({owner.absent[task.test[0].name]})"
    else:
        plan.covered[task.name] = str(task.shared)


def _size(data: TaskData) -> int:
    return len(data.splits["train"])


def _runs(data: TaskData, grid: Grid, request: Request, intermediate: str | None) -> list[PlannedRun]:
    task = data.task
    base = intermediate if task.name in FROM_INTERMEDIATE and task.name != intermediate else None
    found = []
    for place, flags in enumerate(grid.configurations(task, request.own_flags())):
        checked = parse_request(words(task, flags, str(request.glue.model_name_or_path), str(request.output_dir)))
        rows = min(_size(data), checked.glue.max_train_samples or _size(data))
        others = sum(len(examples) for name, examples in data.splits.items() if name != "train")
        trained = rows * checked.run.num_train_epochs
        if checked.run.max_steps > 0:
            batch = checked.run.per_device_train_batch_size * checked.run.gradient_accumulation_steps
            trained = checked.run.max_steps * batch
        # The root, so that a task of 2,500 rows does not get a hundredth of what MNLI gets; a forward pass is a third.
        weight = math.sqrt(trained + others / 3)
        found += [PlannedRun(task, place, flags, seed, base, weight) for seed in grid.seeds]
    return found


def words(task: Task, flags: dict[str, str], model: str, output_dir: str) -> list[str]:
    """The command line of a run, without its data, seed and time."""
    own = [f"--{name}={value}" for name, value in sorted(flags.items())]
    return ["--task_name", task.name, "--model_name_or_path", model, "--output_dir", output_dir, *own]


def run_key(
    run: PlannedRun,
    model_digest: str,
    data_digest: str,
    total_training_time: str | None,
    keeps_model: bool,
    device: str = "cpu",
) -> str:
    """What a run's folder is called: 16 hexadecimal digits of all that its content follows from."""
    content = {
        "task": run.task.name,
        "seed": run.seed,
        "flags": run.flags,
        "model": model_digest,
        "data": data_digest,
        "total_training_time": total_training_time,
        "keeps_model": keeps_model,
        "version": __version__,
        "code": code_digest(),
        "device": device,
        "libraries": [version(name) for name in ("torch", "transformers")],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_digest() -> str:
    """SHA-256 over the modules that make a run's numbers."""
    folder = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in CODE)).hexdigest()
