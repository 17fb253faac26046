"""Sweeps of real trials: kill -9, signals, several processes, failures, pruning."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import optuna
import psutil
import pytest
import yaml

from budget_trainer import sweep
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import NoLocks
from budget_trainer.sweep.command import parse_request
from budget_trainer.sweep.results import SweepRecord
from budget_trainer.sweep.run import run_sweep
from budget_trainer.sweep.study import IDENTITY, open_storage
from tests.conftest import TINY, children, spawn, wait_for
from tests.glue.conftest import glue_dir  # noqa: F401

# Trials that end by steps: they are short on any machine.
STEPS = {**TINY, "lr_schedule": "step", "max_steps": 5, "disable_tqdm": True}


def write(folder, **content):
    """A recipe and a sweep file; returns the words of the command."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content.pop("base", STEPS)))
    content = {"recipe": str(folder / "recipe.yaml"), "time_per_trial": "5m", "total_time": "1h", **content}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**content, "output_dir": str(folder / "out")}))
    return [sys.executable, "sweep.py", str(folder / "sweep.yaml")]


@pytest.fixture
def here(monkeypatch, capsys):
    """sweep.py in this process, which has the heavy imports behind it: (exit code, stderr)."""

    def call(folder):
        monkeypatch.setattr(sweep, "CLOCK", BudgetClock())
        code = sweep.main([str(folder / "sweep.yaml")])
        return code, capsys.readouterr().err

    return call


def record(folder):
    """What the study holds now."""
    spec = parse_request([str(folder / "sweep.yaml")]).spec()
    return SweepRecord.of(spec, optuna.load_study(study_name=spec.job_name, storage=open_storage(spec.storage)), 0.0)


def logs(folder):
    return sorted(path.name for path in (folder / "out").glob("trial-*.log"))


def command_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def running(pid):
    """Whether a trial's script runs below this process."""
    return any("budget_trainer.train_mlm" in command_of(child) for child in children(pid))


def gone(folder):
    """Whether no process works in the folder any more."""
    return not any(str(folder) in command_of(pid) for pid in psutil.pids())


@pytest.mark.timeout(900)
def test_kill_signal_and_two_processes_on_one_journal(data_dir, tmp_path, here):
    """Three points, one of which cannot be trained: each is run once, whatever happens to the processes of the sweep."""
    journal = tmp_path / "out" / "journal.log"
    command = write(
        tmp_path,
        fixed={"data_dir": str(data_dir)},
        parameters={"per_device_train_batch_size": [8, 16, 100000]},  # more than there are blocks
        storage=f"journal:{journal}",
    )
    first = spawn(command)
    wait_for(lambda: first.poll() is not None or running(first.pid))
    first.kill()
    error = first.communicate()[1]
    assert logs(tmp_path) == ["trial-0000.log"], error
    wait_for(lambda: gone(tmp_path / "out"), 60)  # its trial has ended with it
    begun = record(tmp_path).trials
    assert [trial.state for trial in begun] == ["running"]

    second, third = spawn(command), spawn(command)
    wait_for(lambda: third.poll() is not None or running(third.pid))
    third.send_signal(signal.SIGTERM)
    error = third.communicate()[1]
    assert third.returncode == 85 and "SIGTERM; repeat the command to go on" in error, error
    out, error = second.communicate()
    assert second.returncode == 0, error
    assert "begun by a process that has ended" in error

    trials = record(tmp_path).trials
    assert [trial.number for trial in trials] == [0, 1, 2] and trials[0].parameters == begun[0].parameters
    by_size = {trial.parameters["per_device_train_batch_size"]: trial for trial in trials}
    assert set(by_size) == {8, 16, 100000}
    failed = by_size.pop(100000)
    assert failed.state == "failed" and "fewer than one batch" in failed.error
    for trial in by_size.values():
        assert trial.state == "finished" and trial.seconds > 1
        report = json.loads((tmp_path / "out" / trial.folder / "run_report.json").read_text())
        assert trial.objective == report["evaluation"]["bits_per_byte"] and trial.curve[-1] == (1.0, trial.objective)
    best = min(by_size.values(), key=lambda trial: trial.objective)
    kept = [path.parent.name for path in (tmp_path / "out").glob("trial-*/final")]
    assert kept == [best.folder] and f"best: trial {best.number}" in out

    # Again: nothing is left to do. A trial that had finished, but had not been recorded, is taken from the disk.
    before = {trial.number: (tmp_path / "out" / f"{trial.folder}.log").stat().st_mtime_ns for trial in trials}
    journal_lines = journal.read_text().splitlines()
    last = max(at for at, line in enumerate(journal_lines) if '"state":1' in line.replace(" ", ""))
    journal.write_text("".join(f"{line}\n" for line in journal_lines[:last]))  # as kill -9 would have left it
    assert "running" in [trial.state for trial in record(tmp_path).trials]
    assert here(tmp_path)[0] == 0
    again = record(tmp_path).trials
    assert [(t.number, t.state, t.objective) for t in again] == [(t.number, t.state, t.objective) for t in trials]
    assert before == {t.number: (tmp_path / "out" / f"{t.folder}.log").stat().st_mtime_ns for t in again}


