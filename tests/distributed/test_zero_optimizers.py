"""Each optimizer under DeepSpeed's ZeRO-2, two processes on a CPU over gloo: it trains, or is refused in one line.

fp16 under ZeRO needs a GPU and is not tested here.
"""

import json
import math
import sys

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from tests.conftest import ROOT, STEPS, launch_form, launcher, progress, report, run, write_cpu_form

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
pytestmark = pytest.mark.slow
# Relative to the weights. Muon's Newton-Schulz iteration runs in bf16, on gradients that were summed in another order.
TOLERANCES = {"adam": 1e-6, "adamw": 1e-6, "muon": 1e-2}


@pytest.fixture(scope="module")
def cpu_form(tmp_path_factory):
    """accelerate_configs/zero2.yaml for two processes without a GPU."""
    return write_cpu_form("zero2", tmp_path_factory.mktemp("zero"))


def launch(config, data_dir, output_dir, ok=False, **changes):
    options = {**STEPS, "max_steps": 6, "data_dir": data_dir, "output_dir": output_dir}
    return launch_form(config, options | changes, ok=ok)


@pytest.fixture(scope="module")
def steps(cpu_form, tmp_path_factory):
    """The same steps of every optimizer under ZeRO-2 with two processes, and in one process without DeepSpeed."""
    zero, plain = tmp_path_factory.mktemp("zero"), tmp_path_factory.mktemp("plain")
    script = ROOT / "tests" / "distributed" / "zero_steps.py"
    # DeepSpeed compiles Muon's iteration; a few steps do not earn that back.
    environment = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    run(launcher(cpu_form, script, zero, *TOLERANCES), env=environment, ok=True)
    run([sys.executable, script, plain, *TOLERANCES], ok=True)
    return zero, plain


@pytest.mark.parametrize("name", TOLERANCES)
def test_it_computes_what_one_process_computes(steps, name):
    zero, plain = steps
    ranks = [json.loads((zero / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    alone = json.loads((plain / f"{name}-0.json").read_text())
    assert ranks[0]["zero"] and not alone["zero"]
    assert ranks[0]["digest"] == ranks[1]["digest"], "both ranks hold the same weights"
    losses = ranks[0]["losses"]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.3
    assert losses == pytest.approx(alone["losses"], abs=TOLERANCES[name] * 10 + 1e-4)
    ours, theirs = (load_file(folder / f"{name}.safetensors") for folder in steps)
    for key, weight in theirs.items():
        assert (ours[key] - weight).norm() <= TOLERANCES[name] * weight.norm(), key


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_muon_trains_within_the_budget(name, data_dir, tmp_path):
    """By a real launch; `test_profiles` has adamw. ZeRO-3 cannot be compiled, and says so."""
    changes = {"optimizer_type": "muon", "max_grad_norm": 0, "torch_compile": name == "zero3", "auto_speed": False}
    done = launch(write_cpu_form(name, tmp_path), data_dir, tmp_path / "out", ok=True, **changes)
    assert ("torch_compile: off, ZeRO-3 gathers" in done.stderr) == (name == "zero3")
    losses = [line["loss"] for line in progress(tmp_path / "out") if "loss" in line]
    assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses)
    account = report(tmp_path / "out")
    assert account["steps"] == 6 and account["used_seconds"] <= account["budget_seconds"]
    assert [rank["steps"] for rank in account["ranks"]] == [6, 6]
    AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "final")


def test_it_is_refused_before_training(cpu_form, data_dir, tmp_path):
    """By a real launch; `test_optimizers` has the other refusals."""
    changes, message = {"optimizer_type": "lamb"}, "optimizer_type: lamb needs the norm of whole tensors"
    done = launch(cpu_form, data_dir, tmp_path / "out", **changes)
    assert done.returncode != 0 and f"error: {message}" in done.stderr
    assert not (tmp_path / "out" / "run.json").exists()
