"""`glue_report.json`, `.md` and `.png`: a suite's scores beside published ones, dev beside dev, test beside test.

Our scores are of dev splits, the median over seeds of the best configuration, and are compared with dev rows only. The test
rows stand in a table of their own: only the leaderboard can put a number of ours there. The JSON is made from the results
alone, so it is the same bytes whenever it is made again; scores in it are shares of 1, in the Markdown points of 100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.io import write_atomic, write_json_atomic
from budget_trainer.core.output import Markup, inline, png_figure, table
from budget_trainer.glue.results import METRIC_NAMES, Column, Suite, TaskResult, card_scores, mean, points, rounded
from budget_trainer.glue.tasks import ALL_COLUMNS, TASKS

_FORMAT = 1
_TEST_TEXT = (
    "On the test sets nothing of ours is known: their labels are with the leaderboard (gluebenchmark.com). These rows compare "
    "with what it answers to `glue_submission.zip`, not with the table above."
)
_OURS, _GREY = "#1f6f8b", "#6b7480"
_MARKERS = list(zip("#d1495b #edae49 #7b5ea7 #66a182 #b08968".split(), "sD^vP", strict=True))  # of published rows
_OUR_LEVEL = -0.18  # of a row: above what others have published


# ---- what others have published: never dev beside test, since both scales differ by up to a few points ----

_DEVLIN = "Devlin et al., NAACL 2019 (arXiv 1810.04805), table 1"
_WETTIG = "Wettig et al., EACL 2023 (arXiv 2202.08005), README of princeton-nlp/DinkyTrain"
_ISSUE_18 = "IntelLabs/academic-budget-bert, issue 18"
_WETTIG_SETTING = "24 layers, pre-LN, 23,000 steps of 4,096 x 128 tokens"


def _published(name: str, scores: str, setting: str, source: str, note: str = "") -> dict[str, Any]:
    """A row of dev or of test scores, as the report holds it; `scores` are points of 100 by column.

    `*` marks those whose metric the source does not name: shown, but neither compared nor averaged. MNLI, where a source gives
    one number, stands at MNLI-m.
    """
    words = dict(score.split() for score in scores.split(","))
    return {
        "name": name,
        "scores": {
            column: rounded(float(words[column].rstrip("*")) / 100) for column in ALL_COLUMNS if column in words
        },
        "metric_not_stated": [column for column in ALL_COLUMNS if words.get(column, "").endswith("*")],
        "setting": setting,
        "source": source,
        "note": note,
    }


DEV = (
    _published(
        "24hBERT recipe, 15 % masked",
        "MNLI-m 83.7, QNLI 90.4, QQP 87.8*, SST-2 93.2",
        f"{_WETTIG_SETTING}; 80/10/10",
        _WETTIG,
        "MNLI is one number",
    ),
    _published(
        "24hBERT recipe, 40 % masked",
        "MNLI-m 84.5, QNLI 91.6, QQP 88.1*, SST-2 92.8",
        f"{_WETTIG_SETTING}; [MASK] only",
        _WETTIG,
        "MNLI is one number",
    ),
    _published(
        "24hBERT, re-run by a user",
        "CoLA 43.0",
        "masked-LM loss 1.72, hardware not stated",
        _ISSUE_18,
        "the best of a sweep, not a median",
    ),
    _published(
        "Crammed BERT",
        "MNLI-m 84.1, MNLI-mm 84.6, QQP 87.5*, QNLI 90.2, SST-2 92.0, CoLA 53.3, STS-B 87.4*, MRPC 88.9*, RTE 58.5",
        "16 layers, 24 h on one A6000",
        "Geiping and Goldstein, ICML 2023 (arXiv 2212.14034), its model card",
        "best of 5",
    ),
    _published(
        "MosaicBERT base",
        "MNLI-m 84.95, QQP 90.29*, QNLI 90.74, SST-2 92.46, CoLA 55.11, STS-B 89.27*, MRPC 90.03*, RTE 81.36",
        "12 layers, 286.72 M samples of C4, 8 A100",
        "Portes et al., NeurIPS 2023 (arXiv 2312.17482)",
        "5 seeds; MNLI is one number",
    ),
)
TEST = (
    _published(
        "24hBERT",
        "MNLI-m 84.4, MNLI-mm 83.8, QQP 70.7, QNLI 90.6, SST-2 93.0, CoLA 57.1, STS-B 82.0, MRPC 87.5, RTE 57.7",
        "24 layers, 24 h on 8 GPUs of 12 GB",
        "Izsak et al., EMNLP 2021 (arXiv 2104.07705), as listed by Papers with Code",
        "QQP and MRPC are taken for F1",
    ),
    _published(
        "BERT base",
        "MNLI-m 84.6, MNLI-mm 83.4, QQP 71.2, QNLI 90.5, SST-2 93.5, CoLA 52.1, STS-B 85.8, MRPC 88.9, RTE 66.4",
        "12 layers",
        f"{_DEVLIN}, from copies of it",
    ),
    _published(
        "BERT large",
        "MNLI-m 86.7, MNLI-mm 85.9, QQP 72.1, QNLI 92.7, SST-2 94.9, CoLA 60.5, STS-B 86.5, MRPC 89.3, RTE 70.1",
        "24 layers",
        f"{_DEVLIN}, from a copy of it",
    ),
    _published("24hBERT, re-run by a user", "CoLA 56.5", "23,000 steps of 4,096 instead of a time budget", _ISSUE_18),
)
_NOT_BY_TASK = (
    "None of the sources has dev scores of 24hBERT itself. A re-run with about 6,000 steps of 4,096 (marcelbra's fork) "
    "reports dev means from 69.9 to 75.3 over seven ways to mask, without saying of which tasks.",
)


# ---- the report ----


def write_report(suite: Suite, output_dir: Path, submission: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the three files into `output_dir`; `submission` is what was written for the leaderboard.

    Returns what the JSON holds. RunError or OSError where the disk is full.
    """
    report = _summarize(suite, submission)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output_dir / "glue_report.json", report)
    write_atomic(output_dir / "glue_report.md", _markdown(report))
    write_atomic(output_dir / "glue_report.png", _draw(report))
    return report


