"""A suite: tasks x configurations x seeds, from the request to `glue_runs.json`."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from budget_trainer import run_folder
from budget_trainer.children import devices
from budget_trainer.clock import BudgetClock, ClockFile, format_duration
from budget_trainer.errors import InputError
from budget_trainer.glue.files import RUNS_FILE
from budget_trainer.glue.grid import Grid, read_grid
from budget_trainer.glue.model import load_tokenizer, model_digest, resolve_model
from budget_trainer.glue.parsing import Request
from budget_trainer.glue.plan import Plan, make_plan
from budget_trainer.glue.runner import Runner
from budget_trainer.glue.shares import LEAST_RUN
from budget_trainer.launch import configure_logging
from budget_trainer.report import write_json_atomic
from budget_trainer.stop_request import StopRequest

log = logging.getLogger(__name__)
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
        at_exit.enter_context(_alone(request.output_dir))
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


def _alone(output_dir: Path) -> IO[str]:
    """Hold the folder for this process, until the returned file is closed."""
    lock = open(output_dir / ".lock", "w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(
            f"output_dir: another suite works in {output_dir}; wait for it, or give another folder"
        ) from None
    return lock


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
