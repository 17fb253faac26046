"""What the stages' command lines share: one-line errors, and the flags that say what to read."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from budget_trainer.core.command import Parser as CommandParser
from budget_trainer.core.errors import InputError
from data_prep.documents import KINDS, Source


class Parser(CommandParser):
    """The parser of a stage, whose help shows the defaults."""

    def __init__(self, stage: str, description: str | None) -> None:
        super().__init__(f"python -m data_prep.{stage}", description, argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")  # the same words for a key of data_prep.prepare


def command_line(stage: str, argv: list[str] | None) -> str:
    """The command as a person would type it again."""
    arguments = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", f"data_prep.{stage}", *arguments])


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that `source_of` reads."""
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        help="files, folders, archives, or one name of the `datasets` library (always streamed)",
    )
    add("--kind", choices=KINDS, default="auto", help="form of the input; auto looks and says what it found")
    add("--errors", choices=("strict", "replace"), default="strict", help="what to do with bytes that are not UTF-8")
    add("--dataset_config", default=None, help="configuration of a `datasets` name, e.g. 20231101.en")
    add("--dataset_split", default="train", help="split of a `datasets` name or folder")
    add("--text_column", default="text", help="column of a `datasets` name or folder that holds the text")


def source_of(args: argparse.Namespace, path: str, cache_dir: Path) -> Source:
    """The source at `path`, read as the flags say; said on stdout when its kind was found by looking."""
    source = Source(
        path=path,
        kind=args.kind,
        errors=args.errors,
        dataset_config=args.dataset_config,
        dataset_split=args.dataset_split,
        text_column=args.text_column,
        cache_dir=cache_dir,
        num_proc=getattr(args, "num_proc", 1),  # not every stage has several
    )
    if args.kind == "auto":
        print(f"{path}: read as {source.kind} (--kind says otherwise)")
    return source
