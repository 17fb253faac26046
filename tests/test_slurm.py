"""accelerate_configs/slurm.sbatch with the two commands of SLURM played: srun starts the task, scontrol is asked to requeue."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, children, report, spawn, wait_for, words

pytestmark = pytest.mark.skipif(not Path("/usr/bin/pkill").exists(), reason="needs pkill (procps)")
SRUN = 'SLURM_NODEID=0 exec "$@"'
SCONTROL = 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$ASKED"; fi'


@pytest.fixture
def slurm(tmp_path):
    """The environment of a job on one node with two processes, and the file of what scontrol was asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    asked = tmp_path / "asked"
    asked.touch()
    job = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": "77"}
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job |= {"ASKED": str(asked), "PATH": path, "PROFILE": "accelerate_configs/cpu_2proc.yaml"}
    return job, asked


def submit(options, environment):
    return spawn(["bash", "accelerate_configs/slurm.sbatch", *words(options)], env=environment)


def test_the_end_of_a_slot_requeues_the_job_and_the_next_one_finishes(slurm, data_dir, tmp_path):
    environment, asked = slurm
    out = tmp_path / "out"
    options = {**TINY, "data_dir": data_dir, "output_dir": out, "lr_schedule": "step", "max_steps": 100_000}
    options |= {"per_device_train_batch_size": 4, "disable_tqdm": True}
    job = submit(options, environment)
    wait_for(lambda: (out / "progress.jsonl").exists())
    (task,) = [pid for pid in children(job.pid) if b"trap" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(task, signal.SIGUSR1)
    said, error = job.communicate(timeout=90)
    assert job.returncode == 0, error
    assert "to be resumed: stop_requested" in said and asked.read_text() == "requeue 77\n"
    (checkpoint,) = out.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))

    job = submit({**options, "max_steps": step + 3}, environment)
    _, error = job.communicate(timeout=120)
    assert job.returncode == 0, error
    assert report(out)["jobs"] == 2 and report(out)["steps"] == step + 3
    assert asked.read_text() == "requeue 77\n", "a finished job is not put back"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SLURM_GPUS_ON_NODE", None, "SLURM_GPUS_ON_NODE: '' is no number above 0; add #SBATCH --gpus-per-node=8"),
        ("SLURM_GPUS_ON_NODE", "", "SLURM_GPUS_ON_NODE: ''"),
        ("SLURM_GPUS_ON_NODE", "0", "SLURM_GPUS_ON_NODE: '0'"),
        ("SLURM_GPUS_PER_NODE", "gpu:a100:none", "SLURM_GPUS_ON_NODE: 'gpu:a100:none'"),
        ("SLURM_GPUS_PER_NODE", "a100:2,v100:1", None),
        ("SLURM_GPUS_ON_NODE", "03", None),
        ("SLURM_GPUS_ON_NODE", "3", None),
        ("SLURM_NNODES", None, "SLURM_NNODES: missing; start this file with sbatch"),
        ("SLURM_JOB_NODELIST", None, "SLURM_JOB_NODELIST: missing; start this file with sbatch"),
        ("SLURM_JOB_ID", "", "SLURM_JOB_ID: missing; start this file with sbatch"),
    ],
)
def test_a_job_that_slurm_says_too_little_of_is_refused(slurm, tmp_path, name, value, said):
    environment, asked = slurm
    if name == "SLURM_GPUS_PER_NODE":
        environment.pop("SLURM_GPUS_ON_NODE")
    environment = {**environment, name: value}
    if value is None:
        environment.pop(name)
    (tmp_path / "bin" / "srun").write_text("#!/bin/bash\necho $GPUS processes\n")
    out, script = tmp_path / "out", ["bash", "accelerate_configs/slurm.sbatch", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    if said is None:
        assert done.returncode == 0 and done.stdout == "3 processes\n", done.stderr
    else:
        assert done.returncode == 2 and done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1
    assert not out.exists() and not asked.read_text()


def test_what_fails_is_not_requeued(slurm, data_dir, tmp_path):
    environment, asked = slurm
    job = submit({**TINY, "data_dir": data_dir, "output_dir": tmp_path / "out"}, environment)
    _, error = job.communicate(timeout=90)
    assert job.returncode != 0 and "total_training_time: missing" in error and not asked.read_text()
    job = submit({"data_dir": data_dir}, environment)
    _, error = job.communicate(timeout=90)
    assert job.returncode == 2 and "error: output_dir: missing" in error