def test_halving_ends_the_worse_trial_at_its_share(data_dir, tmp_path, here):
    """The second trial cannot learn: it is compared with the first at the same share of time, and ended."""
    rates = {"learning_rate": ["1e-9", "1e-2"]}  # the larger of two is the middle, which comes first
    search = {"search": "successive_halving", "prune_at": [0.6], "time_per_trial": "34s"}  # above any set-up's share
    base = {**TINY, "disable_tqdm": True}
    write(tmp_path, base=base, fixed={"data_dir": str(data_dir)}, parameters=rates, **search)
    code, error = here(tmp_path)
    assert code == 0, error
    best, worse = record(tmp_path).trials
    assert (best.state, worse.state) == ("finished", "pruned"), error
    assert (tmp_path / "out" / best.folder / "final").exists() and (tmp_path / "out" / f"{worse.folder}.log").exists()
    assert worse.objective is None and worse.seconds < 34 and worse.parameters == {"learning_rate": 1e-9}
    assert 0.6 <= best.curve[0][0] < 0.9 and 0.6 <= worse.curve[0][0] < 0.9 and best.curve[0][1] < worse.curve[0][1]
    folder = tmp_path / "out" / worse.folder
    assert (folder / "progress.jsonl").exists() and not [path for path in folder.iterdir() if path.is_dir()]
    assert not (folder / ".room-for-final").exists() and gone(tmp_path / "out")
    table = (tmp_path / "out" / "sweep_report.csv").read_text()
    assert "trial-0001" in table and "pruned" in table


def test_a_glue_score_is_an_objective(data_dir, glue_dir, tmp_path, here):  # noqa: F811
    flags = {"glue_dir": str(glue_dir), "max_seq_length": "32", "num_train_epochs": "1"}
    objective = {"glue": "CoLA", **flags}
    write(tmp_path, fixed={"data_dir": str(data_dir)}, parameters={"seed": [1, 2]}, objective=objective, trials=1)
    code, error = here(tmp_path)
    assert code == 0, error
    found = record(tmp_path)
    (trial,) = found.trials
    result = json.loads((tmp_path / "out" / trial.folder / "glue" / "result.json").read_text())
    objective = found.spec.objective
    assert (objective.direction, objective.name, trial.state) == ("maximize", "glue: CoLA", "finished")
    assert trial.objective == result["headline"]["value"]
    (tmp_path / "sweep.yaml").write_text((tmp_path / "sweep.yaml").read_text().replace("num_train", "num_trian"))
    code, error = here(tmp_path)
    assert code == 2 and error.startswith("error: num_trian_epochs: "), error


