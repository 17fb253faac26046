"""budget_trainer.plan as people call it: a probe, a recipe that runs as written, planned beside did; and bad input."""

import json
import math
import os
import sys
from dataclasses import replace
from unittest.mock import Mock

import pytest
import yaml

from budget_trainer import plan as command_module
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_json_atomic
from budget_trainer.plan import main
from budget_trainer.planning.result import make_plan
from budget_trainer.reporting.report import Plan
from tests.conftest import TINY, alive, children, report, run, spawn, wait_for
from tests.planning.test_predict import REPORT

PLAN = [sys.executable, "-m", "budget_trainer.plan"]


@pytest.fixture(scope="module")
def planned(data_dir, tmp_path_factory):
    """A plan of 40 s for a tiny model with a batch of 8, and the recipe that it wrote."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"validate_every": "30%"}) + "# the end\n")
    command = [*PLAN, folder / "tiny.yaml", "--data_dir", data_dir, "--total_training_time", "40s"]
    command += ["--probe_seconds", 30, "--price_per_hour", 9, "--mlm_probability_curve", "0.3@0,0.15@0.5"]
    command += ["--write", folder / "new.yaml", "--json", folder / "plan.json", "--picture", folder / "plan.png"]
    done = run(command)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_plan_says_what_people_decide_by(planned):
    folder, text = planned
    plan = json.loads((folder / "plan.json").read_text())
    for word in ("micro-batch", "tokens/s", "passes over the corpus", "set-up", "saving", "ends", "suits", "MFU"):
        assert word in text, word
    assert "0.10 at 9 per hour" in text  # of 40 s
    assert plan["micro_batch"] * plan["gradient_accumulation_steps"] == 8 == plan["total_batch"]
    prediction = plan["prediction"]
    assert prediction["tokens"] == prediction["steps"] * 8 * 64 > 0
    assert prediction["used_seconds"] <= 40 and plan["probe_seconds"] <= 82
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "new.plan.json").read_text()) == plan


@pytest.mark.slow
def test_the_recipe_runs_as_it_is_and_the_report_has_planned_and_did(planned, tmp_path):
    folder, _ = planned
    assert "# the end" in (folder / "new.yaml").read_text()
    done = run([sys.executable, "train_mlm.py", folder / "new.yaml", "--output_dir", tmp_path / "run"])
    assert done.returncode == 0, done.stderr
    account = report(tmp_path / "run")
    compared = account["planned"]
    assert compared["same_machine"]
    assert compared["tokens"]["did"] == account["tokens"] and compared["steps"]["did"] == account["steps"]
    # Other work between plan and run has cost more than half (0.47 was seen): the figure is that of benchmarks/planner.py,
    # and what follows from given measurements is tested in test_predict.
    assert 1 / 3 < compared["tokens"]["did"] / compared["tokens"]["planned"] < 3
    assert "planned " in done.stdout and "planned and did" in (tmp_path / "run" / "final" / "README.md").read_text()


def test_a_plan_of_another_run_is_refused_before_anything_is_written(planned, tmp_path, refused):
    folder, _ = planned
    code, error = refused({"output_dir": tmp_path / "run", "num_hidden_layers": 3}, folder / "new.yaml")
    assert code == 2 and error.startswith("error: plan: made for num_hidden_layers 2, this run has 3")
    assert not (tmp_path / "run").exists()


def test_what_a_plan_is_compared_with(tmp_path, monkeypatch):
    plan = make_plan(REPORT, num_processes=1, price_per_hour=None)
    (tmp_path / "beside").mkdir()
    write_json_atomic(tmp_path / "beside" / "new.plan.json", plan)
    write_json_atomic(tmp_path / "own.json", plan)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.plan.json").write_text("another recipe's")
    plan = Plan.read("new.plan.json", "beside/new.yaml").content  # beside the recipe first, then in the current folder
    assert plan == Plan.read("own.json", "beside/new.yaml").content
    same = {"total_seconds": 100.0, "processes": 1, "data": plan["data"]["fingerprint"]}
    endless = {**plan, "total_seconds": None}
    Plan(plan).check(plan["recipe"], **same)
    Plan(endless).check(plan["recipe"], **(same | {"total_seconds": math.inf}))
    for made, change, text in (
        (endless, {}, "made for total_training_time in seconds inf, this run has 100.0; plan again"),
        (plan, {"total_seconds": 60.0}, "total_training_time in seconds 100.0, this run has 60.0"),
        (plan, {"processes": 2}, "made for num_processes 1, this run has 2"),
        (plan, {"data": "other"}, "made for the data of data_dir 'f', this run has 'other'"),
    ):
        with pytest.raises(InputError, match=text):
            Plan(made).check(plan["recipe"], **(same | change))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 7}', '{"format": 1, "prediction": {}}'])
def test_a_file_that_is_no_plan(content, tmp_path):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match="plan: "):
        Plan.read(str(tmp_path / "plan.json"))
    with pytest.raises(InputError, match="is not there"):
        Plan.read("nowhere.json", str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # what needs no probe
        ("", "recipe: missing"),
        ("nowhere.yaml", "recipe: nowhere.yaml is not there"),
        ("recipes/cpu_10m.yaml", "total_training_time: missing"),
        ("recipes/cpu_10m.yaml --deadline 2100-12-24T08:00Z", "deadline: 2100-12-24T08:00Z has no place in a plan"),
        ("recipes/cpu_10m.yaml --price_per_hour -1", "price_per_hour: -1 is below 0"),
        ("recipes/cpu_10m.yaml --price_per_hour much", "price_per_hour: much is below 0 or no price"),
        ("recipes/cpu_10m.yaml --price_per_hour inf", "price_per_hour: inf is below 0 or no price"),
        ("recipes/cpu_10m.yaml --probe_seconds 0", "probe_seconds: 0"),
        ("recipes/cpu_10m.yaml --num_processes 0", "num_processes: 0"),
        ("recipes/cpu_10m.yaml --json nowhere/plan.json", "its folder is not there"),
        ("recipes/cpu_10m.yaml --write README.md", "README.md: is there already; add --overwrite"),
        # what the run itself would refuse
        ("recipes/quickstart.yaml --total_training_time 24h --data_dir /nowhere --picture PNG", "/nowhere"),
        ("recipes/quickstart.yaml --total_training_time 24h --picture PNG", "data_dir: missing"),
        (
            "recipes/quickstart.yaml --total_training_time 24h --hiden_size 3 --picture PNG",
            "did you mean hidden_size?",
        ),
    ],
)
def test_bad_input(words, message, tmp_path, capfd):
    picture = tmp_path / "p.png"
    assert main(words.replace("PNG", str(picture)).split()) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1] and not picture.exists()
    assert len(lines) == 1 or "PNG" in words  # a probe is announced


@pytest.fixture
def hour(data_dir, tmp_path):
    """The command line of a plan for an hour of a tiny model."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = [tmp_path / "tiny.yaml", "--data_dir", data_dir, "--total_training_time", "1h"]
    return [str(word) for word in (*words, "--picture", tmp_path / "p.png")]


