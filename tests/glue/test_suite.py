"""The suite with real runs: killed in the middle, stopped, failing, and inside of its time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file, save_file

from budget_trainer.core.io import fresh_folder, hold_folder
from budget_trainer.glue.suite import _seconds_used
from tests.conftest import children, run, spawn, wait_for, words
from tests.glue.conftest import SHORT, caller

GRID = """seeds: [1]
flags: {max_seq_length: 32, num_train_epochs: 2, per_device_train_batch_size: 8, learning_rate: 3e-3}
tasks:
  WNLI: {flags: {max_seq_length: 200}}  # more than the model has positions
"""


@pytest.fixture
def suite_options(options, tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    more = {"task_name": "RTE,WNLI,QNLI,AX", "grid": tmp_path / "grid.yaml", "intermediate_task": "MNLI"}
    return {**{name: value for name, value in options.items() if name not in SHORT}, **more}


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key not in ("seconds", "energy")}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def finished(folder):
    return {path.parent: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/result.json")}


def start_suite(options):
    process = spawn([sys.executable, "finetune_glue.py", *words(options)], stdout=subprocess.DEVNULL)
    os.set_blocking(process.stderr.fileno(), False)
    return process


def second_run_begins(folder, process):
    """Wait until one run is finished and the training of another has begun."""

    def there():
        assert process.poll() is None, process.stderr.read()
        logs = [path for path in folder.glob("runs/*/*/log.txt") if path.parent not in finished(folder)]
        return finished(folder) and logs and children(process.pid)

    wait_for(there)
    return children(process.pid)


def gone(pids):
    running = {
        process.pid for process in psutil.process_iter(["status"]) if process.info["status"] != psutil.STATUS_ZOMBIE
    }
    return not running & set(pids)


@pytest.mark.slow
def test_a_suite_is_stopped_killed_and_ends_as_if_nothing_had_been(suite_options, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    suite_options["task_name"] = "RTE,QNLI,AX"
    process = start_suite({**suite_options, "output_dir": broken})
    pids = second_run_begins(broken, process)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: process.poll() is not None, 60)
    assert process.returncode == 85 and gone(pids), "its runs have ended with it"
    before = finished(broken)
    assert len(before) == 1 and not (broken / "glue_runs.json").exists()

    process = start_suite({**suite_options, "output_dir": broken})
    wait_for(lambda: len(children(process.pid)) >= 2)  # launcher and script
    pids = children(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: gone(pids), 60)  # nobody told them

    texts = {}
    for folder in (broken, straight):
        process = start_suite({**suite_options, "output_dir": folder})
        wait_for(lambda process=process: process.poll() is not None)
        assert process.returncode == 0
        texts[folder] = (folder / "glue_runs.json").read_text()
    after = finished(broken)
    assert {path: after[path] for path in before} == before, "a finished run was repeated"
    one, two = (without_seconds(json.loads(texts[folder])) for folder in (broken, straight))
    assert one == two
    reports = [json.loads((folder / "glue_report.json").read_text()) for folder in (broken, straight)]
    assert without_seconds(reports[0]) == without_seconds(reports[1]) and reports[0]["absent"].keys() == {"QNLI"}
    for made in ("submission_missing.txt", *(f"submission/{path.name}" for path in straight.glob("submission/*"))):
        assert (broken / made).read_bytes() == (straight / made).read_bytes()
    assert one["tasks"]["RTE"]["starts_from"] == "MNLI" and one["covered"] == {"AX": "MNLI"}
    best = straight / one["tasks"]["MNLI"]["best_run"]["folder"]
    assert (best / "model" / "model.safetensors").exists() and (best / "predictions" / "ax.json").exists()
    assert not (straight / one["tasks"]["RTE"]["best_run"]["folder"] / "model").exists()
    # once more: nothing is left to do, and nothing changes
    run([sys.executable, "finetune_glue.py", *words({**suite_options, "output_dir": straight})], ok=True)
    assert (straight / "glue_runs.json").read_text() == texts[straight]


@pytest.fixture
def suite(suite_options, monkeypatch):
    """The suite in this process; its runs are processes all the same."""
    return caller(suite_options, monkeypatch, "glue_runs.json")


def test_a_failing_run_does_not_end_the_suite(suite, tmp_path, capfd):
    code, content = suite(task_name="RTE,WNLI", intermediate_task=None)
    assert code == 1 and content["failed"] == 1
    (failed,) = content["tasks"]["WNLI"]["configurations"][0]["runs"]
    assert failed["status"] == "failed" and failed["error"].startswith("max_seq_length: 200 is beyond the 64")
    assert content["tasks"]["WNLI"]["headline"] is None and content["tasks"]["RTE"]["headline"]["median"] >= 0
    assert "WNLI   accuracy              every run failed" in capfd.readouterr().out
    # another suite does not write over it
    assert suite(task_name="RTE", intermediate_task=None, seeds="1,2")[0] == 2
    assert "suite.json is of another suite (model, data, tasks, grid or time); add" in capfd.readouterr().err


def test_an_intermediate_task_that_fails_takes_only_its_own_with_it(suite, tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID + "  MNLI: {flags: {max_seq_length: 200}}\n")
    code, content = suite(task_name="RTE,CoLA")
    assert code == 1 and content["failed"] == 2
    (failed,) = content["tasks"]["RTE"]["configurations"][0]["runs"]
    assert failed["error"].startswith("intermediate_task: all runs of MNLI failed (max_seq_length: 200 is beyond")
    assert content["tasks"]["CoLA"]["headline"] is not None and (tmp_path / "out" / "glue_report.md").exists()


@pytest.mark.slow
def test_the_time_of_another_suite_is_not_charged(suite, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "suite.json").write_text(json.dumps({"protocol": {}, "model": {"sha256": "x"}}))
    (tmp_path / "out" / "clock.json").write_text(json.dumps({"elapsed_seconds": 3000.0}))
    options = {"task_name": "RTE", "intermediate_task": None, "total_training_time": "50s"}
    assert suite(**options)[0] == 2 and "is of another suite" in capfd.readouterr().err
    code, content = suite("--overwrite_output_dir", **options)
    assert code == 0 and content["failed"] == 0
    assert not {"TENSORBOARD_LOGGING_DIR", "WANDB_DIR"} & os.environ.keys(), (
        "each run has its own folders for trackers"
    )
    assert json.loads((tmp_path / "out" / "clock.json").read_text())["elapsed_seconds"] <= 50
    # an edited grid is another suite, another spelling of its path is not
    (tmp_path / "sub").mkdir()
    assert suite(**options, grid=tmp_path / "sub" / ".." / "grid.yaml")[0] == 0
    (tmp_path / "grid.yaml").write_text(GRID.replace("3e-3", "2e-3"))
    assert suite(**options)[0] == 2 and "is of another suite" in capfd.readouterr().err


@pytest.mark.slow
def test_a_suite_ends_inside_of_its_time(suite, tmp_path):
    begin = time.monotonic()
    endless = {"num_train_epochs": 100000, "total_training_time": "60s"}
    code, content = suite(task_name="SST-2", intermediate_task=None, seeds="7", **endless)
    took = time.monotonic() - begin
    assert code == 0 and took <= 60, took
    ((entry,),) = [one["runs"] for one in content["tasks"]["SST-2"]["configurations"]]
    result = json.loads((tmp_path / "out" / entry["folder"] / "result.json").read_text())
    assert result["stopped_by"] == "budget" and result["seconds"]["total"] <= 1.02 * result["budget_seconds"] < 60
    assert json.loads((tmp_path / "out" / "clock.json").read_text())["elapsed_seconds"] <= 60


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"total_training_time": "10s"}, "total_training_time: 10s for 3 runs leaves 3.3s for each, less than"),
        ({"grid": "/nowhere.yaml"}, "recipe: /nowhere.yaml cannot be read"),
        ({"do_train": "true"}, "do_predict: a suite does all; leave do_train,"),
        ({"seeds": "1,1"}, "seeds: ['1', '1'] are not different whole numbers"),
        ({"intermediate_task": "MLNI"}, "task_name: 'MLNI' is no task of GLUE; did you mean MNLI?"),
        ({"model_name_or_path": "/"}, "model_name_or_path: / has no config.json"),
        ({"task_name": "QNLI,QQP", "intermediate_task": None}, "task_name: no task can be run ("),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(suite, error, tmp_path, changes, expected):
    assert suite(**changes) == (2, None)
    assert error().startswith(expected) and not (tmp_path / "out").exists()


def test_several_processes_and_two_suites_are_refused(suite, capfd, monkeypatch, tmp_path):
    with hold_folder(tmp_path / "out"):
        assert suite()[0] == 2
    assert f"output_dir: {tmp_path / 'out'} is in use by process {os.getpid()} on" in capfd.readouterr().err


def test_a_damaged_clock_is_what_the_finished_runs_took(tmp_path):
    for number, seconds in enumerate((30.0, 10.0)):
        folder = fresh_folder(tmp_path / "runs" / "RTE" / str(number))
        (folder / "result.json").write_text(
            json.dumps({"format": 1, "predictions": {}, "seconds": {"total": seconds}})
        )
    assert _seconds_used(tmp_path / "clock.json", [None]) == {}
    (tmp_path / "clock.json").touch()
    assert _seconds_used(tmp_path / "clock.json", ["0", "1"]) == {"train": 20.0}


@pytest.mark.slow
def test_scores_over_the_budget(suite, tiny_model, tmp_path, capfd):
    source = tmp_path / "pretrained"
    for name in ("finetune-25", "final"):
        shutil.copytree(tiny_model, source / name)
    path = source / "final" / "model.safetensors"
    save_file({key: 1.5 * value for key, value in load_file(path).items()}, path, {"format": "pt"})
    report = {"used_seconds": 590.0, "recipe": {"total_training_time": "10m"}}
    (source / "run_report.json").write_text(json.dumps(report))
    given = {"model_name_or_path": None, "task_name": "RTE", "intermediate_task": None}
    both = ("--checkpoints", str(source / "final"), str(source / "finetune-*"))  # a pattern that no shell has expanded
    code, _ = suite(*both, **given, total_training_time="100s")
    assert code == 0
    out = json.loads((tmp_path / "out" / "glue_over_budget.json").read_text())
    minutes = {one["name"]: round(one["minutes"], 2) for one in out["checkpoints"]}
    assert minutes == {"finetune-25": 2.5, "final": 9.83} and list(minutes)[1] == "final"
    for place, name in enumerate(("finetune-25", "final")):
        content = json.loads((tmp_path / "out" / name / "glue_runs.json").read_text())
        assert content["model"]["name_or_path"] == str(source / name)
        assert out["lines"]["RTE"][place]["median"] == round(content["tasks"]["RTE"]["headline"]["median"], 6)
        assert (tmp_path / "out" / name / "glue_report.md").exists()
        assert json.loads((tmp_path / "out" / name / "clock.json").read_text())["elapsed_seconds"] <= 50
    assert suite("--checkpoints", str(source / "final"), **given)[0] == 2
    assert "is of another suite" in capfd.readouterr().err
    assert suite("--checkpoints", str(source / "final"), **{**given, "model_name_or_path": tiny_model})[0] == 2
    assert "checkpoints: they are the models; leave model_name_or_path out" in capfd.readouterr().err
