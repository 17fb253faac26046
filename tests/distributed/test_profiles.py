"""Every profile really starts what it says. GPU profiles in their CPU form: two processes, gloo, real DeepSpeed."""

import math
import shutil
import sys
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, TrainingArguments

from budget_trainer.core.errors import InputError
from budget_trainer.training.engine import resolve_engine
from tests.conftest import STEPS, batch_of_epoch, launch_form, losses, report, run, train, words, write_cpu_form
from tests.distributed.six_steps import assert_same_files

ZERO = {"zero1": 1, "zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3}


def options(data_dir, output_dir, **changes):
    six = {**STEPS, "max_steps": 6, "per_device_train_batch_size": 4, "curve": "linear", "total_training_time": "4m"}
    return {**six, "data_dir": data_dir, "output_dir": output_dir, **changes}


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The folder of the same training with an optimizer, in one process without an engine; each is trained once."""

    @cache
    def trained(optimizer):
        folder = tmp_path_factory.mktemp("alone") / "out"
        train(options(data_dir, folder, per_device_train_batch_size=8, **optimizer_flags(optimizer)), ok=True)
        return folder

    return trained


def optimizer_flags(name):
    return {"optimizer_type": name, "auto_speed": False, "max_grad_norm": 0 if name == "muon" else 1}


CASES = [*((name, "adamw") for name in ZERO), ("zero2", "adam"), ("zero2", "muon"), ("zero3", "muon")]
SLOW = [case if case == ("zero2", "adamw") else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("name", "optimizer"), SLOW)
def test_zero_trains_as_one_process_does(name, optimizer, data_dir, alone, tmp_path):
    """Muon takes one step for 4 micro-batches, not one for each. ZeRO-3 cannot be compiled, and says so; it gathers the weight
    for a sampled softmax too, here of nearly all tokens."""
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    out, alone = tmp_path / "out", alone(optimizer)
    compiled = (name, optimizer) == ("zero3", "muon")
    flags = options(data_dir, out, validate_every="1%", torch_compile=compiled, **optimizer_flags(optimizer))
    if optimizer == "muon":
        flags |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    if (name, optimizer) == ("zero3", "adamw"):
        flags |= {"cross_entropy": "sampled", "softmax_samples": 499}
    done = launch_form(write_cpu_form(name, tmp_path), flags, ok=True)
    assert ("torch_compile: off, ZeRO-3 gathers" in done.stderr) == compiled
    account = report(out)
    assert (account["world_size"], account["engine"]) == (2, f"deepspeed-zero{ZERO[name]}")
    assert [rank["steps"] for rank in account["ranks"]] == [6, 6]
    mine, theirs = ([line["loss"] for line in losses(folder)] for folder in (out, alone))
    assert mine == pytest.approx(theirs, rel=1e-3)
    weights, expected = (load_file(folder / "final" / "model.safetensors") for folder in (out, alone))
    assert weights.keys() == expected.keys()
    # Muon's iteration runs in bf16, on gradients summed in another order: 0.012 of the weights, which moved by 0.4 of them.
    tolerance = 2e-2 if optimizer == "muon" else 1e-2
    for key, weight in expected.items():
        assert weights[key].shape == weight.shape, key
        assert (weights[key] - weight).norm() <= tolerance * weight.norm(), key
    assert math.isclose(account["evaluation"]["loss"], report(alone)["evaluation"]["loss"], rel_tol=1e-3)
    AutoModelForMaskedLM.from_pretrained(out / "final")


@pytest.mark.slow
def test_an_optimizer_that_zero_cannot_have_is_refused_before_training(data_dir, tmp_path):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    flags = options(data_dir, tmp_path / "out", optimizer_type="lamb")
    done = launch_form(write_cpu_form("zero2", tmp_path), flags)
    assert done.returncode != 0 and "error: optimizer_type: lamb needs the norm of whole tensors" in done.stderr
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_zero_resumes_also_on_another_number_of_processes(name, data_dir, tmp_path, refused):
    """Two processes begin; two, and one with twice the micro-batch, go on as the undisturbed run did."""
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    form, out, whole = write_cpu_form(name, tmp_path), tmp_path / "out", tmp_path / "whole"
    batch = batch_of_epoch(data_dir, 4)  # a checkpoint after step 4
    common = {"num_epochs_between_checkpoints": 1, "per_device_train_batch_size": batch, "curve": "constant"}
    launch_form(form, options(data_dir, whole, **common, checkpoint_at_end=True), ok=True)
    assert_same_files(whole)
    out.mkdir()
    (whole / "checkpoint-4").rename(out / "checkpoint-4")
    resume = {**common, "resume_from_checkpoint": "auto"}
    alone = shutil.copytree(out, tmp_path / "alone")
    if name == "zero2":  # what it cannot read, once
        one = write_cpu_form(name, out.parent, num_processes=1)
        done = launch_form(one, options(data_dir, out, **resume, optimizer_type="adafactor"))
        partitions = "holds the state of adafactor in 2 partitions, this run has 1 processes"
        assert done.returncode != 0 and partitions in done.stderr, done.stderr
        code, error = refused(options(data_dir, out, **resume, use_cpu=True))
        assert code == 2 and "was written by the engine deepspeed-zero2, this run has single" in error
    launch_form(write_cpu_form(name, tmp_path), options(data_dir, out, **resume), ok=True)
    resumed, expected = (losses(folder)[-2:] for folder in (out, whole))
    assert [line["step"] for line in resumed] == [5, 6]
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in expected], rel=1e-6)
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (out, whole))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in b)

    one = {**resume, "per_device_train_batch_size": 2 * batch, "max_steps": 8}
    launch_form(write_cpu_form(name, tmp_path, num_processes=1), options(data_dir, alone, **one), ok=True)
    assert report(alone)["world_size"] == 1 and report(alone)["samples"] == 8 * 2 * batch
    resumed = losses(alone)
    assert [line["step"] for line in resumed] == [5, 6, 7, 8]
    assert [line["loss"] for line in resumed[:2]] == pytest.approx([line["loss"] for line in expected], rel=1e-4)
    (file,) = (alone / "checkpoint-8" / "global_step8").glob("*optim_states.pt")
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    state = state["base_optimizer_state" if name == "zero2" else "optimizer_state_dict"]
    decays = {group["name"]: group["weight_decay"] for group in state["param_groups"]}
    assert decays["no_decay"] == 0 and decays["decay"] > 0
    assert {float(of_one["step"]) for of_one in state["state"].values()} == {8.0}


def configured(folder, config=None):
    """The arguments of a run on CPUs, under a DeepSpeed configuration if one is given."""
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    plugin = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto", **(config or {})}
    arguments.deepspeed_plugin = None if config is None else SimpleNamespace(deepspeed_config=plugin)
    return arguments


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "the block 'optimizer' is train_mlm.py's; remove it and use optimizer_type"),
        ({"scheduler": {"type": "WarmupLR"}}, "the block 'scheduler' is train_mlm.py's; remove it and use curve"),
        ({"gradient_clipping": 5.0}, "gradient_clipping is 5.0 (or missing), max_grad_norm is 1.0"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True (or missing), fp16 is False"),
        ({"train_batch_size": 16}, "train_batch_size is 16 (or missing), per_device_train_batch_size x"),
    ],
)
def test_a_deepspeed_json_that_contradicts_the_recipe(config, message, tmp_path):
    with pytest.raises(InputError) as refused:
        resolve_engine(configured(tmp_path, config))
    assert str(refused.value).startswith(f"deepspeed_config: {message}")


def test_zero_3_gathers_its_weights_and_fsdp_on_a_cpu_is_refused(tmp_path, monkeypatch):
    run = configured(tmp_path, {"zero_optimization": {"stage": 3}, "gradient_clipping": 1.0})
    resolve_engine(run)
    zero = run.deepspeed_plugin.deepspeed_config["zero_optimization"]
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    with pytest.raises(
        InputError, match=r"^output_dir: .*run\[1\] holds \*, \? or \[, which DeepSpeed takes for a pattern"
    ):
        resolve_engine(configured(tmp_path / "run[1]", {}))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="^distributed_type: FSDP on a CPU silently trains as DDP"):
        resolve_engine(configured(tmp_path))


@pytest.mark.slow
def test_torchrun_starts_two(data_dir, tmp_path):
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "train_mlm.py"]
    run([*head, *words(options(data_dir, tmp_path / "out", use_cpu=True))], ok=True)
    assert report(tmp_path / "out")["world_size"] == 2 and report(tmp_path / "out")["engine"] == "ddp"
