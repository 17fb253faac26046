#!/usr/bin/env python3
"""Is the final model on disk in time, under every engine, with validations and two checkpoints on the way?

    python benchmarks/budget_kept.py --recipe recipes/quickstart.yaml --data_dir data/blocks \
        --engines ddp,zero1,zero2,zero3 --budgets 60s,300s --output_dir out/budget_kept

Per engine and budget one real `accelerate launch` with two processes, and one that --job_time_limit (a fifth of the
longest budget) ends. The seconds are seen from outside, from the creation of the process that runs train_mlm.py until
final/ (or RESUMABLE, behind a complete checkpoint) is there. On a machine without a GPU the profiles run over gloo.
Prints one table, writes budget_kept.json; a line holds where final/ came at 95 to 100 % of the budget, with the same
steps and bit-equal rates on both ranks.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import make_output_dir, one_line_errors, publish, run_parser  # noqa: E402
from benchmarks.watched import two_processes, watch  # noqa: E402
from budget_trainer.budget.clock import parse_duration  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402
from budget_trainer.training.run_folder import RunFolder  # noqa: E402

ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp")  # and profiles of accelerate_configs/


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = run_parser(__doc__, output_dir="out/budget_kept")
    add = parser.add_argument
    add("--engines", default="ddp,zero1,zero2,zero3", help=f"of {', '.join(ENGINES)} (ddp,zero1,zero2,zero3)")
    add("--budgets", default="60s,300s", help="budgets (60s,300s)")
    a = parser.parse_args(argv)
    a.engines = a.engines.split(",")
    if unknown := set(a.engines) - set(ENGINES):
        raise InputError(f"engines: {sorted(unknown)[0]} is unknown; choose of {', '.join(ENGINES)}")
    a.budgets = [parse_duration(text, "budgets") for text in a.budgets.split(",")]
    return a


def run(a: argparse.Namespace, engine: str, budget: float, job_limit: float | None) -> dict[str, Any]:
    """One launch; its row of the table."""
    name = f"{engine}-{budget:g}s" + ("" if job_limit is None else "-job")
    folder = a.output_dir / name
    folder.mkdir()
    out = folder / "run"
    form, environment = two_processes(ROOT / "accelerate_configs" / f"{engine}.yaml", folder)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(form)]
    command += ["train_mlm.py", a.recipe, "--data_dir", a.data_dir, "--output_dir", str(out), "--disable_tqdm", "true"]
    command += ["--total_training_time", f"{budget}s", "--validate_every", "25%", "--report_to", "none"]
    command += ["--checkpoint_every", f"{0.4 * budget}s"]
    command += [] if job_limit is None else ["--job_time_limit", f"{job_limit}s"]
    wanted = out / "final" / "config.json" if job_limit is None else out / "RESUMABLE"
    seen = watch([*command, *a.flags], folder / "log.txt", wanted, 2, env=environment)
    limit = budget if job_limit is None else job_limit
    row: dict[str, Any] = {"engine": engine, "limit": limit, "job": job_limit is not None, "code": seen.code}
    row |= {"seconds": seen.since_start, "from_launch": seen.since_launch}
    row["saves"] = len(RunFolder(out).checkpoints())
    if seen.since_start is None:
        return {**row, "held": False}
    if job_limit is not None:
        return {**row, "held": seen.since_start <= job_limit and row["saves"] > 0}
    report = json.loads((out / "run_report.json").read_text())
    lines = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    ranks = {(rank["steps"], rank["learning_rates_sha256"]) for rank in report["ranks"]}
    row |= {"used": report["used_seconds"], "engine": report["engine"], "steps": report["steps"]}
    row |= {"validations": sum("evaluation" in line for line in lines), "histories": len(ranks)}
    in_time = all(0.95 * budget <= seconds <= budget for seconds in (seen.since_start, report["used_seconds"]))
    row["held"] = in_time and len(ranks) == 1 and row["saves"] == 2 and row["validations"] >= 2 and seen.code == 0
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'engine':16} {'limit':>12} {'on disk after':>14} {'share':>7} {'report':>8} {'steps':>6} {'saves':>5} "
        f"{'valid.':>6} {'held':>5}"
    ]
    for row in rows:
        seconds, used = row["seconds"], row.get("used")
        lines.append(
            f"{row['engine']:16} {('job ' if row['job'] else '') + format(row['limit'], 'g') + 's':>12} "
            + (f"{seconds:13.2f}s {100 * seconds / row['limit']:6.1f}%" if seconds is not None else f"{'never':>22}")
            + (f" {used:7.2f}s" if used is not None else f" {'':8}")
            + f" {row.get('steps', ''):>6} {row['saves']:5} {row.get('validations', ''):>6} {'yes' if row['held'] else 'NO':>5}"
        )
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    rows = []
    for engine in a.engines:
        for budget, limit in [*((budget, None) for budget in a.budgets), (max(a.budgets), max(a.budgets) / 5)]:
            rows.append(run(a, engine, budget, limit))
            print(json.dumps(rows[-1]), flush=True)
    publish(a, "budget_kept", table(rows), {"rows": rows})
    if not all(row["held"] for row in rows):
        raise InputError(f"budget_kept: not every line holds; see the logs in {a.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
