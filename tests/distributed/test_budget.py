"""Real runs: the budget is kept, by one process and by two under `accelerate launch`, also when one is slowed."""

import os
import signal
import sys
import threading
import time

import pytest
from safetensors.torch import load_file

from tests.conftest import TINY, launch, progress, rank_pid, report, run, start, train

NATIVE = """
import sys
sys.path = [p for p in sys.path if p]  # not the project's folder
from transformers import AutoModelForMaskedLM, AutoTokenizer
import torch
model, tokenizer = AutoModelForMaskedLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
print(type(model).__name__, model(**tokenizer("some words", return_tensors="pt")).logits.shape[-1])
assert "budget_trainer" not in sys.modules
"""


def check_budget(output_dir, seconds, processes, at_least=0.95):
    account = report(output_dir)
    assert account["stop_reason"] == "budget" and account["world_size"] == processes
    assert at_least * seconds <= account["used_seconds"] <= seconds
    assert sum(account["shares"].values()) == pytest.approx(account["used_seconds"])
    assert account["learning_rate_last"] <= 0.02 * account["learning_rate_peak"]
    assert len({(rank["steps"], rank["learning_rates_sha256"]) for rank in account["ranks"]}) == 1
    assert len(account["ranks"]) == processes and account["steps"] == account["ranks"][0]["steps"]
    return account


def test_one_process_keeps_30_seconds_and_leaves_a_native_checkpoint(data_dir, tmp_path):
    out = tmp_path / "out"
    options = {**TINY, "report_to": "tensorboard", "finetune_time_markers": "0.75,0.999", "validate_every": "20%"}
    options |= {"logging_steps": 10, "checkpoint_every": "25s", "data_dir": data_dir, "output_dir": out}
    launch({**options, "total_training_time": "30s"}, ok=True)
    account = check_budget(out, 30, 1)
    assert account["engine"] == "single" and account["tokens"] == account["steps"] * 8 * 64

    names = {path.name for path in out.iterdir()}
    assert {"final", "finetune-75", "finetune-99.9", "clock.json", "progress.jsonl", "run_report.json"} <= names
    assert "run_report.png" in names and (out / "tensorboard").is_dir()
    assert len([name for name in names if name.startswith("checkpoint-")]) == 1
    assert not [name for name in names if name.startswith(".")], "nothing unfinished is left"
    assert {path.suffix for path in (out / "final").iterdir()} <= {".json", ".safetensors", ".md", ".png"}
    assert "run_report.png" in (out / "final" / "README.md").read_text()
    marked, final = (load_file(out / name / "model.safetensors") for name in ("finetune-75", "final"))
    assert any(not marked[key].equal(final[key]) for key in final)

    lines = progress(out)
    validations = [line for line in lines if "evaluation" in line]
    assert validations and validations[-1]["evaluation"]["loss"] < validations[0]["evaluation"]["loss"] + 0.1
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all(0 < line["share"] <= 1 for line in lines[:-1])

    native = run([sys.executable, "-c", NATIVE, out / "final"], env={"PYTHONPATH": ""})
    assert native.returncode == 0 and native.stdout.split()[0] == "ModernBertForMaskedLM", native.stderr


def slow_rank_1(launcher, done):
    """Stop and continue rank 1 from outside, in short bursts, until `done`."""
    while not done.is_set():
        pid = rank_pid(launcher.pid, 1)
        if pid is not None:
            try:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.1)
                os.kill(pid, signal.SIGCONT)
            except OSError:
                continue
        time.sleep(0.1)


@pytest.mark.slow
def test_two_processes_one_slowed_agree_and_keep_40_seconds(data_dir, tmp_path):
    out = tmp_path / "out"
    options = {**TINY, "data_dir": data_dir, "output_dir": out, "total_training_time": "40s", "disable_tqdm": True}
    launcher = start(options)
    done = threading.Event()
    slower = threading.Thread(target=slow_rank_1, args=(launcher, done))
    slower.start()
    try:
        _, error = launcher.communicate(timeout=240)
    finally:
        done.set()
        slower.join()
        launcher.kill()
    assert launcher.returncode == 0, error
    assert check_budget(out, 40, 2, at_least=0.93)["engine"] == "ddp"


@pytest.mark.slow
def test_job_time_limit_ends_the_job_with_a_checkpoint_and_the_next_one_finishes(data_dir, tmp_path):
    out = tmp_path / "out"
    options = {**TINY, "data_dir": data_dir, "output_dir": out, "total_training_time": "55s", "disable_tqdm": True}
    options |= {"use_cpu": True}
    first = train({**options, "job_time_limit": "20s"})
    assert first.returncode == 85 and "--resume_from_checkpoint auto" in first.stderr
    assert not (out / "final").exists()
    (checkpoint,) = out.glob("checkpoint-*")
    train({**options, "resume_from_checkpoint": "auto", "early_exit_time_marker": "42s"}, ok=True)
    account = report(out)
    assert account["jobs"] == 2 and account["stop_reason"] == "early_exit_time_marker"
    assert 0.95 * 42 <= account["used_seconds"] <= 42
    assert account["steps"] > int(checkpoint.name.removeprefix("checkpoint-"))
    assert account["learning_rate_last"] < account["learning_rate_peak"]

    # Nothing left: the newest complete checkpoint becomes the final model, and the overrun is said.
    (out / "final").rename(tmp_path / "first-final")
    third = train({**options, "resume_from_checkpoint": "auto", "total_training_time": "25s"}, ok=True)
    final, saved = (load_file(folder / "model.safetensors") for folder in (out / "final", checkpoint))
    assert all(final[key].equal(saved[key]) for key in saved)
    assert report(out)["overrun_seconds"] > 10 and "overrun" in third.stdout
