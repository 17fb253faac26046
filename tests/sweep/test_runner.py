"""Which trials a process of a sweep takes, when it gives up, and a storage that a crash has left half written.

The trials are small commands in the place of trainings.
"""

import json
import sqlite3
import sys
from contextlib import ExitStack, closing

import optuna
import pytest

from budget_trainer.budget.clock import PHASES, BudgetClock
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import try_lock
from budget_trainer.sweep import runner
from budget_trainer.sweep.run import _keep_clock, _place
from budget_trainer.sweep.runner import ENDED, PLACE, Runner
from budget_trainer.sweep.spec import SweepSpec, _Objective
from budget_trainer.sweep.study import SweepStudy, open_storage, shown, storage_errors, storage_file
from budget_trainer.sweep.trials import SECONDS

# What a trial does, by its seed; `{}` are its folder and the sweep's.
EVALUATED = """import json, os; os.makedirs({0!r} + "/final", exist_ok=True)
json.dump({{"evaluation": {{"bits_per_byte": 2.0}}, "used_seconds": 9}}, open({0!r} + "/run_report.json", "w"))"""
STEPPED = """import json, os; os.makedirs({0!r}, exist_ok=True)
line = {{"share": 0.5, "evaluation": {{"bits_per_byte": %s}}}}
print(json.dumps(line), file=open({0!r} + "/progress.jsonl", "w"), flush=True)"""
FAILS = "import os; print('error: rank %d: no memory' % os.getpid()); raise SystemExit(1)"
SLEEPS = "import time; time.sleep(60)"
WAITS = "import os, time\nwhile not os.path.exists({1!r} + '/trial-0005.log'): time.sleep(0.05)\ntime.sleep(0.3)"
SCORED = """import json
json.dump({{"format": 1, "predictions": {{}}, "headline": {{"value": 0.5}}}}, open({0!r} + "/result.json", "w"))"""


def trial_lock(folder, number):
    return try_lock(folder / "locks" / f"trial-{number:04d}")


ALL_FAIL = dict.fromkeys(range(6), FAILS)
EVALUATION, GLUE = _Objective(), _Objective(task="CoLA")


class Sweep:
    """A sweep over six seeds; `does` has the code of each, `score` that of the fine-tuning."""

    def __init__(self, folder, does=None, slots=1, seconds=1e6, score=SCORED, objective=EVALUATION, **changes):
        self.folder, self.does, self.score, self.started, self.words = folder, dict(does or {}), score, [], []
        values = {
            "job_name": "s",
            "parameters": {"seed": optuna.distributions.CategoricalDistribution(range(6))},
            "objective": objective,
            "total_time": 1e6,
            "time_per_trial": 300.0,
            "output_dir": folder,
            "storage": f"sqlite:///{folder}/study.db",
        }
        self.spec = SweepSpec(**{**values, **changes})
        self.study = SweepStudy(self.spec, optuna.storages.InMemoryStorage(), {})
        clock = BudgetClock(seconds + 4.9)  # 5 seconds are kept for the sweep's own end
        self.runner = Runner(self.study, clock, StopRequest(), [None] * slots, "here", self.launch)

    def launch(self, module, words):
        script = module.removeprefix("budget_trainer.")
        self.started.append(script)
        self.words.append(words)
        if script == "finetune_glue":
            code, out = self.score, words[words.index("--output_dir") + 1]
        else:
            flags = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
            code, out = self.does.get(int(flags["seed"]), EVALUATED), flags["output_dir"]
        return [sys.executable, "-S", "-c", code.format(out, str(self.folder))]

    def states(self):
        return [trial.state.name for trial in self.study.get_trials()]

    def lost(self, place="here"):
        """A trial whose process is gone."""
        trial = self.study.ask(self.spec.parameters)
        trial.set_user_attr(PLACE, place)
        return trial


@pytest.mark.parametrize(
    ("objective", "seconds", "evaluated", "ended", "place", "state", "started"),
    [
        (EVALUATION, 60, False, None, "here", "RUNNING", []),  # its training would be cut: it waits for more time
        (EVALUATION, 1e6, False, None, "here", "COMPLETE", ["train_mlm"]),
        (EVALUATION, 1e6, False, None, "elsewhere", "RUNNING", []),
        (EVALUATION, 0, True, None, "here", "COMPLETE", []),  # only the word is missing
        (GLUE, 0, True, None, "here", "RUNNING", []),  # ... and a fine-tuning, for which there is time or not
        (GLUE, 60, True, None, "here", "COMPLETE", ["finetune_glue"]),
        (GLUE, 60, False, None, "here", "RUNNING", []),
        (GLUE, 0, False, "pruned", "here", "PRUNED", []),
        (EVALUATION, 0, False, "failed", "here", "FAIL", []),
    ],
)
def test_a_trial_that_lost_its_process_is_taken_where_it_can_be_ended(
    tmp_path, objective, seconds, evaluated, ended, place, state, started
):
    sweep = Sweep(tmp_path, seconds=seconds, objective=objective, trials=1)
    trial = sweep.lost(place)
    if ended is not None:
        trial.set_user_attr(ENDED, ended)
    if evaluated:
        exec(EVALUATED.format(str(tmp_path / "trial-0000"), ""))
    sweep.runner.work()
    assert sweep.states() == [state] and sweep.started == started
    assert trial_lock(tmp_path, 0)


