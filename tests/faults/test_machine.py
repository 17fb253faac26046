"""Disks, memory and files that fail: each ends in one line, and nothing that was complete is lost."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from functools import partial

import pytest

from budget_trainer import train_mlm
from budget_trainer.budget.callback import STATE_KEY
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder, hold_folder, try_lock
from budget_trainer.training import run_folder
from budget_trainer.training.run import PretrainingRun
from budget_trainer.training.run_folder import RunFolder
from tests.conftest import STEPS, TINY, losses, report, run, spawn, start, train, wait_for, words

LONG = {**STEPS, "max_steps": 1_000_000, "checkpoint_every": "2s"}
DISK_BYTES = 32_000_000


@pytest.fixture
def disk(tmp_path):
    """A disk of DISK_BYTES."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk, leave=0):
    """Leave no room but for `leave` bytes; returns the file that takes it."""
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return disk / "filler"


def steps_of(output_dir):
    """The complete checkpoints, by step."""
    complete = [path.parent.name for path in output_dir.glob("checkpoint-*/m*t.json")]
    return sorted(int(name.removeprefix("checkpoint-")) for name in complete)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_stays(processes, disk, data_dir, tmp_path):
    out = disk / "out"
    options = {**LONG, "data_dir": data_dir, "output_dir": out, "logging_steps": 5}
    launcher = start(options, processes=processes)
    wait_for(lambda: steps_of(out))
    filler = fill(disk)
    _, error = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    (first,) = steps_of(out)
    assert f"error: output_dir: {out}/checkpoint-" in error
    (line,) = {line for line in error.splitlines() if "could not be written" in line}
    assert "No space left on device" in line or "a part of it" in line
    assert f"go on from {out}/checkpoint-{first} with --resume_from_checkpoint auto" in line
    assert 'train_mlm.py", line' not in error and not (out / "RESUMABLE").exists()
    assert processes == 2 or not list(out.glob(".partial*"))

    filler.unlink()
    again = {**options, "max_steps": first + 3, "resume_from_checkpoint": "auto"}
    train({**again, "per_device_train_batch_size": processes * TINY["per_device_train_batch_size"]}, ok=True)
    assert report(out)["steps"] == first + 3 and report(out)["jobs"] == 2 and not list(out.glob(".partial*"))


@pytest.mark.slow
def test_where_two_checkpoints_fit_the_older_one_makes_room_and_the_final_model_has_its_own(disk, data_dir):
    """A disk full up to the two checkpoints that it holds: the run goes on, saves, and ends with its model."""
    out = disk / "out"
    options = {**LONG, "data_dir": data_dir, "output_dir": out, "total_training_time": "25s", "lr_schedule": "time"}
    options |= {"logging_steps": 100_000}
    del options["max_steps"]
    process = spawn([sys.executable, "train_mlm.py", *words(options)], stdout=subprocess.DEVNULL)
    wait_for(lambda: len(steps_of(out)) == 2)
    before = steps_of(out)
    size = sum(path.stat().st_size for path in (out / f"checkpoint-{before[0]}").iterdir())
    fill(disk, leave=size // 2)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert steps_of(out)[-1] > before[-1] and report(out)["evaluation"]["loss"] > 0
    assert (out / "final" / "model.safetensors").stat().st_size > 0 and not (out / ".room-for-final").exists()


def test_a_disk_that_takes_nothing_is_known_before_any_work(data_dir, disk, refused):
    options = {**STEPS, "data_dir": data_dir, "output_dir": disk / "out"}
    fill(disk)
    code, line = refused(options)
    assert code == 1 and "could not be written (No space left on device, 0.0 MB free)" in line
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    code, line = refused({**options, "output_dir": disk / "other"})
    assert code == 2 and line.startswith(f"error: output_dir: {disk} is read-only"), line
    file = data_dir / "manifest.json"
    code, line = refused({**options, "output_dir": file / "out"})
    assert code == 2 and f"output_dir: {file} is a file" in line


@pytest.mark.parametrize("evaluates", [False, True])
def test_the_folder_is_the_run_s_from_its_first_look_to_its_last_file(data_dir, tmp_path, monkeypatch, evaluates):
    out, held = tmp_path / "new" / "out", []

    def chapter(name, code=0):
        def work(run, *rest):
            held.append((name, try_lock(out / ".lock") is None))
            return code

        return work

    for name in ("find_checkpoint", "awaits_evaluation"):
        monkeypatch.setattr(RunFolder, name, chapter(name, evaluates))
    for name in ("build_model", "build_trainer", "claim_folder", "train", "finish", "evaluate_final"):
        monkeypatch.setattr(PretrainingRun, name, chapter(name))
    monkeypatch.setattr(PretrainingRun, "open_data", lambda run: run.folder.find_checkpoint(None))
    monkeypatch.setattr(train_mlm, "CLOCK", BudgetClock())
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "none")
    options = {**STEPS, "data_dir": data_dir, "output_dir": out, "resume_from_checkpoint": "auto"}
    assert train_mlm.main(words(options)) == 0
    trained = ["find_checkpoint", "build_model", "build_trainer", "claim_folder", "train", "finish"]
    assert [name for name, _ in held] == ["awaits_evaluation", *(["evaluate_final"] if evaluates else trained)]
    assert all(locked for _, locked in held) and not list(out.iterdir())


