"""The report of a suite: its numbers by hand, what is compared with what, and the three files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from budget_trainer.glue.check_submission import _check_submission
from budget_trainer.glue.report import DEV, TEST, write_report
from budget_trainer.glue.results import Configuration, Run, Suite, TaskResult, _Spread
from budget_trainer.glue.submission import write_submission
from budget_trainer.glue.tasks import ALL_COLUMNS, TASKS
from budget_trainer.reporting.card import card_text, parse_glue_scores
from tests.glue.suites import MODEL, RECIPE, complete_suite, result_of, run_of, suite_of
from tests.reporting.test_energy import RECORD

SUBMISSION = {"complete": False, "files": ["CoLA.tsv"], "missing": {"QNLI.tsv": "no data"}}


@pytest.fixture
def report_of(tmp_path: Path):
    return lambda suite: write_report(suite, tmp_path)


@pytest.mark.parametrize(
    ("scores", "best", "headline", "seed"),
    [
        ([[0.5, 0.6, 0.7], [0.1, 0.65, 0.99]], 1, _Spread(0.65, 0.1, 0.99, 3), 3),
        ([[0.5, 0.6], [0.5, 0.6]], 0, _Spread(0.55, 0.5, 0.6, 2), 2),  # of equals the first
        ([[None, 0.6, None], [0.5, 0.5, 0.5]], 1, _Spread(0.5, 0.5, 0.5, 3), 1),  # a seed alone is luck
        ([[None, 0.6, 0.6], [0.5, None, None]], 0, _Spread(0.6, 0.6, 0.6, 2), 2),
        ([[None, None]], None, None, None),
        ([[0.0, 0.0]], 0, _Spread(0, 0, 0, 2), 1),  # a score, though a low one
        ([[0.5, 0.9, 0.7, 0.1, 0.6]], 0, _Spread(0.6, 0.1, 0.9, 5), 2),
    ],
)
def test_the_median_of_the_best_configuration(scores, best, headline, seed) -> None:
    content = result_of("RTE", *scores).content()
    assert content["best_configuration"] == best and (content["best_run"] or {}).get("seed") == seed
    assert content["headline"] == (headline and pytest.approx(headline.scores()))
    assert content["metrics"] == ({} if best is None else {"dev": {"accuracy": pytest.approx(headline.scores())}})


def test_the_file_of_a_suite() -> None:
    content = suite_of({"QNLI": "no file"}, RTE=[0.5, None]).content()
    assert content["failed"] == 1 and content["seconds"] == 60.0 and list(content["tasks"]) == ["RTE"]
    done, failed = content["tasks"]["RTE"]["configurations"][0]["runs"]
    assert (failed["status"], failed["error"], failed["headline"]) == ("failed", "out of memory", None)
    assert (done["status"], done["headline"], done["folder"]) == ("finished", 0.5, "runs/RTE/1-0.5")
    assert content["absent"] == {"QNLI": "no file"} and json.dumps(content)


def test_the_energy_of_all_finished_runs_adds_up(report_of, tmp_path) -> None:
    suite = suite_of(RTE=result_of("RTE", [0.5, 0.6, None], energy=RECORD), CoLA=[0.4])
    found = replace(suite, price_per_hour=3.0).content()["energy"]
    assert (found["kwh"], found["runs"], found["unknown"]) == (3.0, 3, 1)
    assert found["cost"]["total"] == pytest.approx(0.15), "three runs of 60 s"
    assert report_of(suite)["energy"]["kwh"] == 3.0 and json.dumps(suite.content())
    assert "Energy: 3 kWh (GPU 2.5 kWh, CPU, estimated 500 Wh)" in (tmp_path / "glue_report.md").read_text()


def test_all_runs_are_paid_for_and_those_that_failed_are_named(report_of) -> None:
    rte = result_of("RTE", [0.9, None, None], [0.5, 0.6, None, 0.58], base="MNLI")
    report = report_of(suite_of({"QNLI": "no train.tsv"}, RTE=rte, CoLA=[None]))
    assert report["columns"]["RTE"]["median"] == 0.58 and report["columns"]["RTE"]["max"] == 0.6
    task = report["tasks"]["RTE"]
    assert (task["runs"], task["configurations"], task["seconds"], task["seeds"]) == (4, 2, 240.0, [1, 2, 4])
    assert task["best_configuration"] == RECIPE and task["median_seed"] == 4 and report["seconds"] == 240.0
    assert task["base"] == "MNLI" and task["notes"] == [
        "seed 3 of the best configuration failed (out of memory)",
        "runs of other configurations that failed: 2",
    ]
    assert report["absent"] == {"CoLA": "all 1 runs failed (out of memory)", "QNLI": "no train.tsv"}
    report = report_of(suite_of({"CoLA": "no data"}))
    assert report["scores"] == [] and report["mean"] is None and report["columns"] == {}


def test_the_scores_of_a_card(report_of) -> None:
    mrpc = result_of("MRPC", [0.9], metrics={"dev": {"accuracy": 0.8, "f1": 0.9}}, base="MNLI")
    suite = suite_of(CoLA=[0.5, 0.571, 0.6], MRPC=mrpc, MNLI=[0.7, 0.8])
    report = report_of(replace(suite, model={**MODEL, "name_or_path": "/home/someone/out/run/final"}))
    expected = [
        ("CoLA", "matthews_correlation", 0.571, "validation", 3, None),
        ("MRPC", "f1", 0.9, "validation", 1, "MNLI"),
        ("MRPC", "accuracy", 0.8, "validation", 1, "MNLI"),
        ("MNLI", "accuracy", 0.75, "validation_matched", 2, None),
        ("MNLI", "accuracy", 0.75, "validation_mismatched", 2, None),
    ]
    names, rate = ("task", "metric", "value", "split", "seeds", "starts_from"), {"learning_rate": 5e-5}
    assert report["model"] == "run/final" and report["scores"] == [
        {**dict(zip(names, one, strict=True)), **rate, "flags": RECIPE, "tried": [{**rate, "value": one[2]}]}
        for one in expected
    ]


def test_the_rates_that_were_tried(report_of, tmp_path) -> None:
    """Two configurations at 3e-4, of which the better counts; at 1e-3 one of two seeds failed, so that it is not the best."""
    rates, scores = [5e-5, 3e-4, 3e-4, 1e-3], [[0.40, 0.44], [0.50, 0.60], [0.48, 0.56], [0.90, None]]
    runs = [
        [run_of("CoLA", score, seed, configuration={"learning_rate": rate}) for seed, score in enumerate(of_seeds, 1)]
        for rate, of_seeds in zip(rates, scores, strict=True)
    ]
    flags = [{"num_train_epochs": str(3 + place), "learning_rate": str(rate)} for place, rate in enumerate(rates)]
    cola = TaskResult(TASKS["CoLA"], [Configuration(*one) for one in zip(flags, runs, strict=True)])
    report = report_of(Suite(Path("nowhere"), MODEL, {"CoLA": cola}))
    (score,) = report["scores"]
    tried = {5e-5: 0.42, 3e-4: 0.55, 1e-3: 0.9}
    assert (score["value"], score["seeds"], score["learning_rate"], score["flags"]) == (0.55, 2, 3e-4, flags[1])
    assert score["tried"] == [{"learning_rate": rate, "value": value} for rate, value in tried.items()]
    assert report["tasks"]["CoLA"]["learning_rates"] == score["tried"]
    assert "| 5e-5: 42.0, 3e-4: 55.0, 1e-3: 90.0 | 4 | 7 |" in (tmp_path / "glue_report.md").read_text()
    (parsed,) = parse_glue_scores((tmp_path / "glue_report.json").read_text(), "here")
    assert parsed.tried == tried and parsed.flags == flags[1]
    card = card_text({"model_type": "bert"}, name="mini", scores=[parsed])
    assert "| CoLA | matthews\\_correlation | validation | 55.0 | 2 |" in card
    assert "| CoLA | 3e-4 | 5e-5: 42.0, 3e-4: 55.0, 1e-3: 90.0 | num\\_train\\_epochs 4 |" in card


def test_means_are_over_what_both_have_with_the_same_metric(report_of) -> None:
    report = report_of(suite_of(SST_2=[0.90], QNLI=[0.88], QQP=[0.85], CoLA=[0.40], WNLI=[0.1]))
    wettig, user = report["published"]["dev"][0], report["published"]["dev"][2]
    assert wettig["metric_not_stated"] == ["QQP"]
    assert wettig["difference"] == {"SST-2": -0.032, "QNLI": -0.024}  # 90 - 93.2, 88 - 90.4
    assert wettig["mean"]["columns"] == ["SST-2", "QNLI"]
    assert (wettig["mean"]["median"], wettig["mean"]["theirs"]) == (0.89, 0.918)
    assert user["difference"] == {"CoLA": -0.03} and user["mean"]["columns"] == ["CoLA"]
    assert report["mean"]["columns"] == ["CoLA", "SST-2", "QQP", "QNLI"] and report["mean"]["median"] == 0.7575
    assert report["mean"]["left_out"] == ["WNLI"]
    for row in report["published"]["test"]:
        assert "difference" not in row and "mean" not in row, "test scores are compared with none of ours"


def test_a_part_of_the_dev_rows_is_compared_with_nothing(report_of) -> None:
    report = report_of(suite_of(rows={"dev_matched": 3000}, SST_2=[0.9], MNLI=[0.7], QQP=[0.8]))
    column = report["columns"]["MNLI-m"]
    assert (column["rows"], column["official_rows"], column["comparable"]) == (3000, 9815, False)
    assert report["columns"]["MNLI-mm"]["comparable"]
    assert all("MNLI-m" not in row["difference"] for row in report["published"]["dev"])
    assert report["mean"]["columns"] == ["SST-2", "QQP", "MNLI-mm"]
    assert [score["split"] for score in report["scores"] if score["task"] == "MNLI"] == ["validation_mismatched"]


def test_the_mean_of_lowest_and_highest_seeds() -> None:
    suite = suite_of(CoLA=[0.1, 0.2, 0.3], RTE=[0.5, 0.6], WNLI=[0.1])
    found = {"columns": ["CoLA", "RTE"], "left_out": ["WNLI"], "median": 0.375, "min": 0.3, "max": 0.45, "seeds": 2}
    assert suite.mean(["CoLA", "RTE", "WNLI"]) == found
    assert suite.mean(["WNLI"]) is None and suite.mean(["RTE", "WNLI"], least=2) is None


def test_published_rows_are_of_known_columns() -> None:
    for row in (*DEV, *TEST):
        assert row["source"] and set(row["metric_not_stated"]) <= row["scores"].keys() <= set(ALL_COLUMNS)
        assert all(0.01 < value < 1 for value in row["scores"].values()), "shares, not points"
    assert [len(row["scores"]) for row in (*DEV, *TEST)] == [4, 4, 1, 9, 8, 9, 9, 9, 1]
    means = [round(100 * sum(row["scores"].values()) / 9 - 1e-9, 1) for row in TEST[:3]]
    assert means == [78.5, 79.6, 82.1]  # of the nine columns, as they are quoted


def test_three_files_the_same_whenever_they_are_made_say_what_a_reader_needs(tmp_path: Path) -> None:
    results = {"MRPC": result_of("MRPC", [0.8, 0.9, None], base="MNLI"), "CoLA": [0.4, 0.5, 0.45]}
    results["SST_2"] = result_of("SST-2", [0.9], rows={"dev": 100})
    suite, made = suite_of({"QNLI": "QNLI/train.tsv is not in data|x"}, **results), []
    files = ("glue_report.json", "glue_report.md", "glue_report.png")
    for _ in range(2):
        report = write_report(suite, tmp_path, SUBMISSION)
        made.append([(tmp_path / name).read_bytes() for name in files])
    assert made[0] == made[1] and json.loads(made[0][0]) == report
    assert made[0][2].startswith(b"\x89PNG") and sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    text = made[0][1].decode()
    for line in (
        "| CoLA | Matthews | 45.0 | 40.0 to 50.0 | 3 |  |",
        "| MRPC | F1 | 85.0 | 80.0 to 90.0 | 2 | accuracy 85.0 |",
        "| SST-2 (100 of 872 rows) | accuracy | 90.0 | 90.0 to 90.0 | 1 |  |",
        "SST-2: scored on a part of the official dev rows, comparable with no published number.",
        "num\\_train\\_epochs 3.0; from MNLI's model | 5e-5: 85.0 | 1 | 2 | 2m |",
        "MRPC: seed 3 of the best configuration failed (out of memory).",
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


def test_the_submission_in_the_report(tmp_path: Path) -> None:
    suite = complete_suite(tmp_path / "runs", absent=("QQP",))
    report = write_report(suite, tmp_path, write_submission(suite, tmp_path))
    assert report["submission"]["complete"] is False and list(report["submission"]["missing"]) == ["QQP.tsv"]
    write_report(suite, tmp_path, {"complete": True, "files": ["CoLA.tsv"], "missing": {}})
    assert "`glue_submission.zip` is complete" in (tmp_path / "glue_report.md").read_text()


def test_a_real_result(tmp_path: Path) -> None:
    """Three runs of a tiny model on WNLI, five steps each, as finetune_glue.py left them."""
    sample = Path(__file__).parent / "samples" / "suite"
    runs = []
    for path in sample.rglob("result.json"):
        result = json.loads(path.read_text())
        runs.append(Run.of(result["seed"], path.parent.name, str(path.parent.relative_to(sample)), result))
    suite = Suite(sample, MODEL, {"WNLI": TaskResult(TASKS["WNLI"], [Configuration({}, runs)])})
    report = write_report(suite, tmp_path, write_submission(suite, tmp_path))
    column = report["columns"]["WNLI"]
    assert (column["min"], column["median"], column["max"]) == (0.43662, 0.43662, 0.56338)
    assert column["seeds"] == 3 and column["comparable"] and report["tasks"]["WNLI"]["base"] is None
    assert _check_submission(tmp_path / "submission", partial=True) == []
    assert report["submission"]["files"] == ["WNLI.tsv"] and report["scores"][0]["value"] == column["median"]
