"""The 89 flags of the original's run_pretraining.py: type, default, and the key here or what replaced it. Data only.

Names, types and defaults are those of its dataclasses (IntelLabs/academic-budget-bert, master of 2023). `docs/migrating.md`
is made from this table, and so is every recipe that `python -m budget_trainer.migrate` writes. Standard library only.

Words of an original command line as typed values, the way its argument parser read them. Standard library only.

The original's other command lines, flag by flag, and what does their work here. Data only, standard library only.

What the original did otherwise than its flags say, and what is different here: one line each, where it applies.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from budget_trainer.core.errors import InputError

NO_LIMIT = 2**63 - 1  # the original's default of max_steps


class Flag(NamedTuple):
    """One flag of the original.

    `key` is the recipe's key, None where there is none: then `text` says what replaced it and why; beside a key it is a
    remark. `unit`: of a duration, h or m. `read_with`: the flags that the original read it under. `same`: without it
    the recipe means the same as the original did, though the defaults are written differently.
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


_KERNEL = (
    "DeepSpeed's transformer kernel went; attention is PyTorch's own and fast. To save memory: gradient_checkpointing"
)
_DDP = "gradients are averaged over the processes as PyTorch does it; nothing to set"
_UNREAD = "the original never read it"
_PINNED = "the pinned evaluation is the same in every run, its batch too"
_RESUME = (
    "DeepSpeed's checkpoints of the original cannot be read; a run of ours goes on with resume_from_checkpoint: auto"
)
_VALIDATED, _LAMB, _EXP = (("do_validation", True),), (("optimizer_type", "lamb"),), (("curve", "exp"),)
_STOPPED = (("use_early_stopping", True), *_VALIDATED)
_TYPES = ("bert-mlm", "bert-mlm-roberta", "bert-mlm-nsp")
_LOADER = "one sampler deals every block once per pass to all processes, evenly (B8, B9)"
_BORN = f"{_UNREAD} and trained from scratch (B19), so it is left out; here model_name_or_path works"
_NORMS = ("pytorch", "apex", "rms_norm")
_NO_APEX = "without it PyTorch's, which computes what apex's does and needs no apex"
_OPTIMIZER = "lamb did not read adam_*; optimizer_impl: deepspeed takes its kernel for it"
_CUT = "it cut shards short, in micro-batches (B5); a pass always takes every block"
_EMBEDDING_NORM = "true makes it a roberta-prelayernorm; post-ln always has it (bert)"
_MARKER = "their default ended longer budgets at 24 h (B6); here it is given or there is none"
_FIXED_WARMUP = (("lr_schedule", "constant_step"),)
_SHARD = "an epoch is one training shard per process, as theirs"

