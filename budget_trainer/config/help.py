"""The flags of the two scripts by topic, each with its unit: what `--help` prints in this order.

A flag of TrainingArguments that stands nowhere here is one of the others. Standard library only.

`--help` of the two scripts: every flag of the parser by topic, with unit and default, and what stands at the end.

`--print_config`: what a run would be made of, as a recipe that gives the same run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from budget_trainer import __version__
from budget_trainer.config.parser import flag_of, is_null, recipe_words, split_recipe
from budget_trainer.core.command import EXIT_CODES, program, with_bold_headings

UNITS = {
    "TIME": "24h, 90m, 1h30m or 45s; a bare number where the flag says so",
    "SHARE": "from 0 to 1; with %, of a hundred",
    "STAGES": "VALUE@SHARE of the schedule, joined by commas",
    "N, ROWS, STEPS, TOKENS, ...": "whole numbers, of these",
    "RATE": "a learning rate, per step",
    "NATS": "of a loss, the mean over predicted tokens",
    "BOOL": "true or false; alone it means true",
}

_PRECISION = """bf16 BOOL, fp16 BOOL, bf16_dtype TEXT, tf32 BOOL"""
_OPTIMIZER = "adam_beta1 SHARE, adam_beta2 SHARE, adam_epsilon NUMBER, weight_decay NUMBER, max_grad_norm NUMBER"
_LOADER = """dataloader_num_workers N, dataloader_pin_memory BOOL, dataloader_persistent_workers BOOL,
dataloader_prefetch_factor N, dataloader_multiprocessing_context NAME, dataloader_in_order BOOL"""
_LOGGING = """logging_steps STEPS, logging_strategy NAME, logging_first_step BOOL, report_to NAME, run_name TEXT,
disable_tqdm BOOL, log_level NAME, log_level_replica NAME, log_on_each_node BOOL"""
_DISTRIBUTED = """use_cpu BOOL, deepspeed FILE, fsdp TEXT, fsdp_config FILE, accelerator_config FILE,
parallelism_config JSON, average_tokens_across_devices BOOL, ddp_backend NAME, ddp_timeout SECONDS,
ddp_bucket_cap_mb MEGABYTES, ddp_find_unused_parameters BOOL, ddp_broadcast_buffers BOOL, ddp_static_graph BOOL,
local_rank N"""

# Where TrainingArguments' own words are about other scripts.
WORDS = {
    "max_steps": "Optimizer steps at most; -1: as many as the time or the epochs allow.",
    "output_dir": "Folder of this run; it must not hold another one.",
    "resume_from_checkpoint": "auto: go on from the newest complete checkpoint of output_dir, or begin where there is none; "
    "or a checkpoint's folder.",
    "gradient_accumulation_steps": "Micro-batches per step; a step has micro-batch x this x processes rows.",
    "push_to_hub": "Publish what the run keeps, without delaying it.",
    "hub_model_id": "The repository; without USER the token's owner, without the flag the name of output_dir.",
    "hub_strategy": "every_save: each time-marked model as it is saved; end: all of it behind the run.",
    "hub_private_repo": "Make it a private one.",
    "do_train": "Train; of do_train, do_eval and do_predict all three where none is named.",
    "do_eval": "Score the dev splits.",
    "do_predict": "Predict the test splits.",
}

TRAIN = {
    "Budget": """total_training_time TIME, early_exit_time_marker TIME, job_time_limit TIME, max_steps STEPS,
early_stop_time TIME, early_stop_eval_loss NATS""",
    "Data and output": f"""data_dir DIR, output_dir DIR, resume_from_checkpoint auto|DIR, seed N,
full_determinism BOOL, {_LOADER}""",
    "Model": """model_type NAME, model_name_or_path DIR, hidden_size N, num_hidden_layers N, num_attention_heads N,
intermediate_size N, hidden_act NAME, hidden_dropout_prob SHARE, attention_probs_dropout_prob SHARE,
max_position_embeddings TOKENS, type_vocab_size N, initializer_range NUMBER, encoder_ln_mode NAME,
layernorm_embedding BOOL, layer_norm_type NAME, model_config JSON, embedding_init NAME, embedding_init_std NUMBER,
offset_heads TOKENS, unigram_bias BOOL""",
    "Masking objective": """mlm_probability SHARE, mlm_probability_curve STAGES, mask_replace_prob SHARE,
