"""Time-marked checkpoints of a pre-training run, and how many minutes each had been trained. Standard library only.

`train_mlm.py` keeps the model at shares of the budget (`finetune_time_markers`) in folders called `finetune-<percent>`, and at
the end in `final/`; the run's `run_report.json` has the budget and what was used of it. A marker is written at the first step
behind its share, so its minutes are exact to one step; none is later than what the run used. One that the report lists in
`markers_in_final` is the final model.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_trainer.clock import parse_duration
from budget_trainer.errors import InputError
from budget_trainer.hub_files import FINAL, MARK, REPORT


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder and the minutes of pre-training behind it."""

    path: Path
    minutes: float


def expand_checkpoints(patterns: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints that `--checkpoints` names (folders, or patterns that the shell has left alone), earliest first.

    All of one run. InputError for a pattern that fits nothing, a folder that is no model or says nothing about its time, and
    for checkpoints of several runs.
    """
    if not patterns:
        raise InputError("checkpoints: none given; add --checkpoints out/run/finetune-*")
    paths: list[Path] = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
        if not found:
            raise InputError(f"checkpoints: {pattern} fits no folder; give those of a run, such as out/run/finetune-*")
        paths += [Path(path) for path in found]
    checkpoints = [Checkpoint(path, minutes_of(path)) for path in dict.fromkeys(paths)]
    runs = sorted({str(path.resolve().parent) for path in paths})
    if len(runs) > 1:
        raise InputError(f"checkpoints: {runs[0]} and {runs[1]} are two runs; give the checkpoints of one")
    return sorted(checkpoints, key=lambda checkpoint: (checkpoint.minutes, str(checkpoint.path)))


def minutes_of(folder: Path) -> float:
    """Minutes of pre-training behind `folder`, from the run's `run_report.json` beside it; InputError where it has none."""
    if not (folder / "config.json").is_file():
        raise InputError(f"checkpoints: {folder} has no config.json, it is no model; give folders such as finetune-50")
    name = folder.resolve().name
    marker = MARK.fullmatch(name)
    if marker is None and name != FINAL:
        raise InputError(
            f"checkpoints: {folder} does not say when in its run it was written; give finetune-<percent> folders, or final"
        )
    report = _run_report(folder)
    used = _seconds(report.get("used_seconds"), folder, "used_seconds")
    if marker is None or name in report.get("markers_in_final", []):
        return used / 60
    return min(used, float(marker.group(1)) / 100 * _budget(report, folder)) / 60


def _run_report(folder: Path) -> dict[str, Any]:
    path = folder.resolve().parent / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"checkpoints: {path} is not there, and only it says what the time of {folder.name} was; give the folder inside of "
            "its finished run"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoints: {path} cannot be read ({error}); give a run whose report is whole") from None
    if not isinstance(report, dict):
        raise InputError(f"checkpoints: {path} is no report of a run; give a run whose report is whole")
    return report


def _budget(report: dict[str, Any], folder: Path) -> float:
    """Seconds of the whole budget, which the shares of the markers are of: an early exit does not shorten it."""
    recipe = report.get("recipe")
    total = recipe.get("total_training_time") if isinstance(recipe, dict) else None
    if total is None:
        raise InputError(
            f"checkpoints: {folder} is a share of a budget, and {REPORT} beside it has no total_training_time; give another run"
        )
    return parse_duration(total, "total_training_time", "h")


def _seconds(value: Any, folder: Path, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"checkpoints: {REPORT} beside {folder} has {name} {value!r}; give a finished run")
    return float(value)