def test_a_probe_without_time_says_so(hour, capfd):
    assert main([*hour, "--probe_seconds", "1"]) == 1
    assert "probe: its time was over while it was setting up" in capfd.readouterr().err


def test_the_probe_ends_with_its_parent(hour):
    parent = spawn([*PLAN, *hour, "--probe_seconds", 60])
    wait_for(lambda: children(parent.pid))
    probe = children(parent.pid)[0]
    wait_for(lambda: len(os.listdir(f"/proc/{probe}/task")) > 1)  # it listens for its parent's end in a second thread
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(probe), seconds=5)


PROFILES = [("cpu", 1, "cpu.yaml"), ("cpu", 2, "cpu_2proc.yaml --num_processes 2")]
PROFILES += [("cuda:0", 1, "single_gpu.yaml"), ("cuda:0", 2, "ddp.yaml --num_processes 2")]
PROFILES += [("mps:0", 1, "mps.yaml")]


@pytest.mark.parametrize(("device", "processes", "profile"), PROFILES)
def test_what_is_stored_of_a_plan(device, processes, profile, tmp_path, monkeypatch, capsys):
    """With a report as of a probe: flags become lines of the recipe, and the command that runs it fits the devices."""
    ask = Mock(return_value=(replace(REPORT, device=device, compile="no"), None))
    monkeypatch.setattr(command_module, "_ask_probe", ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"output_dir: {tmp_path / 'a' / 'b'}\nbf16: true\n")
    flags = "--bf16 --no_bf16 --total-training-time=24h --bf16 --mlm-probability-curve 0.3@0,0.15@0.5 --seed -1"
    recipe = ["r.yaml", *flags.split(), "--data_dir=d"]
    assert main([*recipe, "--write", "new.yaml", "--num_processes", str(processes)]) == 0
    (words, folder, _), out = ask.call_args.args, capsys.readouterr().out
    assert words == recipe and folder.parent == tmp_path  # saving is timed on the run's disk
    name, *processes_there = profile.split(".yaml")
    launched = f"$(budget-profile {name}){''.join(processes_there)} -m budget_trainer.train_mlm new.yaml"
    assert launched in out, "outside of the clone"
    stored = yaml.load((tmp_path / "new.yaml").read_text(), Loader=yaml.BaseLoader)
    expected = {"total_training_time": "24h", "bf16": "true", "mlm_probability_curve": "0.3@0,0.15@0.5", "seed": "-1"}
    expected |= {"data_dir": "d", "per_device_train_batch_size": "8", "gradient_accumulation_steps": "2"}
    assert stored == expected | {"output_dir": str(tmp_path / "a" / "b"), "plan": "new.plan.json"}
    assert Plan.read("new.plan.json", "new.yaml").content["num_processes"] == processes
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("recipe", "words", "price"),
    [
        ("", "", None),
        ("price_per_hour: 3\n", "", "3"),
        ("price_per_hour: 3\n", "--price_per_hour 2.50", "2.50"),
        ("", "--price-per-hour=2.50", "2.50"),
        ("price_per_hour: 3\n", "--price_per_hour null", "null"),
    ],
)
def test_the_price_is_the_runs_too(recipe, words, price, tmp_path, monkeypatch):
    """The recipe's counts for the plan, and the command line's goes into the recipe that is written."""
    monkeypatch.setattr(command_module, "_ask_probe", Mock(return_value=(replace(REPORT, compile="no"), None)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(f"output_dir: {tmp_path}\n{recipe}")
    flags = ["--data_dir=d", "--total_training_time=24h", *words.split(), "--write", "new.yaml"]
    assert main(["r.yaml", *flags]) == 0
    stored = yaml.load((tmp_path / "new.yaml").read_text(), Loader=yaml.BaseLoader)
    plan = json.loads((tmp_path / "new.plan.json").read_text())
    number = None if price in (None, "null") else float(price)
    assert stored.get("price_per_hour") == price and plan["price_per_hour"] == number
    assert (plan["cost"] is None) == (number is None)


def test_a_price_in_the_recipe_that_is_none(tmp_path, capfd):
    (tmp_path / "r.yaml").write_text("total_training_time: 24h\nprice_per_hour: dear\n")
    assert main([str(tmp_path / "r.yaml"), "--picture", str(tmp_path / "p.png")]) == 2
    assert capfd.readouterr().err.startswith("error: price_per_hour: dear is below 0 or no price; give one such as")
