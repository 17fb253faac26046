"""The 89 flags of the original's run_pretraining.py, and what it did otherwise than they say. Data only.

Names, types and defaults are those of its dataclasses (IntelLabs/academic-budget-bert, master of 2023). The recipes that
`python -m budget_trainer.migrate` writes and the tables of `docs/migrating.md` are made from this module. Numbers such as B6
are those of the original's known defects. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

NO_LIMIT = 2**63 - 1  # the original's default of max_steps


class Flag(NamedTuple):
    """One flag of the original.

    `key` is the recipe's key, None where there is none: then `text` says what replaced it and why; beside a key it is a
    remark. `unit`: of a duration, h or m. `read_with`: the original read the flag only where these have these values.
    `same`: a recipe without the key means what the original's default meant, though the two defaults differ.
    """

    name: str
    kind: type
    default: Any
    key: str | None = None
    text: str = ""
    choices: tuple[str, ...] = ()
    unit: str = ""
    read_with: tuple[tuple[str, Any], ...] = ()
    same: bool = False


_KERNEL = "PyTorch's fast attention replaces DeepSpeed's kernel; gradient_checkpointing saves memory"
_OF_THE_KERNEL = (
    "deepspeed_transformer_kernel stochastic_mode attention_dropout_checkpoint normalize_invertible gelu_checkpoint"
)
_DDP = "gradients are averaged over the processes as PyTorch does it; nothing to set"
_UNREAD = "the original never read it"
_PINNED = "the pinned evaluation is the same in every run, its batch too"
_RESUME = "the original's DeepSpeed checkpoints cannot be read; resume_from_checkpoint: auto continues a run"
_VALIDATED, _LAMB, _EXP = (("do_validation", True),), (("optimizer_type", "lamb"),), (("curve", "exp"),)
_STOPPED = (("use_early_stopping", True), *_VALIDATED)
_TYPES = ("bert-mlm", "bert-mlm-roberta", "bert-mlm-nsp")
_LOADER = "one sampler deals every block once per pass to all processes, evenly (B8, B9)"
_FROM_SCRATCH = f"{_UNREAD} and trained from scratch (B19), so it is left out; here model_name_or_path works"
_NORMS = ("pytorch", "apex", "rms_norm")
_NO_APEX = "without it PyTorch's, which computes what apex's does and needs no apex"
_OPTIMIZER = "lamb did not read adam_*; optimizer_impl: deepspeed takes its kernel for it"
_CUT = "it cut shards short, in micro-batches (B5); a pass always takes every block"
_EMBEDDING_NORM = "true makes it a roberta-prelayernorm; post-ln always has it (bert)"
_MARKER = "their default ended longer budgets at 24 h (B6); here it is given or there is none"
_FIXED_WARMUP = (("lr_schedule", "constant_step"),)
_SHARD = "an epoch is one training shard per process, as theirs"


def _same_keys(read_with: tuple[tuple[str, Any], ...] = (), **defaults: Any) -> list[Flag]:
    """Flags whose keys have their names."""
    return [Flag(name, type(default), default, name, read_with=read_with) for name, default in defaults.items()]


ORIGINAL_GROUPS: dict[str, tuple[Flag, ...]] = {
    "Deepspeed": (
        Flag("deepspeed", bool, False, text="a launch configuration replaces it: ddp.yaml, as theirs had no ZeRO"),
        *(Flag(name, bool, False, text=_KERNEL) for name in _OF_THE_KERNEL.split()),
        Flag("gradient_clipping", float, 1.0, "max_grad_norm", "0 switches it off in both"),
        Flag("steps_per_print", int, 100, text="DeepSpeed's own lines; logging_steps is print_steps"),
        Flag("wall_clock_breakdown", bool, False, text="always there: run_report.json has the shares of the time"),
        Flag("prescale_gradients", bool, False, text=_DDP),
        Flag("gradient_predivide_factor", int, None, text=_DDP),
        Flag("fp16", bool, False, "fp16", "PyTorch's autocast on float32 weights; newer GPUs do better with bf16"),
        Flag("fp16_backend", str, "ds", text="there is one: PyTorch's autocast", choices=("ds", "apex")),
        Flag("fp16_opt", str, "O2", text="a level of apex's amp, which PyTorch's autocast replaced"),
    ),
    "Model": (
        Flag("model_type", str, "bert-mlm", "model_type", choices=_TYPES),
        Flag("tokenizer_name", str, None, text="the data folder's tokenizer: data_prep's --tokenizer"),
        Flag("model_name_or_path", str, None, text=_FROM_SCRATCH),
        Flag("config_name", str, None, text=f"{_UNREAD}; model_config holds more keys of the native config"),
        Flag("cache_dir", str, None, text=f"{_UNREAD}; the environment variable HF_HOME"),
        Flag("pretrain_run_args", str, None, text=f"{_UNREAD}; run_report.json holds the whole recipe"),
    ),
    "Model config": (
        Flag("vocab_size", int, 30522, text="that of the data folder's tokenizer"),
        *_same_keys(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
        *_same_keys(hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1),
        *_same_keys(max_position_embeddings=512),
        Flag("layernorm_embedding", bool, False, "layernorm_embedding", _EMBEDDING_NORM, same=True),
        *_same_keys(type_vocab_size=2, initializer_range=0.02),
        Flag("fused_linear_layer", bool, True, text="torch_compile fuses bias and activation; same weights"),
        Flag("sparse_mask_prediction", bool, True, "sparse_mask_prediction"),
        Flag("encoder_ln_mode", str, "pre-ln", "encoder_ln_mode", choices=("pre-ln", "post-ln"), same=True),
        Flag("layer_norm_type", str, "apex", "layer_norm_type", _NO_APEX, choices=_NORMS, same=True),
    ),
    "Dataset": (
        Flag("dataset_path", str, "books_wiki_en_corpus", "data_dir", "data_prep.hdf5 converts its HDF5 shards once"),
        Flag("num_workers", int, 4, "dataloader_num_workers"),
        Flag("async_worker", bool, True, text=f"{_UNREAD}; dataloader_num_workers processes load in advance"),
        Flag("data_loader_type", str, "per_device", text=_LOADER, choices=("dist", "per_device")),
    ),
    "Optimizer": (
        Flag("optimizer_type", str, "adamw", "optimizer_type", _OPTIMIZER, ("adam", "adamw", "lamb", "adafactor")),
        Flag("weight_decay", float, 0.01, "weight_decay"),
        *_same_keys(_LAMB, bias_correction=False, max_coeff=0.3, min_coeff=0.01),
        *_same_keys(adam_beta1=0.9, adam_beta2=0.999),
        Flag("adam_eps", float, 1e-6, "adam_epsilon"),
    ),
    "Pre-training": (
        Flag("seed", int, 42, "seed"),
        Flag("output_dir", str, None, "output_dir", "theirs wrote into OUTPUT_DIR/JOB_NAME-RUN_ID/RUN_ID"),
        Flag("max_predictions_per_seq", int, 20, "max_predictions_per_seq"),
        Flag("local_rank", int, -1, text="the launcher's; accelerate launch tells each process"),
        Flag("load_training_checkpoint", str, None, text=_RESUME),
        Flag("load_checkpoint_id", str, None, text=_RESUME),
        Flag("num_epochs_between_checkpoints", int, -1, "num_epochs_between_checkpoints", _SHARD, same=True),
        Flag("job_name", str, "pretraining_experiment", "run_name"),
        Flag("project_name", str, "budget-lm-pretraining", text="report_to: wandb, and the variable WANDB_PROJECT"),
        Flag("max_steps", int, NO_LIMIT, "max_steps", "2^63 - 1 is no limit: left out", same=True),
        Flag("max_steps_per_epoch", int, NO_LIMIT, text=_CUT),
        Flag("print_steps", int, 100, "logging_steps"),
        Flag("do_validation", bool, False, text="with it the recipe has validation_epochs and its companions"),
        Flag("validation_epochs", int, 10, "validation_epochs", _SHARD, read_with=_VALIDATED),
        *_same_keys(_VALIDATED, validation_epochs_begin=1, validation_epochs_end=1),
        *_same_keys(_VALIDATED, validation_begin_proportion=0.1, validation_end_proportion=0.1),
        Flag("validation_micro_batch", int, 16, text=_PINNED),
        Flag("add_nsp", bool, False, "add_nsp", "from shards with sentence pairs"),
        Flag("current_run_id", str, "", text="part of output_dir and run_name, as theirs"),
        Flag("early_exit_time_marker", float, 24.0, "early_exit_time_marker", _MARKER, unit="h", same=True),
        Flag("total_training_time", float, 24.0, "total_training_time", unit="h"),
        Flag("finetune_time_markers", str, None, "finetune_time_markers"),
        Flag("finetune_checkpoint_at_end", bool, True, "finetune_checkpoint_at_end"),
        Flag("gradient_accumulation_steps", int, 1, text="the original overwrote it from train_batch_size; so here"),
        Flag("train_batch_size", int, 65536, "gradient_accumulation_steps", "divided by micro-batch x processes"),
        Flag("train_micro_batch_size_per_gpu", int, 32, "per_device_train_batch_size"),
        Flag("num_epochs", int, 1_000_000, text="counted shards; total_training_time or max_steps ends a run here"),
        Flag("lr", float, 0.011, "learning_rate"),
        Flag("use_early_stopping", bool, False, text="with it the recipe has early_stop_time and its loss"),
        Flag("early_stop_time", int, 720, "early_stop_time", unit="m", read_with=_STOPPED),
        Flag("early_stop_eval_loss", float, 2.1, "early_stop_eval_loss", read_with=_STOPPED),
        Flag("scale_cnt_limit", int, 100, "scale_cnt_limit"),
        Flag("log_throughput_every", int, 20, text="throughput is in every line of logging_steps"),
    ),
    "Scheduler": (
        Flag("lr_schedule", str, "time", "lr_schedule", choices=("step", "constant_step", "time")),
        Flag("curve", str, "linear", "curve", choices=("linear", "exp")),
        Flag("warmup_proportion", float, 0.06, "warmup_proportion"),
        Flag("decay_rate", float, 0.99, "decay_rate", "a step may be a share of the schedule", read_with=_EXP),
        Flag("decay_step", int, 1000, "decay_step", "theirs: steps, and hours with time (B4)", read_with=_EXP),
        Flag("num_warmup_steps", int, 1000, "num_warmup_steps", read_with=_FIXED_WARMUP),
    ),
}
FLAGS: dict[str, Flag] = {flag.name: flag for flags in ORIGINAL_GROUPS.values() for flag in flags}


@dataclass(frozen=True)
class Given:
    """The flags that a command or a combination of a sweep named, typed; `remarks` on how they were read.

    `processes` train, for the reason `why`: by default as many as the paper's machine had GPUs. `environment`: the NAME=value
    words before the launcher.
    """

    values: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    processes: int = 8
    why: str = "assumed, 8 as on the paper's machine: --num_processes N says it"
    environment: str = ""

    def __getitem__(self, name: str) -> Any:
        """The value, or the original's default."""
        return self.values.get(name, FLAGS[name].default)

    def __contains__(self, name: str) -> bool:
        return name in self.values


# (defect, text, applies): the text concerns a command whose flags (or their defaults) have all values of `applies`.
DIFFERENCES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("B5", "the original's budget held neither set-up nor validation nor the final save; here it does", {}),
    ("B8", "dist skipped most samples; here a pass takes each of them once", {"data_loader_type": "dist"}),
    ("B11", "each validation took another test shard; here all take the same blocks", {"do_validation": True}),
    (
        "B12",
        "without --do_validation the original crashed at its end; here the final model is evaluated outside of the budget, "
        "and validate_every: 2% adds validations on the way",
        {"do_validation": False},
    ),
    ("B16", "their feed-forward and head weights ignored initializer_range; here all weights have it", {}),
    ("B17", "the original's output bias was never trained; here it is", {"sparse_mask_prediction": True}),
    ("B24", "masks were fixed in the shards; here each pass has new ones, with dup_factor: 10 ten", {}),
)
