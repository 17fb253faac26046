"""The text of a recipe with other values in it: comments and order stay. YAML is the only library."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import yaml

from budget_trainer.config.parser import opposite

WIDTH = 118  # of comments


def edited(base: str, values: Mapping[str, Any], left_out: Collection[str] = (), *, whose: str, head: str = "") -> str:
    """`head` (comments, and keys that `base` loses), then `base` with `values` where its keys stand or at its end.

    Keys of `left_out` are dropped; `whose` the values are is said beside them. A value replaces `no_` of its key too, and
    the other way round: the same flag. A base that is not written a key to a line (flow style, anchors), or that cannot stand
    behind `head`, is written anew, without its comments.
    """
    expected = load(base)
    for name, value in values.items():
        expected.pop(opposite(name), None)
        expected[name] = _read_back(value)
    expected = {name: value for name, value in expected.items() if name not in left_out}
    try:
        text = head + _by_line(base, values, left_out, whose)
        right = load(text) == {**load(head), **expected}
    except (yaml.YAMLError, IndexError):  # several keys in a line, or keys that need others
        text, right = "", False
    return text if right else head + "".join(f"{name}: {scalar(value)}\n" for name, value in expected.items())


def load(text: str) -> dict[str, Any]:
    """The keys of a recipe, every scalar as text; empty where it is no mapping. Raises yaml.YAMLError."""
    loaded = yaml.load(text, Loader=yaml.BaseLoader) if text.strip() else None
    return loaded if isinstance(loaded, dict) else {}


def scalar(value: Any) -> str:
    """A value in one line of YAML, which the reader of recipes takes back as the same; JSON of a mapping is that mapping."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(ValueError):
            value = json.loads(value)
    if value is None or isinstance(value, bool | dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    plain = re.fullmatch(r"[\w./+-][\w./+,%-]*", text, re.ASCII)
    return text if plain or not isinstance(value, str) else json.dumps(text, ensure_ascii=False)


def _read_back(value: Any) -> Any:
    return yaml.load(scalar(value), Loader=yaml.BaseLoader)


def _by_line(base: str, values: Mapping[str, Any], left_out: Collection[str], whose: str) -> str:
    """Line by line: a key's lines are replaced or dropped, its comment stays behind the new value."""
    lines = base.splitlines()
    root = yaml.compose(base, Loader=yaml.BaseLoader) if base.strip() else None
    places = {} if root is None else {key.value: (key.start_mark.line, _last_line(node)) for key, node in root.value}
    for name, (first, last) in sorted(places.items(), key=lambda place: -place[1][0]):
        if name in values:
            lines[first : last + 1] = [_replaced(name, values[name], lines[first : last + 1], whose)]
        elif name in left_out or any(opposite(other) == name for other in values):
            del lines[first : last + 1]
    new = [name for name in values if name not in places]
    if new:
        lines += ["", f"# From {whose}."] if lines else []
        lines += [f"{name}: {scalar(values[name])}" for name in new]
    return "\n".join(lines) + "\n"


def _last_line(node: Any) -> int:
    """Of a value: a block's own mark is behind the comments that follow it."""
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    block_text = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    return int(node.end_mark.line - (1 if block_text else 0))


def _replaced(name: str, value: Any, lines: list[str], whose: str) -> str:
    new = f"{name}: {scalar(value)}"
    if len(lines) > 1:
        return f"{new}  # {whose}'s"
    code, _, remark = lines[0].partition(" #")
    old = " ".join(code.partition(":")[2].split())
    if load(lines[0]).get(name) == _read_back(value):
        return lines[0]
    said = f"{whose}'s; was {old}" if old else f"{whose}'s"
    return f"{new}  # {said}" + (f" ({remark.strip()})" if remark.strip() else "")
