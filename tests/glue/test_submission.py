"""The leaderboard's files, and the zip of them."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.glue.check_submission import check
from budget_trainer.glue.results import Suite, TaskResult
from budget_trainer.glue.submission import official_files, write_submission, zip_bytes
from budget_trainer.glue.tasks import TASKS
from tests.glue.suites import complete_suite, runs_of, write_predictions

ROWS = {
    **{"CoLA.tsv": 1063, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 1379, "QQP.tsv": 390965},
    **{"MNLI-m.tsv": 9796, "MNLI-mm.tsv": 9847, "QNLI.tsv": 5463, "RTE.tsv": 3000, "WNLI.tsv": 146, "AX.tsv": 1104},
}
FIRST = {
    **{"CoLA.tsv": "0 1 0", "SST-2.tsv": "0 1 0", "MRPC.tsv": "0 1 0", "QQP.tsv": "0 1 0", "WNLI.tsv": "0 1 0"},
    **dict.fromkeys(("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"), "entailment neutral contradiction"),
    **dict.fromkeys(("QNLI.tsv", "RTE.tsv"), "entailment not_entailment entailment"),
    "STS-B.tsv": "0.000 0.000 0.000 0.000 0.000 0.000 0.000 0.000 0.000 0.000 0.000 0.100",
}


def test_eleven_files_with_official_row_counts() -> None:
    assert {name: split.rows for name, (_, split) in official_files().items()} == ROWS


def test_all_tasks_give_the_complete_zip(tmp_path: Path) -> None:
    written = write_submission(complete_suite(tmp_path / "runs"), tmp_path)
    assert written.missing == {} and written.zip == tmp_path / "glue_submission.zip" and len(written.files) == 11
    assert check(written.zip) == []
    assert not (tmp_path / "submission_missing.txt").exists()
    with zipfile.ZipFile(written.zip) as archive:
        assert sorted(archive.namelist()) == sorted(ROWS) == archive.namelist()
        for name, words in FIRST.items():
            lines = archive.read(name).decode().split("\n")
            expected = [f"{row}\t{word}" for row, word in enumerate(words.split())]
            assert lines[: len(expected) + 1] == ["index\tprediction", *expected], name
            assert len(lines) == ROWS[name] + 2 and lines[-1] == "", name
            assert archive.read(name) == (tmp_path / "submission" / name).read_bytes()
        assert archive.read("STS-B.tsv").decode().splitlines()[70] == "69\t5.000"  # 5.9 of the model


def test_the_zip_is_the_same_bytes_whenever_it_is_made() -> None:
    contents = {"RTE.tsv": b"index\tprediction\n", "AX.tsv": b"x"}
    made = zip_bytes(contents)
    assert made == zip_bytes(dict(reversed(contents.items())))
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_missing_tasks_are_named_and_there_is_no_zip(tmp_path: Path) -> None:
    suite = complete_suite(tmp_path / "runs", without=("ax",), absent=("QNLI", "QQP"))
    written = write_submission(suite, tmp_path)
    assert written.zip is None and not (tmp_path / "glue_submission.zip").exists()
    assert written.missing == {
        "QQP.tsv": "no train.tsv",
        "QNLI.tsv": "no train.tsv",
        "AX.tsv": "MNLI has no predictions of ax; add diagnostic/diagnostic.tsv and run it again",
    }
    statement = (tmp_path / "submission_missing.txt").read_text()
    assert statement.startswith("8 of 11 files") and "  AX.tsv: MNLI has no predictions of ax" in statement
    assert sorted(path.name for path in (tmp_path / "submission").iterdir()) == sorted(ROWS.keys() - written.missing)
    assert check(tmp_path / "submission", partial=True) == []
    assert check(tmp_path / "submission") == [
        "QQP.tsv: missing; predict QQP's test (390,965 rows) and add it",
        "QNLI.tsv: missing; predict QNLI's test (5,463 rows) and add it",
        "AX.tsv: missing; predict AX's ax (1,104 rows) and add it",
    ]


def test_predictions_of_some_rows_only_are_not_submitted(tmp_path: Path) -> None:
    suite = complete_suite(tmp_path / "runs", absent=("QQP", "MNLI"))
    path = tmp_path / "runs" / "RTE" / "predictions" / "test.json"
    path.write_text(json.dumps({"label_names": list(TASKS["RTE"].labels), "predictions": [0, 1]}))
    missing = write_submission(suite, tmp_path).missing
    assert missing["RTE.tsv"] == "2 rows were predicted, the official file has 3,000"
    assert missing["AX.tsv"] == missing["MNLI-m.tsv"] == "no train.tsv"


def test_an_older_complete_zip_is_not_left_beside_an_incomplete_submission(tmp_path: Path) -> None:
    (tmp_path / "glue_submission.zip").write_bytes(b"older")
    with pytest.raises(InputError, match=r"glue_submission\.zip: a complete submission of earlier .* lack QQP\.tsv"):
        write_submission(complete_suite(tmp_path / "runs", absent=("QNLI", "QQP")), tmp_path)
    assert (tmp_path / "glue_submission.zip").read_bytes() == b"older" and not (tmp_path / "submission").exists()
    write_submission(complete_suite(tmp_path / "runs", absent=("QNLI", "QQP")), tmp_path, overwrite=True)
    assert not (tmp_path / "glue_submission.zip").exists() and (tmp_path / "submission_missing.txt").exists()


@pytest.mark.parametrize(
    ("scores", "seed"),
    [([0.5, 0.9, 0.7, 0.1, 0.6], 5), ([0.5, 0.9, 0.7, 0.6], 4), ([0.5, 0.5, 0.5], 1), ([0.2], 1)],
    ids=["five", "even: the lower", "equal: the first", "one"],
)
def test_the_median_seed_of_the_best_configuration_is_submitted(tmp_path: Path, scores: list, seed: int) -> None:
    worse = runs_of("WNLI", [0.0, 0.6], configuration="b")
    result = TaskResult(TASKS["WNLI"], (*worse, *runs_of("WNLI", scores)), best="a")
    assert result.median_run.seed == seed and result.median_run.configuration == "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label_names": ["entailment", "not_entailment"], "predictions": [0]}, r"its labels are \['entailment'"),
        ({"label_names": ["not_entailment", "entailment"], "predictions": [0, 2]}, "row 1 has the prediction 2; run"),
        ({"label_names": ["not_entailment", "entailment"], "predictions": [0.5]}, r"row 0 has the prediction 0\.5"),
        ({"label_names": ["not_entailment", "entailment"], "predictions": [None]}, "row 0 has the prediction None"),
        ({"predictions": [0]}, "cannot be read"),
        ("cut", "cannot be read"),
    ],
)
def test_damaged_predictions_are_refused(tmp_path: Path, content: object, message: str) -> None:
    predictions = write_predictions(tmp_path, TASKS["WNLI"])
    (tmp_path / "predictions" / "test.json").write_text(json.dumps(content)[: 4 if content == "cut" else None])
    result = TaskResult(TASKS["WNLI"], tuple(runs_of("WNLI", [0.5], folder=tmp_path, predictions=predictions)), "a")
    with pytest.raises(InputError, match=message) as caught:
        write_submission(Suite("m", {"WNLI": result}, {}), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