random_replace_prob SHARE, max_predictions_per_seq TOKENS, dup_factor N, whole_word_mask BOOL, document_mask BOOL,
twin_probability SHARE, add_nsp BOOL""",
    "Optimizer and schedule": f"""optimizer_type NAME, optimizer_impl NAME, learning_rate RATE,
per_device_train_batch_size ROWS, gradient_accumulation_steps N, {_OPTIMIZER}, lr_schedule NAME, curve NAME,
warmup_proportion SHARE, num_warmup_steps STEPS, decay_rate SHARE, decay_step SHARE|STEPS, decay_proportion SHARE,
decay_shape NAME, batch_size_curve STAGES, sequence_length_curve STAGES, muon_learning_rate RATE,
muon_momentum SHARE, muon_weight_decay NUMBER, embedding_learning_rate RATE, bias_correction BOOL, max_coeff NUMBER,
min_coeff NUMBER""",
    "Speed and precision": f"""auto_speed BOOL, {_PRECISION}, torch_compile BOOL, torch_compile_backend NAME,
torch_compile_mode NAME, regional_compile BOOL, sparse_mask_prediction BOOL, sparse_last_layer BOOL,
cross_entropy NAME, activation_checkpointing BOOL, activation_checkpointing_kwargs JSON""",
    "Validation, logging and saving": f"""validate_every SHARE%, validation_epochs SHARDS,
validation_epochs_begin SHARDS, validation_begin_proportion SHARE, validation_epochs_end SHARDS,
validation_end_proportion SHARE, checkpoint_every TIME, num_epochs_between_checkpoints SHARDS, save_total_limit N,
finetune_time_markers SHARES, finetune_checkpoint_at_end BOOL, plan FILE, {_LOGGING}""",
    "When the loss goes wrong": """max_bad_steps STEPS, max_roll_backs N, roll_back_lr_factor SHARE,
scale_cnt_limit STEPS, loss_spike NATS, logging_nan_inf_filter BOOL""",
    "Distributed": _DISTRIBUTED,
    "Hub": """push_to_hub BOOL, hub_model_id USER/NAME, hub_strategy NAME, hub_private_repo BOOL, license NAME,
language CODES""",
}

GLUE = {
    "Task, model and data": f"""task_name NAME..., model_name_or_path DIR|NAME, tokenizer_name DIR|NAME,
output_dir DIR, overwrite_output_dir BOOL, glue_dir DIR..., dataset_name DIR|NAME, max_seq_length TOKENS,
pad_to_max_length BOOL, max_train_samples ROWS, max_eval_samples ROWS, max_predict_samples ROWS, do_train BOOL,
do_eval BOOL, do_predict BOOL, save_model BOOL, {_LOADER}""",
    "Budget": """total_training_time TIME, num_train_epochs EPOCHS, max_steps STEPS,
early_stopping_patience EVALUATIONS""",
    "Several runs (a suite)": """grid FILE, seeds N,N..., intermediate_task NAME, checkpoints DIR...""",
    "Optimizer and schedule": f"""learning_rate RATE, per_device_train_batch_size ROWS, gradient_accumulation_steps N,
lr_scheduler_type NAME, lr_scheduler_kwargs JSON, warmup_steps STEPS|SHARE, optim NAME, optim_args TEXT,
{_OPTIMIZER}, label_smoothing_factor SHARE, train_sampling_strategy NAME, seed N, data_seed N,
full_determinism BOOL""",
    "Speed and precision": f"{_PRECISION}, activation_checkpointing BOOL, activation_checkpointing_kwargs JSON",
    "Validation and logging": f"""eval_strategy NAME, eval_steps STEPS, eval_delay EPOCHS|STEPS, eval_on_start BOOL,
