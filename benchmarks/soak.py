#!/usr/bin/env python3
"""Kill a run again and again, always go on with it, and see what it has lost: nothing but time.

    python benchmarks/soak.py --recipe recipes/quickstart.yaml --data_dir data/blocks --total_training_time 10m \
        --config_file accelerate_configs/cpu_2proc.yaml --kills 50 --output_dir out/soak

Each job is a real `accelerate launch ... --resume_from_checkpoint auto`; at a random moment a random rank gets kill -9. The
moments are drawn from start-up, training, saving and evaluation, as `clock.json` says which phase the run is in. When the
kills are used up the run may finish. Checked, and printed as one table:

- every job goes on from the newest complete checkpoint that the job before had left, at the step behind it;
- the clock never goes back, and ends within the budget (of at most 1 % less);
- samples are steps x batch: none was skipped, none came twice;
- with --max_steps instead of a time, --reference compares the weights with those of a run that nobody disturbed, bit for bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import make_output_dir, one_line_errors, publish, run_parser  # noqa: E402
from budget_trainer import checkpoints  # noqa: E402
from budget_trainer.errors import InputError  # noqa: E402

MOMENTS = ("set-up", "train", "save", "evaluate")
JOB_SECONDS = 600  # a job that takes longer after its kill hangs


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = run_parser(__doc__, recipe_required=False, output_dir="out/soak")
    add = parser.add_argument
    add("--config_file", default="accelerate_configs/cpu_2proc.yaml", help="launch configuration")
    add("--total_training_time", help="budget of the run")
    add("--max_steps", type=int, help="or its steps (lr_schedule step)")
    add("--checkpoint_every", default="5s", help="of the run (5s)")
    add("--kills", type=int, default=50, help="how often (50)")
    add("--seed", type=int, default=0, help="of the moments and ranks (0)")
    add("--reference", action="store_true", help="also run undisturbed, and compare the weights")
    a = parser.parse_args(argv)
    if (a.total_training_time is None) == (a.max_steps is None):
        raise InputError("total_training_time: give it or max_steps, one of them")
    if a.reference and a.max_steps is None:
        raise InputError("reference: a run by time takes other steps each time; give --max_steps")
    if a.kills < 0:
        raise InputError(f"kills: {a.kills} is below 0; give 0 or more")
    if (Path(a.output_dir) / "run").exists():
        raise InputError(f"output_dir: {a.output_dir} holds a run; give a new folder")
    return a


def command(a: argparse.Namespace, folder: Path) -> list[str]:
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", a.config_file, "train_mlm.py"]
    words += [a.recipe] if a.recipe else []
    words += ["--data_dir", a.data_dir, "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
    if a.total_training_time is not None:
        words += ["--total_training_time", a.total_training_time]
    else:
        words += ["--lr_schedule", "step", "--max_steps", str(a.max_steps)]
    every = [
        "--checkpoint_every",
        a.checkpoint_every,
        "--logging_steps",
        "1",
    ]  # a line per step: where did a job begin?
    return [*words, "--disable_tqdm", "true", *every, *a.flags]


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank to process id, of the processes below a launcher that have started."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        rank = next((word for word in environment if word.startswith(b"RANK=")), None)
        if parent == launcher and rank is not None:
            found[int(rank.removeprefix(b"RANK="))] = int(folder.name)
    return found


def phase_of(folder: Path, job: int) -> str:
    """What the job is doing: `set-up` until its first line in the log, then the clock's phase or a save in the making."""
    if (folder / "final").exists():
        return "report"
    try:
        clock = json.loads((folder / "clock.json").read_text())
        started = f'"job": {job},' in (folder / "progress.jsonl").read_text()
    except (OSError, ValueError):
        return "set-up"
    if not started:
        return "set-up"
    return "save" if any(folder.glob(".partial-checkpoint-*")) else str(clock["phase"] or "evaluate")


def disturb(process: subprocess.Popen, folder: Path, job: int, chance: random.Random) -> tuple[str, str, int]:
    """Wait for a random moment of the wanted kind and kill a random rank: wanted moment, what it was, rank."""
    wanted = chance.choice(MOMENTS)
    pause = chance.uniform(0.0, 6.0) if wanted == "set-up" else chance.uniform(0.0, 1.5)
    started, patience = 0.0, 2.0  # after so long behind the set-up: what there is
    if wanted == "set-up":
        time.sleep(pause)
        pause = 0.0
    while process.poll() is None:
        ranks = ranks_of(process.pid)
        phase = phase_of(folder, job)
        started = started or (time.monotonic() if phase != "set-up" else 0.0)
        due = wanted == "set-up" or phase == wanted or (started and time.monotonic() - started > patience)
        if len(ranks) > 0 and due:
            time.sleep(pause if wanted == "train" else 0.0)
            rank = chance.choice(sorted(ranks))
            try:
                os.kill(ranks[rank], signal.SIGKILL)
            except ProcessLookupError:
                break
            return wanted, phase_of(folder, job), rank
        time.sleep(0.02)
    return wanted, "ended by itself", -1


