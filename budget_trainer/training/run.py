"""From a recipe to the parts of a run, each checked before anything is written.

What happens while a run trains, each thing one callback: the trail, what is kept, validation, guards, the bar.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.budget.clock import BudgetClock, ClockFile
from budget_trainer.budget.stages import ValidationPlan
from budget_trainer.config.arguments import ADAM_FLAGS
from budget_trainer.config.recipe import Recipe, parse_offsets
from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import BlockDataset, DataFolder
from budget_trainer.data.masking import MaskingCollator
from budget_trainer.data.repeated_passages import check_twins
from budget_trainer.data.whole_words import continues_word
from budget_trainer.model.build import build_model, check_positions, load_pretrained, set_output_bias
from budget_trainer.model.cpu import use_few_bit_dropout
from budget_trainer.model.engine_optimizers import (
    check_engine,
    check_lamb,
    keep_optimizer,
    needs_cpu_adam_built,
    zero_stage,
)
from budget_trainer.model.flops import measure_peak_flops
from budget_trainer.model.initialization import cooccurrence_embeddings, set_embeddings, set_offset_heads
from budget_trainer.model.layer_norm import check_apex, use_apex
from budget_trainer.model.optimizers import MAX_COEFF, MIN_COEFF
from budget_trainer.model.sparse import check_document_mask
from budget_trainer.reporting.background_push import BackgroundPush
from budget_trainer.reporting.planned import check_plan
from budget_trainer.training import run_folder
from budget_trainer.training.callbacks import (
    BudgetProgressBar,
    CheckpointCadence,
    EarlyStop,
    FinetuneMarkers,
    ProgressLog,
    Throughput,
    ValidationCadence,
)
from budget_trainer.training.engine import engine_name
from budget_trainer.training.evaluation import PinnedEvaluation
from budget_trainer.training.recovery import Guard
from budget_trainer.training.trainer import TimeBudgetTrainer

log = logging.getLogger(__name__)
COUNTED_TOKENS_PER_SECOND = 30_000  # of the budget
MOST_COUNTED_TOKENS = 50_000_000
VERIFY_SHARE = 0.005  # of what a job may use: 3 s of 10 minutes, at about 1 GB/s on a core
ENDLESS_STEPS = 2**40  # max_steps of a run that only time ends


def check_data(data: DataFolder, blocks: BlockDataset, recipe: Recipe) -> None:
    """Refuse a corpus that cannot fill one batch, blocks longer than the model, and a plan of another run; set max_steps."""
    run = recipe.run
    batch = run.per_device_train_batch_size * run.gradient_accumulation_steps * run.world_size
    if blocks.rows < batch:
        raise InputError(
            f"data_dir: {data.path} has {blocks.rows} blocks, fewer than one batch of {batch}; lower "
            "per_device_train_batch_size or gradient_accumulation_steps, or prepare more text"
        )
    longest = longest_block(data)
    if recipe.model.model_name_or_path is None and recipe.model.max_position_embeddings < longest:
        raise InputError(
            f"max_position_embeddings: {recipe.model.max_position_embeddings} is below the longest block of {data.path} "
            f"(training {data.block_size}, validation {data.manifest['validation_block_size']}); raise it to {longest}"
        )
    for _, parts in recipe.stages(data.block_size).sequence_parts:  # refuses curves that these blocks cannot follow
        check_twins(recipe.data.twin_probability, data.block_size // int(parts))
    if recipe.plan is not None:
        settings, seconds = recipe.as_dict(), recipe.total_seconds
        check_plan(recipe.plan, settings, total_seconds=seconds, processes=run.world_size, data=data.fingerprint)
    if recipe.max_steps is None:
        run.max_steps = ENDLESS_STEPS


def check_contents(data: DataFolder, recipe: Recipe, channel: ControlChannel) -> None:
    """Refuse damaged files on all ranks: one process of each machine reads as much as VERIFY_SHARE of the job allows."""
    damaged, share = None, 1.0
    if recipe.run.local_process_index == 0:
        seconds = min(VERIFY_SHARE * recipe.seconds_left(0.0), channel.timeout_seconds / 2)
        try:
            share = data.verify(seconds)
        except (InputError, OSError) as error:
            damaged = str(error)
    for message in channel.gather(damaged):
        if message is not None:
            raise InputError(message)
    if share < 1 and recipe.run.process_index == 0:
        log.info("checksums: %.0f %% of the data compared, the rest would cost too much of the budget", 100 * share)


def make_model(recipe: Recipe, data: DataFolder, blocks: BlockDataset, channel: ControlChannel, resumed: bool) -> Any:
    """The model of the recipe: new from the seed, or continued from `model_name_or_path`.

    A `resumed` run takes its weights from the checkpoint: nothing is counted for it.
    """
    m = recipe.model
    if m.layer_norm_type == "apex":
        check_apex(recipe.run.device)
    new = m.model_name_or_path is None
    model = _new_model(recipe, data, blocks, channel, resumed) if new else _continued(recipe, data)
    check_positions(model.config, longest_block(data), "max_position_embeddings" if new else "model_name_or_path")
    if m.layer_norm_type == "apex":
        use_apex(model)
    if recipe.data.document_mask:
        check_document_mask(model)
    if recipe.run.device.type == "cpu":
        use_few_bit_dropout(model)
    model.cross_entropy, model.sparse_last_layer = m.cross_entropy, m.sparse_last_layer
    return model


def _new_model(recipe: Recipe, data: DataFolder, blocks: BlockDataset, channel: ControlChannel, resumed: bool) -> Any:
    m = recipe.model
    model = build_model(
        recipe.model_type,
        vocab_size=data.vocab_size,
        special_ids=data.special_ids,
        max_position_embeddings=m.max_position_embeddings,
        hidden_size=m.hidden_size,
        num_hidden_layers=m.num_hidden_layers,
        num_attention_heads=m.num_attention_heads,
        intermediate_size=m.intermediate_size,
        hidden_dropout_prob=m.hidden_dropout_prob,
        attention_probs_dropout_prob=m.attention_probs_dropout_prob,
        hidden_act=m.hidden_act,
        initializer_range=m.initializer_range,
        type_vocab_size=m.type_vocab_size,
        model_config=_mapping(m.model_config),
        sparse_mask_prediction=m.sparse_mask_prediction,
        add_nsp=recipe.add_nsp,
        seed=recipe.run.seed,
    )
    if resumed:
        return model
    if m.unigram_bias:
        set_output_bias(model, data.unigram_counts())
    if m.offset_heads is not None:
        set_offset_heads(model, parse_offsets(m.offset_heads))
    if m.embedding_init == "cooccurrence":
        _count_embeddings(model, data, blocks, recipe, channel)
    return model


def _continued(recipe: Recipe, data: DataFolder) -> Any:
    m = recipe.model
    path = str(m.model_name_or_path)
    try:
        model = load_pretrained(
            path,
            sparse_mask_prediction=m.sparse_mask_prediction,
            add_nsp=recipe.add_nsp,
            seed=recipe.run.seed,
            hidden_dropout_prob=m.hidden_dropout_prob,
            attention_probs_dropout_prob=m.attention_probs_dropout_prob,
        )
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"model_name_or_path: {path} cannot be loaded ({reason}); give a checkpoint's folder"
        ) from None
    if model.config.vocab_size < data.vocab_size:
        raise InputError(
            f"model_name_or_path: {path} has a vocabulary of {model.config.vocab_size}, the data folder one of "
            f"{data.vocab_size}; prepare the data with the model's own tokenizer"
        )
    return model


def longest_block(data: DataFolder) -> int:
    """Tokens of the longest block, of training or validation."""
    return max(data.block_size, int(data.manifest["validation_block_size"]))


def _count_embeddings(
    model: Any, data: DataFolder, blocks: BlockDataset, recipe: Recipe, channel: ControlChannel
) -> None:
    """Embeddings from the blocks that training begins with; the main process counts, the others receive.

    Counting takes about 1 s per million tokens on two cores: a budget of 300 s pays for 9 million.
    """
    size = model.get_input_embeddings().weight.shape[1]
    result = torch.zeros(data.vocab_size, size)
    if channel.rank == 0:
        tokens = min(COUNTED_TOKENS_PER_SECOND * recipe.total_seconds, MOST_COUNTED_TOKENS)
        samples = range(min(blocks.rows, max(1, int(tokens) // data.block_size)))
        rows = blocks.__getitems__(samples)["input_ids"]
        result = torch.from_numpy(
            cooccurrence_embeddings(rows, data.vocab_size, size, special_ids=data.special_ids, seed=recipe.run.seed)
        )
    set_embeddings(model, channel.broadcast(result).numpy(), recipe.model.embedding_init_std)


def _mapping(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"model_config: {text!r} is not a JSON object; write '{{\"key\": value}}', or a mapping in a recipe"
        )
    return value


def make_collator(recipe: Recipe, data: DataFolder) -> MaskingCollator:
    d, train = recipe.data, data.manifest["splits"]["train"]
    first = recipe.stages(data.block_size).at(0.0)
    return MaskingCollator(
        seed=recipe.run.seed,
        special_ids=data.special_ids,
        vocab_size=data.vocab_size,
        block_size=data.block_size,
        mlm_probability=first.mlm_probability,
        mask_replace_prob=d.mask_replace_prob,
        random_replace_prob=d.random_replace_prob,
        max_predictions_per_seq=d.max_predictions_per_seq,
        dup_factor=d.dup_factor,
        has_padding=train["tokens"] < train["rows"] * data.block_size,
        whole_words=continues_word(data.load_tokenizer()) if d.whole_word_mask else None,
        twin_probability=d.twin_probability,
    )


def make_budget(recipe: Recipe, clock: BudgetClock, agreement: Agreement) -> TimeBudgetCallback:
    return TimeBudgetCallback(
        clock=clock,
        agreement=agreement,
        early_exit_time_marker=recipe.early_exit_seconds,
        job_time_limit=recipe.job_limit_seconds,
    )


def make_throughput(recipe: Recipe, budget: TimeBudgetCallback) -> Throughput:
    """Measures this device's matmul peak in the precision of the run, for at most a second and 0.5 % of the budget."""
    run = recipe.run
    dtype = torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else torch.float32
    seconds = min(1.0, 0.005 * recipe.total_seconds)
    return Throughput(budget, run.world_size, measure_peak_flops(run.device, dtype, seconds))


