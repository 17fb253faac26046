#!/usr/bin/env python3
"""Kill a run again and again, always go on with it, and see what it has lost: nothing but time.

    python benchmarks/soak.py --recipe recipes/quickstart.yaml --data_dir data/blocks --total_training_time 30m \
        --config_file accelerate_configs/cpu_2proc.yaml --kills 50 --output_dir out/soak

Each job is a real `accelerate launch ... --resume_from_checkpoint auto`; at a random moment a random rank gets kill -9. The
moments are drawn from start-up, training, saving and evaluation, as `clock.json` says which phase the run is in; the last
kill waits until final/ is on disk, so that the report is made up for. Then the run may finish. Checked, and printed as one
table:

- every job goes on from the newest complete checkpoint that the job before had left, at the step behind it;
- a step that is done again behind a checkpoint has the loss that it had before the kill: same weights, same samples, same
  masks. (Only the step right behind it: by the clock, later ones have another learning rate.) Samples are steps x batch;
- the clock never goes back, counts the time of the killed jobs (of each but for its last second, and for a start-up that
  was killed before the run was known), and ends within the budget, of at most 1 % less;
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import make_output_dir, one_line_errors, publish, run_parser  # noqa: E402
from benchmarks.watched import age_seconds, two_processes  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402
from budget_trainer.training.run_folder import RunFolder, step_of  # noqa: E402

MOMENTS = ("set-up", "train", "save", "evaluate")
PATIENCE = 10.0  # seconds behind the set-up until a kill comes in another moment than the wanted one
JOB_SECONDS = 600  # a job that takes longer after its kill hangs
UNCHARGED = 3.0  # seconds: clock.json is written once a second, by a process that shares its cores


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = run_parser(__doc__, recipe_required=False, output_dir="out/soak")
    add = parser.add_argument
    add("--config_file", default="accelerate_configs/cpu_2proc.yaml", help="launch configuration, for two processes")
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
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(a.config_file), "train_mlm.py"]
    words += [a.recipe] if a.recipe else []
    words += ["--data_dir", a.data_dir, "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
    if a.total_training_time is not None:
        words += ["--total_training_time", a.total_training_time]
    else:
        words += ["--lr_schedule", "step", "--max_steps", str(a.max_steps)]
    words += ["--checkpoint_every", a.checkpoint_every, "--disable_tqdm", "true"]
    return [*words, "--logging_steps", "1", *a.flags]  # a line per step: where did a job begin, and with what loss?


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank to process id, of the processes below a launcher that have started."""
    found: dict[int, int] = {}
    with suppress(psutil.Error):
        for process in psutil.Process(launcher).children():
            with suppress(psutil.Error, KeyError):
                found[int(process.environ()["RANK"])] = process.pid
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


def disturb(process: subprocess.Popen, folder: Path, job: int, wanted: str, chance: random.Random) -> dict[str, Any]:
    """Wait for a random moment of the wanted kind and kill a random rank: what the moment was, the rank, its age."""
    pause = chance.uniform(0.0, 8.0) if wanted == "set-up" else chance.uniform(0.0, 1.0)
    behind_set_up = 0.0
    time.sleep(pause if wanted == "set-up" else 0.0)
    while process.poll() is None:
        ranks, phase = ranks_of(process.pid), phase_of(folder, job)
        behind_set_up = behind_set_up or (time.monotonic() if phase != "set-up" else 0.0)
        late = wanted != "report" and behind_set_up and time.monotonic() - behind_set_up > PATIENCE
        if ranks and (wanted in ("set-up", phase) or late):
            time.sleep(pause if wanted in ("train", "report") else 0.0)
            rank, age = chance.choice(sorted(ranks)), max(map(age_seconds, ranks.values()))
            phase = phase_of(folder, job)
            try:
                os.kill(ranks[rank], signal.SIGKILL)
            except ProcessLookupError:
                break
            return {"phase": phase, "rank": rank, "alive": age}
        time.sleep(0.02)
    return {"phase": "ended by itself", "rank": -1, "alive": 0.0}


def newest(folder: Path) -> int:
    """Step of the newest complete checkpoint, 0 where there is none."""
    return max(map(step_of, RunFolder(folder).checkpoints()), default=0)


def elapsed(folder: Path) -> float:
    try:
        return float(json.loads((folder / "clock.json").read_text())["elapsed_seconds"])
    except FileNotFoundError:
        return 0.0


def is_finished(folder: Path) -> bool:
    """Whether the run is over, with its last evaluation, the picture and the card."""
    path = folder / "run_report.json"
    if not path.exists() or (folder / "RESUMABLE").exists():
        return False
    return json.loads(path.read_text())["evaluation"] is not None


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """What the run has logged, a line per step."""
    path, lines = folder / "progress.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):  # cut by a kill
            lines.append(json.loads(line))
    return lines


