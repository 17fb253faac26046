#!/usr/bin/env python3
"""What does pre-training earn on GLUE? A checkpoint against its own architecture with random weights, same protocol.

    python benchmarks/glue_gain.py --model_name_or_path out/run/final --glue_dir data/glue --grid recipes/glue/cpu.yaml \
        --output_dir out/glue_gain

Fine-tunes both with `finetune_glue.py`, side by side on half of the cores each (one after the other where there is a GPU or
a single core), and prints every seed. It goes on where it was killed. It exits with 1 unless the mean over `--judged`, seed by
seed, rises by more than the seeds of either model differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from budget_trainer.core import jobs  # noqa: E402
from budget_trainer.core.errors import InputError, RunError  # noqa: E402
from budget_trainer.core.jobs import devices, last_error  # noqa: E402

MODELS = ("pre-trained", "random weights")
GRACE_SECONDS = 30.0  # for a suite that is asked to stop


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="a folder with a pre-trained checkpoint")
    parser.add_argument("--glue_dir", required=True, help="folder in the official layout")
    parser.add_argument("--grid", default=str(ROOT / "recipes" / "glue" / "cpu.yaml"), help="protocol (cpu.yaml)")
    parser.add_argument("--tasks", default="STS-B,SST-2,MRPC,CoLA", help="what is fine-tuned (STS-B,SST-2,MRPC,CoLA)")
    parser.add_argument("--judged", default="SST-2,STS-B", help="tasks whose mean has to rise (SST-2,STS-B)")
    parser.add_argument("--output_dir", default="out/glue_gain", help="folder for what is run (out/glue_gain)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (0)")
    return parser.parse_args(argv)


def check(a: argparse.Namespace) -> None:
    """Refuse, before hours of fine-tuning, what could not be judged after them; tasks become lists of their names."""
    from budget_trainer.glue.data import load_task
    from budget_trainer.glue.model import load_checkpoint
    from budget_trainer.glue.plan import read_grid
    from budget_trainer.glue.tasks import find_tasks

    a.model_name_or_path = load_checkpoint(a.model_name_or_path)[0].resolve()
    judged = find_tasks([a.judged])
    a.tasks, a.judged = [task.name for task in find_tasks([a.tasks])], [task.name for task in judged]
    if lost := [name for name in a.judged if name not in a.tasks]:
        raise InputError(f"judged: {', '.join(lost)} is not among tasks {','.join(a.tasks)}; add it there")
    seeds = read_grid(a.grid, None, 0).seeds
    if len(seeds) < 2:
        raise InputError(f"grid: {a.grid} has one seed, which has no spread; give seeds: [1, 2, 3]")
    for task in judged:
        data = load_task(task, [Path(a.glue_dir).resolve()])
        data.check(do_train=True, do_eval=True, do_predict=False)


def draw_weights(source: Path, folder: Path, seed: int) -> None:
    """The architecture and tokenizer of `source` with the library's own random weights, in `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    from budget_trainer.model.checkpoint import readable

    torch.manual_seed(seed)
    with readable(f"model_name_or_path: {source} is no masked language model", "give one"):
        model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def start(a: argparse.Namespace, name: str, model: Path, cores: list[int]) -> subprocess.Popen[bytes]:
    """A suite on `cores` (none: where it likes). It ends with this process, however that ends."""
    out = a.output_dir / folder_of(name)
    command = [sys.executable, "finetune_glue.py", "--model_name_or_path", model, "--task_name", ",".join(a.tasks)]
    command += ["--glue_dir", Path(a.glue_dir).resolve(), "--grid", Path(a.grid).resolve(), "--output_dir", out]
    environment = {**os.environ, jobs.VARIABLE: "1"}
    allowed = os.sched_getaffinity(0) if cores else set()
    if cores:
        os.sched_setaffinity(0, cores)  # the suite inherits it
        environment["OMP_NUM_THREADS"] = str(len(cores))
    try:
        with out.with_suffix(".log").open("wb") as log:
            return subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    finally:
        if cores:
            os.sched_setaffinity(0, allowed)


def folder_of(name: str) -> str:
    return name.replace(" ", "_")


