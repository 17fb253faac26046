"""What stood before run_pretraining.py, and the command that starts train_mlm.py on as many processes.

Standard library only.

An original command line as text or words -> its flags and its launch. Standard library only.

A sweep file of the original's generate_training_commands.py -> the flags of each of its commands.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from budget_trainer.core.errors import InputError
from budget_trainer.migrate.original import SCRIPTS, Given, find_flag, read_flags, typed

MACHINE = 8  # GPUs of the paper's machine: assumed where a launcher takes all that are there
# Flags of deepspeed, torchrun and torch.distributed.launch with a value: what has their place.
VALUED = {
    "num_gpus": "--num_processes of accelerate launch (of all machines together)",
    "nproc_per_node": "--num_processes of accelerate launch (of all machines together)",
    "num_nodes": "--num_machines of accelerate launch",
    "nnodes": "--num_machines of accelerate launch",
    "node_rank": "--machine_rank of accelerate launch, another on each machine",
    "include": "CUDA_VISIBLE_DEVICES on one machine; on several the command is started on each",
    "exclude": "CUDA_VISIBLE_DEVICES",
    "hostfile": "no ssh: the command is started on each machine, or by accelerate_configs/slurm.sbatch",
    "master_addr": "--main_process_ip of accelerate launch",
    "master_port": "--main_process_port of accelerate launch; the profiles of one machine take a free one",
    "rdzv_endpoint": "--main_process_ip and --main_process_port of accelerate launch",
    "rdzv_backend": "rdzv_backend of the launch configuration",
    "rdzv_id": "rdzv_backend of the launch configuration",
    "launcher": "no pdsh, MPI or ssh: the command is started on each machine",
    "launcher_args": "no pdsh, MPI or ssh: the command is started on each machine",
    "save_pid": "not needed here",
    "autotuning": "not needed here",
}
SWITCHES = {
    "force_multi": "accelerate_configs/multi_node_ddp.yaml does it",
    "no_local_rank": "accelerate launch gives no --local_rank",
    "use_env": "accelerate launch gives no --local_rank",
    "standalone": "the profiles of one machine do it",
    "no_python": "not needed here",
    "module": "not needed here",
}
SHORT = {"-H": "hostfile", "-i": "include", "-e": "exclude"}
LOCAL = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Launch:
    """`processes` of all `machines` together, and why that many; `answers` by flag of the launcher."""

    processes: int = 1
    machines: int = 1
    why: str = ""
    environment: tuple[str, ...] = ()
    address: str | None = None
    port: str | None = None
    answers: tuple[tuple[str, str], ...] = ()

    def command(self, recipe: str, config_dir: str = "accelerate_configs") -> str:
        """`accelerate launch` of train_mlm.py with this recipe; of several machines the first one's."""
        config, flags = "single_gpu", ""
        if self.machines > 1:
            host, port = self.address or "ADDRESS", self.port or "29500"
            config, flags = "multi_node_ddp", f" --num_machines {self.machines} --num_processes {self.processes}"
            flags += f" --machine_rank 0 --main_process_ip {host} --main_process_port {port}"
        elif self.processes > 1:
            config, flags = "ddp", f" --num_processes {self.processes}"
            flags += f" --main_process_port {self.port}" if self.port else ""
        head = "".join(f"{word} " for word in self.environment)
        return f"{head}accelerate launch --config_file {config_dir}/{config}.yaml{flags} train_mlm.py {shlex.quote(recipe)}"


