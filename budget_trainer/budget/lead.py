"""What `TimeBudgetCallback` does for a Trainer that knows nothing of the budget.

Such a Trainer plans by steps. Here it gets a `max_steps` that only time ends, streams that begin again, ratios of steps
that are shares of the budget, and an end that is Trainer's own (its last evaluation and checkpoint, the reload of the best
model, `save_model`), measured before and reserved.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import has_length

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder

if TYPE_CHECKING:
    from budget_trainer.budget.callback import TimeBudgetCallback

log = logging.getLogger(__name__)
ENDLESS_STEPS = 2**40  # max_steps of a training that only time ends
_STEPS_PER_SECOND = 1000  # more than any training makes: what lies beyond is never reached
_FLAT_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau", "greedy")
_FLAGS = {"logging": "should_log", "eval": "should_evaluate", "save": "should_save"}  # kind of `KIND_steps`: its flag
_SLOW_DISK = 1e8  # bytes per second
_TIMED_BATCHES = 16  # of an evaluation


class _EvaluationTooLong(Exception):
    """Ends an evaluation that the rest of the budget does not carry."""


class TrainerLead(TrainerCallback):
    """Leads one Trainer for a `TimeBudgetCallback`; every decision follows from agreed readings and is equal on all ranks.

    It puts itself behind all other callbacks, so that it sees what they ask for. `stored` goes into checkpoints.
    `schedule`: None for Trainer's own learning rates, `time` or `step` for those of `TimeScheduleMixin`.
    """

    def __init__(self, budget: TimeBudgetCallback) -> None:
        self.budget = budget
        self.trainer: Any = None
        self.schedule: str | None = None
        self._epochs_wanted: float | None = None  # of an endless training; Trainer asks before `on_train_begin`
        self._skipped: bool | None = None  # args.ignore_data_skip of the user, where it was changed
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget the training before."""
        # Passes over a data set without a length; by kind of ratio, how often its share has been reached.
        # What evaluations and checkpoints took, for a later job.
        self.stored: dict[str, Any] = {"passes": 0, "marks": {}, "evaluate_seconds": 0.0, "checkpoint_seconds": 0.0}
        self._stream = False
        self._micro_batches = self._steps_in_pass = 0  # since the last step, and since the pass began
        self._since: float | None = None  # when Trainer was left with an evaluation or a checkpoint to do
        self._asked = (False, False)  # whether it was
        self._evaluating, self._predicted, self._first_batch = False, 0, 0.0  # of one evaluation: batches; seconds
        self._said: set[str] = set()

    # ---- before the first step ----

    def find_trainer(self) -> None:
        """Learn from the callers which Trainer fires the event (it hands itself to no callback), and watch its batches."""
        frame = sys._getframe(1).f_back
        while frame is not None:
            found: Any = frame.f_locals.get("self")
            if self.budget in getattr(getattr(found, "callback_handler", None), "callbacks", ()):
                break
            frame = frame.f_back
        else:
            return
        if found is not self.trainer:
            if self.trainer is not None and self.budget not in self.trainer.callback_handler.callbacks:
                self._leave(self.trainer.callback_handler)
            self.trainer = found
            self._wrap("set_initial_training_values", self._training_values)
            self._wrap("get_batch_samples", self._batches)
            self._wrap("_evaluate", self._evaluation)
            self._wrap("_determine_best_metric", self._best_metric)
        self._leave(found.callback_handler)
        found.callback_handler.callbacks.append(self)

    def _leave(self, handler: Any) -> None:
        """A new list, because an event may be on its way through the old one."""
        handler.callbacks = [callback for callback in handler.callbacks if callback is not self]

    def _wrap(self, name: str, around: Callable[..., Any]) -> None:
        """Let a method of this one Trainer go through `around(trainer, method, ...)` as long as the callback is in it."""
        method: Any = getattr(self.trainer, name)
        if not (isinstance(method, partial) and method.func is _through and method.args[0] is self):
            setattr(self.trainer, name, partial(_through, self, self.trainer, method, around))

    def _training_values(
        self, trainer: Any, method: Callable[..., Any], args: Any, dataloader: Any, *rest: Any
    ) -> Any:
        """An endless `max_steps` where neither it nor `num_train_epochs` was set; epochs of a stream are counted here."""
        self._epochs_wanted, default = None, getattr(type(args), "num_train_epochs", None)
        by_default, timed = args.num_train_epochs == default, self.schedule != "step"
        if timed and args.max_steps <= 0 and math.isfinite(self.budget.total_seconds):
            if by_default or not has_length(dataloader):  # epochs that can be counted are Trainer's
                self._epochs_wanted = None if by_default else args.num_train_epochs
                args = copy.copy(args)
                args.max_steps = ENDLESS_STEPS
        return method(args, dataloader, *rest)

    def _batches(
        self, trainer: Any, method: Callable[..., Any], epoch_iterator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """No batches left: the pass ends here, and not after all the steps that Trainer takes for the length of a stream.

        One process waits for no further batch where there is no time left to use it.
        """
        found = method(self._in_time(epoch_iterator), *args, **kwargs)
        if not found[0]:
            trainer.control.should_epoch_stop = True
        return found

    def _in_time(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            yield batch
            if self._late:
                return

    def begin(self, args: Any, state: TrainerState, restored: dict[str, Any], events: dict[str, Any]) -> None:
        """Find the Trainer, refuse what cannot be kept, measure what the end will take. `events`: what Trainer passes on."""
        self.find_trainer()
        budget = self.budget
        if self._skipped is not None:  # the training before did not come to its end
            args.ignore_data_skip, self._skipped = self._skipped, None
        self._stream = not has_length(events.get("train_dataloader")) and self.trainer is not None
        self.stored = {name: restored.get(name, value) for name, value in self.stored.items()}
        if self._stream and self.stored["passes"] and not args.ignore_data_skip:
            self._skipped, args.ignore_data_skip = False, True  # the passes before cannot be skipped by counting steps
            self._say("passes", "the stream begins anew: %d passes over it were done", self.stored["passes"])
        if self.trainer is not None and math.isfinite(budget.total_seconds):
            self._check_schedule(args, state)
        (known,), _ = budget.channel.agree([budget.save_seconds])
        if not known:
            self._rehearse(args, events.get("model"))
        budget.checkpoint_seconds = self.stored["checkpoint_seconds"] or budget.checkpoint_seconds
        budget.evaluate_seconds = self.stored["evaluate_seconds"] or budget.evaluate_seconds
        if self._evaluates(args) and not budget.evaluate_seconds:
            budget.evaluate_seconds = self._time_evaluation()
        if getattr(args, "push_to_hub", False):
            self._say("hub", "push_to_hub: Trainer waits for its push after training, outside of total_training_time")
        self._work_begins(evaluates=args.eval_on_start)

    def _check_schedule(self, args: Any, state: TrainerState) -> None:
        """Trainer's own learning rates count steps; refuse a warm-up that no budget ends, and say that they stay up."""
        reach, kind = _STEPS_PER_SECOND * self.budget.total_seconds, str(args.lr_scheduler_type.value)
        has_curve = self.schedule or hasattr(self.trainer, "schedule_progress")
        if has_curve or not self.trainer._created_lr_scheduler or state.max_steps <= reach:
            return
        if kind != "constant" and (warmup := args.get_warmup_steps(state.max_steps)) > reach:
            raise InputError(
                f"warmup_steps: {args.warmup_steps} is {warmup:,} of {state.max_steps:,} steps, which no budget reaches; use "
                "TimeScheduleMixin, whose warm-up is a share of the budget, or give a number of steps"
            )
        if kind not in _FLAT_SCHEDULES:
            text = "lr_scheduler_type: %s counts steps and stays near its peak under total_training_time; use TimeScheduleMixin"
            self._say("schedule", text, kind, level=logging.WARNING)

    # ---- what the end takes ----

    def _rehearse(self, args: Any, model: Any) -> None:
        """Let all ranks write the model as the end will, and delete it; a save that fails is reserved by the model's size."""
        budget, failed = self.budget, ""
        # Trainings may share an output_dir.
        folder = Path(args.output_dir) / f".partial-rehearsal-{budget.channel.gather(os.getpid())[0]}"
        with budget.running_clock.phase("save") as spent:
            with suppress(OSError):
                if args.should_save:
                    fresh_folder(folder)
            budget.channel.barrier()
            save = self.trainer.save_model
            internal = "_internal_call" in inspect.signature(save).parameters  # pushes nothing to the Hub
            if args.push_to_hub and not internal:
                failed = "save_model pushes to the Hub"
            else:
                try:
                    save(str(folder), **({"_internal_call": True} if internal else {}))
                except Exception as error:
                    failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            failures = [text for text in budget.channel.gather(failed) if text]
            seconds = spent()
            if args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            if failures:
                seconds = _seconds_by_size(model)
                text = "the save could not be rehearsed (%s); %s are reserved for it by the model's size"
                self._say("rehearsal", text, failures[0], format_duration(seconds), level=logging.WARNING)
        budget.save_seconds = budget.save_allowance(seconds)
        if seconds and not budget.checkpoint_seconds:  # weights and two moments, until one was measured
            budget.checkpoint_seconds = (1.5 if getattr(args, "save_only_model", False) else 4.5) * seconds + 0.2

    def _time_evaluation(self) -> float:
        """Seconds of an evaluation, by some batches of it; 0.0 where that tells nothing: until one was done it is unknown."""
        trainer, kind, seconds = self.trainer, type(self.trainer), 0.0
        methods = ("evaluate", "evaluation_loop", "prediction_step", "compute_loss")
        if not all(getattr(kind, name).__module__.startswith("transformers.") for name in methods):
            return 0.0  # what its own methods do, and keep, is not known
        names = list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else [None]
        model, training, clock = trainer.model, trainer.model.training, self.budget.running_clock
        alone = self.budget.channel.world_size == 1  # else all ranks run equally many
        devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices), clock.phase("evaluate") as spent:
            try:
                for name in names:
                    loader = trainer.get_eval_dataloader(*([name] if name else []))
                    times, sized = [spent()], has_length(loader)
                    if not sized:
                        return 0.0
                    model.eval()
                    for batch in islice(loader, _TIMED_BATCHES if alone else 4):
                        trainer.prediction_step(model, batch, prediction_loss_only=trainer.compute_metrics is None)
                        if trainer.args.device.type != "cpu":
                            torch.accelerator.synchronize(trainer.args.device)
                        times.append(spent())
                        if alone and len(times) > 2 and times[-1] - times[0] > 0.01 * self.budget.end_seconds:
                            break
                    later = times[1:] if len(times) > 2 else times  # the first has its warm-up
                    seconds += times[1] - times[0] + 1.3 * len(loader) * (later[-1] - later[0]) / (len(later) - 1)
            except Exception as error:  # Trainer will raise it again, or has another way
                if not alone:  # the others may wait for this rank within the model
                    raise
                self._say("timing", "the evaluation could not be timed (%r)", error, level=logging.WARNING)
                return 0.0
            finally:
                model.train(training)
        return max(seconds, 1e-6)

    def _evaluates(self, args: Any) -> bool:
        has_data = self.trainer is not None and getattr(self.trainer, "eval_dataset", None) is not None
        return has_data and args.eval_strategy in ("steps", "epoch")

    def work_of_the_end(self) -> dict[str, float]:
        """Seconds of what Trainer does at its end before `train()` returns, by agreed measurements.

        An evaluation that was never timed is left out, and so is what would take more than half of the budget.
        """
        if self.trainer is None:
            return {}
        half, work = self.budget.end_seconds / 2, {}
        if self.trainer.args.load_best_model_at_end:
            work["reload of the best model"] = self.budget.reading.save
        for name, seconds in self._wanted().items():
            if seconds is not None and sum(work.values()) + seconds <= half:
                work[name] = seconds
        return work

    def _wanted(self) -> dict[str, float | None]:
        """The last checkpoint and evaluation that the arguments ask for, in seconds; None where that is not known."""
        args, now, wanted = self.trainer.args, self.budget.reading, dict[str, float | None]()
        if args.save_strategy in ("steps", "epoch"):
            wanted["checkpoint"] = now.checkpoint
        if self._evaluates(args):  # "best" saves behind an evaluation
            behind = now.checkpoint if args.save_strategy == "best" else 0.0
            wanted["evaluation"] = now.evaluate + behind if now.evaluate else None
        return wanted

    # ---- while it trains ----

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.budget not in self.trainer.callback_handler.callbacks:  # it was taken out of this Trainer
            self._leave(self.trainer.callback_handler)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._micro_batches, self._since, self._asked = 0, None, (False, False)

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One process that is about to be late does not wait for the end of its accumulation."""
        self._micro_batches += 1
        if self._late:
            self.budget.agree()
            self.budget.stop_if_due(state, control)
            self._end(state, control)

    @property
    def _late(self) -> bool:
        """Whether one process, which need not ask others, has come to the end between two readings."""
        budget = self.budget
        used = budget.running_clock.elapsed_seconds() + budget.reading.save + budget.end_work
        return budget.channel.world_size == 1 and used > budget.end_seconds

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._micro_batches = 0
        self._steps_in_pass += 1
        self._mark_shares(args, state, control)
        if self.budget.stop_reason is not None:
            self._end(state, control)
        else:
            self._admit(state, control)
        self._work_begins(control.should_evaluate, control.should_save)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._steps_in_pass = 0
        self.budget.running_clock.enter("train")

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._micro_batches and self.budget.stop_reason is None:
            self._drop_rest(args, kwargs["model"])
        self._micro_batches = 0
        self.stored["passes"] += self._stream
        if self._epochs_wanted is not None and self.stored["passes"] >= self._epochs_wanted:
            control.should_training_stop = True
        stopped = self.budget.stop_reason is not None
        if not stopped:
            self.budget.agree()
            self.budget.stop_if_due(state, control)
        if self.budget.stop_reason is None:
            self._admit(state, control)
        else:
            self._end(state, control, again=stopped)
        self._work_begins(control.should_evaluate, control.should_save)

    def _drop_rest(self, args: Any, model: Any) -> None:
        """A pass has ended within an accumulation: nothing of its rest goes into the next pass."""
        if not self._steps_in_pass:
            raise InputError(
                f"gradient_accumulation_steps: {args.gradient_accumulation_steps} batches make a step, train_dataset has "
                f"{self._micro_batches}; give fewer"
            )
        log.debug("%d batches at the end of the pass make no step", self._micro_batches)
        model.zero_grad()

    def _mark_shares(self, args: Any, state: TrainerState, control: TrainerControl) -> None:
        """`save_steps=0.1` and the like: every tenth of the budget, or of `max_steps` where that comes first."""
        marks = self.stored["marks"]
        for kind, flag in _FLAGS.items():
            ratio = getattr(args, f"{kind}_steps") or 1
            if ratio >= 1 or getattr(args, f"{kind}_strategy") != "steps":
                continue
            mark = int(self.budget.share / ratio + 1e-9)
            mark = max(mark, state.global_step // (getattr(state, f"{kind}_steps") or ENDLESS_STEPS))
            if mark > marks.setdefault(kind, 0) and (kind != "eval" or args.eval_delay <= state.global_step):
                setattr(control, flag, True)
            marks[kind] = max(mark, marks[kind])

    def _admit(self, state: TrainerState, control: TrainerControl) -> None:
        """Keep evaluations and checkpoints on the way, and those of Trainer's own last step, where the budget carries them."""
        budget, now = self.budget, self.budget.reading
        last = control.should_training_stop or state.global_step >= state.max_steps
        rest = budget.end_seconds - now.elapsed - now.save
        wanted = {"evaluation": now.evaluate, "checkpoint": now.checkpoint, **self._wanted()}
        for name, flag in (("evaluation", "should_evaluate"), ("checkpoint", "should_save")):
            if not getattr(control, flag):
                continue
            seconds = wanted[name] or 0.0
            if name == "evaluation" and not seconds:
                fits = now.elapsed <= budget.end_seconds / 2  # of unknown length
            elif last:
                fits = seconds <= rest
            else:
                fits = budget.reserve(seconds)
            if fits:
                rest -= seconds
            else:
                setattr(control, flag, False)
                about = f"about {format_duration(seconds)}" if seconds else "it was never timed"
                text = "step %d: no %s, the rest of the budget does not carry it (%s)"
                self._say(name, text, state.global_step, name, about)

    def _end(self, state: TrainerState, control: TrainerControl, again: bool = False) -> None:
        """At the budget's stop: the evaluation and the checkpoint that Trainer makes at its own end; `again`: of its epoch."""
        budget, args = self.budget, self.trainer.args
        if budget.stop_reason != budget.end_reason:  # the checkpoint for the next job, and nothing else
            control.should_evaluate, control.should_save = False, not again
            return
        work = self.work_of_the_end()
        by_steps = args.eval_strategy == "steps" and args.eval_delay <= state.global_step and not again
        control.should_evaluate = (control.should_evaluate or by_steps) and "evaluation" in work
        by_steps = args.save_strategy == "steps" and not again
        control.should_save = (control.should_save or by_steps) and "checkpoint" in work
        for name, seconds in self._wanted().items():
            if name not in work:
                why = "was never timed (eval_on_start=True times it)"
                if seconds is not None:
                    why = f"takes about {format_duration(seconds)} of {format_duration(budget.end_seconds)}"
                text = "the last %s is left out, it %s; make it after training"
                self._say(f"last {name}", text, name, why, level=logging.WARNING)

    # ---- how long the work took ----

    def _work_begins(self, evaluates: bool = False, saves: bool = False) -> None:
        self._asked = (evaluates, saves)
        if evaluates or saves:
            self._since = self.budget.running_clock.job_seconds()
            self._part_since, self._predicted = self._since, 0
            self.budget.running_clock.enter("evaluate" if evaluates else "save")

    def _evaluation(self, trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """No metrics where it was broken off."""
        self._evaluating = True
        try:
            return method(*args, **kwargs)
        except _EvaluationTooLong:
            return {}
        finally:
            self._evaluating = False

    def _best_metric(self, trainer: Any, method: Callable[..., Any], metrics: Any, *args: Any, **kwargs: Any) -> Any:
        return bool(metrics) and method(metrics, *args, **kwargs)

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Break off an evaluation that would make training late, as one that could not be timed before may.

        Several processes, which all come to as many batches, ask rank 0 after 1, 2, 4, 8, ... of them.
        """
        budget, now, clock = self.budget, self.budget.reading, self.budget.running_clock
        if not self._evaluating or self._since is None:
            return
        loader, spent = kwargs.get("eval_dataloader"), clock.job_seconds() - self._part_since
        self._predicted += 1
        if self._predicted == 1:
            self._first_batch = spent
        free = budget.end_seconds - clock.elapsed_seconds() - self.work_of_the_end().get("checkpoint", 0.0)
        free -= max(now.save - budget.save_allowance(1e-9), 0.0) / 1.5  # without what is kept for an uneven disk
        free, left = min(free, budget.job_limit_seconds - clock.job_seconds() - now.checkpoint), 0.0
        if not has_length(loader):  # half of the rest, where nothing is known
            left = max(0.0, now.evaluate - spent) if now.evaluate else spent
        elif self._predicted > 2 and spent > free / 4:
            left = (len(loader) - self._predicted) * (spent - self._first_batch) / (self._predicted - 1)
        too_long, several = left > free or free < 0, budget.channel.world_size > 1
        if several and self._predicted & (self._predicted - 1) == 0:
            too_long = budget.channel.agree([too_long])[0][0] > 0
        elif several:
            return
        if too_long:
            text = "step %d: the evaluation is broken off after %s, the rest of the budget does not carry it"
            self._say("evaluation", text, state.global_step, format_duration(spent), level=logging.WARNING)
            self._said.add("last evaluation")
            budget.evaluate_seconds, control.should_evaluate = math.inf, False  # it is not begun again
            self._part_since += spent
            raise _EvaluationTooLong

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After an evaluation, or one of several data sets of it."""
        if self._since is not None:
            self._part_since, self._predicted = self.budget.running_clock.job_seconds(), 0
            seconds = max(1.1 * (self._part_since - self._since), 1e-6)
            self.budget.evaluate_seconds = self.stored["evaluate_seconds"] = seconds
        self._admit_late(state, control)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._admit_late(state, control)

    def _admit_late(self, state: TrainerState, control: TrainerControl) -> None:
        """What a callback asks for once the step's work has begun; after the stop there is room for nothing more."""
        evaluates, saves = self._asked
        if (control.should_evaluate <= evaluates and control.should_save <= saves) or not self.trainer.is_in_train:
            return
        if self.budget.stop_reason is not None:
            control.should_evaluate, control.should_save = control.should_evaluate and evaluates, saves
        else:
            self._admit(state, control)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._since is not None:
            seconds = 1.2 * (self.budget.running_clock.job_seconds() - self._part_since)
            self.budget.checkpoint_seconds = self.stored["checkpoint_seconds"] = seconds

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give back what was changed, and say where training has ended long before the budget."""
        if self._skipped is not None:
            args.ignore_data_skip, self._skipped = self._skipped, None
        own_end = self._stream or state.global_step >= state.max_steps or not control.should_training_stop
        if self.budget.stop_reason is None and own_end and self.budget.share < 0.9:
            epochs = f"num_train_epochs {args.num_train_epochs:g}, or a data set that gave nothing more"
            limit = f"max_steps {args.max_steps}" if args.max_steps > 0 else epochs
            share, total = self.budget.share, format_duration(self.budget.total_seconds)
            text = "training was ended by %s at %.0f %% of total_training_time %s"
            self._say("ended", text, limit, 100 * share, total, level=logging.WARNING)

    def _say(self, what: str, text: str, *values: Any, level: int = logging.INFO) -> None:
        """One line in a training for each `what`, by the main process."""
        if what not in self._said and (self.trainer is None or self.trainer.is_world_process_zero()):
            log.log(level, text, *values)
        self._said.add(what)


def _through(lead: TrainerLead, trainer: Any, method: Any, around: Any, *args: Any, **kwargs: Any) -> Any:
    """A method of Trainer as `around` leads it, as long as the callback is in that Trainer."""
    if lead.budget not in trainer.callback_handler.callbacks:
        return method(*args, **kwargs)
    return around(trainer, method, *args, **kwargs)


def _seconds_by_size(model: Any) -> float:
    """What the parameters, whole where they are sharded, take at a rate that slow disks have."""
    parameters = list(model.parameters()) if model is not None else []
    return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameters) / _SLOW_DISK
