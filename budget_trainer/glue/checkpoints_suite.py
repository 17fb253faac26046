"""GLUE over the budget: a suite for each time-marked checkpoint of a run, and their scores against its minutes."""

from __future__ import annotations

import math

from budget_trainer.clock import BudgetClock
from budget_trainer.errors import InputError
from budget_trainer.glue.files import RUNS_FILE
from budget_trainer.glue.over_budget import MARKDOWN, report_over_budget
from budget_trainer.glue.parsing import Request
from budget_trainer.glue.suite import run_suite
from budget_trainer.glue.time_marked import expand_checkpoints
from budget_trainer.stop_request import StopRequest


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
