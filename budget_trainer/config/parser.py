"""A recipe: a flat YAML file whose keys are flags, read as the words of a command line.

Recipe first, command line wins, unknown key is an error.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from budget_trainer.config.arguments import GROUPS, REPLACED
from budget_trainer.config.recipe import Recipe
from budget_trainer.core.errors import InputError

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


KEYS = {f.name for group in GROUPS for f in fields(group) if f.init}


class _Parser(HfArgumentParser):
    """argparse that answers in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see train_mlm.py --help")


def make_parser() -> HfArgumentParser:
    """The parser of every flag, those too that are refused."""
    groups_of_flags: Any = GROUPS
    return _Parser(groups_of_flags, allow_abbrev=False, prog="train_mlm.py [recipe.yaml]")


def parse_recipe(argv: Sequence[str] | None = None) -> Recipe:
    """The run that `[recipe.yaml] --flag value ...` describes. Raises InputError for anything it cannot read."""
    path, given, words = split_recipe(sys.argv[1:] if argv is None else argv)
    _check_keys(given, f"recipe {path}")
    named = [word.split("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")]
    _check_keys(dict.fromkeys(named), "command line")
    flags = {flag_of(name, KEYS) for name in named}
    parser = make_parser()
    try:
        groups = parser.parse_args_into_dataclasses(
            args=[*recipe_words(given, KEYS), *words], look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"arguments: {' '.join(str(error).split())}; correct the recipe or the command line"
        ) from error
    for key, value in given.items():
        if is_null(value) and key not in flags and parser.get_default(key) is not None:
            owner = next(group for group in groups if hasattr(group, key))
            setattr(owner, key, None)
    model, data, optimizer, budget, watch, card, run = groups
    from_recipe = {flag_of(key, KEYS) for key, value in given.items() if not is_null(value)}  # null names nothing
    return Recipe(model, data, optimizer, budget, watch, card, run, path, frozenset({*from_recipe, *flags}))


def _check_keys(given: dict[str, Any], where: str) -> None:
    for key in given:
        name = flag_of(key, KEYS)
        if name in REPLACED:
            raise InputError(f"{key}: not used here ({where}); {REPLACED[name]}")
        if name not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            fix = f"did you mean {close[0]}?" if close else "see train_mlm.py --help for all flags"
            raise InputError(f"{key}: unknown key ({where}); {fix}")
