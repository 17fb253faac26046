"""Time-marked checkpoints of a pre-training run, and how many minutes each had been trained. Standard library only.

`train_mlm.py` keeps the model at shares of the budget (`finetune_time_markers`) in folders called `finetune-<percent>`, and at
the end in `final/`; the run's `run_report.json` has the budget and what was used of it. A marker is written at the first step
behind its share, so its minutes are exact to one step; none is later than what the run used. One that the report lists in
`markers_in_final` is the final model.

`glue_over_budget.json`, `.md` and `.png`: GLUE scores against minutes of pre-training, over the checkpoints of one run.

Each checkpoint has had a suite of its own; a line is a column of GLUE (`results.columns`), a point of it the median over seeds
of the best configuration there, with the lowest and the highest seed. The mean is over the columns that all checkpoints
have, so that it never changes what it is a mean of along the way.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import parse_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic, write_json_atomic
from budget_trainer.core.markdown import inline, table
from budget_trainer.glue.report import draw_over_budget, points
from budget_trainer.glue.results import (
    METRIC_NAMES,
    NOT_IN_MEAN,
    Column,
    Suite,
    columns,
    in_mean,
    in_order,
    mean,
    read_suite,
)
from budget_trainer.reporting.hub import FINAL, MARK, REPORT


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


JSON, MARKDOWN, PICTURE = "glue_over_budget.json", "glue_over_budget.md", "glue_over_budget.png"
FORMAT = 1


def report_over_budget(suites: Sequence[tuple[str | Path, str | Path]], output_dir: str | Path) -> dict[str, Any]:
    """Write the three files from `(checkpoint, its glue_runs.json)` pairs; returns what the JSON holds.

    InputError where there is no pair, a checkpoint has no time, or a suite cannot be read; RunError or OSError where the disk
    takes no more.
    """
    pairs = [(Checkpoint(Path(path), minutes_of(Path(path))), read_suite(Path(runs))) for path, runs in suites]
    report = account(pairs)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / JSON, report)
    write_atomic(folder / MARKDOWN, markdown(report).encode())
    write_atomic(folder / PICTURE, draw_over_budget(report))
    return report


def account(pairs: Sequence[tuple[Checkpoint, Suite]]) -> dict[str, Any]:
    """Everything that the report says, in plain types: scores are shares of 1, times minutes; earliest checkpoint first.

    `lines` has for each column one entry per checkpoint, null where the checkpoint has not been scored on it; `mean` is null
    where fewer than two columns are shared.
    """
    if not pairs:
        raise InputError("checkpoints: none was scored; give those of a run, such as out/run/finetune-*")
    pairs = sorted(pairs, key=lambda pair: pair[0].minutes)
    scored = [columns(suite) for _, suite in pairs]
    names = in_order(*scored)
    shared = in_mean([name for name in names if _same_rows(scored, name)])
    return {
        "format": FORMAT,
        "run": pairs[0][0].path.resolve().parent.name,
        "split": "dev",
        "checkpoints": [
            {
                "name": checkpoint.path.resolve().name,
                "minutes": round(checkpoint.minutes, 4),
                "best_configurations": {name: dict(result.flags) for name, result in suite.tasks.items()},
                "absent": dict(suite.absent),
                "seconds": sum(result.seconds for result in suite.tasks.values()),
            }
            for checkpoint, suite in pairs
        ],
        "metrics": {name: next(ours[name].metric for ours in scored if name in ours) for name in names},
        "partial": sorted({name for ours in scored for name, column in ours.items() if not column.official}),
        "lines": {name: [_point(ours, name) for ours in scored] for name in names},
        "mean": {
            "columns": shared,
            "left_out": list(NOT_IN_MEAN),
            "points": [found.reported() for ours in scored if (found := mean(ours, shared)) is not None],
        }
        if len(shared) > 1
        else None,
    }


def _same_rows(scored: Sequence[Mapping[str, Column]], name: str) -> bool:
    """Whether all checkpoints were scored on the same number of rows of the column."""
    return all(name in ours and ours[name].rows == scored[0][name].rows for ours in scored)


def _point(ours: Mapping[str, Column], name: str) -> dict[str, Any] | None:
    return ours[name].score.reported() if name in ours else None


def markdown(report: Mapping[str, Any]) -> str:
    """The table of the picture, in points of 100."""
    head = ("checkpoint", "minutes", *([] if report["mean"] is None else ["mean"]), *report["lines"])
    body = []
    for place, checkpoint in enumerate(report["checkpoints"]):
        cells = [] if report["mean"] is None else [_cell(report["mean"]["points"][place])]
        cells += [_cell(line[place]) for line in report["lines"].values()]
        body.append((checkpoint["name"], f"{checkpoint['minutes']:.1f}", *cells))
    metrics = ", ".join(f"{name} {METRIC_NAMES[metric]}" for name, metric in report["metrics"].items())
    sections = [
        f"# GLUE over the budget of {inline(report['run'])}",
        "Scores on the **dev** sets in points of 100, against minutes of pre-training: the median over the seeds of the best "
        f"configuration, with the lowest and the highest seed. Metrics: {metrics}.",
        table(head, body),
        "![Scores against minutes of pre-training](glue_over_budget.png)",
    ]
    if report["mean"] is not None:
        sections.append(f"The mean is over {', '.join(report['mean']['columns'])}, which all checkpoints have alike.")
    if report["partial"]:
        sections.append(f"Not on all of the official dev rows: {', '.join(report['partial'])}.")
    absent = [
        f"- {inline(checkpoint['name'])}: {inline(name)}: {inline(reason)}"
        for checkpoint in report["checkpoints"]
        for name, reason in checkpoint["absent"].items()
    ]
    if absent:
        sections.append("## Absent\n\n" + "\n".join(absent))
    return "\n\n".join(sections) + "\n"


def _cell(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    if point["min"] == point["max"]:
        return points(point["median"])
    return f"{points(point['median'])} ({points(point['min'])} to {points(point['max'])})"
