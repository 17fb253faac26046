"""`--help` of the two scripts: every flag of the parser by topic, with unit and default, and what stands at the end."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from budget_trainer import __version__
from budget_trainer.command import EXIT_CODES, program, with_bold_headings
from budget_trainer.help_groups import GLUE, TRAIN, UNITS, WORDS, units

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
        from budget_trainer import recipes
        from budget_trainer.refused_flags import REPLACED

        return recipes.make_parser(), TRAIN, REPLACED
    from budget_trainer.glue import parsing
    from budget_trainer.glue.arguments import REFUSED

    return parsing.make_parser(), GLUE, REFUSED


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
        lines = {f"--{flag} {unit}": _text(actions[flag], parser) for flag, unit in flags.items()}
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


def _text(action: argparse.Action, parser: HfArgumentParser) -> str:
    """The words about a flag, with its default and how to switch it off."""
    text = WORDS.get(action.dest) or " ".join((action.help or "").split()).replace("%%", "%")
    choices = f" One of {', '.join(str(choice) for choice in action.choices)}." if action.choices else ""
    off = f"; off: --no_{action.dest}" if f"--no_{action.dest}" in parser._option_string_actions else ""
    return f"{text}{choices} [default: {_default(action.default)}{off}]"


def _default(value: Any) -> str:
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
    docs = Path(__file__).resolve().parent.parent / "docs"
    where = str(docs) if docs.is_dir() else "docs/ of the source"
    return f"README.md and docs/command_line.md, in {where} (budget-trainer {__version__})"
