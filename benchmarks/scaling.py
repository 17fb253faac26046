#!/usr/bin/env python3
"""Tokens per second of our training over model size, batch size and number of processes.

    python benchmarks/scaling.py --sizes 256x4 512x8 --batch_sizes 16 32 --launch cpu cpu_2proc --output_dir out/scaling

Every combination is one `accelerate launch` of --warmup_steps steps that do not count (compilation is in them) and
--steps that do. A size is width x layers, with heads of 64 and feed-forward blocks 4 times as wide; a launch is a file of
accelerate_configs, where it asks for a number of processes with it, as `ddp:8`. A point that fails, for want of memory
say, is recorded with its last line, and the rest goes on. Prints one table, writes scaling.json, and --png a picture.

MFU is model FLOPs (budget_trainer.model.flops) over the peak of a matrix product, measured by every process at the same time
just before it trains; memory is that of the main process: the most that tensors took on a GPU, or that was resident.
Data and overhead are shares of a step: waiting for data, and all but forward, backward and optimizer (on a GPU from
--steps more steps that wait for the device at every border).
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, parse_size, publish  # noqa: E402
from benchmarks.workload import Workload, fit  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("--sizes", nargs="+", default=["256x4"], help="width x layers, as 256x4 768x12")
    add("--batch_sizes", nargs="+", type=int, default=[32], help="blocks per process and step (32)")
    add("--launch", nargs="+", default=["cpu"], help="files of accelerate_configs, as cpu, cpu_2proc, ddp:8 (cpu)")
    add("--model_type", default="bert-mlm", help="as train_mlm.py takes it (bert-mlm)")
    add("--heads", type=int, help="attention heads; without it width / 64")
    add("--intermediate_size", type=int, help="without it 4 times the width")
    add("--dropout", type=float, default=0.0, help="of hidden states and attention (0.0)")
    add("--vocab_size", type=int, default=30_522, help="of the made text (30522)")
    add("--seq_length", type=int, default=128, help="tokens in a block (128)")
    add("--mlm_probability", type=float, default=0.15, help="share of the tokens to predict (0.15)")
    add("--gradient_accumulation_steps", type=int, default=1, help="batches per step (1)")
    add("--optimizer_type", default="adamw", help="as train_mlm.py takes it (adamw)")
    add("--model_config", type=json.loads, help="more keys of the native config, as JSON")
    add("--dataloader_num_workers", type=int, default=0, help="per process (0)")
    add("--no_bf16", action="store_true", help="float32")
    add("--no_compile", action="store_true", help="compile nothing")
    add("--data_dir", help="data folder of data_prep.blocks; without it Zipf-distributed tokens are drawn")
    add("--steps", type=int, default=20, help="steps to time (20)")
    add("--warmup_steps", type=int, default=5, help="steps before them (5)")
    add("--peak_seconds", type=float, default=1.0, help="how long to measure the matrix product's peak (1.0)")
    add("--timeout", type=float, default=900.0, help="seconds after which a point has failed (900)")
    add("--output_dir", default="out/scaling", help="scaling.json and one log per point (out/scaling)")
    add("--png", action="store_true", help="also draw scaling.png")
    a = parser.parse_args(argv)
    for name in ("steps", "warmup_steps", "gradient_accumulation_steps"):
        if getattr(a, name) < 1:
            raise InputError(f"{name}: {getattr(a, name)} is below 1; give a whole number from 1 on")
    a.shapes = [parse_size(text, "sizes") for text in a.sizes]
    a.launches = [parse_launch(text) for text in a.launch]
    return a


def parse_launch(text: str) -> tuple[str, list[str]]:
    """`ddp:8` as a configuration file and the launcher's flags."""
    name, _, processes = text.partition(":")
    path = ROOT / "accelerate_configs" / f"{name}.yaml"
    if not path.is_file() or (processes and not processes.isdigit()):
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"launch: {text!r} is none of {known}; write it as cpu, or with processes as ddp:8")
    return str(path), ["--num_processes", processes] if processes else []


