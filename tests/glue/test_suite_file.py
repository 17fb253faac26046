"""Reading `glue_runs.json` and the runs that it names."""

import json
from pathlib import Path
from typing import Any

import pytest

from budget_trainer.errors import InputError
from budget_trainer.glue.report import report_suite
from budget_trainer.glue.suite_file import read_suite
from budget_trainer.glue.tasks import TASKS
from tests.glue.suites import write_predictions


def finished(folder: Path, task: str, seed: int, score: float, rows: dict[str, int]) -> dict[str, Any]:
    """A run as the file holds it, with its result.json."""
    home = folder / "runs" / task / f"{seed}-{score}"
    home.mkdir(parents=True)
    (home / "result.json").write_text(json.dumps({"format": 1, "rows": rows}))
    metrics = {split.name: dict.fromkeys(TASKS[task].metrics, score) for split in TASKS[task].dev}
    return {
        "seed": seed,
        "key": "k",
        "folder": str(home.relative_to(folder)),
        "status": "finished",
        "headline": score,
        "metrics": metrics,
        "predictions": {"test": "predictions/test.json"},
        "seconds": 10.0 + seed,
    }


def failed(seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "key": "k",
        "folder": "runs/x",
        "status": "failed",
        "error": "out of memory",
        "headline": None,
    }


def entry_of(configurations: list[list[dict[str, Any]]], best: int | None, **more: Any) -> dict[str, Any]:
    made = [{"flags": {"learning_rate": f"{n + 1}e-5"}, "runs": runs} for n, runs in enumerate(configurations)]
    return {"best_configuration": best, "configurations": made, "starts_from": None, **more}


def write(folder: Path, **tasks: dict[str, Any]) -> Path:
    content = {
        "format": 1,
        "model": {"name_or_path": "/home/someone/out/run/final", "sha256": "0"},
        "tasks": {name.replace("_", "-"): entry for name, entry in tasks.items()},
        "absent": {"QNLI": "no train.tsv"},
    }
    (folder / "glue_runs.json").write_text(json.dumps(content))
    return folder / "glue_runs.json"


def test_a_suite_is_read(tmp_path: Path) -> None:
    rows = {"train": 10, "dev": 277, "test": 3000}
    worse = [finished(tmp_path, "RTE", 1, 0.5, rows), failed(2)]
    best = [finished(tmp_path, "RTE", 1, 0.6, rows), failed(2), finished(tmp_path, "RTE", 3, 0.7, rows)]
    path = write(tmp_path, RTE=entry_of([worse, best], 1, starts_from="MNLI"), CoLA=entry_of([[failed(1)]], None))
    suite = read_suite(path)
    assert suite == read_suite(tmp_path), "the folder does as well"
    assert suite.model == "run/final" and list(suite.tasks) == ["RTE"]
    assert suite.absent == {"CoLA": "all 1 runs failed (out of memory)", "QNLI": "no train.tsv"}
    result = suite.tasks["RTE"]
    assert [run.seed for run in result.best_runs] == [1, 3] and result.flags == {"learning_rate": "2e-5"}
    assert result.base == "MNLI" and result.seconds == 11 + 11 + 13 and len(result.runs) == 3
    assert result.notes == (
        "seed 2 of the best configuration failed (out of memory)",
        "runs of other configurations that failed: 1",
    )
    assert result.median_run.folder == tmp_path / "runs" / "RTE" / "1-0.6" and result.median_run.rows == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder, path: path.unlink(), r"glue_runs\.json: missing; repeat"),
        (lambda folder, path: path.write_text(path.read_text()[:50]), r"glue_runs\.json: cannot be read"),
        (lambda folder, path: path.write_text("[]"), "holds no object"),
        (lambda folder, path: path.write_text('{"format": 2}'), "format 2, this version reads 1"),
        (lambda folder, path: path.write_text('{"format": 1}'), r"damaged \(KeyError\('absent'\)\)"),
        (
            lambda folder, path: path.write_text(path.read_text().replace('"RTE"', '"RTF"')),
            r"damaged \(KeyError\('RTF'",
        ),
        (lambda folder, path: path.write_text(path.read_text().replace('"QNLI"', '"QNLJ"')), "damaged"),
        (lambda folder, path: next(folder.rglob("result.json")).unlink(), r"result\.json: missing"),
        (lambda folder, path: next(folder.rglob("result.json")).write_text("{}"), r"damaged \(KeyError\('rows'\)\)"),
    ],
)
def test_damaged_results_end_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    path = write(tmp_path, RTE=entry_of([[finished(tmp_path, "RTE", 1, 0.5, {"dev": 277})]], 0))
    change(tmp_path, path)
    with pytest.raises(InputError, match=message) as caught:
        read_suite(path)
    assert "\n" not in str(caught.value)


def test_from_the_file_to_submission_and_report(tmp_path: Path) -> None:
    run = finished(tmp_path, "RTE", 1, 0.6, {"train": 9, "dev": 277, "test": 3000})
    write_predictions(tmp_path / run["folder"], TASKS["RTE"])
    report = report_suite(write(tmp_path, RTE=entry_of([[run]], 0)), tmp_path / "out")
    assert report["columns"]["RTE"]["median"] == 0.6 and report["absent"] == {"QNLI": "no train.tsv"}
    assert (
        report["submission"]["files"] == ["RTE.tsv"] and report["submission"]["missing"]["QNLI.tsv"] == "no train.tsv"
    )
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["glue_report.json", "glue_report.md", "glue_report.png", "submission", "submission_missing.txt"]
