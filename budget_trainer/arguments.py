"""Every flag of train_mlm.py: the paper's names for budget things, Hugging Face's for its own."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from budget_trainer.clock import parse_duration
from budget_trainer.curves import make_curve
from budget_trainer.errors import InputError
from budget_trainer.model_types import check_pair_type, resolve_model_type
from budget_trainer.optimizer_checks import check_options
from budget_trainer.stages import Stages, make_stages


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """The architecture; every type saves a native Transformers checkpoint."""

    model_type: str = _flag(
        "bert-mlm", "bert-mlm (the paper's pre-LN BERT, saved as megatron-bert), bert, modernbert, ..."
    )
    model_name_or_path: str | None = _flag(None, "Continue from these weights instead of training from scratch.")
    encoder_ln_mode: str | None = _flag(None, "pre-ln or post-ln; None is the model type's own (bert-mlm: pre-ln).")
    layernorm_embedding: bool | None = _flag(None, "A norm behind the embeddings; None is the model type's own.")
    layer_norm_type: str | None = _flag(
        None, "pytorch, apex (NVIDIA's fused kernel, on a GPU) or rms_norm; None is the model type's own."
    )
    add_nsp: bool = _flag(False, "Next-sentence prediction too, on data of sentence pairs (bert, megatron-bert).")
    hidden_size: int = _flag(1024, "Width.")
    num_hidden_layers: int = _flag(24, "Depth.")
    num_attention_heads: int = _flag(16, "Attention heads; they divide hidden_size.")
    intermediate_size: int = _flag(4096, "Width inside of the feed-forward blocks.")
    hidden_act: str | None = _flag(None, "Activation; None is the model type's own.")
    hidden_dropout_prob: float = _flag(0.1, "Dropout of the hidden states.")
    attention_probs_dropout_prob: float = _flag(0.1, "Dropout of the attention weights.")
    max_position_embeddings: int = _flag(512, "Longest input in tokens.")
    type_vocab_size: int | None = _flag(None, "Token types; None is the model type's own.")
    initializer_range: float = _flag(0.02, "Standard deviation of the initial weights.")
    model_config: str | None = _flag(None, "More keys of the native config, as JSON (in a recipe: a mapping).")
    sparse_mask_prediction: bool = _flag(True, "Project only masked positions onto the vocabulary.")
    sparse_last_layer: bool = _flag(True, "Compute the last layer at masked positions only, where the type allows.")
    cross_entropy: str = _flag("chunked", "chunked: never holds all logits at once; full: one tensor of logits.")
    embedding_init: str = _flag("normal", "normal, or cooccurrence: from the corpus, paid for out of the budget.")
    embedding_init_std: float = _flag(0.03, "cooccurrence: standard deviation of the embeddings.")
    offset_heads: str | None = _flag(
        None, "Relative positions that the first layer's heads attend to at first, as -1,1,-2,2."
    )
    unigram_bias: bool = _flag(True, "Start the output bias at the log frequencies of the tokens.")


@dataclass
class DataArguments:
    """The corpus, as data_prep wrote it, and the masking."""

    data_dir: str | None = _flag(None, "Folder made by `python -m data_prep.blocks`.")
    mlm_probability: float = _flag(0.15, "Share of the tokens to predict.")
    mask_replace_prob: float = _flag(0.8, "Share of these shown as [MASK].")
    random_replace_prob: float = _flag(0.1, "Share of these shown as a random token; the rest stays.")
    max_predictions_per_seq: int | None = _flag(None, "Prediction slots per block; None: what mlm_probability needs.")
    dup_factor: int | None = _flag(None, "This many fixed maskings of each block; None: fresh masks in every epoch.")
    whole_word_mask: bool = _flag(False, "Mask whole words: all tokens of a word or none.")
    document_mask: bool = _flag(False, "No attention across the documents of a block (packing packed).")


@dataclass
class OptimizerArguments:
    """The optimizer; learning_rate, weight_decay and adam_* are TrainingArguments'."""

    optimizer_type: str = _flag("adamw", "adam, adamw, adafactor, lamb or muon.")
    optimizer_impl: str = _flag(
        "auto",
        "auto and torch: torch's, fused where the device can; apex or deepspeed: their kernels, on an NVIDIA GPU.",
    )
    muon_learning_rate: float | None = _flag(None, "Muon's own rate for hidden matrices; None: learning_rate.")
    muon_momentum: float = _flag(0.95, "Muon's momentum.")
    muon_weight_decay: float | None = _flag(None, "Muon's own weight decay; None: weight_decay.")
    embedding_learning_rate: float | None = _flag(None, "Own rate of the embeddings; None: learning_rate.")
    bias_correction: bool | None = _flag(None, "lamb: correct the moments for their start at zero; None: false.")
    max_coeff: float | None = _flag(None, "lamb: upper bound of the trust ratio (0.3).")
    min_coeff: float | None = _flag(None, "lamb: lower bound of the trust ratio (0.01).")


