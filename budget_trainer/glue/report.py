"""`glue_report.json`, `.md` and `.png`: a suite's scores beside published ones, dev beside dev, test beside test.

Our scores are of dev splits, the median over seeds of the best configuration, and are compared with dev rows only. The test
rows stand in a table of their own: only the leaderboard can put a number of ours there. The JSON is made from the results
alone, so it is the same bytes whenever it is made again; scores in it are shares of 1, in the Markdown points of 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.io import write_atomic, write_json_atomic
from budget_trainer.core.markdown import Markup, inline, table
from budget_trainer.core.plotting import png_figure
from budget_trainer.glue.published import DEV, NOT_BY_TASK, TEST, Published
from budget_trainer.glue.results import (
    ALL_COLUMNS,
    METRIC_NAMES,
    NOT_IN_MEAN,
    Column,
    Suite,
    TaskResult,
    column_name,
    columns,
    in_mean,
    in_order,
    mean,
    points,
    read_suite,
    rounded,
)
from budget_trainer.glue.submission import Submission, write_submission
from budget_trainer.glue.tasks import TASKS

_FORMAT = 1
_TEST_TEXT = (
    "On the test sets nothing of ours is known: their labels are with the leaderboard (gluebenchmark.com). These rows compare "
    "with what it answers to `glue_submission.zip`, not with the table above."
)
_OURS, _GREY = "#1f6f8b", "#6b7480"
_MARKERS = (
    ("#d1495b", "s"),
    ("#edae49", "D"),
    ("#7b5ea7", "^"),
    ("#66a182", "v"),
    ("#b08968", "P"),
)  # of published rows
_OUR_LEVEL = -0.18  # of a row: above what others have published


def report_suite(runs: str | Path, output_dir: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the leaderboard's files and the report of `glue_runs.json` (or its folder) into `output_dir`.

    Returns what the JSON holds; InputError where the results are damaged, or an older complete zip is in the way (`overwrite`
    removes it).
    """
    suite, folder = read_suite(Path(runs)), Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return write_report(suite, folder, write_submission(suite, folder, overwrite))


def write_report(suite: Suite, output_dir: Path, submission: Submission | None = None) -> dict[str, Any]:
    """Write the three files into `output_dir`; returns what the JSON holds. RunError or OSError where the disk is full."""
    report = summarize(suite, submission)
    write_json_atomic(output_dir / "glue_report.json", report)
    write_atomic(output_dir / "glue_report.md", _markdown(report))
    write_atomic(output_dir / "glue_report.png", _draw(report))
    return report


def summarize(suite: Suite, submission: Submission | None = None) -> dict[str, Any]:
    """Everything that the report says, in plain types.

    `scores` is a flat list for a model card: task, metric, value (median over seeds, a share of 1), split as in
    `nyu-mll/glue`, seeds; only those of all official dev rows. `columns` are the headline scores as tables show them, `mean`
    their mean where they are of all official dev rows. `published.dev` has for each row the `difference` (ours less theirs)
    and the means over the columns that both have with the same metric; `published.test` has no numbers of ours.
    """
    ours = columns(suite)
    official = in_mean([name for name, column in ours.items() if column.official])
    return {
        "format": _FORMAT,
        "model": suite.model,
        "split": "dev",
        "scores": [score for result in suite.tasks.values() for score in _scores(result)],
        "columns": {
            name: {
                "metric": column.metric,
                **column.score.reported(),
                "rows": column.rows,
                "official_rows": column.split.rows,
                "comparable": column.official,
            }
            for name, column in ours.items()
        },
        "mean": _mean(ours, official) if len(official) > 1 else None,
        "tasks": {name: _task(result) for name, result in suite.tasks.items()},
        "absent": dict(suite.absent),
        "seconds": sum(result.seconds for result in suite.tasks.values()),
        "published": {
            "dev": [_beside(row, ours) for row in DEV],
            "test": [_published(row) for row in TEST],
            "notes": list(NOT_BY_TASK),
        },
        "submission": None
        if submission is None
        else {"complete": submission.zip is not None, "files": list(submission.files), "missing": submission.missing},
    }


