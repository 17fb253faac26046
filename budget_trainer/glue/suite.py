"""How the time of a suite is divided over its runs. Pure functions of seconds; standard library only.

Which configurations and seeds each task is run with: a grid in YAML, over which the command line wins.

The runs of a suite: which there are, in which order, from which model, and what each is called.

`glue_runs.json`: all runs of a suite, what they scored, and the best configuration of each task.

All runs of a suite: one per device at a time, none twice, none longer than the time there is.

A suite: tasks x configurations x seeds, from the request to `glue_runs.json`.

GLUE over the budget: a suite for each time-marked checkpoint of a run, and their scores against its minutes.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import BudgetClock, ClockFile, format_duration
from budget_trainer.config.parser import read_recipe
from budget_trainer.core.errors import InputError, RunError, StopAsked
from budget_trainer.core.io import try_lock, write_json_atomic
from budget_trainer.core.jobs import Child, devices, write_profile
from budget_trainer.core.stop_request import StopRequest, signal_name
from budget_trainer.glue.arguments import ELSEWHERE, KEYS, REFUSED, Request, parse_request
from budget_trainer.glue.data import TaskData, check_data, load_task
from budget_trainer.glue.model import load_tokenizer, model_digest, resolve_model
from budget_trainer.glue.over_budget import MARKDOWN, expand_checkpoints, report_over_budget
from budget_trainer.glue.results import MODEL, RUNS_FILE, RUNS_FORMAT, Spread, read_result
from budget_trainer.glue.tasks import TASKS, Task, find_task
from budget_trainer.training import run_folder
from budget_trainer.training.launch import configure_logging

FIRST_OVERHEAD = 15.0  # a guess at starting and ending a process, until one was measured
LEAST_RUN = 20.0  # below this not even the set-up of a tiny model fits
UNEVEN = 1.2  # the next start may take so much longer than the longest so far


def share(free_seconds: float, weights: Sequence[float], overhead: float) -> float:
    """The seconds of the first of the runs that are left, start and end included.

    Each run gets `overhead`, and of the rest a part by its weight; what a run leaves goes to those after it. With less than
    the overhead for each, equal parts.
    """
    if free_seconds <= overhead * len(weights):
        return free_seconds / len(weights)
    return overhead + (free_seconds - overhead * len(weights)) * weights[0] / sum(weights)


def free_seconds(remaining: float, running: Sequence[float], devices: int) -> float:
    """Device-seconds for runs that have not begun: what is left on all devices, less what the running ones may use."""
    return max(0.0, remaining * devices - sum(min(max(left, 0.0), remaining) for left in running))


SECTIONS = ("seeds", "flags", "grid", "tasks")


@dataclass
class Grid:
    """`flags` of every run, `grid` of lists of which every combination is run, both also by task; values are text."""

    seeds: list[int]
    flags: dict[str, str] = field(default_factory=dict)
    grid: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, dict[str, dict]] = field(default_factory=dict)
    path: str | None = None

    def configurations(self, task: Task, own: dict[str, str]) -> list[dict[str, str]]:
        """The configurations of a task, in the order of the file; `own` are the flags of the command line."""
        special = self.tasks.get(task.name, {})
        flags = {**self.flags, **special.get("flags", {})}
        lists = {name: values for name, values in special.get("grid", self.grid).items() if name not in own}
        combinations = itertools.product(*lists.values())
        return [{**flags, **dict(zip(lists, values, strict=True)), **own} for values in combinations]


def read_grid(path: str | None, seeds: str | None, default_seed: int) -> Grid:
    """The grid in a YAML file; without a file one configuration. `seeds` (`1,2,3`) wins over the file's.

    InputError names the file, the key and the fix.
    """
    content: dict[str, Any] = read_recipe(Path(path)) if path is not None else {}
    where = f"grid: {path}"
    for key in content:
        if key not in SECTIONS:
            raise InputError(f"{where}: {key!r} is unknown; it has {', '.join(SECTIONS)}")
    flags, grid = _flags(content.get("flags") or {}, where), _lists(content.get("grid") or {}, where)
    tasks: dict[str, dict[str, dict]] = {}
    for name, special in (content.get("tasks") or {}).items():
        task = find_task(name)
        if not isinstance(special, dict) or not set(special) <= {"flags", "grid"}:
            raise InputError(
                f"{where}: tasks: {name} has to be a mapping of flags and grid; see recipes/glue/paper.yaml"
            )
        tasks[task.name] = {"flags": _flags(special.get("flags") or {}, where)}
        if "grid" in special:
            tasks[task.name]["grid"] = _lists(special["grid"] or {}, where)
    given = seeds.split(",") if seeds is not None else content.get("seeds") or [str(default_seed)]
    return Grid(_seeds(given), flags, grid, tasks, path)


def _flags(mapping: Any, where: str) -> dict[str, str]:
    if not isinstance(mapping, dict):
        raise InputError(f"{where}: flags is not a mapping; write one `flag: value` per line")
    for name, value in mapping.items():
        _check_name(name, where)
        if not isinstance(value, str):
            raise InputError(f"{where}: {name} has several values; put it under grid")
    return mapping


def _lists(mapping: Any, where: str) -> dict[str, list[str]]:
    if not isinstance(mapping, dict):
        raise InputError(f"{where}: grid is not a mapping; write one `flag: [value, value]` per line")
    for name, values in mapping.items():
        _check_name(name, where)
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InputError(f"{where}: {name} is no list of values; write {name}: [a, b]")
    return mapping


def _check_name(name: str, where: str) -> None:
    if name in KEYS and name not in ELSEWHERE and name not in REFUSED:
        return
    close = difflib.get_close_matches(name, sorted(KEYS - ELSEWHERE - set(REFUSED)), n=1)
    fix = f"did you mean {close[0]}?" if close else "use a flag of finetune_glue.py that changes a run"
    raise InputError(f"{where}: {name!r} cannot stand there; {fix}")


def _seeds(given: Any) -> list[int]:
    values = given if isinstance(given, list) else [given]
    try:
        seeds = [int(value) for value in values]
    except (TypeError, ValueError):
        seeds = [-1]
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: {given!r} are not different whole numbers from 0 on; write 1,2,3,4,5")
    return seeds


FROM_INTERMEDIATE = ("MRPC", "STS-B", "RTE")  # as in the paper
# The modules that make a run's numbers: a change of them makes all runs new.
RESULTS_VERSION = 1  # raise it with every change that moves the scores of a run: finished runs are then made anew


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
        "results_version": RESULTS_VERSION,
        "device": device,
        "libraries": [version(name) for name in ("torch", "transformers")],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def record(run: PlannedRun, key: str, folder: str, result: dict[str, Any] | None, error: str | None) -> dict[str, Any]:
    """One run as the file holds it; `result` is its result.json, None where it has failed with `error`."""
    entry: dict[str, Any] = {"seed": run.seed, "key": key, "folder": folder}
    if result is None:
        return {**entry, "status": "failed", "error": error, "headline": None}
    return {
        **entry,
        "status": "finished",
        "headline": result["headline"]["value"],
        "metrics": result["metrics"],
        "official_rows": all(result["official_rows"].values()),
        "best_epoch": result["best_epoch"],
        "steps": result["steps"],
        "predictions": result["predictions"],
        "seconds": result["seconds"]["total"],
    }


def task_entry(plan: Plan, name: str, records: list[tuple[PlannedRun, dict[str, Any]]]) -> dict[str, Any]:
    """A task with its configurations, the best of them by the median of its seeds, and its best run.

    A configuration whose runs have all finished goes before one whose have not, whatever the scores: few seeds are luck.

    Scores are shares from 0 to 1, times seconds. `best_run` is the highest of the best configuration (of equals the first
    seed): what a later task starts from.
    """
    task = TASKS[name]
    configurations: list[dict[str, Any]] = []
    for run, entry in records:
        if run.configuration == len(configurations):
            configurations.append({"flags": run.flags, "runs": []})
        configurations[run.configuration]["runs"].append(entry)
    for configuration in configurations:
        scores = [entry["headline"] for entry in configuration["runs"] if entry["headline"] is not None]
        configuration["headline"] = Spread.of(scores).scores() if scores else None
    scored = [place for place, one in enumerate(configurations) if one["headline"] is not None]
    best = max(scored, key=lambda place: _rank(configurations[place])) if scored else None
    return {
        "headline_metric": task.headline,
        "starts_from": records[0][0].base,
        "official_rows": all(entry.get("official_rows", True) for _, entry in records),
        "data_sha256": plan.data_digests[name],
        **_of_best(None if best is None else configurations[best]["runs"]),
        "best_configuration": best,
        "configurations": configurations,
        "seconds": sum(entry.get("seconds", 0.0) for _, entry in records),
    }


def _rank(configuration: dict[str, Any]) -> tuple[float, float]:
    runs = configuration["runs"]
    finished = sum(entry["status"] == "finished" for entry in runs)
    return finished / len(runs), configuration["headline"]["median"]


def _of_best(runs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Headline, every metric of every dev split, and the best run of a configuration."""
    finished = [entry for entry in runs or [] if entry["status"] == "finished"]
    if not finished:
        return {"headline": None, "metrics": {}, "best_run": None}
    metrics = {
        split: {name: Spread.of([entry["metrics"][split][name] for entry in finished]).scores() for name in values}
        for split, values in finished[0]["metrics"].items()
    }
    best = max(finished, key=lambda entry: entry["headline"])
    return {
        "headline": Spread.of([entry["headline"] for entry in finished]).scores(),
        "metrics": metrics,
        "best_run": {"seed": best["seed"], "folder": best["folder"]},
    }


