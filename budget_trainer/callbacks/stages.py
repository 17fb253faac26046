"""Moves the run from stage to stage (`stages`), on all ranks at the same step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.callbacks.time_budget import TimeBudgetCallback
from budget_trainer.stages import Stage, Stages

log = logging.getLogger(__name__)


class StageCadence(TrainerCallback):
    """Asks `stages` what the progress wants and lets `enter` make it so.

    Trainer counts micro-batches and steps where that count is divisible by the accumulation, so a new accumulation
    waits for a count that it divides (`micro_batches`, of this job). New shapes compile again: a stage whose
    compilation the rest of the budget does not carry is left out, and the log says so. Everything here comes from the
    agreed reading and from counts that are equal on all ranks.
    """

    def __init__(
        self,
        time_budget: TimeBudgetCallback,
        stages: Stages,
        *,
        progress: Callable[[], float],
        micro_batches: Callable[[], int],
        enter: Callable[[Stage, bool], None],
    ) -> None:
        self.time_budget, self.stages, self.enter = time_budget, stages, enter
        self.progress, self.micro_batches = progress, micro_batches
        self.stage: Stage | None = None
        self._declined: Stage | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stage = self.stages.at(self.progress())
        self.enter(self.stage, False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        wanted = self.stages.at(self.progress())
        if control.should_training_stop or wanted in (self.stage, self._declined):
            return
        if self.micro_batches() % wanted.accumulation:
            return  # a step or two later
        assert self.stage is not None
        same_shapes = (wanted.mlm_probability, wanted.sequence_parts) == (
            self.stage.mlm_probability,
            self.stage.sequence_parts,
        )
        compiles = args.torch_compile and not same_shapes
        if compiles and not self.time_budget.affords(self.time_budget.reading.compile):
            self._declined = wanted
            if args.should_log:
                log.info("step %d: %s left out, the rest of the budget does not carry it", state.global_step, wanted)
            return
        if args.should_log:
            log.info("step %d, progress %.3f: from here %s", state.global_step, self.progress(), wanted)
        self.stage = wanted
        self.enter(wanted, compiles)
