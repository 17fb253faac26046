"""`glue_over_budget.json`, `.md` and `.png`: GLUE scores against minutes of pre-training, over the checkpoints of one run.

The checkpoints are `finetune-<percent>` (shares of the budget, exact to one step) and `final/`; the run's `run_report.json`
has the budget and what was used of it. A marker that it lists in `markers_in_final` is the final model. A line is a column of
GLUE, a point of it the median over seeds of the best configuration there, with the lowest and the highest seed. The mean is
over the columns that all checkpoints have, so that it never changes what it is a mean of along the way.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import parse_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import existing_part, write_atomic, write_json_atomic
from budget_trainer.core.output import inline, png_figure, table
from budget_trainer.glue.report import bullets
from budget_trainer.glue.results import METRIC_NAMES, Suite, points, read_object
from budget_trainer.glue.tasks import ALL_COLUMNS
from budget_trainer.reporting.hub import FINAL, MARK
from budget_trainer.reporting.report import REPORT, in_run

MARKDOWN = "glue_over_budget.md"
_COLOURS = "#1f6f8b #d1495b #edae49 #66a182 #7b5ea7 #b08968 #3d8bfd #e07a5f #8d99ae #5a9a3c".split()


def expand_checkpoints(patterns: Sequence[str]) -> dict[Path, float]:
    """The checkpoints that `--checkpoints` names (folders or patterns), earliest first, with their minutes of pre-training.

    InputError for a pattern that fits nothing, a folder that is no model or says nothing about its time, and for several runs.
    """
    if not patterns:
        raise InputError("checkpoints: none given; add --checkpoints out/run/finetune-*")
    paths: list[Path] = []
    for pattern in patterns:
        there = existing_part(pattern)
        found = [pattern] if there == pattern else sorted(glob.glob(glob.escape(there) + pattern[len(there) :]))
        if not found:
            raise InputError(f"checkpoints: {pattern} fits no folder; give those of a run, such as out/run/finetune-*")
        paths += [Path(path) for path in found]
    minutes = {path: _minutes_of(path) for path in paths}
    runs = sorted({str(in_run(path).parent) for path in paths})
    if len(runs) > 1:
        raise InputError(f"checkpoints: {runs[0]} and {runs[1]} are two runs; give the checkpoints of one")
    return dict(sorted(minutes.items(), key=lambda pair: (pair[1], str(pair[0]))))


def _minutes_of(folder: Path) -> float:
    """Minutes of pre-training behind `folder`, from the run's `run_report.json` beside it."""
    if not (folder / "config.json").is_file():
        raise InputError(f"checkpoints: {folder} has no config.json, it is no model; give folders such as finetune-50")
    name = in_run(folder).name
    marker = MARK.fullmatch(name)
    if marker is None and name != FINAL:
        when = "does not say when in its run it was written"
        raise InputError(f"checkpoints: {folder} {when}; give finetune-<percent> folders, or final")
    path = in_run(folder).parent / REPORT
    report = read_object(path, f"only it says when {name} was written: give the folder inside of its finished run")
    used, recipe = report.get("used_seconds"), report.get("recipe")
    if isinstance(used, bool) or not isinstance(used, int | float) or not used > 0:
        raise InputError(f"checkpoints: {path} has used_seconds {used!r}; give a finished run")
    if marker is None or name in report.get("markers_in_final", []):
        return used / 60
    # A marker is a share of the whole budget: an early exit does not shorten it.
    total = recipe.get("total_training_time") if isinstance(recipe, dict) else None
    if total is None:
        raise InputError(f"checkpoints: {folder}: {path} has no total_training_time; give another run")
    return min(used, float(marker.group(1)) / 100 * parse_duration(total, "total_training_time", "h")) / 60