def test_the_score_of_a_suite_is_an_objective(data_dir, glue_dir, tmp_path, here):  # noqa: F811
    (tmp_path / "grid.yaml").write_text("seeds: [3]\nflags: {max_seq_length: 32, num_train_epochs: 1}\n")
    objective = {"glue": "rte", "glue_dir": [str(tmp_path), str(glue_dir)], "grid": str(tmp_path / "grid.yaml")}
    write(tmp_path, fixed={"data_dir": str(data_dir)}, parameters={"seed": [1, 2]}, objective=objective, trials=1)
    code, error = here(tmp_path)
    assert code == 0, error
    found = record(tmp_path)
    (trial,) = found.trials
    runs = json.loads((tmp_path / "out" / trial.folder / "glue" / "glue_runs.json").read_text())["tasks"]
    assert runs["RTE"]["configurations"][0]["runs"][0]["seed"] == 3
    assert trial.objective == runs["RTE"]["headline"]["median"]
    (tmp_path / "grid.yaml").write_text("seeds: [4]\n")
    code, error = here(tmp_path)
    assert code == 2 and "grid" in error, error
    (tmp_path / "sweep.yaml").write_text((tmp_path / "sweep.yaml").read_text().replace("glue: rte", "glue: RTE,QNLI"))
    code, error = here(tmp_path)
    assert code == 2 and error.startswith("error: objective: QNLI gives no score (do_train: QNLI has no data"), error


def test_when_all_fail_in_the_same_way_the_sweep_says_so(data_dir, tmp_path, here):
    broken, fixed = tmp_path / "broken.yaml", {"data_dir": str(data_dir)}
    broken.write_text("distributed_type: NONSENSE\nuse_cpu: true\nnum_processes: 1\n")
    write(tmp_path, fixed=fixed, parameters={"seed": [1, 2, 3, 4, 5]}, accelerate_config=str(broken))
    code, error = here(tmp_path)
    assert code == 1 and error.splitlines()[-1].startswith("error: trials: the first 3 all failed"), error
    assert [trial.state for trial in record(tmp_path).trials] == ["failed"] * 3

    # Another sweep is not mixed with it; more time or trials are the same one.
    content = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    for change, message in (
        ({"parameters": {"seed": [1, 6]}}, "parameters: "),
        ({"fixed": {**fixed, "curve": "wsd"}}, "fixed: "),
        ({"storage": f"journal:{tmp_path / 'out' / 'other.log'}"}, "storage: "),
    ):
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**content, **change}))
        code, error = here(tmp_path)
        assert code == 2 and error.startswith(f"error: {message}") and "was begun with" in error, error
        assert error.count("\n") == 1 and not (tmp_path / "out" / "other.log").exists()


def test_total_time_ends_what_cannot_be_finished(data_dir, tmp_path, monkeypatch):
    """A trial runs when the time is over: it is ended and says so; none begins behind it, also in the next process.

    A sweep that is refused for want of locks leaves no folder.
    """
    base = {**TINY, "disable_tqdm": True}
    write(tmp_path, fixed={"data_dir": str(data_dir)}, parameters={"seed": [1, 2]}, base=base)
    spec = parse_request([str(tmp_path / "sweep.yaml")]).spec()
    with monkeypatch.context() as patched, pytest.raises(NoLocks, match=r"^storage: .* has no locks"):
        patched.setattr("fcntl.flock", lambda *of: os.close(-1))
        run_sweep(spec, BudgetClock(), StopRequest())
    assert not (tmp_path / "out").exists()
    late = [0.0]
    clock = BudgetClock(time_fn=lambda: time.monotonic() + late[0])

    def jump():
        wait_for(lambda: running(os.getpid()))
        late[0] = 3600.0

    jumper = threading.Thread(target=jump)
    jumper.start()
    assert run_sweep(spec, clock, StopRequest()) == 1  # nothing has finished
    jumper.join()
    (trial,) = record(tmp_path).trials
    assert trial.state == "time" and trial.objective is None and gone(tmp_path / "out")
    assert run_sweep(spec, BudgetClock(), StopRequest()) == 1  # what was used is kept
    assert record(tmp_path).trials == (trial,)


@pytest.mark.parametrize("kind", ["sqlite:///{}/study.db", "journal:{}/journal.log"])
def test_a_study_of_somebody_else_is_refused(data_dir, tmp_path, here, kind):
    storage = kind.format(tmp_path)
    study = optuna.create_study(storage=open_storage(storage), study_name="sweep")
    study.ask()
    write(tmp_path, fixed={"data_dir": str(data_dir)}, parameters={"seed": [1, 2]}, storage=storage)
    code, error = here(tmp_path)
    assert code == 2 and "holds another sweep" in error and error.count("\n") == 1
    assert IDENTITY not in study.user_attrs and not (tmp_path / "out" / "sweep.json").exists()
