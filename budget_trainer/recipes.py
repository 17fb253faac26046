"""Recipe first, command line wins, unknown key is an error."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from transformers import HfArgumentParser

from budget_trainer.arguments import GROUPS
from budget_trainer.checked_recipe import Recipe
from budget_trainer.errors import InputError
from budget_trainer.recipe_file import flag_of, is_null, read_recipe, recipe_words, split_recipe
from budget_trainer.refused_flags import REPLACED

__all__ = ["KEYS", "make_parser", "parse_recipe", "read_recipe"]

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
