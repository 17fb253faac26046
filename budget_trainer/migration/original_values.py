"""Words of an original command line as typed values, the way its argument parser read them. Standard library only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.migration.original_flags import FLAGS, Flag

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
