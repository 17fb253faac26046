"""`--print_config`: what a run would be made of, as a recipe that gives the same run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import yaml
from transformers import HfArgumentParser

from budget_trainer import __version__
from budget_trainer.help_text import NOT_USED, parser_of, topics
from budget_trainer.recipe_file import flag_of, is_null, recipe_words, split_recipe


def printed_config(name: str, words: Sequence[str]) -> str:
    """The configuration of `[recipe.yaml] --flag value ...` of a script, checked as the script does it.

    Named flags come first, as they were written and with where each is from; they are what YAML reads. The others are
    comments with their defaults, by topic: named, some would exclude each other, and a suite would put them over its grid.

    Raises:
        InputError: what the script refuses.
    """
    path, given, rest = split_recipe(words)
    parser, own, refused = parser_of(name)
    keys = {action.dest for action in parser._actions}
    from_recipe = recipe_words(given, keys)
    values: dict[str, str | list[str] | None] = {}
    if name == "train_mlm":
        from budget_trainer.recipes import parse_recipe

        parse_recipe(words)
        values = dict.fromkeys(key for key, value in given.items() if is_null(value))
    else:
        from budget_trainer.glue.parsing import parse_request, renamed

        parse_request(words)
        from_recipe, rest = renamed(from_recipe), renamed(rest)
    values |= _written(from_recipe, keys)
    origins = dict.fromkeys(values, str(path))
    values |= _written(rest, keys)
    origins |= dict.fromkeys(_written(rest, keys), "command line")
    return _text(name, values, origins, parser, topics(parser, own, refused))


def _written(words: Sequence[str], keys: Collection[str]) -> dict[str, str | list[str]]:
    """Each flag of these words with what was written behind it: one word, or several."""
    found: dict[str, list[str]] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            flag = flag_of(name, keys)
            found[flag] = [value] if equals else ["false"] if f"no_{flag}" == name else []
        else:
            found[flag].append(word)
    return {flag: values[0] if len(values) == 1 else values or "true" for flag, values in found.items()}


def _text(
    name: str,
    values: dict[str, Any],
    origins: dict[str, str],
    parser: HfArgumentParser,
    found: dict[str, dict[str, str]],
) -> str:
    lines = [
        f"# A configuration of {name}.py (budget-trainer {__version__}); `{name}.py FILE` gives the same run.",
        "# Named, with where each value is from. Everything else has its default, below: uncomment a line to change it.",
        "",
    ]
    for flags in found.values():
        lines += [f"{flag}: {_yaml(values[flag])}  # {origins[flag]}" for flag in flags if flag in origins]
    for topic, flags in found.items():
        defaults = [f"# {flag}: {_default(parser.get_default(flag))}" for flag in flags if flag not in origins]
        if topic != NOT_USED and defaults:
            lines += ["", f"## {topic}", *defaults]
    return "\n".join(lines) + "\n"


def _yaml(value: str | list[str] | None) -> str:
    """What was written, as YAML of one line that reads as the same text."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(_yaml(entry) for entry in value)}]"
    try:
        plain = yaml.load(f"[{value}]", Loader=yaml.BaseLoader) == [value]  # in a list more needs quotes than outside
    except yaml.YAMLError:
        plain = False
    return value if plain else yaml.safe_dump(value, default_style="'", width=10**9, allow_unicode=True).strip("\n")


def _default(value: Any) -> str:
    """A default of the parser, as YAML of one line."""
    value = getattr(value, "value", value)
    dumped = yaml.safe_dump([value], default_flow_style=True, width=10**9)
    return dumped.strip()[1:-1]
