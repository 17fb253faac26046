"""Recipe first, command line wins, unknown key is an error."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from budget_trainer.arguments import GROUPS
from budget_trainer.checked_recipe import Recipe
from budget_trainer.errors import InputError
from budget_trainer.refused_flags import REPLACED

NULLS = ("null", "~", "None", "")
KEYS = {f.name for group in GROUPS for f in fields(group) if f.init}


class _Parser(HfArgumentParser):
    """argparse that answers in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see train_mlm.py --help")


def parse_recipe(argv: Sequence[str] | None = None) -> Recipe:
    """The run that `[recipe.yaml] --flag value ...` describes. Raises InputError for anything it cannot read."""
    words = _join_negative(sys.argv[1:] if argv is None else argv)
    path = words.pop(0) if words and not words[0].startswith("-") else None
    given = read_recipe(Path(path)) if path is not None else {}
    _check_keys(given, f"recipe {path}")
    flags = [word.split("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")]
    _check_keys({flag: None for flag in flags if flag != "help"}, "command line")
    groups_of_flags: Any = GROUPS
    parser = _Parser(groups_of_flags, allow_abbrev=False, prog="train_mlm.py [recipe.yaml]")
    from_recipe = [word for key, value in given.items() for word in as_words(key, value)]
    try:
        groups = parser.parse_args_into_dataclasses(args=[*from_recipe, *words], look_for_args_file=False)
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"arguments: {' '.join(str(error).split())}; correct the recipe or the command line"
        ) from error
    for key, value in given.items():
        if value in NULLS and key not in flags:
            owner = next(group for group in groups if hasattr(group, key))
            setattr(owner, key, None)
    model, data, optimizer, budget, watch, card, run = groups
    named = {key for key, value in given.items() if value not in NULLS}  # null unsets a flag: it names nothing
    return Recipe(model, data, optimizer, budget, watch, card, run, path, frozenset({*named, *flags}))


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
    except yaml.YAMLError as error:
        raise InputError(f"recipe: {path} is not YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(content, dict):
        raise InputError(f"recipe: {path} is not a mapping; write one `flag: value` per line")
    return content


def _check_keys(given: dict[str, Any], where: str) -> None:
    for key in given:
        name = key.removeprefix("no_") if key not in KEYS else key
        if name in REPLACED:
            raise InputError(f"{key}: not used here ({where}); {REPLACED[name]}")
        if name not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            fix = f"did you mean {close[0]}?" if close else "see train_mlm.py --help for all flags"
            raise InputError(f"{key}: unknown key ({where}); {fix}")


def as_words(key: str, value: Any) -> list[str]:
    """A recipe line as command-line words, so that there is one conversion and the last one wins."""
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(yaml_typed(value))]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if value in NULLS:
        return []
    if key not in KEYS:  # no_<flag>: true
        return [f"--{key.removeprefix('no_')}={value.lower() in ('false', 'no', '0')}"]
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
