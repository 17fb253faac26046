"""Which trials a process of a sweep takes, when it gives up, and a storage that a crash has left half written."""

from types import SimpleNamespace

import optuna
import pytest

from budget_trainer.core.errors import RunError
from budget_trainer.sweep.runner import ENDED, PLACE, Runner
from budget_trainer.sweep.study import open_storage
from budget_trainer.sweep.trials import TrialLock


def runner_of(folder, study=None, **trials):
    """A runner of the study with these trials under way: name and whether it has made a step."""
    (folder / "locks").mkdir()
    runner = Runner.__new__(Runner)
    objective = SimpleNamespace(task=None)
    runner.spec = SimpleNamespace(output_dir=folder, storage=f"sqlite:///{folder}/study.db", objective=objective)
    runner._seconds_left = lambda: 0.0  # total_time is over
    runner.study, runner._place, runner._failures = study or optuna.create_study(), "here", []
    runner._running = {
        name: SimpleNamespace(run=SimpleNamespace(has_stepped=lambda stepped=stepped: stepped))
        for name, stepped in trials.items()
    }
    return runner


def begun(study):
    """A trial of this place whose process is gone."""
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
    trial.set_user_attr(PLACE, "here")
    return trial, study.get_trials()[-1]


def test_a_trial_that_lost_its_process_is_taken_where_it_can_be_ended(tmp_path):
    study = optuna.create_study()
    runner, (trial, frozen) = runner_of(tmp_path, study), begun(study)
    assert runner._orphan(frozen, fits=False) is None  # its training would be cut: it waits for more time
    lock = runner._orphan(frozen, fits=True)
    assert lock is not None and runner._orphan(frozen, fits=True) is None  # one takes it
    lock.release()
    folder = tmp_path / "trial-0000"
    folder.mkdir()
    (folder / "run_report.json").write_text('{"evaluation": {"loss": 2.0}}')
    lock = runner._orphan(frozen, fits=False)  # only the word is missing
    assert lock is not None
    lock.release()
    runner.spec.objective.task = "CoLA"  # ... and a fine-tuning, for which there is time or not
    assert runner._orphan(frozen, fits=False) is None
    runner._seconds_left = lambda: 1.0
    lock = runner._orphan(frozen, fits=False)
    assert lock is not None
    lock.release()
    (folder / "run_report.json").unlink()
    assert runner._orphan(frozen, fits=False) is None
    trial.set_user_attr(ENDED, "pruned")
    assert runner._orphan(study.get_trials()[-1], fits=False) is not None


def test_a_trial_that_ends_between_two_looks_is_nobodys(tmp_path):
    study = optuna.create_study()
    runner, (trial, frozen) = runner_of(tmp_path, study), begun(study)
    study.tell(trial, 1.0)
    assert runner._orphan(frozen, fits=True) is None and TrialLock(tmp_path, 0).take()


def failures(runner, *errors):
    for error in errors:
        runner._judge_failure(error)


def test_the_same_failure_of_the_first_ones_ends_a_sweep(tmp_path):
    failures(runner_of(tmp_path), "rank 0: no", "rank 1: no")
    (tmp_path / "b").mkdir()
    with pytest.raises(RunError, match="the first 3 all failed in the same way"):
        failures(runner_of(tmp_path / "b"), "rank 0: no", "rank 1: no", "rank 2: no")
    (tmp_path / "c").mkdir()
    failures(runner_of(tmp_path / "c"), "rank 0: no", "rank 1: no", "other")


def test_trials_beside_the_failing_ones_are_not_lost(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    failures(runner_of(tmp_path / "a", one=True, two=False), *["no memory"] * 9)  # one trains
    runner = runner_of(tmp_path / "b", one=False, two=False)
    failures(runner, *["no memory"] * 4)  # they may yet
    with pytest.raises(RunError):
        failures(runner, "no memory")


def test_the_same_failure_behind_the_trainings_ends_a_sweep_too(tmp_path):
    runner = runner_of(tmp_path, one=True)
    runner._judge_failure("CoLA: no memory", scoring=True)
    runner._judge_failure("CoLA: no memory", scoring=True)
    with pytest.raises(RunError, match="the first 3 all failed"):
        runner._judge_failure("CoLA: no memory", scoring=True)


def test_a_journal_named_from_here_survives_a_killed_writer(tmp_path, monkeypatch):
    """Optuna's lock is a link to the file as it was named, and whoever waits for a dead holder's looks behind it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    optuna.create_study(storage=open_storage("journal:out/s.log"), study_name="s")
    (link,) = _links_while_locked("out/s.log", tmp_path / "out")
    assert link.is_absolute() and link.exists()


def _links_while_locked(name, folder):
    storage = open_storage(f"journal:{name}")
    lock = storage._backend._lock
    lock.acquire()
    try:
        return [path.readlink() for path in folder.iterdir() if path.is_symlink()]
    finally:
        lock.release()


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "wor', b"x" * 200_000])
def test_half_a_record_of_a_journal_is_taken_away(tmp_path, torn):
    url = f"journal:{tmp_path / 'study.log'}"
    study = optuna.create_study(storage=open_storage(url), study_name="s")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    whole = (tmp_path / "study.log").read_bytes()
    with (tmp_path / "study.log").open("ab") as file:
        file.write(torn)
    study = optuna.load_study(storage=open_storage(url), study_name="s")
    assert (tmp_path / "study.log").read_bytes() == whole
    study.add_trial(optuna.trial.create_trial(value=0.5))
    assert [t.value for t in optuna.load_study(storage=open_storage(url), study_name="s").trials] == [1.0, 0.5]
