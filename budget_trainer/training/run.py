"""One pre-training run, read downwards: `train_mlm.py` calls the chapters of `PretrainingRun` in their order."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.budget.clock import BudgetClock, keep_clock, read_clock
from budget_trainer.config.recipe import Recipe
from budget_trainer.core.command import DONE, RESUMABLE, StopRequest
from budget_trainer.core.errors import StopAsked
from budget_trainer.core.io import write_json_atomic
from budget_trainer.data.folder import DataFolder
from budget_trainer.model.build import load_pretrained
from budget_trainer.model.flops import measure_peak_flops
from budget_trainer.model.optimizers import build_optimizer
from budget_trainer.reporting.publish import BackgroundPush
from budget_trainer.reporting.report import environment
from budget_trainer.training import launch
from budget_trainer.training.account import RunCallbacks, account, finish_push, used_seconds, write_results
from budget_trainer.training.callbacks import (
    BudgetProgressBar,
    CheckpointCadence,
    EarlyStop,
    FinetuneMarkers,
    ProgressLog,
    Throughput,
    ValidationCadence,
    copy_final,
)
from budget_trainer.training.engine import (
    check_loadable,
    engine_name,
    prepare_universal_checkpoint,
    resolve_engine_config,
)
from budget_trainer.training.parts import RunParts
from budget_trainer.training.precision import resolve_compute_mode
from budget_trainer.training.recovery import Guard
from budget_trainer.training.run_folder import CLOCK, FINAL, PROGRESS, REPORT, RunFolder
from budget_trainer.training.trainer import TimeBudgetTrainer

log = logging.getLogger(__name__)
ENDLESS_STEPS = 2**40  # max_steps of a run that only time ends


class PretrainingRun:
    """One job of a run. Call the methods in the order in which they stand here; every rank calls all of them.

    Nothing is written to the output folder before `claim_folder`, so whatever is refused until then (InputError) leaves
    nothing behind. `at_exit` holds what ends with the budget: the clock's file, the room kept on the disk, the signal
    handlers.
    """

    def __init__(self, recipe: Recipe, clock: BudgetClock, stop: StopRequest, at_exit: ExitStack) -> None:
        """Open the process group and the control channel; log only from the main process."""
        self.recipe, self.clock, self.at_exit = recipe, clock, at_exit
        self.args, self.output_dir = recipe.training_arguments(), recipe.output_dir
        clock.total_seconds = recipe.total_seconds
        launch.prepare(self.args)
        self.channel = ControlChannel(timeout_seconds=min(600.0, self.args.ddp_timeout))
        self.agreement = Agreement(self.channel, stop)
        self.data = DataFolder.open(recipe.data_dir)
        self.parts, self.folder = RunParts(recipe, self.args, self.data), RunFolder(self.output_dir)
        self.checkpoint: Path | None = None  # where the run goes on; None: at its beginning
        self._claimed = False

    @property
    def is_main_process(self) -> bool:
        return self.args.process_index == 0

    # ---- a run that is finished but for its evaluation ----

    @property
    def awaits_evaluation(self) -> bool:
        """Whether `final/` is written and the job that wrote it was killed before its evaluation had ended."""
        return self.args.resume_from_checkpoint is not None and self.folder.awaits_evaluation()

    def evaluate_final(self) -> int:
        """Evaluate `final/`, and write the report, its picture and the card."""
        self.at_exit.close()  # no more work that a signal would have to save
        self.folder.check_data(self.data.fingerprint)
        final = self.output_dir / FINAL
        report = json.loads((self.output_dir / REPORT).read_text(encoding="utf-8"))
        model = load_pretrained(str(final), add_nsp=self.recipe.add_nsp).to(self.args.device)
        shares = read_clock(self.output_dir / CLOCK)
        if sum(shares.values()) > report["used_seconds"]:  # what the last save took may be missing in the report
            report |= {"shares": shares, **used_seconds(shares, report["budget_seconds"])}
        if self.is_main_process:
            copy_final(final, report.get("markers_in_final", []))
        report = {**environment(), **report}  # those it was trained with, where they were written
        report["evaluation"] = self.parts.make_evaluation().run(
            model,
            device=self.args.device,
            rank=self.channel.rank,
            world_size=self.channel.world_size,
            reduce_sum=self.channel.sum,
        )
        if self.is_main_process:
            write_results(self.recipe, report, final)
        self.channel.barrier()
        if self.is_main_process and self.recipe.push is not None:
            push = BackgroundPush(self.output_dir, self.recipe.push)
            finish_push(push, self.output_dir, report, self.recipe.job_limit_seconds - self.clock.job_seconds())
        return DONE

    # ---- data ----

    def open_data(self) -> None:
        """Find where the run goes on, open its blocks, check both, and charge the clock with what earlier jobs used."""
        recipe, args = self.recipe, self.args
        self.checkpoint = self.folder.find_checkpoint(args.resume_from_checkpoint)
        self.check_data()
        self.parts.check_contents(self.channel)
        check_loadable(self.checkpoint, engine_name(args), args.world_size, recipe.optimizer.optimizer_type)
        launch.check_trackers(args)
        self.job = self.folder.restore_clock(self.clock, self.checkpoint)

    def check_data(self) -> None:
        """Refuse blocks and an engine's configuration that contradict the recipe."""
        self.parts.check_data()
        resolve_engine_config(self.args)
        if self.recipe.max_steps is None:
            self.args.max_steps = ENDLESS_STEPS

    # ---- the model ----

    def build_model(self) -> None:
        """Make the model, decide whether bf16 and compiling pay, and refuse the checkpoint of another run."""
        self.make_model()
        left = self.recipe.seconds_left(self.clock.elapsed_seconds())
        self.choose_compute_mode(self.args.per_device_train_batch_size, left)
        self._raise_if_stop_requested()
        self.optimizer_options = self.parts.optimizer_options()
        self.identity = self.parts.identity(self.model)
        self.folder.check_identity(self.identity, self.checkpoint)

    def make_model(self) -> None:
        """The model, new ones with what is counted in the corpus, and the collator that masks its batches."""
        self.collator = self.parts.make_collator()
        self.model = self.parts.make_model()
        if self.checkpoint is None and self.recipe.model.model_name_or_path is None:
            self.parts.initialize_from_corpus(self.model, self.channel)

    def choose_compute_mode(self, micro_batch: int, seconds_left: float) -> None:
        """Precision and compilation, before Trainer is built: its Accelerator fixes both."""
        batch = self.collator(self.parts.blocks.__getitems__(range(micro_batch)))
        self.compute_mode = resolve_compute_mode(
            self.recipe, self.args, self.model, batch, seconds_left, self.checkpoint, self.channel
        )
        regional = self.compute_mode["settled"]["compile"] == "regional"
        self.recipe = replace(self.recipe, budget=replace(self.recipe.budget, regional_compile=regional))

    # ---- the Trainer ----

    def build_trainer(self) -> None:
        """The budget, the optimizer, the Trainer; the end is rehearsed, and what happens on the way is added."""
        if self.checkpoint is not None:  # this run's: what follows is charged to it, and may convert the checkpoint
            self.claim_folder()
        prepare_universal_checkpoint(self.checkpoint, self.args, self.channel)
        self.make_trainer(TimeBudgetTrainer, identity=self.identity, stages=self.recipe.stages(self.data.block_size))
        self.at_exit.callback(self.folder.release_disk_space)
        self.rehearse(reserve_disk=self.recipe.budget.finetune_checkpoint_at_end)
        self._raise_if_stop_requested()
        self.budget.check_room(resumed=self.checkpoint is not None)

    def make_trainer(self, trainer_class: type[TimeBudgetTrainer], **options: Any) -> None:
        """`trainer_class` with the parts of this run; TimeBudgetTrainer has the `options`."""
        recipe, args = self.recipe, self.args
        self.parts.let_deepspeed_step()
        self.budget = TimeBudgetCallback(
            clock=self.clock,
            agreement=self.agreement,
            early_exit_time_marker=recipe.early_exit_seconds,
            job_time_limit=recipe.job_limit_seconds,
        )
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        peak_flops = measure_peak_flops(args.device, dtype, min(1.0, 0.005 * recipe.total_seconds))
        self.trainer = trainer_class(
            model=self.model,
            args=args,
            train_dataset=self.parts.blocks,
            data_collator=self.collator,
            processing_class=self.data.load_tokenizer(),
            create_optimizer_fn=partial(build_optimizer, self.optimizer_options),
            evaluation=self.parts.make_evaluation(),
            time_budget=self.budget,
            throughput=Throughput(self.budget, args.world_size, peak_flops),
            compute_mode=self.compute_mode,
            regional_compile=recipe.budget.regional_compile,
            **recipe.schedule(),
            **options,
        )

    def rehearse(self, reserve_disk: bool) -> None:
        """Save and validate once: how long the end takes is measured before training begins."""
        self.trainer.rehearse_save(self.output_dir, reserve_disk=reserve_disk)
        validation = self.recipe.validation_plan(self.samples_per_epoch)
        if validation is not None:
            self.trainer.rehearse_evaluation(validation.seconds_between(self.recipe.total_seconds))

    @property
    def samples_per_epoch(self) -> int:
        """Samples of one "epoch" in the original's sense: one training shard per process."""
        train = self.data.manifest["splits"]["train"]
        return max(1, train["rows"] // len(train["files"])) * self.args.world_size

    def add_callbacks(self) -> None:
        """What happens while the run trains. The guard comes behind what saves: a bad step is not saved."""
        recipe, trainer, budget, watch = self.recipe, self.trainer, self.budget, self.recipe.watch
        progress = ProgressLog(budget, self.output_dir / PROGRESS, self.job)
        markers = FinetuneMarkers(trainer, recipe.markers, self.output_dir)
        epochs = recipe.budget.num_epochs_between_checkpoints
        every_samples = None if epochs in (None, -1) else epochs * self.samples_per_epoch
        limits = ("max_bad_steps", "max_roll_backs", "roll_back_lr_factor", "scale_cnt_limit", "loss_spike")
        guard = Guard(trainer, **{name: getattr(watch, name) for name in limits})
        trainer.add_callback(progress)
        trainer.add_callback(markers)
        trainer.add_callback(CheckpointCadence(trainer, recipe.checkpoint_seconds, every_samples))
        validation = recipe.validation_plan(self.samples_per_epoch)
        if validation is not None:
            trainer.add_callback(ValidationCadence(trainer, validation))
        trainer.add_callback(guard)
        if watch.early_stop_eval_loss is not None:
            trainer.add_callback(EarlyStop(budget, recipe.early_stop_seconds, watch.early_stop_eval_loss))
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(BudgetProgressBar(budget))
        self.callbacks = RunCallbacks(progress, markers, guard, self._start_push())

    def _start_push(self) -> BackgroundPush | None:
        """The push to the Hub; it begins now where time-marked models go there while the training goes on."""
        if self.recipe.push is None or not self.is_main_process:
            return None
        push = BackgroundPush(self.output_dir, self.recipe.push)
        if self.recipe.push.at_every_save and self.recipe.markers:
            push.start()
        return push

    def _raise_if_stop_requested(self) -> None:
        """Raise StopAsked on all ranks where a signal has come to any of them, between two parts of the set-up.

        There is nothing to save yet: the next job begins where this one did.
        """
        if self.agreement.agree_on_stop():
            if self.is_main_process:
                self.folder.mark_resumable("stop_requested")
            raise StopAsked(f"{self.agreement.stop_asked_by} during set-up, before the first step")

    # ---- training and the end ----

    def claim_folder(self) -> None:
        """Take the output folder for this run, and keep its clock there from here on; a second call does nothing."""
        if self.is_main_process and not self._claimed:
            self.folder.begin(self.identity, self.job)
            self.at_exit.enter_context(keep_clock(self.output_dir / CLOCK, self.clock))
        self._claimed = True

    def train(self) -> None:
        """Train until the budget ends, then write `final/`: there the clock stops.

        A signal on any rank makes all of them stop after the same step, with a checkpoint instead of `final/`.
        """
        self.add_callbacks()
        self.trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        self.is_resumable = self.budget.stop_reason in ("job_time_limit", "stop_requested")
        self.final: Path | None = None
        if self.recipe.budget.finetune_checkpoint_at_end and not self.is_resumable:
            self.final = self.output_dir / FINAL
            self._save_final(self.final)
        self.clock.stop()
        self.at_exit.close()  # clock.json has its last entry, and signals end the process again

    def _save_final(self, final: Path) -> None:
        """The account first, so that a job that is killed behind the save is finished by the next one."""
        report = account(self.trainer, self.callbacks, self.recipe)
        if self.is_main_process:
            self.folder.release_disk_space()
            write_json_atomic(self.output_dir / REPORT, report)
            self.folder.begin_evaluation()
        self.trainer.save_folder(final)

    def finish(self) -> int:
        """Outside of the budget: the pinned evaluation on all blocks, the report, its picture, the card, the Hub.

        Returns the exit code: 0, or 85 for a job that is to be resumed.
        """
        if self.is_resumable:
            if self.is_main_process:
                self.folder.mark_resumable(str(self.budget.stop_reason))
            return RESUMABLE
        outside = BudgetClock()
        report = {**account(self.trainer, self.callbacks, self.recipe), **environment()}
        if self.is_main_process and self.final is not None:  # who is killed from here on loses only the evaluation
            write_json_atomic(self.output_dir / REPORT, report)
            copy_final(self.final, report["markers_in_final"])
        metrics = self.trainer.evaluate()
        report["evaluation"] = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        if self.is_main_process:
            write_results(self.recipe, report, self.final)
        self.channel.barrier()  # the other ranks need not wait for the Hub
        if self.callbacks.push is not None:
            left = self.recipe.job_limit_seconds - self.clock.job_seconds() - outside.elapsed_seconds()
            finish_push(self.callbacks.push, self.output_dir, report, left)
        return DONE
