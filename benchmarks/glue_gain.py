#!/usr/bin/env python3
"""What does pre-training earn on GLUE? A checkpoint against its own architecture with random weights, same protocol.

    python benchmarks/glue_gain.py --model_name_or_path out/run/final --glue_dir data/glue --grid recipes/glue/cpu.yaml \
        --output_dir out/glue_gain

Fine-tunes both with `finetune_glue.py`, side by side on half of the cores each, and prints every seed. It goes on where it
was killed. It exits with 1 unless the mean over `--judged`, seed by seed, rises by more than the seeds of either model differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from budget_trainer.errors import InputError, RunError  # noqa: E402

MODELS = ("pre-trained", "random weights")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="a folder with a pre-trained checkpoint")
    parser.add_argument("--glue_dir", required=True, help="folder in the official layout")
    parser.add_argument("--grid", default=str(ROOT / "recipes" / "glue" / "cpu.yaml"), help="protocol (cpu.yaml)")
    parser.add_argument("--tasks", default="STS-B,SST-2,MRPC,CoLA", help="what is fine-tuned (STS-B,SST-2,MRPC,CoLA)")
    parser.add_argument("--judged", default="SST-2,STS-B", help="tasks whose mean has to rise (SST-2,STS-B)")
    parser.add_argument("--output_dir", default="out/glue_gain", help="folder for what is run (out/glue_gain)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (0)")
    a = parser.parse_args(argv)
    if lost := set(a.judged.split(",")) - set(a.tasks.split(",")):
        raise InputError(f"judged: {', '.join(sorted(lost))} is not among tasks {a.tasks}; add it there")
    a.model_name_or_path = Path(a.model_name_or_path).resolve()
    if not (a.model_name_or_path / "config.json").is_file():
        raise InputError(f"model_name_or_path: {a.model_name_or_path} has no config.json; give a checkpoint's folder")
    return a


def draw_weights(source: Path, folder: Path, seed: int) -> None:
    """The architecture and tokenizer of `source` with the library's own random weights, in `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

    torch.manual_seed(seed)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def fine_tune(a: argparse.Namespace, models: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """`tasks` of each model's glue_runs.json; both at once where there are two cores or more."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(cores) // len(models)
    started: list[tuple[str, Path, subprocess.Popen[bytes]]] = []
    for number, (name, model) in enumerate(models.items()):
        out = a.output_dir / name.replace(" ", "_")
        command = [sys.executable, "finetune_glue.py", "--model_name_or_path", model, "--task_name", a.tasks]
        command += ["--glue_dir", Path(a.glue_dir).resolve(), "--grid", Path(a.grid).resolve(), "--output_dir", out]
        environment = dict(os.environ)
        if share:
            os.sched_setaffinity(0, cores[number * share : (number + 1) * share])  # the child inherits it
            environment["OMP_NUM_THREADS"] = str(share)
        with out.with_suffix(".log").open("w", encoding="utf-8") as log:
            child = subprocess.Popen(
                [str(word) for word in command], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        started.append((name, out, child))
        if not share:
            child.wait()
    if share:
        os.sched_setaffinity(0, cores)
    codes = [child.wait() for _, _, child in started]
    for (name, out, _), code in zip(started, codes, strict=True):
        if code:
            last = out.with_suffix(".log").read_text(encoding="utf-8").strip().splitlines()[-1]
            raise RunError(f"{name}: exit code {code}; {last}")
    return {
        name: json.loads((out / "glue_runs.json").read_text(encoding="utf-8"))["tasks"] for name, out, _ in started
    }


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
        if not seeds:
            raise RunError(f"{name}: no seed has finished every one of {', '.join(judged)}")
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
    make_output_dir(a)
    weights = a.output_dir / "weights"
    if not (weights / "tokenizer.json").is_file():
        draw_weights(a.model_name_or_path, weights, a.seed)
    points = {
        name: scores(tasks)
        for name, tasks in fine_tune(a, dict(zip(MODELS, (a.model_name_or_path, weights), strict=True))).items()
    }
    judged = a.judged.split(",")
    verdict = judge(points, judged)
    publish(a, "glue_gain", table(points, verdict, judged), {"points": points, **verdict})
    if not verdict["holds"]:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
