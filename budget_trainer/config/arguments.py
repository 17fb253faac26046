"""Every flag of train_mlm.py: the paper's names for budget things, Hugging Face's for its own.

All that is known of a flag stands here, in its field (`parser.Flag` says what there is): a new flag is a field, and the code
that reads it. Last: the flags of TrainingArguments that would go unread here, or undo a promise, with what to do instead.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from budget_trainer.budget.curves import CURVES
from budget_trainer.config.parser import FlagParser, flag
from budget_trainer.core.errors import InputError
from budget_trainer.model.engine_optimizers import IMPLEMENTATIONS
from budget_trainer.model.optimizers import OPTIMIZERS

# Topics of the help, in its order.
BUDGET, DATA, MODEL, MASKING = "Budget", "Data and output", "Model", "Masking objective"
SCHEDULE, PRECISION = "Optimizer and schedule", "Speed and precision"
WATCH, GUARD = "Validation, logging and saving", "When the loss goes wrong"
DISTRIBUTED, HUB = "Distributed", "Hub"
TOPICS = (BUDGET, DATA, MODEL, MASKING, SCHEDULE, PRECISION, WATCH, GUARD, DISTRIBUTED, HUB)

_budget, _data, _schedule, _guard = (partial(flag, topic=topic) for topic in (BUDGET, DATA, SCHEDULE, GUARD))
# Most flags of these change how many tokens a budget buys.
_model, _masking, _precision, _watch = (
    partial(flag, topic=topic, speed=True) for topic in (MODEL, MASKING, PRECISION, WATCH)
)
_SHARE: dict[str, Any] = {"unit": "SHARE", "min": 0, "max": 1}
_BELOW_1: dict[str, Any] = {"unit": "SHARE", "min": 0, "below": 1}


@dataclass(frozen=True)
class ModelArguments:
    """The architecture; every type saves a native Transformers checkpoint."""

    model_type: str = _model("bert-mlm", "bert-mlm (the paper's, saved as megatron-bert), bert, ...", unit="NAME")
    model_name_or_path: str | None = _model(None, "Continue from these weights, not from scratch.", unit="DIR")
    encoder_ln_mode: str | None = _model(
        None, "pre-ln or post-ln; None is the model type's own (bert-mlm: pre-ln).", choices=("pre-ln", "post-ln")
    )
    layernorm_embedding: bool | None = _model(None, "A norm behind the embeddings; None is the model type's own.")
    layer_norm_type: str | None = _model(
        None,
        "pytorch, apex (NVIDIA's) or rms_norm; None: the type's own.",
        choices=("pytorch", "apex", "rms_norm"),
    )
    add_nsp: bool = _masking(False, "Next-sentence prediction too, on data of sentence pairs (bert, megatron-bert).")
    hidden_size: int = _model(1024, "Width.", min=1)
    num_hidden_layers: int = _model(24, "Depth.", min=1)
    num_attention_heads: int = _model(16, "Attention heads; they divide hidden_size.", min=1)
    intermediate_size: int = _model(4096, "Width inside of the feed-forward blocks.", min=1)
    hidden_act: str | None = _model(None, "Activation; None is the model type's own.", unit="NAME")
    hidden_dropout_prob: float = _model(0.1, "Dropout of the hidden states.", **_SHARE)
    attention_probs_dropout_prob: float = _model(0.1, "Dropout of the attention weights.", **_SHARE)
    max_position_embeddings: int = _model(512, "Longest input in tokens.", unit="TOKENS", min=1)
    type_vocab_size: int | None = _model(None, "Token types; None is the model type's own.", min=1, speed=False)
    initializer_range: float = _model(0.02, "Standard deviation of the initial weights.", min=0, speed=False)
    model_config: str | None = _model(None, "More keys of the native config, as JSON or a mapping.", unit="JSON")
    sparse_mask_prediction: bool = _precision(True, "Project only masked positions onto the vocabulary.")
    sparse_last_layer: bool = _precision(True, "Compute the last layer at masked positions only, where it can.")
    cross_entropy: str = _precision(
        "chunked",
        "chunked: never holds all logits at once; full: one tensor of logits; sampled: trains on a part of the vocabulary.",
        choices=("chunked", "full", "sampled"),
    )
    softmax_samples: int = _precision(2048, "sampled: tokens in each sample of the vocabulary.", unit="TOKENS", min=1)
    detection_weight: float = _model(
        0.0,
        "Weight of the question which tokens were replaced, beside the masked loss; it falls to 0; with twin_probability.",
        min=0,
    )
    embedding_init: str = _model(
        "normal",
        "normal, or cooccurrence: counted in the corpus, in the budget.",
        choices=("normal", "cooccurrence"),
    )
    embedding_init_std: float = _model(0.03, "cooccurrence: standard deviation of the embeddings.", min=0, speed=False)
    offset_heads: str | None = _model(
        None, "Relative positions that the first layer's heads begin with, as -1,1,-2,2.", unit="TOKENS", speed=False
    )
    final_weight_rms: float | None = _model(
        None,
        "Root mean square of matrices and embeddings in saved models (same function; 0.02 suits ordinary fine-tuning rates).",
        above=0,
        speed=False,
    )
    unigram_bias: bool = _model(True, "Start the output bias at the log frequencies of the tokens.", speed=False)


@dataclass(frozen=True)
class DataArguments:
    """The corpus, as data_prep wrote it, and the masking."""

    data_dir: str | None = _data(None, "Folder made by `python -m data_prep.blocks`.", unit="DIR")
    mlm_probability: float = _masking(0.15, "Share of the tokens to predict.", unit="SHARE", above=0, max=1)
    mask_replace_prob: float = _masking(0.8, "Share of these shown as [MASK].", **_SHARE, speed=False)
    random_replace_prob: float = _masking(0.1, "Share of these shown as a random token.", **_SHARE, speed=False)
    max_predictions_per_seq: int | None = _masking(
        None, "Prediction slots per block; None: what mlm_probability needs.", unit="TOKENS", min=1
    )
    dup_factor: int | None = _masking(
        None, "This many fixed maskings of each block; None: fresh masks in every epoch.", min=1, speed=False
    )
    whole_word_mask: bool = _masking(False, "Mask whole words: all tokens of a word or none.")
    twin_probability: float = _masking(
        0.0, "Share of the blocks that hold a passage twice: for tasks that compare two texts.", **_SHARE
    )
    document_mask: bool = _masking(False, "No attention across the documents of a block (packing packed).")


@dataclass(frozen=True)
class OptimizerArguments:
    """The optimizer; learning_rate, weight_decay and adam_* are TrainingArguments'."""

    optimizer_type: str = _schedule("adamw", "adam, adamw, adafactor, lamb or muon.", choices=OPTIMIZERS, speed=True)
    optimizer_impl: str = _schedule(
        "auto",
        "auto: PyTorch's, and DeepSpeed's muon under ZeRO; torch: never DeepSpeed's; apex, deepspeed: their GPU kernels.",
        choices=IMPLEMENTATIONS,
        speed=True,
    )
    muon_learning_rate: float | None = _schedule(None, "Muon's rate; None: learning_rate.", unit="RATE", min=0)
    muon_momentum: float = _schedule(0.95, "Muon's momentum.", **_BELOW_1)
    muon_weight_decay: float | None = _schedule(None, "Muon's own weight decay; None: weight_decay.", min=0)
    embedding_learning_rate: float | None = _schedule(
        None, "Of the embeddings; None: learning_rate.", unit="RATE", min=0
    )
    bias_correction: bool | None = _schedule(None, "lamb: correct the moments for their start at zero; None: false.")
    max_coeff: float | None = _schedule(
        None, "lamb: upper bound of the trust ratio (0.3).", min=0, special={math.inf: "none"}
    )
    min_coeff: float | None = _schedule(None, "lamb: lower bound of the trust ratio (0.01).", min=0)


