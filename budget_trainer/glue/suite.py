"""All runs of a suite: one per device at a time, none twice, none longer than the time there is.

`run_suite` goes from the request to `glue_runs.json`; `run_checkpoints` does so for each time-marked checkpoint of a run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import BudgetClock, format_duration, keep_clock, read_clock
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import fresh_folder, hold_folder, write_json_atomic
from budget_trainer.core.jobs import FINE_TUNING, Job, JobEnd, check_unseen, devices, make_launch, run_jobs
from budget_trainer.glue.arguments import Request
from budget_trainer.glue.model import load_checkpoint
from budget_trainer.glue.over_budget import MARKDOWN, expand_checkpoints, report_over_budget
from budget_trainer.glue.plan import Plan, PlannedRun, make_plan, share
from budget_trainer.glue.results import MODEL, RUNS_FILE, Configuration, Run, Suite, TaskResult, read_result
from budget_trainer.glue.submission import write_submission
from budget_trainer.glue.tasks import TASKS
from budget_trainer.reporting.energy import energy_words
from budget_trainer.reporting.report import in_run
from budget_trainer.training import run_folder
from budget_trainer.training.launch import configure_logging

log = logging.getLogger(__name__)
_LEAST_RUN = 20.0  # below this not even the set-up of a tiny model fits
_UNEVEN = 1.2  # the next start may take so much longer than the longest so far
_END_SECONDS = 1.0  # of the suite itself, when the last run has ended


@dataclass
class _Runner:
    """Works through a plan in `request.output_dir`: `runs/<task>/<key>/` for each run.

    `model` is the checkpoint's folder with its digest, `slots` are the devices (of CUDA_VISIBLE_DEVICES; None for the CPU), and
    `launch` makes the command of a module and its command line.
    """

    request: Request
    plan: Plan
    clock: BudgetClock
    stop: StopRequest
    model: tuple[Path, str]
    slots: Sequence[str | None]
    launch: Callable[[str, Sequence[str]], Sequence[str]]

    def __post_init__(self) -> None:
        self.output_dir = self.request.output_dir
        self._runs: dict[PlannedRun, Run] = {}  # what has ended
        self._ends: dict[PlannedRun, float] = {}  # of what runs: when its time is over
        self._bases: dict[str | None, tuple[Path, str]] = {None: self.model}  # what runs start from
        self._overhead = 15.0  # seconds: a guess at starting and ending a process, until one was measured

    def work(self) -> None:
        """All runs: the intermediate task first, then what may start from its best model."""
        first = self.plan.of(self.plan.intermediate)
        rest = [run for run in self.plan.runs if run not in first]
        if first:
            self._work_through(first, rest)
            rest = self._startable(rest, first[0].task.name)
        self._work_through(rest, [])

    def results(self) -> dict[str, TaskResult]:
        """What has ended, by task, in the order of the plan whichever run ended first."""
        return {name: self._result(name) for name in self.plan.data_digests}

    def _result(self, name: str) -> TaskResult:
        planned = [run for run in self.plan.of(name) if run in self._runs]
        configurations = [
            Configuration(runs[0].flags, [self._runs[run] for run in runs])
            for _, group in groupby(planned, key=lambda run: run.configuration)
            if (runs := list(group))
        ]
        return TaskResult(planned[0].task, configurations, planned[0].base, self.plan.data_digests[name])

    def _startable(self, runs: list[PlannedRun], name: str) -> list[PlannedRun]:
        """Those of the runs that have something to start from when the intermediate task has ended; its best model is kept."""
        result = self._result(name)
        best = result.best_run
        if best is None:
            self._bases[name] = (Path(), "none")
            error = result.configurations[0].runs[0].error
            for run in runs:
                if run.base == name:
                    self._note(run, None, f"intermediate_task: all runs of {name} failed ({error})")
            return [run for run in runs if run.base != name]
        for other in result.finished:
            if other is not best:
                shutil.rmtree(self.output_dir / other.folder / MODEL, ignore_errors=True)
        model = self.output_dir / best.folder / MODEL
        if not model.is_dir():
            raise RunError(f"intermediate_task: {model} is gone; delete {model.parent} to have it made again")
        self._bases[name] = (model, load_checkpoint(str(model))[2])
        return runs

    def _work_through(self, runs: list[PlannedRun], later: list[PlannedRun]) -> None:
        """Run what is not finished; `later` is what else the time has to do for."""
        waiting = []
        for run in runs:
            if (result := self._read(run)) is None:
                waiting.append(run)
            else:
                self._note(run, result, None)

        def next_job() -> Job | None:
            while waiting:
                seconds = self._seconds([*waiting, *later])
                run = waiting.pop(0)
                if seconds >= self._overhead / 2:
                    return self._job(run, seconds)
                self._note(run, None, "total_training_time is over; give more, or fewer runs")
            return None

        run_jobs(self.slots, next_job, self.stop)

    def _seconds(self, left: list[PlannedRun]) -> float:
        """The time of the first of the runs that are `left`; infinite without a budget."""
        if math.isinf(self.clock.total_seconds):
            return math.inf
        running = [end - self.clock.elapsed_seconds() for end in self._ends.values()]
        remaining = self.clock.remaining_seconds() - _END_SECONDS
        return share([run.weight for run in left], self._overhead, remaining, running, len(self.slots))

    # ---- one run ----

    def _place(self, run: PlannedRun) -> tuple[str, str]:
        """The run's key, and its folder inside of `output_dir`."""
        asked = {"total_training_time": self.request.glue.total_training_time, "keeps_model": self._keeps_model(run)}
        device = "cpu" if self.slots == [None] else "cuda"
        data, model = self.plan.data_digests[run.task.name], self._bases[run.base][1]
        key = run.key(model=model, data=data, device=device, **asked)
        return key, f"runs/{run.task.name}/{key}"

    def _read(self, run: PlannedRun) -> dict[str, Any] | None:
        return read_result(self.output_dir / self._place(run)[1])

    def _keeps_model(self, run: PlannedRun) -> bool:
        """The intermediate task's runs do, until the best is known; the others where the command line says so."""
        asked = "save_model" in self.request.explicit and self.request.glue.save_model
        return run.task.name == self.plan.intermediate or asked

    def _job(self, run: PlannedRun, seconds: float) -> Job:
        folder = self.output_dir / self._place(run)[1]
        fresh_folder(folder)  # what was not finished is begun anew
        glue = self.request.glue
        words = run.words(str(self._bases[run.base][0]), str(folder))
        words += ["--seed", str(run.seed), f"--save_model={self._keeps_model(run)}"]
        words += ["--glue_dir", *glue.glue_dir] if glue.glue_dir else ["--dataset_name", glue.dataset_name]
        if glue.tokenizer_name is not None and run.base is None:
            words += ["--tokenizer_name", glue.tokenizer_name]
        if "report_to" in self.request.explicit:
            words += ["--report_to", self.request.explicit["report_to"]]
        if self.request.run.use_cpu:
            words += ["--use_cpu", "true"]
        if not math.isinf(seconds):
            words += ["--total_training_time", f"{max(0.1, seconds - self._overhead):.1f}s"]
        self._ends[run] = self.clock.elapsed_seconds() + seconds
        late = f"stopped: total_training_time is over (it had {seconds:.0f}s)"
        return Job(
            command=self.launch(FINE_TUNING, words),
            log=folder / "log.txt",
            watch=lambda _: late if self.clock.remaining_seconds() < _END_SECONDS else None,
            on_end=partial(self._ended, run),
        )

    def _ended(self, run: PlannedRun, end: JobEnd) -> None:
        del self._ends[run]
        result = self._read(run) if end.reason is None else None
        if result is not None:
            self._overhead = max(_LEAST_RUN / 4, _UNEVEN * (end.seconds - result["seconds"]["total"]))
        self._note(run, result, end.reason or end.error)

    def _note(self, run: PlannedRun, result: dict[str, Any] | None, error: str | None) -> None:
        self._runs[run] = ended = Run.of(run.seed, *self._place(run), result, error)
        what = f"[{len(self._runs)}/{len(self.plan.runs)}] {run.task.name}, configuration {run.configuration}, seed {run.seed}"
        if result is None:
            log.warning("%s: failed: %s", what, error)
        else:
            log.info("%s: %s %.4f, %s", what, run.task.headline, ended.headline, format_duration(ended.seconds))


