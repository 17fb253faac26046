"""Markdown that stays valid whatever the values hold. Standard library only, a leaf.

What of a run may be published, and how a card words it. A leaf.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from budget_trainer.core.io import json_types


class Markup(str):
    """Text that is Markdown already, which `inline` leaves as it is."""

    __slots__ = ()


def inline(value: Any) -> str:
    """One line in which nothing is Markdown or HTML, whatever `value` says."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(value).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([inline(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fence(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"


# Of this machine or person, not of the recipe.
PRIVATE = re.compile(r"token|password|secret|api_key|_dir$|_file$")
# A path in a text, behind no letter, digit, closing bracket or slash (`and/or`, `../x`, `</s>`), up to a blank, or to the quote
# that it began with; `address` is a URL, whose slashes are none of ours. A backslash may be Markdown's, before any mark.
_PATH = re.compile(
    r"""(?P<address>(?!file:)\b[A-Za-z][\w+.-]*://\S+)
    | (?P<path>
        (?<![\w./\\~<)\]}%]) (?: (?:file://)?(?:\\?~)?/ | [A-Za-z]:(?:\\|/(?!/)) )
        (?: (?<='/)[^'\n]+(?=') | (?<="/)[^"\n]+(?=")
          | (?!/) (?:[^\s'"`<>|,;:()\[\]{}\\] | \\\S | [',;:()\[\]{}](?=[^\s/,;:.)]))+ )
    )""",
    re.VERBOSE,
)


def dump_yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json_types(value), sort_keys=False, allow_unicode=True, width=1000)


def public(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's arguments everybody may see: no secrets, folders and empty values; of a path its last part."""
    shown = {key: value for key, value in recipe.items() if value is not None and not PRIVATE.search(key)}
    return dict(without_folders(shown))


def without_folders(value: Any) -> Any:
    """`value` with the last part of every path, in all of its texts, that begins at the root or the home of a machine."""
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    # A text that is one path as a whole may hold blanks and whatever else a name may.
    if re.fullmatch(r"(?:~?/|[A-Za-z]:\\).+", value) and len(_PATH.findall(value)) == 1:
        return _last_part(value)
    return _PATH.sub(lambda found: found["address"] or _last_part(found["path"]), value)


def _last_part(path: str) -> str:
    parts = re.split(r"[/\\]+" if path[1] == ":" else "/", path.rstrip("/\\"))
    return parts[-1]
