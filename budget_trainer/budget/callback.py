"""The budget as a callback: one agreed reading of rank 0's clock per optimizer step, and the stop that follows."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from datetime import timedelta
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.budget.clock import BudgetClock, format_duration, to_seconds
from budget_trainer.budget.lead import TrainerLead
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError

log = logging.getLogger(__name__)
STATE_KEY = "time_budget_clock"  # in TrainerState.stateful_callbacks
_LAST_STEPS = 32


class StepTimes:
    """How long the next step will take, guessed from the steps before: fed with the seconds by phase after each.

    The first step of new shapes compiles and warms up: it is the guess for the next compilation, not for the next step.
    """

    def __init__(self) -> None:
        self.compiles = True  # whether the next step is the first of its shapes
        self.compile_seconds = 0.0  # what the longest compilation took
        self._seconds: deque[float] = deque(maxlen=_LAST_STEPS)
        self._worked = self._compiled = 0.0  # seconds of train and data_wait, and of compile, up to the last step

    def begin(self, seconds: Mapping[str, float]) -> None:
        """A job begins to train, and with it new shapes."""
        self.compiles, self._compiled = True, seconds["compile"]

    def step_done(self, seconds: Mapping[str, float], compiling: bool) -> None:
        """A step has ended; `compiling`: torch.compile is on."""
        worked = seconds["train"] + seconds["data_wait"]
        if not self.compiles:
            self._seconds.append(worked - self._worked)
        elif compiling:
            self.compile_seconds = max(self.compile_seconds, seconds["compile"] - self._compiled)
            self._compiled = seconds["compile"]
        self._worked, self.compiles = worked, False

    def expect(self, longer: float, compiles: bool) -> None:
        """The next steps take `longer` times what the last ones took; with `compiles` the next one compiles as well."""
        self._seconds = deque((seconds * longer for seconds in self._seconds), maxlen=_LAST_STEPS)
        self.compiles = self.compiles or compiles

    def next_step(self) -> float:
        """A cautious guess: the longest of the last 8, but no more than 3 medians (an outlier); 0.0 before any."""
        if not self._seconds:
            return 0.0
        return min(max(list(self._seconds)[-8:]), 3.0 * median(self._seconds))


def stored_state(state: TrainerState, key: str) -> dict[str, Any]:
    """What was stored under `key` with the checkpoint that this run goes on from; empty where nothing was."""
    stored: Any = state.stateful_callbacks or {}
    return stored.get(key) or {}


def store_state(state: TrainerState, key: str, values: dict[str, Any]) -> None:
    """Put `values` under `key` into every checkpoint from now on. (ExportableState would bring the old budget back.)"""
    stored: Any = state.stateful_callbacks
    stored[key] = values


@dataclass(frozen=True)
class Reading:
    """What all ranks know after a step, in seconds: rank 0's clock and its measured costs."""

    elapsed: float = 0.0  # of the run, over its jobs
    job: float = 0.0  # of this job
    step: float = 0.0  # the next optimizer step
    save: float = 0.0  # writing the model
    checkpoint: float = 0.0  # writing a training checkpoint
    evaluate: float = 0.0  # one validation
    compile: float = 0.0  # compiling for new shapes


