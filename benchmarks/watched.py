"""A real launch of train_mlm.py, watched from outside: when did a file appear?"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Seen:
    """`since_start` counts from the creation of the process that runs train_mlm.py (a little before its first line),
    `since_launch` from the launch (its own imports included); None where the file did not appear."""

    code: int
    since_start: float | None
    since_launch: float | None


def two_processes(config_file: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """The launch configuration for two processes, on the CPU where there is no GPU, as a file in `folder`; and the
    environment to launch it in."""
    config, gpu = yaml.safe_load(config_file.read_text()), torch.cuda.is_available()
    path = folder / config_file.name
    path.write_text(yaml.safe_dump(config | {"num_processes": 2, "use_cpu": not gpu}))
    return path, {**os.environ, "PYTHONPATH": str(ROOT), **({} if gpu else {"DS_ACCELERATOR": "cpu"})}


def watch(
    command: list[str],
    log: Path,
    wanted: Path,
    processes: int,
    meanwhile: Callable[[psutil.Process], object] | None = None,
    env: dict[str, str] | None = None,
) -> Seen:
    """Run `command` to its end, with its output in `log`. `meanwhile` gets the last rank's process until `wanted` is there."""
    launched, begun, done = time.time(), 0.0, 0.0
    with log.open("w") as file:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)
        launcher = psutil.Process(child.pid)
        running: list[psutil.Process] = []
        while child.poll() is None:
            if len(running) < processes:
                running = workers(launcher)
                begun = time.time() - max((age_seconds(process.pid) for process in running), default=0.0)
            elif meanwhile is not None and not done:
                meanwhile(running[-1])
            if not done and wanted.exists():
                done = time.time()
            time.sleep(0.01)
    return Seen(child.returncode, done - begun if done else None, done - launched if done else None)


def workers(launcher: psutil.Process) -> list[psutil.Process]:
    """The processes that run train_mlm.py, rank 0 first."""
    found = []
    try:
        for process in launcher.children(recursive=True):
            if any(word.endswith("train_mlm.py") for word in process.cmdline()):
                found.append((int(process.environ().get("RANK", "0")), process))
    except psutil.Error:
        return []
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def age_seconds(pid: int) -> float:
    """Seconds since a process was made, 0 where it is gone: with /proc to 10 ms, else by psutil, off by up to a second."""
    with suppress(OSError):
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    with suppress(psutil.Error):
        return max(0.0, time.time() - psutil.Process(pid).create_time())
    return 0.0
