#!/usr/bin/env python3
"""What the control message, the clock, the guards and the reading of energy cost of each step, with several processes.

    python benchmarks/own_cost.py --recipe recipes/quickstart.yaml --data_dir data/blocks \
        --config_file accelerate_configs/cpu_2proc.yaml --total_training_time 60s --output_dir out/own_cost

A real `accelerate launch` of train_mlm.py whose functions below are timed on every rank, each without the others it
calls. Waiting for a slower rank is not a cost of the message: in each step the last rank to arrive waits for nobody, so
the shortest time of any rank counts. Of the rest the longest time counts. Medians over the steps, the first fifth left
out; of energy, which a thread reads once a second, the mean. Written to own_cost.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import make_output_dir, one_line_errors, publish, run_parser  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402

PARTS = ("control message", "clock", "guards", "energy")
FOLDER = "BUDGET_TRAINER_OWN_COST"  # environment variable: where the ranks of the timed run leave their figures


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = run_parser(__doc__, output_dir="out/own_cost")
    add = parser.add_argument
    add("--config_file", default="accelerate_configs/cpu_2proc.yaml", help="launch configuration")
    add("--total_training_time", default="60s", help="budget of the timed run (60s)")
    a = parser.parse_args(argv)
    if (Path(a.output_dir) / "run").exists():
        raise InputError(f"output_dir: {a.output_dir} holds a run; give a new folder")
    return a


class Timers:
    """Time spent in functions, without what is spent in other timed functions that they call; one row per step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._spent: dict[str, float] = defaultdict(float)
        self._threads = threading.local()

    @property
    def _inner(self) -> list[float]:
        """Seconds in timed functions below each one that is running in this thread."""
        if not hasattr(self._threads, "inner"):
            self._threads.inner = [0.0]
        inner: list[float] = self._threads.inner
        return inner

    def watch(self, owner: type, name: str, part: str) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - begin
                self._spent[part] += seconds - self._inner.pop()
                self._inner[-1] += seconds

        setattr(owner, name, timed)

    def step_done(self) -> None:
        self.rows.append({"at": time.perf_counter(), **self._spent})
        self._spent.clear()


def timed_run(folder: Path) -> None:
    """One rank: train_mlm.py with the timers, whose rows go to `folder`."""
    from transformers import Trainer

    from budget_trainer import train_mlm  # it starts the clock
    from budget_trainer.budget.callback import TimeBudgetCallback
    from budget_trainer.budget.channel import Agreement
    from budget_trainer.core.command import exit_process
    from budget_trainer.reporting.energy import EnergyMeter
    from budget_trainer.training.callbacks import Guard
    from budget_trainer.training.trainer import TimeBudgetTrainer

    timers = Timers()
    timers.watch(Agreement, "exchange", "control message")
    for name in ("on_step_begin", "on_optimizer_step", "on_step_end"):
        timers.watch(TimeBudgetCallback, name, "clock")
    timers.watch(Guard, "on_step_end", "guards")
    timers.watch(TimeBudgetTrainer, "_get_grad_norm", "guards")
    for name in ("get_batch_samples", "_get_grad_norm"):
        timers.watch(Trainer, name, "library")
    timers.watch(TimeBudgetCallback, "_wait_for_device", "device")
    timers.watch(EnergyMeter, "read", "energy")
    ends = Guard.on_step_end

    def last_of_the_step(*args: Any, **kwargs: Any) -> None:
        ends(*args, **kwargs)
        timers.step_done()

    Guard.on_step_end = last_of_the_step  # type: ignore[method-assign]
    code = train_mlm.main(sys.argv[1:])
    (folder / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(timers.rows))
    exit_process(code)


def shares(ranks: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Median milliseconds per step of each part (of energy the mean), and of the step itself on rank 0."""
    if len({len(rows) for rows in ranks}) != 1 or len(ranks[0]) < 20:
        raise InputError(
            f"own_cost: {[len(rows) for rows in ranks]} steps on the ranks; give total_training_time more"
        )
    steps = list(zip(*ranks, strict=True))[len(ranks[0]) // 5 :]
    took = [after[0]["at"] - before[0]["at"] for before, after in zip(steps, steps[1:], strict=False)]
    cost = {}
    for part in PARTS:
        counted = min if part == "control message" else max
        average = statistics.fmean if part == "energy" else statistics.median
        cost[part] = average(counted(rank.get(part, 0.0) for rank in step) for step in steps)
    step = statistics.median(took)
    return {
        "processes": len(ranks),
        "steps": len(steps),
        "step_ms": 1000 * step,
        **{f"{part} ms": 1000 * seconds for part, seconds in cost.items()},
        "share": sum(cost.values()) / step,
    }


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", a.config_file, str(Path(__file__))]
    command += [
        a.recipe,
        "--data_dir",
        a.data_dir,
        "--output_dir",
        str(a.output_dir / "run"),
        "--disable_tqdm",
        "true",
    ]
    command += ["--total_training_time", a.total_training_time, "--report_to", "none", *a.flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), FOLDER: str(a.output_dir)}
    with (a.output_dir / "log.txt").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise InputError(f"own_cost: the run ended with {done.returncode}; see {a.output_dir}/log.txt")
    found = shares([json.loads(path.read_text()) for path in sorted(a.output_dir.glob("rank-*.json"))])
    lines = [f"{'part of a step':18} {'ms':>12} {'share':>8}"]
    for part in PARTS:
        ms = found[f"{part} ms"]
        lines.append(f"{part:18} {ms:12.3f} {100 * ms / found['step_ms']:7.2f}%")
    lines.append(f"{'all of them':18} {found['share'] * found['step_ms']:12.3f} {100 * found['share']:7.2f}%")
    lines.append(f"{'step':18} {found['step_ms']:12.3f}   {found['processes']} processes, {found['steps']} steps")
    publish(a, "own_cost", "\n".join(lines), found)


if __name__ == "__main__":
    if FOLDER in os.environ:
        timed_run(Path(os.environ[FOLDER]))
    sys.exit(main())
