"""From a recipe to the parts of its run: model, collator, optimizer options, identity. Nothing here writes to disk."""

from __future__ import annotations

import json
import logging
from typing import Any

import torch

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.config.arguments import ADAM_FLAGS, RunArguments
from budget_trainer.config.recipe import Recipe, parse_offsets, speed_settings
from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.masking import MaskingCollator
from budget_trainer.data.order import BlockDataset
from budget_trainer.data.repeated_passages import check_repeated_passages
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
from budget_trainer.model.initialization import cooccurrence_embeddings, set_embeddings, set_offset_heads
from budget_trainer.model.layer_norm import check_apex, use_apex
from budget_trainer.model.optimizers import MAX_COEFF, MIN_COEFF
from budget_trainer.model.sparse import check_document_mask
from budget_trainer.reporting.planned import check_plan
from budget_trainer.training.engine import engine_name
from budget_trainer.training.evaluation import PinnedEvaluation

log = logging.getLogger(__name__)
COUNTED_TOKENS_PER_SECOND = 30_000  # of the budget: counting takes about 1 s per million tokens on two cores
MOST_COUNTED_TOKENS = 50_000_000
VERIFY_SHARE = 0.005  # of what a job may use: 3 s of 10 minutes, at about 1 GB/s on a core


def global_batch_size(args: RunArguments) -> int:
    """Samples of one optimizer step over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def check_data(recipe: Recipe, args: RunArguments, data: DataFolder, blocks: BlockDataset) -> None:
    """Refuse a corpus that cannot fill one batch, blocks longer than the model takes, and the plan of another run."""
    batch = global_batch_size(args)
    if blocks.rows < batch:
        raise InputError(
            f"data_dir: {data.path} has {blocks.rows} blocks, fewer than one batch of {batch}; lower "
            "per_device_train_batch_size or gradient_accumulation_steps, or prepare more text"
        )
    longest = _longest_block(data)
    if recipe.model.model_name_or_path is None and recipe.model.max_position_embeddings < longest:
        raise InputError(
            f"max_position_embeddings: {recipe.model.max_position_embeddings} is below the longest block of {data.path} "
            f"(training {data.block_size}, validation {data.manifest['validation_block_size']}); raise it to {longest}"
        )
    for _, parts in recipe.stages(data.block_size).sequence_parts:  # refuses curves that these blocks cannot follow
        check_repeated_passages(recipe.data.twin_probability, data.block_size // int(parts))
    if recipe.plan is not None:
        settings, seconds = speed_settings(recipe.as_dict(args)), recipe.total_seconds
        check_plan(recipe.plan, settings, total_seconds=seconds, processes=args.world_size, data=data.fingerprint)


def check_contents(recipe: Recipe, args: RunArguments, data: DataFolder, channel: ControlChannel) -> None:
    """Refuse damaged files on all ranks: one process of each machine reads as much as VERIFY_SHARE of the job allows."""
    damaged, share = None, 1.0
    if args.local_process_index == 0:
        seconds = min(VERIFY_SHARE * recipe.seconds_left(0.0), channel.timeout_seconds / 2)
        try:
            share = data.verify(seconds)
        except (InputError, OSError) as error:
            damaged = str(error)
    for message in channel.gather(damaged):
        if message is not None:
            raise InputError(message)
    if share < 1 and args.process_index == 0:
        log.info("checksums: %.0f %% of the data compared, the rest would cost too much of the budget", 100 * share)


def make_model(recipe: Recipe, args: RunArguments, data: DataFolder) -> Any:
    """The model of the recipe: new from the seed, or loaded from `model_name_or_path`, before any training."""
    m = recipe.model
    if m.layer_norm_type == "apex":
        check_apex(args.device)
    new = m.model_name_or_path is None
    model = _new_model(recipe, args, data) if new else _load_model(recipe, args, data)
    check_positions(model.config, _longest_block(data), "max_position_embeddings" if new else "model_name_or_path")
    if m.layer_norm_type == "apex":
        use_apex(model)
    if recipe.data.document_mask:
        check_document_mask(model)
    if args.device.type == "cpu":
        use_few_bit_dropout(model)
    model.cross_entropy, model.sparse_last_layer = m.cross_entropy, m.sparse_last_layer
    return model


def _new_model(recipe: Recipe, args: RunArguments, data: DataFolder) -> Any:
    m = recipe.model
    return build_model(
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
        seed=args.seed,
    )


def _load_model(recipe: Recipe, args: RunArguments, data: DataFolder) -> Any:
    m = recipe.model
    path = str(m.model_name_or_path)
    try:
        model = load_pretrained(
            path,
            sparse_mask_prediction=m.sparse_mask_prediction,
            add_nsp=recipe.add_nsp,
            seed=args.seed,
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


def initialize_from_corpus(
    model: Any, recipe: Recipe, args: RunArguments, data: DataFolder, blocks: BlockDataset, channel: ControlChannel
) -> None:
    """Start a new model closer to the text: output bias at the token frequencies, heads at fixed offsets, counted embeddings.

    A resumed run takes its weights from the checkpoint instead, a continued one from `model_name_or_path`.
    """
    m = recipe.model
    if m.unigram_bias:
        set_output_bias(model, data.unigram_counts())
    if m.offset_heads is not None:
        set_offset_heads(model, parse_offsets(m.offset_heads))
    if m.embedding_init == "cooccurrence":
        size = model.get_input_embeddings().weight.shape[1]
        result = torch.zeros(data.vocab_size, size)
        if channel.rank == 0:  # the other ranks receive what the main process has counted
            result = count_embeddings(recipe, args, data, blocks, size, counted_tokens(recipe, data, blocks))
        set_embeddings(model, channel.broadcast(result).numpy(), m.embedding_init_std)


def counted_tokens(recipe: Recipe, data: DataFolder, blocks: BlockDataset) -> int:
    """How many tokens `embedding_init: cooccurrence` counts in this budget: 300 s pay for 9 million."""
    paid_for = min(COUNTED_TOKENS_PER_SECOND * recipe.total_seconds, MOST_COUNTED_TOKENS)
    return int(min(paid_for, blocks.rows * data.block_size))


def count_embeddings(
    recipe: Recipe, args: RunArguments, data: DataFolder, blocks: BlockDataset, size: int, tokens: int
) -> torch.Tensor:
    """Embeddings (vocab_size x `size`) counted over the first `tokens` tokens that training will see."""
    rows = blocks.__getitems__(range(max(1, tokens // data.block_size)))["input_ids"]
    counted = cooccurrence_embeddings(rows, data.vocab_size, size, special_ids=data.special_ids, seed=args.seed)
    return torch.from_numpy(counted)


def _longest_block(data: DataFolder) -> int:
    return max(data.block_size, int(data.manifest["validation_block_size"]))


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
    """The masking of the schedule's first stage."""
    d, train = recipe.data, data.manifest["splits"]["train"]
    first = recipe.stages(data.block_size).at(0.0)
    return MaskingCollator(
        seed=recipe.training.seed,
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


def make_evaluation(data: DataFolder) -> PinnedEvaluation:
    """The pinned evaluation on the validation blocks of `data`."""
    input_ids, token_bytes = data.validation_rows()
    return PinnedEvaluation(input_ids, token_bytes, special_ids=data.special_ids, vocab_size=data.vocab_size)


def optimizer_options(recipe: Recipe, args: RunArguments) -> dict[str, Any]:
    """The options of `build_optimizer`, checked against the device and the engine.

    The rates and the decay come from TrainingArguments, the rest from OptimizerArguments. Raises InputError where the
    engine cannot run this optimizer.
    """
    o = recipe.optimizer
    stage = zero_stage(args.deepspeed_plugin)
    check_engine(
        o.optimizer_type,
        o.optimizer_impl,
        device=args.device.type,
        zero_stage=stage,
        fsdp=engine_name(args) == "fsdp",
        max_grad_norm=args.max_grad_norm,
    )
    if o.optimizer_type == "lamb":
        check_lamb(
            o.optimizer_impl,
            bias_correction=bool(o.bias_correction),
            max_coeff=MAX_COEFF if o.max_coeff is None else o.max_coeff,
            min_coeff=MIN_COEFF if o.min_coeff is None else o.min_coeff,
        )
    own = {name: value for name, value in vars(o).items() if name != "optimizer_type"}
    return {**{name: getattr(args, name) for name in ADAM_FLAGS}, **own, "zero_stage": stage}


def let_zero_keep_optimizer(recipe: Recipe, args: RunArguments) -> None:
    """Tell DeepSpeed to step the optimizer that we build: Muon, and torch's own where its CPU Adam is not compiled."""
    stage = zero_stage(args.deepspeed_plugin)
    not_built = bool(stage) and needs_cpu_adam_built(args.deepspeed_plugin)
    if not_built and args.process_index == 0:
        log.info(
            "offloading: torch's own optimizer, DeepSpeed's CPU Adam is not built (DS_BUILD_CPU_ADAM=1 pip install)"
        )
    if not_built or (stage and recipe.optimizer.optimizer_type == "muon"):
        keep_optimizer(args.deepspeed_plugin, recipe.optimizer.optimizer_type)


def run_identity(model: Any, data: DataFolder, recipe: Recipe, args: RunArguments) -> dict[str, Any]:
    """What must stay the same over all jobs of a run: model, data, order, optimizer, batch. Checkpoints carry it."""
    config = model.config.to_dict()
    skip = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "use_cache"}
    own = {f"model.{key}": value for key, value in json.loads(json.dumps(config)).items() if key not in skip}
    return {
        "data": data.fingerprint,
        "seed": args.seed,
        "optimizer_type": recipe.optimizer.optimizer_type,
        "add_nsp": recipe.add_nsp,
        "global_batch_size": global_batch_size(args),
        **own,
    }
