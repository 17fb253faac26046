"""The text of a recipe: commands, differences and answers as comments, then its keys by subject."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from budget_trainer.arguments import GROUPS
from budget_trainer.migration.convert import TRAIN_SHARDS, data_command, train_shards
from budget_trainer.migration.draft import Draft, Entry
from budget_trainer.migration.original_sweep import Sweep
from budget_trainer.recipe_edit import WIDTH, scalar

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
