"""Two real processes, and what goes wrong: a signal to one, one killed, one that is late, one with a NaN."""

import json
import os
import signal
import time

import pytest
from safetensors.torch import load_file

from tests.conftest import (
    STEPS,
    TINY,
    batch_of_epoch,
    launch,
    launch_form,
    launcher,
    losses,
    rank_pid,
    report,
    run,
    start,
    train,
    wait_for,
    words,
    write_cpu_form,
)

FEW = {**STEPS, "per_device_train_batch_size": 4, "max_steps": 40}
LONG = {**FEW, "max_steps": 100_000}
FAULTY_RUN = "tests/faults/faulty_run.py"


def lines_of(folder):
    path = folder / "progress.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_a_signal_on_one_rank_stops_both_with_one_checkpoint_that_resumes_alone(data_dir, tmp_path, refused):
    """SIGTERM to rank 1 only; the next job is one process with twice the micro-batch: same data, same global batch."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = {**LONG, "data_dir": data_dir}
    job = start({**options, "output_dir": out})
    wait_for(lambda: lines_of(out) >= 6)
    os.kill(rank_pid(job.pid, 1), signal.SIGTERM)
    _, error = job.communicate(timeout=60)
    assert job.returncode == 1, "launchers turn 85 into 1"
    assert "training stops (SIGTERM on rank 1)" in error
    assert 'train_mlm.py", line' not in error, "the only traceback is the launcher's"
    (checkpoint,) = out.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert (out / "RESUMABLE").read_text() == "stop_requested\n" and not (out / "final").exists()

    alone = {**options, "per_device_train_batch_size": 8, "max_steps": step + 5, "use_cpu": True}
    train({**alone, "output_dir": out, "resume_from_checkpoint": "auto"}, ok=True)
    assert not (out / "RESUMABLE").exists()
    train({**alone, "output_dir": whole}, ok=True)
    resumed, expected = losses(out, job=2), losses(whole)[step:]
    assert [line["step"] for line in resumed] == [line["step"] for line in expected] == list(range(step + 1, step + 6))
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in expected], rel=1e-4)
    assert report(out)["samples"] == report(whole)["samples"]

    wrong = {**alone, "per_device_train_batch_size": 4, "output_dir": out, "resume_from_checkpoint": str(checkpoint)}
    (out / "final").rename(tmp_path / "moved")
    code, error = refused(wrong)
    assert code == 2 and "global_batch_size=8, this run has 4" in error


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_is_named_and_the_run_resumes(rank, data_dir, tmp_path):
    out = tmp_path / "out"
    options = {**LONG, "data_dir": data_dir, "output_dir": out, "checkpoint_every": "1s"}
    job = start(options)
    wait_for(lambda: any(out.glob("checkpoint-*")) and lines_of(out) > 20)
    os.kill(rank_pid(job.pid, rank), signal.SIGKILL)
    begin = time.monotonic()
    _, error = job.communicate(timeout=60)
    assert job.returncode == 1 and time.monotonic() - begin < 25, "torchrun would kill it after 30 s"
    assert f"error: rank {rank} of 2 is gone" in error and "go on with --resume_from_checkpoint auto" in error
    newest = max(int(folder.name.removeprefix("checkpoint-")) for folder in out.glob("checkpoint-*"))
    launch({**options, "max_steps": newest + 3, "resume_from_checkpoint": "auto"}, processes=2, ok=True)
    assert [line["step"] for line in losses(out, job=2)] == [newest + 1, newest + 2, newest + 3]
    assert not list(out.glob(".partial*"))


@pytest.mark.slow
def test_a_signal_during_set_up_leaves_at_once(data_dir, tmp_path):
    out = tmp_path / "out"
    job = start({**LONG, "data_dir": data_dir, "output_dir": out})
    wait_for(lambda: rank_pid(job.pid, 0) is not None and rank_pid(job.pid, 1) is not None)
    wait_for(lambda: handles_sigterm(rank_pid(job.pid, 0)))
    os.kill(rank_pid(job.pid, 0), signal.SIGTERM)
    _, error = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "SIGTERM on rank 0 during set-up, before the first step" in error
    assert {path.name for path in out.iterdir()} == {"RESUMABLE"}
    launch({**FEW, "max_steps": 2, "data_dir": data_dir, "output_dir": out}, processes=2, ok=True)


def handles_sigterm(pid):
    """Whether a process has installed a handler for SIGTERM yet."""
    with open(f"/proc/{pid}/status") as status:
        caught = next(line.split()[1] for line in status if line.startswith("SigCgt"))
    return bool(int(caught, 16) & (1 << (signal.SIGTERM - 1)))


@pytest.mark.slow
def test_a_nan_on_one_rank_is_answered_by_all_at_the_same_step(data_dir, tmp_path):
    out = tmp_path / "out"
    options = {**FEW, "data_dir": data_dir, "output_dir": out, "max_bad_steps": 2, "checkpoint_every": "1s"}
    job = start({**options, "max_steps": 100_000})  # until there is a checkpoint
    wait_for(lambda: any(out.glob("checkpoint-*")))
    os.kill(rank_pid(job.pid, 0), signal.SIGUSR1)
    job.communicate(timeout=60)
    step = max(int(folder.name.removeprefix("checkpoint-")) for folder in out.glob("checkpoint-*"))
    bad = [step + 2, step + 4, step + 5]
    flags = {**options, "max_steps": step + 8, "resume_from_checkpoint": "auto", "checkpoint_every": "1h"}
    done = run(launcher("cpu_2proc", FAULTY_RUN, json.dumps({"nan": {"1": bad}}), *words(flags)), ok=True)
    assert f"step {step + 5}: 2 steps in a row" in done.stderr and f"back to {out}/checkpoint-{step}" in done.stderr
    account = report(out)
    assert (account["bad_steps"], account["roll_backs"]) == (3, 1)
    first, second = account["ranks"]
    assert first["learning_rates_sha256"] == second["learning_rates_sha256"] and first["steps"] == second["steps"]
    rates = {line["step"]: line["learning_rate"] for line in losses(out, job=2)}
    assert rates[step + 5] == 2 * rates[step + 6]
    weights = load_file(out / "final" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["late", "gone"])
def test_a_message_without_an_answer_names_the_rank_in_bounded_time(how, tmp_path):
    run(launcher("cpu_2proc", "tests/distributed/lost_rank.py", tmp_path, how))
    seconds, _, said = (tmp_path / "said.txt").read_text().partition(" ")
    assert said.startswith("rank 1 of 2 " + {"late": "did not answer within 5s", "gone": "is gone"}[how]), said
    assert float(seconds) < 13  # 4 s of the message and 5 s of the roll call


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_under_zero_a_nan_goes_back_to_the_checkpoint_too(name, data_dir, tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    out = tmp_path / "out"
    options = {**STEPS, "data_dir": data_dir, "output_dir": out, "max_steps": 12, "max_bad_steps": 2}
    options |= {"per_device_train_batch_size": batch_of_epoch(data_dir, 4), "num_epochs_between_checkpoints": 1}
    bad = json.dumps({"nan": {"1": [3, 6, 7]}})
    done = launch_form(write_cpu_form(name, tmp_path), options, FAULTY_RUN, bad, ok=True)
    not_finite = "step 7: 2 steps in a row had a loss or gradient that is not finite"
    assert f"{not_finite}: back to {out}/checkpoint-4" in done.stderr  # after an epoch of 4 steps
    account = report(out)
    assert (account["bad_steps"], account["roll_backs"], account["steps"]) == (3, 1, 12)
    rates = {line["step"]: line["learning_rate"] for line in losses(out)}
    assert rates[7] == pytest.approx(2 * rates[8])
    assert all(tensor.isfinite().all() for tensor in load_file(out / "final" / "model.safetensors").values())


@pytest.mark.slow
def test_a_late_rank_and_a_clock_that_is_wrong_by_5_s_change_nothing_between_the_ranks(data_dir, tmp_path):
    out, troubles = tmp_path / "out", {"late": 0, "skew": 1}
    options = {**TINY, "data_dir": data_dir, "output_dir": out, "disable_tqdm": True, "total_training_time": "40s"}
    flags = words({**options, "validate_every": "40%"})
    done = run(launcher("cpu_2proc", FAULTY_RUN, json.dumps(troubles), *flags), ok=True)
    assert len(json.loads(done.stderr.rpartition("late before the steps ")[2].splitlines()[0])) >= 3
    account = report(out)
    first, second = account["ranks"]
    assert first["steps"] == second["steps"] == account["steps"]
    assert first["learning_rates_sha256"] == second["learning_rates_sha256"]
    assert account["stop_reason"] == "budget" and account["used_seconds"] >= 0.93 * 40
