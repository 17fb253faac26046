#!/usr/bin/env python3
"""Does the plan hold? First the plan and then the run that it wrote; then every micro-batch, measured at length.

    python benchmarks/planner.py --recipe recipes/cpu_10m.yaml --data_dir data/blocks --output_dir out/planner \
        --budget 300s --scan_rounds 4 --scan_steps 20

Prints planned and did of the run, and the tokens/s of each micro-batch that makes up the recipe's batch of a step, in turns
over `--scan_rounds` rounds, beside the plan's choice. The scan takes the run's own Trainer, in the precision that the plan
settled, eager unless `--scan_compiled`. `--scan_rounds 0` leaves the scan out.

It exits with 1 where a promise is broken: the tokens within 10 % of the plan's, the choice at most 10 % below the best.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import make_output_dir, one_line_errors, publish, run_parser  # noqa: E402
from budget_trainer.core.errors import RunError  # noqa: E402

TOKENS_PERCENT = 10.0  # by which a run's tokens may differ from the plan's
CHOICE_PERCENT = 10.0  # by which the plan's micro-batch may be slower than the best of the scan


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = run_parser(__doc__, output_dir="out/planner")
    parser.add_argument("--budget", default="300s", help="total_training_time of the run (300s)")
    parser.add_argument("--probe_seconds", type=float, default=60.0)
    parser.add_argument("--scan_rounds", type=int, default=4, help="turns of every micro-batch (4)")
    parser.add_argument("--scan_steps", type=int, default=20, help="micro-batches in a turn (20)")
    parser.add_argument("--scan_compiled", action="store_true", help="compile each micro-batch that the plan compiles")
    parser.add_argument("--profile", default="cpu", help="profile of accelerate_configs/ to run in (cpu)")
    return parser.parse_args(argv)


def call(command: list[Any], log: Path) -> None:
    """Run it with its output in `log`; RunError with its last line where it fails."""
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(
            [str(word) for word in command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        ).returncode
    if code:
        raise RunError(f"{command[2]}: exit code {code}; {log.read_text(encoding='utf-8').strip().splitlines()[-1]}")


def plan_and_run(a: argparse.Namespace) -> dict[str, Any]:
    """The plan, and `planned` of the report of the run that it wrote."""
    recipe, data = a.output_dir / "planned.yaml", Path(a.data_dir).resolve()
    command = [sys.executable, "-m", "budget_trainer.plan", Path(a.recipe).resolve(), "--data_dir", data]
    command += ["--total_training_time", a.budget, "--probe_seconds", a.probe_seconds, "--write", recipe]
    command += ["--overwrite", "--picture", a.output_dir / "plan.png", "--output_dir", a.output_dir / "run", *a.flags]
    begin = time.monotonic()
    call(command, a.output_dir / "plan.log")
    print((a.output_dir / "plan.log").read_text(encoding="utf-8"), flush=True)
    seconds = time.monotonic() - begin
    plan = json.loads((a.output_dir / "planned.plan.json").read_text(encoding="utf-8"))
    profile = ROOT / "accelerate_configs" / f"{a.profile}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", profile, "train_mlm.py", recipe]
    call([*launch, "--output_dir", a.output_dir / "run"], a.output_dir / "run.log")
    report = json.loads((a.output_dir / "run" / "run_report.json").read_text(encoding="utf-8"))
    return {"plan": plan, "plan_command_seconds": seconds, "planned": report["planned"], "shares": report["shares"]}


def scan(order: dict[str, Any]) -> dict[int, list[float]]:
    """Tokens/s of every micro-batch, a number per round; this process trains."""
    from budget_trainer.planning.probe import probe
    from budget_trainer.planning.steps import Measurements, ProbeSteps, StepRequest, Steps, micro_batches

    rates: dict[int, list[float]] = {}
    sizes = micro_batches(order["total"])

    def every_size(_: ProbeSteps) -> Steps:
        for number in range(order["rounds"] + 1):  # the first warms up, and compiles
            for size in sizes if number % 2 else sizes[::-1]:
                results = []
                for _step in range(order["steps"] + 1):
                    result = yield StepRequest(size, eager=not order["compiled"])
                    results.append(result)
                if number and all(result.fits for result in results):
                    measured = Measurements({size: [result.step for result in results[1:]]})
                    rate = measured.blocks_per_second(size, order["total"])
                    rates.setdefault(size, []).append(rate * order["block_size"])

    with tempfile.TemporaryDirectory() as folder:
        probe(order["words"], Path(folder), take_steps=every_size)
    return rates


def judge(result: dict[str, Any]) -> tuple[list[str], dict[str, bool]]:
    """A line for each promise that was measured, and whether it held."""
    lines, held = [], {}
    if "planned" in result:
        tokens = result["planned"]["tokens"]
        off = 100 * (tokens["did"] / tokens["planned"] - 1) if tokens["planned"] else math.inf
        held["tokens"] = abs(off) <= TOKENS_PERCENT
        lines.append(f"{'tokens, did less planned':44} {off:+8.1f} %, at most {TOKENS_PERCENT:g}")
    if "scan" in result:
        held["choice"] = result["loss_percent"] <= CHOICE_PERCENT
        lines.append(
            f"{'the choice below the best of the scan':44} {result['loss_percent']:8.1f} %, at most {CHOICE_PERCENT:g}"
        )
    return [line + ("  yes" if good else "  NO") for line, good in zip(lines, held.values(), strict=True)], held


def table(result: dict[str, Any]) -> str:
    lines = []
    if "planned" in result:
        lines.append(f"{'':20} {'planned':>14} {'did':>14} {'did/planned':>12}")
        for name, pair in result["planned"].items():
            if isinstance(pair, dict):
                ratio = f"{pair['did'] / pair['planned']:.3f}" if pair["planned"] else ""
                lines.append(f"{name:20} {pair['planned']:>14,.1f} {pair['did']:>14,.1f} {ratio:>12}")
        lines.append(f"the plan's command took {result['plan_command_seconds']:.1f} s")
    if "scan" in result:
        lines += ["", f"{'micro-batch':>11} {'tokens/s':>10} {'(lowest - highest)':>22} {'below best':>11}"]
        best = max(row["median"] for row in result["scan"].values())
        for size, row in result["scan"].items():
            bounds = f"({row['min']:,.0f} - {row['max']:,.0f})"
            mark = "  <- the plan's choice" if size == result["chosen"] else ""
            lines.append(f"{size:>11} {row['median']:>10,.0f} {bounds:>22} {1 - row['median'] / best:>11.1%}{mark}")
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    result = plan_and_run(a)
    if a.scan_rounds:
        plan = result["plan"]
        words = [str(Path(a.recipe).resolve()), "--data_dir", str(Path(a.data_dir).resolve())]
        words += ["--total_training_time", a.budget, *a.flags]
        settled = ["--auto_speed", "false", "--bf16", str(plan["speed"]["bf16"]).lower()]
        settled += ["--torch_compile", str(a.scan_compiled and plan["speed"]["compile"] != "no").lower()]
        total = plan["total_batch"] // plan["num_processes"]
        rates = scan(
            {
                "words": [*words, *settled],
                "rounds": a.scan_rounds,
                "steps": a.scan_steps,
                "total": total,
                "block_size": plan["prediction"]["tokens"] // plan["prediction"]["samples"],
                "compiled": a.scan_compiled,
            }
        )
        result["scan"] = {
            size: {"median": statistics.median(rates[size]), "min": min(rates[size]), "max": max(rates[size])}
            for size in sorted(rates)
        }
        result["chosen"] = plan["micro_batch"]
        best = max(row["median"] for row in result["scan"].values())
        result["loss_percent"] = 100 * (1 - result["scan"][plan["micro_batch"]]["median"] / best)
    lines, held = judge(result)
    publish(a, "planner", "\n".join([table(result), "", *lines]), {**result, "held": held})
    if not all(held.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
