"""GLUE over the budget: which checkpoints, their minutes, and the three files."""

import json
from pathlib import Path
from typing import Any

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.glue.over_budget import expand_checkpoints, report_over_budget
from tests.glue.suites import result_of, suite_of

REPORT = {
    "budget_seconds": 540.0,  # an early exit at nine minutes of ten
    "used_seconds": 534.0,
    "markers_in_final": ["finetune-89.5"],
    "recipe": {"total_training_time": "10m"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 10 minutes with markers."""
    folder = tmp_path / "run"
    markers = [folder / f"finetune-{percent}" for percent in ("5", "50", "12.5", "89.5")]
    for path in (*markers, folder / "final"):
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
    (folder / "run_report.json").write_text(json.dumps(REPORT))
    return folder


def test_checkpoints_of_a_run_by_time(run: Path) -> None:
    found = expand_checkpoints([str(run / "finetune-*"), str(run / "final"), str(run / "finetune-50")])
    # the last two: what was used of the nine minutes, and a copy of it
    minutes = {"finetune-5": 0.5, "finetune-12.5": 1.25, "finetune-50": 5.0, "final": 8.9, "finetune-89.5": 8.9}
    assert [(path.name, round(time, 6)) for path, time in found.items()] == list(minutes.items())
    (run / "final").rename(run.parent / "moved")  # to another disk
    (run / "final").symlink_to(run.parent / "moved")
    assert [path.name for path in expand_checkpoints([str(run / "final")])] == ["final"]
    other = run.rename(run.parent / "run[1]*")  # the folder that is there is no pattern, and no other run's
    (run.parent / "run1x").mkdir()
    (run.parent / "newest").symlink_to(other / "finetune-50")
    assert expand_checkpoints([str(run.parent / "newest")]) == {run.parent / "newest": 5.0}
    assert len(expand_checkpoints([str(other / "finetune-*"), str(other / "final")])) == len(minutes)


@pytest.mark.parametrize(
    ("total", "minutes"),
    [("24h", 720.0), (2, 60.0), ("2", 60.0), ("90s", 0.75), ("50h", 1440.0)],  # the last: not after the end of the run
)
def test_a_bare_number_is_hours(run: Path, total: Any, minutes: float) -> None:
    (run / "run_report.json").write_text(json.dumps({"recipe": {"total_training_time": total}, "used_seconds": 86400}))
    assert expand_checkpoints([str(run / "finetune-50")]) == {run / "finetune-50": minutes}


def rewrite(**changes: Any) -> Any:
    return lambda run: (run / "run_report.json").write_text(json.dumps({**REPORT, **changes}))


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        ([], None, "checkpoints: none given; add"),
        (["other-*"], None, "other-* fits no folder; give those of a run"),
        (["run_report.json"], None, "has no config.json, it is no model"),
        (["finetune-50"], lambda run: (run / "finetune-50" / "config.json").unlink(), "has no config.json"),
        (["checkpoint-7"], None, "does not say when in its run it was written"),
        (["finetune-50"], lambda run: (run / "run_report.json").unlink(), "run_report.json: missing; only it says"),
        (["finetune-50"], lambda run: (run / "run_report.json").write_text("{"), "run_report.json: cannot be read"),
        (["finetune-50"], lambda run: (run / "run_report.json").write_text("[]"), "run_report.json: holds no object"),
        (["finetune-50"], rewrite(recipe={}), "has no total_training_time; give another run"),
        (
            ["finetune-50"],
            rewrite(recipe={"total_training_time": "soon"}),
            "total_training_time: 'soon' is not a duration",
        ),
        (["final"], rewrite(used_seconds=None), "has used_seconds None; give a finished run"),
        (["final", "../other/final"], None, "are two runs; give the checkpoints of one"),
    ],
)
def test_checkpoints_without_a_time_are_refused(run: Path, names: list[str], change: Any, message: str) -> None:
    for folder in (run / "checkpoint-7", run.parent / "other" / "final"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (run.parent / "other" / "run_report.json").write_text(json.dumps(REPORT))
    if change is not None:
        change(run)
    with pytest.raises(InputError) as caught:
        expand_checkpoints([str(run / name) for name in names])
    assert message in str(caught.value) and "\n" not in str(caught.value)


LATE, EARLY = (Path("run/finetune-50"), 5.0), (Path("run/finetune-5"), 0.5)
EARLY_SUITE = suite_of({"MRPC": "no data"}, SST_2=[0.7, 0.72, 0.71], CoLA=[0.0, 0.1], WNLI=[0.5])


def late(**changes: Any) -> Any:
    return suite_of(**{"SST_2": [0.8, 0.9, 0.82], "CoLA": [0.3, 0.2], "MRPC": [0.8], "WNLI": [0.6], **changes})


def test_lines_and_their_mean_in_three_files(tmp_path: Path) -> None:
    pairs, made = [(LATE, late()), (EARLY, EARLY_SUITE)], []
    files = [tmp_path / f"glue_over_budget.{kind}" for kind in ("json", "md", "png")]
    for order in (pairs, pairs[::-1]):
        report = report_over_budget(order, tmp_path)
        made.append([path.read_bytes() for path in files])
    assert made[0] == made[1] and json.loads(made[0][0]) == report and made[0][2].startswith(b"\x89PNG")
    checkpoints = [(checkpoint["name"], checkpoint["minutes"]) for checkpoint in report["checkpoints"]]
    assert checkpoints == [("finetune-5", 0.5), ("finetune-50", 5.0)]
    assert report["checkpoints"][0]["absent"] == {"MRPC": "no data"}
    assert report["lines"]["SST-2"] == [
        {"median": 0.71, "min": 0.7, "max": 0.72, "seeds": 3},
        {"median": 0.82, "min": 0.8, "max": 0.9, "seeds": 3},
    ]
    assert report["lines"]["MRPC"] == [None, {"median": 0.8, "min": 0.8, "max": 0.8, "seeds": 1}]
    assert report["mean"]["columns"] == ["CoLA", "SST-2"]  # MRPC is missing once, WNLI never counts
    assert report["mean"]["points"] == [
        {"median": 0.38, "min": 0.35, "max": 0.41, "seeds": 2},  # (.05 + .71) / 2, (0 + .7) / 2, (.1 + .72) / 2
        {"median": 0.535, "min": 0.5, "max": 0.6, "seeds": 2},
    ]
    assert report["run"] == "run" and report["metrics"]["SST-2"] == "accuracy" and report["partial"] == []
    for line in (
        "| checkpoint | minutes | mean | CoLA | SST-2 | MRPC | WNLI |",
        "| finetune-5 | 0.5 | 38.0 (35.0 to 41.0) | 5.0 (0.0 to 10.0) | 71.0 (70.0 to 72.0) |  | 50.0 |",
        "- finetune-5: MRPC: no data",
        "Metrics: CoLA Matthews, SST-2 accuracy, MRPC F1, WNLI accuracy.",
    ):
        assert line in made[0][1].decode(), line


def test_what_is_not_scored_alike_is_not_averaged(tmp_path: Path) -> None:
    partly = late(SST_2=result_of("SST-2", [0.8], rows={"dev": 100}))
    report = report_over_budget([(LATE, partly), (EARLY, EARLY_SUITE)], tmp_path)
    assert report["mean"] is None and report["partial"] == ["SST-2"]  # CoLA alone is no mean
    report = report_over_budget([(LATE, suite_of(MRPC=[0.8])), (EARLY, EARLY_SUITE)], tmp_path)
    assert report["mean"] is None