@dataclass(frozen=True)
class BudgetArguments:
    """Time: what may be used, the learning-rate curve over it, what is saved when. Durations: 24h, 90m, 1h30m, 45s."""

    total_training_time: str | None = _budget(
        None, "The budget over all jobs, final model included; a bare number is hours.", unit="TIME", bare="h"
    )
    deadline: str | None = _budget(
        None,
        "When the final model has to be on disk, as 2026-12-24T08:00+01:00; beside total_training_time the earlier counts.",
        unit="MOMENT",
    )
    early_exit_time_marker: str | None = _budget(
        None, "Finish here, on total_training_time's curve; a bare number is hours.", unit="TIME", bare="h", speed=True
    )
    job_time_limit: str | None = _budget(None, "End this job in time, with a checkpoint for the next.", unit="TIME")
    lr_schedule: str = _schedule(
        "time", "constant_step: step with num_warmup_steps.", choices=("time", "step", "constant_step"), speed=True
    )
    curve: str = _schedule(
        "linear", "What the rate follows; one_cycle goes with warmup_proportion 0.", choices=tuple(CURVES), speed=True
    )
    warmup_proportion: float = _schedule(0.06, "Share of the schedule to warm up in.", **_BELOW_1, speed=True)
    num_warmup_steps: int = _schedule(1000, "Warmup of constant_step, in steps.", unit="STEPS", min=0)
    decay_rate: float | None = _schedule(None, "exp: multiply by this (0.01) ...", unit="SHARE", above=0)
    decay_step: float | None = _schedule(
        None, "exp: ... once every this share of the schedule (1.0), or this many steps.", unit="SHARE|STEPS", above=0
    )
    decay_proportion: float | None = _schedule(
        None, "wsd: share of the schedule to decay in (0.4).", unit="SHARE", above=0
    )
    decay_shape: str | None = _schedule(None, "wsd: sqrt (1 - sqrt) or linear.", choices=("sqrt", "linear"))
    finetune_time_markers: str | None = _watch(None, "Shares of the budget at which to keep the model.", unit="SHARES")
    finetune_checkpoint_at_end: bool = _watch(True, "Write final/ at the end.")
    checkpoint_at_end: bool | None = _watch(
        None, "Leave a training checkpoint behind it, to go on from with more time (where curve is wsd)."
    )
    checkpoint_every: str | None = _watch(None, "A checkpoint each time this much is used.", unit="TIME", speed=False)
    num_epochs_between_checkpoints: int | None = _watch(
        None, "... or after this many shards per process.", unit="SHARDS", min=1, special={-1: "never"}
    )
    mlm_probability_curve: str | None = _masking(
        None, "Masking rate in at most 4 stages, value@share: 0.3@0,0.15@0.6; replaces mlm_probability.", unit="STAGES"
    )
    batch_size_curve: str | None = _schedule(
        None, "Share of gradient_accumulation_steps in stages: 0.25@0,0.5@0.1,1@0.3.", unit="STAGES", speed=True
    )
    sequence_length_curve: str | None = _schedule(
        None,
        "Share of the block length in stages: 0.25@0,1@0.2 cuts blocks into 4 at first.",
        unit="STAGES",
        speed=True,
    )
    auto_speed: bool = _precision(
        False, "Measure whether bf16 and torch_compile, where asked for, pay in this budget, or are switched off."
    )
    regional_compile: bool = _precision(False, "torch_compile layer by layer: a fraction of the compile time.")
    plan: str | None = _watch(
        None,
        "What budget_trainer.plan (--json) predicted: the report sets it beside the run.",
        unit="FILE",
        speed=False,
    )