def read_launcher(words: Sequence[str], num_processes: int | None = None) -> Launch:
    """What the words before the script say. `num_processes` wins over all of them.

    Raises:
        InputError: a launcher that is none of the original's, a number that is none, machines whose GPUs nobody counted.
    """
    environment, rest = _environment(words)
    program = _program(rest)
    given = dict(_flags(rest))
    machines = _number(given, ("num_nodes", "nnodes"), 1)
    hosts = _hosts(given.get("include"))
    if hosts and len(hosts) > 1:
        machines = len(hosts)
    if len(hosts) == 1 and list(hosts)[0] in LOCAL and all(hosts.values()):
        environment = (f"CUDA_VISIBLE_DEVICES={','.join(map(str, hosts[list(hosts)[0]]))}", *environment)
    processes, why = _count(program, given, machines, hosts, environment)
    if num_processes is not None:
        processes, why = num_processes, "--num_processes"
    if processes is None:
        asked = next(name for name in ("hostfile", "include", "exclude") if name in given)
        raise InputError(
            f"{asked}: {given[asked]!r} does not say how many GPUs that is; add --num_processes N before the command"
        )
    if processes % machines:
        raise InputError(
            f"num_processes: {processes} are not the same number on each of {machines} machines; correct it"
        )
    answers = tuple((name, {**VALUED, **SWITCHES}[name]) for name in given)
    endpoint, _, number = given.get("rdzv_endpoint", "").partition(":")
    address, port = given.get("master_addr") or endpoint or None, given.get("master_port") or number or None
    return Launch(processes, machines, why, environment, address, port, answers)


