"""A finished run is given more time: what it keeps for that, from where it goes on, and what a kill leaves at any moment."""

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from budget_trainer.budget.callback import STATE_KEY, TimeBudgetCallback
from budget_trainer.budget.channel import ControlChannel
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder
from budget_trainer.training.growth import Growth, check_room, find_growth
from budget_trainer.training.run import PretrainingRun
from budget_trainer.training.run_folder import GROWING, RunFolder, publish, step_of
from budget_trainer.training.saving import SavingTrainer
from tests.conftest import TINY, losses, report, spawn, train, wait_for, words
from tests.training.test_trainer import Tick, parts

IDENTITY = {"seed": 1}


def write_checkpoint(folder, step, used):
    """A complete checkpoint of `step`, when `used` seconds were used."""
    staging = fresh_folder(folder / "staging")
    kept = {STATE_KEY: {"shares": {"train": used - 3.0, "save": 3.0}, "begin_seconds": 5.0}}
    (staging / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": kept}))
    publish(staging, folder / f"checkpoint-{step}", {"step": step, "identity": IDENTITY})


def finish(folder, budget, used, job):
    """As a run leaves `folder` that has ended at its budget of `budget` seconds."""
    for name in ("final", "finetune-50", "finetune-90"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "model.safetensors").write_text(f"{name} of {budget}")
    (folder / "run_report.json").write_text(json.dumps({"budget_seconds": budget}))
    (folder / "run_report.png").write_text("picture")
    shares = dict.fromkeys(("setup", "compile", "data_wait", "evaluate"), 0.0) | {"train": used - 6.0, "save": 6.0}
    (folder / "clock.json").write_text(json.dumps({"shares": shares}))
    run = {"job": job, "state": "finished", "identity": IDENTITY}
    growth = RunFolder(folder).growth() if (folder / "run.json").exists() else {}
    (folder / "run.json").write_text(json.dumps(run | ({"growth": growth} if growth else {})))


@pytest.fixture
def left(tmp_path):
    """A run that is finished at 100 s, and kept a checkpoint on the way and one of its end."""
    folder = tmp_path / "out"
    folder.mkdir()
    for step, used in ((8, 50.0), (14, 98.0)):
        write_checkpoint(folder, step, used)
    finish(folder, 100.0, 99.0, 1)
    return RunFolder(folder)


def recipe_of(folder, total="160s", **flags):
    options = {"data_dir": "d", "output_dir": folder.path, "total_training_time": total, "curve": "wsd"}
    return parse_recipe(words({**options, "resume_from_checkpoint": "auto", **flags}))


def grown(folder, *, resume="auto", **flags):
    return find_growth(folder, resume, folder.find_checkpoint(resume), recipe_of(folder, **flags))


def accept(folder, growth):
    """What a run does with its folder when nothing can be refused any more."""
    with ExitStack() as at_exit:
        run = SimpleNamespace(
            growth=growth, is_main_process=True, _claimed=False, folder=folder, identity=IDENTITY, job=2
        )
        run.at_exit, run.output_dir, run.checkpoint, run.channel = at_exit, folder.path, "checkpoint", ControlChannel()
        run.clock, run.energy = BudgetClock(time_fn=lambda: 0.0), SimpleNamespace(record=dict)
        folder.restore_clock(run.clock, folder.newest_checkpoint())
        PretrainingRun.claim_folder(run)


def content(folder):
    """Every file of a run's folder but its state, by name."""
    files = [path for path in folder.path.rglob("*") if path.is_file() and path.name not in ("run.json", "clock.json")]
    return {str(path.relative_to(folder.path)): path.read_text() for path in files}


def test_it_goes_on_from_its_end_and_all_time_is_charged(left):
    end = left.path / "checkpoint-14"
    assert left.find_checkpoint("auto") == left.find_checkpoint(str(end)) == end
    before = content(left)
    assert grown(left) == Growth(("1m40s",), 99.0, pending=True) and content(left) == before, "it only looks"
    clock = BudgetClock(time_fn=lambda: 0.0)
    assert left.restore_clock(clock, left.find_checkpoint("auto")) == 2 and clock.elapsed_seconds() == 99


def test_what_the_first_budget_has_made_keeps_its_name(left):
    before = content(left)
    accept(left, grown(left))
    after = content(left)
    for old, new in (
        ("final", "final-1m40s"),
        ("finetune-50", "1m40s-finetune-50"),
        ("finetune-90", "1m40s-finetune-90"),
    ):
        assert (
            after[f"{new}/model.safetensors"] == before[f"{old}/model.safetensors"] and not (left.path / old).exists()
        )
    assert json.loads(after["run_report-1m40s.json"]) == {"budget_seconds": 100.0} and after["run_report-1m40s.png"]
    assert [step_of(folder) for folder in left.checkpoints()] == [8, 14]
    assert not left.is_growing and RunFolder(left.path).find_checkpoint("auto").name == "checkpoint-14"
    assert grown(RunFolder(left.path)) == Growth(["1m40s"], 99.0)


REFUSED = [
    (
        {"total": "100s"},
        "total_training_time: 1m40s, but the run in .* is finished at 1m40s; give more to go on from .*checkpoint-14, or",
    ),
    ({"total": "50s"}, "total_training_time: 50s, but the run in "),
    ({"early_exit_time_marker": "99.5s"}, "early_exit_time_marker: 1m40s, but the run in "),
    (
        {"lr_schedule": "step", "max_steps": 99},
        "lr_schedule: step follows steps, and the run in .* is finished at 1m40s; ",
    ),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_what_is_refused_in_a_line_and_loses_nothing(left, flags, message):
    before = content(left)
    with pytest.raises(InputError, match=message):
        grown(left, **flags)
    assert content(left) == before and json.loads((left.path / "run.json").read_text())["state"] == "finished"


def test_set_up_counts_before_anything_is_renamed(left):
    growth, recipe = grown(left), recipe_of(left)
    check_room(growth, 157.0, 2.0, recipe)
    told = "^total_training_time: 2m40s, but 1m40s and the set-up of this job, 59s, leave no time to train; give more than 2m4"
    with pytest.raises(InputError, match=told):
        check_room(growth, 158.0, 2.0, recipe)


def test_names_that_are_taken(left):
    (left.path / "final-1m40s").mkdir()
    with pytest.raises(InputError, match="output_dir: .*final-1m40s is there already"):
        grown(left)


@pytest.mark.parametrize("resume", [None, "auto", "checkpoint-8"])
def test_without_its_checkpoint_a_finished_run_is_refused(left, resume):
    if resume != "checkpoint-8":  # else an older one is asked for
        for folder in left.checkpoints():
            shutil.rmtree(folder)
    asked = str(left.path / resume) if resume == "checkpoint-8" else resume
    with pytest.raises(InputError, match=r"already has final/; give another folder, or ") as told:
        left.find_checkpoint(asked)
    assert ("--model_name_or_path" in str(told.value)) == (resume is not None)


def test_a_run_that_kept_checkpoints_on_the_way_goes_on_from_the_newest(left):
    shutil.rmtree(left.path / "checkpoint-14")
    assert left.find_checkpoint("auto").name == "checkpoint-8" and grown(left).began == 99, "what is lost is charged"


def test_a_model_that_was_moved_away_is_made_again(left):
    (left.path / "final").rename(left.path / "mine")
    assert grown(left, total="50s") == Growth() and left.find_checkpoint(str(left.path / "checkpoint-8"))


def test_an_unfinished_run_goes_on_from_its_newest_checkpoint(left):
    shutil.rmtree(left.path / "final")
    (left.path / "run.json").write_text(json.dumps({"job": 1, "state": "training", "identity": IDENTITY}))
    assert left.find_checkpoint("auto").name == "checkpoint-14"
    assert grown(left) == Growth() and grown(left, total="50s") == Growth()


def test_killed_at_any_moment_the_growth_is_made_up_for(left, tmp_path, monkeypatch):
    whole = RunFolder(tmp_path / "whole")
    shutil.copytree(left.path, whole.path)
    accept(whole, grown(whole))
    rename, kills = Path.rename, 0
    while True:
        folder = RunFolder(tmp_path / f"killed-{kills}")
        shutil.copytree(left.path, folder.path)
        done = []

        def killed(path, target, done=done, kills=kills):
            if path.name.startswith(("final", "finetune", "run_report")):
                if len(done) == kills:
                    raise KeyboardInterrupt
                done.append(path)
            return rename(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", killed)
            try:
                accept(folder, grown(folder))
                break
            except KeyboardInterrupt:
                pass
        next_job = RunFolder(folder.path)  # nothing is remembered
        assert next_job.is_growing and next_job.find_checkpoint("auto").name == "checkpoint-14"
        with pytest.raises(InputError, match="checkpoint-14 is where it goes on; give auto"):
            next_job.find_checkpoint(str(folder.path / "checkpoint-8"))
        with pytest.raises(InputError, match="give another folder"):
            next_job.find_checkpoint(None)
        with pytest.raises(InputError, match="1m39s is no more than the 1m40s that the run"):
            grown(next_job, total="99s")
        accept(next_job, grown(next_job))
        assert content(next_job) == content(whole) and next_job.growth() == whole.growth()
        assert not list(folder.path.glob(".partial*"))
        kills += 1
    assert kills == 5, "final, two time-marked models, report, picture"


def test_a_grown_run_is_not_ended_by_the_budget_that_it_had(left):
    accept(left, grown(left))
    with pytest.raises(
        InputError, match=r"^total_training_time: 1m39s is no more than .*; give more, or use final-1m40s/"
    ):
        grown(left, total="99s")
    assert grown(left, total="120s").began == 99, "it may get less than it was given at first"


def test_a_budget_grows_twice(left):
    accept(left, grown(left))
    write_checkpoint(left.path, 30, 158.0)
    finish(left.path, 160.0, 159.0, 2)
    with pytest.raises(InputError, match="is finished at 2m40s; give more to go on from .*checkpoint-30"):
        grown(left, total="160s")
    second = grown(left, total="200s")
    assert list(second.budgets) == ["1m40s", "2m40s"] and second.began == 159
    accept(left, second)
    assert {path.name for path in left.path.glob("final*")} == {"final-1m40s", "final-2m40s"}


def test_a_deadline_leaves_what_is_used_and_what_is_left(open_run, monkeypatch):
    run = open_run(total_training_time="None", deadline="2100-12-24T08:00Z")
    run.clock.restore({"train": 1000.0})
    monkeypatch.setattr("budget_trainer.training.run.seconds_until", lambda moment: 600.0)
    run._find_end()
    assert 1600 <= run.recipe.total_seconds == run.clock.total_seconds <= 1600 + run.clock.job_seconds()
    monkeypatch.setattr("budget_trainer.training.run.seconds_until", lambda moment: -1.0)
    run.checkpoint = Path("checkpoint-9")
    run._find_end()
    assert 1000 <= run.recipe.total_seconds <= 1000 + run.clock.job_seconds(), "nothing left: it becomes final/"
    run.checkpoint = None
    with pytest.raises(InputError, match="^deadline: 2100-12-24T08:00Z is over, it was 1s ago; give a later one"):
        run._find_end()


def trained(folder, total, *, used=0.0, resume=None):
    """Steps of a second on a fake clock, in a Trainer that writes a real checkpoint of its end; the rates of its steps."""
    tick = Tick()
    clock = BudgetClock(total, time_fn=lambda: tick.now)
    clock.restore({"train": used})
    given = {**parts(folder, save_total_limit=1), "callbacks": [tick], "identity": IDENTITY}
    trainer = SavingTrainer(**given, time_budget=TimeBudgetCallback(clock=clock), curve="wsd", warmup_proportion=0.0)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_checkpoint_of_end()
    return trainer, tick.rates


def test_real_checkpoints_of_two_budgets(tmp_path):
    folder = RunFolder(tmp_path / "out")
    trainer, rates = trained(folder.path, 20.0)
    assert trainer.state.global_step == 20 and [step_of(path) for path in folder.checkpoints()] == [20]
    assert rates[:11] == [0.1] * 11 and rates[-1] < 0.01
    trainer, rates = trained(folder.path, 40.0, used=20.0, resume=folder.newest_checkpoint())
    assert trainer.state.global_step == 40 and [step_of(path) for path in folder.checkpoints()] == [40]
    assert rates[1:3] == [0.1] * 2 and rates[-1] < 0.01, (
        "half of 40 s is in the stable phase, which ends at three fifths"
    )
    assert not list(folder.path.glob(".partial*"))


def test_a_disk_without_room_costs_only_the_checkpoint(tmp_path, monkeypatch, caplog):
    room = namedtuple("room", "total used free")
    monkeypatch.setattr("budget_trainer.training.saving.shutil.disk_usage", lambda path: room(1, 1, -1))
    trained(tmp_path / "out", 5.0)
    assert not RunFolder(tmp_path / "out").checkpoints()
    assert "no room on the disk for the checkpoint of the end, so this run cannot be given more time" in caplog.text


@pytest.mark.slow
def test_a_run_is_prolonged_killed_and_ends_as_it_should(data_dir, tmp_path, refused):
    out = tmp_path / "run"
    options = {**TINY, "data_dir": data_dir, "output_dir": out, "curve": "wsd", "disable_tqdm": True}
    options |= {"checkpoint_every": "3s", "finetune_time_markers": "0.3,0.9", "save_total_limit": 2}
    train({**options, "total_training_time": "30s"}, ok=True)
    first, folder = report(out), RunFolder(out)
    at, weights = step_of(folder.newest_checkpoint()), (out / "final" / "model.safetensors").read_bytes()
    assert "earlier_budgets" not in first and at == first["steps"] and len(folder.checkpoints()) == 2

    again = {**options, "resume_from_checkpoint": "auto", "total_training_time": "90s"}
    for changes, told in (
        ({"total_training_time": "30s"}, "is finished at 30s; give more to go on from"),
        ({"hidden_size": 64}, "was begun with model.hidden_size=32"),
    ):
        code, error = refused({**again, **changes})
        assert code == 2 and told in error
        assert (out / "final" / "model.safetensors").read_bytes() == weights and not (out / "final-30s").exists()

    process = spawn([sys.executable, "train_mlm.py", *words(again)], stdout=subprocess.DEVNULL)
    wait_for(lambda: process.poll() is not None or len(losses(out, job=2)) > 3)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    assert losses(out, job=2)[0]["step"] == at + 1 and json.loads((out / "run.json").read_text())["state"] != GROWING
    assert all(step_of(path) <= losses(out, job=2)[-1]["step"] + 1 for path in folder.checkpoints())
    train(again, ok=True)

    second = report(out)
    assert (out / "final-30s" / "model.safetensors").read_bytes() == weights
    assert (out / "final" / "model.safetensors").read_bytes() != weights
    assert second["budget_seconds"] == 90 and second["earlier_budgets"] == ["30s"] and second["jobs"] == 3
    assert sum(second["shares"].values()) == pytest.approx(second["used_seconds"], rel=0.01)
    assert second["used_seconds"] > first["used_seconds"] and second["overrun_seconds"] == 0
    assert second["learning_rate_last"] < 0.2 * second["learning_rate_peak"] and second["steps"] > at
    assert second["tokens"] == 64 * second["samples"] == 64 * 8 * second["steps"]
    assert {path.name for path in out.glob("*finetune-*")} == {"30s-finetune-30", "30s-finetune-90", "finetune-90"}
    older, newest = folder.checkpoints()
    assert step_of(newest) == second["steps"]
    code, error = refused({**again, "resume_from_checkpoint": older})
    assert code == 2 and "already has final/" in error
