"""Flags of the original -> keys of a recipe, one by one; `rules` then looks at those that hang together."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from budget_trainer.arguments import GROUPS
from budget_trainer.clock import UNITS, format_duration
from budget_trainer.errors import InputError
from budget_trainer.migration.launcher import Launch
from budget_trainer.migration.original_flags import FLAGS, Flag
from budget_trainer.migration.original_values import Given

DEFAULTS: dict[str, Any] = {
    f.name: None if f.default is MISSING else f.default for group in GROUPS for f in fields(group) if f.init
}


@dataclass
class Entry:
    """A line of the recipe."""

    value: Any
    remark: str = ""


@dataclass
class Draft:
    """A recipe in the making: its lines by key, and for flags without a line what has their place."""

    given: Given
    launch: Launch
    entries: dict[str, Entry] = field(default_factory=dict)
    answers: list[tuple[str, str]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, remark: str = "") -> None:
        self.entries[key] = Entry(value, remark)

    def drop(self, key: str, flag: str, answer: str) -> None:
        """Take a line out; where the flag was given, say why."""
        self.entries.pop(key, None)
        if self.given.names(flag):
            self.answers.append((flag, answer))


def first_draft(given: Given, launch: Launch) -> Draft:
    """Every flag that was given, and every default of the original that ours differs from."""
    draft = Draft(given, launch)
    for flag in FLAGS.values():
        named = given.names(flag.name)
        unread = [f"{name} {str(value).lower()}" for name, value in flag.read_with if given[name] != value]
        if flag.key is None or unread:
            if named:
                text = flag.text if flag.key is None else f"the original read it with {unread[0]} only; left out"
                draft.answers.append((flag.name, text))
            continue
        value = converted(flag, given[flag.name])
        if named or (not flag.same and value != DEFAULTS[flag.key]):
            draft.put(flag.key, value, "" if named else f"the original's default of {flag.name}")
    return draft


def converted(flag: Flag, value: Any) -> Any:
    """A value of the original as ours: durations get their unit. InputError: one that is not above zero."""
    if not flag.unit or value is None:
        return value
    if value <= 0:
        unit = {"h": "hours", "m": "minutes"}[flag.unit]
        raise InputError(f"{flag.name}: {value} is not above zero; give {unit}, such as {flag.default}")
    return format_duration(value * UNITS[flag.unit])