def newest(folder: Path) -> int:
    """Step of the newest complete checkpoint, 0 where there is none."""
    return max(map(checkpoints.step_of, checkpoints.checkpoints(folder)), default=0)


def elapsed(folder: Path) -> float:
    try:
        return float(json.loads((folder / "clock.json").read_text())["elapsed_seconds"])
    except FileNotFoundError:
        return 0.0


def is_finished(folder: Path) -> bool:
    """Whether the run is over, with its last evaluation."""
    path = folder / "run_report.json"
    return path.exists() and json.loads(path.read_text())["evaluation"] is not None


def first_step(folder: Path, lines_before: int) -> int | None:
    """The first step that a job logged (each step is logged), None where it was killed before."""
    path = folder / "progress.jsonl"
    lines = path.read_text().splitlines()[lines_before:] if path.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut by the kill
        if "loss" in entry:
            return int(entry["step"])
    return None


def soak(a: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run until it is finished, with `kills` on the way; one row per job."""
    chance, rows = random.Random(a.seed), []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = 0
    while not is_finished(folder):
        before, clock = newest(folder), elapsed(folder)
        run = json.loads((folder / "run.json").read_text())["job"] if (folder / "run.json").exists() else 0
        lines = (
            len((folder / "progress.jsonl").read_text().splitlines()) if (folder / "progress.jsonl").exists() else 0
        )
        with (a.output_dir / f"job-{job}.log").open("w") as log:
            process = subprocess.Popen(
                command(a, folder),
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                wanted, phase, rank = ("", "", -1)
                if job < a.kills:
                    wanted, phase, rank = disturb(process, folder, run + 1, chance)
                process.wait(timeout=JOB_SECONDS if job < a.kills else None)
            except subprocess.TimeoutExpired:
                raise InputError(f"run: job {job} hangs since its kill, {JOB_SECONDS} s; see {log.name}") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its ranks too
        began = first_step(folder, lines)
        row = {"job": job, "wanted": wanted, "phase": phase, "rank": rank, "code": process.returncode}
        row |= {"from_step": before, "first_step": began, "checkpoint": newest(folder), "elapsed": elapsed(folder)}
        row["ok"] = began in (None, before + 1) and elapsed(folder) >= clock and newest(folder) >= before
        rows.append(row)
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        if job >= a.kills and process.returncode != 0:
            raise InputError(f"run: the job behind the last kill ended with {process.returncode}; see {log.name}")
        job += 1
    return rows


def same_weights(a: Path, b: Path) -> bool:
    from safetensors.torch import load_file  # late: seconds of import that a soak by time does not need

    mine, theirs = load_file(a / "final" / "model.safetensors"), load_file(b / "final" / "model.safetensors")
    return mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    folder, reference = a.output_dir / "run", a.output_dir / "reference"
    rows = soak(a, folder)
    report = json.loads((folder / "run_report.json").read_text())
    batch = report["samples"] / report["steps"]
    checks = {
        "jobs that went on where they should": f"{sum(row['ok'] for row in rows)} of {len(rows)}",
        "samples per step": f"{batch:g}",
    }
    if a.total_training_time is not None:
        share = report["used_seconds"] / report["budget_seconds"]
        checks["budget used over all jobs"] = f"{100 * share:.2f} %"
    else:
        share = 1.0
    held = 0.99 <= share <= 1.01 and all(row["ok"] for row in rows) and batch == int(batch)
    if a.reference:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command(a, reference), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        equal = same_weights(folder, reference)
        checks["weights of an undisturbed run"] = "bit-equal" if equal else "DIFFERENT"
        held = held and equal
    moments = Counter(row["phase"] for row in rows if row["rank"] >= 0)
    if sum(moments.values()) < a.kills:
        checks["the run ended before its kills were used up"] = f"give it more time, or {sum(moments.values())} kills"
    held = held and sum(moments.values()) == a.kills
    ranks = Counter(row["rank"] for row in rows if row["rank"] >= 0)
    lines = [
        f"{'kills':38} {sum(moments.values())} (" + ", ".join(f"{n} in {name}" for name, n in moments.items()) + ")"
    ]
    lines += [f"{'ranks':38} " + ", ".join(f"{rank}: {count}" for rank, count in sorted(ranks.items()))]
    lines += [f"{name:38} {value}" for name, value in checks.items()]
    publish(a, "soak", "\n".join(lines), {"jobs": rows, "checks": checks, "held": held})
    if not held:
        raise InputError(f"soak: not everything held; see the rows above and {a.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