def _environment(words: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    rest = list(words)
    found: list[str] = []
    while rest and (re.match(r"[A-Za-z_]\w*=", rest[0]) or rest[0] in ("env", "nohup", "time", "exec", "$")):
        name, equals, value = rest.pop(0).partition("=")
        if name != "$":  # of a pasted prompt
            found.append(f"{name}={shlex.quote(value)}" if equals else name)
    return tuple(found), rest


def _program(rest: list[str]) -> str:
    """Take the program's own words off `rest`: deepspeed, torchrun, python [-u] [-m torch.distributed.launch]."""
    if not rest or rest[0].startswith("--"):
        return "deepspeed"  # flags alone: the published command
    program = rest.pop(0).rpartition("/")[2]
    if re.fullmatch(r"python[\d.]*", program):
        while rest and rest[0] in ("-u", "-m"):
            if rest.pop(0) == "-m" and rest and rest.pop(0) in ("torch.distributed.launch", "torch.distributed.run"):
                program = "torchrun"
    elif program not in ("deepspeed", "ds", "torchrun"):
        raise InputError(
            f"command: {program!r} is not a launcher that is known here; begin with deepspeed run_pretraining.py and add "
            "--num_processes N before the command"
        )
    return "python" if program.startswith("python") else program


def _flags(rest: list[str]) -> list[tuple[str, str]]:
    found = []
    while rest:
        word = rest.pop(0)
        name, equals, value = SHORT.get(word, word).removeprefix("--").partition("=")
        name = name.replace("-", "_")  # torchrun takes both
        if name in SWITCHES and word.startswith("-"):
            found.append((name, "true"))
        elif name in VALUED and word.startswith("-"):
            if not equals and not rest:
                raise InputError(f"{name}: has no value; write --{name} VALUE before the script")
            found.append((name, value if equals else rest.pop(0)))
        else:
            raise InputError(f"command: {word!r} before the script is not known here; take it out")
    return found


def _number(given: dict[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if given.get(name, "-1") != "-1":  # -1 is deepspeed's own default: all
            try:
                value = int(given[name])
            except ValueError:
                value = 0
            if value < 1:
                raise InputError(f"{name}: {given[name]!r} is not a whole number from 1 on; correct the command")
            return value
    return default


def _hosts(include: str | None) -> dict[str, list[int]]:
    """`worker-0@worker-1:0,2` as hosts with the numbers of their GPUs, none where all of them are meant."""
    found: dict[str, list[int]] = {}
    for part in (include or "").split("@"):
        host, _, slots = part.partition(":")
        if not host and not slots:
            continue
        if not re.fullmatch(r"(\d+(,\d+)*)?", slots):
            raise InputError(f"include: {part!r} is not HOST:0,1,2; correct the command")
        found[host] = [int(slot) for slot in slots.split(",") if slot]
    return found


def _count(
    program: str, given: dict[str, str], machines: int, hosts: dict[str, list[int]], environment: tuple[str, ...]
) -> tuple[int | None, str]:
    """Processes of all machines together and where the number is from; None where the words do not say it."""
    each = _number(given, ("num_gpus", "nproc_per_node"), 0)
    if each:
        return each * machines, "--num_gpus" if "num_gpus" in given else "--nproc_per_node"
    if hosts and all(hosts.values()):
        return sum(map(len, hosts.values())), "--include"
    if hosts or "hostfile" in given or "exclude" in given:
        return None, ""
    visible = [word.partition("=")[2].strip("'") for word in environment if word.startswith("CUDA_VISIBLE_DEVICES=")]
    if visible and visible[0] and program == "deepspeed":
        return len(visible[0].split(",")) * machines, "CUDA_VISIBLE_DEVICES"
    if program in ("python", "torchrun"):
        return machines, f"{program} starts one"
    return (
        MACHINE * machines,
        f"assumed, {MACHINE} as on the paper's machine: --num_processes N before the command says it",
    )


SCRIPT = "run_pretraining"
ENDS = re.compile(r"(\|\|?|&&?|;|\d?>{1,2}.*|&>.*|2>&1)$")  # the shell's: the command ends before


class Command(NamedTuple):
    """What a command line of the original says."""

    given: Given
    launch: Launch


def read_command(words: Sequence[str], num_processes: int | None = None) -> Command:
    """Flags and launch of one command, from its words or from one text with line continuations.

    Raises:
        InputError: no command of run_pretraining.py, several, or anything in it that the original did not know.
    """
    parts = split_text(words[0]) if len(words) == 1 else [word for word in words if word.strip(" \\\r\n")]
    parts, rest = _up_to_its_end(_join_placeholders(parts))
    if not parts:
        raise InputError("command: empty; give deepspeed run_pretraining.py --flag value ...")
    _refuse_other_scripts(parts)
    at = next((index for index, word in enumerate(parts) if _is_script(word)), None)
    if at is None:
        at = next((index for index, word in enumerate(parts) if word.startswith("--")), len(parts)) - 1
        if at >= 0:
            raise InputError(
                f"command: {parts[at]!r} is not run_pretraining.py; give one of its commands, or its flags alone"
            )
    launch = read_launcher(parts[: max(at, 0)], num_processes)
    given = read_flags(parts[at + 1 :])
    if rest:
        given = Given(
            given.values, (*given.remarks, f"`{' '.join(rest)}` is the shell's: write it behind the new command")
        )
    return Command(given, launch)


def split_text(text: str) -> list[str]:
    """The words of the one command of run_pretraining.py in a text: a line, a pasted example or a script."""
    joined = re.sub(r"\\[ \t]*\r?\n", " ", text)
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    commands = [line for line in lines if SCRIPT in line]
    if len(commands) > 1:
        raise InputError(f"command: there are {len(commands)} of run_pretraining.py in this text; give one at a time")
    # A line break without a continuation inside of quotes, or an example that lost its backslashes: all lines are one.
    broken = commands and any(line.startswith("--") for line in lines)
    chosen = commands[0] if commands and not broken else " ".join(lines)
    try:
        return shlex.split(chosen.removeprefix("$ "))
    except ValueError as error:
        raise InputError(f"command: cannot be split into words ({str(error).lower()}); close the quotes") from None


def _is_script(word: str) -> bool:
    return word.rpartition("/")[2].removesuffix(".py") == SCRIPT


def _join_placeholders(parts: Sequence[str]) -> list[str]:
    """`<dataset path>` of a published command is one word, though the shell would see two."""
    joined: list[str] = []
    for word in parts:
        if joined and joined[-1].startswith("<") and not joined[-1].endswith(">"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _up_to_its_end(parts: list[str]) -> tuple[list[str], list[str]]:
    """The command, and what the shell would do with its output; a `cd x &&` before it is none of it."""
    start = 0
    for index, word in enumerate(parts):
        if ENDS.match(word) and not (word.startswith("<") and word.endswith(">")):
            if any(map(_is_script, parts[start:index])) or not any(map(_is_script, parts[index:])):
                return parts[start:index], parts[index:]
            start = index + 1
    return parts[start:], []


def _refuse_other_scripts(parts: Sequence[str]) -> None:
    for word in parts:
        for script in SCRIPTS:
            if word.rpartition("/")[2] == script.name:
                raise InputError(
                    f"command: {script.name} is not converted; {script.here} does its work, docs/migrating.md has the flags"
                )
        if word.startswith("--"):
            return


SECTIONS = ("hyperparameters", "default_parameters")
JOB_NAME = "bert_large_experiment"  # the default of its --job_name


class Sweep(NamedTuple):
    """The grid by flag, and the flags of one combination of it."""

    grid: dict[str, list[str]]
    combinations: int
    given: Given


def is_sweep(text: str) -> bool:
    """Whether a text is such a file and no command."""
    return re.search(rf"^['\"]?({'|'.join(SECTIONS)})['\"]?\s*:", text, re.M) is not None


def read_sweep(text: str, combination: int = 1) -> Sweep:
    """One combination (from 1 on, the last parameter changes fastest) of the original's grid, typed.

    Scalars are taken as they are written: PyYAML would make a text of 1e-3. A hyperparameter that also stands among the
    default parameters is refused: the original's command named it twice, and the default won.

    Raises:
        InputError: not such a file, a flag the original did not know, an empty list, a combination that is not there.
    """
    grid, fixed = sections(text)
    for name in [*grid, *fixed]:
        find_flag(name, "sweep file")
    count = math.prod(map(len, grid.values()))
    if not 1 <= combination <= count:
        raise InputError(f"combination: {combination} is not one of the {count} of this sweep; give 1 to {count}")
    chosen = next(itertools.islice(itertools.product(*grid.values()), combination - 1, None))
    written = {**dict(zip(grid, chosen, strict=True)), **fixed}
    # What its generator added to each command, so that runs did not write into one folder.
    written = {"job_name": JOB_NAME, "current_run_id": str(combination), **written}
    values = {name: typed(find_flag(name), value) for name, value in written.items()}
    remarks = tuple(
        f"{name}: false means false; the original's generator made --{name} of it (B27)"
        for name, value in values.items()
        if value is False
    )
    for name, others in grid.items():
        for value in others:
            typed(find_flag(name), value)
    return Sweep(grid, count, Given(values, remarks))


def sections(text: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The lists of `hyperparameters` and the values of `default_parameters` as they are written, whatever their names.

    Raises:
        InputError: not such a file, an empty list, a name in both sections.
    """
    content = _load(text)
    grid = {name: _values(name, values) for name, values in content.get("hyperparameters", {}).items()}
    fixed = {name: _scalar(name, value) for name, value in content.get("default_parameters", {}).items()}
    twice = sorted(grid.keys() & fixed.keys())
    if twice:
        raise InputError(
            f"{twice[0]}: stands in hyperparameters and in default_parameters, where the original's command named it twice; "
            "take it out of one"
        )
    return grid, fixed


def _load(text: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise InputError(f"sweep file: is not YAML ({' '.join(str(error).split())}); correct it") from None
    for name, section in content.items():
        if name not in SECTIONS:
            raise InputError(
                f"{name}: not a section of the original's sweep files; they have {' and '.join(SECTIONS)}"
            )
        if section in ("", "null", "~"):
            content[name] = {}
        elif not isinstance(section, dict):
            raise InputError(f"{name}: is not a mapping; write one `flag: value` per line")
    return dict(content)


def _values(name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not values:
        raise InputError(f"{name}: {values!r} is not a list of values; write {name}: [first, second]")
    return [_scalar(name, value) for value in values]


def _scalar(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: {value!r} is not one value; write a number or a word")
    return value
