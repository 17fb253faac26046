"""The GPU profiles as they are, on the GPUs that are there: two processes, or one where there is one GPU."""

import json
import math
import sys

import pytest
import torch
from transformers import AutoModelForMaskedLM

from tests.conftest import ROOT, TINY, progress, report, run, words

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
STEPS = 6


def launch(name, data_dir, output_dir, **changes):
    """Six steps of the same batches whatever the number of processes, with a checkpoint after the fourth."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    processes = 1 if name == "single_gpu" else GPUS
    rows = json.loads((data_dir / "manifest.json").read_text())["splits"]["train"]["rows"]
    batch = GPUS * math.ceil(
        rows // 2 / 4
    )  # over all processes: with GPUS of them an epoch, a shard each, is four steps
    options = {**TINY, "data_dir": data_dir, "output_dir": output_dir, "total_training_time": "30m"}
    options |= {"lr_schedule": "step", "max_steps": STEPS, "warmup_proportion": 0, "curve": "constant"}
    options |= {"per_device_train_batch_size": batch // processes, "num_epochs_between_checkpoints": 1}
    options |= {"validate_every": "50%", "auto_speed": False, "disable_tqdm": True, **changes}
    head = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    head += ["--config_file", ROOT / "accelerate_configs" / f"{name}.yaml", "train_mlm.py"]
    done = run([*head, *words(options)])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    engine = "single" if name == "single_gpu" else PROFILES[name]
    assert (report(output_dir)["world_size"], report(output_dir)["engine"]) == (processes, engine)
    AutoModelForMaskedLM.from_pretrained(output_dir / "final")
    return {line["step"]: line["loss"] for line in progress(output_dir) if "loss" in line}


@pytest.mark.parametrize("name", PROFILES)
def test_it_trains_as_one_gpu_does_and_resumes(name, data_dir, tmp_path):
    alone, out, resumed = (tmp_path / folder for folder in ("alone", "out", "resumed"))
    expected = launch("single_gpu", data_dir, alone)
    losses = launch(name, data_dir, out)
    assert losses == pytest.approx(expected, rel=5e-3) and len(losses) == STEPS
    evaluations = [report(folder)["evaluation"]["loss"] for folder in (out, alone)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=5e-3)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-4"]
    resumed.mkdir()
    (out / "checkpoint-4").rename(resumed / "checkpoint-4")
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