@dataclass(frozen=True)
class WatchArguments:
    """Validation during training, and what is done when the loss goes wrong."""

    validate_every: str | None = _watch(None, "Validate each time this share of the budget is used.", unit="SHARE%")
    validation_epochs: int | None = _watch(
        None,
        "Or: after this many shards per process (10), more often at the begin and the end ...",
        unit="SHARDS",
        min=1,
    )
    validation_epochs_begin: int | None = _watch(None, "... every this many (1) ...", unit="SHARDS", min=1)
    validation_begin_proportion: float | None = _watch(
        None, "... in this share of the budget at its begin (0.1) ...", **_SHARE
    )
    validation_epochs_end: int | None = _watch(None, "... and every this many (1) ...", unit="SHARDS", min=1)
    validation_end_proportion: float | None = _watch(None, "... in the last this share of the budget (0.1).", **_SHARE)
    early_stop_time: str | None = _budget(
        None, "End the run where after this much of the budget (a bare number: minutes) ...", unit="TIME", bare="m"
    )
    early_stop_eval_loss: float | None = _budget(None, "... a validation loss is above this.", unit="NATS")
    max_bad_steps: int = _guard(
        3, "Steps in a row with a loss or gradient that is not finite: then a roll-back.", unit="STEPS", min=1
    )
    max_roll_backs: int = _guard(3, "Returns to the last checkpoint before the run ends with an error.", min=0)
    roll_back_lr_factor: float = _guard(0.5, "Each return multiplies the rates by this.", unit="SHARE", above=0, max=1)
    scale_cnt_limit: int = _guard(100, "fp16: end after so many steps at the lowest loss scale.", unit="STEPS", min=1)
    loss_spike: float = _guard(1.0, "Report a loss this many nats above the lines before.", unit="NATS", above=0)


