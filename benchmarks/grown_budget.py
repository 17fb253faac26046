#!/usr/bin/env python3
"""What a finished run that is given more time is worth beside one that had all of it from the start, and what kills do to it.

    python benchmarks/grown_budget.py --recipe recipes/quickstart.yaml --data_dir data/blocks --budgets 120s,240s \
        --seeds 3 --kills 5 --output_dir out/grown_budget

For each seed: one run of the shorter budget, the same run prolonged to the longer one, and one run of the longer budget; then
the first seed's prolonged part again, killed once at a random moment for each of --kills. Prolonged runs hold where they end
within 0.02 bits per byte of the whole ones on average, each within its budget and with its clock within 1 % of the seconds that
were seen from outside. A killed one holds where it ends within its budget, with its rate down and the first model untouched.
Prints a table, writes grown_budget.json.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import make_output_dir, one_line_errors, publish, run_parser  # noqa: E402
from budget_trainer.budget.clock import format_duration, parse_duration  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402

MOST_BITS, MOST_CLOCK = 0.02, 0.01  # of the difference in bits per byte; of the clock, as a share
_LOOK_SECONDS = 0.02


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = run_parser(__doc__, output_dir="out/grown_budget")
    add = parser.add_argument
    add("--budgets", default="120s,240s", help="the shorter and the longer budget (120s,240s)")
    add("--curve", default="wsd", help="of all runs (wsd)")
    add("--seeds", type=int, default=3, help="runs of each kind (3)")
    add("--kills", type=int, default=5, help="prolonged runs that are killed once (5)")
    a = parser.parse_args(argv)
    a.seconds = [parse_duration(text, "budgets") for text in a.budgets.split(",")]
    if len(a.seconds) != 2 or a.seconds[0] >= a.seconds[1]:
        raise InputError(f"budgets: {a.budgets} are not a shorter and a longer one; write them as 120s,240s")
    return a


def train(a: argparse.Namespace, out: Path, seconds: float, seed: int, kill_after: float | None = None) -> float:
    """Start a job in `out` and wait for its end, or kill it after some seconds; returns those until `final/` was there."""
    command = [sys.executable, "train_mlm.py", a.recipe, "--data_dir", a.data_dir, "--output_dir", str(out)]
    command += [
        "--total_training_time",
        f"{seconds:g}s",
        "--curve",
        a.curve,
        "--seed",
        str(seed),
        "--report_to",
        "none",
    ]
    command += ["--checkpoint_at_end", "true", "--disable_tqdm", "true"]
    command += [*(["--resume_from_checkpoint", "auto"] if out.exists() else []), *a.flags]
    there, begin = None, time.monotonic()
    finished = out / f"final-{format_duration(a.seconds[0])}"
    grows = (out / "final").exists()
    with open(f"{out}.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            spent = time.monotonic() - begin
            if kill_after is not None and spent > kill_after:
                process.kill()
                process.wait()
                return spent
            if there is None and (out / "final").exists() and (not grows or finished.exists()):
                there = spent
            time.sleep(_LOOK_SECONDS)
    if process.returncode != 0 or there is None:
        raise InputError(f"run: {out.name} ended with exit code {process.returncode}; see {out}.log")
    return there


def report_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run_report.json").read_text(encoding="utf-8")))


def of_seed(a: argparse.Namespace, seed: int) -> dict[str, Any]:
    """A row of the table: the three runs of a seed, and the folder of the first one as it was left, for the kills."""
    short, long = a.seconds
    out, whole = a.output_dir / f"grown-{seed}", a.output_dir / f"whole-{seed}"
    train(a, out, short, seed)
    first = report_of(out)
    if seed == 0:
        shutil.copytree(out, a.output_dir / "first")
    seen = train(a, out, long, seed)
    train(a, whole, long, seed)
    grown, other = report_of(out), report_of(whole)
    bits = [report["evaluation"]["bits_per_byte"] for report in (first, grown, other)]
    row = dict(zip(("short", "grown", "whole"), bits, strict=True)) | {"seed": seed, "difference": bits[1] - bits[2]}
    counted = grown["used_seconds"] - first["used_seconds"]
    row |= {"used": grown["used_seconds"], "clock": counted / seen - 1}
    row["held"] = abs(row["clock"]) <= MOST_CLOCK and grown["overrun_seconds"] == 0
    return row


def killed(a: argparse.Namespace, number: int, chance: random.Random) -> dict[str, Any]:
    """The prolonged part of the first seed, killed at a random moment, and gone on with."""
    out, (short, long) = a.output_dir / f"killed-{number}", a.seconds
    shutil.copytree(a.output_dir / "first", out)
    weights = (out / "final" / "model.safetensors").read_bytes()
    moment = train(a, out, long, 0, kill_after=chance.uniform(0.0, long - short))
    train(a, out, long, 0)
    report = report_of(out)
    row = {"number": number, "killed_after": moment, "grown": report["evaluation"]["bits_per_byte"]}
    row |= {"used": report["used_seconds"], "jobs": report["jobs"]}
    kept = (out / f"final-{format_duration(short)}" / "model.safetensors").read_bytes() == weights
    decayed = report["learning_rate_last"] < 0.2 * report["learning_rate_peak"]
    row["held"] = kept and decayed and 0.95 * long <= report["used_seconds"] and report["overrun_seconds"] == 0
    return row


def table(rows: list[dict[str, Any]], kills: list[dict[str, Any]]) -> str:
    lines = [f"{'':10} {'short':>7} {'grown':>7} {'whole':>7} {'differs':>8} {'used':>8} {'clock':>8}"]
    for row in rows:
        bits = " ".join(f"{row[name]:7.3f}" for name in ("short", "grown", "whole"))
        tail = f"{row['used']:7.1f}s {100 * row['clock']:+7.2f}%"
        lines.append(
            f"seed {row['seed']:<5} {bits} {row['difference']:+8.4f} {tail} {'held' if row['held'] else 'NOT'}"
        )
    for row in kills:
        head = f"killed after {row['killed_after']:.1f}s: {row['grown']:.3f} bits per byte, used {row['used']:.1f}s in"
        lines.append(f"{head} {row['jobs']} jobs {'held' if row['held'] else 'NOT'}")
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    rows = [of_seed(a, seed) for seed in range(a.seeds)]
    chance = random.Random(0)
    kills = [killed(a, number, chance) for number in range(a.kills)]
    mean = statistics.mean(row["difference"] for row in rows)
    text = f"{table(rows, kills)}\nmean difference {mean:+.4f} bits per byte"
    publish(a, "grown_budget", text, {"rows": rows, "kills": kills, "mean_difference": mean})
    if mean > MOST_BITS or not all(row["held"] for row in [*rows, *kills]):
        raise InputError(f"grown_budget: not every line holds; see the logs in {a.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