@pytest.mark.parametrize(("rte", "state", "value"), [("{{'median': 0.6}}", "COMPLETE", 0.5), ("None", "FAIL", None)])
def test_of_several_tasks_the_mean_is_the_objective(tmp_path, rte, state, value):
    """A suite in which some run failed ends with code 1, and has a score where every task has one."""
    runs = (
        f"{{{{'tasks': {{{{'CoLA': {{{{'headline': {{{{'median': 0.4}}}}}}}}, 'RTE': {{{{'headline': {rte}}}}}}}}}}}}}"
    )
    score = f"import json\njson.dump({runs}, open({{0!r}} + '/glue_runs.json', 'w'))\nraise SystemExit(1)"
    objective = _Objective(task="CoLA,RTE", glue_flags={"seeds": "1,2", "glue_dir": ["a", "b"]})
    sweep = Sweep(tmp_path, objective=objective, score=score, trials=1)
    sweep.runner.work()
    (trial,) = sweep.study.get_trials()
    assert (trial.state.name, trial.value) == (state, value if value is None else pytest.approx(value))
    assert sweep.words[1][-3:] == ["--seeds=1,2", "--glue_dir=a", "b"]


@pytest.mark.parametrize("objective", [EVALUATION, GLUE])
def test_what_is_no_number_has_failed(tmp_path, objective):
    does = EVALUATED if objective is GLUE else EVALUATED.replace("2.0", "float('nan')")
    score = SCORED.replace("0.5", "None")  # as finetune_glue.py writes a NaN
    sweep = Sweep(tmp_path, dict.fromkeys(range(6), does), objective=objective, score=score, trials=1)
    sweep.runner.work()
    assert sweep.states() == ["FAIL"]


def test_a_trial_that_another_process_works_on_is_left_alone(tmp_path):
    sweep = Sweep(tmp_path, trials=1)
    sweep.lost()
    lock = trial_lock(tmp_path, 0)
    sweep.runner.work()
    assert sweep.states() == ["RUNNING"] and not sweep.started
    lock.release()


def test_a_number_that_an_earlier_sweep_still_trains_is_not_given_again(tmp_path):
    sweep = Sweep(tmp_path, trials=1)
    with trial_lock(tmp_path, 0), pytest.raises(RunError, match="still runs trial 0; end it, then repeat the command"):
        sweep.runner.work()
    sweep.runner.work()
    assert sweep.started == ["train_mlm"]


@pytest.mark.parametrize("damage", ["", "{", "\0" * 50])
def test_a_damaged_clock_is_that_of_the_others_or_of_the_trials(tmp_path, damage):
    sweep = Sweep(tmp_path, trials=2)
    for place, seconds in (("here", 30.0), ("here", 10.0), ("elsewhere", 90.0)):
        sweep.lost(place).set_user_attr(SECONDS, seconds)
    for whole in (True, False):
        (tmp_path / "clock-0.json").write_text(damage)
        (tmp_path / "clock-1.json").write_text(json.dumps({"shares": dict.fromkeys(PHASES, 3.0)}) if whole else damage)
        clock = BudgetClock(time_fn=lambda: 0.0)
        with ExitStack() as at_exit:
            _keep_clock(sweep.study, "here", 2, clock, at_exit)
        assert clock.elapsed_seconds() == (3.0 * len(PHASES) if whole else 20.0)


@pytest.mark.parametrize("damage", ["", "[]", "{}", "\0" * 50])
def test_a_damaged_mark_of_the_folder_is_that_of_its_trials(tmp_path, damage):
    sweep = Sweep(tmp_path)
    sweep.lost("gone")  # of another folder
    assert _place(sweep.spec, {}, sweep.study) == (mine := _place(sweep.spec, {}))
    trial = sweep.lost(mine)
    (tmp_path / "sweep.json").write_text(damage)
    with pytest.raises(InputError, match=r"sweep\.json is damaged; give another folder"):
        _place(sweep.spec, {}, sweep.study)
    sweep.spec.folder(trial.number).mkdir()
    assert _place(sweep.spec, {}) == "" and _place(sweep.spec, {}, sweep.study) == mine == _place(sweep.spec, {})


