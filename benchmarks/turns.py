"""A process that trains one variant when it is its turn, and the parent's end of it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.cli import read_order
from benchmarks.measured import Stretches
from benchmarks.workload import Text, Workload
from budget_trainer.core.errors import InputError
from budget_trainer.model.flops import measure_peak_flops, model_flops_per_token

ROOT = Path(__file__).resolve().parent.parent


def work(order: dict[str, Any]) -> None:
    """Build, compile, warm up; then train a stretch for each line of standard input, one line of JSON in answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to the log
    begin = time.perf_counter()
    from benchmarks import trainers

    w = Workload(**order["workload"])
    build = trainers.stock if order["name"].startswith("stock") else trainers.ours
    with tempfile.TemporaryDirectory() as folder:
        trainer, w = build(w, Text(order["text"], w), Path(folder))
        device, model = trainer.args.device, cast(torch.nn.Module, trainer.model)
        facts = {
            "device": str(device),
            "threads": torch.get_num_threads(),
            "dtype": str(w.dtype).removeprefix("torch."),
            "compile": ("regional" if w.regional_compile else "whole") if w.compile else "no",
            "parameters": model.num_parameters(),
            "flops_per_token": model_flops_per_token(model, w.block_size, w.slots),
            "flops_per_token_computed": model_flops_per_token(
                model, w.block_size, w.slots if w.sparse else w.block_size
            ),
            "warmup_steps": order["warmup_steps"],
            "setup_seconds": time.perf_counter() - begin,
            "peak_flops": measure_peak_flops(device, w.dtype, order["peak_seconds"]),
        }

        def next_stretch(account: dict[str, Any]) -> tuple[int, bool] | None:
            answers.write(json.dumps({**facts, **account}) + "\n")
            facts.clear()
            line = sys.stdin.readline()  # the others have their turn
            return tuple(json.loads(line)) if line.strip() else None  # an end of the input: the parent is gone

        trainer.add_callback(Stretches(trainer.gauge, order["warmup_steps"], next_stretch))
        trainer.train()


class Worker:
    """A variant's process; `order` says what to train. `facts` is what it said when it was warmed up.

    Raises InputError with the end of its log where it ends before its time.
    """

    def __init__(self, name: str, order: dict[str, Any], log: Path, **environ: str) -> None:
        self.name, self.log = name, log
        command = [sys.executable, "-m", "benchmarks.turns", json.dumps(order)]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.facts = self._answer()

    def train(self, steps: int, synchronise: bool = False) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([steps, synchronise]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            tail = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-2:])
            raise InputError(f"variants: {self.name} ended with exit code {code}; see {self.log} ({tail})")
        return dict(json.loads(line))

    def end(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


if __name__ == "__main__":
    try:
        work(read_order(__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
