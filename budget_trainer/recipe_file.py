"""A recipe: a flat YAML file whose keys are flags, read as the words of a command line."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.errors import InputError

NULLS = ("null", "~", "None", "")


def split_recipe(argv: Sequence[str]) -> tuple[str | None, dict[str, Any], list[str]]:
    """The path of the recipe that a command line begins with (None: there is none), its content, the other words."""
    words = _join_negative(argv)
    path = words.pop(0) if words and not words[0].startswith("-") else None
    return path, read_recipe(Path(path)) if path is not None else {}, words


def _join_negative(argv: Sequence[str]) -> list[str]:
    """`--flag -5m` as `--flag=-5m`: argparse takes the value for a flag."""
    words: list[str] = []
    for word in argv:
        if words and words[-1].startswith("--") and "=" not in words[-1] and re.match(r"-[\d.]", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def read_recipe(path: Path) -> dict[str, Any]:
    """The flat mapping of a YAML recipe, scalars as the text that was written (`1e-3`, `24:00:00` and `no` too)."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"recipe: {path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe: {path} is not YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(content, dict):
        raise InputError(f"recipe: {path} is not a mapping; write one `flag: value` per line")
    return content


def flag_of(key: str, keys: Collection[str]) -> str:
    """The flag that a key names: `no_<flag>` is the flag itself, unless it has that name."""
    return key if key in keys else key.removeprefix("no_")


def is_null(value: Any) -> bool:
    """Whether a value of a recipe unsets its flag."""
    return isinstance(value, str) and value in NULLS


def recipe_words(given: dict[str, Any], keys: Collection[str]) -> list[str]:
    """A recipe as command-line words, so that there is one conversion and the last one wins. A null has none."""
    return [word for key, value in given.items() for word in as_words(key, value, keys)]


def as_words(key: str, value: Any, keys: Collection[str]) -> list[str]:
    """A line of a recipe as command-line words."""
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(yaml_typed(value))]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if is_null(value):
        return []
    flag = flag_of(key, keys)
    if flag != key and flag in keys:  # no_<flag>: true
        return [f"--{flag}={value.lower() in ('false', 'no', '0')}"]
    return [f"--{key}={value}"]


def yaml_typed(value: Any) -> Any:
    """Scalars inside of a mapping, which argparse does not see, as YAML 1.2 reads them."""
    if isinstance(value, dict):
        return {key: yaml_typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [yaml_typed(inner) for inner in value]
    for convert in (json.loads, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value