ORIGINAL_GROUPS: dict[str, tuple[Flag, ...]] = {
    "Deepspeed": (
        Flag("deepspeed", bool, False, text="the launch configuration says it; theirs had no ZeRO, which is ddp.yaml"),
        Flag("deepspeed_transformer_kernel", bool, False, text=_KERNEL),
        Flag("stochastic_mode", bool, False, text=_KERNEL),
        Flag("attention_dropout_checkpoint", bool, False, text=_KERNEL),
        Flag("normalize_invertible", bool, False, text=_KERNEL),
        Flag("gelu_checkpoint", bool, False, text=_KERNEL),
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
        Flag("model_name_or_path", str, None, text=_BORN),
        Flag("config_name", str, None, text=f"{_UNREAD}; model_config holds more keys of the native config"),
        Flag("cache_dir", str, None, text=f"{_UNREAD}; the environment variable HF_HOME"),
        Flag("pretrain_run_args", str, None, text=f"{_UNREAD}; run_report.json holds the whole recipe"),
    ),
    "Model config": (
        Flag("vocab_size", int, 30522, text="that of the data folder's tokenizer"),
        Flag("hidden_size", int, 1024, "hidden_size"),
        Flag("num_hidden_layers", int, 24, "num_hidden_layers"),
        Flag("num_attention_heads", int, 16, "num_attention_heads"),
        Flag("intermediate_size", int, 4096, "intermediate_size"),
        Flag("hidden_act", str, "gelu", "hidden_act"),
        Flag("hidden_dropout_prob", float, 0.1, "hidden_dropout_prob"),
        Flag("attention_probs_dropout_prob", float, 0.1, "attention_probs_dropout_prob"),
        Flag("max_position_embeddings", int, 512, "max_position_embeddings"),
        Flag("layernorm_embedding", bool, False, "layernorm_embedding", _EMBEDDING_NORM, same=True),
        Flag("type_vocab_size", int, 2, "type_vocab_size"),
        Flag("initializer_range", float, 0.02, "initializer_range"),
        Flag(
            "fused_linear_layer", bool, True, text="fusing bias and activation is torch_compile's work; same weights"
        ),
        Flag("sparse_mask_prediction", bool, True, "sparse_mask_prediction"),
        Flag("encoder_ln_mode", str, "pre-ln", "encoder_ln_mode", choices=("pre-ln", "post-ln"), same=True),
        Flag("layer_norm_type", str, "apex", "layer_norm_type", _NO_APEX, choices=_NORMS, same=True),
    ),
    "Dataset": (
        Flag(
            "dataset_path", str, "books_wiki_en_corpus", "data_dir", "its HDF5 shards go through data_prep.hdf5 once"
        ),
        Flag("num_workers", int, 4, "dataloader_num_workers"),
        Flag("async_worker", bool, True, text=f"{_UNREAD}; dataloader_num_workers processes load in advance"),
        Flag("data_loader_type", str, "per_device", text=_LOADER, choices=("dist", "per_device")),
    ),
    "Optimizer": (
        Flag("optimizer_type", str, "adamw", "optimizer_type", _OPTIMIZER, ("adam", "adamw", "lamb", "adafactor")),
        Flag("weight_decay", float, 0.01, "weight_decay"),
        Flag("bias_correction", bool, False, "bias_correction", read_with=_LAMB),
        Flag("max_coeff", float, 0.3, "max_coeff", read_with=_LAMB),
        Flag("min_coeff", float, 0.01, "min_coeff", read_with=_LAMB),
        Flag("adam_beta1", float, 0.9, "adam_beta1"),
        Flag("adam_beta2", float, 0.999, "adam_beta2"),
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
        Flag("do_validation", bool, False, text="switches: with it the recipe has validation_epochs and its kin"),
        Flag("validation_epochs", int, 10, "validation_epochs", _SHARD, read_with=_VALIDATED),
        Flag("validation_epochs_begin", int, 1, "validation_epochs_begin", read_with=_VALIDATED),
        Flag("validation_epochs_end", int, 1, "validation_epochs_end", read_with=_VALIDATED),
        Flag("validation_begin_proportion", float, 0.1, "validation_begin_proportion", read_with=_VALIDATED),
        Flag("validation_end_proportion", float, 0.1, "validation_end_proportion", read_with=_VALIDATED),
        Flag("validation_micro_batch", int, 16, text=_PINNED),
        Flag("add_nsp", bool, False, "add_nsp", "from shards with sentence pairs"),
        Flag("current_run_id", str, "", text="part of output_dir and run_name, as theirs"),
        Flag("early_exit_time_marker", float, 24.0, "early_exit_time_marker", _MARKER, unit="h", same=True),
        Flag("total_training_time", float, 24.0, "total_training_time", unit="h"),
        Flag("finetune_time_markers", str, None, "finetune_time_markers"),
        Flag("finetune_checkpoint_at_end", bool, True, "finetune_checkpoint_at_end"),
        Flag("gradient_accumulation_steps", int, 1, text="the original overwrote it from train_batch_size; so here"),
        Flag(
            "train_batch_size",
            int,
            65536,
            "gradient_accumulation_steps",
            "train_batch_size / (micro-batch x processes)",
        ),
        Flag("train_micro_batch_size_per_gpu", int, 32, "per_device_train_batch_size"),
        Flag("num_epochs", int, 1_000_000, text="counted shards; total_training_time or max_steps ends a run here"),
        Flag("lr", float, 0.011, "learning_rate"),
        Flag("use_early_stopping", bool, False, text="switches: with it the recipe has early_stop_time and its kin"),
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


YES, NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
OWN = ("output", "num_processes", "data_dir", "combination", "table")  # migrate's own, which stand before a command


@dataclass(frozen=True)
class Given:
    """What a command or a file named: `values` by flag of the original; `remarks` on how it was read."""

    values: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """The value, or the original's default."""
        return self.values.get(name, FLAGS[name].default)

    def names(self, name: str) -> bool:
        return name in self.values


def read_flags(words: Sequence[str]) -> Given:
    """`--flag value`, `--flag=value`, `--switch` and `--no_switch`; a flag that stands twice counts as it stands last.

    Raises:
        InputError: an unknown flag (with the nearest name), a word that belongs to none, a value of the wrong type.
    """
    values: dict[str, Any] = {}
    remarks = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InputError(f"command: {word!r} belongs to no flag; quote a value that has spaces, or take it out")
        name, equals, text = word.removeprefix("--").partition("=")
        name, denied = _switch_of(name)
        flag = find_flag(name)
        if denied:
            value: Any = False
        elif equals:
            value = typed(flag, text)
        elif flag.kind is bool:
            value = typed(flag, rest.pop(0)) if rest and not rest[0].startswith("-") else True
        elif rest and not rest[0].startswith("--"):
            value = typed(flag, rest.pop(0))
        else:
            raise InputError(f"{name}: has no value; write --{name} {example(flag)}")
        if name in values:
            remarks.append(f"{name} stands twice: the last counts, {value}")
        values[name] = value
    return Given(values, tuple(remarks))


def _switch_of(name: str) -> tuple[str, bool]:
    """`no_<flag>` of the original's parser, which it made for switches that are on by default."""
    switch = name.removeprefix("no_")
    if switch != name and switch in FLAGS and FLAGS[switch].kind is bool and FLAGS[switch].default is True:
        return switch, True
    return name, False


def find_flag(name: str, where: str = "command") -> Flag:
    """The original's flag of this name. InputError: there is none, with the nearest."""
    if name in FLAGS:
        return FLAGS[name]
    if name in OWN:
        raise InputError(f"{name}: not a flag of the original; give it to budget_trainer.migrate before the command")
    ours = {flag.key: flag.name for flag in FLAGS.values() if flag.key} | {name: name for name in FLAGS}
    close = difflib.get_close_matches(name.replace("-", "_"), ours, n=1)
    fix = f"did you mean {ours[close[0]]}?" if close else "docs/migrating.md lists all 89"
    raise InputError(f"{name}: unknown to the original's run_pretraining.py ({where}); {fix}")


def typed(flag: Flag, text: str) -> Any:
    """The value of a flag. InputError: not of its type or choices, or a variable that the shell did not fill in."""
    if re.search(r"^~|[$`]", text):
        raise InputError(f"{flag.name}: {text!r} is for the shell to fill in; write what it stands for")
    if flag.kind is bool:
        if text.lower() not in YES + NO:
            raise InputError(f"{flag.name}: {text!r} is not true or false; write --{flag.name} or leave it out")
        return text.lower() in YES
    try:
        value = flag.kind(text)
    except ValueError:
        raise InputError(
            f"{flag.name}: {text!r} is not {KINDS[flag.kind]}; write --{flag.name} {example(flag)}"
        ) from None
    if value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"{flag.name}: {text!r} is no number to train with; write --{flag.name} {example(flag)}")
    if flag.name == "optimizer_type":
        value = value.lower()  # as the original did
    if flag.choices and value not in flag.choices:
        close = difflib.get_close_matches(value, flag.choices, n=1)
        fix = f"did you mean {close[0]}?" if close else f"it has {_either(flag.choices)}"
        raise InputError(f"{flag.name}: {text!r} is not a value of the original; {fix}")
    return value


def example(flag: Flag) -> Any:
    """A value that fits, for a message."""
    if flag.choices:
        return flag.choices[0]
    return {str: "TEXT", int: 1, float: 0.1}[flag.kind] if flag.default is None else flag.default


def _either(words: Iterable[str]) -> str:
    return " or ".join(words)


class Script(NamedTuple):
    """A script of the original: `here` does its work; `flags` are (theirs with default, ours or None, remark)."""

    name: str
    here: str
    flags: tuple[tuple[str, str | None, str], ...]


_TEXT_FIRST = "reading, cleaning and cutting are one command here"
SCRIPTS: tuple[Script, ...] = (
    Script(
        "process_data.py",
        "python -m data_prep.prepare, or data_prep.blocks",
        (
            (
                "-f",
                "--input",
                "a dump as it is published, books, WikiExtractor's output, text: no extractor before it",
            ),
            ("-o", "--output_dir", _TEXT_FIRST),
            ("--type", "--kind", "found by looking; wiki is mediawiki or wikiextractor, bookcorpus is books"),
            ("--n_processes 16", "--num_proc", ""),
        ),
    ),
    Script(
        "shard_data.py",
        "python -m data_prep.blocks; data_prep.split for a finished folder",
        (
            ("--dir", "--input", ""),
            ("-o", "--output_dir", _TEXT_FIRST),
            (
                "--num_train_shards 256",
                "--num_shards",
                "shards differ by at most one row (B9); an epoch is one of them",
            ),
            (
                "--num_test_shards 256",
                "--max_validation_blocks",
                "one fixed set of blocks, not another shard each time (B11)",
            ),
            ("--frac_test .1", "--validation_fraction", "0.01 is the default here; by hash of the document"),
        ),
    ),
    Script(
        "merge_shards.py",
        "python -m data_prep.merge (folders), data_prep.split (fewer shards)",
        (
            ("--data", "--input", "merge: two or more data folders; split: one"),
            ("--output_dir", "--output_dir", ""),
            ("--ratio 1", "--num_shards", "the number of shards wanted, in place of how many become one"),
            ("--grep ''", None, "train and validation are apart in every folder and cannot mix (B20)"),
        ),
    ),
    Script(
        "generate_samples.py",
        "python -m data_prep.blocks; data_prep.hdf5 for samples that are there already",
        (
            ("--dir", "--input", "text: nothing has to be sharded before it"),
            ("-o", "--output_dir", ""),
            (
                "--dup_factor 1",
                "train_mlm.py --dup_factor",
                "fixed maskings without copies on the disk; unset: fresh ones for ever",
            ),
            ("--seed 555", "train_mlm.py --seed", "masks are drawn while training"),
            ("--vocab_file", "--tokenizer", "a vocab.txt, a tokenizer.json, a folder or a name of the Hub"),
            (
                "--do_lower_case 1",
                "--tokenizer",
                "the tokenizer's own; data_prep.tokenizer --no-lowercase trains a cased one (B21)",
            ),
            ("--masked_lm_prob .15", "train_mlm.py --mlm_probability", ""),
            ("--max_seq_length 512", "--block_size", "128 is the default here, as in the paper"),
            ("--model_name", "--tokenizer", ""),
            ("--max_predictions_per_seq 20", "train_mlm.py --max_predictions_per_seq", ""),
            ("--n_processes 8", "--num_proc", ""),
        ),
    ),
    Script(
        "create_pretraining_data.py",
        "python -m data_prep.blocks",
        (
            ("--input_file", "--input", ""),
            ("--output_file", "--output_dir", ""),
            ("--vocab_file, --bert_model", "--tokenizer", ""),
            ("--max_seq_length 128", "--block_size", "longer text goes on in the next block (B24)"),
            ("--dupe_factor 10", "train_mlm.py --dup_factor", ""),
            ("--max_predictions_per_seq 20", "train_mlm.py --max_predictions_per_seq", ""),
            ("--masked_lm_prob .15", "train_mlm.py --mlm_probability", ""),
            ("--short_seq_prob .1", "--short_seq_prob", "with --packing sentences or nsp"),
            ("--do_lower_case", "--tokenizer", "the tokenizer's own"),
            ("--random_seed 12345", "train_mlm.py --seed", "masks are drawn while training"),
            ("--no_nsp", "--packing", "nsp makes sentence pairs; sentences is the original's form without them"),
        ),
    ),
    Script(
        "run_glue.py",
        "finetune_glue.py",
        (
            ("--model_name_or_path", "--model_name_or_path", "any native checkpoint; no args.json beside it (B28)"),
            ("--task_name", "--task_name", ""),
            ("--max_seq_length 128", "--max_seq_length", ""),
            ("--pad_to_max_length True", "--pad_to_max_length", ""),
            ("--fp16_full_eval True", None, "evaluation has the precision of training"),
            ("--early_stopping_patience -1", "--early_stopping_patience", ""),
            ("--group_name", "--group_name", "with --report_to wandb"),
            ("--project_name", "--project_name", "with --report_to wandb"),
            ("--evaluation_strategy", "--eval_strategy", "Transformers' new name"),
        ),
    ),
    Script(
        "generate_training_commands.py",
        "sweep.py, which also runs the trials",
        (
            ("--param_file", "--param_file", "the same YAML; `fp16: false` means false (B27)"),
            ("--job_name bert_large_experiment", "--job_name", ""),
            ("--init_cmd", "--init_cmd", ""),
            ("--search_type grid", "search: in the YAML", "an unknown one is an error (B27)"),
        ),
    ),
)


class Difference(NamedTuple):
    """`text` is said where `applies` to what was given."""

    defect: str
    applies: Callable[[Given], bool]
    text: str


def _clamped(given: Given) -> bool:
    """Linear decay on time divided by at least one hour."""
    rest = given["total_training_time"] * (1 - given["warmup_proportion"])
    return given["lr_schedule"] == "time" and given["curve"] == "linear" and rest < 1


def _always(given: Given) -> bool:
    return True


DIFFERENCES = (
    Difference(
        "B3",
        _clamped,
        "below an hour of decay the original's learning rate fell at once to a fraction of its peak; here the whole "
        "budget has the curve: a rate found there may be too high",
    ),
    Difference(
        "B5",
        _always,
        "the original looked at its clock after a whole shard and wrote the model after the end; here set-up, validation "
        "and the final save are inside of the budget",
    ),
    Difference(
        "B5",
        lambda given: given["max_steps"] < NO_LIMIT // 2,
        "max_steps was looked at after a whole shard; here it is the last step",
    ),
    Difference(
        "B8",
        lambda given: given["data_loader_type"] == "dist",
        "data_loader_type dist passed over most of the samples; here a pass takes each once, so the loss by the end differs",
    ),
    Difference(
        "B11",
        lambda given: bool(given["do_validation"]),
        "each validation took another test shard; here all take the same held-out blocks, so their losses compare",
    ),
    Difference(
        "B12",
        lambda given: not given["do_validation"],
        "without --do_validation the original crashed at its end; here the final model is evaluated outside of the budget, and "
        "validate_every: 2% adds validations on the way",
    ),
    Difference(
        "B13",
        lambda given: given["num_epochs_between_checkpoints"] < 1 or given["num_epochs_between_checkpoints"] > 1000,
        "nothing is left after a crash, as with the original; checkpoint_every: 1h leaves what resume_from_checkpoint: "
        "auto goes on from",
    ),
    Difference(
        "B16",
        _always,
        "feed-forward and head weights of the original kept PyTorch's own initialisation; here all have initializer_range",
    ),
    Difference(
        "B17",
        lambda given: bool(given["sparse_mask_prediction"]),
        "the original's output bias was never trained; here it is",
    ),
    Difference(
        "B7",
        lambda given: bool(given["add_nsp"]) or given["model_type"] == "bert-mlm-nsp",
        "the original's next-sentence prediction could not run; it needs shards with labels, or data_prep.blocks --packing nsp",
    ),
    Difference(
        "B24",
        _always,
        "masks were fixed in the shards; here each pass draws fresh ones. dup_factor: 10 fixes ten, as their --dup_factor 10",
    ),
)


def differences(given: Given) -> list[str]:
    """The lines that apply, each with the number of the defect."""
    return [f"{line.text} ({line.defect})" for line in DIFFERENCES if line.applies(given)]
