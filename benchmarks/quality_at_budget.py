#!/usr/bin/env python3
"""Our recipes against a stock `Trainer` script: the same machine, text, tokenizer and wall-clock budget.

    python benchmarks/quality_at_budget.py --text train.txt.xz --eval_text held_out.txt.xz --tokenizer DIR \
        --recipes recipes/cpu_10m.yaml --budget 300s --output_dir out/quality

Runs one process at a time, ours and stock in turns, scores every checkpoint with one script, and prints one table.
The budget of ours holds set-up and compilation, with an empty compile cache for every run; that of the stock script
holds its training only. Each result is appended to results.jsonl as it comes: --resume skips what is there.

With --ablate "name: flag=value flag2=value2" (repeatable) or --ablations recipes/ablations/cpu_10m.yaml, variants of the
one recipe run beside it, seed by seed, so that a machine that drifts does so for all of them; a second table has each
variant's difference to the recipe with the same seed. --stock_learning_rates without a value leaves the baseline out.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import ablations  # noqa: E402
from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from budget_trainer.budget.clock import format_duration, parse_duration  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402

SCORES = ("loss", "accuracy", "bits_per_byte")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("--text", required=True, help="training text, .txt or .xz, documents separated by blank lines")
    add("--eval_text", required=True, help="held-out text in the same form")
    add("--tokenizer", required=True, help="folder, tokenizer.json or vocab.txt that all runs share")
    add("--recipes", nargs="+", default=["recipes/cpu_10m.yaml"], help="recipes of train_mlm.py")
    add("--ablate", action="append", default=[], metavar="NAME: FLAG=VALUE ...", help="a variant of the one recipe")
    add("--ablations", help="YAML file of variants: name to changed flags")
    add("--seeds", type=int, default=3, help="runs per recipe (3)")
    add("--first_seed", type=int, default=0, help="their seeds count from here, to share the runs among machines (0)")
    add("--stock_learning_rates", nargs="*", default=["5e-4", "1e-3", "2e-3"], help="one stock run for each")
    add("--stock_script", default="../shared/bench/stock_mlm.py", help="the baseline")
    add("--eval_script", default="../shared/bench/eval_mlm.py", help="scores a checkpoint")
    add("--bf16_stock", action="store_true", help="bf16 for the baseline")
    add("--budget", default="300s", help="wall-clock budget of every run (300s)")
    add("--config_file", default="accelerate_configs/cpu.yaml", help="launch configuration of our runs")
    add("--packing", default="packed", help="packing of our data folder (packed)")
    add("--data_dir", help="data folder of our runs, made before; without it, it is made from --text")
    add("--max_blocks", type=int, default=2000, help="blocks to score each checkpoint on (2000)")
    add("--output_dir", default="out/quality", help="folder of all runs and results (out/quality)")
    add("--resume", action="store_true", help="keep the results in --output_dir and run only what is missing")
    a = parser.parse_args(argv)
    a.seconds = parse_duration(a.budget, "budget")
    for name in ("text", "eval_text", "tokenizer", "stock_script", "eval_script", "config_file"):
        if not Path(getattr(a, name)).exists():
            raise InputError(f"{name}: {getattr(a, name)} does not exist; give --{name}")
        setattr(a, name, str(Path(getattr(a, name)).resolve()))
    for recipe in a.recipes:
        if not Path(recipe).is_file():
            raise InputError(f"recipes: {recipe} does not exist; give files of recipes/")
    a.variants = ablations.gather(a.ablations, a.ablate)
    ablations.check(a.variants, a.recipes)
    a.output_dir = Path(a.output_dir).resolve()
    if (a.output_dir / "results.jsonl").exists() and not a.resume:
        raise InputError(f"output_dir: {a.output_dir} holds results; add --resume to go on, or give another folder")
    return a


def plan(a: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs, ours and stock in turns, variants seed by seed, so that a machine that drifts does so for all."""
    stock = [
        {"kind": "stock", "name": f"stock lr {rate}" + (" bf16" if a.bf16_stock else ""), "rate": rate, "seed": 0}
        for rate in a.stock_learning_rates
    ]
    base = [{"kind": "ours", "name": Path(recipe).stem, "recipe": str(Path(recipe).resolve())} for recipe in a.recipes]
    base += [{**base[0], "kind": "ablation", "name": name, "changes": a.variants[name]} for name in a.variants]
    ours = [{**job, "seed": seed} for seed in range(a.first_seed, a.first_seed + a.seeds) for job in base]
    turns = itertools.zip_longest(ours, stock)
    return [{**job, "budget_seconds": a.seconds} for pair in turns for job in pair if job is not None]


def child(command: list[str], log: Path, **environ: str) -> float:
    """Run one child process, its output to `log`; returns its wall-clock seconds. InputError with the log's end."""
    begin = time.monotonic()
    with log.open("w") as file:
        env = {**os.environ, **environ}
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code != 0:
        tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise InputError(f"run: {' '.join(command[:6])} ... ended with exit code {code}; see {log} ({tail})")
    return time.monotonic() - begin


def prepare(a: argparse.Namespace) -> str:
    """Our data folder, made once outside of the budget, as the baseline's tokenisation is."""
    if a.data_dir:
        return str(Path(a.data_dir).resolve())
    folder = a.output_dir / f"data-{a.packing}"
    if not (folder / "manifest.json").is_file():
        print(f"preparing {folder}", flush=True)
        command = [sys.executable, "-m", "data_prep.blocks", "--input", a.text, "--tokenizer", a.tokenizer]
        command += ["--output_dir", str(folder), "--packing", a.packing, "--num_proc", str(os.cpu_count() or 1)]
        child(command, a.output_dir / "data_prep.log")
    return str(folder)


