"""All trials of a sweep: as many at a time as there are devices, none twice, none begun that cannot be finished."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from budget_trainer.budget.clock import BudgetClock, format_duration
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import RunError
from budget_trainer.core.io import Lock
from budget_trainer.core.jobs import FINE_TUNING, TRAINING, Job, JobEnd, run_jobs
from budget_trainer.sweep.results import SweepRecord
from budget_trainer.sweep.spec import FIRST_OVERHEAD
from budget_trainer.sweep.study import SweepStudy, exclusive, storage_file
from budget_trainer.sweep.trials import AGAIN, ENDED, ERROR, PLACE, SECONDS, TrialFolder

log = logging.getLogger(__name__)
_TOLD = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}  # else PRUNED
_IDLE_SECONDS = 1.0  # between looks for a trial of another process that has ended
_MOST_END_SECONDS, _END_SHARE = 5.0, 0.02  # of total_time for the sweep itself, when the last trial has ended
_UNEVEN = 1.1  # the next trial may take so much longer beside its budget than the longest so far
_SAME_FAILURES = 3  # before a first step, and behind the trials that run beside them: then the sweep is at fault
_MOST_SHARES, _MOST_BESIDE = (
    3.0,
    3600.0,
)  # a training hangs that takes so many of its budgets, and so many seconds more
_REPORT_PAUSE = 20.0  # times of what the last report took, before the next


class _Running:
    """A trial that this process runs: its training, and with an objective of GLUE the fine-tuning behind it."""

    def __init__(self, trial: optuna.Trial, lock: Lock, folder: TrialFolder) -> None:
        self.trial, self.lock, self.folder = trial, lock, folder
        self.begin = time.monotonic()


@dataclass(frozen=True)
class _Outcome:
    """How a trial ended: `finished` with a value, or `pruned`, `time` or `failed` with a reason."""

    how: str
    why: str = ""
    value: float | None = None


class Runner:
    """Works on the study with `slots` (of CUDA_VISIBLE_DEVICES, None for what is there), until there is nothing to do.

    `place` is the folder's own mark: trials of the same study in other folders are not touched. `launch` makes the command of a
    module (TRAINING, FINE_TUNING) and its command line; `recipe` are the words before a trial's own.
    """

    def __init__(
        self,
        study: SweepStudy,
        clock: BudgetClock,
        stop: StopRequest,
        slots: Sequence[str | None],
        place: str,
        launch: Callable[[str, Sequence[str]], Sequence[str]],
        recipe: Sequence[str] = (),
        on_cpu: bool = False,
    ) -> None:
        self.spec, self.study, self.clock, self.stop = study.spec, study, clock, stop
        self._slots, self._place, self._launch = slots, place, launch
        self._recipe, self._on_cpu = recipe, on_cpu
        self._running: list[_Running] = []
        self._failures: list[str] = []
        self._reported, self._report_seconds = -1e9, 0.0
        self._looked = -1e9

    def work(self) -> None:
        """Until no trial runs and none can begin. StopAsked on a signal; RunError where all trials fail in one way."""
        try:
            run_jobs(self._slots, self._next_job, self.stop)
        finally:
            for running in self._running:  # unfinished in the study: the next process begins them anew
                running.lock.release()

    # ---- which trial ----

    def _next_job(self) -> Job | None:
        if self._running and time.monotonic() - self._looked < _IDLE_SECONDS:
            return None
        job = None
        while job is None and (running := self._next_trial()) is not None:
            self._running.append(running)
            job = self._go_on(running, self._first_step(running))
        self._looked = time.monotonic()
        return job

    def _next_trial(self) -> _Running | None:
        """A trial that lost its process, or a new one; None where neither is left.

        Optuna's own answer, a heartbeat with `RetryHeartbeatStaleTrialCallback`, does not do: the journal has none, a lost
        trial is seen only when its grace period is over, and it comes back under another number, so that a training which has
        finished, but was not recorded, would run twice. A lock is free as soon as its holders are gone.
        """
        with exclusive(self.spec):
            trials = self.study.get_trials(deepcopy=False)
            fits = self._seconds_left() >= self.spec.time_per_trial + self._overhead(trials)
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and (lock := self._lock_of_lost(frozen, fits)) is not None:
                    trial = self.study.resume(frozen)
                    trial.set_user_attr(AGAIN, True)
                    log.info("trial %d: begun by a process that has ended; it is looked after again", trial.number)
                    break
            else:
                taken = sum(frozen.state != TrialState.WAITING for frozen in trials)
                if not fits or (self.spec.limit is not None and taken >= self.spec.limit):
                    return None
                trial = self.study.propose()
                if (lock := TrialFolder(self.spec, trial.number).lock()) is None:
                    held = f"a process of an earlier sweep in {self.spec.output_dir} still runs trial {trial.number}"
                    raise RunError(f"trials: {held}; end it, then repeat the command")
            trial.set_user_attr(PLACE, self._place)
            return _Running(trial, lock, TrialFolder(self.spec, trial.number))

    def _seconds_left(self) -> float:
        """Of total_time, for trials."""
        return self.clock.remaining_seconds() - min(_MOST_END_SECONDS, _END_SHARE * self.spec.total_time)

    def _overhead(self, trials: list[FrozenTrial]) -> float:
        """Seconds that a trial takes beside its budget: the most of those that have finished."""
        whole = [t.user_attrs for t in trials if t.state == TrialState.COMPLETE and AGAIN not in t.user_attrs]
        extra = [attributes[SECONDS] - self.spec.time_per_trial for attributes in whole if SECONDS in attributes]
        return max(0.0, _UNEVEN * max(extra)) if extra else FIRST_OVERHEAD

    def _lock_of_lost(self, frozen: FrozenTrial, fits: bool) -> Lock | None:
        """The lock of a trial that nobody works on any more; None where somebody does, or where it does not fit into the time
        and would have to be trained: a later start with more of it finds the trial as it is."""
        place = frozen.user_attrs.get(PLACE)
        # Without a place: its process was killed between asking and saying whose it is, which only `exclusive` can tell.
        if place != self._place and (place is not None or storage_file(self.spec.storage) is None):
            return None
        if not fits and not self._needs_no_training(frozen):
            return None
        if (lock := TrialFolder(self.spec, frozen.number).lock()) is None:
            return None
        if self._frozen(frozen.number).state != TrialState.RUNNING:  # it has just ended
            lock.release()
            return None
        return lock

    def _needs_no_training(self, frozen: FrozenTrial) -> bool:
        """Whether its end is known, or what is missing behind its training can still be made up for."""
        folder = TrialFolder(self.spec, frozen.number)
        trained = folder.evaluation() is not None
        if ENDED in frozen.user_attrs or (trained and self.spec.objective.task is None):
            return True
        return self._seconds_left() > 0 and (trained or folder.awaits_evaluation())

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    # ---- one trial ----

    def _go_on(self, running: _Running, step: Job | _Outcome) -> Job | None:
        if isinstance(step, Job):
            return step
        self._record(running, step)
        return None

    def _first_step(self, running: _Running) -> Job | _Outcome:
        """What is left to do of a trial, or how it ended where that was only not recorded."""
        trial, folder = running.trial, running.folder
        ended = trial.user_attrs.get(ENDED, "finished")
        if ended != "finished":  # its process was killed before it could say so
            return _Outcome(ended, trial.user_attrs.get(ERROR, ""))
        log.info("trial %d: %s", trial.number, ", ".join(f"{k}={v}" for k, v in trial.params.items()))
        if folder.evaluation() is not None:
            return self._after_training(running)
        words = [*self._recipe, *self.spec.words(trial.params, trial.number)]
        if folder.awaits_evaluation():
            words += ["--resume_from_checkpoint", "auto"]
        else:
            # From its beginning: going on behind a kill would charge it what the kill cost, and trials have to compare.
            shutil.rmtree(folder.path, ignore_errors=True)
        return self._job(running, TRAINING, words)

    def _job(self, running: _Running, module: str, words: Sequence[str]) -> Job:
        return Job(
            command=self._launch(module, words),
            log=running.folder.log,
            append=module != TRAINING,
            watch=lambda seconds: self._watch(running),
            on_end=lambda end: self._go_on(running, self._next_step(running, end)),
            inherited=running.lock.descriptor,
            # A request to stop would be answered by writing a checkpoint, which the sweep has no use for and would have to wait
            # for. Nothing is lost by killing: log and progress.jsonl are written line by line.
            grace_seconds=0.0,
        )

    def _watch(self, running: _Running) -> str | None:
        """Why the trial is given up, if it is. The verdict is noted first: killed behind that, it does not run again."""
        trial, seconds = running.trial, time.monotonic() - running.begin
        outcome = self._report_values(running)
        if outcome is None and self._seconds_left() <= 0:
            outcome = _Outcome("time", "total_time is over")
        longest = _MOST_SHARES * self.spec.time_per_trial + _MOST_BESIDE
        if outcome is None and seconds > longest and not running.folder.is_scoring():
            outcome = _Outcome("failed", f"it hangs: {format_duration(seconds)} have passed")
            trial.set_user_attr(ERROR, outcome.why)
        if outcome is None:
            return None
        trial.set_user_attr(ENDED, outcome.how)
        return outcome.why

    def _report_values(self, running: _Running) -> _Outcome | None:
        """Tell Optuna what was evaluated on the way; its verdict where it prunes the trial by that."""
        trial, values = running.trial, running.folder.new_values()
        known = self._frozen(trial.number).intermediate_values if values else {}
        for step, value in values:
            if step not in known:  # reported by an earlier process
                trial.report(self.spec.objective.sign * value, step)
            if trial.should_prune():
                text = f"at {step / 10:g} % of its time: {self.spec.objective.metric} {value:.4f}"
                return _Outcome("pruned", text)
        return None

    def _next_step(self, running: _Running, end: JobEnd) -> Job | _Outcome:
        if end.reason is not None:
            return _Outcome(running.trial.user_attrs[ENDED], end.reason)
        error = f"{' '.join(end.error.split())} (exit code {end.code})"
        if running.folder.is_scoring():
            score = running.folder.score()
            failed = _Outcome("failed", f"{self.spec.objective.task}: {error}")
            return failed if score is None else _Outcome("finished", value=score)
        self._report_values(running)  # what came since the last look; a trial that has ended is not pruned
        return _Outcome("failed", error) if running.folder.evaluation() is None else self._after_training(running)

    def _after_training(self, running: _Running) -> Job | _Outcome:
        """The pinned evaluation is the objective, or the model goes to GLUE."""
        folder, objective = running.folder, self.spec.objective
        value = objective.of_evaluation(folder.evaluation())
        if value is None:
            return _Outcome("failed", "the pinned evaluation is not a finite number: the trial diverged")
        if objective.task is not None:
            value = folder.score()
        if value is not None:
            return _Outcome("finished", value=value)
        if not objective.is_suite:  # which goes on where it was killed
            shutil.rmtree(folder.glue, ignore_errors=True)
        folder.glue.mkdir(exist_ok=True)
        words = objective.words(str(folder.model), str(folder.glue))
        return self._job(running, FINE_TUNING, [*words, *(["--use_cpu", "true"] if self._on_cpu else [])])

    def _record(self, running: _Running, outcome: _Outcome) -> None:
        """Record the end of a trial, and let go of it."""
        trial, folder, how, why = running.trial, running.folder, outcome.how, outcome.why
        seconds = max(time.monotonic() - running.begin, float(folder.report().get("used_seconds") or 0.0))
        scoring, stepped = folder.is_scoring(), folder.has_stepped()
        if how != "finished":
            folder.remove_models()
        trial.set_user_attr(SECONDS, round(seconds, 1))
        if how == "failed":
            trial.set_user_attr(ERROR, why[:500])
        trial.set_user_attr(ENDED, how)
        self.study.conclude(trial, outcome.value, _TOLD.get(how, TrialState.PRUNED))
        self._running.remove(running)
        running.lock.release()
        text = why if outcome.value is None else f"{self.spec.objective.name} {outcome.value:.4f}"
        log.info("trial %d: %s after %s: %s", trial.number, how, format_duration(seconds), text)
        if how == "failed":
            log.warning("trial %d: its log is %s", trial.number, folder.log)
            if scoring or not stepped:
                self._judge_failure(why, scoring)
        if how == "finished" and self.spec.keep_models == "best":
            self._drop_models()
        self.report(final=False)

    def _judge_failure(self, error: str, scoring: bool) -> None:
        """Stop where the first trials all fail in the same way, before a step or behind the training: that concerns all.

        Those that run beside the first may be better: as many failures more are waited for, and none of them may have stepped.
        """
        self._failures.append(re.sub(r"\d+", "#", error))
        beside = [] if scoring else self._running
        if any(running.folder.has_stepped() for running in beside):
            return
        done = (TrialState.COMPLETE, TrialState.PRUNED)
        none_done = not self.study.get_trials(deepcopy=False, states=done)
        if none_done and len(self._failures) >= _SAME_FAILURES + len(beside) and len(set(self._failures)) == 1:
            what = f"the first {len(self._failures)} all failed in the same way ({error})"
            raise RunError(f"trials: {what}; mend that, then begin in another output_dir")

    # ---- what comes of it ----

    def _drop_models(self) -> None:
        """Keep the model of the best finished trial of this folder only."""
        trials = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        mine = [trial for trial in trials if trial.user_attrs.get(PLACE) == self._place and trial.value is not None]
        sign = self.spec.objective.sign
        for trial in sorted(mine, key=lambda trial: sign * float(trial.value or 0.0))[1:]:
            TrialFolder(self.spec, trial.number).remove_models()

    def report(self, final: bool) -> list[Path]:
        """Write the sweep's report; a failing one is a line in the log. On the way not more often than it is cheap."""
        begin = time.monotonic()
        if not final and begin - self._reported < _REPORT_PAUSE * self._report_seconds:
            return []
        try:
            from budget_trainer.sweep.report import write_report

            return write_report(SweepRecord.of(self.spec, self.study, self.clock.elapsed_seconds()))
        except Exception as error:  # of drawing, of a full disk: no reason to lose trials
            log.warning("the report could not be written: %s", " ".join(str(error).split())[:300])
            return []
        finally:
            self._reported = time.monotonic()
            self._report_seconds = self._reported - begin
