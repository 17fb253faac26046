"""Real sweeps as child processes, and what their reports say. Shared by the sub-commands of sweep.py."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.core.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
OBJECTIVE = "bits_per_byte"


@dataclass(frozen=True)
class Wanted:
    """A sweep to run: its folder, and its file's content but for `output_dir`."""

    folder: Path
    content: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def name(self) -> str:
        return str(self.content.get("job_name", self.folder.name))

    @property
    def storage(self) -> str:
        return str(self.content.get("storage", f"sqlite:///{self.folder / 'study.db'}"))


@dataclass(frozen=True)
class Run:
    """A sweep that has ended, as its report tells it; `seconds` of wall clock, seen from outside."""

    folder: Path
    seconds: float

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Of the report's table, best first."""
        try:
            text = (self.folder / "sweep_report.csv").read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"recipe: the sweep in {self.folder} left no report ({error.strerror}); see its log"
            ) from None
        return list(csv.DictReader(text.splitlines()))

    def finished(self) -> list[dict[str, str]]:
        return [row for row in self.rows if row["rank"]]

    def best(self) -> dict[str, Any]:
        """The parameters of the best, numbers as numbers."""
        if not self.finished():
            raise InputError(f"recipe: no trial of {self.folder} has finished; see {self.folder}.log")
        return {name: _number(value) for name, value in self.finished()[0].items()}

    def objectives(self) -> list[float]:
        """Bits per byte of the finished trials, best first."""
        return [float(row[OBJECTIVE]) for row in self.finished()]

    def count(self, state: str) -> int:
        return sum(row["state"] == state for row in self.rows)

    def states(self) -> str:
        return ", ".join(f"{count} {state}" for state, count in Counter(row["state"] for row in self.rows).items())

    def trial_seconds(self) -> float:
        """Of all trials together, launch and evaluation included."""
        return sum(float(row["seconds"]) for row in self.rows)

    def longest_save(self) -> float:
        """Seconds that the slowest trial needed for its saves."""
        saves = [0.0]
        for row in self.rows:
            path = self.folder / row["folder"] / "run_report.json"
            if path.is_file():
                saves.append(json.loads(path.read_text()).get("shares", {}).get("save") or 0.0)
        return max(saves)

    def account(self) -> dict[str, Any]:
        return {"wall_seconds": self.seconds, "trial_seconds": self.trial_seconds(), "trials": self.rows}


def _number(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def start(wanted: Wanted, label: str = "sweep") -> subprocess.Popen[bytes]:
    """One process of it, in a process group of its own; its output goes behind that of earlier ones."""
    wanted.file.write_text(yaml.safe_dump({**wanted.content, "output_dir": str(wanted.folder)}, sort_keys=False))
    command = [sys.executable, "sweep.py", str(wanted.file)]
    with log_of(wanted, label).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def log_of(wanted: Wanted, label: str = "sweep") -> Path:
    return wanted.folder.with_name(f"{wanted.folder.name}.{label}.log")


def wait(wanted: Wanted, process: subprocess.Popen[bytes], label: str = "sweep") -> float:
    """To its end; returns its wall-clock seconds from now. InputError with its last line where it failed."""
    begin = time.monotonic()
    try:
        code = process.wait()
    finally:
        if process.poll() is None:  # we are interrupted
            os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        last = log_of(wanted, label).read_text(errors="replace").strip().split("\n")[-1]
        raise InputError(f"recipe: sweep.py ended with exit code {code} ({last}); see {log_of(wanted, label)}")
    return time.monotonic() - begin


def run_sweep(wanted: Wanted) -> Run:
    print(
        f"{wanted.folder.name}: {wanted.content['search']}, {wanted.content['time_per_trial']} per trial", flush=True
    )
    return Run(wanted.folder, wait(wanted, start(wanted)))


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """From low to high, both included, in equal ratios; the middle one where there is one only."""
    if count == 1:
        return [float(f"{math.sqrt(low * high):.4g}")]
    return [float(f"{low * (high / low) ** (place / (count - 1)):.4g}") for place in range(count)]


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))
