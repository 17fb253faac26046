"""`sweep_report.csv`: the trials of a sweep, best first."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from budget_trainer.sweep.records import SweepRecord


def write_report(record: SweepRecord, study: Any, output_dir: Path) -> list[Path]:
    """Write the table, complete or not at all; returns the files."""
    path = output_dir / "sweep_report.csv"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    names = list(record.space)
    sign = 1.0 if record.direction == "minimize" else -1.0
    trials = sorted(record.trials, key=lambda t: (t.objective is None, sign * (t.objective or 0.0), t.number))
    with open(aside, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "state", "objective", "seconds", *names, "folder", "error"])
        for t in trials:
            values = [t.parameters.get(name) for name in names]
            table.writerow([t.number, t.state, t.objective, f"{t.seconds:.1f}", *values, t.folder, t.error])
    os.replace(aside, path)
    return [path]
