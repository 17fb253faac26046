"""A run that another process has started ends with it, however that ends. Standard library only.

Runs as processes of their own: `accelerate launch SCRIPT ...` of a suite on GLUE or of a sweep.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from budget_trainer.core.io import write_atomic

VARIABLE = "BUDGET_LIFELINE"  # set for a run whose standard input is a pipe that a suite or a sweep holds open


def end_with_parent() -> None:
    """Where a suite or a sweep has started this process: end it at once when that is gone.

    Nothing is ever written to the pipe; its end means that the other side has closed it, or was killed. A launcher between the
    two hands standard input on.
    """
    if os.environ.get(VARIABLE):
        threading.Thread(target=_wait, name="lifeline", daemon=True).start()


def _wait() -> None:
    try:
        while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 64):
            pass
    except OSError:
        pass
    os._exit(85)


GRACE_SECONDS = 20.0  # between the request to stop and the end by force
# Variables of the launcher that started this process.
LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "GROUP_", "ROLE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")
PROFILE = """# One process, for one run; so that no profile of the user's decides.
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
use_cpu: {cpu}
num_machines: 1
num_processes: 1
mixed_precision: 'no'
"""


def devices(use_cpu: bool) -> list[str | None]:
    """What runs can be put on at the same time: the visible GPUs as CUDA_VISIBLE_DEVICES takes them, or one CPU (None)."""
    if use_cpu:
        return [None]
    import torch

    count = torch.cuda.device_count()  # of those that are visible, and none where torch is a CPU build
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible if len(visible) >= count else [str(number) for number in range(count)]
    return [*names[:count]] or [None]


def write_profile(path: Path, use_cpu: bool) -> Path:
    """The launch configuration of every run."""
    write_atomic(path, PROFILE.format(cpu=str(use_cpu).lower()))
    return path


def script_path(name: str) -> Path:
    """The file of `train_mlm` or `finetune_glue`, without running its heavy part."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, name
    return Path(found.origin).resolve()


def launcher(profile: Path) -> list[str]:
    """The words of `accelerate launch` before a script, with a free port."""
    head = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(profile)]
    return [*head, "--main_process_port", "0"]


class Child:
    """A started run; its output goes to `log`. Its standard input is a pipe that ends with this process (see `lifeline`).

    `script` is the name of one of the project's scripts; `device` the GPUs as CUDA_VISIBLE_DEVICES takes them, None for what
    is there. The launcher keeps `held`, a file descriptor, open as long as it lives: a lock on it is the run's.
    """

    def __init__(
        self,
        script: str,
        words: list[str],
        profile: Path,
        log: Path,
        device: str | None,
        held: int | None = None,
        append: bool = False,
    ) -> None:
        command = [*launcher(profile), str(script_path(script)), *words]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
        environment.pop("FORCE_COLOR", None)  # its output is a file
        environment[VARIABLE] = "1"
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        self.log, self.device, self.begin = log, device, time.monotonic()
        self._log: IO[bytes] = open(log, "ab" if append else "wb")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=() if held is None else (held,),
            start_new_session=True,  # a signal to this process does not reach it by itself: the launcher would not hand it on
        )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.begin

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        code = self.process.poll()
        if code is not None:
            self._close()
        return code

    def _close(self) -> None:
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        self._log.close()

    def kill(self) -> None:
        """End it at once, and what it was writing with it; its end of the pipe ends ranks outside of its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close()

    def stop(self) -> None:
        """Ask the run and its launcher to stop, and end them where they do not within GRACE_SECONDS."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
                break
        with suppress(ProcessLookupError):  # the launcher may have gone before its script
            os.killpg(self.process.pid, signal.SIGKILL)
        self._close()

    def last_error(self) -> str:
        """The line of its log that says why it failed."""
        return last_error(self.log, self.process.returncode)


def last_error(log: Path, code: int | None) -> str:
    """The line of `log` that says why a run failed: the last `error: ...`, or the last line there is."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    errors = errors or [line for line in lines if "Error" in line and "CalledProcessError" not in line]
    return (errors or lines or [f"it ended with code {code}"])[-1][:500]
