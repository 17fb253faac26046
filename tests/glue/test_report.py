"""The report of a suite: its numbers by hand, what is compared with what, and the three files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.glue.published import DEV, TEST
from budget_trainer.glue.report import summarize, write_report
from budget_trainer.glue.results import ALL_COLUMNS, Run, Spread, Suite, TaskResult, columns, in_mean, mean
from budget_trainer.glue.submission import Submission, write_submission
from budget_trainer.glue.tasks import TASKS
from tests.glue.suites import RECIPE, complete_suite, result_of, runs_of, suite_of


def partial(suite: Suite, name: str, **rows: int) -> Suite:
    """The suite with fewer rows in the dev splits of a task."""
    result = suite.tasks[name]
    runs = tuple(replace(run, rows=rows) for run in result.runs)
    return replace(suite, tasks={**suite.tasks, name: replace(result, runs=runs)})


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([0.5, 0.9, 0.7, 0.1, 0.6], Spread(0.6, 0.1, 0.9, 5)),
        ([0.2, 0.4], Spread(0.30000000000000004, 0.2, 0.4, 2)),
        ([0.2], Spread(0.2, 0.2, 0.2, 1)),
    ],
)
def test_median_and_range_over_seeds(values: list[float], spread: Spread) -> None:
    assert Spread.of(values) == spread


def test_only_the_best_configuration_is_reported_and_all_runs_are_paid_for() -> None:
    runs = (*runs_of("RTE", [0.9, 0.95, 0.99], configuration="other"), *runs_of("RTE", [0.5, 0.6, 0.58]))
    report = summarize(Suite("m", {"RTE": TaskResult(TASKS["RTE"], runs, "a", RECIPE)}, {}))
    assert report["columns"]["RTE"]["median"] == 0.58 and report["columns"]["RTE"]["max"] == 0.6
    task = report["tasks"]["RTE"]
    assert (task["runs"], task["configurations"], task["seconds"], task["seeds"]) == (6, 2, 360.0, [1, 2, 3])
    assert task["best_configuration"] == RECIPE and task["median_seed"] == 3 and report["seconds"] == 360.0


def test_a_best_configuration_without_runs_is_refused() -> None:
    with pytest.raises(InputError, match="RTE: the best configuration 'b' has no run"):
        result_of("RTE", [0.5]).__class__(TASKS["RTE"], (), "b")


def test_the_scores_of_a_card() -> None:
    metrics = {"dev": {"accuracy": 0.8, "f1": 0.9}}
    mrpc = TaskResult(TASKS["MRPC"], (Run(1, "a", metrics, 9.0, Path("x")),), "a")
    suite = suite_of(CoLA=[0.5, 0.571, 0.6], MNLI=[0.7, 0.8])
    scores = summarize(replace(suite, tasks={**suite.tasks, "MRPC": mrpc}))["scores"]
    assert scores == [
        {"task": "CoLA", "metric": "matthews_correlation", "value": 0.571, "split": "validation", "seeds": 3},
        {"task": "MNLI", "metric": "accuracy", "value": 0.75, "split": "validation_matched", "seeds": 2},
        {"task": "MNLI", "metric": "accuracy", "value": 0.75, "split": "validation_mismatched", "seeds": 2},
        {"task": "MRPC", "metric": "f1", "value": 0.9, "split": "validation", "seeds": 1},
        {"task": "MRPC", "metric": "accuracy", "value": 0.8, "split": "validation", "seeds": 1},
    ]


def test_means_are_over_what_both_have_with_the_same_metric() -> None:
    report = summarize(suite_of(SST_2=[0.90], QNLI=[0.88], QQP=[0.85], CoLA=[0.40], WNLI=[0.1]))
    wettig, user = report["published"]["dev"][0], report["published"]["dev"][2]
    assert wettig["metric_not_stated"] == ["QQP"]
    assert wettig["difference"] == {"SST-2": -0.032, "QNLI": -0.024}  # 90 - 93.2, 88 - 90.4
    assert wettig["mean"]["columns"] == ["SST-2", "QNLI"]
    assert (wettig["mean"]["median"], wettig["mean"]["theirs"]) == (0.89, 0.918)
    assert user["difference"] == {"CoLA": -0.03} and user["mean"]["columns"] == ["CoLA"]
    assert report["mean"]["columns"] == ["CoLA", "SST-2", "QQP", "QNLI"] and report["mean"]["median"] == 0.7575
    assert report["mean"]["left_out"] == ["WNLI"]


def test_test_rows_have_no_numbers_of_ours() -> None:
    names = [name for name in ALL_COLUMNS if name != "WNLI"]
    report = summarize(complete_suite_in_memory())
    for row in report["published"]["test"]:
        assert "difference" not in row and "mean" not in row
    assert list(report["published"]["test"][0]["scores"]) == names


def complete_suite_in_memory() -> Suite:
    return Suite("m", {name: result_of(name, [0.5, 0.6]) for name, task in TASKS.items() if task.train}, {})


def test_a_part_of_the_dev_rows_is_compared_with_nothing() -> None:
    report = summarize(
        partial(suite_of(SST_2=[0.9], MNLI=[0.7], QQP=[0.8]), "MNLI", dev_matched=3000, dev_mismatched=9832)
    )
    column = report["columns"]["MNLI-m"]
    assert (column["rows"], column["official_rows"], column["comparable"]) == (3000, 9815, False)
    assert report["columns"]["MNLI-mm"]["comparable"]
    assert all("MNLI-m" not in row["difference"] for row in report["published"]["dev"])
    assert report["mean"]["columns"] == ["SST-2", "QQP", "MNLI-mm"]
    assert [score["split"] for score in report["scores"] if score["task"] == "MNLI"] == ["validation_mismatched"]


def test_the_mean_of_lowest_and_highest_seeds() -> None:
    ours = columns(suite_of(CoLA=[0.1, 0.2, 0.3], RTE=[0.5, 0.6]))
    found = mean(ours, ["CoLA", "RTE"])
    assert found is not None and found.seeds == 2
    assert [round(value, 6) for value in (found.median, found.min, found.max)] == [0.375, 0.3, 0.45]
    assert mean(ours, []) is None and in_mean(["WNLI", "RTE"]) == ["RTE"]


def test_published_rows_are_of_known_columns() -> None:
    for row in (*DEV, *TEST):
        assert row.source and set(row.unstated) <= row.scores.keys() <= set(ALL_COLUMNS)
        assert all(1 < value < 100 for value in row.scores.values()), "points, not shares"
    means = [round(sum(row.scores.values()) / 9 - 1e-9, 1) for row in TEST[:3]]
    assert means == [78.5, 79.6, 82.1]  # of the nine columns, as they are quoted


def test_three_files_the_same_whenever_they_are_made(tmp_path: Path) -> None:
    suite = suite_of({"QNLI": "QNLI/train.tsv is not in data"}, CoLA=[0.4, 0.5, 0.45], MRPC=[0.8, 0.9], WNLI=[0.5])
    files = ("glue_report.json", "glue_report.md", "glue_report.png")
    made = []
    for _ in range(2):
        report = write_report(suite, tmp_path, Submission(("CoLA.tsv",), {"QNLI.tsv": "no data"}, None))
        made.append([(tmp_path / name).read_bytes() for name in files])
    assert made[0] == made[1] and json.loads(made[0][0]) == report
    assert made[0][2].startswith(b"\x89PNG") and sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_the_markdown_says_what_a_reader_needs(tmp_path: Path) -> None:
    suite = suite_of({"QNLI": "QNLI/train.tsv is not in data|x"}, CoLA=[0.4, 0.5, 0.45], MRPC=[0.8, 0.9], SST_2=[0.9])
    suite = partial(suite, "SST-2", dev=100)
    noted = replace(suite.tasks["MRPC"], base="MNLI", notes=("seed 3 failed",))
    submission = Submission(("CoLA.tsv",), {"QNLI.tsv": "no data"}, None)
    write_report(replace(suite, tasks={**suite.tasks, "MRPC": noted}), tmp_path, submission)
    text = (tmp_path / "glue_report.md").read_text()
    for line in (
        "| CoLA | Matthews | 45.0 | 40.0 to 50.0 | 3 |  |",
        "| MRPC | F1 | 85.0 | 80.0 to 90.0 | 2 | accuracy 85.0 |",
        "| SST-2 (100 of 872 rows) | accuracy | 90.0 | 90.0 to 90.0 | 1 |  |",
        "SST-2: scored on a part of the official dev rows, comparable with no published number.",
        "num\\_train\\_epochs 3.0; from MNLI's model | 1 | 2 | 2m |",
        "MRPC: seed 3 failed.",
        "- QNLI: QNLI/train.tsv is not in data\\|x",
        "| **ours** | 45.0 |  | 85.0 |",
        "| 24hBERT, re-run by a user | CoLA | 45.0 | 43.0 |",
        "| 24hBERT | 57.1 | 93.0 | 87.5 | 82.0 | 70.7 | 84.4 | 83.8 | 90.6 | 57.7 |",
        "- QNLI.tsv: no data",
    ):
        assert line in text, line
    own, test = text.index("## Beside published dev"), text.index("## Published test scores")
    assert "57.1" not in text[own:test], "a test score among dev scores"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_a_complete_suite_says_so(tmp_path: Path) -> None:
    suite = complete_suite(tmp_path / "runs", absent=("QQP",))
    report = write_report(suite, tmp_path, write_submission(suite, tmp_path))
    assert report["submission"]["complete"] is False and list(report["submission"]["missing"]) == ["QQP.tsv"]
    assert summarize(suite, Submission(("a",), {}, Path("z")))["submission"] == {
        "complete": True,
        "files": ["a"],
        "missing": {},
    }


def test_a_suite_in_which_nothing_was_scored(tmp_path: Path) -> None:
    report = write_report(Suite("m", {}, {"CoLA": "no data"}), tmp_path)
    assert report["scores"] == [] and report["mean"] is None and report["columns"] == {}