@dataclass
class BudgetArguments:
    """Time: what may be used, the learning-rate curve over it, what is saved when. Durations: 24h, 90m, 1h30m, 45s."""

    total_training_time: str | None = _flag(
        None, "The budget over all jobs, final model included; a bare number is hours."
    )
    early_exit_time_marker: str | None = _flag(None, "Finish here, on the curve of total_training_time; bare: hours.")
    job_time_limit: str | None = _flag(None, "End this job in time with a checkpoint for the next one to go on.")
    lr_schedule: str = _flag("time", "time, step, or constant_step (num_warmup_steps of warmup).")
    curve: str = _flag("linear", "linear, exp, cosine, constant, inverse_sqrt, one_cycle or wsd.")
    warmup_proportion: float = _flag(0.06, "Share of the schedule to warm up in.")
    num_warmup_steps: int = _flag(1000, "Warmup of constant_step, in steps.")
    decay_rate: float | None = _flag(None, "exp: multiply by this (0.01) ...")
    decay_step: float | None = _flag(None, "exp: ... once every this share of the schedule (1.0), or this many steps.")
    decay_proportion: float | None = _flag(None, "wsd: share of the schedule to decay in (0.4).")
    decay_shape: str | None = _flag(None, "wsd: sqrt (1 - sqrt) or linear.")
    finetune_time_markers: str | None = _flag(None, "Shares of the budget at which to keep the model, as 0.5,0.9.")
    finetune_checkpoint_at_end: bool = _flag(True, "Write final/ at the end.")
    checkpoint_every: str | None = _flag(None, "Training checkpoint each time this much of the budget is used.")
    num_epochs_between_checkpoints: int | None = _flag(None, "... or after this many shards per process.")
    mlm_probability_curve: str | None = _flag(
        None,
        "Masking rate in at most 4 stages of the schedule, value@share: 0.3@0,0.15@0.6; replaces mlm_probability.",
    )
    batch_size_curve: str | None = _flag(None, "Share of gradient_accumulation_steps in stages: 0.25@0,0.5@0.1,1@0.3.")
    sequence_length_curve: str | None = _flag(
        None, "Share of the block length in stages: 0.25@0,1@0.2 cuts each block into 4 parts at first."
    )
    auto_speed: bool = _flag(
        False,
        "Measure whether bf16 and torch_compile, where asked for, pay in this budget; else they are switched off.",
    )
    regional_compile: bool = _flag(False, "torch_compile layer by layer: a fraction of the compile time.")
    validate_every: str | None = _flag(None, "Validate each time this share of the budget is used, as 10%%.")


@dataclass
class RunArguments(TrainingArguments):
    """Hugging Face's TrainingArguments with the defaults of this project."""

    per_device_train_batch_size: int = _flag(32, "Micro-batch per process.")
    learning_rate: float = _flag(1e-3, "Peak learning rate.")
    weight_decay: float = _flag(0.01, "Decoupled weight decay.")
    adam_beta2: float = _flag(0.98, "Second-moment decay.")
    adam_epsilon: float = _flag(1e-6, "Adam's epsilon.")
    max_grad_norm: float = _flag(1.0, "Gradient clipping; 0 switches it off.")
    logging_steps: float = _flag(20, "Steps between log lines.")
    logging_first_step: bool = _flag(True, "A line for the first step: a short run has something to show.")
    logging_nan_inf_filter: bool = _flag(False, "Left off: it waits for the device at every micro-step and hides NaN.")
    save_strategy: str = _flag("no", "Left alone: checkpoint_every says when to save.")
    save_total_limit: int | None = _flag(2, "Newest training checkpoints to keep.")
    ignore_data_skip: bool = _flag(True, "Left on: the sampler knows its position.")
    ddp_find_unused_parameters: bool | None = _flag(False, "Left off: every parameter is used.")
    dataloader_num_workers: int = _flag(-1, "Loader processes; -1: 2 beside an accelerator, 0 where the CPU trains.")
    remove_unused_columns: bool = _flag(False, "Left off: the collator takes whole batches.")
    report_to: str | None = _flag("tensorboard", "Trackers: tensorboard, wandb, ..., or none.")
    seed: int = _flag(42, "Seed of weights, order, masks and dropout.")

    def __post_init__(self) -> None:
        # A CPU profile speaks through this variable, but not with several processes; without the flag here each of
        # them would train alone.
        asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        if asked or not torch.accelerator.is_available():
            self.use_cpu = True
        if self.fp16 and self.use_cpu:
            raise InputError("fp16: True needs a GPU; use --bf16 true, which a CPU can, or neither")
        if self.dataloader_num_workers < 0:
            self.dataloader_num_workers = 0 if self.use_cpu else 2
        if self.accelerator_config is None and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # copies to the device do not stop the host
        if self.output_dir is None:
            raise InputError("output_dir: missing; add --output_dir with a folder for this run")
        super().__post_init__()