def shares(count: int) -> list[list[int]]:
    """The cores of each of `count` suites at a time; one share without cores, for one at a time, on GPUs or one core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cores) // count
    if devices(use_cpu=False) != [None] or not each:
        return [[]]
    return [cores[number * each : (number + 1) * each] for number in range(count)]


def fine_tune(a: argparse.Namespace, models: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """`tasks` of each model's glue_runs.json. RunError, and nothing left running, as soon as one of the suites fails."""
    free, waiting = shares(len(models)), list(models.items())
    running: dict[str, tuple[subprocess.Popen[bytes], list[int]]] = {}
    try:
        while waiting or running:
            while waiting and free:
                name, model = waiting.pop(0)
                cores = free.pop()
                running[name] = start(a, name, model, cores), cores
            time.sleep(0.2)
            for name, (suite, cores) in list(running.items()):
                if suite.poll() is None:
                    continue
                if suite.returncode:
                    log = a.output_dir / f"{folder_of(name)}.log"
                    raise RunError(f"{name}: {last_error(log, suite.returncode)}; all of it in {log}")
                del running[name]
                free.append(cores)
    finally:
        for suite, _ in running.values():
            suite.terminate()
        for suite, _ in running.values():
            with suppress(subprocess.TimeoutExpired):
                suite.wait(GRACE_SECONDS)
            suite.kill()
    found = {name: a.output_dir / folder_of(name) / "glue_runs.json" for name in models}
    return {name: json.loads(path.read_text(encoding="utf-8"))["tasks"] for name, path in found.items()}


def scores(tasks: dict[str, Any]) -> dict[str, dict[int, float]]:
    """Points of 100 by task and seed, of each task's best configuration."""
    return {
        name: {
            run["seed"]: 100 * run["headline"]
            for run in task["configurations"][task["best_configuration"]]["runs"]
            if run["headline"] is not None
        }
        for name, task in tasks.items()
    }


def judge(points: dict[str, dict[str, dict[int, float]]], judged: list[str]) -> dict[str, Any]:
    """Mean over the judged tasks, seed by seed; `holds` where the medians differ by more than either model's seeds do."""
    means = {}
    for name, tasks in points.items():
        seeds = set.intersection(*(set(tasks[task]) for task in judged))
        if len(seeds) < 2:
            raise RunError(f"{name}: fewer than two seeds have finished {', '.join(judged)}; see the report's notes")
        means[name] = [statistics.fmean(tasks[task][seed] for task in judged) for seed in sorted(seeds)]
    gain = statistics.median(means[MODELS[0]]) - statistics.median(means[MODELS[1]])
    spread = max(max(values) - min(values) for values in means.values())
    return {"means": means, "gain": gain, "spread": spread, "holds": gain > spread}


def table(points: dict[str, dict[str, dict[int, float]]], verdict: dict[str, Any], judged: list[str]) -> str:
    def cell(values: list[float]) -> str:
        return ", ".join(f"{value:.1f}" for value in values)

    lines = [f"{'':24} {MODELS[0]:>24} {MODELS[1]:>24}"]
    for task in points[MODELS[0]]:
        lines.append(f"{task:24} " + " ".join(f"{cell(list(points[name][task].values())):>24}" for name in MODELS))
    mean = f"mean of {', '.join(judged)}"
    lines.append(f"{mean:24} " + " ".join(f"{cell(verdict['means'][name]):>24}" for name in MODELS))
    sign = "yes" if verdict["holds"] else "NO"
    lines.append(f"gain {verdict['gain']:+.1f}, seeds differ by up to {verdict['spread']:.1f}: {sign}")
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None) -> None:
    a = parse(argv)
    check(a)
    make_output_dir(a)
    weights = a.output_dir / "weights"
    draw_weights(a.model_name_or_path, weights, a.seed)  # always: the suite refuses a folder of other weights
    tasks = fine_tune(a, dict(zip(MODELS, (a.model_name_or_path, weights), strict=True)))
    points = {name: scores(found) for name, found in tasks.items()}
    verdict = judge(points, a.judged)
    publish(a, "glue_gain", table(points, verdict, a.judged), {"points": points, **verdict})
    if not verdict["holds"]:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
