"""Commands and sweep files of academic-budget-bert as recipes of train_mlm.py.

    python -m budget_trainer.migrate 'deepspeed run_pretraining.py --model_type bert-mlm ...'
    python -m budget_trainer.migrate --output recipe.yaml --num_processes 4 deepspeed run_pretraining.py --fp16 ...
    python -m budget_trainer.migrate --output recipe.yaml train.txt        (or sweep.yaml; - or nothing reads stdin)

Every flag becomes a key of the recipe or is answered in its comments, which also hold the two commands to use. A file holds
one command, on one line or several, with comment lines, or a sweep; other lines of a shell script are not read.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from budget_trainer.core.command import Parser, run_command
from budget_trainer.core.errors import InputError


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Our own flags, wherever they stand: the original has none of their names. `command` is all the rest."""
    parser = Parser("python -m budget_trainer.migrate", __doc__, argparse.RawDescriptionHelpFormatter)
    parser.usage = "%(prog)s [options] [the original's command, quoted or as words, or a file that holds it]"
    add = parser.add_argument
    add("--output", type=Path, help="write the recipe to this new file instead of to stdout")
    add("--num_processes", type=_positive, help="GPUs of all machines; default: what the launcher's flags say, else 8")
    add("--data_dir", type="path", help="where the converted data will be; default: <dataset_path>-blocks")
    add("--combination", type=_positive, help="which of a sweep's grid, from 1 on; the last parameter changes fastest")
    add("--table", action="store_true", help="print the tables of docs/migrating.md instead")
    args, rest = parser.parse_known_args(argv)
    args.command = rest
    return args


def _read_source(command: list[str]) -> str:
    """The text of a command: its words, a file that holds it, or stdin."""
    if command in ([], ["-"]):
        if sys.stdin.isatty():
            raise InputError("command: missing; give the original's command line, a file that holds it, or --help")
        return sys.stdin.read()
    if len(command) > 1:
        return shlex.join(command)
    if not re.search(r"^--|\s|\.py$", command[0]):
        try:
            return Path(command[0]).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"command: {command[0]} is not text; give a text or a YAML file") from None
        except OSError:
            raise InputError(f"command: no file {command[0]!r} can be read; give one, or a whole command") from None
    return command[0]


def _main(argv: Sequence[str] | None) -> None:
    args = _parse(argv)
    if args.output is not None and args.output.exists():
        raise InputError(f"output: {args.output} is there already; give another name, or delete it")
    text = "" if args.table else _read_source(args.command)
    # Heavy imports, behind what can be refused without them.
    from budget_trainer.migrate import reading, recipe

    if args.table:
        sys.stdout.write(recipe.table())
        return
    if reading.SweepFile.describes(text):
        given = reading.SweepFile.read(text).given(args.combination or 1)
        if args.num_processes is not None:
            given = replace(given, processes=args.num_processes, why="--num_processes")
    elif args.combination is not None:
        raise InputError(f"combination: {args.combination} belongs to a sweep file; leave it out with a command")
    else:
        given = reading.read_command(text, args.num_processes)
    draft = recipe.convert(given, args.data_dir)
    text = recipe.recipe_text(draft, str(args.output or "recipe.yaml"))
    if args.output is None:
        sys.stdout.write(text)
        return
    with args.output.open("x", encoding="utf-8") as file:
        file.write(text)
    print(
        f"{args.output}: {len(draft.entries)} keys; its comments hold the two commands to use, and say what is different"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 with one line on stderr."""
    return run_command(lambda: _main(argv))
