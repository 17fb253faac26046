#!/usr/bin/env python3
"""Draw docs/images/budget.png from a real run: what counts as budget, and where it went.

    python docs/budget_picture.py --data_dir out/quickstart-data/blocks --output_dir out/picture

Trains the quickstart's recipe in two jobs with a pause between them, reads `clock.json` while they run, and draws the
seconds on the wall. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import parse_duration, read_clock
from budget_trainer.reporting.report import COLOURS

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "#eceef1"
PICTURE = ROOT / "docs" / "images" / "budget.png"
WORDS = {
    "setup": "set-up",
    "compile": "compile",
    "train": "train",
    "data_wait": "wait for data",
    "evaluate": "validate",
    "save": "save",
}


@dataclass
class Job:
    """Seconds since the first command: when it was started, when it was gone; what its clock said on the way."""

    begun: float
    ended: float = 0.0
    readings: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def zero(self) -> float:
        """Where on the wall the run's clock stood at zero, as seen in this job."""
        return min(at - sum(shares.values()) for at, shares in self.readings)


def watched(command: list[str], output_dir: Path, begin: float) -> Job:
    """Run one job to its end and read its clock every 0.1 s."""
    job, before = Job(time.monotonic() - begin), read_clock(output_dir / "clock.json")
    process = subprocess.Popen(command, cwd=ROOT)
    while process.poll() is None:
        shares = read_clock(output_dir / "clock.json")
        if shares and shares != before:
            job.readings.append((time.monotonic() - begin, shares))
            before = shares
        time.sleep(0.1)
    job.ended = time.monotonic() - begin
    return job


def pieces(job: Job, used_before: dict[str, float]) -> list[tuple[str, float, float]]:
    """(phase, from, seconds) on the wall, from the differences between readings."""
    found: list[tuple[str, float, float]] = []
    last = used_before
    at = job.zero() + sum(used_before.values())
    for _, shares in job.readings:
        for phase, seconds in shares.items():
            spent = seconds - last.get(phase, 0.0)
            if spent > 0:
                found.append((phase, at, spent))
                at += spent
        last = shares
    return found


def draw(jobs: list[Job], lines: list[dict[str, Any]], report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    budget, used = report["budget_seconds"], report["used_seconds"]
    totals: list[dict[str, float]] = [{}, jobs[0].readings[-1][1]]
    zeros = [job.zero() for job in jobs]
    figure, (strip, rate) = plt.subplots(
        2, 1, figsize=(10, 4.6), sharex=True, height_ratios=(1.5, 1.6), layout="constrained"
    )
    for job, before in zip(jobs, totals, strict=True):
        for phase, start, width in pieces(job, before):
            strip.barh(0, width, left=start, height=0.8, color=COLOURS[phase])
    ends = [zero + sum(job.readings[-1][1].values()) for zero, job in zip(zeros, jobs, strict=True)]
    starts = [zeros[0], zeros[1] + sum(totals[1].values())]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        strip.annotate("", (start, 0.62), (end, 0.62), arrowprops={"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0})
        strip.text((start + end) / 2, 0.72, f"job {number}: {end - start:.0f} s", ha="center", va="bottom")
    outside = [(ends[0], starts[1], "stopped"), (ends[1], jobs[1].ended, "evaluation, report")]
    for start, end, text in outside:
        for axis in (strip, rate):
            axis.axvspan(start, end, color=OUTSIDE, zorder=0)
        turned = 90 if end - start < 0.08 * jobs[1].ended else 0
        middle = (start + end) / 2
        place = {"ha": "center", "va": "center", "rotation": turned, "fontsize": 8 if turned else 9}
        strip.text(middle, 0.2 if turned else 0, text, color="#555555", **place)
    strip.set(ylim=(-0.5, 1.15), yticks=[])
    strip.set_title(f"A budget of {budget:.0f} s in two jobs: {used:.1f} s used, final/ on disk included", loc="left")
    counted = [name for name in WORDS if report["shares"][name] > 0]
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (*(COLOURS[name] for name in counted), OUTSIDE)]
    labels = [*(f"{WORDS[name]} {report['shares'][name]:.1f} s" for name in counted), "not counted"]
    strip.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=7, frameon=False, fontsize=9)

    for number in (1, 2):
        points = [line for line in lines if line["job"] == number and "learning_rate" in line]
        seconds = [zeros[number - 1] + line["elapsed_seconds"] for line in points]
        rate.plot(seconds, [line["learning_rate"] for line in points], color=COLOURS["train"], linewidth=2)
    top = max(line["learning_rate"] for line in lines if "learning_rate" in line)
    for share in (0.5, 0.9):
        at = zeros[0 if share * budget < sum(totals[1].values()) else 1] + share * budget
        rate.axvline(at, color="#555555", linestyle=":", linewidth=1)
        rate.text(at - 1, top, f"finetune-{share * 100:.0f}/", fontsize=9, va="top", ha="right")
    rate.axvline(ends[1], color="#555555", linestyle=":", linewidth=1)
    rate.text(ends[1] - 1, top * 0.55, "final/", fontsize=9, va="top", ha="right")
    rate.set(ylabel="learning rate", xlabel="seconds on the wall since the first command", xlim=(0, jobs[1].ended))
    rate.set_ylim(0, top * 1.08)
    for axis in (strip, rate):
        axis.spines[["top", "right", "left"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="blocks, as `make quickstart` leaves them")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="a new folder for the run; of a run that was watched: draw it again",
    )
    parser.add_argument("--total_training_time", default="2m", help="the budget (2m)")
    parser.add_argument("--pause", default="12s", help="between the two jobs (12s)")
    args = parser.parse_args(argv)
    output_dir = args.output_dir.absolute()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command += ["train_mlm.py", "recipes/quickstart.yaml", "--data_dir", str(args.data_dir.absolute())]
    command += ["--output_dir", str(output_dir), "--total_training_time", args.total_training_time]
    command += ["--finetune_time_markers", "0.5,0.9", "--resume_from_checkpoint", "auto", "--disable_tqdm", "true"]
    command += ["--curve", "linear", "--warmup_proportion", "0.1", "--logging_steps", "2"]
    wall = output_dir / "wall.json"
    if not wall.exists():
        limit = 0.4 * parse_duration(args.total_training_time)
        begin = time.monotonic()
        first = watched([*command, "--job_time_limit", f"{limit:.0f}s"], output_dir, begin)
        time.sleep(parse_duration(args.pause))
        second = watched(command, output_dir, begin)
        wall.write_text(json.dumps([asdict(first), asdict(second)]) + "\n", encoding="utf-8")
    jobs = [Job(**job) for job in json.loads(wall.read_text(encoding="utf-8"))]
    lines = [json.loads(line) for line in (output_dir / "progress.jsonl").read_text().splitlines()]
    draw(jobs, lines, json.loads((output_dir / "run_report.json").read_text()), PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
