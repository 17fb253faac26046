"""What the original was given: a command line of run_pretraining.py, or a sweep file of generate_training_commands.py."""

from __future__ import annotations

import argparse
import difflib
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, NoReturn

import yaml

from budget_trainer.core.errors import InputError
from budget_trainer.migrate.flags import FLAGS, Flag, Given

_MACHINE = 8  # GPUs of the paper's machine: assumed where a launcher takes all that are there
_ASSUMED = f"assumed, {_MACHINE} as on the paper's machine: --num_processes N says it"
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_KINDS = {int: "a whole number", float: "a number"}
_SECTIONS = ("hyperparameters", "default_parameters")


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
        fix = f"write --{flag.name} {1 if flag.default is None else flag.default}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {_KINDS[flag.kind]}; {fix}") from None
    return value.lower() if flag.name == "optimizer_type" else value  # as the original did


def _read_flags(words: Sequence[str], where: str = "command") -> Given:
    """`--flag value`, `--flag=value`, `--switch` and `--no_switch` of run_pretraining.py; the last of a flag counts.

    Raises:
        InputError: an unknown flag (with the nearest name), a word that belongs to none, a value of the wrong type.
    """
    values, rest = _flag_parser().parse_known_args(words)
    if rest and rest[0].startswith("--"):
        find_flag(rest[0].removeprefix("--").partition("=")[0], where)
    if rest:
        raise InputError(
            f"{where}: {rest[0]!r} belongs to no flag; quote a value with spaces, or take it out (nothing else of a shell "
            "script is read)"
        )
    return Given(vars(values))


def find_flag(name: str, where: str = "command") -> Flag:
    """The original's flag of this name. InputError: there is none, with the nearest."""
    if name in FLAGS:
        return FLAGS[name]
    ours = {flag.key: flag.name for flag in FLAGS.values() if flag.key} | {name: name for name in FLAGS}
    close = difflib.get_close_matches(name.replace("-", "_"), ours, n=1)
    fix = f"did you mean {ours[close[0]]}?" if close else f"docs/migrating.md lists all {len(FLAGS)}"
    raise InputError(f"{name}: unknown to the original's run_pretraining.py ({where}); {fix}")


class Launch(NamedTuple):
    """How many processes train, and why that many; `environment` is NAME=value words before the launcher."""

    processes: int
    why: str = ""
    environment: str = ""

    def command(self, recipe: str) -> str:
        """`accelerate launch` of train_mlm.py with this recipe, on one machine."""
        profile = f"ddp.yaml --num_processes {self.processes}" if self.processes > 1 else "single_gpu.yaml"
        launcher = f"accelerate launch --config_file accelerate_configs/{profile}"
        return f"{self.environment}{launcher} train_mlm.py {shlex.quote(recipe)}"


def read_launcher(words: Sequence[str], num_processes: int | None = None) -> Launch:
    """What the words before the script say: how many processes. `num_processes` wins over them.

    Raises:
        InputError: another launcher, a number that is none, a flag that is not read.
    """
    named = list(itertools.takewhile(lambda word: re.match(r"[A-Za-z_]\w*=", word), words))
    program, *rest = words[len(named) :] or ["deepspeed"]  # flags alone: the published command
    program = program.rpartition("/")[2]
    if not re.fullmatch(r"python[\d.]*|deepspeed|torchrun|accelerate", program):
        raise InputError(f"command: {program!r} is not a known launcher; begin with deepspeed, or with the flags")
    flags = re.sub(r"(^| )(launch|-u|-m|torch\.distributed\.(launch|run))(?= |$)", "", " ".join(rest)).strip()
    count = re.fullmatch(r"--(num_gpus|nproc[_-]per[_-]node|num_processes)[= ](\S+)", flags)
    if num_processes is None and flags and not count:
        raise InputError(
            f"command: {flags!r} before the script is not read, but for the number of GPUs of one machine; add "
            "--num_processes N, the GPUs of all machines"
        )
    visible = next((word.partition("=")[2] for word in named if word.startswith("CUDA_VISIBLE_DEVICES=")), "")
    if num_processes is not None:
        processes, why = num_processes, "--num_processes" + (f"; {flags} is not read" if flags and not count else "")
    elif count:
        if not count[2].isdecimal() or int(count[2]) < 1:
            raise InputError(f"{count[1]}: {count[2]!r} is not a whole number from 1 on; correct the command")
        processes, why = int(count[2]), f"--{count[1]}"
    elif program.startswith(("python", "torchrun")):
        processes, why = 1, f"{program} starts one"
    else:
        processes, why = (len(visible.split(",")), "CUDA_VISIBLE_DEVICES") if visible else (_MACHINE, _ASSUMED)
    parts = (word.partition("=") for word in named)
    return Launch(processes, why, "".join(f"{name}={shlex.quote(value)} " for name, _, value in parts))


def read_command(command: str | Sequence[str], num_processes: int | None = None) -> tuple[Given, Launch]:
    """Flags and launch of `LAUNCHER ... run_pretraining.py --flag value ...`, from its text or its words.

    Raises:
        InputError: no command of run_pretraining.py, several, or anything in it that the original did not know.
    """
    words = _split(command) if isinstance(command, str) else list(command)
    names = [word.rpartition("/")[2].removesuffix(".py") for word in words]
    scripts = [index for index, name in enumerate(names) if name == "run_pretraining"]
    if not words:
        raise InputError("command: empty; give deepspeed run_pretraining.py --flag value ...")
    if len(scripts) > 1:
        raise InputError(f"command: there are {len(scripts)} of run_pretraining.py in this text; give one at a time")
    if not scripts and not words[0].startswith("--"):
        where = "docs/migrating.md has the other scripts"
        raise InputError(
            f"command: {words[0]!r} begins none of run_pretraining.py; give one of its commands ({where})"
        )
    start = scripts[0] if scripts else 0
    launch = read_launcher(words[:start], num_processes)
    return _read_flags(words[start + 1 if scripts else 0 :]), launch


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
        """Scalars are taken as they are written: PyYAML would make a text of 1e-3.

        Raises:
            InputError: not such a file, an empty list, a name in both sections.
        """
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
        pairs = [*fixed.items()]
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{name}: {values!r} is not a list of values; write {name}: [first, second]")
            if name in fixed:
                raise InputError(f"{name}: stands in {' and in '.join(_SECTIONS)}; take it out of one")
            pairs += [(name, value) for value in values]
        for name, value in pairs:
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
        """The flags of one combination, from 1 on.

        Raises:
            InputError: a flag the original did not know, a value of another type, a combination that is not there.
        """
        count, where = self.combinations, "sweep file"
        if not 1 <= combination <= count:
            raise InputError(f"combination: {combination} is not one of the {count} of this sweep; give 1 to {count}")
        every = _flags((name, value) for name, values in self.grid.items() for value in values)
        _read_flags(every, where)  # all values, not this combination's alone
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