def points(a: argparse.Namespace) -> list[tuple[str, Workload]]:
    """Every combination, as the launch's name and what to train."""
    return [
        (
            launch,
            Workload(
                model_type=a.model_type,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=a.heads or max(1, width // 64),
                intermediate_size=a.intermediate_size or 4 * width,
                dropout=a.dropout,
                vocab_size=a.vocab_size,
                block_size=a.seq_length,
                batch_size=batch,
                gradient_accumulation_steps=a.gradient_accumulation_steps,
                mlm_probability=a.mlm_probability,
                bf16=not a.no_bf16,
                compile=not a.no_compile,
                optimizer_type=a.optimizer_type,
                dataloader_num_workers=a.dataloader_num_workers,
                model_config=a.model_config,
            ),
        )
        for launch, (width, layers), batch in itertools.product(a.launch, a.shapes, a.batch_sizes)
    ]


def run_point(a: argparse.Namespace, launch: str, workload: Workload, text: str, number: int) -> dict[str, Any]:
    """One launch; its figures with `status` ok, or `status` failed and the `error`."""
    config, flags = parse_launch(launch)
    log, result = a.output_dir / f"point-{number}.log", a.output_dir / f"point-{number}.json"
    result.unlink(missing_ok=True)
    order = {"workload": asdict(workload), "text": text, "result": str(result)}
    order |= {"steps": a.steps, "warmup_steps": a.warmup_steps, "peak_seconds": a.peak_seconds}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, *flags]
    command += [str(ROOT / "benchmarks" / "scaling_point.py"), json.dumps(order)]
    point = {"launch": launch, "workload": asdict(workload)}
    with log.open("w") as file:
        try:
            code = run_group(command, file, a.timeout)
        except subprocess.TimeoutExpired:
            return {**point, "status": "failed", "error": f"not over after {a.timeout:g} s; raise --timeout"}
    if code != 0 or not result.is_file():
        return {**point, "status": "failed", "error": last_error(log.read_text(errors="replace"))}
    return {**point, "status": "ok", **json.loads(result.read_text())}


def run_group(command: list[str], log: IO[str], timeout: float) -> int:
    """The exit code of a child; whatever stops the wait ends its process group (Accelerate's one-process launcher
    passes no signal on)."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(timeout=timeout)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number)
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    continue


def last_error(log: str) -> str:
    """The last line that names an error; the launcher's own come after the child's, so they are passed over."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    own = [line for line in lines if "Error" in line or line.startswith("error:")]
    told = [line for line in own if "CalledProcessError" not in line and "ChildFailedError" not in line]
    return (told or own or lines or ["no output"])[-1][:300]


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'launch':12} {'size':>8} {'batch':>6} {'params':>8} {'tokens/s':>10} {'step':>10} {'MFU':>6} {'memory':>10}"
        f" {'data':>6} {'overhead':>8}"
    ]
    for row in results:
        w = row["workload"]
        size = f"{w['hidden_size']}x{w['num_hidden_layers']}"
        text = f"{row['launch'][:12]:12} {size:>8} {w['batch_size']:6}"
        if row["status"] == "ok":
            text += f" {row['parameters'] / 1e6:6.1f} M {row['tokens_per_second']:10,.0f}"
            text += f" {1000 * row['step_seconds']:7,.1f} ms {row['mfu']:6.1%} {row['peak_memory_mib']:6,.0f} MiB"
            text += f" {row['shares']['data_wait']:6.1%} {row['shares']['trainer_overhead']:8.1%}"
        else:
            text += f"  failed: {row['error'][:80]}"
        lines.append(text)
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    results = []
    jobs = points(a)
    with tempfile.TemporaryDirectory() as folder:
        fitted, text = fit(jobs[0][1], a.data_dir, Path(folder))
        for number, (launch, job) in enumerate(jobs, start=1):
            print(f"point {number} of {len(jobs)}", flush=True)
            job = Workload(**{**asdict(job), "vocab_size": fitted.vocab_size})
            results.append(run_point(a, launch, job, text, number))
    publish(a, "scaling", table(results), {"points": results}, leave_out=["shapes", "launches"])
    if a.png:
        draw(results, a.output_dir / "scaling.png")


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Tokens/s over parameters, a line for each launch and batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    good = [row for row in results if row["status"] == "ok"]
    for launch, batch in dict.fromkeys((row["launch"], row["workload"]["batch_size"]) for row in good):
        line = [row for row in good if (row["launch"], row["workload"]["batch_size"]) == (launch, batch)]
        line.sort(key=lambda row: row["parameters"])
        axes.loglog(
            [row["parameters"] / 1e6 for row in line],
            [row["tokens_per_second"] for row in line],
            "o-",
            label=f"{launch}, batch {batch}",
        )
    axes.set_xlabel("parameters (millions)")
    axes.set_ylabel("tokens per second")
    axes.grid(True, color="#e8ebef")
    if good:
        axes.legend(frameon=False)
    figure.savefig(path, format="png")


if __name__ == "__main__":
    sys.exit(main())
