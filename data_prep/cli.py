"""What the stages' command lines share: one-line errors, flags, and the folder that a stage makes."""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from budget_trainer.core.command import Parser as CommandParser
from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import (
    check_writable,
    fresh_folder,
    is_hidden,
    keeps_its_place,
    made_parents,
    publish_folder,
)
from budget_trainer.data.folder import FORMAT_VERSION
from data_prep.losses import lines
from data_prep.sources import Source

_SOURCE_FLAGS = tuple("kind errors encoding documents_end dataset_config dataset_split text_column drop_holes".split())
_LIBRARIES = ("datasets", "numpy", "pyarrow", "tokenizers", "transformers")
# What a stage makes: the file by which it is told, and the names of all that is in it.
_MADE = {
    "data folder": ("manifest.json", r"manifest\.json|validation\.txt|tokenizer|(train|validation)-\d+-of-\d+\.arrow"),
    "tokenizer": (
        "tokenizer.json",
        r"((tokenizer|special_tokens|added_tokens|vocab|losses)\w*\.json|(vocab|merges)\.txt)",
    ),
    "inspection": ("inspect.json", r"inspect\.(json|png)"),
}


@dataclasses.dataclass(frozen=True)
class Output:
    """The folder `path`, or what that links to, in which a stage makes a `what`; `overwrite`: in the place of an older one."""

    path: Path
    overwrite: bool
    what: str = "data folder"
    how: str = "--overwrite"  # to allow it

    @property
    def mark(self) -> Path:
        """The file that tells a `what`."""
        return self.path / _MADE[self.what][0]

    @property
    def _target(self) -> Path:
        return Path(os.path.realpath(self.path))

    @property
    def work(self) -> Path:
        """The folder `<path>.work`, or `.work` inside of a `path` that keeps its place: for work that can be gone on with."""
        target = self._target
        work = target / ".work" if keeps_its_place(target) else target.with_name(f"{target.name}.work")
        return Path(os.path.realpath(work))

    def check(self, inputs: Iterable[str | Path | None] = ()) -> None:
        """InputError where `path` cannot be written, holds something else or a `what` that must not be replaced, or is one of
        `inputs`, has one inside, or is inside of a data folder of these. Of them, what is no path is passed over."""
        target = self._target
        if "::" in str(target):
            raise InputError(f"output_dir {self.path}: :: is a chain of archives for Datasets; give another path")
        for path in inputs:
            source = Path(os.path.realpath(path or ""))
            within = source in target.parents and (source / "manifest.json").exists()  # of a corpus it is left out
            if path and source.exists() and (within or target == source or target in source.parents):
                raise InputError(f"output_dir {self.path} and input {path} overlap; give a path outside of it")
        found = (
            [path for path in target.iterdir() if not is_hidden(path)]
            if target.is_dir()
            else [target] * target.exists()
        )
        if found and not self.mark.is_file():
            raise InputError(f"output_dir {self.path} exists and is no {self.what}; give another path")
        check_writable(target)
        for path in found:
            if not re.fullmatch(_MADE[self.what][1], path.name):
                what = f"holds {path.name}, which no {self.what} has"
                raise InputError(f"output_dir {self.path} {what}; move it away, or give another path")
        if found and not self.overwrite:
            raise InputError(f"output_dir {self.path} already holds a {self.what}; give another path or {self.how}")

    @contextmanager
    def new(self, inputs: Iterable[str | Path | None] = (), aside: Path | None = None) -> Iterator[Path]:
        """Gives a new folder, `aside` or one beside `path`, that takes its place when the block ends well and vanishes when it
        does not. InputError as `check`."""
        self.check(inputs)
        target = self._target
        name = (
            f".partial-{target.name[:50]}-{secrets.token_hex(4)}"  # on another machine a process may have our number
        )
        partial = aside or (target if keeps_its_place(target) else target.parent) / name
        with made_parents(partial):
            try:
                yield fresh_folder(partial)
                self.check()  # another process may have been faster
                publish_folder(partial, target, self.mark.name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def write(
        self,
        build: Callable[[Path], dict[str, Any]],
        command: str,
        inputs: Iterable[str | Path | None] = (),
        aside: Path | None = None,
    ) -> dict[str, Any]:
        """Make a data folder: `build` fills the empty folder that it is given and returns the manifest's content, as this does,
        which says the format's version, `command`, the time and the versions of what ran besides."""
        with self.new(inputs, aside) as folder:
            content = build(folder)
            manifest = {
                "format_version": FORMAT_VERSION,
                **content,
                "command": command,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": {
                    "python": platform.python_version(),
                    **{name: importlib.metadata.version(name) for name in _LIBRARIES},
                },
            }
            (folder / self.mark.name).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for line in lines(content):
            print(line)
        return content

    def summary(self, content: dict[str, Any]) -> str:
        """One line about a data folder with this content of its manifest."""
        train, validation = content["splits"]["train"], content["splits"]["validation"]
        return (
            f"{self.path}: {train['rows']:,} train blocks of {content['block_size']} ({train['tokens'] / 1e6:.1f} M tokens, "
            f"{train['documents']:,} documents), {validation['rows']:,} validation blocks"
        )