def _scores(result: TaskResult) -> list[dict[str, Any]]:
    """A task's entries for a model card, the headline metric first. A card cannot say that rows were left out."""
    names = sorted(result.task.metrics, key=lambda name: name != result.task.headline)
    official = [split for split in result.dev if result.best_runs[0].rows.get(split.name, split.rows) == split.rows]
    return [
        {
            "task": result.task.name,
            "metric": metric,
            "value": rounded(result.spread(split.name, metric).median),
            "split": split.hub,
            "seeds": len(result.best_runs),
        }
        for split in official
        for metric in names
    ]


def _task(result: TaskResult) -> dict[str, Any]:
    return {
        "headline": result.task.headline,
        "metrics": {
            split.name: {metric: result.spread(split.name, metric).reported() for metric in result.task.metrics}
            for split in result.dev
        },
        "best_configuration": dict(result.flags),
        "configurations": len({run.configuration for run in result.runs}),
        "runs": len(result.runs),
        "seeds": [run.seed for run in result.best_runs],
        "median_seed": result.median_run.seed if result.dev else None,
        "base": result.base,
        "seconds": result.seconds,
        "notes": list(result.notes),
    }


def _published(row: Published) -> dict[str, Any]:
    names = [name for name in ALL_COLUMNS if name in row.scores]
    return {
        "name": row.name,
        "scores": {name: rounded(row.scores[name] / 100) for name in names},
        "metric_not_stated": [name for name in names if name in row.unstated],
        "setting": row.setting,
        "source": row.source,
        "note": row.note,
    }


def _beside(row: Published, ours: Mapping[str, Column]) -> dict[str, Any]:
    """A dev row with what can be compared: the same metric, and official rows on our side."""
    theirs = row.comparable()
    shared = [name for name in ours if name in theirs and ours[name].official]
    difference = {name: rounded(ours[name].score.median - theirs[name] / 100) for name in shared}
    found = _mean(ours, in_mean(shared))
    if found is not None:
        names = found["columns"]
        found["theirs"] = rounded(sum(theirs[name] for name in names) / len(names) / 100)
    return {**_published(row), "difference": difference, "mean": found}


def _mean(ours: Mapping[str, Column], names: list[str]) -> dict[str, Any] | None:
    found = mean(ours, names)
    return None if found is None else {"columns": names, "left_out": list(NOT_IN_MEAN), **found.reported()}


