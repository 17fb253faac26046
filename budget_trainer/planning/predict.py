"""What a run does with its budget: the run's own callbacks, on a clock that only the measured durations move.

No rule of the budget stands here. `TimeBudgetCallback` reads the clock, `StepTimes` guesses the next step, the cadences of
`training.callbacks` ask for the seconds of saves and validations, `TimeScheduleMixin` follows the curve; `_PaperTrainer` calls
them in the order in which Trainer does, and instead of working it adds the seconds that the probe has measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import TrainerControl, TrainerState

from budget_trainer.budget.callback import StepTimes, TimeBudgetCallback
from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.mixin import TimeScheduleMixin
from budget_trainer.budget.stages import Stage
from budget_trainer.config.recipe import Recipe
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError
from budget_trainer.planning.steps import MicroStep
from budget_trainer.training.callbacks import (
    CheckpointCadence,
    FinetuneMarkers,
    StageCadence,
    ValidationCadence,
)
from budget_trainer.training.trainer import TimeBudgetTrainer

MOST_STRIDES = 10_000  # of a long run: 24 h of steps of 10 ms are 8.6 million steps, and a stride costs 0.03 ms
_POINTS = 400  # of the schedule's picture


@dataclass(frozen=True)
class Costs:
    """Measured seconds of what one process does, and its blocks. `setup` ends where the first step begins."""

    block_size: int  # tokens
    samples_per_epoch: int = 1  # a training shard, the original's "epoch" of one process
    setup: float = 0.0
    compile: float = 0.0  # for new shapes; 0.0: not compiled
    save: float = 0.0  # the model
    reserve: float = 0.0  # kept free for the last save
    checkpoint: float = 0.0
    evaluate: float = 0.0  # a validation during training
    rehearse: float = 0.0  # of that, before training
    micro_batch: int = 1
    step: MicroStep = MicroStep()
    # By masking rate and parts of a block: the work relative to the first stage's.
    relative: Mapping[tuple[float, int], float] = field(default_factory=dict)
    workers: int = 0

    def step_seconds(self, stage: Stage) -> float:
        work = self.step.work * self.relative.get(_shape(stage), 1.0)
        return self.step._replace(work=work).seconds(stage.accumulation, self.workers)


def predict(costs: Costs, recipe: Recipe, accumulation: int, num_processes: int = 1) -> dict[str, Any]:
    """Let the budget pass: set-up, steps, what is due on the way, the last save.

    Returns what the run will have done, over all processes: `steps`, `samples`, `tokens`, `tokens_per_second`,
    `validations`, seconds by the clock's phases and as a whole (`used_seconds`), and the points of its `schedule`.

    Raises:
        InputError: set-up and the last save leave no time for a step.
    """
    return _PaperTrainer(costs, recipe, accumulation, num_processes).train()


class _StepTimes(StepTimes):
    """Sees the last step of a stride only: the seconds of the steps before it are taken off."""

    skipped_seconds = 0.0

    def step_done(self, seconds: Mapping[str, float], compiling: bool) -> None:
        super().step_done({**seconds, "train": seconds["train"] - self.skipped_seconds}, compiling)


class _Loop:
    """What TimeScheduleMixin and the callbacks read of a Trainer."""

    def __init__(self, args: SimpleNamespace, callbacks: list) -> None:
        self.args, self.callbacks = args, callbacks
        self.state, self.control = TrainerState(is_world_process_zero=False), TrainerControl()


class _PaperTrainer(TimeScheduleMixin, _Loop):
    """Trainer's loop without a model and without data.

    Long runs go in strides of several steps, at most MOST_STRIDES. The budget is asked after each stride as a run asks it
    after each step, with the last step of the stride for the guess of the next one, so its answers are the run's; what becomes
    due within a stride is done at its end, at most 1/MOST_STRIDES of the run late. Strides get shorter towards the end and
    are single steps there, so that the budget ends the run after the very step that it will end it after.
    """

    leads = False

    def __init__(self, costs: Costs, recipe: Recipe, accumulation: int, num_processes: int) -> None:
        self.costs, self.recipe, self.num_processes, self.end = costs, recipe, num_processes, recipe.end_seconds
        self.now, self.samples_consumed, self.validations = 0.0, 0, 0
        self.stride, self._micro_batches = 1, 0
        self.clock = BudgetClock(recipe.total_seconds, time_fn=lambda: self.now)
        agreement = Agreement(ControlChannel(), StopRequest())
        budget = TimeBudgetCallback(clock=self.clock, agreement=agreement, early_exit_time_marker=self.end)
        budget.steps = self.step_times = _StepTimes()
        args = SimpleNamespace(max_steps=recipe.max_steps or math.inf, torch_compile=bool(costs.compile))
        args.device, args.should_save, args.should_log = torch.device("cpu"), False, False
        super().__init__(args, time_budget=budget, **recipe.schedule)
        stages, trainer = recipe.stages(costs.block_size, accumulation), cast(TimeBudgetTrainer, self)
        self.stage, self.compiled = stages.at(0.0), set[tuple[float, int]]()
        epoch, epochs = costs.samples_per_epoch * num_processes, recipe.budget.num_epochs_between_checkpoints
        self.callbacks += [
            StageCadence(trainer, stages),
            FinetuneMarkers(trainer, recipe.markers, os.devnull),  # no marker's folder is there yet
            CheckpointCadence(trainer, recipe.checkpoint_seconds, None if epochs in (None, -1) else epochs * epoch),
        ]
        validation = recipe.validation_plan(epoch)
        if validation is not None:
            self.callbacks.append(ValidationCadence(trainer, validation))

    def train(self) -> dict[str, Any]:
        costs, budget, end = self.costs, self.time_budget, self.end
        self.now = costs.setup
        self.spend("evaluate", costs.rehearse)
        self.spend("save", costs.save)
        budget.save_seconds, budget.checkpoint_seconds = costs.reserve, costs.checkpoint
        budget.evaluate_seconds = costs.evaluate
        first = costs.compile + costs.step_seconds(self.stage)
        if self.now + first + costs.reserve > end:
            raise InputError(
                f"total_training_time: {end:.0f}s is too short here: set-up takes {self.now:.0f}s, the first step {first:.1f}s"
                f"{' with its compilation' if costs.compile else ''}, the last save {costs.reserve:.1f}s; give more time"
            )
        steps = min((end - self.now) / costs.step_seconds(self.stage), self.args.max_steps)
        longest = max(1, int(steps / MOST_STRIDES))
        every, number = max(1, int(steps / longest / _POINTS)), 0
        schedule: list[dict[str, float]] = []
        self.call("on_train_begin")
        while not self.control.should_training_stop:
            self.take_stride(longest)
            if number % every == 0:
                schedule.append(self.point(self.schedule_progress()))
            number += 1
            if self.control.should_evaluate:
                self.spend("evaluate", costs.evaluate)
                self.validations += 1
            if self.control.should_save:
                self.spend("save", costs.checkpoint)
                self.call("on_save")
            self.control.should_evaluate = self.control.should_save = False
        if self.recipe.budget.finetune_checkpoint_at_end:
            self.spend("save", costs.save)
        seconds, tokens = self.clock.seconds_by_phase(), self.samples_consumed * costs.block_size
        phases = ("setup", "compile", "train", "evaluate", "save")
        return {
            "steps": self.state.global_step,
            "samples": self.samples_consumed,
            "tokens": tokens,
            "tokens_per_second": tokens / (seconds["train"] + seconds["compile"]),
            **{f"{phase}_seconds": seconds[phase] for phase in phases},
            "used_seconds": self.clock.elapsed_seconds(),
            "validations": self.validations,
            "schedule": [*schedule, self.point(1.0)],
        }

    def take_stride(self, longest: int) -> None:
        step, shape = self.costs.step_seconds(self.stage), _shape(self.stage)
        times, budget = self.time_budget.steps, self.time_budget
        self.stride = 1  # where the next reading is not like the last
        if not times.compiles and times.next_step():
            seconds = budget.end_seconds - self.now - budget.reading.save - budget.reading.step
            left = min(seconds / step, self.args.max_steps - self.state.global_step)
            self.stride = int(max(1, min(longest, left / 2)))
        self.call("on_step_begin")
        if shape not in self.compiled:
            self.now += self.costs.compile
            self.compiled.add(shape)
        self.now += self.stride * step
        self.step_times.skipped_seconds += (self.stride - 1) * step
        self._micro_batches += self.stride * self.stage.accumulation
        self.samples_consumed += self.stride * self.batch_size
        self.state.global_step += self.stride - 1
        self.call("on_optimizer_step")
        self.state.global_step += 1
        self.call("on_step_end")
        if self.state.global_step >= self.args.max_steps:
            self.control.should_training_stop = True

    @property
    def micro_batches(self) -> int:
        """A new accumulation waits for a count that it divides: a stride of several steps holds one, as 0 is."""
        return self._micro_batches if self.stride == 1 else 0

    def enter_stage(self, stage: Stage, compiles: bool) -> None:
        self.time_budget.steps.expect(stage.accumulation / self.stage.accumulation, compiles)
        self.stage = stage

    def disk_takes_checkpoint(self) -> bool:
        return True

    def save_folder(self, _: Any) -> float:
        self.spend("save", self.costs.save)
        return self.costs.save

    @property
    def batch_size(self) -> int:
        """Blocks per step over all processes, in the present stage."""
        return self.costs.micro_batch * self.stage.accumulation * self.num_processes

    def spend(self, phase: str, seconds: float) -> None:
        with self.clock.phase(phase):
            self.now += seconds

    def call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control)

    def point(self, progress: float) -> dict[str, float]:
        return {
            "elapsed_seconds": self.now,
            "progress": progress,
            "learning_rate": self.recipe.training.learning_rate * self.curve(progress),
            "mlm_probability": self.stage.mlm_probability,
            "batch_size": self.batch_size,
            "sequence_length": self.costs.block_size // self.stage.sequence_parts,
        }


def _shape(stage: Stage) -> tuple[float, int]:
    return stage.mlm_probability, stage.sequence_parts