class _Arguments(argparse.Namespace):
    """What `Parser.parse` found. command_line: the command as a person would type it again; others: words of no known flag."""

    command_line: str
    others: list[str]

    def options(self, kind: type) -> Any:
        """The dataclass `kind` with the values of the flags that `Parser.add_options` made."""
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})

    def source(self, path: str, cache_dir: Path) -> Source:
        """The source at `path`, read as the flags of `Parser.add_sources` say; printed when its kind was found by looking."""
        flags = {name: getattr(self, name) for name in _SOURCE_FLAGS}
        source = Source(path, **flags, cache_dir=cache_dir, num_proc=getattr(self, "num_proc", 1))
        if self.kind == "auto":
            print(f"{path}: read as {source.kind} (--kind says otherwise)")
        return source


class Parser(CommandParser):
    """The parser of a stage, whose help shows the defaults. doc: of the stage's module; its first line is the description."""

    def __init__(self, stage: str, doc: str | None) -> None:
        self._module = f"python -m data_prep.{stage}"
        super().__init__(self._module, (doc or "").split("\n")[0], argparse.ArgumentDefaultsHelpFormatter)
        self.register("type", "count", _count)

    def parse(self, argv: list[str] | None, more: bool = False) -> _Arguments:
        """What `argv`, or the command line, says. more: other flags are no error, but `others`."""
        words = sys.argv[1:] if argv is None else argv
        args = _Arguments(command_line=shlex.join([*self._module.split(), *words]))
        if more:
            args.others = self.parse_known_args(words, args)[1]
        else:
            self.parse_args(words, args)
        return args

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")  # the same words for a key of data_prep.prepare

    def add_sources(self) -> None:
        """The flags that `_Arguments.source` reads."""
        what = "files, folders, archives, or one name of the `datasets` library (always streamed)"
        self.add_argument("--input", type="path", nargs="+", required=True, help=what)
        self.add_options(Source, _SOURCE_FLAGS)

    def add_output(self, what: str = "data folder") -> None:
        """--output_dir and --overwrite, as `Output` takes them."""
        self.add_argument("--output_dir", type=Path, required=True, help=f"the {what} to make")
        self.add_argument("--overwrite", action="store_true", help=f"replace an existing {what}")

    def add_options(self, options: type, names: Iterable[str] | None = None) -> None:
        """A flag for each field of the dataclass `options` (those called `names`), with its default, type and help."""
        kinds = typing.get_type_hints(options)
        for field in dataclasses.fields(options):
            if names is not None and field.name not in names:
                continue
            about: dict[str, Any] = {"default": field.default, "help": field.metadata["help"].replace("%", "%%")}
            if kinds[field.name] is bool:
                about["action"] = argparse.BooleanOptionalAction
            else:
                kind = next(iter(typing.get_args(kinds[field.name])), kinds[field.name])  # of `int | None` the first
                kind = "path" if field.metadata["path"] else "count" if kind is int else kind
                about |= {"type": kind, "choices": field.metadata["choices"]}
            self.add_argument(f"--{field.metadata['name'] or field.name}", dest=field.name, **about)


def command(stage: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """A stage's `main`: runs it with the words of the command line, or those given; returns the exit code."""

    @functools.wraps(stage)
    def main(argv: list[str] | None = None) -> int:
        owner, before = os.getpid(), signal.getsignal(signal.SIGTERM)

        def end(number: int, frame: Any) -> None:
            if os.getpid() != owner:  # a process of a pool, which has inherited this
                os._exit(128 + number)
            raise KeyboardInterrupt  # as Ctrl-C: what was begun is cleared away, the pools end

        if threading.current_thread() is not threading.main_thread():  # it gets no signals
            return run_command(lambda: stage(argv))
        signal.signal(signal.SIGTERM, end)
        try:
            return run_command(lambda: stage(argv))
        finally:
            signal.signal(signal.SIGTERM, before)

    return main


def _count(text: str) -> int:
    """The argparse type "count": an integer of at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
