"""The text of a recipe: commands, differences and answers as comments, then its keys by subject.

docs/migrating.md's tables, made from the same data as the recipes.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from budget_trainer.config.arguments import GROUPS
from budget_trainer.config.edit import WIDTH, scalar
from budget_trainer.migrate.convert import DEFAULTS, TRAIN_SHARDS, Draft, Entry, data_command, train_shards
from budget_trainer.migrate.original import DIFFERENCES, FLAGS, NO_LIMIT, ORIGINAL_GROUPS, SCRIPTS, Flag
from budget_trainer.migrate.reading import SWITCHES, VALUED, Sweep

HEADINGS = (
    "Model.",
    "Data and masking.",
    "Optimizer.",
    "Time: budget, learning rate over it, what is saved when.",
    "Validation, and what is done when the loss goes wrong.",
    "Model card.",
    "Batch, rates, precision, logging: names of Hugging Face's TrainingArguments.",
)


def recipe_text(
    draft: Draft, recipe: str, sweep: Sweep | None = None, combination: int = 1, source: str = "FILE"
) -> str:
    """YAML for `recipes.parse_recipe`; `recipe` is the file that the launch command names."""
    lines = ["Made by python -m budget_trainer.migrate from the original's flags (IntelLabs/academic-budget-bert)."]
    text = [*_comment(lines[0]), "#", *_commands(draft, recipe)]
    if sweep is not None:
        text += ["#", *_sweep(sweep, combination, source)]
    text += _list("What is different now:", draft.differences)
    text += _list("Flags without a key here:", [f"{name}: {answer}" for name, answer in draft.answers])
    text += _list("The launcher's flags:", [f"{name}: {answer}" for name, answer in draft.launch.answers])
    for heading, group in zip(HEADINGS, GROUPS, strict=True):
        keys = [f.name for f in fields(group) if f.name in draft.entries]
        if keys:
            text += ["", *_comment(heading), *(_line(key, draft.entries[key]) for key in keys)]
    return "\n".join(text) + "\n"


def launch_command(draft: Draft, recipe: str) -> str:
    """What starts the recipe."""
    return draft.launch.command(recipe)


def _commands(draft: Draft, recipe: str) -> list[str]:
    given = draft.given
    lines = _comment(
        "Once, the data: the masked tokens are put back, copies that differ by their masks dropped (needs h5py). "
        "--num_shards: the train shards of dataset_path, divided by the dup_factor they were made with (an epoch is one "
        "shard per process)"
        + (":" if train_shards(draft.given) else f"; here shard_data's default of {TRAIN_SHARDS}:")
    )
    lines += _shell(data_command(draft))
    lines += _comment(f"Then the training, processes: {draft.launch.processes} ({draft.launch.why}):")
    lines += _shell(launch_command(draft, recipe))
    if draft.launch.machines > 1:
        lines += _comment(
            "the same on every machine with its --machine_rank; output_dir on a disk that all of them see."
        )
    if given.names("project_name"):
        name = shlex.quote(given["project_name"])
        lines += _comment(f"Weights & Biases: add --report_to wandb, and WANDB_PROJECT={name} before the command.")
    return lines


def _sweep(sweep: Sweep, combination: int, source: str) -> list[str]:
    lines = _comment(
        f"Combination {combination} of the {sweep.combinations} of a sweep (--combination N gives another); sweep.py runs "
        f"them all: python sweep.py --param_file {shlex.quote(source)}"
    )
    for name, values in sweep.grid.items():
        lines += _comment(f"  {name}: {', '.join(values)}")
    return lines


def _list(heading: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    return ["#", f"# {heading}", *(part for line in dict.fromkeys(lines) for part in _comment(line, "- "))]


def _comment(text: str, mark: str = "") -> list[str]:
    """Comment lines; what is of several lines becomes one, so that nothing can leave the comment."""
    indent = " " * len(mark)
    flat = text if text.startswith("  ") else " ".join(text.split())
    return textwrap.wrap(
        " ".join(flat.splitlines()),
        WIDTH,
        initial_indent=f"# {mark}",
        subsequent_indent=f"# {indent}",
        break_long_words=False,
    )


def _shell(command: str) -> list[str]:
    """A command as comment lines with continuations, cut before flags."""
    lines, line = [], "#  "
    for part in re.split(r" (?=--)", " ".join(command.splitlines())):
        if len(line) + len(part) > WIDTH - 2 and line.strip("# "):
            lines.append(f"{line} \\")
            line = "#      "
        line += f" {part}"
    return [*lines, line]


def _line(key: str, entry: Entry) -> str:
    line = f"{key}: {scalar(entry.value)}"
    return f"{line}  # {entry.remark}" if entry.remark else line


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet. OSError where it cannot be written, FileExistsError where it is there."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


MARKER = "<!-- From here on made by: python -m budget_trainer.migrate --table -->"
UNITS = {"h": " hours", "m": " minutes"}


def table() -> str:
    """Markdown: all flags by group, the launcher's, the differences by defect, the other scripts."""
    parts = [MARKER, "", f"## The {len(FLAGS)} flags of run_pretraining.py", ""]
    parts += ["In brackets: the default. `-` where there is none."]
    for name, flags in ORIGINAL_GROUPS.items():
        rows = [(_theirs(flag), _here(flag), _remark(flag)) for flag in flags]
        parts += ["", f"### {name} ({len(flags)})", "", *_rows(("theirs", "here", "remark"), rows)]
    launcher = [(f"`--{flag}`", text) for flag, text in {**VALUED, **SWITCHES}.items()]
    parts += ["", "## The launcher's flags", "", *_rows(("theirs", "here"), launcher)]
    lines = [(line.defect, line.text) for line in DIFFERENCES]
    parts += ["", "## What a recipe says is different", "", *_rows(("defect", "where it applies"), lines)]
    parts += ["", "## The other scripts"]
    for script in SCRIPTS:
        rows = [(f"`{flag}`", f"`{here}`" if here else "-", remark) for flag, here, remark in script.flags]
        parts += [
            "",
            f"### {script.name}",
            "",
            f"Here: {script.here}.",
            "",
            *_rows(("theirs", "here", "remark"), rows),
        ]
    return "\n".join(parts) + "\n"


def _rows(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    heads = list(heads)
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def _theirs(flag: Flag) -> str:
    return f"`{flag.name}` ({_shown(flag.default)}{UNITS.get(flag.unit, '')})"


def _here(flag: Flag) -> str:
    return f"`{flag.key}` ({_shown(DEFAULTS[flag.key])})" if flag.key else "-"


def _remark(flag: Flag) -> str:
    conditions = " and ".join(f"{name} {_shown(value)}" for name, value in flag.read_with)
    choices = [", ".join(flag.choices)] if flag.choices else []
    return "; ".join([*choices, *filter(None, [flag.text, conditions and f"read with {conditions}"])])


def _shown(value: Any) -> str:
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return "2^63 - 1" if value == NO_LIMIT else f"{value:g}" if isinstance(value, float) else str(value)
