"""The Trainer that keeps a budget: schedule, exact data position, complete checkpoints, pinned evaluation."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from budget_trainer import checkpoints
from budget_trainer.callbacks.time_budget import TimeBudgetCallback
from budget_trainer.clock import BudgetClock
from budget_trainer.curves import Curve, make_curve
from budget_trainer.data import BlockDataset, ExactSampler
from budget_trainer.distributed import ControlChannel
from budget_trainer.errors import InputError
from budget_trainer.evaluation import PinnedEvaluation
from budget_trainer.nsp import count_pairs
from budget_trainer.scheduler import TimeScheduler

logger = logging.getLogger(__name__)
FEWER_BLOCKS = 100
PROBE_BLOCKS = 32
POSITION_KEY = "data_position"  # in TrainerState.stateful_callbacks


class TimeScheduleMixin:
    """Adds the budget and its learning-rate curve to any Trainer: `class MySFT(TimeScheduleMixin, SFTTrainer)`.

    `total_training_time` (`"2h"`) makes the callback, or hand in `time_budget`. `curve` is a name of `CURVES` with
    `warmup_proportion` and `curve_options`, or a function of the progress. With `schedule="step"` the progress is
    step over `max_steps` and time only stops the run.
    """

    def __init__(
        self,
        *args: Any,
        total_training_time: str | float | None = None,
        time_budget: TimeBudgetCallback | None = None,
        schedule: str = "time",
        curve: str | Curve = "linear",
        warmup_proportion: float = 0.06,
        curve_options: dict[str, Any] | None = None,
        callbacks: list | None = None,
        **kwargs: Any,
    ) -> None:
        if schedule not in ("time", "step"):
            raise InputError(f"schedule: {schedule!r} is unknown; choose time or step")
        self.time_budget = time_budget or TimeBudgetCallback(total_training_time)
        self.schedule = schedule
        self.curve = curve if callable(curve) else make_curve(curve, warmup_proportion, **(curve_options or {}))
        kwargs["callbacks"] = [self.time_budget, *(callbacks or [])]
        super().__init__(*args, **kwargs)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The seam that serves every engine; `num_training_steps` counts only for `schedule="step"`."""
        trainer: Any = self
        if trainer.lr_scheduler is None:

            def progress() -> float:
                if self.schedule == "time":
                    return self.time_budget.progress
                return min(1.0, self._steps_done() / num_training_steps)

            trainer.lr_scheduler = TimeScheduler(optimizer or trainer.optimizer, self.curve, progress)
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    def _steps_done(self) -> int:
        """Updates done when the scheduler asks: Trainer asks once at creation, then just before it counts a step."""
        trainer: Any = self
        return trainer.state.global_step + 1 if trainer.is_in_train and trainer.lr_scheduler is not None else 0

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        clock = self.time_budget.clock
        assert clock is not None
        with clock.phase("data_wait"):
            return super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the used budget to every log line, so that it reaches `log_history` and all trackers."""
        logs = {**logs, "elapsed_seconds": round(self.time_budget.reading.elapsed, 3), "share": self.time_budget.share}
        super().log(logs, start_time)  # type: ignore[misc]


class TimeBudgetTrainer(TimeScheduleMixin, Trainer):
    """Everything: the mixin, plus exact data order, our optimizers, complete checkpoints and the pinned evaluation.

    `create_optimizer_fn(model)` builds the optimizer; `evaluation` is what `evaluate()` runs, on its first
    `evaluation_blocks` blocks during training; `identity` says what a checkpoint belongs to (it is compared on resume).
    """

    def __init__(
        self,
        *args: Any,
        create_optimizer_fn: Callable[[torch.nn.Module], torch.optim.Optimizer] | None = None,
        evaluation: PinnedEvaluation | None = None,
        evaluation_blocks: int = 1000,
        identity: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.create_optimizer_fn, self.evaluation = create_optimizer_fn, evaluation
        self.evaluation_blocks, self.identity = evaluation_blocks, identity or {}
        self._staging: Path | None = None
        self._resume_rng_from: str | None = None
        self._first_sample = 0
        super().__init__(*args, **kwargs)

    @property
    def channel(self) -> ControlChannel:
        assert self.time_budget.channel is not None  # made at on_init_end
        return self.time_budget.channel

    @property
    def clock(self) -> BudgetClock:
        assert self.time_budget.clock is not None
        return self.time_budget.clock

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def samples_consumed(self) -> int:
        """Samples used so far by the run: the whole position in the data."""
        state: Any = self.state
        position = (state.stateful_callbacks or {}).get(POSITION_KEY) or {}
        return int(position.get("samples", self.state.global_step * self.global_batch_size))

    # ---- optimizer and data ----

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.create_optimizer_fn is not None:
            self.optimizer = self.create_optimizer_fn(model or self.model)  # type: ignore[arg-type]
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """One endless epoch from the first unused sample on: resume is O(1), and the order ignores the ranks."""
        if not isinstance(train_dataset or self.train_dataset, BlockDataset):
            return super()._get_train_sampler(train_dataset)
        return ExactSampler(self._first_sample, self.args.max_steps * self.global_batch_size)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(resume_from_checkpoint, str):
            self.state = type(self.state).load_from_json(os.path.join(resume_from_checkpoint, "trainer_state.json"))
            self._first_sample = self.samples_consumed
            self._resume_rng_from = resume_from_checkpoint
            if self._nothing_left():
                self._load_from_checkpoint(resume_from_checkpoint)
                self.time_budget.stop_reason = self.time_budget.end_reason
                return TrainOutput(self.state.global_step, math.nan, {})
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _nothing_left(self) -> bool:
        """Whether earlier jobs have used the budget up: then the final model is the checkpoint's, as it is.

        An engine that shards the model takes one more step instead: it has to be prepared to be saved.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return False
        (elapsed, save), _ = self.channel.agree([self.clock.elapsed_seconds(), self.time_budget.save_seconds])
        return elapsed + save >= self.time_budget.end_seconds

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        count_pairs(batch[0], self.args.world_size)
        if self._resume_rng_from is not None:  # making the loader's iterator has drawn from the generator
            self._load_rng_state(self._resume_rng_from)
            self._resume_rng_from = None
        state: Any = self.state
        state.stateful_callbacks[POSITION_KEY] = {"samples": self.samples_consumed + self.global_batch_size}
        return batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if isinstance(self.train_dataset, BlockDataset):
            self.state.epoch = self.samples_consumed / self.train_dataset.rows  # passes over the corpus
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(self, *args: Any, max_blocks: int | None = None, **kwargs: Any) -> dict[str, float]:
        """The pinned evaluation, shared among the ranks; all blocks outside of training."""
        if self.evaluation is None:
            return super().evaluate(*args, **kwargs)
        begin = self.clock.shares()["evaluate"]
        with self.clock.phase("evaluate"):
            result = self._run_evaluation(self.evaluation_blocks if self.is_in_train else max_blocks)
        self.time_budget.evaluate_seconds = self.clock.shares()["evaluate"] - begin
        metrics = {f"eval_{name}": value for name, value in result.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def rehearse_evaluation(self, period_seconds: float) -> None:
        """Time one batch of the pinned evaluation and settle how many blocks validations during training take.

        `evaluation_blocks`, or FEWER_BLOCKS where they would cost over 5 % of `period_seconds`, the time between two
        validations. Rank 0's measurement counts. Without it the first validation would be free in the budget's eyes.
        """
        if self.evaluation is None:
            return
        begin = self.clock.shares()["evaluate"]
        with self.clock.phase("evaluate"):
            self._run_evaluation(PROBE_BLOCKS)
        per_block = (self.clock.shares()["evaluate"] - begin) / PROBE_BLOCKS
        (per_block,), _ = self.channel.agree([per_block])
        seconds = per_block * self.evaluation_blocks
        if seconds > 0.05 * period_seconds and self.evaluation_blocks > FEWER_BLOCKS:
            if self.args.should_log:
                logger.info(
                    "validating on %d blocks: %d would take %.0fs", FEWER_BLOCKS, self.evaluation_blocks, seconds
                )
            self.evaluation_blocks = FEWER_BLOCKS
        self.time_budget.evaluate_seconds = per_block * self.evaluation_blocks

    def _run_evaluation(self, max_blocks: int | None) -> dict[str, float]:
        assert self.evaluation is not None
        return self.evaluation.run(
            self.model_wrapped if self.is_deepspeed_enabled or self.is_fsdp_enabled else self.model,
            device=self.args.device,
            rank=self.channel.rank,
            world_size=self.channel.world_size,
            reduce_sum=self.channel.sum,
            max_blocks=max_blocks,
        )

    # ---- saving: complete or absent ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle that nobody reads has no place beside safetensors
            Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _write_aside(self, target: Path, write: Callable[[Path], None], manifest: dict | None) -> float:
        """Let all ranks write `target` aside, then publish it; returns the seconds it took."""
        clock, channel = self.clock, self.channel
        begin = clock.shares()["save"]
        with clock.phase("save"):
            staging = checkpoints.staging_folder(target)
            if self.args.should_save:
                checkpoints.fresh(staging)
            channel.barrier()
            write(staging)
            channel.barrier()
            if self.args.should_save:
                checkpoints.publish(staging, target, manifest)
            channel.barrier()
        return clock.shares()["save"] - begin

    def save_folder(self, target: str | os.PathLike[str]) -> float:
        """Write the model and its tokenizer to `target`, complete or absent; returns seconds. Call it on all ranks."""
        return self._write_aside(Path(target), lambda folder: self.save_model(str(folder), _internal_call=True), None)

    def rehearse_save(self, output_dir: str | os.PathLike[str]) -> None:
        """Write the model once and delete it: how long the end will take, and that the disk takes it, known early."""
        folder = Path(output_dir) / ".partial-rehearsal"
        seconds = self.save_folder(folder)
        if self.args.should_save:
            shutil.rmtree(folder)
        self.time_budget.save_seconds = self.time_budget.reserve(seconds)
        self.time_budget.checkpoint_seconds = 4.5 * seconds + 0.2  # weights and two moments, until one was measured

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Trainer's checkpoint, written aside under its own name and published with a manifest."""
        run_dir = Path(str(self.args.output_dir))
        target = run_dir / f"checkpoint-{self.state.global_step}"

        def write(staging: Path) -> None:
            self._staging = staging.parent / f"{staging.name}.trainer"
            try:
                super(TimeBudgetTrainer, self)._save_checkpoint(model, trial)
                self.channel.barrier()
                if self.args.should_save:
                    staging.rmdir()
                    (self._staging / target.name).rename(staging)
                    self._staging.rmdir()
            finally:
                self._staging = None

        manifest = {"step": self.state.global_step, "world_size": self.args.world_size, "identity": self.identity}
        self.time_budget.checkpoint_seconds = self._write_aside(target, write, manifest)
        if self.args.should_save:
            checkpoints.rotate(run_dir, self.args.save_total_limit)
