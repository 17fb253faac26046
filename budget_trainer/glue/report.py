"""`glue_report.json`, `.md` and `.png`: a suite's scores beside the published ones, dev beside dev, test beside test.

Our scores are of dev splits, the median over seeds of the best configuration, and are compared with dev rows only. The test
rows stand in a table of their own: only the leaderboard can put a number of ours there. The JSON is made from the results
alone, so it is the same bytes whenever it is made again; scores in it are shares of 1, in the Markdown points of 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget_trainer.glue.files import write_atomic
from budget_trainer.glue.plots import draw_report
from budget_trainer.glue.published import DEV, NOT_BY_TASK, TEST, Published
from budget_trainer.glue.report_markdown import markdown
from budget_trainer.glue.results import (
    ALL_COLUMNS,
    NOT_IN_MEAN,
    Column,
    Suite,
    TaskResult,
    columns,
    in_mean,
    mean,
    rounded,
)
from budget_trainer.glue.submission import Submission, write_submission
from budget_trainer.glue.suite_file import read_suite
from budget_trainer.report import write_json_atomic

JSON, MARKDOWN, PICTURE = "glue_report.json", "glue_report.md", "glue_report.png"
FORMAT = 1


def report_suite(runs: str | Path, output_dir: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """From `glue_runs.json` (or its folder) to the leaderboard's files and the report, all in `output_dir`.

    What the script calls when a suite has ended, and what makes it all again. Returns what the JSON holds; InputError where the
    results are damaged, or an older complete zip is in the way (`overwrite` removes it).
    """
    suite, folder = read_suite(Path(runs)), Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return write_report(suite, folder, write_submission(suite, folder, overwrite))


def write_report(suite: Suite, output_dir: Path, submission: Submission | None = None) -> dict[str, Any]:
    """Write the three files into `output_dir`; returns what the JSON holds. RunError or OSError where the disk is full."""
    report = account(suite, submission)
    write_json_atomic(output_dir / JSON, report)
    write_atomic(output_dir / MARKDOWN, markdown(report).encode())
    write_atomic(output_dir / PICTURE, draw_report(report))
    return report


def account(suite: Suite, submission: Submission | None = None) -> dict[str, Any]:
    """Everything that the report says, in plain types.

    `scores` is a flat list for a model card: task, metric, value (median over seeds, a share of 1), split as in
    `nyu-mll/glue`, seeds; only those of all official dev rows. `columns` are the headline scores as tables show them, `mean`
    their mean where they are of all official dev rows. `published.dev` has for each row the `difference` (ours less theirs)
    and the means over the columns that both have with the same metric; `published.test` has no numbers of ours.
    """
    ours = columns(suite)
    official = in_mean([name for name, column in ours.items() if column.official])
    return {
        "format": FORMAT,
        "model": suite.model,
        "split": "dev",
        "scores": [score for result in suite.tasks.values() for score in _scores(result)],
        "columns": {name: _column(column) for name, column in ours.items()},
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


def _column(column: Column) -> dict[str, Any]:
    return {
        "metric": column.metric,
        **column.score.reported(),
        "rows": column.rows,
        "official_rows": column.split.rows,
        "comparable": column.official,
    }


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
