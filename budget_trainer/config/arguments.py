"""Every flag of train_mlm.py: the paper's names for budget things, Hugging Face's for its own.

Flags of TrainingArguments that would go unread here, or undo a promise, with what to do instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from budget_trainer.core.errors import InputError


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
    twin_probability: float = _flag(
        0.0, "Share of the blocks that hold a passage twice: teaches to compare texts, for tasks on sentence pairs."
    )
    document_mask: bool = _flag(False, "No attention across the documents of a block (packing packed).")


@dataclass
class OptimizerArguments:
    """The optimizer; learning_rate, weight_decay and adam_* are TrainingArguments'."""

    optimizer_type: str = _flag("adamw", "adam, adamw, adafactor, lamb or muon.")
    optimizer_impl: str = _flag(
        "auto",
        "auto: plain PyTorch, fused where the device can, and DeepSpeed's muon under ZeRO; torch: never DeepSpeed's; "
        "apex (adam, adamw, lamb) or deepspeed (lamb): their kernels, on an NVIDIA GPU.",
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
    lr_schedule: str = _flag("time", "time, step, or constant_step: step with num_warmup_steps of warmup.")
    curve: str = _flag(
        "linear", "linear, exp, cosine, constant, inverse_sqrt, one_cycle (with warmup_proportion 0) or wsd."
    )
    warmup_proportion: float = _flag(0.06, "Share of the schedule to warm up in.")
    num_warmup_steps: int = _flag(1000, "Warmup of constant_step, in steps.")
    decay_rate: float | None = _flag(None, "exp: multiply by this (0.01) ...")
    decay_step: float | None = _flag(None, "exp: ... once every this share of the schedule (1.0), or this many steps.")
    decay_proportion: float | None = _flag(None, "wsd: share of the schedule to decay in (0.4).")
    decay_shape: str | None = _flag(None, "wsd: sqrt (1 - sqrt) or linear.")
    finetune_time_markers: str | None = _flag(None, "Shares of the budget at which to keep the model, as 0.5,0.9.")
    finetune_checkpoint_at_end: bool = _flag(True, "Write final/ at the end.")
    checkpoint_every: str | None = _flag(None, "Training checkpoint each time this much of the budget is used.")
    num_epochs_between_checkpoints: int | None = _flag(None, "... or after this many shards per process; -1: never.")
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
    plan: str | None = _flag(
        None, "What budget_trainer.plan predicted (--json FILE): the report sets it beside the run."
    )


@dataclass
class WatchArguments:
    """Validation during training, and what is done when the loss goes wrong."""

    validate_every: str | None = _flag(None, "Validate each time this share of the budget is used, as 10%%.")
    validation_epochs: int | None = _flag(
        None, "Or: validate after this many shards per process (10), and more often at the begin and the end ..."
    )
    validation_epochs_begin: int | None = _flag(None, "... every this many (1) ...")
    validation_begin_proportion: float | None = _flag(None, "... in the first this share of the budget (0.1) ...")
    validation_epochs_end: int | None = _flag(None, "... and every this many (1) ...")
    validation_end_proportion: float | None = _flag(None, "... in the last this share of the budget (0.1).")
    early_stop_time: str | None = _flag(None, "End the run where after this much of the budget (bare: minutes) ...")
    early_stop_eval_loss: float | None = _flag(None, "... a validation loss is above this.")
    max_bad_steps: int = _flag(
        3, "Steps in a row with a loss or gradient that is not finite (they have no effect): then a roll-back."
    )
    max_roll_backs: int = _flag(3, "Returns to the last checkpoint before the run ends with an error.")
    roll_back_lr_factor: float = _flag(0.5, "Each return multiplies the learning rates by this.")
    scale_cnt_limit: int = _flag(100, "fp16: end after this many steps at the lowest loss scale.")
    loss_spike: float = _flag(1.0, "Report a logged loss this many nats above the lines before.")


@dataclass
class CardArguments:
    """What the model card cannot know by itself. The Hub's flags (push_to_hub, hub_*) are TrainingArguments'."""

    license: str | None = _flag(None, "Of the weights, as apache-2.0; None: the card says that it is unknown.")
    language: str | None = _flag(None, "Of the text, as en or en,de.")


def launched_on_cpu() -> bool:
    """Whether a CPU profile launched this process, or the machine has nothing else.

    A profile speaks through this variable, but Accelerate does not listen to it with several processes: without
    `use_cpu` each of them would train alone.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()


@dataclass
class RunArguments(TrainingArguments):
    """Hugging Face's TrainingArguments with the defaults of this project."""

    per_device_train_batch_size: int = _flag(32, "Micro-batch per process.")
    learning_rate: float = _flag(1e-3, "Peak learning rate.")
    weight_decay: float = _flag(0.01, "Weight decay (decoupled but for adam).")
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
        if launched_on_cpu():
            self.use_cpu = True
        if self.fp16 and self.use_cpu:
            raise InputError("fp16: True needs a GPU; use --bf16 true, which a CPU can, or neither")
        if self.dataloader_num_workers < 0:
            self.dataloader_num_workers = 0 if self.use_cpu else 2
        if self.accelerator_config is None and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # copies to the device do not stop the host
        if self.output_dir is None:
            raise InputError("output_dir: missing; add --output_dir with a folder for this run")
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            # TrainingArguments hands its ddp_timeout to accelerators only: on a CPU a lost peer would be waited for 30 min.
            dist.init_process_group("gloo", timeout=timedelta(seconds=self.ddp_timeout))
        super().__post_init__()


ADAM_FLAGS = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")  # TrainingArguments' own
GROUPS = (
    ModelArguments,
    DataArguments,
    OptimizerArguments,
    BudgetArguments,
    WatchArguments,
    CardArguments,
    RunArguments,
)


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
    "do_predict": "try final/ with python -m budget_trainer.fill_mask",
    "remove_unused_columns": _LEAVE,
    "dataloader_drop_last": "every batch is whole; " + _LEAVE,
    "hub_token": "log in with `hf auth login` or set HF_TOKEN: launchers print the command line of a run that fails",
    "hub_always_push": "pushes run beside the training and never wait for each other; " + _LEAVE,
    "hub_revision": "the finished model is main, time-marked ones are branches of their names; " + _LEAVE,
}
