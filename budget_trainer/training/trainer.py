"""The Trainer that keeps a budget: schedule, exact data position, stages, bad steps, complete saves, pinned evaluation."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import TrainOutput

from budget_trainer.budget.callback import store_state, stored_state
from budget_trainer.budget.channel import is_lost_connection
from budget_trainer.budget.stages import Stage
from budget_trainer.core.errors import RunError
from budget_trainer.data.order import BlockDataset, ExactSampler
from budget_trainer.model.flops import model_flops_per_token
from budget_trainer.model.next_sentence import count_pairs
from budget_trainer.model.patches import sharded_by_layer
from budget_trainer.training.callbacks import Guard, ProgressLog, Throughput
from budget_trainer.training.engine import restore_group_options
from budget_trainer.training.evaluation import PinnedEvaluation
from budget_trainer.training.recovery import BadSteps, explain_out_of_memory
from budget_trainer.training.saving import SavingTrainer

logger = logging.getLogger(__name__)
_FEWER_BLOCKS = 100
_PROBE_BLOCKS = 32
_PARTS = ("masked_loss", "detection_loss")  # of an output with both
_POSITION_KEY = "data_position"  # in TrainerState.stateful_callbacks


class TimeBudgetTrainer(SavingTrainer):
    """The mixin, plus exact data order, our optimizers, complete checkpoints and the pinned evaluation.

    `create_optimizer_fn(model)` builds the optimizer; `evaluation` is what `evaluate()` runs, on its first
    `evaluation_blocks` blocks during training; `regional_compile` compiles layer by layer.
    """

    def __init__(
        self,
        *args: Any,
        create_optimizer_fn: Callable[[torch.nn.Module], torch.optim.Optimizer] | None = None,
        evaluation: PinnedEvaluation | None = None,
        evaluation_blocks: int = 1000,
        throughput: Throughput | None = None,
        regional_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        self.create_optimizer_fn, self.evaluation = create_optimizer_fn, evaluation
        self.evaluation_blocks, self.throughput = evaluation_blocks, throughput
        self.regional_compile = regional_compile
        self.micro_batches = 0  # of this job, as Trainer counts them
        self.bad_steps = BadSteps()
        self._groups: list[dict[str, Any]] | None = None  # of the optimizer, as it was made
        self._resume_rng_from: str | None = None
        self._first_sample = 0
        self._batches: Iterator | None = None  # our own loader, once the stages need another collator than Trainer's
        self._stage: Stage | None = None
        self._stage_values: dict[str, float] = {}  # of the last step: when its line is logged the next may have begun
        self._loss_before: torch.Tensor | None = None  # Trainer's sum of losses as the step began
        self._line_began = 0  # the step of the last line of the log
        self._bad_in_line: torch.Tensor | None = None  # bad steps since then, on the device
        self._parts: torch.Tensor | None = None  # _PARTS of the loss, summed over the good steps since then
        self._parts_before: torch.Tensor | None = None  # as the step began
        super().__init__(*args, **kwargs)
        self._full_accumulation = self.args.gradient_accumulation_steps
        if throughput is not None:
            self.add_callback(throughput)
            self._count_flops()

    # ---- the engine ----

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """torch.compile with static shapes: every batch of a stage has the same ones."""
        arguments = super()._build_accelerator_args(**kwargs)
        plugin = arguments.get("dynamo_plugin")
        if plugin is not None:
            plugin.dynamic, plugin.use_regional_compilation = False, self.regional_compile
        return arguments

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.create_optimizer_fn is not None:
            self.optimizer = self.create_optimizer_fn(model or self.model)  # type: ignore[arg-type]
            self._groups = [dict(group) for group in self.optimizer.param_groups]
        return super().create_optimizer(model)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """What the engines need before and once they hold the model."""
        model: Any = self.model
        fsdp = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        with sharded_by_layer(fsdp, model) if fsdp is not None else nullcontext():
            prepared = super()._prepare_for_training(*args, **kwargs)
        engine: Any = self.model_wrapped
        if self.is_deepspeed_enabled and engine.load_universal_checkpoint() and self._groups is not None:
            restore_group_options(engine.optimizer.optimizer, self._groups)
        if self.is_fsdp_enabled and hasattr(model, "masked_logits"):  # it gathers the weights for methods it knows of
            torch.distributed.fsdp.register_fsdp_forward_method(engine, "masked_logits")
        scaler: Any = getattr(getattr(self.model_wrapped, "optimizer", None), "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False  # DeepSpeed's fp16: the guard ends the run, after scale_cnt_limit
        return prepared

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(resume_from_checkpoint, str):
            self.state = type(self.state).load_from_json(os.path.join(resume_from_checkpoint, "trainer_state.json"))
            self._first_sample = self.samples_consumed
            self._batches, self.micro_batches = None, 0
            self._resume_rng_from = resume_from_checkpoint
            if self._nothing_left():
                self._load_from_checkpoint(resume_from_checkpoint)
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, ProgressLog | Guard):
                        callback.restore(self.state)  # what is reported is the earlier jobs'
                self.time_budget.stop_reason = self.time_budget.end_reason
                return TrainOutput(self.state.global_step, math.nan, {})
        try:
            with explain_out_of_memory(self.args):
                return super().train(resume_from_checkpoint, *args, **kwargs)
        except RuntimeError as error:  # usually the all-reduce of the gradients is the first to miss a rank
            if self.args.world_size > 1 and not isinstance(error, RunError) and is_lost_connection(error):
                raise self.channel.lost(error) from error
            raise

    def _nothing_left(self) -> bool:
        """Whether earlier jobs have used the budget up; an engine that shards takes one more step, to be able to save."""
        if self.engine_places_model:
            return False
        (elapsed, save), _ = self.channel.agree([self.clock.elapsed_seconds(), self.time_budget.save_seconds])
        return elapsed + save >= self.time_budget.end_seconds

    # ---- one optimizer step: data, stage, what is logged ----

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's; where the loss has two parts they are kept for the log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)  # type: ignore[misc]
        if hasattr(outputs, _PARTS[0]):
            parts = torch.stack([getattr(outputs, name).float() for name in _PARTS])
            before = torch.zeros_like(parts) if self._parts is None else self._parts
            if self._parts_before is None:
                self._parts_before = before
            self._parts = before + parts
        return (loss, outputs) if return_outputs else loss

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step over all ranks, in the present stage."""
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def samples_consumed(self) -> int:
        """Samples used so far by the run: the whole position in the data."""
        position = stored_state(self.state, _POSITION_KEY)
        return int(position.get("samples", self.state.global_step * self.global_batch_size))

    @property
    def block_size(self) -> int:
        """Tokens of a whole block of the collator, 0 where it does not say."""
        return int(getattr(self.data_collator, "block_size", 0))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        """One endless epoch from the first unused sample on: resume is O(1), and the order ignores the ranks."""
        if not isinstance(train_dataset or self.train_dataset, BlockDataset):
            return super()._get_train_sampler(train_dataset)
        # One step more than is taken: Trainer treats the last step of an epoch as one that may be short.
        full = self.args.per_device_train_batch_size * self._full_accumulation * self.args.world_size
        return ExactSampler(self._first_sample, (self.args.max_steps + 1) * full)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """The micro-batches of a step; here the step begins, so what is counted by steps is counted here."""
        if self._stage is not None:
            if self._batches is None:  # at the first step, and where a stage changed the collator
                self._first_sample = self.samples_consumed
                self._batches = iter(self.get_train_dataloader())
            epoch_iterator = self._batches
        if self._loss_before is None:
            self._line_began = self.state.global_step
        self._loss_before = self._tr_loss.clone()
        if (detection := getattr(self.model, "detection", None)) is not None:
            detection.fall(self.schedule_progress())
        batch, predicted = super().get_batch_samples(epoch_iterator, num_batches, device)
        count_pairs(batch, self.args.world_size)
        if self._resume_rng_from is not None:  # making the loader's iterator has drawn from the generator
            self._load_rng_state(self._resume_rng_from)
            self._resume_rng_from = None
        store_state(self.state, _POSITION_KEY, {"samples": self.samples_consumed + self.global_batch_size})
        self.micro_batches += num_batches
        if self._stage is not None:
            self._stage_values = {
                "mlm_probability": self._stage.mlm_probability,
                "batch_size": self.global_batch_size,
                "sequence_length": self.block_size // self._stage.sequence_parts,
            }
        if self.throughput is not None:
            self.throughput.count(self.global_batch_size * self.block_size, predicted)
        return batch, predicted

    def enter_stage(self, stage: Stage, compiles: bool) -> None:
        """From the next step on: this masking rate, batch and sequence length. The order of the samples stays."""
        before = self.args.gradient_accumulation_steps
        self.args.gradient_accumulation_steps = stage.accumulation
        if self._stage is None or not stage.has_shapes_of(self._stage):
            collator: Any = self.data_collator
            self.data_collator = collator.with_stage(
                mlm_probability=stage.mlm_probability, sequence_parts=stage.sequence_parts
            )
            self._batches = None
        self._stage = stage
        self.time_budget.steps.expect(stage.accumulation / before, compiles)
        self._count_flops()

    def _count_flops(self) -> None:
        """FLOPs per token of the present stage, for the throughput."""
        collator: Any = self.data_collator
        if self.throughput is None or not hasattr(collator, "slots"):
            return
        length = collator.block_size // getattr(collator, "sequence_parts", 1)
        self.throughput.flops_per_token = model_flops_per_token(self.model, length, collator.slots)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the line before, so that it reaches `log_history` and all trackers.

        The loss of a line is the mean over its good steps (as this rank saw them), nan where there was none.
        """
        if isinstance(self.train_dataset, BlockDataset):
            self.state.epoch = self.samples_consumed / self.train_dataset.rows  # passes over the corpus
        if self.throughput is not None and "loss" in logs:
            logs |= self.throughput.rates() | self._stage_values
        if "loss" in logs and self._bad_in_line is not None:
            steps, bad = self.state.global_step - self._line_began, int(self._bad_in_line)
            self._line_began, self._bad_in_line = self.state.global_step, None
            if self._parts is not None:  # as this rank saw them
                good = steps - bad if bad < steps else math.nan
                logs |= dict(zip(_PARTS, (self._parts * self.args.world_size / good).tolist(), strict=True))
                self._parts = None
            if bad:
                logs |= {"loss": logs["loss"] * steps / (steps - bad) if bad < steps else math.nan, "bad_steps": bad}
        super().log(logs, start_time)

    # ---- bad steps ----

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Between the gradients and the optimizer: take the effect of a bad step away, its loss from the log too.

        With fp16 an infinite norm only means that the loss scale is being sought; there this rank's loss decides.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if self._loss_before is not None:
            bad = self.bad_steps.judge(self._tr_loss if self.args.fp16 else norm, model, self.optimizer)
            self.time_budget.report_bad_step(self.bad_steps.finished)
            bad = bad.to(self._tr_loss.device)
            self._tr_loss = torch.where(bad, self._loss_before, self._tr_loss)
            if self._parts is not None and self._parts_before is not None:
                self._parts, self._parts_before = torch.where(bad, self._parts_before, self._parts), None
            self._bad_in_line = bad.long() if self._bad_in_line is None else self._bad_in_line + bad
        return norm

    def roll_back(self) -> Path | None:
        """Go back to the newest complete checkpoint, between two steps and on all ranks; None where there is none."""
        folder = self.load_newest_checkpoint()
        if folder is not None:
            self.bad_steps = BadSteps()  # what was found before is of the old weights
        return folder

    def loss_scale(self) -> float | None:
        """fp16's present loss scale; reading it waits for the device. None without fp16."""
        if not self.args.fp16:
            return None
        if self.is_deepspeed_enabled:
            return float(self.model_wrapped.optimizer.loss_scale)  # type: ignore[union-attr,arg-type]
        return float(self.accelerator.scaler.get_scale()) if self.accelerator.scaler is not None else None

    # ---- evaluation ----

    def evaluate(self, *args: Any, max_blocks: int | None = None, **kwargs: Any) -> dict[str, float]:
        """The pinned evaluation, shared among the ranks; all blocks outside of training."""
        if self.evaluation is None:
            return super().evaluate(*args, **kwargs)
        with self.clock.phase("evaluate") as spent:
            result = self._run_evaluation(self.evaluation_blocks if self.is_in_train else max_blocks)
        if not result["complete"]:
            self.control.should_evaluate = False
            self.time_budget.stop_if_due(self.state, self.control)  # a signal came: a checkpoint, and the end
            return {}
        self.time_budget.evaluate_seconds = spent()
        metrics = {f"eval_{name}": value for name, value in result.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def rehearse(self, output_dir: Path, reserve_disk: bool, validation_period: float | None) -> None:
        """Save and validate once: how long the end takes is measured before training begins."""
        self.rehearse_save(output_dir, reserve_disk=reserve_disk)
        if validation_period is not None:
            self._rehearse_evaluation(validation_period)

    def _rehearse_evaluation(self, period_seconds: float) -> None:
        """Time some blocks of the pinned evaluation: validations during training take `evaluation_blocks`, or
        _FEWER_BLOCKS where those would cost over 5 % of `period_seconds`, the time between two of them."""
        if self.evaluation is None:
            return
        model: Any = self.model
        with self.clock.phase("evaluate") as spent:
            if self.engine_places_model:  # and has not yet
                model.to(self.args.device)
            self._run_evaluation(_PROBE_BLOCKS)
            if self.engine_places_model:
                model.to("cpu")
        (per_block,), _ = self.channel.agree([spent() / _PROBE_BLOCKS])
        seconds = per_block * self.evaluation_blocks
        if seconds > 0.05 * period_seconds and self.evaluation_blocks > _FEWER_BLOCKS:
            if self.args.should_log:
                logger.info(
                    "validating on %d blocks: %d would take %.0fs", _FEWER_BLOCKS, self.evaluation_blocks, seconds
                )
            self.evaluation_blocks = _FEWER_BLOCKS
        self.time_budget.evaluate_seconds = per_block * self.evaluation_blocks

    def _run_evaluation(self, max_blocks: int | None) -> dict[str, float]:
        assert self.evaluation is not None
        return self.evaluation.run(
            self.model_wrapped if self.engine_places_model else self.model,
            device=self.args.device,
            rank=self.channel.rank,
            world_size=self.channel.world_size,
            reduce_sum=self.channel.sum,
            max_blocks=max_blocks,
            should_stop=self._agree_on_stop if self.is_in_train else None,
        )

    def _agree_on_stop(self) -> bool:
        """Polled by all ranks between two batches of a validation: the grace time of a signal is short."""
        agreement = self.time_budget.agreement
        return agreement is not None and agreement.agree_on_stop()
