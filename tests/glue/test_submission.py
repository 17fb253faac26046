"""The leaderboard's files, the zip of them, and the check that names every fault in one line."""

import json
import zipfile
from pathlib import Path

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.glue.check_submission import _check_submission, main
from budget_trainer.glue.submission import write_submission
from budget_trainer.glue.tasks import SUBMISSION_FILES, TASKS
from tests.glue.suites import complete_suite, result_of

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


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """A folder with the complete submission."""
    folder = tmp_path_factory.mktemp("complete")
    written = write_submission(complete_suite(folder / "runs"), folder)
    assert written == {"complete": True, "files": list(ROWS), "missing": {}}
    return folder


@pytest.fixture(scope="module")
def contents(complete: Path) -> dict[str, bytes]:
    """All eleven files, right."""
    return {name: (complete / "submission" / name).read_bytes() for name in SUBMISSION_FILES}


def test_all_tasks_give_the_complete_zip(complete: Path, contents: dict) -> None:
    assert {name: split.rows for name, (_, split) in SUBMISSION_FILES.items()} == ROWS
    assert _check_submission(complete / "glue_submission.zip") == []
    before = (complete / "glue_submission.zip").read_bytes()
    write_submission(complete_suite(complete / "runs"), complete)
    assert (complete / "glue_submission.zip").read_bytes() == before, "the same bytes whenever it is made"
    assert not (complete / "submission_missing.txt").exists()
    with zipfile.ZipFile(complete / "glue_submission.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents
        assert sorted(ROWS) == archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    for name, words in FIRST.items():
        lines = contents[name].decode().split("\n")
        expected = [f"{row}\t{word}" for row, word in enumerate(words.split())]
        assert lines[: len(expected) + 1] == ["index\tprediction", *expected], name
        assert len(lines) == ROWS[name] + 2 and lines[-1] == "", name
    assert contents["STS-B.tsv"].decode().splitlines()[70] == "69\t5.000"  # 5.9 of the model


def test_missing_tasks_are_named_and_there_is_no_zip(tmp_path: Path) -> None:
    suite = complete_suite(tmp_path / "runs", without=("ax",), absent=("QNLI", "QQP"))
    written = write_submission(suite, tmp_path)
    assert not written["complete"] and not (tmp_path / "glue_submission.zip").exists()
    ax = "MNLI has no predictions of ax; add diagnostic/diagnostic.tsv and run it again"
    assert written["missing"] == {"QQP.tsv": "no train.tsv", "QNLI.tsv": "no train.tsv", "AX.tsv": ax}
    statement = (tmp_path / "submission_missing.txt").read_text()
    assert statement.startswith("8 of 11 files") and "  AX.tsv: MNLI has no predictions of ax" in statement
    assert {path.name for path in (tmp_path / "submission").iterdir()} == ROWS.keys() - written["missing"]
    assert _check_submission(tmp_path / "submission", partial=True) == []
    findings = _check_submission(tmp_path / "submission")
    assert findings[0] == "QQP.tsv: missing; predict QQP's test (390,965 rows) and add it"
    assert [line.partition(":")[0] for line in findings] == ["QQP.tsv", "QNLI.tsv", "AX.tsv"]


def test_predictions_of_some_rows_only_are_not_submitted(tmp_path: Path) -> None:
    suite = complete_suite(tmp_path / "runs", absent=("QQP", "MNLI"))
    path = tmp_path / "runs/runs/RTE/1-0.5/predictions/test.json"
    path.write_text(json.dumps({"label_names": list(TASKS["RTE"].labels), "predictions": [0, 1]}))
    (tmp_path / "glue_submission.zip").write_bytes(b"older")
    with pytest.raises(InputError, match=r"glue_submission\.zip: a complete submission of earlier .* lack QQP\.tsv"):
        write_submission(suite, tmp_path)
    assert (tmp_path / "glue_submission.zip").read_bytes() == b"older" and not (tmp_path / "submission").exists()
    missing = write_submission(suite, tmp_path, overwrite=True)["missing"]
    assert missing["RTE.tsv"] == "2 rows were predicted, the official file has 3,000"
    assert missing["AX.tsv"] == missing["MNLI-m.tsv"] == "no train.tsv"
    assert not (tmp_path / "glue_submission.zip").exists() and (tmp_path / "submission_missing.txt").exists()


@pytest.mark.parametrize(
    ("scores", "seed"),
    [([0.5, 0.9, 0.7, 0.1, 0.6], 5), ([0.5, 0.9, 0.7, 0.6], 4), ([0.5, 0.5, 0.5], 1), ([0.2], 1)],
)
def test_the_median_seed_of_the_best_configuration_is_submitted(scores: list, seed: int) -> None:
    assert result_of("WNLI", [0.0, 0.1], scores).median_run.seed == seed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label_names": ["entailment", "not_entailment"], "predictions": [0]}, r"its labels are \['entailment'"),
        ({"label_names": ["not_entailment", "entailment"], "predictions": [0, 2]}, "row 1 has the prediction 2; run"),
        ({"label_names": ["not_entailment", "entailment"], "predictions": [0.5]}, r"row 0 has the prediction 0\.5"),
        ({"label_names": ["not_entailment", "entailment"], "predictions": [None]}, "row 0 has the prediction None"),
        ({"predictions": [0]}, "its labels are None, not"),
        ("cut", "cannot be read"),
    ],
)
def test_damaged_predictions_are_refused(tmp_path: Path, content: object, message: str) -> None:
    suite = complete_suite(tmp_path, absent=tuple(TASKS.keys() - {"WNLI"}))
    path = tmp_path / "runs/WNLI/1-0.5/predictions/test.json"
    path.write_text(json.dumps(content)[: 4 if content == "cut" else None])
    with pytest.raises(InputError, match=message) as caught:
        write_submission(suite, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def row(number: int, *line: str):
    """Row `number` as `line`, or without it."""

    def change(content: bytes) -> bytes:
        lines = content.decode().split("\n")
        return "\n".join([*lines[: number + 1], *line, *lines[number + 2 :]]).encode()

    return change


@pytest.mark.parametrize(
    ("name", "change", "findings"),
    [
        ("WNLI.tsv", lambda c: c[c.index(b"\n") + 1 :], ["header '0\\t0'; write 'index\\tprediction'"]),
        ("WNLI.tsv", lambda c: c.replace(b"\t", b","), 7),
        ("WNLI.tsv", row(3, "3\t2"), ["row 3: '2'; write 0 or 1"]),
        ("RTE.tsv", row(7, "7\t1"), ["row 7: '1'; write entailment or not_entailment"]),
        ("AX.tsv", row(0, "0\tNeutral"), ["row 0: 'Neutral'; write entailment or neutral or contradiction"]),
        ("STS-B.tsv", row(2, "2\t5.001"), ["row 2: '5.001'; write a number from 0 to 5"]),
        ("STS-B.tsv", row(2, "2\t-0.1"), ["row 2: '-0.1'; write a number from 0 to 5"]),
        ("STS-B.tsv", row(2, "2\tnan"), ["row 2: 'nan'; write a number from 0 to 5"]),
        ("CoLA.tsv", row(4, "3\t0"), ["row 4: the index 3 is there twice; number the rows 0 to 1062"]),
        ("CoLA.tsv", row(4, "x\t0"), ["row 4: the index is 'x'; write 4"]),
        ("CoLA.tsv", row(4, "4"), ["row 4: 1 columns; write the index, a tab and the pred"]),
        ("CoLA.tsv", row(1062), ["1,062 rows; give one for each of the 1,063 of CoLA/test.tsv"]),
        ("CoLA.tsv", row(1060), 3),
        (
            "CoLA.tsv",
            lambda c: c.replace(b"\t1\n", b"\tyes\n"),  # in 531 odd rows
            [*(f"row {n}: 'yes'; write 0 or 1" for n in range(1, 10, 2)), "526 more rows with another prediction;"],
        ),
        ("CoLA.tsv", lambda c: c + b"1063\t0\n", ["1,064 rows; give one for each of the 1,063 of CoLA/test.tsv"]),
        ("MRPC.tsv", lambda c: c[:30] + b"\xff" + c[30:], ["byte 30 is not UTF-8; write it as UTF-8"]),
        ("MRPC.tsv", lambda c: b"", ["header ''; write", "0 rows; give one for each of the 1,725"]),
        ("SST-2.tsv", lambda c: c.replace(b"\n", b"\r\n"), []),
        ("SST-2.tsv", lambda c: c.removesuffix(b"\n"), []),
    ],
)
def test_every_fault_of_a_file_is_one_line(tmp_path: Path, contents: dict, name: str, change, findings) -> None:
    (tmp_path / name).write_bytes(change(contents[name]))
    found, wanted = (
        _check_submission(tmp_path, partial=True),
        [""] * findings if isinstance(findings, int) else findings,
    )
    assert len(found) == len(wanted) and all("\n" not in line for line in found), found
    assert all(line.startswith(f"{name}: {start}") for line, start in zip(found, wanted, strict=True)), found


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("submission/CoLA.tsv", "put it at the top, not into a folder"),
        ("cola.tsv", "did you mean CoLA.tsv?"),
        ("MNLI.tsv", "did you mean MNLI-m.tsv or MNLI-mm.tsv?"),
        ("README.md", "take it out"),
    ],
)
def test_files_that_do_not_belong_there(tmp_path: Path, contents: dict, name: str, finding: str) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for stored in ("RTE.tsv", "RTE.tsv", name):
            archive.writestr(stored, contents["RTE.tsv"])
    found = _check_submission(tmp_path / "s.zip", partial=True)
    assert found == ["RTE.tsv: it is in the zip 2 times; keep one", f"{name}: superfluous; {finding}"]


def test_exit_codes(tmp_path: Path, complete: Path, contents: dict, capsys: pytest.CaptureFixture) -> None:
    good, cut, folder = complete / "glue_submission.zip", tmp_path / "cut.zip", tmp_path / "submission"
    cut.write_bytes(good.read_bytes()[:1000])
    assert main([str(good)]) == 0 and "as the GLUE leaderboard wants it" in capsys.readouterr().out
    folder.mkdir()
    (folder / "CoLA.tsv").write_bytes(contents["CoLA.tsv"])
    assert main([str(folder)]) == 1 and capsys.readouterr().out.count("missing; predict") == 10
    assert main([str(folder), "--partial"]) == 0
    for path, message in ((cut, "is not a zip"), (tmp_path / "none", "does not exist"), (tmp_path, "a whole suite")):
        assert main([str(path)]) == 2
        assert message in capsys.readouterr().err
