"""Markdown that stays valid whatever the values hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is Markdown already, which `inline` leaves as it is."""

    __slots__ = ()


def inline(value: Any) -> str:
    """One line in which nothing is Markdown or HTML, whatever `value` says."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(value).split()))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([inline(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fence(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"
