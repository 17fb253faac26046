"""The GPU profiles as they are, on the GPUs that are there: two processes, or one where there is one GPU."""

import pytest
import torch

from tests.conftest import launcher
from tests.distributed.six_steps import assert_same_evaluation, give_checkpoint, six_steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GPUS = min(2, torch.cuda.device_count())
PROFILES = {
    "ddp": "ddp" if GPUS > 1 else "single",
    "fsdp": "fsdp",
    "zero1": "deepspeed-zero1",
    "zero2": "deepspeed-zero2",
    "zero3": "deepspeed-zero3",
    "zero2_offload": "deepspeed-zero2",
    "zero3_offload": "deepspeed-zero3",
}


def launch(name, data_dir, output_dir, **changes):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    processes = 1 if name == "single_gpu" else GPUS
    engine = "single" if name == "single_gpu" else PROFILES[name]
    *head, script = launcher(name)
    head = [*head, "--num_processes", processes, script]
    changes = {"total_training_time": "30m", "validate_every": "50%", **changes}
    return six_steps(head, engine, processes, data_dir, output_dir, parts=GPUS, **changes)


@pytest.mark.parametrize("name", PROFILES)
def test_it_trains_as_one_gpu_does_and_resumes(name, data_dir, tmp_path):
    alone, out, resumed = (tmp_path / folder for folder in ("alone", "out", "resumed"))
    expected = launch("single_gpu", data_dir, alone)
    losses = launch(name, data_dir, out)
    assert losses == pytest.approx(expected, rel=5e-3) and len(losses) == 6
    assert_same_evaluation(out, alone, 5e-3)
    give_checkpoint(out, resumed)
    again = launch(name, data_dir, resumed, resume_from_checkpoint="auto")
    assert again == pytest.approx({step: losses[step] for step in (5, 6)}, rel=1e-4)


@pytest.mark.parametrize("name", ["single_gpu", "fsdp", "zero1", "zero2", "zero3", "zero2_offload"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(name, precision, data_dir, tmp_path):
    """fp16 also under every engine: its loss scale falls until the gradients fit, then the loss does."""
    changes = {precision: True, "max_steps": 40, "optimizer_type": "adamw"}
    losses = launch(name, data_dir, tmp_path / "out", **changes)
    assert losses[40] < losses[min(losses)], losses


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_muon_and_compiling(name, data_dir, tmp_path):
    changes = {"bf16": True, "max_steps": 40, "optimizer_type": "muon", "torch_compile": True}
    losses = launch(name, data_dir, tmp_path / "out", **changes, max_grad_norm=0)
    assert losses[40] < losses[1]
