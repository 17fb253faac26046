"""FSDP2 with two processes on a CPU (`fsdp_on_cpu.py`): the steps of DDP, whole checkpoints, exact resume.

`test_gpu_profiles.py` launches the real profile where there is a GPU.
"""

import json
import math
import shutil
import sys

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from tests.conftest import ROOT, TINY, progress, report, run, words

pytestmark = pytest.mark.slow
HERE = ROOT / "tests" / "distributed"
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def train(engine, data_dir, output_dir, processes=2, **changes):
    """Losses of six steps of the same batches, with a checkpoint after the fourth of two processes."""
    rows = json.loads((data_dir / "manifest.json").read_text())["splits"]["train"]["rows"]
    options = {**TINY, "data_dir": data_dir, "output_dir": output_dir, "total_training_time": "8m", "use_cpu": True}
    options |= {
        "lr_schedule": "step",
        "max_steps": 6,
        "warmup_proportion": 0,
        "curve": "constant",
        "auto_speed": False,
    }
    options |= {
        "per_device_train_batch_size": math.ceil(rows // 2 / 4) * 2 // processes,
        "num_epochs_between_checkpoints": 1,
    }
    options |= {"disable_tqdm": True, "validate_every": "1%", **changes}
    script = HERE / "fsdp_on_cpu.py" if engine == "fsdp" else ROOT / "train_mlm.py"
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, script]
    done = run([*head, *words(options)], env=FSDP if engine == "fsdp" else {})
    assert done.returncode == 0, done.stderr
    assert (report(output_dir)["world_size"], report(output_dir)["engine"]) == (processes, engine)
    AutoModelForMaskedLM.from_pretrained(output_dir / "final")
    return {line["step"]: line["loss"] for line in progress(output_dir) if "loss" in line}


@pytest.mark.parametrize(
    ("model_type", "optimizer_type", "tolerance"), [("bert-mlm", "adamw", 1e-5), ("modernbert", "muon", 1e-3)]
)
def test_fsdp_takes_the_steps_of_ddp_and_resumes(model_type, optimizer_type, tolerance, data_dir, tmp_path):
    """Muon's iteration runs in bf16, on gradients that were summed in another order."""
    changes = {"model_type": model_type, "optimizer_type": optimizer_type}
    changes |= {"hidden_dropout_prob": 0.1 if model_type == "bert-mlm" else 0.0}
    out, plain, resumed = (tmp_path / name for name in ("fsdp", "ddp", "resumed"))
    losses = train("fsdp", data_dir, out, **changes)
    assert losses == pytest.approx(train("ddp", data_dir, plain, **changes), rel=tolerance) and len(losses) == 6
    evaluations = [report(folder)["evaluation"]["loss"] for folder in (out, plain)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=tolerance)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-4"]
    resumed.mkdir()
    alone = tmp_path / "alone"
    shutil.copytree(out / "checkpoint-4", alone / "checkpoint-4")
    (out / "checkpoint-4").rename(resumed / "checkpoint-4")
    again = train("fsdp", data_dir, resumed, resume_from_checkpoint="auto", **changes)
    assert again == {step: losses[step] for step in (5, 6)}
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (out, resumed))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    if model_type == "modernbert":  # without dropout, which is not the same on one process
        again = train("fsdp", data_dir, alone, processes=1, resume_from_checkpoint="auto", **changes)
        assert again == pytest.approx({step: losses[step] for step in (5, 6)}, rel=tolerance)
