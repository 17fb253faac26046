"""Kill -9 in the middle, resume: the same run as one that nobody disturbed, bit for bit."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from budget_trainer.reporting.report import environment
from tests.conftest import TINY, losses, report, spawn, train, wait_for, words

STEPS = {
    **TINY,
    "hidden_dropout_prob": 0.1,  # the generator of dropout and samples has to resume too
    "cross_entropy": "sampled",
    "softmax_samples": 100,
    "final_weight_rms": 0.05,
    "detection_weight": 2,
    "twin_probability": 0.3,
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
def test_kill_and_resume_is_bit_exact(options, optimizer_type, tmp_path, refused):
    options = {**options, "optimizer_type": optimizer_type}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train({**options, "output_dir": whole}, ok=True)

    kill_at(options, broken, 40)
    before = json.loads((broken / "clock.json").read_text())["elapsed_seconds"]
    assert not (broken / "final").exists()
    assert [folder.name for folder in broken.glob("checkpoint-*")] == ["checkpoint-30"]
    assert (broken / "checkpoint-30" / "manifest.json").exists()
    again = {**options, "output_dir": broken, "resume_from_checkpoint": "auto"}
    code, error = refused({**options, "output_dir": broken})
    assert code == 2 and "--resume_from_checkpoint auto" in error
    code, error = refused({**again, "hidden_size": 64})
    assert code == 2 and error.startswith("error: resume_from_checkpoint: ") and "model.hidden_size=32" in error
    state = broken / "checkpoint-30" / "optimizer.pt"
    content = state.read_bytes()
    state.write_bytes(content[:100] + b"damage" + content[106:])
    code, error = refused(again)
    assert code == 2 and "does not match its checksum" in error
    state.write_bytes(content)
    train(again, ok=True)

    resumed, expected = losses(broken, job=2), [line for line in losses(whole) if line["step"] > 30]
    assert [line["step"] for line in resumed] == list(range(31, 61))
    for name in ("loss", "masked_loss", "detection_loss", "learning_rate", "grad_norm"):
        assert [line[name] for line in resumed] == [line[name] for line in expected], name
    a, b = load_file(whole / "final" / "model.safetensors"), load_file(broken / "final" / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    inner, own = "model.layers.1.mlp.Wi.weight", load_file(broken / "checkpoint-30" / "model.safetensors")
    assert a[inner].square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-4), "of the saved model"
    table = "model.embeddings.tok_embeddings.weight"
    assert a[table].square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-4), "and its embeddings"
    eps = [json.loads((broken / of / "config.json").read_text())["norm_eps"] for of in ("checkpoint-30", "final")]
    assert own[table].square().mean().sqrt().item() < 0.04 and eps[0] == 1e-5 < eps[1], (
        "with the epsilon of their norm"
    )
    assert {n for n in own if "detection." in n} and not {n for n in a if "detection." in n}, "a head of training only"
    for line in resumed:
        weight = 2 * (1 - (line["step"] - 1) / 60)
        assert line["loss"] == pytest.approx(line["masked_loss"] + weight * line["detection_loss"], rel=1e-5)
    assert own[inner].square().mean().sqrt().item() < 0.04, "a checkpoint has the scale of training"
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


def awaits_evaluation(output_dir):
    """As a job leaves the folder that is killed behind `final/`, before picture and card; RESUMABLE is deleted."""
    state = json.loads((output_dir / "run.json").read_text())
    assert state["state"] == "finished"
    (output_dir / "run.json").write_text(json.dumps({**state, "state": "evaluating"}))
    (output_dir / "run_report.png").unlink()


@pytest.mark.slow
def test_killed_in_the_last_evaluation_only_that_is_made_up_for(options, tmp_path, refused):
    output_dir = tmp_path / "run"
    options = {**options, "max_steps": 5, "num_epochs_between_checkpoints": -1, "output_dir": output_dir}
    train(options, ok=True)
    whole = report(output_dir)
    draft = {name: value for name, value in whole.items() if name not in environment()}  # as it is before final/
    due = {"evaluation": None, "markers_in_final": ["finetune-99.9"]}  # as if the last marker lay in the reserve
    (output_dir / "run_report.json").write_text(json.dumps({**draft, **due}))
    awaits_evaluation(output_dir)
    code, error = refused(options)
    assert code == 2 and "already has final/" in error
    again = {**options, "resume_from_checkpoint": "auto"}
    train(again, ok=True)
    made_up = report(output_dir)
    near = 5e-4  # final/ has its scales moved into the norms: the same outputs but for these norms' epsilon
    assert made_up["evaluation"] == pytest.approx(whole["evaluation"], rel=near)
    assert (output_dir / "run_report.png").exists()
    assert {**made_up, **due} == {**whole, **due}
    marked, final = (output_dir / name / "model.safetensors" for name in ("finetune-99.9", "final"))
    assert marked.read_bytes() == final.read_bytes()
    code, error = refused(again)
    assert code == 2 and "already has final/" in error

    awaits_evaluation(output_dir)  # killed with the report written, before picture and card
    train(again, ok=True)
    assert (output_dir / "run_report.png").exists() and not (output_dir / "RESUMABLE").exists()