def job_of(folder: Path) -> int:
    path = folder / "run.json"
    return int(json.loads(path.read_text())["job"]) if path.exists() else 0


def one_job(
    a: argparse.Namespace, folder: Path, number: int, wanted: str, since: int, chance: random.Random
) -> dict[str, Any]:
    """One launch, killed in the wanted moment (not at all where that is empty): its row.

    `since` counts the lines of the log when the job began that has written the newest checkpoint: older ones of the step
    behind it are of weights that no checkpoint holds.
    """
    before, clock, logged = newest(folder), elapsed(folder), log_lines(folder)
    with (a.output_dir / f"job-{number}.log").open("w") as log:
        process = subprocess.Popen(
            command(a, folder),
            cwd=ROOT,
            env=a.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        kill: dict[str, Any] = {"phase": "", "rank": -1, "alive": 0.0}
        try:
            if wanted:
                kill = disturb(process, folder, job_of(folder) + 1, wanted, chance)
            process.wait(timeout=JOB_SECONDS if wanted else None)
        except subprocess.TimeoutExpired:
            raise InputError(f"run: job {number} hangs since its kill, {JOB_SECONDS} s; see {log.name}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its ranks too
    if kill["rank"] < 0 and process.returncode != 0:
        raise InputError(f"run: job {number} ended with {process.returncode} and was not killed; see {log.name}")
    first = next((line for line in log_lines(folder)[len(logged) :] if "loss" in line), {"step": None, "loss": None})
    lost = [line["loss"] for line in logged[since:] if "loss" in line and line["step"] == before + 1 == first["step"]]
    row: dict[str, Any] = {"job": number, "wanted": wanted, **kill, "code": process.returncode, "from_step": before}
    row |= {"first_step": first["step"], "again": len(lost), "again_same": lost.count(first["loss"])}
    row |= {"checkpoint": newest(folder), "elapsed": elapsed(folder)}
    row["since"] = len(logged) if row["checkpoint"] > before else since
    row["uncharged"] = max(0.0, row["alive"] - (row["elapsed"] - clock)) if row["phase"] in MOMENTS[1:] else 0.0
    row["ok"] = row["first_step"] in (None, before + 1) and row["checkpoint"] >= before and row["elapsed"] >= clock
    row["ok"] = row["ok"] and row["again_same"] == row["again"] and row["uncharged"] < UNCHARGED
    return row


def soak(a: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run until it is finished, with `kills` on the way; one row per job."""
    chance, kills = random.Random(a.seed), 0
    rows: list[dict[str, Any]] = []
    while not is_finished(folder):
        left = a.kills - kills
        wanted = "" if left == 0 else "report" if left == 1 else chance.choice(MOMENTS)
        since = rows[-1]["since"] if rows else 0
        rows.append(one_job(a, folder, len(rows), wanted, since, chance))
        kills += rows[-1]["rank"] >= 0
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
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
    a.config_file, a.environment = two_processes(Path(a.config_file), a.output_dir)
    rows = soak(a, folder)
    report = json.loads((folder / "run_report.json").read_text())
    batch = report["samples"] / report["steps"]

    def total(name: str) -> int:
        return sum(row[name] for row in rows)

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
        subprocess.run(command(a, reference), cwd=ROOT, env=a.environment, check=True, stdout=subprocess.DEVNULL)
        equal = same_weights(folder, reference)
        checks["weights of an undisturbed run"] = "bit-equal" if equal else "DIFFERENT"
        held = held and equal
    moments = Counter(row["phase"] for row in rows if row["rank"] >= 0)
    checks["steps done again, with the same loss"] = f"{total('again_same')} of {total('again')}"
    checks["not charged of a killed job"] = f"{max(row['uncharged'] for row in rows):.2f} s at most"
    if sum(moments.values()) < a.kills:
        checks["the run ended before its kills were used up"] = f"give it more time, or {sum(moments.values())} kills"
    held = held and sum(moments.values()) == a.kills
    ranks = Counter(row["rank"] for row in rows if row["rank"] >= 0)
    lines = [
        f"{'kills':38} {sum(moments.values())} (" + ", ".join(f"{n} in {name}" for name, n in moments.items()) + ")"
    ]
    lines += [f"{'ranks':38} " + ", ".join(f"{rank}: {count}" for rank, count in sorted(ranks.items()))]
    lines += [f"{name:38} {value}" for name, value in checks.items()]
    publish(a, "soak", "\n".join(lines), {"jobs": rows, "checks": checks, "held": held}, leave_out=["environment"])
    if not held:
        raise InputError(f"soak: not everything held; see the rows above and {a.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
