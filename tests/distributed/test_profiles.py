"""Every profile really starts what it says. GPU profiles in their CPU form: two processes, gloo, real DeepSpeed."""

import json
import math
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from tests.conftest import TINY, launch_form, progress, report, run, train, write_cpu_form

ZERO = {"zero1": 1, "zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3}
STEPS = 6


def options(data_dir, output_dir, **changes):
    base = {**TINY, "data_dir": data_dir, "output_dir": output_dir, "total_training_time": "4m", "disable_tqdm": True}
    base |= {"per_device_train_batch_size": 4, "lr_schedule": "step", "max_steps": STEPS, "warmup_proportion": 0}
    return {**base, **changes}


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The same training in one process without an engine."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    done = train(options(data_dir, folder, per_device_train_batch_size=8))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    "name", [name if name == "zero2" else pytest.param(name, marks=pytest.mark.slow) for name in ZERO]
)
def test_zero_trains_as_one_process_does(name, data_dir, alone, tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    out = tmp_path / "out"
    done = launch_form(write_cpu_form(name, tmp_path), options(data_dir, out, validate_every="1%"))
    assert done.returncode == 0, done.stderr
    account = report(out)
    assert (account["world_size"], account["engine"]) == (2, f"deepspeed-zero{ZERO[name]}")
    assert [rank["steps"] for rank in account["ranks"]] == [STEPS, STEPS]
    mine, theirs = ([line["loss"] for line in progress(folder) if "loss" in line] for folder in (out, alone))
    assert mine == pytest.approx(theirs, rel=1e-3)
    weights, expected = (load_file(folder / "final" / "model.safetensors") for folder in (out, alone))
    assert weights.keys() == expected.keys()
    for key, weight in expected.items():
        assert weights[key].shape == weight.shape, key
        assert (weights[key] - weight).norm() <= 1e-2 * weight.norm(), key
    assert math.isclose(account["evaluation"]["loss"], report(alone)["evaluation"]["loss"], rel_tol=1e-3)
    AutoModelForMaskedLM.from_pretrained(out / "final")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_zero_resumes_also_on_another_number_of_processes(name, data_dir, tmp_path):
    """Two processes begin; two, and one with twice the micro-batch, go on as the undisturbed run did."""
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    form, out, whole = write_cpu_form(name, tmp_path), tmp_path / "out", tmp_path / "whole"
    manifest = json.loads((data_dir / "manifest.json").read_text())
    batch = -(-(manifest["splits"]["train"]["rows"] // 2) // 4)  # a checkpoint after step 4
    common = {"num_epochs_between_checkpoints": 1, "per_device_train_batch_size": batch, "curve": "constant"}
    done = launch_form(form, options(data_dir, whole, **common))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in whole.glob("checkpoint-*")] == ["checkpoint-4"]
    (whole / "checkpoint-4").rename(tmp_path / "kept")
    out.mkdir()
    (tmp_path / "kept").rename(out / "checkpoint-4")

    resume = {**common, "resume_from_checkpoint": "auto"}
    alone = shutil.copytree(out, tmp_path / "alone")
    if name == "zero2":  # what it cannot read, once
        for changes, flags, message in (
            (
                {"num_processes": 1},
                {"optimizer_type": "adafactor"},
                "holds the state of adafactor in 2 partitions, this run has 1 processes",
            ),
            (
                {"deepspeed_config": {"zero_stage": 1}},
                {},
                f"was written by the engine deepspeed-zero{name[-1]}, this run has",
            ),
        ):
            form = write_cpu_form(name, out.parent, **changes)
            refused = launch_form(form, options(data_dir, out, **resume, **flags))
            assert refused.returncode != 0 and message in refused.stderr, refused.stderr
    done = launch_form(write_cpu_form(name, tmp_path), options(data_dir, out, **resume))
    assert done.returncode == 0, done.stderr
    resumed, expected = ([line for line in progress(folder) if "loss" in line][-2:] for folder in (out, whole))
    assert [line["step"] for line in resumed] == [5, 6]
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in expected], rel=1e-6)
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (out, whole))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in b)

    one = {**resume, "per_device_train_batch_size": 2 * batch, "max_steps": 8}
    done = launch_form(write_cpu_form(name, tmp_path, num_processes=1), options(data_dir, alone, **one))
    assert done.returncode == 0, done.stderr
    assert report(alone)["world_size"] == 1 and report(alone)["samples"] == 8 * 2 * batch
    resumed = [line for line in progress(alone) if "loss" in line]
    assert [line["step"] for line in resumed] == [5, 6, 7, 8]
    assert [line["loss"] for line in resumed[:2]] == pytest.approx([line["loss"] for line in expected], rel=1e-4)
    (file,) = (alone / "checkpoint-8" / "global_step8").glob("*optim_states.pt")
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    state = state["base_optimizer_state" if name == "zero2" else "optimizer_state_dict"]
    decays = {group["name"]: group["weight_decay"] for group in state["param_groups"]}
    assert decays["no_decay"] == 0 and decays["decay"] > 0
    assert {float(of_one["step"]) for of_one in state["state"].values()} == {8.0}


def test_fsdp_on_a_cpu_is_refused(data_dir, tmp_path):
    done = launch_form(write_cpu_form("fsdp", tmp_path), options(data_dir, tmp_path / "out"))
    assert done.returncode != 0 and "error: distributed_type: FSDP on a CPU silently trains as DDP" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("json_config", "message"),
    [
        (
            {"optimizer": {"type": "Adam"}},
            "deepspeed_config: the block 'optimizer' is train_mlm.py's; remove it and use",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, "deepspeed_config: the block 'scheduler' is train_mlm.py's"),
        ({"gradient_clipping": 5.0}, "deepspeed_config: gradient_clipping is 5.0 (or missing), max_grad_norm is 1.0"),
    ],
)
def test_a_deepspeed_json_that_says_what_the_recipe_says(json_config, message, data_dir, tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    config = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto", **json_config}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    by_file = {"deepspeed_config": {"deepspeed_config_file": str(tmp_path / "ds.json")}, "mixed_precision": None}
    form = write_cpu_form("zero2", tmp_path, **by_file)
    done = launch_form(form, options(data_dir, tmp_path / "out"))
    assert done.returncode != 0 and f"error: {message}" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun_starts_two(data_dir, tmp_path):
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "train_mlm.py",
        "--use_cpu",
        "true",
    ]
    flags = [f"--{key}={value}" for key, value in options(data_dir, tmp_path / "out").items()]
    done = run([sys.executable, *command, *flags])
    assert done.returncode == 0, done.stderr
    assert report(tmp_path / "out")["world_size"] == 2 and report(tmp_path / "out")["engine"] == "ddp"
