"""`--help` of a script and `--print_config`: what its parser knows of every flag, by topic."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from budget_trainer import __version__
from budget_trainer.config.parser import Flag, FlagParser, Parsed
from budget_trainer.core.command import EXIT_CODES, QUESTIONS, program, with_bold_headings
from budget_trainer.core.package_data import launch_text

_UNITS = {
    "TIME": "24h, 90m, 1h30m or 45s; a bare number where the flag says so",
    "MOMENT": "ISO 8601 with a time zone: 2026-12-24T08:00+01:00, or Z for UTC",
    "SHARE": "from 0 to 1; with %, of a hundred",
    "STAGES": "VALUE@SHARE of the schedule, joined by commas",
    "N, ROWS, STEPS, TOKENS, ...": "whole numbers, of these",
    "RATE": "a learning rate, per step",
    "NATS": "of a loss, the mean over predicted tokens",
    "BOOL": "true or false; alone it means true; --no_FLAG means false",
}
OTHERS = "Others of Transformers' TrainingArguments"
NOT_USED = "TrainingArguments that are not used here, with what to do instead"
_RECIPE = (
    "A recipe is a flat YAML file whose keys are these flags, or the name of one of the package (budget-recipes lists them);\n"
    "the command line wins over it."
)
_QUESTIONS = {
    "--help, -h": "This text.",
    "--version": "The version.",
    "--print_config": "Print the configuration as a recipe, with where each value is from; starts and writes nothing.",
}


def answer(words: Sequence[str], parser: FlagParser, check: Callable[[Sequence[str]], Any]) -> str:
    """What `--help` or `--print_config` among the words asks for. `check` raises InputError for what the script refuses."""
    if "--help" in words or "-h" in words:
        return _help_text(parser)
    rest = [word for word in words if word not in QUESTIONS]
    check(rest)
    return _config_text(parser, parser.parse(rest))


def _topics(parser: FlagParser) -> dict[str, list[Flag]]:
    """Every flag under its topic, in the order of the parser's topics; then the others, then those that are refused."""
    found: dict[str, list[Flag]] = {topic: [] for topic in (*parser.topics, OTHERS, NOT_USED)}
    for name, known in parser.flags.items():
        found[NOT_USED if name in parser.refused else known.topic or OTHERS].append(known)
    return {topic: flags for topic, flags in found.items() if flags}


def _help_text(parser: FlagParser) -> str:
    """The help of a script; headings in bold where stdout is a terminal."""
    called = program(f"{parser.script}.py")
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    found = _topics(parser)
    reasons: dict[str, list[str]] = {}
    for known in found.pop(NOT_USED, []):
        reasons.setdefault(parser.refused[known.name], []).append(f"--{known.name}")
    sections: dict[str, dict[str, str]] = {"Units": _UNITS, "Questions": _QUESTIONS}
    for topic, flags in found.items():
        sections[topic] = {f"--{known.name} {known.unit}": _about(known) for known in flags}
    sections[NOT_USED] = {", ".join(flags): f"{reason}." for reason, flags in reasons.items()}
    parts = [f"usage: {called} [recipe.yaml] [--flag value ...]\n\n{parser.about}\n{_RECIPE}\n"]
    parts += [_section(title, lines, width) for title, lines in sections.items() if lines]
    launch = launch_text("cpu", script=parser.script)
    parts.append(f"Examples:\n{parser.examples.format(program=called, launch=launch)}")
    parts.append(_section("Exit codes", {str(code): meaning for code, meaning in EXIT_CODES.items()}, width))
    docs = Path(__file__).resolve().parents[2] / "docs"
    where = str(docs) if docs.is_dir() else "docs/ of the source"
    parts.append(f"Documentation:\n  README.md and docs/command_line.md, in {where} (budget-trainer {__version__})\n")
    return with_bold_headings("\n".join(parts), sys.stdout)


def _section(title: str, lines: dict[str, str], width: int) -> str:
    """A heading and two columns: a name, and the words about it, beside it or below where the name is long."""
    column = 6 + min(26, max(map(len, lines)))
    indent = " " * column
    text = f"{title}:\n"
    for name, words in lines.items():
        first = f"  {name}".ljust(column)
        if len(name) > column - 4:
            text += textwrap.fill(name, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
            text, first = text + "\n", indent
        text += textwrap.fill(words, width, initial_indent=first, subsequent_indent=indent) + "\n"
    return text


def _about(known: Flag) -> str:
    """The words about a flag, with its default and how to switch it off."""
    text = " ".join(known.help.split()).replace("%%", "%")
    said = all(choice in text for choice in known.choices)
    choices = "" if said else f" One of {', '.join(known.choices)}."
    special = "".join(f" {number}: {meaning}." for number, meaning in known.special.items())
    off = f"; off: --no_{known.name}" if known.default is True else ""
    return f"{text}{choices}{special} [default: {_default_text(known.default)}{off}]"


def _default_text(value: Any) -> str:
    value = getattr(value, "value", value)
    if value is None or value in ([], ""):
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _config_text(parser: FlagParser, parsed: Parsed) -> str:
    """What was asked for as a recipe that gives the same run.

    Named flags come first, as they were written and with where each is from; they are what YAML reads. The others are
    comments with their defaults, by topic: named, some would exclude each other, and a suite would put them over its grid.
    """
    script, written = f"{parser.script}.py", parsed.written
    lines = [
        f"# A configuration of {script} (budget-trainer {__version__}); `{script} FILE` gives the same run.",
        "# Named, with where each value is from. Everything else has its default, below: uncomment a line to change it.",
        "",
    ]
    found = _topics(parser)
    for known in (known for flags in found.values() for known in flags if known.name in written):
        entry = written[known.name]
        lines.append(f"{known.name}: {_yaml(entry.words)}  # {entry.where.removeprefix('recipe ')}")
    for topic, flags in found.items():
        defaults = [f"# {known.name}: {_default(known.default)}" for known in flags if known.name not in written]
        if topic != NOT_USED and defaults:
            lines += ["", f"## {topic}", *defaults]
    return "\n".join(lines) + "\n"


def _yaml(words: Sequence[str] | None) -> str:
    """What was written, as YAML of one line that reads as the same text."""
    if words is None:
        return "null"
    quoted = [_quoted(word) for word in words or ["true"]]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"


def _quoted(word: str) -> str:
    try:
        plain = yaml.load(f"[{word}]", Loader=yaml.BaseLoader) == [word]  # in a list more needs quotes than outside
    except yaml.YAMLError:
        plain = False
    return word if plain else yaml.safe_dump(word, default_style="'", width=10**9, allow_unicode=True).strip("\n")


def _default(value: Any) -> str:
    """A default of the parser, as YAML of one line."""
    dumped = yaml.safe_dump([getattr(value, "value", value)], default_flow_style=True, width=10**9)
    return dumped.strip()[1:-1]