def _markdown(report: Mapping[str, Any]) -> str:
    """The whole file."""
    sections = [
        "# GLUE",
        f"Model: {inline(report['model'])}. All scores of ours are on the **dev** sets, in points of 100: the "
        "median over the seeds of the best configuration, with the lowest and the highest seed.",
        table(("task", "metric", "median", "min to max", "seeds", "other metrics"), _own_rows(report)),
        _mean_text(report),
        "![Our dev scores beside published ones](glue_report.png)",
        "## How it was made\n\n"
        + table(("task", "best configuration", "configurations", "runs", "time"), _making(report))
        + f"\n\nAll runs together took {format_duration(report['seconds'])}."
        + "".join(
            f"\n\n{inline(name)}: {inline(note.rstrip('.'))}."
            for name, task in report["tasks"].items()
            for note in task["notes"]
        ),
        bullets("## Absent", report["absent"]),
        "## Beside published dev scores\n\n" + _dev(report),
        "## Published test scores\n\n" + _TEST_TEXT + "\n\n" + _published_table("test", report["published"]["test"]),
        _sources(report),
        _submission(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _own_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    metrics_of = {
        column_name(TASKS[name], split): metrics
        for name, task in report["tasks"].items()
        for split, metrics in task["metrics"].items()
    }
    rows: list[tuple[str, ...]] = []
    for name, column in report["columns"].items():
        others = [(metric, spread) for metric, spread in metrics_of[name].items() if metric != column["metric"]]
        rows.append(
            (
                name if column["comparable"] else f"{name} ({column['rows']:,} of {column['official_rows']:,} rows)",
                METRIC_NAMES[column["metric"]],
                points(column["median"]),
                f"{points(column['min'])} to {points(column['max'])}",
                str(column["seeds"]),
                ", ".join(f"{METRIC_NAMES[metric]} {points(spread['median'])}" for metric, spread in others),
            )
        )
    return rows


def bullets(head: str, reasons: Mapping[str, str]) -> str:
    """A list of what is missing and why, below `head`; empty where nothing is."""
    lines = [f"- {inline(name)}: {inline(reason)}" for name, reason in reasons.items()]
    return head + "\n\n" + "\n".join(lines) if lines else ""


def _mean_text(report: Mapping[str, Any]) -> str:
    found, partial = report["mean"], [name for name, c in report["columns"].items() if not c["comparable"]]
    lines = []
    if found is not None:
        lines.append(
            f"Mean of {', '.join(found['columns'])}: **{points(found['median'])}** (of the lowest seeds "
            f"{points(found['min'])}, of the highest {points(found['max'])}). "
            f"{', '.join(found['left_out'])} never counts in a mean."
        )
    if partial:
        lines.append(
            f"{', '.join(partial)}: scored on a part of the official dev rows, comparable with no published number."
        )
    return "\n\n".join(lines)


def _making(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, task in report["tasks"].items():
        flags = ", ".join(f"{key} {value}" for key, value in task["best_configuration"].items()) or "the defaults"
        base = f"{flags}; from {task['base']}'s model" if task["base"] else flags
        counts = (str(task["configurations"]), str(task["runs"]))
        rows.append((name, base, *counts, format_duration(task["seconds"])))
    return rows


def _dev(report: Mapping[str, Any]) -> str:
    """Ours and the dev rows, column by column, then the means over what both have."""
    rows = report["published"]["dev"]
    lines = [_published_table("dev", rows, report["columns"])]
    if any(row["metric_not_stated"] for row in rows):
        lines.append("\\*: the source does not name the metric; neither compared nor averaged.")
    means = [
        (row["name"], ", ".join(found["columns"]), points(found["median"]), points(found["theirs"]))
        for row in rows
        if (found := row["mean"]) is not None
    ]
    if means:
        lines.append(table(("mean over what both have", "columns", "ours", "theirs"), means))
    lines += [inline(note) for note in report["published"]["notes"]]
    return "\n\n".join(lines)


def _published_table(kind: str, rows: Sequence[Mapping[str, Any]], ours: Mapping[str, Any] | None = None) -> str:
    """The published rows of `kind` by column, below `ours` where these are given."""
    names = in_order(ours or {}, *(row["scores"] for row in rows))
    body: list[tuple[str, ...]] = []
    if ours is not None:
        cells = [points(c["median"]) if (c := ours.get(name)) and c["comparable"] else "" for name in names]
        body.append((Markup("**ours**"), *cells))
    for row in rows:
        marks = {name: "*" if name in row["metric_not_stated"] else "" for name in row["scores"]}
        cells = [points(row["scores"][name]) + marks[name] if name in marks else "" for name in names]
        body.append((row["name"], *cells))
    return table((kind, *names), body)


def _sources(report: Mapping[str, Any]) -> str:
    body = [
        (f"{row['name']} ({kind})", row["setting"], row["note"], row["source"])
        for kind in ("dev", "test")
        for row in report["published"][kind]
    ]
    return "## Sources\n\n" + table(("row", "setting", "note", "source"), body)


def _submission(report: Mapping[str, Any]) -> str:
    found = report["submission"]
    if found is None:
        return ""
    head = "## For the leaderboard\n\n"
    if found["complete"]:
        return head + "`glue_submission.zip` is complete. It holds the predictions of each task's median seed."
    head += f"{len(found['files'])} files are in `submission/`, those of each task's median seed. "
    return bullets(f"{head}The leaderboard takes all of them together, so there is no zip. Missing:", found["missing"])


def _draw(report: Mapping[str, Any]) -> bytes:
    """Our median with the bar from lowest to highest seed, task by task, beside the published dev points."""
    ours, rows = report["columns"], report["published"]["dev"]
    names = in_order(ours, *(row["scores"] for row in rows))
    with png_figure(11, 2.6 + 0.52 * len(names)) as (figure, png):
        axes = figure.subplots()
        _draw_ours(axes, names, ours)
        for number, row in enumerate(rows):
            _draw_published(axes, names, row, number, len(rows))
        labels = list(names)
        for place, name in enumerate(names):
            if (column := ours.get(name)) is not None:
                partial = "" if column["comparable"] else f", {column['rows']:,} rows only"
                labels[place] = f"{name}\n{METRIC_NAMES[column['metric']]}{partial}"
        axes.set_yticks(range(len(names)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        lows = [100 * ours[name]["min"] for name in names if name in ours]
        lows += [100 * value for row in rows for value in row["scores"].values()]
        axes.set_xlim(min([*lows, 40.0]) - 4, 101)
        axes.grid(False, axis="y")
        for border in range(1, len(names)):
            axes.axhline(border - 0.5, color="#e8ebef", linewidth=0.8)
        axes.set_xlabel("points of 100 on the dev set")
        figure.suptitle(_title(report), fontsize=12, x=0.01, ha="left")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return png.getvalue()


def _draw_ours(axes: Any, names: Sequence[str], ours: Mapping[str, Any]) -> None:
    labelled = False
    for place, name in enumerate(names):
        column, level = ours.get(name), place + _OUR_LEVEL
        if column is None:
            axes.text(1.01, level, "not run", transform=axes.get_yaxis_transform(), va="center", color=_GREY)
            continue
        median, low, high = (100 * column[part] for part in ("median", "min", "max"))
        axes.plot([low, high], [level, level], color=_OURS, linewidth=4, alpha=0.35, solid_capstyle="round")
        label = None if labelled else "ours: median, lowest to highest seed"
        face = _OURS if column["comparable"] else "white"
        axes.plot(median, level, "o", color=_OURS, markerfacecolor=face, markersize=8, label=label)
        labelled = True
        seeds = f"{column['seeds']} seed" + ("s" if column["seeds"] != 1 else "")
        value = f"{median:.1f}" + (f"  ({low:.1f} to {high:.1f}, {seeds})" if column["seeds"] > 1 else f"  ({seeds})")
        axes.text(1.01, level, value, transform=axes.get_yaxis_transform(), va="center", color=_OURS)


def _draw_published(axes: Any, names: Sequence[str], row: Mapping[str, Any], number: int, rows: int) -> None:
    """Hollow marks below ours, each row at its own height, so that equal scores can be told apart."""
    colour, marker = _MARKERS[number % len(_MARKERS)]
    level = 0.4 * (number + 0.5) / rows
    for stated in (True, False):
        shown = [name for name in row["scores"] if stated == (name not in row["metric_not_stated"])]
        axes.plot(
            [100 * row["scores"][name] for name in shown],
            [names.index(name) + level for name in shown],
            marker,
            color="none",
            markeredgecolor=colour,
            markeredgewidth=1.4,
            markersize=6.5,
            alpha=1.0 if stated else 0.35,
            label=row["name"] if stated else None,
        )


def _title(report: Mapping[str, Any]) -> str:
    found = report["mean"]
    lines = [f"GLUE dev scores of {report['model']}"]
    if found is not None:
        lines.append(f"mean of {', '.join(found['columns'])}: {100 * found['median']:.1f}")
    if any(not column["comparable"] for column in report["columns"].values()):
        lines.append("hollow circles: not all of the official dev rows, comparable with nothing else")
    if any(row["metric_not_stated"] for row in report["published"]["dev"]):
        lines.append("pale marks: the source does not say which metric; compare with care")
    return "\n".join(lines)