@dataclass(frozen=True)
class CardArguments:
    """What the model card cannot know by itself. The Hub's flags (push_to_hub, hub_*) are TrainingArguments'."""

    license: str | None = flag(
        None, "Of the weights, as apache-2.0; None: unknown, says the card.", topic=HUB, unit="NAME", computes=False
    )
    language: str | None = flag(None, "Of the text, as en or en,de.", topic=HUB, unit="CODES", computes=False)
    country_iso_code: str | None = flag(
        None,
        "Where the electricity comes from, as DEU: emissions by codecarbon (extra energy) in report and card.",
        topic=WATCH,
        unit="CODE",
        computes=False,
    )
    price_per_hour: float | None = flag(
        None,
        "Money per hour of the whole run, in any currency: the report says what it cost.",
        topic=WATCH,
        min=0,
        computes=False,
    )


def launched_on_cpu() -> bool:
    """Whether a CPU profile launched this process, or the machine has nothing else.

    A profile speaks through this variable, but Accelerate does not listen to it with several processes: without
    `use_cpu` each of them would train alone.
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()


def _inherited() -> dict[str, dict[str, Any]]:
    """What is known of fields as TrainingArguments declares them, with units; help where its own is about other scripts."""
    by_topic = {
        BUDGET: "max_steps:STEPS num_train_epochs:EPOCHS",
        DATA: """seed data_seed full_determinism dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
            dataloader_prefetch_factor dataloader_in_order output_dir:DIR resume_from_checkpoint:auto|DIR
            dataloader_multiprocessing_context:NAME do_train do_eval do_predict""",
        SCHEDULE: """learning_rate:RATE per_device_train_batch_size:ROWS adam_beta1:SHARE weight_decay adam_epsilon
            max_grad_norm gradient_accumulation_steps lr_scheduler_type optim optim_args adam_beta2:SHARE
            lr_scheduler_kwargs:JSON warmup_steps:STEPS|SHARE label_smoothing_factor:SHARE
            train_sampling_strategy:NAME""",
        PRECISION: """bf16 fp16 bf16_dtype tf32 torch_compile activation_checkpointing torch_compile_backend:NAME
            torch_compile_mode:NAME activation_checkpointing_kwargs:JSON""",
        WATCH: """save_total_limit logging_strategy logging_first_step disable_tqdm log_level log_level_replica
            log_on_each_node run_name logging_steps:STEPS report_to:NAME eval_strategy eval_on_start eval_steps:STEPS
            eval_delay:EPOCHS|STEPS per_device_eval_batch_size:ROWS""",
        GUARD: "logging_nan_inf_filter",
        DISTRIBUTED: """use_cpu average_tokens_across_devices ddp_find_unused_parameters local_rank ddp_broadcast_buffers
            ddp_static_graph deepspeed:FILE|JSON fsdp:TEXT fsdp_config:FILE|JSON accelerator_config:FILE|JSON
            parallelism_config:JSON ddp_backend:NAME ddp_timeout:SECONDS ddp_bucket_cap_mb:MEGABYTES""",
        HUB: "push_to_hub hub_private_repo hub_strategy hub_model_id:USER/NAME",
    }
    found: dict[str, dict[str, Any]] = {"gradient_checkpointing": {}}
    for topic, names in by_topic.items():
        for name, _, unit in (entry.partition(":") for entry in names.split()):
            found[name] = {"topic": topic, **({"unit": unit} if unit else {})}
    words = {
        "max_steps": "Optimizer steps at most; -1: as many as the time or the epochs allow.",
        "output_dir": "Folder of this run; it must not hold another one.",
        "resume_from_checkpoint": "auto: from the newest complete checkpoint of output_dir, if any; or a checkpoint's folder.",
        "gradient_accumulation_steps": "Micro-batches per step; a step has micro-batch x this x processes rows.",
        "push_to_hub": "Publish what the run keeps, without delaying it.",
        "hub_model_id": "The repository; without USER the token's owner, without the flag the name of output_dir.",
        "hub_strategy": "every_save: each time-marked model as it is saved; end: all of it behind the run.",
        "hub_private_repo": "Make it a private one.",
        "do_train": "Train; of do_train, do_eval and do_predict all three where none is named.",
        "do_eval": "Score the dev splits.",
        "do_predict": "Predict the test splits.",
    }
    for name, text in words.items():
        found[name]["help"] = text
    more: list[tuple[dict[str, Any], str]] = [
        (
            {"min": 1},
            "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps logging_steps",
        ),
        ({"min": 0}, "learning_rate weight_decay adam_epsilon adam_beta1 adam_beta2"),
        ({"below": 1}, "adam_beta1 adam_beta2"),
        ({"speed": True}, "max_steps per_device_train_batch_size gradient_accumulation_steps bf16 fp16 use_cpu"),
        ({"speed": True}, "torch_compile max_grad_norm dataloader_num_workers gradient_checkpointing"),
        ({"computes": False}, "output_dir seed report_to push_to_hub hub_model_id hub_private_repo"),
        ({"computes": False}, "do_train do_eval do_predict disable_tqdm use_cpu"),
    ]
    for known, names in more:
        for name in names.split():
            found[name] |= known
    return found


@dataclass
class RunArguments(TrainingArguments):
    """Hugging Face's TrainingArguments with the defaults of this project, for the machine that it is made on.

    With several processes on a CPU it opens their process group, and TrainingArguments looks for the device.
    """

    known: ClassVar[dict[str, dict[str, Any]]] = _inherited()

    per_device_train_batch_size: int = flag(32, "Micro-batch per process.")
    learning_rate: float = flag(1e-3, "Peak learning rate.")
    weight_decay: float = flag(0.01, "Weight decay (decoupled but for adam).")
    adam_beta2: float = flag(0.98, "Second-moment decay.")
    adam_epsilon: float = flag(1e-6, "Adam's epsilon.")
    max_grad_norm: float = flag(1.0, "Gradient clipping; 0 switches it off.")
    logging_steps: float = flag(20, "Steps between log lines.")
    logging_first_step: bool = flag(True, "A line for the first step: a short run has something to show.")
    logging_nan_inf_filter: bool = flag(False, "Left off: it waits for the device at every micro-step and hides NaN.")
    save_strategy: str = flag("no", "Left alone: checkpoint_every says when to save.")
    save_total_limit: int | None = flag(2, "Newest training checkpoints to keep.")
    ignore_data_skip: bool = flag(True, "Left on: the sampler knows its position.")
    ddp_find_unused_parameters: bool | None = flag(False, "Left off: every parameter is used.")
    dataloader_num_workers: int = flag(-1, "Loader processes; -1: 2 beside an accelerator, 0 where the CPU trains.")
    remove_unused_columns: bool = flag(False, "Left off: the collator takes whole batches.")
    report_to: str | None = flag("tensorboard", "Trackers: tensorboard, wandb, ..., or none.")
    seed: int = flag(42, "Seed of weights, order, masks and dropout.")

    @classmethod
    def of(cls, values: Any) -> RunArguments:
        """Those of `Recipe.training` for this process: making them opens the process group and looks for the device."""
        return cls(**{**vars(values), "push_to_hub": False})  # Trainer would push between two steps

    def __post_init__(self) -> None:
        if launched_on_cpu():
            self.use_cpu = True
        if self.fp16 and self.use_cpu:
            raise InputError("fp16: True needs a GPU; use --bf16 true, which a CPU can, or neither")
        asks = self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true", "yes")
        if asks and find_spec("deepspeed") is None:
            raise InputError("deepspeed: not installed; pip install 'budget-trainer[deepspeed]', or launch without it")
        if self.dataloader_num_workers < 0:
            self.dataloader_num_workers = 0 if self.use_cpu else 2
        if self.accelerator_config is None and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # copies to the device do not stop the host
        if self.report_to is None:
            self.report_to = "none"
        if self.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            # TrainingArguments hands its ddp_timeout to accelerators only: on a CPU a lost peer would be waited for 30 min.
            dist.init_process_group("gloo", timeout=timedelta(seconds=self.ddp_timeout))
        super().__post_init__()


_OWN = (ModelArguments, DataArguments, OptimizerArguments, BudgetArguments, WatchArguments, CardArguments)
GROUPS = (*_OWN, RunArguments)

# What to do instead: the flags.
_REPLACED = {
    "use total_training_time or max_steps": "num_train_epochs",
    "use curve": "lr_scheduler_type",
    "use curve and its decay_* flags": "lr_scheduler_kwargs",
    "use warmup_proportion": "warmup_ratio",
    "use warmup_proportion, or num_warmup_steps with lr_schedule constant_step": "warmup_steps",
    "use optimizer_type": "optim",
    "use optimizer_type and its flags": "optim_args optim_target_modules",
    "use checkpoint_every": "save_strategy save_steps",
    "leave it out": (
        "save_on_each_node label_names length_column_name label_smoothing_factor neftune_noise_alpha "
        "restore_callback_states_from_checkpoint remove_unused_columns"
    ),
    "a checkpoint is for going on and holds everything; use finetune_time_markers to keep models": "save_only_model",
    "use validate_every": "eval_strategy eval_steps eval_delay eval_on_start do_eval",
    "the pinned evaluation is the same in every run; use validate_every to say when": (
        "per_device_eval_batch_size eval_accumulation_steps prediction_loss_only batch_eval_metrics "
        "include_for_metrics eval_do_concat_batches eval_use_gather_object fp16_full_eval bf16_full_eval"
    ),
    "the last model is the best at the end of its schedule; leave it out": (
        "metric_for_best_model greater_is_better load_best_model_at_end"
    ),
    "use per_device_train_batch_size": "auto_find_batch_size",
    "blocks have one length; leave it out": "group_by_length",
    "the order is a function of seed and sample; leave it out": "train_sampling_strategy",
    "use seed": "data_seed",
    "SIGTERM, SIGINT and SIGUSR1 leave a checkpoint already; see job_time_limit": "enable_jit_checkpoint",
    "the sampler knows its position; leave it out": "ignore_data_skip",
    "train_mlm.py trains; leave it out": "do_train",
    "try final/ with python -m budget_trainer.fill_mask": "do_predict",
    "every batch is whole; leave it out": "dataloader_drop_last",
    "log in with `hf auth login` or set HF_TOKEN: launchers print the command line of a run that fails": "hub_token",
    "pushes run beside the training and never wait for each other; leave it out": "hub_always_push",
    "the finished model is main, time-marked ones are branches of their names; leave it out": "hub_revision",
}
REPLACED = {name: advice for advice, names in _REPLACED.items() for name in names.split()}

_ABOUT = "Pre-train a masked language model inside a wall-clock budget."
_EXAMPLES = """\
  {launch} quickstart \\
      --data_dir data/blocks --output_dir out/run --total_training_time 10m
  {program} quickstart --data_dir data/blocks --output_dir out/run --print_config > run.yaml
"""
PARSER = FlagParser("train_mlm", GROUPS, TOPICS, REPLACED, about=_ABOUT, examples=_EXAMPLES)
KEYS = PARSER.flags.keys()