def whole(
    plan: Plan,
    model: dict[str, Any],
    protocol: dict[str, Any],
    records: dict[str, list[tuple[PlannedRun, dict[str, Any]]]],
) -> dict[str, Any]:
    """The content of the file, tasks in GLUE's order; the same for the same runs, however often they were begun."""
    tasks = {name: task_entry(plan, name, records[name]) for name in TASKS if name in records}
    return {
        "format": RUNS_FORMAT,
        "model": model,
        "protocol": protocol,
        "tasks": tasks,
        "covered": plan.covered,
        "absent": plan.absent,
        "failed": sum(entry["status"] == "failed" for task in records.values() for _, entry in task),
        "seconds": sum(task["seconds"] for task in tasks.values()),
    }


log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
END_SECONDS = 1.0  # of the suite itself, when the last run has ended


class Runner:
    """Works through a plan in `output_dir`: `runs/<task>/<key>/` for each run, `glue_runs.json` for all."""

    def __init__(
        self, request: Request, plan: Plan, clock: BudgetClock, stop: StopRequest, model: tuple[Path, str]
    ) -> None:
        self.request, self.plan, self.clock, self.stop = request, plan, clock, stop
        self.output_dir = request.output_dir
        self.bases: dict[str | None, tuple[Path, str]] = {None: model}  # what runs start from, with its digest
        self.records: dict[str, list[tuple[PlannedRun, dict[str, Any]]]] = {}
        self.overhead = FIRST_OVERHEAD  # of starting and ending a run
        self._slots = devices(request.run.use_cpu)
        self._profile = write_profile(self.output_dir / "launch.yaml", request.run.use_cpu)

    def work(self) -> None:
        """All runs: the intermediate task first, then what may start from its best model."""
        first = self.plan.of(self.plan.intermediate) if self.plan.intermediate is not None else []
        rest = [run for run in self.plan.runs if run not in first]
        if first:
            self._work_through(first, rest)
            rest = self._startable(rest, str(self.plan.intermediate))
        self._work_through(rest, [])

    def _startable(self, runs: list[PlannedRun], name: str) -> list[PlannedRun]:
        """Those of the runs that have something to start from when the intermediate task has ended; the others failed."""
        records = self._in_order(name)
        best = task_entry(self.plan, name, records)["best_run"]
        if best is not None:
            self._choose_base(name, records, best)
            return runs
        self.bases[name] = (Path(), "none")
        for run in runs:
            if run.base == name:
                self._note(run, None, f"intermediate_task: all runs of {name} failed ({records[0][1]['error']})")
        return [run for run in runs if run.base != name]

    def _choose_base(self, name: str, records: list[tuple[PlannedRun, dict[str, Any]]], best: dict[str, Any]) -> None:
        """Keep the model of the intermediate task's best run, and drop the others."""
        for _, entry in records:
            if entry["folder"] != best["folder"]:
                shutil.rmtree(self.output_dir / entry["folder"] / MODEL, ignore_errors=True)
        model = self.output_dir / best["folder"] / MODEL
        if not model.is_dir():
            raise RunError(f"intermediate_task: {model} is gone; delete {model.parent} to have it made again")
        self.bases[name] = (model, model_digest(model, model))

    def _work_through(self, runs: list[PlannedRun], later: list[PlannedRun]) -> None:
        """Run what is not finished; `later` is what else the time has to do for."""
        waiting = [run for run in runs if not self._take_finished(run)]
        running: dict[str | None, tuple[PlannedRun, Child, float]] = {}  # by device, with the seconds it has
        try:
            while waiting or running:
                for device in self._slots:
                    if device not in running and waiting:
                        run = waiting.pop(0)
                        others = [left - child.seconds for _, child, left in running.values()]
                        seconds = self._share([run, *waiting, *later], others)
                        if seconds < self.overhead / 2:
                            self._note(run, None, "total_training_time is over; give more, or fewer runs")
                        else:
                            running[device] = (run, self._start(run, device, seconds), seconds)
                for device, (run, child, seconds) in list(running.items()):
                    if child.returncode is not None:
                        del running[device]
                        self._ended(run, child, None)
                    elif self.clock.remaining_seconds() < END_SECONDS:
                        child.stop()
                        del running[device]
                        self._ended(run, child, f"stopped: total_training_time is over (it had {seconds:.0f}s)")
                if self.stop.signal_number:
                    raise StopAsked(f"{signal_name(self.stop.signal_number)}; repeat the command to go on")
                time.sleep(POLL_SECONDS)
        finally:
            for _, child, _ in running.values():
                child.stop()

    def _share(self, left: list[PlannedRun], running: list[float]) -> float:
        """The seconds of the first of the runs that are `left`; infinite without a budget."""
        if math.isinf(self.clock.total_seconds):
            return math.inf
        remaining = self.clock.remaining_seconds() - END_SECONDS
        free = free_seconds(remaining, running, len(self._slots))
        return min(remaining, share(free, [run.weight for run in left], self.overhead))

    # ---- one run ----

    def _place(self, run: PlannedRun) -> tuple[str, Path]:
        _, digest = self.bases[run.base]
        data, time = self.plan.data_digests[run.task.name], self.request.glue.total_training_time
        device = "cpu" if self._slots == [None] else "cuda"
        key = run_key(run, digest, data, time, self._keeps_model(run), device)
        return key, self.output_dir / "runs" / run.task.name / key

    def _keeps_model(self, run: PlannedRun) -> bool:
        """The intermediate task's runs do, until the best is known; the others where the command line says so."""
        asked = "save_model" in self.request.explicit and self.request.glue.save_model
        return run.task.name == self.plan.intermediate or asked

    def _take_finished(self, run: PlannedRun) -> bool:
        _, folder = self._place(run)
        result = read_result(folder)
        if result is not None:
            self._note(run, result, None)
        return result is not None

    def _start(self, run: PlannedRun, device: str | None, seconds: float) -> Child:
        _, folder = self._place(run)
        shutil.rmtree(folder, ignore_errors=True)  # what was not finished is begun anew
        folder.mkdir(parents=True)
        glue = self.request.glue
        line = words(run.task, run.flags, str(self.bases[run.base][0]), str(folder))
        line += ["--seed", str(run.seed), f"--save_model={self._keeps_model(run)}"]
        line += ["--glue_dir", *glue.glue_dir] if glue.glue_dir else ["--dataset_name", glue.dataset_name]
        if glue.tokenizer_name is not None and run.base is None:
            line += ["--tokenizer_name", glue.tokenizer_name]
        if "report_to" in self.request.explicit:
            line += ["--report_to", self.request.explicit["report_to"]]
        if self.request.run.use_cpu:
            line += ["--use_cpu", "true"]
        if not math.isinf(seconds):
            line += ["--total_training_time", f"{max(0.1, seconds - self.overhead):.1f}s"]
        return Child("finetune_glue", line, self._profile, folder / "log.txt", device)

    def _ended(self, run: PlannedRun, child: Child, error: str | None) -> None:
        _, folder = self._place(run)
        result = read_result(folder) if error is None else None
        if result is not None:
            self.overhead = max(LEAST_RUN / 4, UNEVEN * (child.seconds - result["seconds"]["total"]))
        self._note(run, result, None if result is not None else error or child.last_error())

    def _note(self, run: PlannedRun, result: dict[str, Any] | None, error: str | None) -> None:
        key, folder = self._place(run)
        entry = record(run, key, str(folder.relative_to(self.output_dir)), result, error)
        self.records.setdefault(run.task.name, []).append((run, entry))
        done = sum(map(len, self.records.values()))
        what = f"[{done}/{len(self.plan.runs)}] {run.task.name}, configuration {run.configuration}, seed {run.seed}"
        if result is None:
            log.warning("%s: failed: %s", what, error)
        else:
            score, seconds = result["headline"]["value"], format_duration(result["seconds"]["total"])
            log.info("%s: %s %.4f, %s", what, run.task.headline, score, seconds)

    def content(self, protocol: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
        """What `glue_runs.json` holds."""
        return whole(self.plan, model, protocol, {name: self._in_order(name) for name in self.records})

    def _in_order(self, name: str) -> list[tuple[PlannedRun, dict[str, Any]]]:
        """The records of a task in the order of the plan, whichever run ended first."""
        order = {id(run): place for place, run in enumerate(self.plan.runs)}
        return sorted(self.records[name], key=lambda pair: order[id(pair[0])])


SUITE_FILE = "suite.json"  # whose folder this is, from the beginning on


def run_suite(request: Request, clock: BudgetClock, stop: StopRequest) -> int:
    """All runs that were asked for, those that are finished not again. Returns 0, or 1 where a run has failed.

    Raises InputError before anything is started where something is wrong with model, data, grid or folder; StopAsked on a
    signal, after its runs have ended: the same command goes on. What it used of `total_training_time` is kept over jobs.
    """
    configure_logging(request.run)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "num_processes: a suite starts its own processes, one for each GPU; start it with python finetune_glue.py"
        )
    if not (request.run.do_train and request.run.do_eval and request.run.do_predict):
        raise InputError(
            "do_predict: a suite trains, evaluates and predicts; leave do_train, do_eval and do_predict out"
        )
    grid = read_grid(request.suite.grid, request.suite.seeds, request.run.seed)
    run_folder.check_writable(request.output_dir)
    folder, digest = _check_model(request)
    plan = make_plan(request, grid)
    suite = {
        "protocol": _protocol(request, grid, plan),
        "model": {"name_or_path": request.glue.model_name_or_path, "sha256": digest},
    }
    _check_time(request, plan)
    request.output_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as at_exit:
        lock = try_lock(request.output_dir / ".lock")
        if lock is None:
            raise InputError(
                f"output_dir: another suite works in {request.output_dir}; wait for it, or give another folder"
            )
        at_exit.enter_context(lock)
        _settle_folder(request, suite)
        if not math.isinf(clock.total_seconds):
            path = request.output_dir / run_folder.CLOCK
            clock.restore(ClockFile.read(path))
            at_exit.enter_context(clock_file := ClockFile(path, clock))
            clock_file.start()
        for name, reason in plan.absent.items():
            log.warning("%s is absent: %s", name, reason)
        clock.enter("train")
        runner = Runner(request, plan, clock, stop, (folder, digest))
        runner.work()
        content = runner.content(suite["protocol"], suite["model"])
        write_json_atomic(request.output_dir / RUNS_FILE, content)
        clock.stop()
    from budget_trainer.glue.report import report_suite  # late: pictures are drawn outside of the budget

    report_suite(request.output_dir, request.output_dir, request.glue.overwrite_output_dir)
    print_table(content, request.output_dir)
    return 1 if content["failed"] else 0


