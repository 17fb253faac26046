"""FSDP2 with two processes on a CPU (`fsdp_on_cpu.py`): the steps of DDP, whole checkpoints, exact resume.

`test_gpu_profiles.py` launches the real profile where there is a GPU.
"""

import re
import shutil
import sys

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT, run
from tests.distributed.six_steps import assert_same_evaluation, give_checkpoint, six_steps

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
    script = HERE / "fsdp_on_cpu.py" if engine == "fsdp" else ROOT / "train_mlm.py"
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, script]
    env = FSDP if engine == "fsdp" else {}
    return six_steps(head, engine, processes, data_dir, output_dir, env=env, use_cpu=True, **changes)


@pytest.mark.parametrize(
    ("model_type", "optimizer_type", "tolerance"), [("bert-mlm", "adamw", 1e-5), ("modernbert", "muon", 1e-3)]
)
def test_fsdp_takes_the_steps_of_ddp_and_resumes(model_type, optimizer_type, tolerance, data_dir, tmp_path):
    """Muon's iteration runs in bf16, on gradients that were summed in another order."""
    changes = {"model_type": model_type, "optimizer_type": optimizer_type}
    if model_type == "bert-mlm":  # what is drawn at random resumes
        changes |= {"hidden_dropout_prob": 0.1, "cross_entropy": "sampled", "softmax_samples": 100}
    out, plain, resumed = (tmp_path / name for name in ("fsdp", "ddp", "resumed"))
    losses = train("fsdp", data_dir, out, **changes)
    assert losses == pytest.approx(train("ddp", data_dir, plain, **changes), rel=tolerance) and len(losses) == 6
    assert_same_evaluation(out, plain, tolerance)
    give_checkpoint(out, resumed)
    alone = shutil.copytree(resumed, tmp_path / "alone")
    again = train("fsdp", data_dir, resumed, resume_from_checkpoint="auto", **changes)
    assert again == {step: losses[step] for step in (5, 6)}
    a, b = (load_file(folder / "final" / "model.safetensors") for folder in (out, resumed))
    assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    if model_type == "modernbert":  # without dropout, which is not the same on one process
        again = train("fsdp", data_dir, alone, processes=1, resume_from_checkpoint="auto", **changes)
        assert again == pytest.approx({step: losses[step] for step in (5, 6)}, rel=tolerance)


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_the_callback_rehearses_the_whole_model_that_is_sharded(engine, tmp_path):
    if engine == "zero3":
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    env = {**FSDP, "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer"} if engine == "fsdp" else {"DS_ACCELERATOR": "cpu"}
    done = run([*head, HERE / "plugin_rehearsal.py", engine, tmp_path / "out"], env=env, ok=True)
    rehearsed, saved, parameters = map(int, re.search(r"rehearsed (\d+), saved (\d+) of (\d+)", done.stdout).groups())
    assert rehearsed == saved > 0.99 * parameters and "reserved True" in done.stdout, done.stdout
    assert "could not be rehearsed" not in done.stderr
