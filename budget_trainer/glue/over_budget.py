"""`glue_over_budget.json`, `.md` and `.png`: GLUE scores against minutes of pre-training, over the checkpoints of one run.

Each checkpoint has had a suite of its own; a line is a column of GLUE (`results.columns`), a point of it the median over seeds
of the best configuration there, with the lowest and the highest seed. The mean is over the columns that all checkpoints
have, so that it never changes what it is a mean of along the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.glue.files import write_atomic
from budget_trainer.glue.plots import draw_over_budget
from budget_trainer.glue.report_markdown import points
from budget_trainer.glue.results import (
    METRIC_NAMES,
    NOT_IN_MEAN,
    Column,
    Suite,
    columns,
    in_mean,
    in_order,
    mean,
)
from budget_trainer.glue.suite_file import read_suite
from budget_trainer.glue.time_marked import Checkpoint, minutes_of
from budget_trainer.markdown import inline, table
from budget_trainer.report import write_json_atomic

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
