"""The benchmark of sweeps, without sweeps: what it asks for, and that it finds what is broken."""

import os

import pytest

from benchmarks import sweep, sweep_kills
from benchmarks.sweep_runs import Run, Wanted, log_of, log_spaced
from budget_trainer.core.errors import InputError
from budget_trainer.sweep.report import write_report
from budget_trainer.sweep.spec import _Objective
from tests.sweep.test_report import FULL
from tests.sweep.test_report import sweep as record


def parse(tmp_path, command, *more):
    (tmp_path / "recipe.yaml").write_text("curve: cosine\n")
    return sweep.parse([command, "--recipe", str(tmp_path / "recipe.yaml"), "--data_dir", str(tmp_path), *more])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--range", "1"], "range: '1' is not LOW:HIGH"),
        (["--trials", "0"], "trials: 0 is below 1"),
        (["--time_per_trial", "5"], "time_per_trial: '5' has no unit"),
        (["--fixed", "x"], "fixed: 'x' is not FLAG=VALUE"),
        (["--recipe", "gone.yaml"], "recipe: gone.yaml does not exist"),
    ],
)
def test_refusals(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        parse(tmp_path, "best_rate", *more)


def test_the_sweep_that_is_asked_for(tmp_path):
    flags = ["--parameter", "muon_learning_rate", "--fixed", "seed=3", "--range", "1e-3:1e-1"]
    wanted = sweep.searched(parse(tmp_path, "kills", *flags))
    assert wanted.content["parameters"] == {"muon_learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}}
    assert wanted.content["fixed"] == {"data_dir": str(tmp_path), "seed": "3"}
    assert wanted.content["trials"] == 12 and "total_time" not in wanted.content
    assert log_spaced(1e-4, 1e-2, 3) == [1e-4, 1e-3, 1e-2]
    assert log_spaced(1e-4, 1e-2, 1) == [1e-3]


def test_a_run_is_read_from_its_report(tmp_path):
    write_report(record(*FULL, folder=tmp_path, objective=_Objective()))
    run = Run(tmp_path, 7.0)
    assert run.best()["learning_rate"] == 5e-3 and run.objectives() == [4.8, 5.2, 6.0]
    assert (run.count("pruned"), run.count("time"), run.trial_seconds()) == (3, 1, 340.0)
    assert run.states() == "3 finished, 1 time, 3 pruned, 1 failed" and run.longest_save() == 0.0
    with pytest.raises(InputError, match="left no report"):
        Run(tmp_path / "gone", 1.0).rows  # noqa: B018


def test_what_is_lost_or_run_twice_is_found(tmp_path):
    wanted = Wanted(tmp_path, {})
    report = tmp_path / "trial-0000" / "run_report.json"
    report.parent.mkdir()
    report.write_text("{}")
    states = enumerate([("COMPLETE", 1.0), ("COMPLETE", 2.0), ("RUNNING", None)])
    now = {n: {"state": state, "value": value, "params": {}, "attrs": {}} for n, (state, value) in states}
    broken = {name: [] for name in sweep_kills.PROMISES}
    before = sweep_kills._compare(wanted, {}, now, broken)
    assert list(before) == [0, 1]
    sweep_kills._compare(wanted, before, now, broken)
    assert not any(broken.values())
    os.utime(report, (0, 0))
    sweep_kills._compare(wanted, before, {0: now[0]}, broken)
    assert len(broken["twice"]) == 1 and broken["twice"][0].startswith("trial 0")
    assert broken["lost"] == ["trial 1 was COMPLETE 2.0, is None"]


def test_which_process_ended_which_trial(tmp_path):
    wanted = Wanted(tmp_path / "sweep", {})
    log_of(wanted, "one").write_text(
        "runner: trial 0: rate=1\nrunner: trial 0: finished after 5s\nx trial 2: pruned after 1s: at\n"
    )
    log_of(wanted, "two").write_text("runner: trial 1: failed after 5s: no\n")
    assert sweep_kills.by_process(wanted, ["one", "two"]) == [[0, 2], [1]]
