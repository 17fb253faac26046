"""What the original was given: a command line of run_pretraining.py, or a sweep file of generate_training_commands.py."""

from __future__ import annotations

import argparse
import difflib
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NoReturn

import yaml

from budget_trainer.core.errors import InputError
from budget_trainer.migrate.flags import FLAGS, Flag, Given

_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_SECTIONS = ("hyperparameters", "default_parameters")
_LAUNCHER = re.compile(
    r"(?:\S*/)?(python[\d.]*|deepspeed|torchrun|accelerate launch)(?: -u| -m| torch\.distributed\.(?:launch|run))*"
    r"(?: --(?:num_gpus|nproc[_-]per[_-]node|num_processes)[= ]([1-9]\d*))?(?= |$)"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """InputError, which begins with the flag and ends with the fix."""
        message = message.removeprefix("argument --")
        raise InputError(message if "; " in message else f"{message}; docs/migrating.md lists types and defaults")


@cache
def _flag_parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in FLAGS.values():
        read = partial(_typed, flag)
        if flag.kind is bool:
            parser.add_argument(f"--{flag.name}", type=read, nargs="?", const=True)
            if flag.default:
                parser.add_argument(f"--no_{flag.name}", dest=flag.name, action="store_const", const=False)
        else:
            parser.add_argument(f"--{flag.name}", type=read, choices=flag.choices or None)
    return parser


def _typed(flag: Flag, text: str) -> Any:
    """The value of a flag. ArgumentTypeError: it is of another type, or a variable of the shell."""
    if re.search(r"^~|[$`]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is for the shell to fill in; write what it stands for")
    if flag.kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise argparse.ArgumentTypeError(f"{text!r} is not true or false; write --{flag.name} or leave it out")
        return text.lower() in _TRUE
    try:
        value = flag.kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(text)
    except ValueError:
        kind = "a whole number" if flag.kind is int else "a number"
        fix = f"write --{flag.name} {1 if flag.default is None else flag.default}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {kind}; {fix}") from None
    return value.lower() if flag.name == "optimizer_type" else value  # as the original did


def _read_flags(words: Sequence[str], where: str = "command") -> Given:
    """`--flag value`, `--flag=value`, `--switch` and `--no_switch` of run_pretraining.py; the last of a flag counts."""
    values, rest = _flag_parser().parse_known_args(words)
    if not rest:
        return Given(vars(values))
    if not rest[0].startswith("--"):
        raise InputError(f"{where}: {rest[0]!r} belongs to no flag; quote a value with spaces, or take it out")
    name = rest[0].removeprefix("--").partition("=")[0]
    ours = {flag.key: flag.name for flag in FLAGS.values() if flag.key} | {name: name for name in FLAGS}
    close = difflib.get_close_matches(name.replace("-", "_"), ours, n=1)
    fix = f"did you mean {ours[close[0]]}?" if close else f"docs/migrating.md lists all {len(FLAGS)}"
    raise InputError(f"{name}: unknown to the original's run_pretraining.py ({where}); {fix}")


def read_command(text: str, num_processes: int | None = None) -> Given:
    """Flags and processes of `LAUNCHER ... run_pretraining.py --flag value ...`; `num_processes` wins over the launcher's.

    Raises:
        InputError: no command of run_pretraining.py, several, or anything in it that the original did not know.
    """
    words = _split(text)
    scripts = [n for n, word in enumerate(words) if re.fullmatch(r"(.*/)?run_pretraining(\.py)?", word)]
    if not words:
        raise InputError("command: empty; give deepspeed run_pretraining.py --flag value ...")
    if len(scripts) > 1:
        raise InputError(f"command: there are {len(scripts)} of run_pretraining.py in this text; give one at a time")
    if not scripts and not words[0].startswith("--"):
        raise InputError(
            f"command: {words[0]!r} begins none of run_pretraining.py; docs/migrating.md has other scripts"
        )
    start = scripts[0] if scripts else -1  # flags alone are those of the published command
    before = words[: max(0, start)]
    named = list(itertools.takewhile(lambda word: re.match(r"[A-Za-z_]\w*=", word), before))  # NAME=value
    line = " ".join(before[len(named) :]) or "deepspeed"
    visible = next((word.partition("=")[2] for word in named if word.startswith("CUDA_VISIBLE_DEVICES=")), "")
    processes, why = _read_launcher(line, num_processes, visible)
    environment = "".join(f"{shlex.quote(word)} " for word in named)
    return replace(_read_flags(words[start + 1 :]), processes=processes, why=why, environment=environment)