class TimeBudgetCallback(TrainerCallback):
    """Stops training so that the final model can be on disk inside `total_training_time`.

    `Trainer(..., callbacks=[TimeBudgetCallback("2h")])` is all that a plain Trainer needs; the clock then starts at
    `on_train_begin`, and the room for saving the model afterwards is measured by writing it once. A script that wants
    its set-up counted hands in a running `clock`, and the `agreement` it had before there was a Trainer. Each `train()`
    has the whole budget, and what is left of a `clock` that was handed in.

    `lead` makes Trainer follow the budget where it would follow steps, and plans Trainer's own end; None where the Trainer
    plans its end itself.

    `early_exit_time_marker` stops earlier on the same learning-rate curve; `job_time_limit` ends only this job, with
    a training checkpoint, for a later job to go on. Durations as `parse_duration` takes them, or `timedelta`; numbers are
    seconds.

    After each step `reading` holds what all ranks agreed on, `share` the used share of the budget and `progress` the
    position on the learning-rate curve. `stop_reason` says why training ended: `budget`, `early_exit_time_marker`,
    `job_time_limit`, `stop_requested`, `early_stop`, or None (max_steps or another callback).
    """

    def __init__(
        self,
        total_training_time: str | float | timedelta | None = None,
        *,
        clock: BudgetClock | None = None,
        agreement: Agreement | None = None,
        early_exit_time_marker: str | float | timedelta | None = None,
        job_time_limit: str | float | timedelta | None = None,
    ) -> None:
        if (total_training_time is None) == (clock is None):
            raise InputError(
                f"total_training_time: {total_training_time!r} beside clock {clock!r}; give one of the two"
            )
        self.total_training_time, self.clock = total_training_time, clock
        if clock is None:  # refuses a bad duration here, not hours later
            self._own_seconds = to_seconds(total_training_time, "total_training_time")
        self.early_exit_seconds = _limit(early_exit_time_marker, "early_exit_time_marker")
        self.job_limit_seconds = _limit(job_time_limit, "job_time_limit")
        self.agreement = agreement
        self._own_clock, self._own_stop = clock is None, agreement is None
        self._stop = agreement.stop if agreement is not None else StopRequest()
        self.lead: TrainerLead | None = TrainerLead(self)
        self._begun = self._ended = False  # a training
        self._begin_anew()

    def _begin_anew(self) -> None:
        """The state of one training; what was measured in another one, and asked of it, is forgotten."""
        self.reading = Reading()
        self.save_seconds = self.checkpoint_seconds = self.evaluate_seconds = 0.0  # rank 0's measurements count
        self.begin_seconds = 0.0  # agreed: when training began; the curve starts here
        self.progress = 0.0
        self.stop_reason: str | None = None
        self.steps = StepTimes()
        self._reserved = 0.0  # seconds of optional work since the last reading
        self._stepped = False  # whether this job has finished a step
        self._fresh = True  # whether this is the first job of the run
        self._used_clock = False  # whether something was trained on the clock before
        self._ticked = False  # whether there was a reading in this step
        self._event: torch.cuda.Event | None = None
        self._bad_step: bool | torch.Tensor = False  # of this rank, for the next control message
        if self._own_clock:
            self.clock = None
        if self._own_stop and self.agreement is not None:
            self.agreement.stop_asked_by = ""
        if self.lead is not None:
            self.lead.begin_anew()

    # ---- the agreed reading, and what follows from it ----

    @property
    def running_clock(self) -> BudgetClock:
        assert self.clock is not None  # from on_train_begin on
        return self.clock

    @property
    def channel(self) -> ControlChannel:
        return self._make_agreement().channel

    @property
    def total_seconds(self) -> float:
        return self.clock.total_seconds if self.clock is not None else self._own_seconds

    @property
    def bad_step(self) -> bool:
        """Whether any rank reported a step whose loss or gradient was not finite, at the last reading."""
        return self.agreement is not None and self.agreement.bad_step

    @property
    def end_seconds(self) -> float:
        """When the final model has to be on disk."""
        return min(self.total_seconds, self.early_exit_seconds)

    @property
    def end_reason(self) -> str:
        """Which of the two limits `end_seconds` is."""
        return "early_exit_time_marker" if self.early_exit_seconds < self.total_seconds else "budget"

    @property
    def share(self) -> float:
        """The used share of the whole budget at the last reading (0.0 without a limit)."""
        return self.reading.elapsed / self.total_seconds

    @property
    def end_work(self) -> float:
        """Seconds of what Trainer does at its end, beside the final save."""
        return sum(self.lead.work_of_the_end().values()) if self.lead is not None else 0.0

    def reserve(self, seconds: float) -> bool:
        """Reserve `seconds` for optional work until the next reading: False where they would endanger what has to follow.

        Call it on all ranks at the same step: all get the same answer.
        """
        now, rest = self.reading, self.reading.step + self._reserved + seconds
        fits = now.elapsed + rest + now.save + self.end_work <= self.end_seconds
        fits = fits and now.job + rest + now.checkpoint <= self.job_limit_seconds
        if fits:
            self._reserved += seconds
        return fits

    def check_room(self, resumed: bool = False) -> None:
        """Raise InputError on all ranks where nothing is left to train in (a resumed run may still finish)."""
        self.agree()
        now, end = self.reading, self.end_seconds
        text = (
            "{}: {:.1f}s is spent before the first step (set-up and {} take {:.1f}s on this machine); give more time"
        )
        if (needed := now.job + now.checkpoint) >= self.job_limit_seconds:
            raise InputError(text.format("job_time_limit", self.job_limit_seconds, "a checkpoint", needed))
        if (needed := now.elapsed + now.save + self.end_work) < end or resumed:
            return
        if (earlier := now.elapsed - now.job) > 0:
            raise InputError(
                f"total_training_time: {end:.1f}s is spent, earlier jobs used {earlier:.1f}s and left no checkpoint; give "
                "more time, or another output_dir to start again"
            )
        if self._used_clock:
            raise InputError(
                f"total_training_time: {end:.1f}s is spent, an earlier training used the same clock; give each training its own"
            )
        raise InputError(text.format("total_training_time", end, "the final save", needed) + " or a smaller model")

    def request_stop(self) -> None:
        """Ask for a stop with a checkpoint after this step; safe from a signal handler, on any rank."""
        self._stop.ask()

    def report_bad_step(self, bad: bool | torch.Tensor) -> None:
        """Let the next control message say whether this rank had a step whose loss or gradient is not finite.

        A tensor (bool [], in pinned memory) is read when the work of the step before is known to be done.
        """
        self._bad_step = bad

    # ---- Trainer's events ----

    def on_init_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._make_agreement()
        if self.lead is not None:
            self.lead.find_trainer()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        restored = stored_state(state, STATE_KEY)
        # auto_find_batch_size begins again within one training.
        if self._ended or (self._begun and not args.auto_find_batch_size):
            self._begin_anew()
        self._begun, self._ended = True, False
        if self.clock is None:
            self.clock = BudgetClock(self.total_training_time)
            self.clock.restore(restored.get("shares", {}))
            if state.global_step and not restored:
                log.info("the checkpoint of step %d has no clock: it begins at 0", state.global_step)
        self._used_clock = self.clock.seconds_by_phase()["train"] > 0
        self.running_clock.enter("train")
        if self.lead is not None:
            self.lead.begin(args, state, restored, kwargs)
        self.check_room(resumed=bool(restored))
        self._stepped, self._fresh = False, not restored
        self.steps.begin(self.running_clock.seconds_by_phase())
        self.begin_seconds = float(restored.get("begin_seconds", self.reading.elapsed))
        self.progress = max(self.progress, self._progress())
        self.stop_if_due(state, control)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.running_clock.enter("compile" if self.steps.compiles and args.torch_compile else "train")

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The tick: just before `lr_scheduler.step()`, with every engine that uses Trainer's optimizer."""
        self._tick(args)
        self._ticked = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._ticked:  # a loop that fires no optimizer step
            self._tick(args)
        self._ticked = False
        self.stop_if_due(state, control)
        values: dict[str, Any] = {"elapsed_seconds": self.reading.elapsed, "begin_seconds": self.begin_seconds}
        values["shares"] = self.running_clock.seconds_by_phase()
        if self.lead is not None:  # one dict: what it counts behind this event is in the checkpoint, too
            self.lead.stored.update(values)
            values = self.lead.stored
        store_state(state, STATE_KEY, values)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._ended = True
        if self._own_stop:  # it was for this training
            self._stop.signal_number = 0

    # ---- inside ----

    def _tick(self, args: Any) -> None:
        self._wait_for_device(args.device)
        if self._bad_step:  # a tensor is read here
            self._make_agreement().report_bad_step()
        self._bad_step = False
        self.steps.step_done(self.running_clock.seconds_by_phase(), bool(args.torch_compile))
        self.agree()
        if not self._stepped and self._fresh:
            self.begin_seconds = self.reading.elapsed
        self._stepped = True
        self.progress = max(self.progress, self._progress())

    @staticmethod
    def save_allowance(seconds: float) -> float:
        """Seconds to keep free for a save that took `seconds`: disks are uneven."""
        return 1.5 * seconds + 0.3 if seconds > 0 else 0.0

    def _wait_for_device(self, device: torch.device) -> None:
        """Keep the host at most one step ahead of the device, so that a reading is about work that was done."""
        if device.type == "cpu":
            return
        if device.type != "cuda":  # MPS
            torch.accelerator.synchronize(device)
            return
        if self._event is not None:
            self._event.synchronize()
        self._event = torch.cuda.Event()
        self._event.record()

    def _make_agreement(self) -> Agreement:
        """The agreement, made at the first use, which all ranks reach together."""
        if self.agreement is None:
            self.agreement = Agreement(ControlChannel(), self._stop)
        return self.agreement

    def agree(self) -> None:
        """Read rank 0's clock and measurements; every rank calls it at the same point."""
        mine = Reading(
            elapsed=self.running_clock.elapsed_seconds(),
            job=self.running_clock.job_seconds(),
            step=self.steps.next_step(),
            save=self.save_seconds,
            checkpoint=self.checkpoint_seconds,
            evaluate=self.evaluate_seconds,
            compile=self.steps.compile_seconds,
        )
        self.reading = Reading(*self._make_agreement().exchange(astuple(mine)))
        self._reserved = 0.0

    def _progress(self) -> float:
        """Where the middle of the next step lies between the first step (the warmup is not lost to the set-up) and the end.

        The end is the budget less Trainer's own end, the final save and one step: the last step has at most half a step's
        worth of curve left.
        """
        if math.isinf(self.total_seconds):
            return 0.0
        now = self.reading
        middle, end = now.elapsed + now.step / 2, self.total_seconds - now.save - self.end_work - now.step
        return min(1.0, max(0.0, middle - self.begin_seconds) / max(end - self.begin_seconds, 1e-9))

    def stop_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        """Stop training where the reading says so, or where a stop was agreed on; with a checkpoint for a later job."""
        now = self.reading
        if now.elapsed + now.step + now.save + self.end_work > self.end_seconds:
            self.stop_reason = self.end_reason
        elif now.job + now.step + now.checkpoint > self.job_limit_seconds:
            self.stop_reason = "job_time_limit"
        elif self._make_agreement().stop_asked_by:
            self.stop_reason = "stop_requested"
        else:
            return
        control.should_training_stop = True
        control.should_log = True  # a last line for the steps since the line before
        if self.stop_reason in ("job_time_limit", "stop_requested"):
            control.should_save = True
        if state.is_world_process_zero:
            why = self._make_agreement().stop_asked_by if self.stop_reason == "stop_requested" else self.stop_reason
            used, limit = format_duration(now.elapsed), format_duration(self.end_seconds)
            log.info("step %d: training stops (%s), %s of %s used", state.global_step, why, used, limit)


def _limit(value: str | float | timedelta | None, field: str) -> float:
    """Seconds of an optional limit, infinite when there is none."""
    return math.inf if value is None else to_seconds(value, field)
