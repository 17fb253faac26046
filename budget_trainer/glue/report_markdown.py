"""`glue_report.md` from what `glue_report.json` holds. Scores are points of 100. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from budget_trainer.clock import format_duration
from budget_trainer.glue.results import METRIC_NAMES, in_order
from budget_trainer.markdown import Markup, inline, table

TEST_TEXT = (
    "On the test sets nothing of ours is known: their labels are with the leaderboard (gluebenchmark.com). These rows compare "
    "with what it answers to `glue_submission.zip`, not with the table above."
)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole file."""
    sections = [
        "# GLUE",
        f"Model: {inline(report['model'])}. All scores of ours are on the **dev** sets, in points of 100: the median over the "
        "seeds of the best configuration, with the lowest and the highest seed.",
        table(("task", "metric", "median", "min to max", "seeds", "other metrics"), _own_rows(report)),
        _mean_text(report),
        "![Our dev scores beside published ones](glue_report.png)",
        "## How it was made\n\n"
        + table(("task", "best configuration", "configurations", "runs", "time"), _making(report))
        + f"\n\nAll runs together took {format_duration(report['seconds'])}."
        + "".join(f"\n\n{inline(name)}: {inline(note)}." for name, note in _notes(report)),
        _absent(report),
        "## Beside published dev scores\n\n" + _dev(report),
        "## Published test scores\n\n" + TEST_TEXT + "\n\n" + _test(report),
        _sources(report),
        _submission(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def points(value: float) -> str:
    return f"{100 * value:.1f}"


def _own_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, column in report["columns"].items():
        task = next(task for task in report["tasks"] if name == task or name.startswith(f"{task}-m"))
        splits = report["tasks"][task]["metrics"]
        metrics = splits[next(s for s in splits if s.endswith("mismatched") == name.endswith("-mm"))]
        others = [f"{METRIC_NAMES[m]} {points(s['median'])}" for m, s in metrics.items() if m != column["metric"]]
        mark = "" if column["comparable"] else f" ({column['rows']:,} of {column['official_rows']:,} rows)"
        spread = f"{points(column['min'])} to {points(column['max'])}"
        head = (name + mark, METRIC_NAMES[column["metric"]], points(column["median"]), spread, str(column["seeds"]))
        rows.append((*head, ", ".join(others)))
    return rows


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


def _notes(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, note.rstrip(".")) for name, task in report["tasks"].items() for note in task["notes"]]


def _absent(report: Mapping[str, Any]) -> str:
    lines = [f"- {inline(name)}: {inline(reason)}" for name, reason in report["absent"].items()]
    return "## Absent\n\n" + "\n".join(lines) if lines else ""


def _dev(report: Mapping[str, Any]) -> str:
    """Ours and the dev rows, column by column, then the means over what both have."""
    rows = report["published"]["dev"]
    names = in_order(report["columns"], *(row["scores"] for row in rows))
    ours = [points(c["median"]) if (c := report["columns"].get(name)) and c["comparable"] else "" for name in names]
    body = [(Markup("**ours**"), *ours), *(_published_row(row, names) for row in rows)]
    lines = [table(("dev", *names), body)]
    if any(row["metric_not_stated"] for row in rows):
        lines.append("\\*: the source does not name the metric; neither compared nor averaged.")
    compared = [row for row in rows if row["mean"] is not None]
    if compared:
        means = [
            (row["name"], ", ".join(mean["columns"]), points(mean["median"]), points(mean["theirs"]))
            for row in compared
            for mean in (row["mean"],)
        ]
        lines.append(table(("mean over what both have", "columns", "ours", "theirs"), means))
    lines += [inline(note) for note in report["published"]["notes"]]
    return "\n\n".join(lines)


def _test(report: Mapping[str, Any]) -> str:
    rows = report["published"]["test"]
    names = in_order(*(row["scores"] for row in rows))
    return table(("test", *names), [_published_row(row, names) for row in rows])


def _published_row(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    cells = []
    for name in names:
        mark = "*" if name in row["metric_not_stated"] else ""
        cells.append(points(row["scores"][name]) + mark if name in row["scores"] else "")
    return (row["name"], *cells)


def _sources(report: Mapping[str, Any]) -> str:
    rows = [(f"{row['name']} ({kind})", row) for kind in ("dev", "test") for row in report["published"][kind]]
    body = [(name, row["setting"], row["note"], row["source"]) for name, row in rows]
    return "## Sources\n\n" + table(("row", "setting", "note", "source"), body)


def _submission(report: Mapping[str, Any]) -> str:
    found = report["submission"]
    if found is None:
        return ""
    head = "## For the leaderboard\n\n"
    if found["complete"]:
        return head + "`glue_submission.zip` is complete. It holds the predictions of each task's median seed."
    missing = "\n".join(f"- {inline(name)}: {inline(reason)}" for name, reason in found["missing"].items())
    there = f"{len(found['files'])} files are in `submission/`, those of each task's median seed. "
    return f"{head}{there}The leaderboard takes all of them together, so there is no zip. Missing:\n\n{missing}"