def _summarize(suite: Suite, submission: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that the report says, in plain types.

    `scores` is a flat list for a model card: task, metric, value (median over seeds, a share of 1), split as in
    `nyu-mll/glue`, seeds; only those of all official dev rows. `columns` are the headline scores as tables show them, `mean`
    their mean where they are of all official dev rows. `published.dev` has for each row the `difference` (ours less theirs)
    and the means over the columns that both have with the same metric; `published.test` has no numbers of ours.
    """
    ours, scored = suite.columns(), suite.scored
    return {
        "format": _FORMAT,
        "model": suite.model_name,
        "split": "dev",
        "scores": [score for result in scored.values() for score in _scores(result)],
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
        "mean": mean(ours, [name for name, column in ours.items() if column.official], least=2),
        "tasks": {name: _task(result) for name, result in scored.items()},
        "absent": suite.unscored,
        "seconds": sum(result.seconds for result in scored.values()),
        "published": {
            "dev": [_beside(row, ours) for row in DEV],
            "test": list(TEST),
            "notes": list(_NOT_BY_TASK),
        },
        "submission": submission,
    }


def _scores(result: TaskResult) -> list[dict[str, Any]]:
    medians = {
        split.name: {metric: result.spread(split, metric).median for metric in result.task.metrics}
        for split in result.dev
    }
    return card_scores(result.task, medians, result.best_runs[0].rows, len(result.best_runs))


def _task(result: TaskResult) -> dict[str, Any]:
    return {
        "headline": result.task.headline,
        "metrics": {
            split.name: {metric: result.spread(split, metric).reported() for metric in result.task.metrics}
            for split in result.dev
        },
        "best_configuration": result.configurations[result.best or 0].flags,
        "configurations": sum(bool(one.finished) for one in result.configurations),
        "runs": len(result.finished),
        "seeds": [run.seed for run in result.best_runs],
        "median_seed": result.median_run.seed if result.dev else None,
        "base": result.base,
        "seconds": result.seconds,
        "notes": result.notes,
    }


def _beside(row: dict[str, Any], ours: Mapping[str, Column]) -> dict[str, Any]:
    """A dev row with what can be compared: the same metric, and official rows on our side."""
    theirs = {name: value for name, value in row["scores"].items() if name not in row["metric_not_stated"]}
    shared = [name for name in ours if name in theirs and ours[name].official]
    difference = {name: rounded(ours[name].score.median - theirs[name]) for name in shared}
    if found := mean(ours, shared):
        found["theirs"] = rounded(fmean(theirs[name] for name in found["columns"]))
    return {**row, "difference": difference, "mean": found}


def _markdown(report: Mapping[str, Any]) -> str:
    """The whole file."""
    published, tasks = report["published"], report["tasks"].items()
    partial = [name for name, column in report["columns"].items() if not column["comparable"]]
    means = [
        (row["name"], ", ".join(found["columns"]), points(found["median"]), points(found["theirs"]))
        for row in published["dev"]
        if (found := row["mean"]) is not None
    ]
    sections = [
        "# GLUE",
        f"Model: {inline(report['model'])}. All scores of ours are on the **dev** sets, in points of 100: the "
        "median over the seeds of the best configuration, with the lowest and the highest seed.",
        table(("task", "metric", "median", "min to max", "seeds", "other metrics"), _own_rows(report)),
    ]
    if (found := report["mean"]) is not None:
        sections.append(
            f"Mean of {', '.join(found['columns'])}: **{points(found['median'])}** (of the lowest seeds "
            f"{points(found['min'])}, of the highest {points(found['max'])}). "
            f"{', '.join(found['left_out'])} never counts in a mean."
        )
    if partial:
        sections.append(
            f"{', '.join(partial)}: scored on a part of the official dev rows, comparable with no published number."
        )
    sections += [
        "![Our dev scores beside published ones](glue_report.png)",
        "## How it was made",
        table(("task", "best configuration", "configurations", "runs", "time"), _making(report)),
        f"All runs together took {format_duration(report['seconds'])}.",
        *(f"{inline(name)}: {inline(note.rstrip('.'))}." for name, task in tasks for note in task["notes"]),
        bullets("## Absent", report["absent"]),
        "## Beside published dev scores",
        _published_table("dev", published["dev"], report["columns"]),
        "\\*: the source does not name the metric; neither compared nor averaged.",
        table(("mean over what both have", "columns", "ours", "theirs"), means) if means else "",
        *(inline(note) for note in published["notes"]),
        "## Published test scores",
        _TEST_TEXT,
        _published_table("test", published["test"]),
        "## Sources",
        table(
            ("row", "setting", "note", "source"),
            [
                (f"{row['name']} ({kind})", row["setting"], row["note"], row["source"])
                for kind in ("dev", "test")
                for row in published[kind]
            ],
        ),
        _submission(report["submission"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _own_rows(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, task in report["tasks"].items():
        for split in (split for split in TASKS[name].dev if split.name in task["metrics"]):
            column, metrics = report["columns"][split.column], task["metrics"][split.name]
            part = "" if column["comparable"] else f" ({column['rows']:,} of {column['official_rows']:,} rows)"
            yield (
                split.column + part,
                METRIC_NAMES[column["metric"]],
                points(column["median"]),
                f"{points(column['min'])} to {points(column['max'])}",
                column["seeds"],
                ", ".join(
                    f"{METRIC_NAMES[m]} {points(metrics[m]['median'])}" for m in metrics if m != column["metric"]
                ),
            )


def _making(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, task in report["tasks"].items():
        flags = ", ".join(f"{key} {value}" for key, value in task["best_configuration"].items()) or "the defaults"
        base = f"; from {task['base']}'s model" if task["base"] else ""
        yield name, flags + base, task["configurations"], task["runs"], format_duration(task["seconds"])


def _published_table(kind: str, rows: Sequence[Mapping[str, Any]], ours: Mapping[str, Any] | None = None) -> str:
    """The published rows of `kind` by column, below `ours` where these are given."""
    names = sorted({*(ours or {}), *(name for row in rows for name in row["scores"])}, key=ALL_COLUMNS.index)
    body: list[tuple[str, ...]] = []
    if ours is not None:
        cells = [points(c["median"]) if (c := ours.get(name)) and c["comparable"] else "" for name in names]
        body.append((Markup("**ours**"), *cells))
    for row in rows:
        marks = {name: "*" if name in row["metric_not_stated"] else "" for name in row["scores"]}
        cells = [points(row["scores"][name]) + marks[name] if name in marks else "" for name in names]
        body.append((row["name"], *cells))
    return table((kind, *names), body)


def _submission(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    head = "## For the leaderboard\n\n"
    if found["complete"]:
        return head + "`glue_submission.zip` is complete. It holds the predictions of each task's median seed."
    head += f"{len(found['files'])} files are in `submission/`, those of each task's median seed. "
    return bullets(f"{head}The leaderboard takes all of them together, so there is no zip. Missing:", found["missing"])


def bullets(head: str, reasons: Mapping[str, str]) -> str:
    """A list of what is missing and why, below `head`; empty where nothing is."""
    lines = [f"- {inline(name)}: {inline(reason)}" for name, reason in reasons.items()]
    return head + "\n\n" + "\n".join(lines) if lines else ""


def _draw(report: Mapping[str, Any]) -> bytes:
    """Our median with the bar from lowest to highest seed, task by task, beside the published dev points."""
    ours, rows = report["columns"], report["published"]["dev"]
    names = sorted({*ours, *(name for row in rows for name in row["scores"])}, key=ALL_COLUMNS.index)
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
