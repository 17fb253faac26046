"""An original command line as text or words -> its flags and its launch. Standard library only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from budget_trainer.errors import InputError
from budget_trainer.migration.launcher import Launch, read_launcher
from budget_trainer.migration.original_values import Given, read_flags
from budget_trainer.migration.other_scripts import SCRIPTS

SCRIPT = "run_pretraining"
ENDS = re.compile(r"(\|\|?|&&?|;|\d?>{1,2}.*|&>.*|2>&1)$")  # the shell's: the command ends before


class Command(NamedTuple):
    """What a command line of the original says."""

    given: Given
    launch: Launch


def read_command(words: Sequence[str], num_processes: int | None = None) -> Command:
    """Flags and launch of one command, from its words or from one text with line continuations.

    Raises:
        InputError: no command of run_pretraining.py, several, or anything in it that the original did not know.
    """
    parts = split_text(words[0]) if len(words) == 1 else [word for word in words if word.strip(" \\\r\n")]
    parts, rest = _up_to_its_end(_join_placeholders(parts))
    if not parts:
        raise InputError("command: empty; give deepspeed run_pretraining.py --flag value ...")
    _refuse_other_scripts(parts)
    at = next((index for index, word in enumerate(parts) if _is_script(word)), None)
    if at is None:
        at = next((index for index, word in enumerate(parts) if word.startswith("--")), len(parts)) - 1
        if at >= 0:
            raise InputError(
                f"command: {parts[at]!r} is not run_pretraining.py; give one of its commands, or its flags alone"
            )
    launch = read_launcher(parts[: max(at, 0)], num_processes)
    given = read_flags(parts[at + 1 :])
    if rest:
        given = Given(
            given.values, (*given.remarks, f"`{' '.join(rest)}` is the shell's: write it behind the new command")
        )
    return Command(given, launch)


def split_text(text: str) -> list[str]:
    """The words of the one command of run_pretraining.py in a text: a line, a pasted example or a script."""
    joined = re.sub(r"\\[ \t]*\r?\n", " ", text)
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    commands = [line for line in lines if SCRIPT in line]
    if len(commands) > 1:
        raise InputError(f"command: there are {len(commands)} of run_pretraining.py in this text; give one at a time")
    # A line break without a continuation inside of quotes, or an example that lost its backslashes: all lines are one.
    broken = commands and any(line.startswith("--") for line in lines)
    chosen = commands[0] if commands and not broken else " ".join(lines)
    try:
        return shlex.split(chosen.removeprefix("$ "))
    except ValueError as error:
        raise InputError(f"command: cannot be split into words ({str(error).lower()}); close the quotes") from None


def _is_script(word: str) -> bool:
    return word.rpartition("/")[2].removesuffix(".py") == SCRIPT


def _join_placeholders(parts: Sequence[str]) -> list[str]:
    """`<dataset path>` of a published command is one word, though the shell would see two."""
    joined: list[str] = []
    for word in parts:
        if joined and joined[-1].startswith("<") and not joined[-1].endswith(">"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _up_to_its_end(parts: list[str]) -> tuple[list[str], list[str]]:
    """The command, and what the shell would do with its output; a `cd x &&` before it is none of it."""
    start = 0
    for index, word in enumerate(parts):
        if ENDS.match(word) and not (word.startswith("<") and word.endswith(">")):
            if any(map(_is_script, parts[start:index])) or not any(map(_is_script, parts[index:])):
                return parts[start:index], parts[index:]
            start = index + 1
    return parts[start:], []


def _refuse_other_scripts(parts: Sequence[str]) -> None:
    for word in parts:
        for script in SCRIPTS:
            if word.rpartition("/")[2] == script.name:
                raise InputError(
                    f"command: {script.name} is not converted; {script.here} does its work, docs/migrating.md has the flags"
                )
        if word.startswith("--"):
            return
