"""docs/migrating.md's tables, made from the same data as the recipes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from budget_trainer.migration.differences import DIFFERENCES
from budget_trainer.migration.draft import DEFAULTS
from budget_trainer.migration.launcher import SWITCHES, VALUED
from budget_trainer.migration.original_flags import FLAGS, GROUPS, NO_LIMIT, Flag
from budget_trainer.migration.other_scripts import SCRIPTS

MARKER = "<!-- From here on made by: python -m budget_trainer.migrate --table -->"
UNITS = {"h": " hours", "m": " minutes"}


def table() -> str:
    """Markdown: all flags by group, the launcher's, the differences by defect, the other scripts."""
    parts = [MARKER, "", f"## The {len(FLAGS)} flags of run_pretraining.py", ""]
    parts += ["In brackets: the default. `-` where there is none."]
    for name, flags in GROUPS.items():
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
