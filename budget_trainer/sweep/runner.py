"""An Optuna study as a `SweepRecord`.

All trials of a sweep: as many at a time as there are devices, none twice, none begun that cannot be finished.
"""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from budget_trainer.budget.clock import BudgetClock, format_duration
from budget_trainer.core.errors import RunError, StopAsked
from budget_trainer.core.stop_request import StopRequest, signal_name
from budget_trainer.sweep.results import SweepRecord, TrialRecord
from budget_trainer.sweep.spec import FIRST_OVERHEAD, WHOLE, SweepSpec
from budget_trainer.sweep.study import ask, exclusive, resume, storage_file, tell
from budget_trainer.sweep.trials import (
    TrialLock,
    TrialRun,
    folder_name,
    is_evaluated,
    is_trained,
    read_curve,
    remove_models,
)

# User attributes of a trial.
PLACE, ENDED, ERROR, SECONDS = "place", "ended", "error", "seconds"
AGAIN = "again"  # begun by one process, ended by another: its seconds are not a whole trial's
STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def sweep_record(spec: SweepSpec, study: optuna.Study, used_seconds: float) -> SweepRecord:
    """All trials by number; what waits to be run is not one yet."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
    return SweepRecord(
        name=spec.name,
        objective=spec.objective.name,
        direction=spec.objective.direction,
        search=spec.search,
        space={name: dimension.as_yaml() for name, dimension in spec.space.items()},
        fixed=dict(spec.fixed),
        recipe=None if spec.recipe is None else str(spec.recipe),
        time_per_trial_seconds=spec.trial_seconds,
        total_seconds=None if math.isinf(spec.total_seconds) else spec.total_seconds,
        used_seconds=used_seconds,
        trials=tuple(trial_record(spec, trial) for trial in trials),
    )


def trial_record(spec: SweepSpec, trial: FrozenTrial) -> TrialRecord:
    """A trial as it stands. Its curve is what lies on disk, else what Optuna was told; the final evaluation ends it."""
    folder = spec.output_dir / folder_name(trial.number)
    finished = trial.state == TrialState.COMPLETE
    return TrialRecord(
        number=trial.number,
        state="time" if trial.user_attrs.get(ENDED) == "time" else STATES.get(trial.state, "running"),
        parameters=dict(trial.params),
        objective=trial.value if finished else None,
        curve=tuple(_curve(spec, trial, folder)),
        seconds=float(trial.user_attrs.get(SECONDS, 0.0)),
        folder=folder.name,
        error=trial.user_attrs.get(ERROR),
    )


def _curve(spec: SweepSpec, trial: FrozenTrial, folder: Path) -> list[tuple[float, float]]:
    told: dict[int, Any] = trial.intermediate_values
    sign = spec.objective.reported(1.0)
    found = read_curve(folder, spec.objective) or [
        (step / WHOLE, sign * value) for step, value in sorted(told.items())
    ]
    if trial.state == TrialState.COMPLETE and spec.objective.task is None and trial.value is not None:
        found = [*found, (1.0, trial.value)]
    return found


log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
IDLE_SECONDS = 1.0  # between looks for a trial of another process that has ended
MOST_END_SECONDS, END_SHARE = 5.0, 0.02  # of total_time for the sweep itself, when the last trial has ended
UNEVEN = 1.1  # the next trial may take so much longer beside its budget than the longest so far
SAME_FAILURES = 3  # before a first step, and behind the trials that run beside them: then the sweep is at fault
MOST_SHARES, MOST_BESIDE = 3.0, 3600.0  # a training that takes so many of its budgets, and so many seconds more, hangs
REPORT_PAUSE = 20.0  # times of what the last report took, before the next


@dataclass
class Running:
    """A trial that this process runs."""

    trial: optuna.Trial
    run: TrialRun
    lock: TrialLock
    begin: float


class Runner:
    """Works on the study with `slots` (of CUDA_VISIBLE_DEVICES, None for what is there), until there is nothing to do.

    `place` is the folder's own mark: trials of the same study in other folders are not touched.
    """

    def __init__(
        self,
        spec: SweepSpec,
        study: optuna.Study,
        clock: BudgetClock,
        stop: StopRequest,
        slots: list[str | None],
        place: str,
        base: list[str],
        profile: Path,
        on_cpu: bool,
    ) -> None:
        self.spec, self.study, self.clock, self.stop = spec, study, clock, stop
        self._slots, self._place, self._base = slots, place, base
        self._profile, self._on_cpu = profile, on_cpu
        self._running: dict[int, Running] = {}
        self._failures: list[str] = []
        self._reported, self._report_seconds = -1e9, 0.0
        self._looked = -1e9

    def work(self) -> None:
        """Until no trial runs and none can begin. StopAsked on a signal; RunError where all trials fail in one way."""
        try:
            while self._fill() or self._running:
                if self.stop.signal_number:
                    raise StopAsked(f"{signal_name(self.stop.signal_number)}; repeat the command to go on")
                for slot in list(self._running):
                    self._look(slot)
                time.sleep(POLL_SECONDS)
        finally:
            for (
                running
            ) in self._running.values():  # they stay unfinished in the study: the next process begins them anew
                running.run.kill()
                running.lock.release()

    # ---- beginning ----

    def _fill(self) -> bool:
        """Begin a trial on each free slot. Returns whether there may be more to do, here or after another process."""
        free = [slot for slot in range(len(self._slots)) if slot not in self._running]
        if not free or (self._running and time.monotonic() - self._looked < IDLE_SECONDS):
            return bool(free)
        for slot in free:
            found = self._next()
            self._looked = time.monotonic()
            if found is None:
                return False
            trial, lock = found
            self._begin(slot, trial, lock)
        return True

    def _next(self) -> tuple[optuna.Trial, TrialLock] | None:
        """A trial that lost its process, or a new one; None where neither is left."""
        with exclusive(self.spec):
            trials = self.study.get_trials(deepcopy=False)
            fits = self._seconds_left() >= self.spec.trial_seconds + self._overhead(trials)
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and (lock := self._orphan(frozen, fits)) is not None:
                    trial = resume(self.spec, self.study, frozen._trial_id)
                    trial.set_user_attr(PLACE, self._place)
                    trial.set_user_attr(AGAIN, True)
                    log.info("trial %d: begun by a process that has ended; it is looked after again", trial.number)
                    return trial, lock
            taken = sum(frozen.state != TrialState.WAITING for frozen in trials)
            if self.spec.limit is not None and taken >= self.spec.limit:
                return None
            if not fits:
                return None
            trial = ask(self.spec, self.study)
            lock = TrialLock(self.spec.output_dir, trial.number)
            lock.take()
            trial.set_user_attr(PLACE, self._place)
            return trial, lock

    def _seconds_left(self) -> float:
        """Of total_time, for trials."""
        return self.clock.remaining_seconds() - min(MOST_END_SECONDS, END_SHARE * self.spec.total_seconds)

    def _orphan(self, frozen: FrozenTrial, fits: bool) -> TrialLock | None:
        """The lock of a trial that nobody works on any more; None where somebody does, or where it does not fit into the time
        and would have to be trained: a later start with more of it finds the trial as it is."""
        place = frozen.user_attrs.get(PLACE)
        # Without a place: its process was killed between asking and saying whose it is, which only `exclusive` can tell.
        if place != self._place and (place is not None or storage_file(self.spec.storage) is None):
            return None
        if not fits and not self._needs_no_training(frozen):
            return None
        lock = TrialLock(self.spec.output_dir, frozen.number)
        if not lock.take():
            return None
        if self.study._storage.get_trial(frozen._trial_id).state != TrialState.RUNNING:  # it has just ended
            lock.release()
            return None
        return lock

    def _needs_no_training(self, frozen: FrozenTrial) -> bool:
        """Whether its end is known, or what is missing behind its training can still be made up for."""
        if ENDED in frozen.user_attrs or (
            self.spec.objective.task is None and is_evaluated(self.spec.output_dir, frozen.number)
        ):
            return True
        return self._seconds_left() > 0 and is_trained(self.spec.output_dir, frozen.number)

    def _overhead(self, trials: list[FrozenTrial]) -> float:
        """Seconds that a trial takes beside its budget: the most of those that have finished."""
        whole = [t.user_attrs for t in trials if t.state == TrialState.COMPLETE and AGAIN not in t.user_attrs]
        extra = [attributes[SECONDS] - self.spec.trial_seconds for attributes in whole if SECONDS in attributes]
        return max(0.0, UNEVEN * max(extra)) if extra else FIRST_OVERHEAD

    def _begin(self, slot: int, trial: optuna.Trial, lock: TrialLock) -> None:
        words = [*self._base, *self.spec.words(trial.params)]
        run = TrialRun(self.spec, trial.number, words, self._profile, self._on_cpu)
        self._running[slot] = Running(trial, run, lock, time.monotonic())
        ended = trial.user_attrs.get(ENDED)
        if ended in ("pruned", "time", "failed"):  # its process was killed before it could say so
            self._settle(slot, str(ended), None, trial.user_attrs.get(ERROR))
            return
        log.info("trial %d: %s", trial.number, ", ".join(f"{k}={v}" for k, v in trial.params.items()))
        run.begin(self._slots[slot], lock.descriptor)

    # ---- on the way ----

    def _look(self, slot: int) -> None:
        running = self._running[slot]
        trial, run = running.trial, running.run
        run.poll()
        known = trial.storage.get_trial(trial._trial_id).intermediate_values
        for step, value in run.new_values():
            if step not in known:  # by an earlier process
                trial.report(self.spec.objective.reported(value), step)
            if not run.done and trial.should_prune():
                self._end(slot, "pruned", f"at {step / 10:g} % of its time: {self.spec.objective.metric} {value:.4f}")
                return
        if run.done:
            self._settle(slot, "finished" if run.value is not None else "failed", run.value, run.error)
        elif self._seconds_left() <= 0:
            self._end(slot, "time", "total_time is over")
        elif (
            not run.is_scoring()
            and time.monotonic() - running.begin > MOST_SHARES * self.spec.trial_seconds + MOST_BESIDE
        ):
            self._end(slot, "failed", f"it hangs: {format_duration(time.monotonic() - running.begin)} have passed")

    def _end(self, slot: int, how: str, why: str) -> None:
        """Give a trial up. The verdict is noted first: whoever is killed behind it does not run the trial again."""
        running = self._running[slot]
        if how == "failed":
            running.trial.set_user_attr(ERROR, why)
        running.trial.set_user_attr(ENDED, how)
        running.run.kill()
        self._settle(slot, how, None, why if how == "failed" else None, why)

    def _settle(self, slot: int, how: str, value: float | None, error: str | None, why: str = "") -> None:
        """Record the end of a trial, and free its slot."""
        running = self._running[slot]
        trial, seconds = running.trial, time.monotonic() - running.begin
        seconds = max(seconds, running.run.used_seconds)
        if how != "finished":
            running.run.clear()
        trial.set_user_attr(SECONDS, round(seconds, 1))
        if error is not None:
            trial.set_user_attr(ERROR, error[:500])
        trial.set_user_attr(ENDED, how)
        states: dict[str, Any] = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
        tell(self.study, trial, value, states.get(how, TrialState.PRUNED))
        del self._running[slot]
        running.lock.release()
        text = f"{self.spec.objective.name} {value:.4f}" if value is not None else error or why
        log.info("trial %d: %s after %s: %s", trial.number, how, format_duration(seconds), text)
        if how == "failed":
            log.warning("trial %d: its log is %s", trial.number, running.run.log)
            if running.run.is_scoring() or not running.run.has_stepped():
                self._judge_failure(str(error), running.run.is_scoring())
        if how == "finished":
            self._drop_models()
        self.report(final=False)

    def _judge_failure(self, error: str, scoring: bool = False) -> None:
        """Stop where the first trials all fail in the same way, before a step or behind the training: that concerns all.

        Those that run beside the first may be better ones: as many failures more are waited for, and none of them may have
        stepped.
        """
        self._failures.append(re.sub(r"\d+", "#", error))
        beside = [] if scoring else [running.run for running in self._running.values()]
        if any(run.has_stepped() for run in beside):
            return
        done = [
            t for t in self.study.get_trials(deepcopy=False) if t.state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]
        if not done and len(self._failures) >= SAME_FAILURES + len(beside) and len(set(self._failures)) == 1:
            raise RunError(
                f"trials: the first {len(self._failures)} all failed in the same way ({error}); mend that, then begin in "
                "another output_dir"
            )

    # ---- what comes of it ----

    def _drop_models(self) -> None:
        """Keep the model of the best finished trial of this folder only, unless all are wanted."""
        if self.spec.keep_all_models:
            return
        mine = [t for t in self.study.get_trials(deepcopy=False) if t.user_attrs.get(PLACE) == self._place]
        finished = [t for t in mine if t.state == TrialState.COMPLETE and t.value is not None]
        sign = 1.0 if self.spec.objective.direction == "minimize" else -1.0
        for trial in sorted(finished, key=lambda t: sign * float(t.value or 0.0))[1:]:
            remove_models(self.spec.output_dir / folder_name(trial.number))

    def report(self, final: bool) -> list[Path]:
        """Write the sweep's report; a failing one is a line in the log. On the way not more often than it is cheap."""
        begin = time.monotonic()
        if not final and begin - self._reported < REPORT_PAUSE * self._report_seconds:
            return []
        try:
            from budget_trainer.sweep.report import write_report

            record = sweep_record(self.spec, self.study, self.clock.elapsed_seconds())
            return write_report(record, self.study, self.spec.output_dir)
        except Exception as error:  # of drawing, of a full disk: no reason to lose trials
            log.warning("the report could not be written: %s", " ".join(str(error).split())[:300])
            return []
        finally:
            self._reported = time.monotonic()
            self._report_seconds = self._reported - begin
