"""A sweep from the request to its report."""

from __future__ import annotations

import itertools
import json
import logging
import math
import uuid
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import TrialState

from budget_trainer.budget.clock import BudgetClock, format_duration, keep_clock, read_clock
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import made_parents, try_lock, write_atomic, write_json_atomic
from budget_trainer.core.jobs import TRAINING, devices, make_launch
from budget_trainer.data.folder import DataFolder
from budget_trainer.sweep.command import check_start, read_profile
from budget_trainer.sweep.runner import Runner
from budget_trainer.sweep.spec import SweepSpec
from budget_trainer.sweep.study import (
    SweepStudy,
    check_identity,
    check_storage,
    exclusive,
    identity,
    open_storage,
    shown,
    storage_errors,
)
from budget_trainer.sweep.trials import PLACE, SECONDS

log = logging.getLogger(__name__)


def run_sweep(spec: SweepSpec, clock: BudgetClock, stop: StopRequest) -> int:
    """All trials. Returns 0, or 1 where none has finished.

    Raises InputError before anything is written or started where something is wrong; StopAsked on a signal, after the
    trials' processes have ended: the same command goes on. What was used of `total_time` is kept over restarts.
    """
    form = "%(asctime)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", force=True)
    no_gpu = devices(False) == [None]
    use_cpu, processes = (no_gpu, 1) if spec.accelerate_config is None else read_profile(spec.accelerate_config)
    slots, on_cpu = _make_slots(spec, use_cpu, processes), use_cpu or no_gpu
    data = DataFolder.open(check_start(spec, on_cpu))
    check_storage(spec.storage, spec.output_dir)
    recipe = spec.base_recipe()
    mine = identity(spec, recipe, data.fingerprint)
    _place(spec, mine)

    clock.total_seconds = spec.total_time
    with storage_errors(spec.storage), made_parents(spec.output_dir / "sweep.json"), ExitStack() as at_exit:
        with exclusive(spec):
            study = SweepStudy(spec, open_storage(spec.storage), mine)
            place = _place(spec, mine, study)
            _keep_clock(study, place, len(slots), clock, at_exit)
            launch = make_launch(spec.output_dir / "launch.yaml", use_cpu, spec.accelerate_config)
            if spec.objective.is_suite:  # one process, which starts others
                score = make_launch(spec.output_dir / "launch_glue.yaml", use_cpu)
                train, launch = (
                    launch,
                    lambda module, words: (train if module == TRAINING else score)(module, words),
                )
            words = _write_recipe(spec, recipe)
        clock.enter("train")
        runner = Runner(study, clock, stop, slots, place, launch, words, on_cpu)
        try:
            runner.work()
        finally:
            files = runner.report(final=True)
        return _conclude(study, clock, files)


def _make_slots(spec: SweepSpec, use_cpu: bool, processes: int) -> list[str | None]:
    """The devices of the trials that run at the same time: one GPU each, or as many as the profile has processes."""
    found = devices(use_cpu)
    if found == [None]:
        return [None] * (spec.parallel_trials or 1)
    names = [
        ",".join(map(str, found[start : start + processes]))
        for start in range(0, len(found) - processes + 1, processes)
    ]
    if not names:
        what = f"{spec.accelerate_config} starts {processes} processes, and there are {len(found)} GPUs"
        raise InputError(f"accelerate_config: {what}; give a profile for fewer")
    return [names[place % len(names)] for place in range(spec.parallel_trials or len(names))]


def _place(spec: SweepSpec, mine: dict[str, Any], study: SweepStudy | None = None) -> str:
    """The folder's own mark, which its first process makes, with the `study` (under `exclusive`); a damaged one is that of the
    trials whose folders are here.

    Refuses (InputError) a folder of another sweep, and one whose study lies elsewhere.
    """
    path, named = spec.output_dir / "sweep.json", {"name": spec.job_name, "storage": shown(spec.storage)}
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        place = str(theirs["place"])
    except FileNotFoundError:
        place = uuid.uuid4().hex
    except (OSError, ValueError, TypeError, KeyError):
        if study is None:
            return ""
        here = [trial for trial in study.get_trials(deepcopy=False) if spec.folder(trial.number).is_dir()]
        places = {str(trial.user_attrs.get(PLACE)) for trial in here}
        if len(places) != 1:
            raise InputError(f"output_dir: {path} is damaged; give another folder") from None
        (place,) = places
        log.warning("%s is damaged; taken from the study", path)
    else:
        check_identity(mine, theirs.get("identity"), str(spec.output_dir))
        theirs_named = {**theirs, "job_name": theirs.get("name")}
        check_identity({"job_name": spec.job_name, "storage": named["storage"]}, theirs_named, str(spec.output_dir))
        return place
    if study is not None:
        write_json_atomic(path, {"place": place, **named, "identity": mine})
    return place


def _keep_clock(study: SweepStudy, place: str, slots: int, clock: BudgetClock, at_exit: ExitStack) -> None:
    """Go on with the sweep's clock, and write it once a second until `at_exit`.

    Each process has a file of its own, the first that is free; they all show the sweep's time, so the largest counts. Where
    all are damaged, what the trials of this folder took over its `slots` counts.
    """
    output_dir, before, damaged = study.spec.output_dir, [], False
    for path in output_dir.glob("clock-*.json"):
        try:
            before.append(read_clock(path))
        except InputError:
            damaged = True
            log.warning("%s is damaged; the time used is taken from the other clocks, or else from the trials", path)
    if damaged and not before:
        trials = [trial.user_attrs for trial in study.get_trials(deepcopy=False)]
        before.append({"train": sum(own.get(SECONDS, 0.0) for own in trials if own.get(PLACE) == place) / slots})
    clock.restore(max(before, key=lambda shares: sum(shares.values()), default={}))
    for number in itertools.count():
        if (lock := try_lock(output_dir / "locks" / f"clock-{number}")) is not None:
            at_exit.enter_context(lock)
            break
    at_exit.enter_context(keep_clock(output_dir / f"clock-{number}.json", clock))


def _write_recipe(spec: SweepSpec, recipe: dict[str, Any]) -> list[str]:
    """The recipe of all trials in the sweep's folder: `check_identity` has refused edits of a sweep that has begun."""
    if not recipe:
        return []
    path, text = spec.output_dir / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False)
    if not path.exists() or path.read_bytes() != text.encode():  # another place of the data, or damaged
        write_atomic(path, text)
    return [str(path)]


def _conclude(study: SweepStudy, clock: BudgetClock, files: list[Path]) -> int:
    """A few lines for whoever watches; the exit code."""
    spec, counts = study.spec, Counter(trial.state for trial in study.get_trials(deepcopy=False))
    limit = "" if math.isinf(spec.total_time) else f" of {format_duration(spec.total_time)}"
    parts = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items())
    print(f"\n{counts.total()} trials ({parts}); used {format_duration(clock.elapsed_seconds())}{limit}")
    if counts[TrialState.COMPLETE]:
        best = study.best_trial
        values = ", ".join(f"{name}={value}" for name, value in best.params.items())
        print(f"best: trial {best.number}, {spec.objective.name} {best.value:.4f} with {values}")
    for path in files:
        print(path)
    if counts[TrialState.COMPLETE]:
        return 0
    if counts:
        log.error("no trial has finished; the logs beside their folders in %s say why", spec.output_dir)
    else:
        one = format_duration(spec.time_per_trial)
        log.error("total_time: set-up left no room in it for a trial of %s; give more", one)
    return 1
