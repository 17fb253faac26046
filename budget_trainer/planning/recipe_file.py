"""A recipe with other values, its comments kept. YAML is the only library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from budget_trainer.errors import InputError

_KEY = re.compile(r"([A-Za-z_]\w*)\s*:")


def filled(text: str, values: Mapping[str, Any], head: str) -> str:
    """The recipe `text` with `values` in the place of its own or at its end, behind `head` as comment lines.

    Values are texts as on the command line, or JSON of a mapping. A recipe that is not written a key to a line (flow
    style, anchors) is written anew, without its comments.
    """
    given = yaml.load(text, Loader=yaml.BaseLoader) or {}
    if not isinstance(given, dict):
        raise InputError("recipe: not a mapping; write one `flag: value` per line")
    for name in values:  # both ways of saying no
        given.pop(f"no_{name}", None)
        given.pop(name.removeprefix("no_"), None)
    wanted = {**given, **{name: _mapping(value) for name, value in values.items()}}
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    dropped = {*values, *(f"no_{name}" for name in values), *(name.removeprefix("no_") for name in values)}
    kept = _without(text, dropped)
    added = "".join(f"{name}: {_scalar(value)}\n" for name, value in values.items())
    result = f"{comment}{kept.rstrip()}\n\n{added}".lstrip("\n")
    try:
        same = yaml.load(result, Loader=yaml.BaseLoader) == _texts(wanted)
    except yaml.YAMLError:
        same = False
    return result if same else comment + yaml.safe_dump(_texts(wanted), sort_keys=False, allow_unicode=True)


def _without(text: str, names: set[str]) -> str:
    """The lines of `text` but for those of these keys, with what is indented below them."""
    lines, dropping = [], False
    for line in text.splitlines():
        found = _KEY.match(line)
        if found:
            dropping = found.group(1) in names
        elif line.startswith("#") or not line.strip():
            dropping = False
        if not dropping:
            lines.append(line)
    return "\n".join(lines)


def _mapping(value: Any) -> Any:
    """What was JSON of a mapping on the command line as that mapping."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _scalar(value: Any) -> str:
    mapping = _mapping(value)
    if isinstance(mapping, dict):
        return json.dumps(mapping)  # YAML reads JSON
    text = str(value)
    return text if re.fullmatch(r"[\w./][\w./+,@%-]*", text, re.ASCII) else json.dumps(text, ensure_ascii=False)


def _texts(value: Any) -> Any:
    """As BaseLoader reads it: every scalar is text."""
    if isinstance(value, dict):
        return {str(key): _texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_texts(inner) for inner in value]
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