def run_stock(a: argparse.Namespace, job: dict[str, Any], folder: Path, data: str) -> tuple[Path, dict[str, Any]]:
    command = [sys.executable, a.stock_script, "--text", a.text, "--tokenizer", f"{data}/tokenizer"]
    command += ["--out", str(folder)]
    command += ["--budget_seconds", str(a.seconds), "--learning_rate", job["rate"], "--seed", str(job["seed"])]
    child(command + (["--bf16"] if a.bf16_stock else []), folder / "log.txt")
    said = json.loads((folder / "log.txt").read_text().strip().splitlines()[-1])
    return folder, {"used_seconds": said["seconds"], **{key: said[key] for key in ("steps", "tokens_per_second")}}


def run_ours(a: argparse.Namespace, job: dict[str, Any], folder: Path, data: str) -> tuple[Path, dict[str, Any]]:
    run, recipe = folder / "run", job["recipe"]
    if "changes" in job:
        recipe = ablations.write_variant(Path(recipe), job["changes"], folder / "recipe.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", a.config_file, "train_mlm.py"]
    command += [recipe, "--data_dir", data, "--output_dir", str(run)]
    command += ["--total_training_time", f"{a.seconds:g}s", "--seed", str(job["seed"])]
    child(command, folder / "log.txt", TORCHINDUCTOR_CACHE_DIR=str(folder / "compile-cache"))
    shutil.rmtree(folder / "compile-cache", ignore_errors=True)
    report = json.loads((run / "run_report.json").read_text())
    figures = {key: report[key] for key in ("used_seconds", "steps", "tokens_per_second", "shares")}
    return run / "final", figures


def run_job(a: argparse.Namespace, job: dict[str, Any], data: str) -> dict[str, Any]:
    """Train, score; the result as one flat dict."""
    folder = a.output_dir / re.sub(r"[^\w.-]+", "-", f"{job['name']}-seed{job['seed']}")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed benchmark left: it has no result
    folder.mkdir(parents=True)
    model, figures = (run_stock if job["kind"] == "stock" else run_ours)(a, job, folder, data)
    scores = folder / "scores.json"
    command = [sys.executable, a.eval_script, "--model", str(model), "--text", a.eval_text]
    child([*command, "--max_blocks", str(a.max_blocks), "--json", str(scores)], folder / "eval.log")
    scored = json.loads(scores.read_text())
    return {**job, **figures, **{key: scored[key] for key in (*SCORES, "parameters", "model_type")}}


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per name: runs, median, mean, lowest, highest and spread (highest - lowest); against the best stock rate
    where there is one; variants against the recipe (`ablations.add_deltas`)."""
    rows = []
    for name in dict.fromkeys(result["name"] for result in results):
        runs = [result for result in results if result["name"] == name]
        row: dict[str, Any] = {"name": name, "kind": runs[0]["kind"], "runs": len(runs)}
        for key in (*SCORES, "tokens_per_second", "used_seconds"):
            values = [run[key] for run in runs]
            row[key] = {"median": statistics.median(values), "mean": statistics.mean(values)}
            row[key] |= {"min": min(values), "max": max(values), "spread": max(values) - min(values)}
        rows.append(row)
    stock = min(
        (row for row in rows if row["kind"] == "stock"), key=lambda row: row["bits_per_byte"]["median"], default=None
    )
    for row in rows if stock else []:
        assert stock is not None
        row["bits_per_byte_below_stock"] = stock["bits_per_byte"]["median"] - row["bits_per_byte"]["median"]
        row["mean_bits_per_byte_below_stock"] = stock["bits_per_byte"]["mean"] - row["bits_per_byte"]["mean"]
        row["tokens_per_second_ratio"] = row["tokens_per_second"]["median"] / stock["tokens_per_second"]["median"]
    ablations.add_deltas(rows, results)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'run':26} {'n':>2} {'bits/byte':>9} {'mean':>6} {'min':>6} {'max':>6} {'spread':>6} {'loss':>6} {'tokens/s':>9}"
        "  vs best stock"
    ]
    for row in rows:
        bits = row["bits_per_byte"]
        text = f"{row['name'][:26]:26} {row['runs']:2} {bits['median']:9.3f} {bits['mean']:6.3f}"
        text += f" {bits['min']:6.3f} {bits['max']:6.3f} {bits['spread']:6.3f}"
        text += f" {row['loss']['median']:6.3f} {row['tokens_per_second']['median']:9,.0f}"
        if "tokens_per_second_ratio" in row:
            text += f"  {0.0 - row['bits_per_byte_below_stock']:+.3f}, {row['tokens_per_second_ratio']:.1f} x tokens/s"
        lines.append(text)
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    log = a.output_dir / "results.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    data = prepare(a)
    for number, job in enumerate(jobs := plan(a), start=1):
        if any(all(result.get(key) == job[key] for key in job) for result in results):
            continue
        label = f"{job['name']}, seed {job['seed']}"
        print(f"run {number} of {len(jobs)}: {label}, {format_duration(a.seconds)}", flush=True)
        result = run_job(a, job, data)
        results.append(result)
        with log.open("a") as file:
            file.write(json.dumps(result) + "\n")
        said = f"{result['bits_per_byte']:.3f} bits per byte, {result['tokens_per_second']:,.0f} tokens/s"
        print(f"    {said}", flush=True)
    rows = summarise(results)
    figures = {"summary": rows, "runs": results}
    publish(a, "quality_at_budget", table(rows) + ablations.table(rows), figures, file="results.json")


if __name__ == "__main__":
    sys.exit(main())
