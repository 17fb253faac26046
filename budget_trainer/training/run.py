"""One pre-training run: `train_mlm.py` calls the chapters of `PretrainingRun` in the order of this file."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ProgressCallback

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.budget.clock import BudgetClock, format_duration, keep_clock, read_clock, seconds_until
from budget_trainer.budget.lead import ENDLESS_STEPS
from budget_trainer.config.arguments import RunArguments
from budget_trainer.config.recipe import Recipe, speed_settings
from budget_trainer.core.command import DONE, RESUMABLE, StopRequest
from budget_trainer.core.errors import InputError, StopAsked
from budget_trainer.core.io import write_json_atomic
from budget_trainer.core.jobs import VARIABLE
from budget_trainer.core.package_data import next_steps
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.masking import Bigrams, MaskingCollator
from budget_trainer.data.repeated_passages import check_repeated_passages
from budget_trainer.data.whole_words import continues_word
from budget_trainer.model.build import load_pretrained, make_model
from budget_trainer.model.checkpoint import check_scalable, fit_token_types
from budget_trainer.model.engine_optimizers import use_apex, zero_stage
from budget_trainer.model.flops import measure_peak_flops
from budget_trainer.model.initialization import (
    cooccurrence_embeddings,
    set_embeddings,
    set_offset_heads,
    set_output_bias,
)
from budget_trainer.model.optimizers import build_optimizer
from budget_trainer.model.patches import use_few_bit_dropout
from budget_trainer.model.sparse import check_document_mask
from budget_trainer.reporting.card import write_model_card
from budget_trainer.reporting.energy import EnergyMeter, account, kept_energy
from budget_trainer.reporting.publish import BackgroundPush
from budget_trainer.reporting.report import describe_data, environment, print_summary, write_report
from budget_trainer.training import launch
from budget_trainer.training.callbacks import (
    BudgetProgressBar,
    CheckpointCadence,
    EarlyStop,
    FinetuneMarkers,
    Guard,
    ProgressLog,
    ShareAxis,
    StageCadence,
    Throughput,
    ValidationCadence,
)
from budget_trainer.training.engine import prepare_universal_checkpoint, resolve_engine
from budget_trainer.training.evaluation import PinnedEvaluation
from budget_trainer.training.growth import Growth, check_room, find_growth, set_aside
from budget_trainer.training.precision import resolve_compute_mode
from budget_trainer.training.run_folder import (
    CLOCK,
    EVALUATING,
    FINAL,
    FINISHED,
    GROWING,
    PROGRESS,
    REPORT,
    RunFolder,
)
from budget_trainer.training.trainer import TimeBudgetTrainer

log = logging.getLogger(__name__)
COUNTED_TOKENS_PER_SECOND = 200_000  # of the budget: counting takes about 0.2 s per million tokens on two cores
MOST_COUNTED_TOKENS = 50_000_000
BIGRAM_TOKENS = 4_000_000  # that replaced tokens are drawn from: sorted in a third of a second
VERIFY_SHARE = 0.005  # of what a job may use: 3 s of 10 minutes, at about 1 GB/s on a core
PUSH_MARGIN_SECONDS = 5.0  # of the job, for the report behind the push
# Flags of ModelArguments that `build_model` takes under the same names.
_ARCHITECTURE = (
    *("max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "initializer_range", "type_vocab_size"),
)


class PretrainingRun:
    """One job of a run, in chapters; the planner's probe calls some of them. Every rank calls all of them.

    Nothing is written to the output folder before `claim_folder`, so whatever is refused until then (InputError) leaves
    nothing behind. `at_exit` holds what ends with the budget: the clock's file, the room kept on the disk, the signal
    handlers.
    """

    def __init__(
        self,
        recipe: Recipe,
        clock: BudgetClock,
        stop: StopRequest,
        at_exit: ExitStack,
        *,
        energy: EnergyMeter | None = None,
        trackers: bool = True,
    ) -> None:
        """Open the process group and the control channel; log only from the main process. `trackers`: check those asked for.

        `energy` counts since the clock began; None: from here on.
        """
        self.clock, self.at_exit, self.energy = clock, at_exit, energy or EnergyMeter(clock)
        self.args, self.output_dir = RunArguments.of(recipe.training), recipe.output_dir
        clock.total_seconds = recipe.total_seconds
        if launch.prepare(self.args, recipe.explicit, trackers=trackers) and not recipe.budget.regional_compile:
            if "regional_compile" in recipe.explicit:
                compiles = "dynamo_config: the launcher's configuration compiles layer by layer"
                raise InputError(f"{compiles}, but regional_compile is false; leave one of them out")
            recipe = replace(recipe, budget=replace(recipe.budget, regional_compile=True))
        self.recipe = recipe
        self.channel = ControlChannel(timeout_seconds=min(600.0, self.args.ddp_timeout))
        launch.count_devices(self.energy, self.args, self.channel)
        self.agreement = Agreement(self.channel, stop)
        self.folder = RunFolder(self.output_dir)
        self.is_main_process = self.args.process_index == 0
        self.checkpoint: Path | None = None  # where the run goes on; None: at its beginning
        self.growth = Growth()  # what it has of shorter budgets
        self._claimed = False

    @contextmanager
    def owned_folder(self) -> Iterator[None]:
        """The output folder is this run's during the block, from the first look into it to the last file."""
        with self.folder.owned(self.channel), self.at_exit:
            yield

    @property
    def awaits_evaluation(self) -> bool:
        """Whether the job that wrote `final/` was killed before its evaluation had ended, and this one is to go on."""
        return self.args.resume_from_checkpoint is not None and self.folder.awaits_evaluation()

    # ---- data ----

    def open_data(self) -> None:
        """Find where the run goes on, charge the clock with what earlier jobs used, open the blocks and check both."""
        resume = self.args.resume_from_checkpoint
        self.checkpoint = self.folder.find_checkpoint(resume)
        self.energy.read()  # before the clock is given the seconds of earlier jobs
        self.job = self.folder.restore_clock(self.clock, self.checkpoint)
        self.energy.restore(kept_energy(self.output_dir / CLOCK) if self.is_main_process else {})
        self._find_end()
        if self.checkpoint is not None:
            self.growth = find_growth(self.folder, resume, self.checkpoint, self.recipe)
        self.read_data()
        rows, most = f"{self.blocks.rows:,}", format_duration(self.verify_seconds)
        log.info(
            "data: %s blocks of %d tokens; comparing checksums takes %s at most", rows, self.data.block_size, most
        )
        self._check_contents()
        self.check_data()

    def _find_end(self) -> None:
        """Turn a deadline into the budget that it leaves: by rank 0's clocks, so that all ranks have the same."""
        recipe, limit = self.recipe, self.recipe.job_limit_seconds
        if recipe.until is None:
            return
        (used, left), _ = self.channel.agree([self.clock.elapsed_seconds(), seconds_until(recipe.until)])
        late = (
            left <= 0 and self.checkpoint is not None
        )  # the newest checkpoint becomes final/, as where a duration is used up
        self.recipe = recipe.with_total(used if late else recipe.total_before_deadline(used, left))
        self.clock.total_seconds = self.recipe.total_seconds
        if self.is_main_process:
            further = "; job_time_limit comes first, and another job goes on" if limit < left else ""
            total = format_duration(self.recipe.total_seconds)
            text = "deadline %s: in %s, the budget is %s%s"
            log.info(text, recipe.budget.deadline, format_duration(max(left, 0.0)), total, further)

    def read_data(self) -> None:
        """Open the data folder, and read what the run needs of it."""
        recipe = self.recipe
        data = self.data = DataFolder.open(recipe.data_dir)
        columns = data.columns_for(document_mask=recipe.data.document_mask, next_sentence=recipe.add_nsp)
        self.tokenizer, self.evaluation_rows = data.load_tokenizer(), data.validation_rows()
        self.is_new = self.checkpoint is None and recipe.model.model_name_or_path is None
        counts = (self.is_new and recipe.model.unigram_bias) or recipe.model.cross_entropy == "sampled"
        self.frequencies = data.unigram_counts() if counts else None
        self.blocks = data.train(seed=self.args.seed, columns=columns)

    def check_data(self) -> None:
        """Ask the recipe, once, what it wants of these blocks, and refuse what does not fit."""
        recipe, args, data = self.recipe, self.args, self.data
        self.flags, self.regional_compile = recipe.as_dict(args), recipe.budget.regional_compile
        plan_settings = speed_settings(self.flags)
        train = data.manifest["splits"]["train"]
        # One "epoch" in the original's sense: one training shard per process.
        self.samples_per_epoch = max(1, train["rows"] // len(train["files"])) * args.world_size
        self.validation = recipe.validation_plan(self.samples_per_epoch)
        self.stages = recipe.stages(data.block_size)
        self.first_stage = self.stages.at(0.0)
        self._check_sizes()
        self.corpus = describe_data(data.path)
        if recipe.plan is not None:
            seconds, processes = recipe.total_seconds, args.world_size
            recipe.plan.check(plan_settings, total_seconds=seconds, processes=processes, data=data.fingerprint)
        self.engine = resolve_engine(args, recipe.optimizer_options, self.checkpoint)
        self.optimizer_options = replace(recipe.optimizer_options, zero_stage=zero_stage(args.deepspeed_plugin))
        if recipe.max_steps is None:
            args.max_steps = ENDLESS_STEPS

    def _check_sizes(self) -> None:
        """Refuse a corpus that cannot fill one batch, and blocks longer than the model takes or too short to be cut."""
        recipe, args, data = self.recipe, self.args, self.data
        self.global_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.longest_block = max(data.block_size, int(data.manifest["validation_block_size"]))
        if self.blocks.rows < self.global_batch_size:
            raise InputError(
                f"data_dir: {data.path} has {self.blocks.rows} blocks, fewer than one batch of {self.global_batch_size}; "
                "lower per_device_train_batch_size or gradient_accumulation_steps, or prepare more text"
            )
        if recipe.model.model_name_or_path is None and recipe.model.max_position_embeddings < self.longest_block:
            raise InputError(
                f"max_position_embeddings: {recipe.model.max_position_embeddings} is below the longest block of {data.path} "
                f"(training {data.block_size}, validation {data.manifest['validation_block_size']}); raise it to "
                f"{self.longest_block}"
            )
        for _, parts in self.stages.sequence_parts:
            check_repeated_passages(recipe.data.twin_probability, data.block_size // int(parts))

    def _check_contents(self) -> None:
        """Refuse damaged files on all ranks: one process of each machine reads as much as VERIFY_SHARE of the job allows."""
        damaged, share = None, 1.0
        if self.args.local_process_index == 0:
            try:
                share = self.data.verify(self.verify_seconds)
            except (InputError, OSError) as error:
                damaged = str(error)
        for message in self.channel.gather(damaged):
            if message is not None:
                raise InputError(message)
        if share < 1 and self.is_main_process:
            log.info(
                "checksums: %.0f %% of the data compared, the rest would cost too much of the budget", 100 * share
            )

    @property
    def verify_seconds(self) -> float:
        """Seconds in which checksums are compared."""
        return min(VERIFY_SHARE * self.seconds_left(0.0), self.channel.timeout_seconds / 2)

    def seconds_left(self, used: float) -> float:
        """Seconds that this job can train in at most, after `used` seconds of the run."""
        return min(self.recipe.end_seconds - used, self.recipe.job_limit_seconds)

    # ---- the model ----

    def build_model(self) -> None:
        """The collator and the model; whether bf16 and compiling pay; refuse the checkpoint of another run."""
        self.make_model()
        left = self.seconds_left(self.clock.elapsed_seconds())
        size = self.model.num_parameters() / 1e6
        rest = f"{format_duration(left)} left" if math.isfinite(left) else "no time limit"
        log.info("model: %s with %.1f million parameters; %s", self.recipe.model_type, size, rest)
        self.choose_compute_mode(self.args.per_device_train_batch_size, left)
        self._raise_if_stop_requested()
        self.identity = self.make_identity()
        self.folder.check_identity(self.identity, self.checkpoint)

    def make_model(self) -> None:
        """The collator that masks, and the model; new ones start from what is counted in the corpus."""
        self.collator, self.model = self.make_collator(), self.untrained_model()
        if self.is_new:
            self._initialize_from_corpus()
        if self.recipe.model.cross_entropy == "sampled":
            self._sample_softmax()

    def make_collator(self) -> MaskingCollator:
        """The masking of the schedule's first stage."""
        data, asked = self.data, self.recipe.data
        train = data.manifest["splits"]["train"]
        return MaskingCollator(
            seed=self.args.seed,
            special_ids=data.special_ids,
            vocab_size=data.vocab_size,
            block_size=data.block_size,
            mlm_probability=self.first_stage.mlm_probability,
            mask_replace_prob=asked.mask_replace_prob,
            random_replace_prob=asked.random_replace_prob,
            max_predictions_per_seq=asked.max_predictions_per_seq,
            dup_factor=asked.dup_factor,
            has_padding=train["tokens"] < train["rows"] * data.block_size,
            whole_words=continues_word(self.tokenizer) if asked.whole_word_mask else None,
            twin_probability=asked.twin_probability,
            bigrams=self.bigrams if self.recipe.model.detection_weight else None,
        )

    @cached_property
    def bigrams(self) -> Bigrams:
        """Of the first blocks in the order of training: the same ones in every job and on every rank."""
        tokens = min(BIGRAM_TOKENS, self.blocks.rows * self.data.block_size)
        return Bigrams(self.first_rows(tokens), self.data.vocab_size, self.data.special_ids)

    def untrained_model(self) -> Any:
        """The model of the recipe: new from the seed, or loaded from `model_name_or_path`, before any training."""
        recipe, data, m = self.recipe, self.data, self.recipe.model
        new = {"special_ids": data.special_ids, "model_config": recipe.model_config}
        model = make_model(
            m.model_name_or_path,
            recipe.model_type,
            vocab_size=data.vocab_size,
            longest_block=self.longest_block,
            new=new | {name: getattr(m, name) for name in _ARCHITECTURE},
            tokenizer=self.tokenizer,
            defaults={*_ARCHITECTURE, "hidden_dropout_prob", "attention_probs_dropout_prob"} - recipe.explicit,
            hidden_dropout_prob=m.hidden_dropout_prob,
            attention_probs_dropout_prob=m.attention_probs_dropout_prob,
            sparse_mask_prediction=m.sparse_mask_prediction,
            add_nsp=recipe.add_nsp,
            seed=self.args.seed,
        )
        fit_token_types(self.tokenizer, model.config)
        if m.layer_norm_type == "apex":
            use_apex(model, self.args.device)
        if recipe.data.document_mask:
            check_document_mask(model)
        if m.final_weight_rms is not None:
            check_scalable(model.config)
        if self.args.device.type == "cpu":
            use_few_bit_dropout(model)
        model.cross_entropy, model.sparse_last_layer = m.cross_entropy, m.sparse_last_layer
        if m.detection_weight:
            model.detect_replaced_tokens(m.detection_weight, data.special_ids, self.args.seed)
        return model

    def _initialize_from_corpus(self) -> None:
        """Start a new model closer to the text: output bias at the token frequencies, heads at fixed offsets, counted
        embeddings. A resumed run takes its weights from the checkpoint instead.
        """
        m, model = self.recipe.model, self.model
        counts = m.embedding_init == "cooccurrence"
        rows = self.first_rows(self.counted_tokens) if counts and self.is_main_process else None
        if self.frequencies is not None and m.unigram_bias:
            set_output_bias(model, self.frequencies)
        if self.recipe.offsets is not None:
            set_offset_heads(model, self.recipe.offsets)
        if counts:
            # The other ranks receive what the main process has counted.
            empty = torch.zeros(self.data.vocab_size, model.get_input_embeddings().weight.shape[1])
            counted = self.channel.broadcast(empty if rows is None else self.count_embeddings(rows))
            set_embeddings(model, counted.numpy(), m.embedding_init_std)

    def _sample_softmax(self) -> None:
        """By the frequencies of the tokens as labels, which special ones never are."""
        assert self.frequencies is not None
        counts = self.frequencies.copy()
        counts[list(self.data.special_ids.values())] = 0
        self.model.sample_softmax(
            counts, self.recipe.model.softmax_samples, self.args.process_index, self.args.world_size
        )

    @property
    def counted_tokens(self) -> int:
        """How many tokens `embedding_init: cooccurrence` counts in this budget: 250 s pay for 50 million."""
        paid_for = min(COUNTED_TOKENS_PER_SECOND * self.recipe.total_seconds, MOST_COUNTED_TOKENS)
        return int(min(paid_for, self.blocks.rows * self.data.block_size))

    def first_rows(self, tokens: int) -> NDArray[np.int64]:
        """The blocks of the first `tokens` tokens that training will see."""
        return self.blocks.__getitems__(range(max(1, tokens // self.data.block_size)))["input_ids"]

    def count_embeddings(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Embeddings (vocabulary x width of the model) counted over `rows`."""
        size, special = self.model.get_input_embeddings().weight.shape[1], self.data.special_ids
        return torch.from_numpy(
            cooccurrence_embeddings(rows, self.data.vocab_size, size, special_ids=special, seed=self.args.seed)
        )

    def choose_compute_mode(self, micro_batch: int, seconds_left: float) -> None:
        """Precision and compilation, before Trainer is built: its Accelerator fixes both."""
        batch = self.collator(self.blocks.__getitems__(range(micro_batch)))
        self.compute_mode = resolve_compute_mode(
            self.recipe, self.args, self.model, batch, seconds_left, self.checkpoint, self.channel
        )
        self.regional_compile = self.compute_mode["settled"]["compile"] == "regional"

    def make_identity(self) -> dict[str, Any]:
        """What must stay the same over all jobs of a run: model, data, order, optimizer, batch. Checkpoints carry it."""
        config = json.loads(json.dumps(self.model.config.to_dict()))
        skip = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "use_cache"}
        return {
            "data": self.data.fingerprint,
            "seed": self.args.seed,
            "optimizer_type": self.recipe.optimizer.optimizer_type,
            "add_nsp": self.recipe.add_nsp,
            "global_batch_size": self.global_batch_size,
            **{f"model.{key}": value for key, value in config.items() if key not in skip},
        }

    def _raise_if_stop_requested(self) -> None:
        """StopAsked on all ranks where a signal has come to any of them: there is nothing to save yet."""
        if self.agreement.agree_on_stop():
            if self.is_main_process and (
                not self.growth.pending or self.folder.is_growing
            ):  # else it is finished as it is
                self.folder.mark_resumable("stop_requested")
            raise StopAsked(f"{self.agreement.stop_asked_by} during set-up, before the first step")

    # ---- the Trainer ----

    def build_trainer(self) -> None:
        """The budget, the optimizer and the Trainer; then the end is rehearsed."""
        # This run's: what follows is charged to it, and may convert the checkpoint. A finished one stays as it is until nothing
        # can be refused any more.
        if self.checkpoint is not None and not self.growth.pending:
            self.claim_folder()
        prepare_universal_checkpoint(self.checkpoint, self.args, self.channel)
        self.make_trainer(TimeBudgetTrainer, identity=self.identity)
        self.at_exit.callback(self.folder.release_disk_space)
        log.info("rehearsal: one save and a part of a validation, to know how long the end will take")
        self.rehearse(reserve_disk=self.recipe.budget.finetune_checkpoint_at_end)
        self._raise_if_stop_requested()
        try:
            self.budget.check_room(resumed=self.checkpoint is not None)
        except InputError as error:
            if self.recipe.end_field != "deadline":
                raise
            asked = f"deadline: {self.recipe.budget.deadline} is too early, "
            raise InputError(str(error).replace("total_training_time: ", asked, 1)) from None
        if self.growth.pending:
            now = self.budget.reading
            check_room(self.growth, now.elapsed, now.save + self.budget.end_work, self.recipe)

    def make_trainer(self, trainer_class: type[TimeBudgetTrainer], **options: Any) -> None:
        """`trainer_class` with the parts of this run, and `options` of its own."""
        recipe, args = self.recipe, self.args
        self.budget = TimeBudgetCallback(
            clock=self.clock,
            agreement=self.agreement,
            early_exit_time_marker=recipe.early_exit_seconds,
            job_time_limit=recipe.job_limit_seconds,
        )
        vocabulary: dict[str, Any] = {"special_ids": self.data.special_ids, "vocab_size": self.data.vocab_size}
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        peak_flops = measure_peak_flops(args.device, dtype, min(1.0, 0.005 * recipe.total_seconds))
        self.trainer = trainer_class(
            model=self.model,
            args=args,
            train_dataset=self.blocks,
            data_collator=self.collator,
            processing_class=self.tokenizer,
            create_optimizer_fn=partial(build_optimizer, self.optimizer_options),
            evaluation=PinnedEvaluation(*self.evaluation_rows, **vocabulary),
            time_budget=self.budget,
            throughput=Throughput(self.budget, args.world_size, peak_flops),
            compute_mode=self.compute_mode,
            final_weight_rms=self.recipe.model.final_weight_rms,
            regional_compile=self.regional_compile,
            **recipe.schedule,
            **options,
        )

    def rehearse(self, reserve_disk: bool) -> None:
        """Save and validate once: how long the end takes is measured before training begins."""
        every = None if self.validation is None else self.validation.seconds_between(self.recipe.total_seconds)
        self.trainer.rehearse(self.output_dir, reserve_disk=reserve_disk, validation_period=every)

    def claim_folder(self) -> None:
        """Take the output folder for this run, and keep its clock there from here on; a second call does nothing."""
        growth = self.growth
        if self.is_main_process and not self._claimed:
            if growth.pending:
                self.folder.begin(self.identity, self.job, growth.as_dict(), GROWING)
                set_aside(self.folder, growth.budgets[-1])
                log.info("the models of %s have its name now; it goes on from %s", growth.budgets[-1], self.checkpoint)
            self.folder.begin(self.identity, self.job, replace(growth, pending=False).as_dict())
            path = self.output_dir / CLOCK
            kept = keep_clock(path, self.clock, more=lambda: {"energy": self.energy.record()})
            self.at_exit.enter_context(kept)
        if growth.pending and not self._claimed:
            self.channel.barrier()  # the other ranks look for time-marked models next
        self._claimed = True

    # ---- training and the end ----

    def train(self) -> None:
        """Train until the budget ends, then write `final/`: there the clock stops.

        A signal on any rank makes all of them stop after the same step, with a checkpoint instead of `final/`.
        """
        self.add_callbacks()
        end, steps = self.budget.end_seconds, f"for {self.args.max_steps:,} steps"
        log.info(
            "training: set-up took %s; now %s; the save at the end takes about %s",
            format_duration(self.clock.job_seconds()),
            f"until {format_duration(end)} are used, the save included" if math.isfinite(end) else steps,
            format_duration(self.budget.reading.save),
        )
        self.trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        self.is_resumable = self.budget.stop_reason in ("job_time_limit", "stop_requested")
        self.final: Path | None = None
        if self.recipe.budget.finetune_checkpoint_at_end and not self.is_resumable:
            self.final = self.output_dir / FINAL
            self._save_final(self.final)
        self.clock.stop()
        self.energy.read()
        self._gather_energy()
        self.at_exit.close()  # clock.json has its last entry, and signals end the process again

    def add_callbacks(self) -> None:
        """What happens while the run trains. The guard comes behind what saves: a bad step is not saved."""
        recipe, trainer, budget, watch = self.recipe, self.trainer, self.budget, self.recipe.watch
        self.progress = ProgressLog(budget, self.output_dir / PROGRESS, self.job)
        # Those that a shorter budget has passed were at other shares.
        markers = [share for share in recipe.markers if share * recipe.total_seconds > self.growth.began]
        self.markers = FinetuneMarkers(trainer, markers, self.output_dir)
        epochs = recipe.budget.num_epochs_between_checkpoints
        every_samples = None if epochs in (None, -1) else epochs * self.samples_per_epoch
        self.guard = Guard(trainer, watch)
        if not self.stages.constant:
            trainer.add_callback(StageCadence(trainer, self.stages))
        trainer.add_callback(self.progress)
        trainer.add_callback(self.markers)
        trainer.add_callback(CheckpointCadence(trainer, recipe.checkpoint_seconds, every_samples))
        if self.validation is not None:
            trainer.add_callback(ValidationCadence(trainer, self.validation))
        trainer.add_callback(self.guard)
        if watch.early_stop_eval_loss is not None:
            trainer.add_callback(EarlyStop(budget, recipe.early_stop_seconds, watch.early_stop_eval_loss))
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(BudgetProgressBar(budget))
        trainer.add_callback(ShareAxis(budget, trainer.callback_handler.callbacks))
        self.push: BackgroundPush | None = None  # begun now where time-marked models go to the Hub during the training
        if recipe.push is not None and self.is_main_process:
            self.push = BackgroundPush(self.output_dir, recipe.push)
            if recipe.push.at_every_save and recipe.markers:
                self.push.start()

    def _save_final(self, final: Path) -> None:
        """The report first, so that a job that is killed behind the save is finished by the next one."""
        report = self._report()
        if self.is_main_process:
            self.folder.release_disk_space()
            write_json_atomic(self.output_dir / REPORT, report)
            self.folder.set_state(EVALUATING)
        self.trainer.save_folder(final)

    def _gather_energy(self) -> None:
        """Let the main process have what other machines have counted since the last time; every rank calls it."""
        mine = None if self.is_main_process else self.energy.take()
        for record in filter(None, self.channel.gather(mine)):
            if self.is_main_process:
                self.energy.add(record)

    def _energy(self, record: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What the report says of `record` and of `seconds` of all machines."""
        card = self.recipe.card
        return account(record, seconds, card.country_iso_code, card.price_per_hour)

    def _report(self) -> dict[str, Any]:
        """`run_report.json` without its evaluation. Call it on all ranks: steps and learning rates are gathered."""
        trainer, progress = self.trainer, self.progress
        mine = {"rank": self.channel.rank, "steps": progress.steps, "learning_rates_sha256": progress.rates_sha256}
        model: Any = trainer.model
        counts, marked = self.guard.counts(), self.markers.in_final()
        overall = {} if trainer.throughput is None else trainer.throughput.overall()
        shares, samples = self.clock.seconds_by_phase(), trainer.samples_consumed
        tokens, worked = samples * self.data.block_size, shares["train"] + shares["data_wait"] + shares["compile"]
        self._gather_energy()
        now = self.args.to_dict()  # what came of the flags
        if self.recipe.until is not None:
            now["total_training_time"] = format_duration(self.recipe.total_seconds)
        flags = {name: now.get(name, value) for name, value in self.flags.items() if name != "push_to_hub"}
        return {
            "budget_seconds": self.budget.end_seconds,
            **_used_seconds(shares, self.budget.end_seconds),
            **({"earlier_budgets": list(self.growth.budgets)} if self.growth.budgets else {}),
            "shares": shares,
            "energy": self._energy(self.energy.record(), sum(shares.values())),
            "steps": trainer.state.global_step,
            "samples": samples,
            "tokens": tokens,
            "tokens_per_second": tokens / worked if worked > 0 else 0.0,
            **overall,
            "data_wait_share": shares["data_wait"] / worked if worked > 0 else 0.0,
            "speed": self.compute_mode,
            "passes_over_corpus": samples / self.blocks.rows,
            "learning_rate_last": progress.learning_rate_last,
            "learning_rate_peak": progress.learning_rate_peak,
            "evaluation": None,
            "markers_in_final": marked,
            "world_size": self.args.world_size,
            "engine": self.engine,
            **counts,
            "stop_reason": self.budget.stop_reason or "max_steps",
            "jobs": progress.job,
            "parameters": model.num_parameters(),
            "added_tokens": model.added_tokens,
            "model_type": model.config.model_type,
            "recipe": self.flags | flags | {"regional_compile": self.regional_compile},
            "data": self.corpus,
            "ranks": self.channel.gather(mine),
        }

    def finish(self) -> int:
        """Outside of the budget: the pinned evaluation on all blocks, the report, its picture, the card, the Hub."""
        if self.is_resumable:
            if self.is_main_process:
                self.folder.mark_resumable(str(self.budget.stop_reason))
            return RESUMABLE
        outside = BudgetClock()
        report = {**self._report(), **environment()}
        if self.is_main_process and self.final is not None:  # who is killed from here on loses only the evaluation
            write_json_atomic(self.output_dir / REPORT, report)
            self.folder.copy_final(report["markers_in_final"])
        if self.recipe.checkpoint_at_end:
            self.trainer.save_checkpoint_of_end()
        blocks = len(self.evaluation_rows[0])
        per_block = self.budget.evaluate_seconds / max(1, self.trainer.evaluation_blocks)
        about = f", about {format_duration(blocks * per_block)}" if per_block else ""
        log.info(
            "evaluation: all %s validation blocks%s, behind the budget; then report and card", f"{blocks:,}", about
        )
        metrics = self.trainer.evaluate()
        report["evaluation"] = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        self._write_results(report, self.final, self.push, outside)
        return DONE

    def _write_results(
        self,
        report: dict[str, Any],
        final: Path | None,
        push: BackgroundPush | None,
        outside: BudgetClock | None = None,
    ) -> None:
        """The report, its picture, the card in `final`, and the Hub, which has what is left of the job; a failed push
        changes nothing."""
        if self.is_main_process:
            write_report(report, self.output_dir, self.recipe.plan)
            if final is not None:
                card = self.recipe.card
                write_model_card(final, license=card.license, language=(card.language or "").replace(",", " ").split())
            self.folder.set_state(FINISHED)
            print_summary(report, self.output_dir)
            if final is not None and VARIABLE not in os.environ:  # else somebody started it who knows
                print(next_steps(self.output_dir), flush=True)
        self.channel.barrier()  # the other ranks need not wait for the Hub
        if push is not None:
            used = self.clock.job_seconds() + (0.0 if outside is None else outside.elapsed_seconds())
            report = {**report, "hub": push.finish(self.recipe.job_limit_seconds - used - PUSH_MARGIN_SECONDS)}
            try:
                write_json_atomic(self.output_dir / REPORT, report)
            except OSError as error:
                log.warning("%s: not written (%s)", self.output_dir / REPORT, error.strerror)

    # ---- a run that is finished but for its evaluation ----

    def evaluate_final(self) -> int:
        """What is left to do where the job that wrote `final/` was killed before its evaluation had ended."""
        self.at_exit.close()  # no more work that a signal would have to save
        data = DataFolder.open(self.recipe.data_dir)
        self.folder.check_data(data.fingerprint)
        vocabulary: dict[str, Any] = {"special_ids": data.special_ids, "vocab_size": data.vocab_size}
        final = self.output_dir / FINAL
        report, shares = self.folder.read_report(), dict[str, float]()
        if not report:
            raise InputError(
                f"output_dir: {self.output_dir / REPORT} is missing or damaged, and its evaluation cannot be added; {final} "
                f"is complete: use it, or train anew in another folder"
            )
        model = load_pretrained(str(final), add_nsp=self.recipe.add_nsp, whole=True, field="output_dir")
        model.to(self.args.device)
        with suppress(InputError):  # damaged by a power cut
            shares = read_clock(self.output_dir / CLOCK)
        if sum(shares.values()) > report["used_seconds"]:  # what the last save took may be missing in the report
            report |= {"shares": shares, **_used_seconds(shares, report["budget_seconds"])}
            if record := kept_energy(self.output_dir / CLOCK):
                report["energy"] = self._energy(record, report["used_seconds"])
        if self.is_main_process:
            self.folder.copy_final(report.get("markers_in_final", []))
        report = {**environment(), **report}  # those it was trained with, where they were written
        report["evaluation"] = PinnedEvaluation(*data.validation_rows(), **vocabulary).run(
            model,
            device=self.args.device,
            rank=self.channel.rank,
            world_size=self.channel.world_size,
            reduce_sum=self.channel.sum,
        )
        total = self.recipe.total_seconds
        more = total > (report["budget_seconds"] or math.inf) + 0.5
        if self.is_main_process and more and self.folder.newest_checkpoint() is not None:
            log.info("finished; the same command again goes on to %s", format_duration(total))
        options = self.recipe.push if self.is_main_process else None
        self._write_results(report, final, BackgroundPush(self.output_dir, options) if options else None)
        return DONE


def _used_seconds(shares: dict[str, float], budget_seconds: float | None) -> dict[str, float]:
    """`used_seconds` and `overrun_seconds` of a run that spent `shares` (seconds by phase)."""
    used, budget = sum(shares.values()), math.inf if budget_seconds is None else budget_seconds
    return {"used_seconds": used, "overrun_seconds": max(0.0, used - budget)}