def make_evaluation(data: DataFolder) -> PinnedEvaluation:
    input_ids, token_bytes = data.validation_rows()
    return PinnedEvaluation(input_ids, token_bytes, special_ids=data.special_ids, vocab_size=data.vocab_size)


def optimizer_options(recipe: Recipe) -> dict[str, Any]:
    """The options of build_optimizer, checked against the device and the engine before anything is written.

    The rates and the decay come from TrainingArguments, the rest from OptimizerArguments.
    """
    o, run = recipe.optimizer, recipe.run
    stage = zero_stage(run.deepspeed_plugin)
    check_engine(
        o.optimizer_type,
        o.optimizer_impl,
        device=run.device.type,
        zero_stage=stage,
        fsdp=engine_name(run) == "fsdp",
        max_grad_norm=run.max_grad_norm,
    )
    if o.optimizer_type == "lamb":
        check_lamb(
            o.optimizer_impl,
            bias_correction=bool(o.bias_correction),
            max_coeff=MAX_COEFF if o.max_coeff is None else o.max_coeff,
            min_coeff=MIN_COEFF if o.min_coeff is None else o.min_coeff,
        )
    compiles = bool(stage) and needs_cpu_adam_built(run.deepspeed_plugin)
    if compiles and run.process_index == 0:
        log.info(
            "offloading: torch's own optimizer, DeepSpeed's CPU Adam is not built (DS_BUILD_CPU_ADAM=1 pip install)"
        )
    if compiles or (stage and o.optimizer_type == "muon"):
        keep_optimizer(run.deepspeed_plugin, o.optimizer_type)
    return {
        **{name: getattr(run, name) for name in ADAM_FLAGS},
        "muon_learning_rate": o.muon_learning_rate,
        "muon_momentum": o.muon_momentum,
        "muon_weight_decay": o.muon_weight_decay,
        "embedding_learning_rate": o.embedding_learning_rate,
        "bias_correction": o.bias_correction,
        "max_coeff": o.max_coeff,
        "min_coeff": o.min_coeff,
        "optimizer_impl": o.optimizer_impl,
        "zero_stage": stage,
    }