ADAM_FLAGS = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")  # TrainingArguments' own
GROUPS = (ModelArguments, DataArguments, OptimizerArguments, BudgetArguments, RunArguments)

# Flags of TrainingArguments that would go unread here, or undo a promise, with what to do instead.
_VALIDATION = "the pinned evaluation is the same in every run; use validate_every to say when"
_LEAVE = "leave it out"
REPLACED = {
    "num_train_epochs": "use total_training_time or max_steps",
    "lr_scheduler_type": "use curve",
    "lr_scheduler_kwargs": "use curve and its decay_* flags",
    "warmup_ratio": "use warmup_proportion",
    "warmup_steps": "use warmup_proportion, or num_warmup_steps with lr_schedule constant_step",
    "optim": "use optimizer_type",
    "optim_args": "use optimizer_type and its flags",
    "optim_target_modules": "use optimizer_type and its flags",
    "save_strategy": "use checkpoint_every",
    "save_steps": "use checkpoint_every",
    "save_on_each_node": _LEAVE,
    "save_only_model": "a checkpoint is for going on and holds everything; use finetune_time_markers to keep models",
    "eval_strategy": "use validate_every",
    "eval_steps": "use validate_every",
    "eval_delay": "use validate_every",
    "eval_on_start": "use validate_every",
    "per_device_eval_batch_size": _VALIDATION,
    "eval_accumulation_steps": _VALIDATION,
    "prediction_loss_only": _VALIDATION,
    "batch_eval_metrics": _VALIDATION,
    "include_for_metrics": _VALIDATION,
    "eval_do_concat_batches": _VALIDATION,
    "eval_use_gather_object": _VALIDATION,
    "fp16_full_eval": _VALIDATION,
    "bf16_full_eval": _VALIDATION,
    "label_names": _LEAVE,
    "length_column_name": _LEAVE,
    "metric_for_best_model": "the last model is the best at the end of its schedule; " + _LEAVE,
    "greater_is_better": "the last model is the best at the end of its schedule; " + _LEAVE,
    "load_best_model_at_end": "the last model is the best at the end of its schedule; " + _LEAVE,
    "auto_find_batch_size": "use per_device_train_batch_size",
    "group_by_length": "blocks have one length; " + _LEAVE,
    "train_sampling_strategy": "the order is a function of seed and sample; " + _LEAVE,
    "data_seed": "use seed",
    "label_smoothing_factor": _LEAVE,
    "neftune_noise_alpha": _LEAVE,
    "enable_jit_checkpoint": "SIGTERM, SIGINT and SIGUSR1 leave a checkpoint already; see job_time_limit",
    "ignore_data_skip": "the sampler knows its position; " + _LEAVE,
    "restore_callback_states_from_checkpoint": _LEAVE,
    "do_train": "train_mlm.py trains; " + _LEAVE,
    "do_eval": "use validate_every",
    "do_predict": "use finetune_glue.py",
    "remove_unused_columns": _LEAVE,
    "dataloader_drop_last": "every batch is whole; " + _LEAVE,
    "push_to_hub": "upload final/ with `hf upload` when the run is over",
    "hub_model_id": "upload final/ with `hf upload` when the run is over",
    "hub_strategy": "upload final/ with `hf upload` when the run is over",
    "hub_token": "upload final/ with `hf upload` when the run is over",
    "hub_private_repo": "upload final/ with `hf upload` when the run is over",
    "hub_always_push": "upload final/ with `hf upload` when the run is over",
    "hub_revision": "upload final/ with `hf upload` when the run is over",
}