@pytest.mark.parametrize("name", ["sweep.json", "suite.json"])
def test_a_folder_in_use_or_of_another_kind_is_refused(data_dir, tmp_path, refused, name):
    out = tmp_path / "out"
    options = {**STEPS, "data_dir": data_dir, "output_dir": out, "resume_from_checkpoint": "auto"}
    with hold_folder(out):
        code, line = refused(options)
        assert [path.name for path in out.iterdir()] == [".lock"]
    me = f"process {os.getpid()} on {socket.gethostname()} since "
    assert code == 2 and line.startswith(f"error: output_dir: {out} is in use by {me}"), line
    (out / name).touch()
    code, line = refused(options)
    assert code == 2 and f"{out} is the folder of a {name[:5]} ({name}); give another folder" in line
    assert [path.name for path in out.iterdir()] == [name]


DAMAGE = ["", "{", "\0" * 99, "[]", '{"shares": {}}']


@pytest.fixture
def left(tmp_path):
    """A folder whose newest checkpoint is of second 8, with clock and state of a job that was killed behind it."""
    folder = RunFolder(tmp_path / "out")
    for step, used in ((3, 4.0), (6, 8.0)):
        staging = fresh_folder(tmp_path / "staging")
        state = {STATE_KEY: {"shares": {"train": used - 1, "save": 1.0}}}
        (staging / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": state}))
        folder.path.mkdir(exist_ok=True)
        run_folder.publish(staging, folder.path / f"checkpoint-{step}", {"identity": {"seed": 1, "data": "d"}})
    return folder


def used_after(folder, checkpoint):
    clock = BudgetClock(time_fn=lambda: 0.0)
    return folder.restore_clock(clock, checkpoint), clock.seconds_by_phase()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("told", "train"), [(None, 7.0), (5.0, 7.0), (9.5, 8.5)])
def test_a_damaged_clock_is_taken_from_the_checkpoint_and_what_came_behind(left, caplog, damage, told, train):
    (left.path / "clock.json").write_text(damage)
    line = json.dumps({"job": 4, "elapsed_seconds": told, "step": 7}) if told else "7"
    (left.path / "progress.jsonl").write_text(
        f'{line}\n{{"job": 4, "elapsed_seconds": 1e999}}\n{{"job": "x", "elapsed_seconds": 99}}\n[1]\n{{"el\n\0\0\0'
    )
    job, used = used_after(left, left.newest_checkpoint())
    assert used["train"] == train and used["save"] == 1.0 and job == 1
    assert "clock.json is damaged; the time used is taken from" in caplog.text
    if told:
        assert sum(used_after(left, None)[1].values()) == told
    else:
        with pytest.raises(InputError, match=r"^clock\.json: .* is damaged, and no checkpoint or line"):
            used_after(left, None)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_json_is_taken_from_the_checkpoint(left, caplog, damage):
    (left.path / "run.json").write_text(damage)
    (left.path / "progress.jsonl").write_text('{"job": 4, "elapsed_seconds": 9.0}\n')
    newest, same = left.newest_checkpoint(), {"seed": 1, "data": "d"}
    left.check_identity(same, newest)
    assert used_after(left, newest)[0] == 5 and not left.awaits_evaluation()
    for checkpoint in (newest, None):
        with pytest.raises(InputError, match="was begun with seed=1, this run has 2"):
            left.check_identity({**same, "seed": 2}, checkpoint)
    assert caplog.text.count("run.json is damaged; taken from") == 1 and str(newest) in caplog.text
    with pytest.raises(InputError, match="not the data that"):
        left.check_data("other")
    left.check_data("d")


def test_a_checkpoint_whose_state_is_damaged_is_named(left):
    path = left.newest_checkpoint() / "trainer_state.json"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(
        InputError, match=r"trainer_state\.json does not match its checksum; delete .*checkpoint-6 and use"
    ):
        left.restore_clock(BudgetClock(), left.newest_checkpoint())


@pytest.mark.parametrize("report", [None, "", '{"evaluation": null}', '{"evaluation": {"loss": 1}}'])
@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_damaged_run_json_beside_a_model_says_whether_it_is_evaluated(left, report, resumable, checkpoints):
    (left.path / "run.json").touch()
    (left.path / "final").mkdir()
    if not checkpoints:
        for folder in left.checkpoints():
            shutil.rmtree(folder)
    if report is not None:
        (left.path / "run_report.json").write_text(report)
    if resumable:
        (left.path / "RESUMABLE").touch()
    evaluated = report is not None and "loss" in report and not resumable
    assert RunFolder(left.path).awaits_evaluation() != evaluated
    left.check_data("d")
    left.check_identity({"seed": 1, "data": "d"}, None)
    left.set_state("finished")
    assert not RunFolder(left.path).awaits_evaluation()


