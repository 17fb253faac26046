"""Kill -9 in the middle, resume: the same run as one that nobody disturbed, bit for bit."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from budget_trainer.reporting.report import environment
from tests.conftest import TINY, progress, report, spawn, train, wait_for, words

STEPS = {
    **TINY,
    "hidden_dropout_prob": 0.1,  # the dropout generator has to resume too
    "attention_probs_dropout_prob": 0.1,
    "lr_schedule": "step",
    "max_steps": 60,
    "num_epochs_between_checkpoints": 1,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def options(data_dir):
    """A checkpoint at step 30 exactly: the batch is a 30th, rounded up, of as many shards as make that fall on step 30."""
    manifest = json.loads((data_dir / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["rows"] // 2
    shards = next(n for n in range(1, 100) if 29 * -(-n * shard // 30) < n * shard)
    cadence = {"num_epochs_between_checkpoints": shards, "per_device_train_batch_size": -(-shards * shard // 30)}
    return {**STEPS, "data_dir": data_dir, **cadence}


def kill_at(options, output_dir, step, number=signal.SIGKILL, code=-signal.SIGKILL):
    """Start a run and send it a signal (kill -9) when it has logged `step`; returns what it wrote to stderr."""
    command = [sys.executable, "train_mlm.py", *words({**options, "output_dir": output_dir})]
    process, log = spawn(command, stdout=subprocess.DEVNULL), output_dir / "progress.jsonl"
    ready = lambda: log.exists() and len(log.read_text().splitlines()) >= step  # noqa: E731
    wait_for(lambda: process.poll() is not None or ready())
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == code and log.exists(), error
    return error


@pytest.mark.parametrize("optimizer_type", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_kill_and_resume_is_bit_exact(options, optimizer_type, tmp_path):
    options = {**options, "optimizer_type": optimizer_type}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = train({**options, "output_dir": whole})
    assert done.returncode == 0, done.stderr

    kill_at(options, broken, 40)
    before = json.loads((broken / "clock.json").read_text())["elapsed_seconds"]
    assert not (broken / "final").exists()
    assert [folder.name for folder in broken.glob("checkpoint-*")] == ["checkpoint-30"]
    assert (broken / "checkpoint-30" / "manifest.json").exists()
    refused = train({**options, "output_dir": broken})
    assert refused.returncode == 2 and "--resume_from_checkpoint auto" in refused.stderr
    done = train({**options, "output_dir": broken, "resume_from_checkpoint": "auto"})
    assert done.returncode == 0, done.stderr

    first, second = progress(whole), progress(broken)
    resumed = [line for line in second if line["job"] == 2 and "loss" in line]
    expected = [line for line in first if "loss" in line and line["step"] > 30]
    assert [line["step"] for line in resumed] == list(range(31, 61))
    for name in ("loss", "learning_rate", "grad_norm"):
        assert [line[name] for line in resumed] == [line[name] for line in expected], name
    a, b = load_file(whole / "final" / "model.safetensors"), load_file(broken / "final" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert report(broken)["jobs"] == 2 and report(broken)["steps"] == 60
    assert report(broken)["used_seconds"] > before
    assert sum(report(broken)["shares"].values()) == pytest.approx(report(broken)["used_seconds"])


SLOW = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGUSR1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, *SLOW])
def test_a_signal_leaves_a_checkpoint_and_exit_85(options, number, tmp_path):
    output_dir = tmp_path / "run"
    never = {**options, "num_epochs_between_checkpoints": -1}
    error = kill_at(never, output_dir, 10, number, 85)
    assert "stop_requested" in error and not (output_dir / "final").exists()
    (checkpoint,) = output_dir.glob("checkpoint-*")
    assert (checkpoint / "manifest.json").exists()
    assert 10 <= int(checkpoint.name.removeprefix("checkpoint-")) < 60


def test_resume_refuses_another_model_and_a_damaged_checkpoint(options, tmp_path):
    output_dir = tmp_path / "run"
    kill_at({**options, "max_steps": 1000}, output_dir, 40)
    again = {**options, "max_steps": 1000, "output_dir": output_dir, "resume_from_checkpoint": "auto"}
    other = train({**again, "hidden_size": 64})
    assert other.returncode == 2
    assert other.stderr.strip().splitlines()[-1].startswith("error: resume_from_checkpoint: ")
    assert "model.hidden_size=32" in other.stderr

    (checkpoint,) = output_dir.glob("checkpoint-*")
    with open(checkpoint / "optimizer.pt", "r+b") as file:
        file.seek(100)
        file.write(b"damage")
    damaged = train(again)
    assert damaged.returncode == 2 and "does not match its checksum" in damaged.stderr


def awaits_evaluation(output_dir):
    """As a job leaves the folder that is killed behind `final/`, before picture and card; RESUMABLE is deleted."""
    state = json.loads((output_dir / "run.json").read_text())
    assert state["state"] == "finished"
    (output_dir / "run.json").write_text(json.dumps({**state, "state": "evaluating"}))
    (output_dir / "run_report.png").unlink()


def test_killed_in_the_last_evaluation_only_that_is_made_up_for(options, tmp_path):
    output_dir = tmp_path / "run"
    options = {**options, "max_steps": 5, "num_epochs_between_checkpoints": -1, "output_dir": output_dir}
    done = train(options)
    assert done.returncode == 0, done.stderr
    whole = report(output_dir)
    draft = {name: value for name, value in whole.items() if name not in environment()}  # as it is before final/
    due = {"evaluation": None, "markers_in_final": ["finetune-99.9"]}  # as if the last marker lay in the reserve
    (output_dir / "run_report.json").write_text(json.dumps({**draft, **due}))
    awaits_evaluation(output_dir)
    refused = train(options)
    assert refused.returncode == 2 and "already has final/" in refused.stderr
    done = train({**options, "resume_from_checkpoint": "auto"})
    assert done.returncode == 0, done.stderr
    again = report(output_dir)
    assert again["evaluation"] == pytest.approx(whole["evaluation"], rel=1e-5)
    assert (output_dir / "run_report.png").exists()
    assert {**again, **due} == {**whole, **due}
    marked, final = (output_dir / name / "model.safetensors" for name in ("finetune-99.9", "final"))
    assert marked.read_bytes() == final.read_bytes()
    refused = train({**options, "resume_from_checkpoint": "auto"})
    assert refused.returncode == 2 and "already has final/" in refused.stderr

    awaits_evaluation(output_dir)  # killed with the report written, before picture and card
    done = train({**options, "resume_from_checkpoint": "auto"})
    assert done.returncode == 0, done.stderr
    assert (output_dir / "run_report.png").exists() and not (output_dir / "RESUMABLE").exists()