@dataclass
class Recipe:
    """All arguments of a run, checked against each other. Limits in seconds are infinite where there is none."""

    model: ModelArguments
    data: DataArguments
    optimizer: OptimizerArguments
    budget: BudgetArguments
    run: RunArguments
    path: str | None = None
    explicit: frozenset[str] = frozenset()  # flags that the recipe or the command line named

    def __post_init__(self) -> None:
        b = self.budget
        self.total_seconds = _limit(b.total_training_time, "total_training_time", "h")
        self.early_exit_seconds = _limit(b.early_exit_time_marker, "early_exit_time_marker", "h")
        self.job_limit_seconds = _limit(b.job_time_limit, "job_time_limit")
        self.checkpoint_seconds = _limit(b.checkpoint_every, "checkpoint_every")
        self.validate_share = parse_share(b.validate_every, "validate_every") if b.validate_every else None
        self.markers = parse_markers(b.finetune_time_markers)
        self.max_steps = self.run.max_steps if self.run.max_steps > 0 else None
        if self.data.data_dir is None:
            raise InputError("data_dir: missing; add --data_dir with a folder made by `python -m data_prep.blocks`")
        self.data_dir, self.output_dir = Path(self.data.data_dir), Path(str(self.run.output_dir))
        self._check()

    @property
    def model_type(self) -> str:
        """The native type that `model_type` and the original's words for the layout choose."""
        m = self.model
        return resolve_model_type(m.model_type, m.encoder_ln_mode, m.layernorm_embedding, m.layer_norm_type)

    @property
    def add_nsp(self) -> bool:
        """Whether next-sentence prediction is trained; the original also said it by the model type."""
        return self.model.add_nsp or self.model.model_type == "bert-mlm-nsp"

    def seconds_left(self, used: float) -> float:
        """Seconds that this job can train in at most, after `used` seconds of the run."""
        return min(min(self.total_seconds, self.early_exit_seconds) - used, self.job_limit_seconds)

    def _check(self) -> None:
        self._check_numbers()
        self._check_continued()
        self._check_model_type()
        if self.budget.lr_schedule not in ("time", "step", "constant_step"):
            raise InputError(
                f"lr_schedule: {self.budget.lr_schedule!r} is unknown; choose time, step or constant_step"
            )
        if self.budget.lr_schedule == "time" and math.isinf(self.total_seconds):
            raise InputError(
                "total_training_time: missing, and lr_schedule time needs it; add --total_training_time 24h"
            )
        if self.budget.lr_schedule != "time" and self.max_steps is None:
            raise InputError(
                f"max_steps: missing, and lr_schedule {self.budget.lr_schedule} needs it; add --max_steps 23000"
            )
        if not math.isinf(self.early_exit_seconds) and self.early_exit_seconds > self.total_seconds:
            raise InputError(
                f"early_exit_time_marker: {self.budget.early_exit_time_marker} is beyond total_training_time "
                f"{self.budget.total_training_time}; lower it or leave it out"
            )
        if math.isinf(self.total_seconds) and (self.markers or self.validate_share):
            name = "finetune_time_markers" if self.markers else "validate_every"
            raise InputError(f"{name}: a share of the budget, and there is none; add --total_training_time 24h")
        adam = {name: getattr(self.run, name) for name in ADAM_FLAGS}
        own = {name: value for name, value in vars(self.optimizer).items() if not isinstance(value, str)}
        check_options(self.optimizer.optimizer_type, **adam, **own)
        if {"mlm_probability", "mlm_probability_curve"} <= self.explicit and self.budget.mlm_probability_curve:
            raise InputError(
                f"mlm_probability: {self.data.mlm_probability} beside mlm_probability_curve "
                f"{self.budget.mlm_probability_curve}, which says it all; leave one of them out"
            )
        if self.model.cross_entropy not in ("chunked", "full"):
            raise InputError(f"cross_entropy: {self.model.cross_entropy!r} is unknown; choose chunked or full")
        schedule = self.schedule()
        make_curve(schedule["curve"], schedule["warmup_proportion"], **schedule["curve_options"])

    def _check_numbers(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self.run, name) < 1:
                raise InputError(f"{name}: {getattr(self.run, name)} is below 1; give a whole number from 1 on")
        epochs = self.budget.num_epochs_between_checkpoints
        if epochs is not None and epochs < 1 and epochs != -1:
            raise InputError(f"num_epochs_between_checkpoints: {epochs} is below 1; give 1 or more, or -1 for never")
        if self.model.embedding_init not in ("normal", "cooccurrence"):
            name = self.model.embedding_init
            raise InputError(f"embedding_init: {name!r} is unknown; choose normal or cooccurrence")
        if self.budget.num_warmup_steps < 0:
            raise InputError(f"num_warmup_steps: {self.budget.num_warmup_steps} is below 0; give 0 or more")

    def stages(self, block_size: int) -> Stages:
        """What changes along the schedule, for blocks of `block_size` tokens."""
        b = self.budget
        return make_stages(
            mlm_probability=self.data.mlm_probability,
            gradient_accumulation_steps=self.run.gradient_accumulation_steps,
            block_size=block_size,
            mlm_probability_curve=b.mlm_probability_curve,
            batch_size_curve=b.batch_size_curve,
            sequence_length_curve=b.sequence_length_curve,
        )

    def _check_continued(self) -> None:
        """A checkpoint brings its architecture: flags that would be ignored beside it are refused."""
        if self.model.model_name_or_path is None:
            return
        heeded = {
            "model_name_or_path",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "sparse_mask_prediction",
            "sparse_last_layer",
            "cross_entropy",
            "add_nsp",
        }
        if self.model.layer_norm_type != "rms_norm":  # only another kernel on the same weights
            heeded.add("layer_norm_type")
        for name in sorted(self.explicit & {f.name for f in fields(ModelArguments)} - heeded):
            raise InputError(
                f"{name}: cannot be set beside model_name_or_path {self.model.model_name_or_path}, which brings its own; "
                "leave one of them out"
            )

    def _check_model_type(self) -> None:
        model_type = self.model_type
        if self.model.model_type == "bert-mlm-nsp" and "add_nsp" in self.explicit and not self.model.add_nsp:
            raise InputError("add_nsp: false contradicts model_type bert-mlm-nsp; use model_type bert-mlm")
        if self.add_nsp and self.model.model_name_or_path is None:
            check_pair_type(model_type)

    def schedule(self) -> dict[str, Any]:
        """`schedule`, `curve`, `warmup_proportion` and `curve_options` as TimeScheduleMixin takes them."""
        b = self.budget
        warmup = b.warmup_proportion
        if b.lr_schedule == "constant_step":
            assert self.max_steps is not None
            if b.num_warmup_steps >= self.max_steps:
                raise InputError(
                    f"num_warmup_steps: {b.num_warmup_steps} is not below max_steps {self.max_steps}; lower it"
                )
            warmup = b.num_warmup_steps / self.max_steps
        options: dict[str, Any] = {
            name: getattr(b, name)
            for name in ("decay_rate", "decay_step", "decay_proportion", "decay_shape")
            if getattr(b, name) is not None
        }
        owner = {"decay_rate": "exp", "decay_step": "exp", "decay_proportion": "wsd", "decay_shape": "wsd"}
        for name, value in options.items():
            if owner[name] != b.curve:
                raise InputError(f"{name}: {value!r} belongs to curve {owner[name]}, not {b.curve}; leave one out")
        if options.get("decay_step", 0) > 1:
            if self.max_steps is None:
                raise InputError(
                    f"decay_step: {b.decay_step:g} counts steps, and time has none; give a share such as 0.1"
                )
            options["decay_step"] = options["decay_step"] / self.max_steps
        kind = "time" if b.lr_schedule == "time" else "step"
        return {"schedule": kind, "curve": b.curve, "warmup_proportion": warmup, "curve_options": options}

    def as_dict(self) -> dict[str, Any]:
        """Every flag with its value, for the report and the card; secrets left out."""
        everything: dict[str, Any] = {}
        for group in (self.model, self.data, self.optimizer, self.budget, self.run):
            own = group.to_dict() if isinstance(group, TrainingArguments) else vars(group)
            everything |= {f.name: own[f.name] for f in fields(group) if f.name in own and "token" not in f.name}
        return {"recipe": self.path, **everything}


def _limit(value: str | None, name: str, bare_unit: str | None = None) -> float:
    return math.inf if value is None else parse_duration(value, name, bare_unit)


def parse_share(value: str, name: str) -> float:
    """A share of the budget in (0, 1]: `10%` or `0.1`."""
    text = value.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise InputError(f"{name}: {value!r} is not a share of the budget; write it as 10% or 0.1")
    return share


def parse_markers(value: str | None) -> list[float]:
    """`0.5,0.9` as rising shares in (0, 1)."""
    if value is None:
        return []
    shares = [parse_share(part, "finetune_time_markers") for part in value.split(",")]
    if any(share >= 1 for share in shares) or len(set(shares)) < len(shares):
        raise InputError(f"finetune_time_markers: {value!r} are not different shares below 1; write them as 0.5,0.9")
    return sorted(shares)


def parse_offsets(value: str) -> list[int]:
    """`-1,1,-2,2` as whole numbers."""
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise InputError(f"offset_heads: {value!r} are not relative positions; write them as -1,1,-2,2") from None