def _check_model(request: Request) -> tuple[Path, str]:
    """The checkpoint's folder and digest, with its tokenizer tried."""
    folder = resolve_model(str(request.glue.model_name_or_path))
    name = request.glue.tokenizer_name
    tokenizer_folder = folder if name is None else resolve_model(name, "tokenizer_name")
    load_tokenizer(tokenizer_folder)
    return folder, model_digest(folder, tokenizer_folder)


def _protocol(request: Request, grid: Grid, plan: Plan) -> dict[str, Any]:
    """What decides which runs there are, and on what: a folder holds one protocol."""
    return {
        "tasks": [task.name for task in request.tasks],
        "grid": {"flags": grid.flags, "grid": grid.grid, "tasks": grid.tasks},
        "seeds": grid.seeds,
        "flags": request.own_flags(),
        "intermediate_task": plan.intermediate,
        "total_training_time": request.glue.total_training_time,
        "data_sha256": plan.data_digests,
        "statistic": "median of the seeds, of the configuration where it is highest",
    }


def _check_time(request: Request, plan: Plan) -> None:
    seconds = request.total_seconds
    if seconds is None:
        return
    each = seconds * len(devices(request.run.use_cpu)) / len(plan.runs)
    if each < LEAST_RUN:
        raise InputError(
            f"total_training_time: {request.glue.total_training_time} for {len(plan.runs)} runs leaves {each:.1f}s for each, "
            f"and starting one takes about {LEAST_RUN:.0f}s; give more time, or fewer tasks, seeds or configurations"
        )


