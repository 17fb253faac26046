"""The curves where people look at them: each tracker by its own files, without an account and without a network."""

import glob
import json
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainingArguments

from budget_trainer import BudgetClock, TimeBudgetCallback
from budget_trainer.training import launch
from budget_trainer.training.callbacks import ShareAxis
from tests.conftest import STEPS, run, train
from tests.training.test_trainer import Mixed, Tick, parts

CURVES = {"train/loss", "train/learning_rate", "train/grad_norm", "train/share", "train/elapsed_seconds"}


def test_tensorboard_has_every_curve_over_steps_and_over_the_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    tick = Tick()
    budget = TimeBudgetCallback(clock=BudgetClock(40.0, time_fn=lambda: tick.now))
    given = parts(tmp_path, report_to="tensorboard", logging_steps=5)
    trainer = Mixed(**given, callbacks=[tick], time_budget=budget)
    trainer.add_callback(ShareAxis(budget, trainer.callback_handler.callbacks))
    trainer.train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= CURVES and tags >= {f"by_share/{name}" for name in CURVES}
    shares = events.Scalars("by_share/train/share")
    assert [point.step for point in shares] == [round(10_000 * point.value) for point in shares]
    losses = [point.value for point in events.Scalars("train/loss")]
    assert [point.value for point in events.Scalars("by_share/train/loss")] == losses and len(losses) >= 8


@pytest.mark.parametrize("budget", [BudgetClock(), BudgetClock(40.0)])
def test_without_tensorboard_or_a_budget_there_is_no_axis(tmp_path, budget):
    axis = ShareAxis(TimeBudgetCallback(clock=budget), [])
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    state = type("State", (), {"is_world_process_zero": True})()
    axis.on_train_begin(args, state, None)
    axis.on_log(args, state, None, logs={"loss": 1.0})


@pytest.mark.parametrize(
    ("variables", "netrc", "key"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": "0" * 40}, "", True),
        ({}, "machine api.wandb.ai login user password 0\n", True),
        ({}, "machine example.com login user password 0\n", False),
        ({"WANDB_BASE_URL": "https://example.com:8080"}, "machine example.com login user password 0\n", True),
        ({}, "machine", False),
    ],
)
def test_who_is_logged_in_to_wandb(tmp_path, monkeypatch, variables, netrc, key):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(netrc)
    for name, value in {"NETRC": str(tmp_path / "netrc"), **variables}.items():
        monkeypatch.setenv(name, value)
    assert launch._has_wandb_key() == key


def tracked(data_dir, folder, tracker, **variables):
    """A short run under `tracker`, where nobody is logged in and no network answers; its output folder."""
    out = folder / "out"
    options = {**STEPS, "max_steps": 6, "data_dir": data_dir, "output_dir": out, "report_to": tracker, "use_cpu": True}
    alone = {"HOME": str(folder), "NETRC": str(folder / "netrc"), "HF_HUB_OFFLINE": "1", **variables}
    alone |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    train(options, env={**alone, "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}, ok=True)
    return out


def wandb_records(content):
    """The records of a file of wandb: a header of 7 bytes, then LevelDB's log of blocks of 32 KiB, each piece with a header."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last piece
            yield record
            record = b""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_keeps_its_files_in_the_run(data_dir, tmp_path):
    out = tracked(data_dir, tmp_path, "wandb")
    from wandb.proto import wandb_internal_pb2

    (path,) = glob.glob(f"{out}/wandb/offline-run-*/run-*.wandb")
    rows, axes = [], {}
    for data in wandb_records(Path(path).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({name: json.loads(value) for name, value in items.items()})
        if record.WhichOneof("record_type") == "metric":
            axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
    assert axes["*"] == "train/share"
    assert CURVES <= {name for row in rows for name in row} and any("eval/loss" in row for row in rows)
    assert all(0 <= row["train/share"] <= 1 for row in rows if "train/loss" in row)


READ = """
import json
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("huggingface")
print(json.dumps([name, SQLiteStorage.get_logs("huggingface", name)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_one_run_here(data_dir, tmp_path):
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    out = tracked(data_dir, tmp_path, "trackio", **variables)
    done = run([sys.executable, "-c", READ], env={**variables, "HOME": str(tmp_path)}, ok=True)
    name, rows = json.loads(done.stdout.splitlines()[-1])
    assert name == Path(out).name, "with the final evaluation, which comes behind the training"
    assert CURVES <= {key for row in rows for key in row} and any("eval/loss" in row for row in rows)
