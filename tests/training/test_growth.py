"""A finished run is given more time: what it keeps for that, from where it goes on, and what a kill leaves at any moment."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from budget_trainer.budget.callback import STATE_KEY, Reading, TimeBudgetCallback
from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder
from budget_trainer.training.callbacks import DecayCheckpoint
from budget_trainer.training.growth import Growth, check_room, find_growth
from budget_trainer.training.run import PretrainingRun
from budget_trainer.training.run_folder import BEFORE_DECAY, GROWING, RunFolder, publish, step_of
from budget_trainer.training.saving import SavingTrainer
from tests.conftest import TINY, losses, report, spawn, train, wait_for, words
from tests.training.test_trainer import Tick, parts

IDENTITY = {"seed": 1}


def write_checkpoint(folder, name, step, used, **state):
    """A complete checkpoint of `step`, when `used` seconds were used."""
    staging = fresh_folder(folder / "staging")
    kept = {STATE_KEY: {"shares": {"train": used - 3.0, "save": 3.0}, "begin_seconds": 5.0, **state}}
    (staging / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": kept}))
    publish(staging, folder / name, {"step": step, "identity": IDENTITY})


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
    """A run of wsd that is finished at 100 s; its decay began at 62 s, behind step 10."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name, step, used in (("checkpoint-8", 8, 50.0), (BEFORE_DECAY, 10, 62.0), ("checkpoint-14", 14, 90.0)):
        write_checkpoint(folder, name, step, used)
    finish(folder, 100.0, 100.0, 1)
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
        folder.restore_clock(run.clock, folder.before_decay())
        PretrainingRun.claim_folder(run)


def content(folder):
    """Every file of a run's folder but its state, by name."""
    files = [path for path in folder.path.rglob("*") if path.is_file() and path.name not in ("run.json", "clock.json")]
    return {str(path.relative_to(folder.path)): path.read_text() for path in files}


def test_the_decay_is_charged_and_discarded(left):
    assert (
        left.find_checkpoint("auto") == left.find_checkpoint(str(left.path / BEFORE_DECAY)) == left.path / BEFORE_DECAY
    )
    growth, before = grown(left), content(left)
    assert growth.discarded_seconds == 38 and growth.began == 100 and growth.pending
    assert {phase: seconds for phase, seconds in growth.discarded.items() if seconds} == {"train": 35.0, "save": 3.0}
    assert list(growth.budgets) == ["1m40s"] and content(left) == before, "it only looks"
    clock = BudgetClock(time_fn=lambda: 0.0)
    assert left.restore_clock(clock, left.find_checkpoint("auto")) == 2 and clock.elapsed_seconds() == 100


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
    assert [step_of(folder) for folder in left.checkpoints()] == [8] and step_of(left.newest_checkpoint()) == 10
    assert not left.is_growing and RunFolder(left.path).find_checkpoint("auto") == left.path / BEFORE_DECAY
    again = grown(RunFolder(left.path))
    assert again == Growth(left.growth()["discarded"], 100.0, ["1m40s"]) and again.discarded_seconds == 38


