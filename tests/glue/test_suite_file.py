"""Reading `glue_runs.json` and the runs that it names."""

import json
from pathlib import Path
from typing import Any

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.glue.plan import Plan, PlannedRun
from budget_trainer.glue.report import report_suite
from budget_trainer.glue.results import RUNS_FILE, read_suite, write_result
from budget_trainer.glue.runs_file import record, whole
from budget_trainer.glue.submission import check_submission
from budget_trainer.glue.tasks import TASKS
from tests.glue.suites import write_predictions


def finished(folder: Path, task: str, seed: int, score: float, rows: dict[str, int]) -> dict[str, Any]:
    """A run as the suite records it, with its result.json."""
    home = folder / "runs" / task / f"{seed}-{score}"
    home.mkdir(parents=True)
    result = {
        "headline": {"metric": TASKS[task].headline, "split": TASKS[task].dev[0].name, "value": score},
        "metrics": {split.name: dict.fromkeys(TASKS[task].metrics, score) for split in TASKS[task].dev},
        "best_epoch": 1.0,
        "steps": 9,
        "seconds": {"total": 10.0 + seed},
        "rows": rows,
        "official_rows": dict.fromkeys(rows, True),
        "predictions": {"test": "predictions/test.json"},
    }
    write_result(home, result)
    return record(planned(task, seed), "key", str(home.relative_to(folder)), result, None)


def failed(seed: int) -> dict[str, Any]:
    return record(planned("RTE", seed), "key", "runs/x", None, "out of memory")


def planned(task: str, seed: int, configuration: int = 0, base: str | None = None) -> PlannedRun:
    return PlannedRun(TASKS[task], configuration, {"learning_rate": f"{configuration + 1}e-5"}, seed, base, 1.0)


def write(folder: Path, base: str | None = None, **tasks: list[list[dict[str, Any]]]) -> Path:
    """`glue_runs.json` as the suite writes it, of each task's runs by configuration; tasks start from `base`."""
    records = {
        name.replace("_", "-"): [
            (planned(name.replace("_", "-"), entry["seed"], place, base), entry)
            for place, entries in enumerate(configurations)
            for entry in entries
        ]
        for name, configurations in tasks.items()
    }
    plan = Plan(absent={"QNLI": "no train.tsv"})
    plan.data_digests, plan.official = dict.fromkeys(records, "0"), dict.fromkeys(records, True)
    model = {"name_or_path": "/home/someone/out/run/final", "sha256": "0"}
    path = folder / RUNS_FILE
    path.write_text(json.dumps(whole(plan, model, {}, records)))
    return path


def test_a_suite_is_read(tmp_path: Path) -> None:
    rows = {"train": 10, "dev": 277, "test": 3000}
    worse = [finished(tmp_path, "RTE", 1, 0.5, rows), failed(2)]
    best = [finished(tmp_path, "RTE", 1, 0.6, rows), failed(2), finished(tmp_path, "RTE", 3, 0.7, rows)]
    path = write(tmp_path, base="MNLI", RTE=[worse, best], CoLA=[[failed(1)]])
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
    path = write(tmp_path, RTE=[[finished(tmp_path, "RTE", 1, 0.5, {"dev": 277})]])
    change(tmp_path, path)
    with pytest.raises(InputError, match=message) as caught:
        read_suite(path)
    assert "\n" not in str(caught.value)


def test_from_the_file_to_submission_and_report(tmp_path: Path) -> None:
    run = finished(tmp_path, "RTE", 1, 0.6, {"train": 9, "dev": 277, "test": 3000})
    write_predictions(tmp_path / run["folder"], TASKS["RTE"])
    report = report_suite(write(tmp_path, RTE=[[run]]), tmp_path / "out")
    assert report["columns"]["RTE"]["median"] == 0.6 and report["absent"] == {"QNLI": "no train.tsv"}
    assert (
        report["submission"]["files"] == ["RTE.tsv"] and report["submission"]["missing"]["QNLI.tsv"] == "no train.tsv"
    )
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["glue_report.json", "glue_report.md", "glue_report.png", "submission", "submission_missing.txt"]


def test_a_real_result(tmp_path: Path) -> None:
    """Three runs of a tiny model on WNLI, five steps each, as finetune_glue.py left them."""
    sample = Path(__file__).parent / "samples" / "suite"
    report = report_suite(sample, tmp_path)
    content = json.loads((sample / "glue_runs.json").read_text())
    scores = sorted(run["headline"] for run in content["tasks"]["WNLI"]["configurations"][0]["runs"])
    column = report["columns"]["WNLI"]
    assert [column[part] for part in ("min", "median", "max")] == [round(score, 6) for score in scores]
    assert column["seeds"] == 3 and column["comparable"] and report["tasks"]["WNLI"]["base"] is None
    assert report["seconds"] == content["seconds"] and set(report["absent"]) == {"QNLI", "AX"}
    assert check_submission(tmp_path / "submission", partial=True) == [] and report["submission"]["files"] == [
        "WNLI.tsv"
    ]
    assert report["scores"] == [
        {"task": "WNLI", "metric": "accuracy", "value": column["median"], "split": "validation", "seeds": 3}
    ]