def run_suite(request: Request, clock: BudgetClock, stop: StopRequest) -> Suite:
    """All runs that were asked for, those that are finished not again, and their report. Some of them may have failed.

    Raises InputError before anything is started where something is wrong with model, data, grid or folder; StopAsked on a
    signal, after its runs have ended: the same command goes on. What it used of `total_training_time` is kept over jobs.
    """
    configure_logging(request.run)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("num_processes: a suite starts its own processes; start it with python finetune_glue.py")
    check_unseen()
    if not (request.run.do_train and request.run.do_eval and request.run.do_predict):
        raise InputError("do_predict: a suite does all; leave do_train, do_eval and do_predict out")
    run_folder.RunFolder(request.output_dir).check_writable()
    plan, name = make_plan(request), str(request.glue.model_name_or_path)
    folder, _, digest = load_checkpoint(name, request.glue.tokenizer_name)
    model, protocol = {"name_or_path": name, "sha256": digest}, _protocol(request, plan)
    _check_time(request, plan)
    with ExitStack() as at_exit:
        at_exit.enter_context(hold_folder(request.output_dir))
        _claim_folder(request, {"protocol": protocol, "model": model})
        slots = devices(request.run.use_cpu)
        if not math.isinf(clock.total_seconds):
            path = request.output_dir / run_folder.CLOCK
            clock.restore(_seconds_used(path, slots))
            at_exit.enter_context(keep_clock(path, clock))
        for name, reason in plan.absent.items():
            log.warning("%s is absent: %s", name, reason)
        clock.enter("train")
        launch = make_launch(request.output_dir / "launch.yaml", request.run.use_cpu)
        runner = _Runner(request, plan, clock, stop, (folder, digest), slots, launch)
        runner.work()
        suite = Suite(
            *(request.output_dir, model, runner.results(), plan.absent, plan.covered, protocol),
            country_iso_code=request.card.country_iso_code,
            price_per_hour=request.card.price_per_hour,
        )
        write_json_atomic(request.output_dir / RUNS_FILE, suite.content())
        clock.stop()
    from budget_trainer.glue.report import write_report  # late: pictures are drawn outside of the budget

    submission = write_submission(suite, request.output_dir, request.glue.overwrite_output_dir)
    write_report(suite, request.output_dir, submission)
    _print_table(suite)
    return suite