def test_a_trial_whose_run_json_is_damaged_goes_on(tmp_path):
    sweep = Sweep(tmp_path, trials=1)
    sweep.lost()
    (tmp_path / "trial-0000" / "final").mkdir(parents=True)
    (tmp_path / "trial-0000" / "run.json").touch()
    sweep.runner.work()
    assert sweep.states() == ["COMPLETE"] and sweep.words[0][-2:] == ["--resume_from_checkpoint", "auto"]


def test_a_trial_that_ends_between_two_looks_is_nobodys(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path, trials=1)
    trial = sweep.lost()
    looks, now = [sweep.study.get_trials()], sweep.study.get_trials
    monkeypatch.setattr(sweep.study, "get_trials", lambda **given: looks.pop() if looks else now(**given))
    sweep.study.tell(trial, 1.0)
    sweep.runner.work()
    assert sweep.states() == ["COMPLETE"] and not sweep.started and trial_lock(tmp_path, 0)


@pytest.mark.parametrize(
    ("does", "slots", "changes", "failed"),
    [
        ({}, 1, {}, 0),
        (ALL_FAIL, 1, {"trials": 2}, None),  # too few to judge by
        (ALL_FAIL, 1, {}, 3),
        ({**ALL_FAIL, "first": "print('error: something else'); raise SystemExit(1)"}, 1, {}, None),
        ({**ALL_FAIL, "first": STEPPED % 2.0 + "\n" + WAITS}, 2, {}, None),  # one trains
        ({**ALL_FAIL, "first": SLEEPS}, 2, {}, 4),  # one may yet
        ({}, 2, {"score": FAILS, "objective": GLUE}, 3),  # behind the trainings
    ],
)
def test_the_same_failure_of_the_first_ones_ends_a_sweep(tmp_path, monkeypatch, does, slots, changes, failed):
    monkeypatch.setattr(runner, "_IDLE_SECONDS", 0.05)
    sweep = Sweep(tmp_path, does, slots, **changes)
    # The first point of the shuffled grid.
    first = SweepStudy(sweep.spec, optuna.storages.InMemoryStorage(), {}).propose().params["seed"]
    sweep.does[first] = does.get("first", sweep.does.get(first, EVALUATED))
    if failed:
        with pytest.raises(RunError, match=f"the first {failed} all failed in the same way"):
            sweep.runner.work()
    else:
        sweep.runner.work()
        assert len(sweep.started) == (sweep.spec.limit or 0)
    assert all(trial_lock(tmp_path, number) for number in range(len(sweep.states())))


def test_a_journal_named_from_here_survives_a_killed_writer(tmp_path, monkeypatch):
    """Optuna's lock is a link to the file as it was named, and whoever waits for a dead holder's looks behind it."""
    monkeypatch.chdir(tmp_path)
    lock = open_storage("journal:s.log")._backend._lock
    lock.acquire()
    (link,) = [path.readlink() for path in tmp_path.iterdir() if path.is_symlink()]
    lock.release()
    assert link.is_absolute() and link.exists()


@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
def test_the_path_of_a_storage_is_taken_as_it_is(tmp_path, monkeypatch, scheme):
    names = ["a?b #c", "a?b%20{d}", "file:x:1@y?mode=memory"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        (tmp_path / name).mkdir()
        url = f"{scheme}{tmp_path / name / 's'}" if names.index(name) % 2 else f"{scheme}{name}/s"
        assert storage_file(url).absolute() == tmp_path / name / "s" and shown(url) == url
        study = optuna.create_study(storage=open_storage(url), study_name="s")  # one that is there would be an error
        study.add_trial(optuna.trial.create_trial(value=1.0))
        assert len(optuna.load_study(storage=open_storage(url), study_name="s").trials) == 1
    assert {path.name for path in tmp_path.iterdir()} == {*names}
    assert all([path.name for path in (tmp_path / name).iterdir()] == ["s"] for name in names)


@pytest.mark.parametrize("begun", [False, True])
def test_a_study_that_another_process_holds_is_called_that(tmp_path, monkeypatch, begun):
    monkeypatch.setattr("budget_trainer.sweep.study._BUSY_SECONDS", 0.05)
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=open_storage(url))
    with closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError) as failed, storage_errors(url):
            study.ask() if begun else open_storage(url)
    held = "is held by another process for more than 0.05 s; end that one, then repeat the command"
    assert str(failed.value) == f"storage: {url} {held}"


def test_passwords_of_servers_stay_unsaid():
    assert shown("postgresql://me:se@cret@host/db?x=a:b") == "postgresql://me:***@host/db?x=a:b"


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
