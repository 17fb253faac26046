"""Runs as processes of their own, as many at a time as there are devices; they end with the process that started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError, StopAsked
from budget_trainer.core.io import write_atomic
from budget_trainer.core.machine import pinned
from budget_trainer.core.package_data import CLONE

# Set for a run whose standard input is a pipe that the process which started it holds open.
VARIABLE = "BUDGET_LIFELINE"
# Set for a run that was started here: a list, in JSON, of files that say how many run now (`runs_beside`); that of the
# process which started it is the last, before it those of the processes above.
BESIDE = "BUDGET_BESIDE"
TRAINING, FINE_TUNING = "budget_trainer.train_mlm", "budget_trainer.finetune_glue"  # modules that are started
_POLL_SECONDS = 0.1
# Variables of the launcher that started this process.
_LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "GROUP_", "ROLE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")
_PROFILE = """# One process, for one run; so that no profile of the user's decides.
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
use_cpu: {cpu}
num_machines: 1
num_processes: 1
mixed_precision: 'no'
"""


def end_with_parent() -> None:
    """Where a suite or a sweep has started this process: end it at once when that is gone, and with it the pipe."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 64):
                pass
        os._exit(85)

    if os.environ.get(VARIABLE):
        threading.Thread(target=wait, name="lifeline", daemon=True).start()


def child_environment(**more: str) -> dict[str, str]:
    """The environment of a process that runs a module of ours and ends with this one, and `more` variables.

    A clone need not be installed: its modules are found from any folder.
    """
    paths = [str(CLONE or ""), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), VARIABLE: "1", **more}


def runs_beside() -> tuple[int, int]:
    """How many runs share this machine now, and how many of them this run's devices, itself counted; (1, 1) for a run alone.

    Of runs that one `run_jobs` started, also of one below another. Raises OSError or ValueError where that cannot be read.
    """
    machine = device = 1
    for path in json.loads(os.environ.get(BESIDE, "[]")):
        on_machine, on_device = map(int, Path(path).read_text(encoding="ascii").split())
        machine, device = machine * on_machine, device * on_device
    return machine, device


def devices(use_cpu: bool) -> list[str | None]:
    """What runs can be put on at the same time: the visible GPUs as CUDA_VISIBLE_DEVICES takes them, or one CPU (None)."""
    if use_cpu:
        return [None]
    import torch

    count = torch.cuda.device_count()  # of those that are visible, and none where torch is a CPU build
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible if len(visible) >= count else [str(number) for number in range(count)]
    return [*names[:count]] or [None]


def check_unseen() -> None:
    """Refuse what this process's launcher was asked for and the runs that it starts would not see."""
    fixes = {"MIXED_PRECISION": "give the runs bf16 true", "DYNAMO_BACKEND": "give the runs torch_compile true"}
    for engine in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        fixes[f"USE_{engine}"] = "start this without a launcher"
    for name, fix in fixes.items():
        if (value := os.environ.get(f"ACCELERATE_{name}", "no").lower()) not in ("", "no", "false", "0"):
            unseen = (
                f"ACCELERATE_{name}: {value} of the launcher's configuration would not reach the runs of this command"
            )
            raise InputError(f"{unseen}; leave it out, and {fix}")


def make_launch(own: Path, use_cpu: bool, given: Path | None = None) -> Callable[[str, Sequence[str]], list[str]]:
    """What makes the `accelerate launch` of a module (TRAINING, FINE_TUNING) with its command line, on a free port.

    With the launch configuration `given`, or with `own`, which is written for runs of one process each.
    """
    if given is None:
        write_atomic(own, _PROFILE.format(cpu=str(use_cpu).lower()))

    def launch(module: str, words: Sequence[str]) -> list[str]:
        head = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(given or own)]
        return [*head, "--main_process_port", "0", "--module", module, *words]

    return launch


