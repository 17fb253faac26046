"""The check of files for the leaderboard: every fault in one line."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from budget_trainer.glue.check_submission import check, main
from budget_trainer.glue.submission import official_files, tsv, zip_bytes
from tests.conftest import ROOT
from tests.glue.suites import predictions_of


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """All eleven files, right."""
    files = official_files().items()
    return {name: tsv(task, split, predictions_of(task, split.rows)) for name, (task, split) in files}


def replace_row(content: bytes, row: int, line: str | None) -> bytes:
    """Row `row` as `line`, or without it."""
    lines = content.decode().split("\n")
    lines[row + 1 : row + 2] = [] if line is None else [line]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("name", "change", "findings"),
    [
        ("WNLI.tsv", lambda c: c[c.index(b"\n") + 1 :], ["WNLI.tsv: header '0\\t0'; write 'index\\tprediction'"]),
        ("WNLI.tsv", lambda c: c.replace(b"\t", b","), 7),
        ("WNLI.tsv", lambda c: replace_row(c, 3, "3\t2"), ["WNLI.tsv: row 3: '2'; write 0 or 1"]),
        ("RTE.tsv", lambda c: replace_row(c, 7, "7\t1"), ["RTE.tsv: row 7: '1'; write entailment or not_entailment"]),
        (
            "AX.tsv",
            lambda c: replace_row(c, 0, "0\tNeutral"),
            ["AX.tsv: row 0: 'Neutral'; write entailment or neutral or contradiction"],
        ),
        (
            "STS-B.tsv",
            lambda c: replace_row(c, 2, "2\t5.001"),
            ["STS-B.tsv: row 2: '5.001'; write a number from 0 to 5"],
        ),
        (
            "STS-B.tsv",
            lambda c: replace_row(c, 2, "2\t-0.1"),
            ["STS-B.tsv: row 2: '-0.1'; write a number from 0 to 5"],
        ),
        ("STS-B.tsv", lambda c: replace_row(c, 2, "2\tnan"), ["STS-B.tsv: row 2: 'nan'; write a number from 0 to 5"]),
        (
            "CoLA.tsv",
            lambda c: replace_row(c, 4, "3\t0"),
            ["CoLA.tsv: row 4: the index 3 is there twice; number the rows 0 to 1062"],
        ),
        ("CoLA.tsv", lambda c: replace_row(c, 4, "x\t0"), ["CoLA.tsv: row 4: the index is 'x'; write 4"]),
        (
            "CoLA.tsv",
            lambda c: replace_row(c, 4, "4"),
            ["CoLA.tsv: row 4: 1 columns; write the index, a tab and the pred"],
        ),
        (
            "CoLA.tsv",
            lambda c: replace_row(c, 1062, None),
            ["CoLA.tsv: 1,062 rows; give one for each of the 1,063 of CoLA/test.tsv"],
        ),
        ("CoLA.tsv", lambda c: replace_row(c, 1060, None), 3),
        (
            "CoLA.tsv",
            lambda c: c + b"1063\t0\n",
            ["CoLA.tsv: 1,064 rows; give one for each of the 1,063 of CoLA/test.tsv"],
        ),
        ("MRPC.tsv", lambda c: c[:30] + b"\xff" + c[30:], ["MRPC.tsv: byte 30 is not UTF-8; write it as UTF-8"]),
        (
            "MRPC.tsv",
            lambda c: b"",
            ["MRPC.tsv: header ''; write", "MRPC.tsv: 0 rows; give one for each of the 1,725"],
        ),
        ("SST-2.tsv", lambda c: c.replace(b"\n", b"\r\n"), []),
        ("SST-2.tsv", lambda c: c.removesuffix(b"\n"), []),
    ],
)
def test_every_fault_of_a_file_is_one_line(tmp_path: Path, contents: dict, name: str, change, findings) -> None:
    (tmp_path / name).write_bytes(change(contents[name]))
    found = check(tmp_path, partial=True)
    assert all(line.startswith(f"{name}: ") and "\n" not in line for line in found)
    if isinstance(findings, int):
        assert len(found) == findings, found
    else:
        assert len(found) == len(findings) and all(map(str.startswith, found, findings)), found


def test_many_faults_of_one_kind_are_counted(tmp_path: Path, contents: dict) -> None:
    (tmp_path / "CoLA.tsv").write_bytes(contents["CoLA.tsv"].replace(b"\t1\n", b"\tyes\n"))
    found = check(tmp_path, partial=True)
    assert len(found) == 6 and found[0] == "CoLA.tsv: row 1: 'yes'; write 0 or 1"
    assert found[-1] == "CoLA.tsv: 526 more rows with another prediction; correct them all"  # 531 odd rows


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("submission/CoLA.tsv", "put it at the top, not into a folder"),
        ("cola.tsv", "did you mean CoLA.tsv?"),
        ("MNLI.tsv", "did you mean MNLI-m.tsv or MNLI-mm.tsv?"),
        ("sst2.csv", "did you mean SST-2.tsv?"),
        ("README.md", "take it out"),
    ],
)
def test_files_that_do_not_belong_there(tmp_path: Path, contents: dict, name: str, finding: str) -> None:
    path = tmp_path / "s.zip"
    path.write_bytes(zip_bytes({"RTE.tsv": contents["RTE.tsv"], name: b"x"}))
    assert check(path, partial=True) == [f"{name}: superfluous; {finding}"]


def test_a_file_that_is_in_the_zip_twice(tmp_path: Path, contents: dict) -> None:
    path = tmp_path / "s.zip"
    path.write_bytes(zip_bytes({"RTE.tsv": contents["RTE.tsv"]}))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("RTE.tsv", contents["RTE.tsv"])
    assert check(path, partial=True) == ["RTE.tsv: it is in the zip 2 times; keep one"]


def test_exit_codes(tmp_path: Path, contents: dict, capsys: pytest.CaptureFixture) -> None:
    good, cut = tmp_path / "good.zip", tmp_path / "cut.zip"
    good.write_bytes(zip_bytes(contents))
    cut.write_bytes(good.read_bytes()[:1000])
    assert main([str(good)]) == 0 and "as the GLUE leaderboard wants it" in capsys.readouterr().out
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "CoLA.tsv").write_bytes(contents["CoLA.tsv"])
    assert main([str(folder)]) == 1 and capsys.readouterr().out.count("missing; predict") == 10
    assert main([str(folder), "--partial"]) == 0
    (tmp_path / "submission").mkdir()
    for path, message in ((cut, "is not a zip"), (tmp_path / "none", "does not exist"), (tmp_path, "a whole suite")):
        capsys.readouterr()
        assert main([str(path)]) == 2
        assert message in capsys.readouterr().err


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "budget_trainer.glue.check_submission", str(tmp_path / "none.zip")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "none.zip does not exist" in done.stderr