REFUSED = [
    (
        {"total": "100s"},
        "total_training_time: 1m40s, but the run in .* is finished at 1m40s, and its decay, 38s, is done ",
    ),
    ({"total": "50s"}, "total_training_time: 50s, but the run in "),
    ({"total": "138s"}, r"no longer training than final/ had; give more than 2m18s, or another output_dir"),
    ({"early_exit_time_marker": "120s"}, "early_exit_time_marker: 2m, but the run in "),
    (
        {"curve": "cosine"},
        "curve: cosine with lr_schedule time has no decay to come, and the run in .* is finished at",
    ),
    ({"lr_schedule": "step", "max_steps": 99}, "curve: wsd with lr_schedule step has no decay to come"),
    (
        {"decay_proportion": 0.8},
        r"decay_proportion: 0\.8 of this budget would have begun before .*; give 0\.51, or more",
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
    check_room(growth, 119.0, 2.0, recipe)
    with pytest.raises(InputError, match="^total_training_time: 2m40s, but set-up took 20s more .* more than 2m40s"):
        check_room(growth, 120.0, 2.0, recipe)


def test_names_that_are_taken(left):
    (left.path / "final-1m40s").mkdir()
    with pytest.raises(InputError, match="output_dir: .*final-1m40s is there already"):
        grown(left)


@pytest.mark.parametrize("resume", [None, "auto", "checkpoint-8"])
def test_without_its_checkpoint_a_finished_run_is_refused(left, resume):
    shutil.rmtree(left.path / BEFORE_DECAY)
    asked = str(left.path / resume) if resume == "checkpoint-8" else resume
    with pytest.raises(InputError, match=r"already has final/; give another folder, or ") as told:
        left.find_checkpoint(asked)
    assert ("--model_name_or_path" in str(told.value)) == (resume is not None)


def test_an_unfinished_run_goes_on_from_its_newest_checkpoint(left):
    """As ever; that of before the decay is the newest where no other was written behind it."""
    shutil.rmtree(left.path / "final")
    (left.path / "run.json").write_text(json.dumps({"job": 1, "state": "training", "identity": IDENTITY}))
    assert left.find_checkpoint("auto").name == "checkpoint-14"
    assert grown(left) == Growth() and grown(left, total="50s") == Growth()
    shutil.rmtree(left.path / "checkpoint-14")
    assert left.find_checkpoint("auto").name == BEFORE_DECAY and len(left.checkpoints()) == 1


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
            if path.name.startswith(("final", "finetune", "run_report", "checkpoint")):
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
        assert next_job.is_growing and next_job.find_checkpoint("auto").name == BEFORE_DECAY
        for asked in ("checkpoint-8", "checkpoint-14"):
            with pytest.raises(InputError, match="is where it goes on; give auto"):
                next_job.find_checkpoint(str(folder.path / asked))
        with pytest.raises(InputError, match="give another folder"):
            next_job.find_checkpoint(None)
        for other in ({"total": "130s"}, {"curve": "linear"}):
            with pytest.raises(InputError, match="on its way to more than 2m18s; give the command again"):
                grown(next_job, **other)
        accept(next_job, grown(next_job))
        assert content(next_job) == content(whole) and next_job.growth() == whole.growth()
        assert not list(folder.path.glob(".partial*"))
        kills += 1
    assert kills == 6, "final, two time-marked models, report, picture, a checkpoint of the decay"


def test_a_grown_run_is_not_ended_by_the_budget_that_it_had(left):
    accept(left, grown(left))
    with pytest.raises(
        InputError, match=r"^total_training_time: 1m40s is no more than .*; give more, or use final-1m40s/"
    ):
        grown(left, total="100s")
    assert grown(left, total="120s").discarded_seconds == 38, "it may get less than it was given at first"


@pytest.mark.parametrize(("its_own", "least", "discarded"), [(True, 207, 85.0), (False, 220, 98.0)])
def test_a_budget_grows_twice(left, its_own, least, discarded):
    """From the checkpoint of the second decay, or, where that was not written, from the first again: nothing counts twice."""
    first = grown(left)
    accept(left, first)
    if its_own:
        left.make_room_for_before_decay()
        write_checkpoint(left.path, BEFORE_DECAY, 30, 113.0, discarded=dict(first.discarded))
        assert [step_of(folder) for folder in left.checkpoints()] == [8, 10], "the first one has its number again"
    finish(left.path, 160.0, 160.0, 2)
    with pytest.raises(InputError, match="its decay, (47s|1m), is done again"):
        grown(left, total=f"{least}s")
    second = grown(left, total=f"{least + 1}s")
    assert second.discarded_seconds == discarded and list(second.budgets) == ["1m40s", "2m40s"] and second.began == 160
    accept(left, second)
    assert {path.name for path in left.path.glob("final*")} == {"final-1m40s", "final-2m40s"}


def test_the_schedule_does_not_know_what_was_discarded():
    clock = BudgetClock(160.0, time_fn=lambda: 0.0)
    clock.restore({"train": 100.0})
    agreement = Agreement(ControlChannel(), StopRequest())
    budget = TimeBudgetCallback(clock=clock, agreement=agreement, discarded={"train": 30.0, "save": 8.0})
    budget.lead = None
    state = TrainerState(stateful_callbacks={STATE_KEY: {"begin_seconds": 5.0}})
    budget.on_train_begin(SimpleNamespace(auto_find_batch_size=False), state, TrainerControl())
    assert budget.progress == pytest.approx((100 - 38 - 5) / (160 - 38 - 5)) and budget.share == 100 / 160


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


class Run:
    """A trainer of nothing whose schedule stands where the test says; `step` says whether, and as what, it saves."""

    def __init__(self, step=0, progress=0.0, there=None, stored=None, left=100.0):
        self.time_budget, self.before_decay, self.progress = TimeBudgetCallback(200.0), False, progress
        self.room, self.asked = True, 0
        self.time_budget.reading = Reading(elapsed=200.0 - left, checkpoint=10.0)
        self.state = TrainerState(stateful_callbacks={"before_decay": stored} if stored else {})
        self.state.global_step = step
        self.cadence = DecayCheckpoint(self, 0.6, there)
        self.cadence.on_train_begin(None, self.state, TrainerControl())

    def schedule_progress(self):
        return self.progress

    def disk_takes_checkpoint(self):
        self.asked += 1
        return self.room

    def step(self, progress, bad=False, stops=False):
        self.progress, control = progress, TrainerControl(should_training_stop=stops)
        self.state.global_step += 1
        self.cadence.on_step_end(SimpleNamespace(output_dir="out"), self.state, control)
        saved = control.should_save and not bad
        assert not saved or self.before_decay
        if saved:
            stored = dict(self.state.stateful_callbacks["before_decay"])
            assert not stored["kept"], "the budget that goes on from it keeps another"
            self.cadence.on_save(None, self.state, control)
        return saved


def test_the_checkpoint_is_kept_once_as_the_decay_begins():
    run = Run()
    assert [run.step(progress) for progress in (0.5, 0.59, 0.61, 0.62, 0.99)] == [False, False, True, False, False]
    assert run.state.stateful_callbacks["before_decay"] == {"kept": True}
    assert [Run().step(0.7), Run(left=5.0).step(0.7), Run().step(0.7, stops=True)] == [True, False, False]
    run = Run()
    assert [run.step(0.61, bad=True), run.step(0.62)] == [False, True], "a bad step is not saved"


def test_a_disk_without_room_costs_only_the_checkpoint(caplog):
    run = Run()
    run.room = False
    assert [run.step(progress) for progress in (0.5, 0.61, 0.62)] == [False] * 3 and run.asked == 1
    assert [record.message for record in caplog.records] == [
        "out: no room on the disk for checkpoint-before-decay, so this run cannot be given more time when it is finished"
    ]


@pytest.mark.parametrize(
    ("resumed", "saves"),
    [
        ({"step": 8, "progress": 0.65}, True),  # killed before the moment, and resumed behind it
        (
            {"step": 14, "progress": 0.65, "there": 10, "stored": {"kept": True}},
            False,
        ),  # from a later one of the decay
        ({"step": 10, "progress": 0.65, "there": 10, "stored": {"kept": False}}, False),  # from itself
        (
            {"step": 10, "progress": 0.45, "there": 10, "stored": {"kept": False}},
            True,
        ),  # with more time: from a first decay's
        (
            {"step": 12, "progress": 0.65, "there": 10, "stored": {"kept": False}},
            True,
        ),  # and killed before the next moment
        ({"step": 14, "progress": 0.5, "there": 10, "stored": {"kept": True}}, True),  # more time before the end
    ],
)
def test_a_job_that_resumes_knows_whether_it_was_kept(resumed, saves):
    run = Run(**resumed)
    assert run.step(0.66) == saves and not run.step(0.7)


def trained(folder, total, *, used=0.0, discarded=None, resume=None):
    """Steps of a second on a fake clock, in a Trainer that writes real checkpoints; the rates of its steps."""
    tick = Tick()
    clock = BudgetClock(total, time_fn=lambda: tick.now)
    clock.restore({"train": used})
    budget = TimeBudgetCallback(clock=clock, discarded=discarded)
    given = {**parts(folder, save_total_limit=1), "callbacks": [tick], "identity": IDENTITY}
    trainer = SavingTrainer(**given, time_budget=budget, curve="wsd", warmup_proportion=0.0)
    before = RunFolder(folder).before_decay()
    trainer.add_callback(DecayCheckpoint(trainer, 0.6, None if before is None else step_of(before)))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, tick.rates


def test_real_checkpoints_of_two_budgets(tmp_path):
    folder = RunFolder(tmp_path / "out")
    trainer, rates = trained(folder.path, 20.0)
    before = folder.before_decay()
    first = step_of(before)
    assert 10 <= first <= 14 and trainer.state.global_step == 20 and not folder.checkpoints()
    assert folder.newest_checkpoint() == before and min(rates[:first]) == max(rates) > 20 * rates[-1]
    assert not list(folder.path.glob(".partial*"))

    lost = {"train": 20.0 - first}
    trainer, rates = trained(folder.path, 40.0, used=20.0, discarded=lost, resume=before)
    second = step_of(folder.before_decay())
    assert trainer.state.global_step == first + 20, "20 seconds more"
    assert first + 5 < second < first + 10, "the decay of 32 seconds that count begins at three fifths of them"
    assert rates[1 : second - first] == [0.1] * (second - first - 1) and rates[-1] < 0.01
    assert [step_of(path) for path in folder.checkpoints()] == [first], "that of the first decay has its number again"


@pytest.mark.slow
def test_a_run_is_prolonged_killed_and_ends_as_it_should(data_dir, tmp_path, refused):
    out = tmp_path / "run"
    options = {**TINY, "data_dir": data_dir, "output_dir": out, "curve": "wsd", "checkpoint_every": "3s"}
    options |= {"disable_tqdm": True, "finetune_time_markers": "0.3,0.9"}
    train({**options, "total_training_time": "30s"}, ok=True)
    first, folder = report(out), RunFolder(out)
    at, weights = step_of(folder.before_decay()), (out / "final" / "model.safetensors").read_bytes()
    assert "discarded_seconds" not in first and at < first["steps"]

    again = {**options, "resume_from_checkpoint": "auto", "total_training_time": "90s"}
    for changes, told in (
        ({"total_training_time": "30s"}, "no longer training than final/ had; give more than"),
        ({"curve": "linear"}, "curve: linear with lr_schedule time has no decay to come"),
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
    lost = second["discarded_seconds"]
    assert (out / "final-30s" / "model.safetensors").read_bytes() == weights
    assert (out / "final" / "model.safetensors").read_bytes() != weights
    assert second["budget_seconds"] == 90 and second["earlier_budgets"] == ["30s"] and second["jobs"] == 3
    assert sum(second["shares"].values()) == pytest.approx(second["used_seconds"], rel=0.01)
    assert second["used_seconds"] > first["used_seconds"] > lost > 0 and second["overrun_seconds"] == 0
    assert second["learning_rate_last"] < 0.2 * second["learning_rate_peak"] and second["steps"] > at
    assert second["tokens"] == 64 * second["samples"] == 64 * 8 * second["steps"]
    assert {path.name for path in out.glob("*finetune-*")} == {"30s-finetune-30", "30s-finetune-90", "finetune-90"}
    assert step_of(folder.before_decay()) > at
    code, error = refused({**again, "resume_from_checkpoint": folder.checkpoints()[-1]})
    assert code == 2 and "already has final/" in error