def _read_launcher(line: str, num_processes: int | None, visible: str) -> tuple[int, str]:
    """How many processes the words before the script start, on the GPUs `visible`, and why that many."""
    found = _LAUNCHER.match(line)
    unread = line[found.end() :].strip() if found else line
    if not found or (unread and num_processes is None):
        raise InputError(
            f"command: {line!r} before the script is not read, but for a known launcher and its number of GPUs; write "
            "deepspeed there, and add --num_processes N, the GPUs of all machines"
        )
    program, count = found.groups()
    if num_processes is not None:
        return num_processes, "--num_processes" + (f"; {unread} is not read" if unread else "")
    if count is not None:
        return int(count), f"told to {program}"
    if program.startswith(("python", "torchrun")):
        return 1, f"{program} starts one"
    return (len(visible.split(",")), "CUDA_VISIBLE_DEVICES") if visible else (Given.processes, Given.why)


def _split(text: str) -> list[str]:
    """The words of a text: lines may end in a backslash or not, and lines that are comments are left out.

    `<dataset path>`, a placeholder of the published command, is one word, though a shell would see two.
    """
    lines = [line.strip().removesuffix("\\") for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"(?<=[\s=])<[^<>]*>(?=\s|$)", lambda found: shlex.quote(found[0]), " ".join(lines))
    try:
        return shlex.split(joined)
    except ValueError as error:
        raise InputError(f"command: cannot be split into words ({str(error).lower()}); close the quotes") from None


@dataclass(frozen=True)
class SweepFile:
    """The lists of `hyperparameters` and the values of `default_parameters` as they are written, whatever their names."""

    grid: dict[str, list[str]]
    fixed: dict[str, str]

    @staticmethod
    def describes(text: str) -> bool:
        """Whether a text is such a file and no command."""
        return re.search(rf"^['\"]?({'|'.join(_SECTIONS)})['\"]?\s*:", text, re.M) is not None

    @classmethod
    def read(cls, text: str) -> SweepFile:
        """InputError: not such a file, an empty list, a name in both sections. PyYAML would make a text of 1e-3."""
        try:
            content = yaml.load(text, Loader=yaml.BaseLoader)
        except yaml.YAMLError as error:
            raise InputError(f"sweep file: is not YAML ({' '.join(str(error).split())}); correct it") from None
        for name, section in content.items():
            if name not in _SECTIONS:
                raise InputError(f"{name}: not a section of a sweep file; it has {' and '.join(_SECTIONS)}")
            if section not in ("", "null", "~") and not isinstance(section, dict):
                raise InputError(f"{name}: is not a mapping; write one `flag: value` per line")
        grid, fixed = ({} if isinstance(content.get(name, ""), str) else content[name] for name in _SECTIONS)
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{name}: {values!r} is not a list of values; write {name}: [first, second]")
            if name in fixed:
                raise InputError(f"{name}: stands in {' and in '.join(_SECTIONS)}; take it out of one")
        for name, value in [*fixed.items(), *((name, value) for name, values in grid.items() for value in values)]:
            if not isinstance(value, str):
                raise InputError(f"{name}: {value!r} is not one value; write a number or a word")
        return cls(grid, fixed)

    @property
    def combinations(self) -> int:
        """How many commands the grid makes."""
        return math.prod(map(len, self.grid.values()))

    def commands(self) -> Iterator[list[str]]:
        """The flags of each combination as they stand in the file; the last parameter changes fastest."""
        for chosen in itertools.product(*self.grid.values()):
            yield _flags([*zip(self.grid, chosen, strict=True), *self.fixed.items()])

    def given(self, combination: int) -> Given:
        """The flags of one combination, from 1 on. InputError: they are not the original's, or it is not there."""
        count, where = self.combinations, "sweep file"
        if not 1 <= combination <= count:
            raise InputError(f"combination: {combination} is not one of the {count} of this sweep; give 1 to {count}")
        # All values, not this combination's alone.
        _read_flags(_flags((name, value) for name, values in self.grid.items() for value in values), where)
        # What the original's generator added to each command, so that runs did not write into one folder.
        added = ["--job_name=bert_large_experiment", f"--current_run_id={combination}"]
        words = next(itertools.islice(self.commands(), combination - 1, None))
        values = _read_flags([*added, *words], where).values
        about = f"combination {combination} of {count} of {', '.join(self.grid) or 'no list'}; sweep.py runs them all"
        off = [name for name, value in values.items() if value is False]
        remarks = (f"{name}: false means false; the original's generator made --{name} of it (B27)" for name in off)
        return Given(values, (about, *remarks))


def _flags(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [f"--{name}={value}" for name, value in pairs]
