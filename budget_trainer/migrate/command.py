"""From a command line or a sweep file of the original academic-budget-bert to a recipe of train_mlm.py.

    python -m budget_trainer.migrate 'deepspeed run_pretraining.py --model_type bert-mlm ...'
    python -m budget_trainer.migrate --output recipe.yaml --num_processes 4 deepspeed run_pretraining.py --fp16 ...
    python -m budget_trainer.migrate --output recipe.yaml train.sh         (or sweep.yaml; - or nothing reads stdin)

Every flag becomes a key of the recipe or is answered in its comments, which also hold the two commands to use. Our own flags
stand before a command that is given as several words, and on either side of one that is quoted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from budget_trainer.core.command import Parser, run_command
from budget_trainer.core.errors import InputError


class _Parser(Parser):
    """The advice is about the original's command."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; begin the command with deepspeed run_pretraining.py, see --help")


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return value


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser("python -m budget_trainer.migrate", __doc__, argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, help="write the recipe here, to a file that is not there yet, instead of to stdout")
    add(
        "--num_processes",
        type=_positive,
        help="GPUs of all machines together; default: what the launcher's flags say, else 8",
    )
    add("--data_dir", help="where the converted data will be; default: <dataset_path>-blocks")
    add(
        "--combination",
        type=_positive,
        default=1,
        help="which one of a sweep's grid, from 1 on; the last parameter changes fastest",
    )
    add("--table", action="store_true", help="print the tables of docs/migrating.md instead")
    add(
        "command",
        nargs=argparse.REMAINDER,
        help="the original's command, as one word or several, or a file that holds it",
    )
    args = parser.parse_args(argv)
    command = args.command
    if command and (command[0] == "-" or _is_text(command[0]) or _is_file(command)):
        args = parser.parse_args(command[1:], args)  # one word: our flags may follow it
        if args.command:
            raise InputError(f"command: {args.command[0]!r} follows a whole command; give one, or words only")
        args.command = command[:1]
    return args


def _is_text(word: str) -> bool:
    """Whether a word is a whole command."""
    return any(sign.isspace() for sign in word)


def _is_file(command: Sequence[str]) -> bool:
    """Whether the command lies in a file: not where it begins with a file, an interpreter or the script."""
    alone = len(command) == 1 or command[1].startswith("--")
    return alone and not _is_text(command[0]) and Path(command[0]).suffix != ".py" and Path(command[0]).is_file()


def _source(command: list[str]) -> tuple[list[str], str]:
    """The words or the text of a command, from stdin or a file too, and what to call them."""
    if len(command) == 1 and _is_file(command):
        try:
            return [Path(command[0]).read_text(encoding="utf-8")], command[0]
        except UnicodeDecodeError:
            raise InputError(
                f"command: {command[0]} is not text; give a shell script, a text or a YAML file"
            ) from None
    if command in ([], ["-"]):
        if sys.stdin.isatty():
            raise InputError("command: missing; give the original's command line, a file that holds it, or --help")
        return [sys.stdin.read()], "FILE"
    if len(command) == 1 and command[0].endswith((".yaml", ".yml", ".sh", ".txt")):
        raise InputError(f"command: the file {command[0]} is not there; give one that is, or a command")
    return command, "FILE"


def _convert(args: argparse.Namespace) -> tuple[Any, str]:
    """The draft of the recipe and its text."""
    words, source = _source(args.command)
    # Heavy imports, behind what can be refused without them.
    from budget_trainer.migrate.convert import convert
    from budget_trainer.migrate.reading import is_sweep, read_command, read_launcher, read_sweep
    from budget_trainer.migrate.text import recipe_text

    recipe = str(args.output or "recipe.yaml")
    if len(words) == 1 and is_sweep(words[0]):
        sweep = read_sweep(words[0], args.combination)
        draft = convert(sweep.given, read_launcher(["deepspeed"], args.num_processes), args.data_dir)
        return draft, recipe_text(draft, recipe, sweep, args.combination, source)
    if args.combination != 1:
        raise InputError(
            f"combination: {args.combination} belongs to a sweep file, and this is a command; leave it out"
        )
    given, launch = read_command(words, args.num_processes)
    draft = convert(given, launch, args.data_dir)
    return draft, recipe_text(draft, recipe)


def _main(argv: Sequence[str] | None) -> None:
    args = _parse(argv)
    if args.table:
        from budget_trainer.migrate.text import table

        sys.stdout.write(table())
        return
    if args.output is not None and args.output.exists():
        raise InputError(f"output: {args.output} is there already; give another name, or delete it")
    draft, text = _convert(args)
    if args.output is None:
        sys.stdout.write(text)
        return
    from budget_trainer.migrate.text import launch_command, write_new

    write_new(args.output, text)
    print(f"{args.output}: {len(draft.entries)} keys; its comments say what is different and answer the other flags")
    print(launch_command(draft, str(args.output)))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 with one line on stderr."""
    return run_command(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