@pytest.mark.slow
def test_of_two_runs_in_one_folder_one_is_refused_and_a_killed_one_does_not_hold_it(data_dir, tmp_path, refused):
    out = tmp_path / "out"
    options = {**STEPS, "data_dir": data_dir, "output_dir": out, "max_steps": 1_000_000, "checkpoint_every": "1s"}
    command = [sys.executable, "train_mlm.py", *words(options)]
    pair = [spawn(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    wait_for(lambda: any(process.poll() is not None for process in pair))
    (second,) = [process for process in pair if process.poll() is not None]
    (first,) = [process for process in pair if process is not second]
    error = second.communicate()[1]
    assert second.returncode == 2 and f"output_dir: {out} is in use by process {first.pid} on " in error
    wait_for(lambda: steps_of(out))
    code, line = refused({**options, "resume_from_checkpoint": "auto"})
    assert code == 2 and f"in use by process {first.pid} on " in line and first.poll() is None
    first.kill()
    first.wait()
    with hold_folder(out):
        assert not list(out.glob("final"))


@pytest.mark.slow
def test_a_flipped_byte_in_a_shard_is_found_before_the_first_step(data_dir, tmp_path, refused):
    copy = shutil.copytree(data_dir, tmp_path / "damaged")
    shard = sorted(copy.glob("train-*.arrow"))[-1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    options = {**STEPS, "data_dir": copy, "output_dir": tmp_path / "out"}
    code, line = refused(options)
    assert code == 2 and line.startswith(f"error: data file {shard} is damaged: it does not match its checksum")
    launcher = start(options, processes=2)
    _, error = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and line in error and "is gone" not in error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def killed(data_dir, tmp_path_factory):
    """The folder of a run that was killed when it had two checkpoints."""
    out = tmp_path_factory.mktemp("killed") / "out"
    options = {**LONG, "data_dir": data_dir, "output_dir": out, "checkpoint_every": "1s"}
    process = spawn([sys.executable, "train_mlm.py", *words(options)], stdout=subprocess.DEVNULL)
    wait_for(lambda: len(steps_of(out)) == 2)
    process.kill()
    process.communicate(timeout=60)
    return out


@pytest.fixture
def begun(killed, data_dir, tmp_path):
    """The flags with which that run goes on in a copy of its folder, on a copy of its data; and the copy of the folder."""
    copy, out = shutil.copytree(data_dir, tmp_path / "blocks"), shutil.copytree(killed, tmp_path / "out")
    options = {**LONG, "data_dir": copy, "output_dir": out, "checkpoint_every": "1s"}
    return {**options, "resume_from_checkpoint": "auto"}, out


@pytest.mark.slow
def test_shards_that_changed_between_two_jobs_are_refused(begun, corpus, tokenizer, refused):
    options, out = begun
    before = steps_of(out)
    shutil.rmtree(options["data_dir"])
    flags = {"input": corpus, "tokenizer": tokenizer, "block_size": 64, "num_shards": 3, "num_proc": 1}
    run([sys.executable, "-m", "data_prep.blocks", *words({**flags, "output_dir": options["data_dir"]})], ok=True)
    code, line = refused(options)
    assert code == 2 and "was begun with data=" in line and "another output_dir" in line
    assert steps_of(out) == before and not (out / "final").exists()


@pytest.mark.slow
def test_a_truncated_checkpoint_is_not_one(begun, refused):
    """`auto` takes the one before, also after a power cut; asked for by name it is refused."""
    options, out = begun
    older, newer = steps_of(out)
    with open(out / f"checkpoint-{newer}" / "optimizer.pt", "r+b") as file:
        file.truncate(1000)
    code, line = refused({**options, "resume_from_checkpoint": out / f"checkpoint-{newer}"})
    assert code == 2 and f"checkpoint-{newer} is not a complete checkpoint" in line
    for name in ("clock.json", "run.json"):
        (out / name).write_text("")
    train({**options, "max_steps": older + 2}, ok=True)
    assert [line["step"] for line in losses(out, 2)] == [older + 1, older + 2]


@pytest.mark.slow
def test_a_micro_batch_that_does_not_fit_into_memory(data_dir, tmp_path):
    """A real refusal of the allocator: 8 GB of address space, of which one activation would need more."""
    out = tmp_path / "out"
    rows = json.loads((data_dir / "manifest.json").read_text())["splits"]["train"]["rows"]
    wide = {"intermediate_size": 3_000_000_000 // (rows * 64), "per_device_train_batch_size": rows}
    options = {**STEPS, **wide, "data_dir": data_dir, "output_dir": out, "max_steps": 2}
    done = train(options, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30)))
    assert done.returncode == 1, done.stderr
    line = [line for line in done.stderr.splitlines() if line.startswith("error: ")][-1]
    assert line.startswith(f"error: per_device_train_batch_size: {rows} does not fit into the memory of rank 0's cpu")
    assert f"give {rows // 2} and twice the gradient_accumulation_steps" in line