per_device_eval_batch_size ROWS, {_LOGGING}, logging_nan_inf_filter BOOL, project_name TEXT, group_name TEXT""",
    "Distributed": _DISTRIBUTED,
    "Hub": "push_to_hub BOOL, hub_model_id USER/NAME, hub_private_repo BOOL, license NAME, language CODES",
}


def units(groups: dict[str, str]) -> dict[str, dict[str, str]]:
    """Each topic with its flags and their units."""
    entries = {topic: text.replace(",\n", ", ").split(", ") for topic, text in groups.items()}
    return {topic: dict(_flag_and_unit(entry) for entry in found) for topic, found in entries.items()}


def _flag_and_unit(entry: str) -> tuple[str, str]:
    flag, unit = entry.split()
    return flag, unit


OTHERS = "Others of Transformers' TrainingArguments"
_RECIPE = "A recipe is a flat YAML file whose keys are these flags; the command line wins over it."
_QUESTIONS = {
    "--help, -h": "This text.",
    "--version": "The version.",
    "--print_config": "Print the configuration as a recipe, with where each value is from; starts and writes nothing.",
}
NOT_USED = "TrainingArguments that are not used here, with what to do instead"
ABOUT = {
    "train_mlm": (
        "Pre-train a masked language model inside a wall-clock budget.",
        "  accelerate launch --config_file accelerate_configs/cpu.yaml train_mlm.py recipes/quickstart.yaml \\\n"
        "      --data_dir data/blocks --output_dir out/run --total_training_time 10m\n"
        "  {program} recipes/quickstart.yaml --data_dir data/blocks --output_dir out/run --print_config > run.yaml\n",
    ),
    "finetune_glue": (
        "Fine-tune a checkpoint on GLUE: one task, several, or all of them with a grid and seeds, inside a time budget.",
        "  accelerate launch --config_file accelerate_configs/cpu.yaml finetune_glue.py \\\n"
        "      --model_name_or_path out/run/final --task_name MRPC --output_dir out/mrpc\n"
        "  {program} --model_name_or_path out/run/final --task_name all \\\n"
        "      --grid recipes/glue/quick.yaml --output_dir out/glue --total_training_time 1h\n",
    ),
}


def topics(parser: HfArgumentParser, own: dict[str, str], refused: dict[str, str]) -> dict[str, dict[str, str]]:
    """Every flag of the parser under its topic, with its unit: `own` topics first, then the others, then `refused`."""
    found = units(own)
    listed = {flag for flags in found.values() for flag in flags}
    rest = {a.dest: a for a in parser._actions if a.dest not in listed and a.dest != "help"}
    there = {action.dest for action in parser._actions}
    found = {topic: {flag: unit for flag, unit in flags.items() if flag in there} for topic, flags in found.items()}
    found[OTHERS] = {flag: _unit(action) for flag, action in rest.items() if flag not in refused}
    found[NOT_USED] = {flag: _unit(action) for flag, action in rest.items() if flag in refused}
    return found


def parser_of(name: str) -> tuple[HfArgumentParser, dict[str, str], dict[str, str]]:
    """The parser of a script, its topics as `help_groups` has them, and the flags that it refuses, with the reason."""
    if name == "train_mlm":
        from budget_trainer.config import parser as parser_module
        from budget_trainer.config.arguments import REPLACED

        return parser_module.make_parser(), TRAIN, REPLACED
    from budget_trainer.glue import arguments
    from budget_trainer.glue.arguments import REFUSED

    return arguments.make_parser(), GLUE, REFUSED


def help_text(name: str) -> str:
    """The help of a script, `train_mlm` or `finetune_glue`; headings in bold where stdout is a terminal."""
    parser, own, refused = parser_of(name)
    title, examples = ABOUT[name]
    called = program(f"{name}.py")
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    actions = {action.dest: action for action in reversed(parser._actions)}  # of --flag and --no_flag the first
    parts = [
        f"usage: {called} [recipe.yaml] [--flag value ...]\n\n{title}\n{_RECIPE}\n",
        _section("Units", UNITS, width),
    ]
    parts.append(_section("Questions", _QUESTIONS, width))
    found = topics(parser, own, refused)
    reasons: dict[str, list[str]] = {}
    for flag in found.pop(NOT_USED):
        reasons.setdefault(refused[flag], []).append(f"--{flag}")
    for topic, flags in found.items():
        lines = {f"--{flag} {unit}": _help_of_flag(actions[flag], parser) for flag, unit in flags.items()}
        parts.append(_section(topic, lines, width))
    not_used = {", ".join(flags): f"{reason}." for reason, flags in reasons.items()}
    parts.append(_section(NOT_USED, not_used, width))
    parts.append(f"Examples:\n{examples.format(program=called)}")
    parts.append(_section("Exit codes", {str(code): meaning for code, meaning in EXIT_CODES.items()}, width))
    parts.append(f"Documentation:\n  {_documentation()}\n")
    return with_bold_headings("\n".join(parts), sys.stdout)


def _section(title: str, lines: dict[str, str], width: int) -> str:
    """A heading and two columns: a name, and the words about it, beside it or below where the name is long."""
    column = 6 + min(26, max(map(len, lines)))
    text = f"{title}:\n"
    for name, words in lines.items():
        beside = len(name) <= column - 4
        first = f"  {name}".ljust(column) if beside else " " * column
        if not beside:
            text += (
                textwrap.fill(name, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False) + "\n"
            )
        text += textwrap.fill(words, width, initial_indent=first, subsequent_indent=" " * column) + "\n"
    return text


def _help_of_flag(action: argparse.Action, parser: HfArgumentParser) -> str:
    """The words about a flag, with its default and how to switch it off."""
    text = WORDS.get(action.dest) or " ".join((action.help or "").split()).replace("%%", "%")
    choices = f" One of {', '.join(str(choice) for choice in action.choices)}." if action.choices else ""
    off = f"; off: --no_{action.dest}" if f"--no_{action.dest}" in parser._option_string_actions else ""
    return f"{text}{choices} [default: {_default_text(action.default)}{off}]"


def _default_text(value: Any) -> str:
    value = getattr(value, "value", value)
    if value is None or value in ([], ""):
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unit(action: argparse.Action) -> str:
    if isinstance(action.default, bool) or action.nargs == "?":
        return "BOOL"
    return "N" if action.type is int else "NUMBER" if action.type is float else "TEXT"


def _documentation() -> str:
    docs = Path(__file__).resolve().parents[2] / "docs"
    where = str(docs) if docs.is_dir() else "docs/ of the source"
    return f"README.md and docs/command_line.md, in {where} (budget-trainer {__version__})"


def printed_config(name: str, words: Sequence[str]) -> str:
    """The configuration of `[recipe.yaml] --flag value ...` of a script, checked as the script does it.

    Named flags come first, as they were written and with where each is from; they are what YAML reads. The others are
    comments with their defaults, by topic: named, some would exclude each other, and a suite would put them over its grid.

    Raises:
        InputError: what the script refuses.
    """
    path, given, rest = split_recipe(words)
    parser, own, refused = parser_of(name)
    keys = {action.dest for action in parser._actions}
    from_recipe = recipe_words(given, keys)
    values: dict[str, str | list[str] | None] = {}
    if name == "train_mlm":
        from budget_trainer.config.parser import parse_recipe

        parse_recipe(words)
        values = dict.fromkeys(key for key, value in given.items() if is_null(value))
    else:
        from budget_trainer.glue.arguments import parse_request, renamed

        parse_request(words)
        from_recipe, rest = renamed(from_recipe), renamed(rest)
    values |= _written(from_recipe, keys)
    origins = dict.fromkeys(values, str(path))
    values |= _written(rest, keys)
    origins |= dict.fromkeys(_written(rest, keys), "command line")
    return _text(name, values, origins, parser, topics(parser, own, refused))


def _written(words: Sequence[str], keys: Collection[str]) -> dict[str, str | list[str]]:
    """Each flag of these words with what was written behind it: one word, or several."""
    found: dict[str, list[str]] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            flag = flag_of(name, keys)
            found[flag] = [value] if equals else ["false"] if f"no_{flag}" == name else []
        else:
            found[flag].append(word)
    return {flag: values[0] if len(values) == 1 else values or "true" for flag, values in found.items()}


def _text(
    name: str,
    values: dict[str, Any],
    origins: dict[str, str],
    parser: HfArgumentParser,
    found: dict[str, dict[str, str]],
) -> str:
    lines = [
        f"# A configuration of {name}.py (budget-trainer {__version__}); `{name}.py FILE` gives the same run.",
        "# Named, with where each value is from. Everything else has its default, below: uncomment a line to change it.",
        "",
    ]
    for flags in found.values():
        lines += [f"{flag}: {_yaml(values[flag])}  # {origins[flag]}" for flag in flags if flag in origins]
    for topic, flags in found.items():
        defaults = [f"# {flag}: {_default(parser.get_default(flag))}" for flag in flags if flag not in origins]
        if topic != NOT_USED and defaults:
            lines += ["", f"## {topic}", *defaults]
    return "\n".join(lines) + "\n"


def _yaml(value: str | list[str] | None) -> str:
    """What was written, as YAML of one line that reads as the same text."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(_yaml(entry) for entry in value)}]"
    try:
        plain = yaml.load(f"[{value}]", Loader=yaml.BaseLoader) == [value]  # in a list more needs quotes than outside
    except yaml.YAMLError:
        plain = False
    return value if plain else yaml.safe_dump(value, default_style="'", width=10**9, allow_unicode=True).strip("\n")


def _default(value: Any) -> str:
    """A default of the parser, as YAML of one line."""
    value = getattr(value, "value", value)
    dumped = yaml.safe_dump([value], default_flow_style=True, width=10**9)
    return dumped.strip()[1:-1]