def report_over_budget(pairs: Sequence[tuple[tuple[Path, float], Suite]], output_dir: Path) -> dict[str, Any]:
    """Write the three files from the suite of each checkpoint and its minutes; returns what the JSON holds.

    Scores in it are shares of 1, earliest checkpoint first. `lines` has for each column one entry per checkpoint, null where
    it has no such score; `mean` is null where fewer than two columns are shared.
    """
    pairs = sorted(pairs, key=lambda pair: pair[0][1])
    scored = [suite.columns() for _, suite in pairs]
    names = sorted({name for ours in scored for name in ours}, key=ALL_COLUMNS.index)
    rows = {name: {ours[name].rows if name in ours else None for ours in scored} for name in names}
    shared = [name for name in names if len(rows[name]) == 1 and None not in rows[name]]
    means = [found for _, suite in pairs if (found := suite.mean(shared, least=2)) is not None]
    report: dict[str, Any] = {
        "format": 1,
        "run": in_run(pairs[0][0][0]).parent.name,
        "split": "dev",
        "checkpoints": [
            {
                "name": in_run(path).name,
                "minutes": round(minutes, 4),
                "best_configurations": {name: task.best.flags for name, task in suite.scored.items() if task.best},
                "absent": suite.unscored,
                "seconds": sum(result.seconds for result in suite.scored.values()),
            }
            for (path, minutes), suite in pairs
        ],
        "metrics": {name: next(ours[name].metric for ours in scored if name in ours) for name in names},
        "partial": sorted({name for ours in scored for name, column in ours.items() if not column.official}),
        "lines": {name: [ours[name].score.reported() if name in ours else None for ours in scored] for name in names},
        "mean": None,
    }
    if means:
        line = [{key: mean[key] for key in ("median", "min", "max", "seeds")} for mean in means]
        report["mean"] = {**{key: means[0][key] for key in ("columns", "left_out")}, "points": line}
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output_dir / "glue_over_budget.json", report)
    write_atomic(output_dir / MARKDOWN, _markdown(report))
    write_atomic(output_dir / "glue_over_budget.png", _draw(report))
    return report


def _markdown(report: Mapping[str, Any]) -> str:
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
    absent = {
        f"{one['name']}: {name}": reason for one in report["checkpoints"] for name, reason in one["absent"].items()
    }
    sections.append(bullets("## Absent", absent))
    return "\n\n".join(section for section in sections if section) + "\n"


def _cell(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    spread = "" if point["min"] == point["max"] else f" ({points(point['min'])} to {points(point['max'])})"
    return points(point["median"]) + spread


def _draw(report: Mapping[str, Any]) -> bytes:
    """Scores against minutes of pre-training: a line for each task with its bars, and the mean in black."""
    minutes = [checkpoint["minutes"] for checkpoint in report["checkpoints"]]
    found = report["mean"]
    title = f"GLUE over the budget of {report['run']}\nmedian over seeds, bars from the lowest to the highest"
    if found is not None:
        title += f"\nmean of {', '.join(found['columns'])}"
    if report["partial"]:
        title += f"\nnot on all of the official dev rows: {', '.join(report['partial'])}"
    with png_figure(11, 6.5) as (figure, png):
        axes = figure.subplots()
        drawn = []  # the last score, what a legend shows and its words
        for number, (name, scores) in enumerate(report["lines"].items()):
            dash = "--" if name.endswith("-mm") else "-"  # lies on its twin
            colour = _COLOURS[number % len(_COLOURS)]
            last, handle = _draw_line(axes, minutes, scores, colour, linestyle=dash, linewidth=1.6)
            drawn.append((last, handle, f"{name}, {METRIC_NAMES[report['metrics'][name]]}"))
        drawn.sort(key=lambda entry: -entry[0])
        if found is not None:
            drawn.insert(0, (*_draw_line(axes, minutes, found["points"], "black", zorder=3, linewidth=3.2), "mean"))
        words = [f"{points(last)}  {word}" for last, _, word in drawn]
        place = {"title": "last score", "alignment": "left", "loc": "outside right center", "frameon": False}
        figure.legend([handle for _, handle, _ in drawn], words, **place)
        axes.set_xlim(0, 1.04 * max(minutes))
        axes.set_xlabel("minutes of pre-training")
        axes.set_ylabel("points of 100 on the dev set")
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return png.getvalue()


def _draw_line(
    axes: Any, minutes: Sequence[float], scores: Sequence[Mapping[str, Any] | None], colour: str, **style: Any
) -> tuple[float, Any]:
    """Draw a line through the checkpoints that have the score, with a bar for its range; returns its last score and handle."""
    there = [(minute, score) for minute, score in zip(minutes, scores, strict=True) if score is not None]
    middle = [100 * score["median"] for _, score in there]
    bars = [[100 * abs(score["median"] - score[end]) for _, score in there] for end in ("min", "max")]
    style |= {"elinewidth": 1.0, "capsize": 2.5, "marker": "o", "markersize": 4}
    return middle[-1] / 100, axes.errorbar([minute for minute, _ in there], middle, yerr=bars, color=colour, **style)
