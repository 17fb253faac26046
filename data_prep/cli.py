"""What the stages' command lines share: one-line errors, flags, and the folder that a stage makes."""

import argparse
import dataclasses
import functools
import os
import shlex
import shutil
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from budget_trainer.core.command import Parser as CommandParser
from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder, publish_folder
from data_prep.sources import KINDS, Source


class Parser(CommandParser):
    """The parser of a stage, whose help shows the defaults. doc: of the stage's module; its first line is the description."""

    def __init__(self, stage: str, doc: str | None) -> None:
        description = (doc or "").split("\n")[0]
        super().__init__(f"python -m data_prep.{stage}", description, argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")  # the same words for a key of data_prep.prepare

    def add_sources(self) -> None:
        """The flags that `source_of` reads."""
        add = self.add_argument
        add(
            "--input",
            nargs="+",
            required=True,
            help="files, folders, archives, or one name of the `datasets` library (always streamed)",
        )
        add("--kind", choices=KINDS, default="auto", help="form of the input; auto looks and says what it found")
        add(
            "--errors",
            choices=("strict", "replace"),
            default="strict",
            help="what to do with bytes that are not UTF-8",
        )
        add("--dataset_config", default=None, help="configuration of a `datasets` name, e.g. 20231101.en")
        add("--dataset_split", default="train", help="split of a `datasets` name or folder")
        add("--text_column", default="text", help="column of a `datasets` name or folder that holds the text")

    def add_output(self, what: str = "data folder") -> None:
        """--output_dir and --overwrite, as `output_folder` takes them."""
        self.add_argument("--output_dir", type=Path, required=True, help=f"the {what} to make")
        self.add_argument("--overwrite", action="store_true", help=f"replace an existing {what}")

    def add_options(self, options: type, names: Iterable[str] | None = None) -> None:
        """A flag for each field of the dataclass `options` (those called `names`), with its default, type and help."""
        kinds = typing.get_type_hints(options)
        for field in dataclasses.fields(options):
            if names is not None and field.name not in names:
                continue
            about: dict[str, Any] = {"default": field.default, "help": field.metadata["help"]}
            if kinds[field.name] is bool:
                about["action"] = argparse.BooleanOptionalAction
            else:
                kind = next(iter(typing.get_args(kinds[field.name])), kinds[field.name])  # of `int | None` the first
                about |= {"type": positive if kind is int else kind, "choices": field.metadata["choices"]}
            self.add_argument(f"--{field.name}", **about)


def command(stage: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """A stage's `main`: runs it with the words of the command line, or those given; returns the exit code."""

    @functools.wraps(stage)
    def main(argv: list[str] | None = None) -> int:
        return run_command(lambda: stage(argv))

    return main


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


def refuse_occupied(output: Path, overwrite: bool, what: str, mark: str) -> None:
    """InputError where `output` holds a `what` already (fix: overwrite), or something else that is not empty."""
    occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if occupied and not (output / mark).is_file():
        raise InputError(f"output_dir {output} exists and is no {what}; give another path")
    if occupied and not overwrite:
        raise InputError(f"output_dir {output} already holds a {what}; give another path or --overwrite")


@contextmanager
def output_folder(output: Path, overwrite: bool, what: str, mark: str, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """Gives a new folder beside `output` that takes its place when the block ends well and vanishes when it does not.

    `mark` is the file by which an existing output is recognised as `what`. InputError as `refuse_occupied`, and where the
    output is one of the folders `inputs`, is inside of one, or has one inside (and would replace it)."""
    target = output.resolve()
    for path in inputs:
        source = path.resolve()
        if target == source or source in target.parents or target in source.parents:
            raise InputError(f"output_dir {output} and input {path} overlap; give a path outside of it")
    refuse_occupied(output, overwrite, what, mark)
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    try:
        yield fresh_folder(partial)
        publish_folder(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flag(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that `Parser.add_options` makes a flag of."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def options_of(args: argparse.Namespace, options: type) -> Any:
    """The dataclass `options` with the values of the flags that `Parser.add_options` made."""
    return options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(options)})


def source_of(args: argparse.Namespace, path: str, cache_dir: Path) -> Source:
    """The source at `path`, read as the flags of `Parser.add_sources` say; printed when its kind was found by looking."""
    names = ("kind", "errors", "dataset_config", "dataset_split", "text_column")
    flags = {name: getattr(args, name) for name in names}
    source = Source(
        path, **flags, cache_dir=cache_dir, num_proc=getattr(args, "num_proc", 1)
    )  # not every stage has several
    if args.kind == "auto":
        print(f"{path}: read as {source.kind} (--kind says otherwise)")
    return source