def _settle_folder(request: Request, suite: dict[str, Any]) -> None:
    """Make the folder this suite's, and refuse it where it is another's; what that one used of its time is not charged.

    Finished runs stay in any case: they are known by what they were made from.
    """
    path = request.output_dir / SUITE_FILE
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs["protocol"] == suite["protocol"] and theirs["model"]["sha256"] == suite["model"]["sha256"]:
            return
        other = True
    except FileNotFoundError:
        other = (request.output_dir / RUNS_FILE).exists()
    except (OSError, ValueError, KeyError, TypeError):
        other = True
    if other and not request.glue.overwrite_output_dir:
        raise InputError(
            f"output_dir: {path} is of another suite (model, data, tasks, grid or time); add --overwrite_output_dir to replace "
            "it, or give another folder"
        )
    (request.output_dir / run_folder.CLOCK).unlink(missing_ok=True)
    write_json_atomic(path, suite)


def print_table(content: dict[str, Any], folder: Path) -> None:
    """A line for each task: the median of its best configuration with the range of the seeds, in per cent."""
    print()
    for name, task in content["tasks"].items():
        score = task["headline"]
        text = "every run failed"
        if score is not None:
            text = f"{100 * score['median']:6.2f}  ({100 * score['min']:.2f} to {100 * score['max']:.2f})"
        print(f"{name:6} {task['headline_metric']:21} {text}  {format_duration(max(0.1, task['seconds']))}")
    for name, reason in content["absent"].items():
        print(f"{name:6} absent: {reason}")
    print(f"report in {folder / 'glue_report.md'}, .json and .png; runs in {folder / RUNS_FILE}", flush=True)


def run_checkpoints(request: Request, clock: BudgetClock, stop: StopRequest) -> int:
    """The suite that `request` asks for, for each of its `checkpoints`; returns 1 where a run of one has failed.

    Each has an equal part of `total_training_time`. The same command goes on after a kill, as a suite does. InputError before
    anything is started where a checkpoint is no model of one finished run.
    """
    found = expand_checkpoints(request.suite.checkpoints or [])
    names = [checkpoint.path.resolve().name for checkpoint in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"checkpoints: {name} is named twice; give each folder once")
    seconds = request.total_seconds
    share = None if seconds is None else f"{seconds / len(found):.2f}s"
    code, suites = 0, []
    for number, checkpoint in enumerate(found):
        own = clock if number == 0 else BudgetClock()  # the first pays for the imports
        own.total_seconds = math.inf if seconds is None else seconds / len(found)
        asked = request.of_checkpoint(checkpoint.path, share)
        code = max(code, run_suite(asked, own, stop))
        suites.append((checkpoint.path, asked.output_dir / RUNS_FILE))
    report_over_budget(suites, request.output_dir)
    print(f"scores against minutes of pre-training in {request.output_dir / MARKDOWN}, .json and .png", flush=True)
    return code