def _seconds_used(clock: Path, slots: Sequence[str | None]) -> dict[str, float]:
    """What earlier jobs of the suite used; where their clock is damaged, what its finished runs took."""
    try:
        return read_clock(clock)
    except InputError:
        log.warning("%s is damaged; the time used is taken from the finished runs", clock)
        results = filter(None, map(read_result, clock.parent.glob("runs/*/*")))
        return {"train": sum(result["seconds"]["total"] for result in results) / len(slots)}


def _protocol(request: Request, plan: Plan) -> dict[str, Any]:
    """What decides which runs there are, and on what."""
    grid = plan.grid
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
    each = (request.total_seconds or math.inf) * len(devices(request.run.use_cpu)) / len(plan.runs)
    if each < _LEAST_RUN:
        raise InputError(
            f"total_training_time: {request.glue.total_training_time} for {len(plan.runs)} runs leaves {each:.1f}s for each, "
            f"less than the {_LEAST_RUN:.0f}s that one needs; give more, or fewer tasks, seeds or configurations"
        )


def _claim_folder(request: Request, suite: dict[str, Any]) -> None:
    """Make the folder this suite's, and refuse it where it is another's; what that one used of its time is not charged.

    Finished runs stay in any case: they are known by what they were made from.
    """
    path = request.output_dir / "suite.json"  # from the beginning on
    what = "is of another suite (model, data, tasks, grid or time)"
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs["protocol"] == suite["protocol"] and theirs["model"]["sha256"] == suite["model"]["sha256"]:
            return
        other = True
    except FileNotFoundError:
        other = (request.output_dir / RUNS_FILE).exists()
    except (OSError, ValueError, KeyError, TypeError):
        other, what = True, "is damaged, so that nobody knows whose suite it is"
    if other and not request.glue.overwrite_output_dir:
        raise InputError(f"output_dir: {path} {what}; add --overwrite_output_dir, or give another folder")
    (request.output_dir / run_folder.CLOCK).unlink(missing_ok=True)
    write_json_atomic(path, suite)


def _print_table(suite: Suite) -> None:
    """A line for each task: the median of its best configuration with the range of the seeds, in per cent."""
    print()
    for name in (name for name in TASKS if name in suite.tasks):
        result, text = suite.tasks[name], "every run failed"
        if result.best is not None and (score := result.best.headline) is not None:
            text = f"{100 * score.median:6.2f}  ({100 * score.min:.2f} to {100 * score.max:.2f})"
        print(f"{name:6} {result.task.headline:21} {text}  {format_duration(max(0.1, result.seconds))}")
    for name, reason in suite.absent.items():
        print(f"{name:6} absent: {reason}")
    if suite.energy["kwh"]:
        print(f"energy {'; '.join(energy_words(suite.energy))}")
    report, runs = suite.folder / "glue_report.md", suite.folder / RUNS_FILE
    print(f"report in {report}, .json and .png; runs in {runs}", flush=True)


def run_checkpoints(request: Request, clock: BudgetClock, stop: StopRequest) -> list[Suite]:
    """The suite that `request` asks for, for each of its `checkpoints`, and the report over their minutes.

    Each has an equal part of `total_training_time`. InputError before anything is started where a checkpoint is no model of
    one finished run.
    """
    minutes = expand_checkpoints(request.suite.checkpoints or [])
    for name, times in Counter(in_run(path).name for path in minutes).items():
        if times > 1:
            raise InputError(f"checkpoints: {name} is named twice; give each folder once")
    seconds = math.inf if request.total_seconds is None else request.total_seconds / len(minutes)
    suites: list[Suite] = []
    for path in minutes:
        own = BudgetClock() if suites else clock  # the first pays for the imports
        own.total_seconds = seconds
        time = None if math.isinf(seconds) else f"{seconds:.2f}s"
        suites.append(run_suite(request.of_checkpoint(path, time), own, stop))
    report_over_budget(list(zip(minutes.items(), suites, strict=True)), request.output_dir)
    print(f"scores against minutes of pre-training in {request.output_dir / MARKDOWN}, .json and .png", flush=True)
    return suites