def identity(model: Any, data: DataFolder, recipe: Recipe) -> dict[str, Any]:
    """What must stay the same over the jobs of a run: model, data, order, optimizer, batch."""
    config = model.config.to_dict()
    skip = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "use_cache"}
    own = {f"model.{key}": value for key, value in json.loads(json.dumps(config)).items() if key not in skip}
    run = recipe.run
    return {
        "data": data.fingerprint,
        "seed": run.seed,
        "optimizer_type": recipe.optimizer.optimizer_type,
        "add_nsp": recipe.add_nsp,
        "global_batch_size": run.per_device_train_batch_size * run.gradient_accumulation_steps * run.world_size,
        **own,
    }


def samples_per_epoch(recipe: Recipe, data: DataFolder) -> int:
    """Samples of one "epoch" in the original's sense: one training shard per process."""
    train = data.manifest["splits"]["train"]
    return max(1, train["rows"] // len(train["files"])) * recipe.run.world_size


def claim(output_dir: Path, identity: dict[str, Any], job: int, clock: BudgetClock) -> ClockFile:
    """Take the folder for this run and start its clock file (main process)."""
    run_folder.begin(output_dir, identity, job)
    clock_file = ClockFile(output_dir / run_folder.CLOCK, clock)
    clock_file.start()
    return clock_file


@dataclass(frozen=True)
class RunCallbacks:
    """What the account of the run is made from."""

    progress: ProgressLog
    markers: FinetuneMarkers
    guard: Guard
    push: BackgroundPush | None = None  # to the Hub, where that was asked for (main process)


def add_callbacks(
    trainer: TimeBudgetTrainer, recipe: Recipe, validation: ValidationPlan | None, samples_per_epoch: int, job: int
) -> RunCallbacks:
    """Add everything in its order: the guard comes behind what saves, because a bad step is not saved."""
    budget, output_dir, watch = trainer.time_budget, recipe.output_dir, recipe.watch
    progress = ProgressLog(budget, output_dir / run_folder.PROGRESS, job)
    markers = FinetuneMarkers(budget, recipe.markers, output_dir, trainer.save_folder)
    epochs = recipe.budget.num_epochs_between_checkpoints
    every_samples = None if epochs is None or epochs == -1 else epochs * samples_per_epoch
    guard = Guard(
        budget,
        max_bad_steps=watch.max_bad_steps,
        max_roll_backs=watch.max_roll_backs,
        roll_back_lr_factor=watch.roll_back_lr_factor,
        scale_cnt_limit=watch.scale_cnt_limit,
        loss_spike=watch.loss_spike,
        roll_back=trainer.roll_back,
        loss_scale=trainer.loss_scale,
    )

    def samples() -> int:
        return trainer.samples_consumed

    trainer.add_callback(progress)
    trainer.add_callback(markers)
    trainer.add_callback(CheckpointCadence(budget, recipe.checkpoint_seconds, every_samples, samples))
    if validation is not None:
        trainer.add_callback(ValidationCadence(budget, validation, samples))
    trainer.add_callback(guard)
    if watch.early_stop_eval_loss is not None:
        trainer.add_callback(EarlyStop(budget, recipe.early_stop_seconds, watch.early_stop_eval_loss))
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(BudgetProgressBar(budget))
    return RunCallbacks(progress, markers, guard, _start_push(trainer, recipe))


def _start_push(trainer: TimeBudgetTrainer, recipe: Recipe) -> BackgroundPush | None:
    """The push, begun where time-marked models go to the Hub while the training goes on."""
    if recipe.push is None or trainer.args.process_index != 0:
        return None
    push = BackgroundPush(recipe.output_dir, recipe.push.options)
    if recipe.push.at_every_save and recipe.markers:
        push.start()
    return push
