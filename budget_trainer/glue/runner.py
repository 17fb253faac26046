"""All runs of a suite: one per device at a time, none twice, none longer than the time there is."""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

from budget_trainer.children import Child, devices, write_profile
from budget_trainer.clock import BudgetClock, format_duration
from budget_trainer.errors import RunError, StopAsked
from budget_trainer.glue.model import model_digest
from budget_trainer.glue.parsing import Request
from budget_trainer.glue.plan import Plan, PlannedRun, run_key, words
from budget_trainer.glue.result import MODEL, read_result
from budget_trainer.glue.runs_file import record, task_entry, whole
from budget_trainer.glue.shares import FIRST_OVERHEAD, LEAST_RUN, UNEVEN, free_seconds, share
from budget_trainer.stop_request import StopRequest, signal_name

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