def _last_error(log: Path, code: int | None) -> str:
    """The line of `log` that says why a run failed: the last `error: ...`, or the last line there is."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    errors = errors or [line for line in lines if "Error" in line and "CalledProcessError" not in line]
    return (errors or lines or [f"it ended with code {code}"])[-1][:500]


@dataclass(frozen=True)
class JobEnd:
    """How a process ended: by itself with `code`, or for the `reason` of `Job.watch`; `error` is its log's last one."""

    code: int
    seconds: float
    reason: str | None
    error: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A process, what is asked about it while it runs, and what is done when it has ended.

    `watch` gets the seconds since its start, again and again, and returns why the process has to be ended, or None. It is then
    asked to stop, and killed after `grace_seconds`; 0 kills at once. `on_end` may return the job that follows on the device.
    The output goes to `log`, with `append` to its end. A lock on the file descriptor `inherited` is the process's.
    """

    command: Sequence[str]
    log: Path
    on_end: Callable[[JobEnd], Job | None]
    watch: Callable[[float], str | None] = lambda seconds: None
    append: bool = False
    inherited: int | None = None
    grace_seconds: float = 20.0


def run_jobs(slots: Sequence[str | int | None], next_job: Callable[[], Job | None], stop: StopRequest) -> None:
    """Keep one job on each of the `slots` (of CUDA_VISIBLE_DEVICES; None for what is there), until none runs and none is left.

    A slot that is a number is a core of the CPU, to which the job is pinned with one thread (systems with sched_setaffinity).
    `next_job` is asked wherever a slot is free; None: there is none now. Raises StopAsked on a signal. All processes have
    ended before anything is raised.
    """
    running: dict[int, _Process] = {}
    with tempfile.TemporaryDirectory(prefix="budget-jobs-") as folder:

        def start(job: Job, slot: int) -> None:
            _tell_beside(Path(folder), slots, {*running, slot})
            running[slot] = _Process(job, slots[slot], Path(folder, str(slot)))

        try:
            while True:
                if stop.signal_number:
                    raise StopAsked(f"{StopRequest.name_of(stop.signal_number)}; repeat the command to go on")
                for slot in range(len(slots)):
                    if slot not in running:
                        if (job := next_job()) is None:
                            break
                        start(job, slot)
                if not running:
                    return
                time.sleep(_POLL_SECONDS)
                for slot, process in list(running.items()):
                    if (end := process.look()) is not None:
                        del running[slot]
                        if (following := process.job.on_end(end)) is not None:
                            start(following, slot)
                        else:
                            _tell_beside(Path(folder), slots, running)
        finally:
            _end(running.values())


def _tell_beside(folder: Path, slots: Sequence[str | int | None], running: Collection[int]) -> None:
    """Write for each slot that is `running` how many there are, and how many of them have its device."""
    for slot in running:
        beside = sum(slots[other] == slots[slot] for other in running)
        with suppress(OSError):  # a full disk is no reason to end runs: the next change has it
            write_atomic(folder / str(slot), f"{len(running)} {beside}\n", durable=False)


class _Process:
    """A started job; its standard input is a pipe that ends with this process. The file `beside` is for `runs_beside`."""

    def __init__(self, job: Job, device: str | int | None, beside: Path) -> None:
        environment = {name: value for name, value in child_environment().items() if not name.startswith(_LAUNCHERS)}
        environment.pop("FORCE_COLOR", None)  # its output is a file
        environment[BESIDE] = json.dumps([*json.loads(environment.get(BESIDE, "[]")), str(beside)])
        core = device if isinstance(device, int) else None
        if core is not None:
            environment["OMP_NUM_THREADS"] = "1"
        elif device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(device)
        self.job, self.begin = job, time.monotonic()
        with open(job.log, "ab" if job.append else "wb") as log, pinned(core):
            self.popen = subprocess.Popen(
                job.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=() if job.inherited is None else (job.inherited,),
                start_new_session=True,  # a signal to this process does not reach it: the launcher would not hand it on
            )

    def look(self) -> JobEnd | None:
        """How it ended; None while it runs, and may go on to."""
        reason, seconds = None, time.monotonic() - self.begin
        if self.popen.poll() is None:
            if (reason := self.job.watch(seconds)) is None:
                return None
            _end([self])
        self.close()
        code = self.popen.returncode
        return JobEnd(code, seconds, reason, _last_error(self.job.log, code))

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def close(self) -> None:
        """Close the pipe: ranks outside of its process group, which no signal reached, end as well."""
        assert self.popen.stdin is not None
        with suppress(OSError):
            self.popen.stdin.close()


def _end(processes: Iterable[_Process]) -> None:
    """Ask all to stop at the same time, and kill each that has not within its grace."""
    begin, processes = time.monotonic(), list(processes)
    for process in processes:
        if process.job.grace_seconds:
            process.send(signal.SIGTERM)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(max(0.0, process.job.grace_seconds - (time.monotonic() - begin)))
        process.send(signal.SIGKILL)  # the whole group: the launcher may have gone before its script
        process.popen.wait()
        process.close()
