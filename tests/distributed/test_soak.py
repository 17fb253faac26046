"""Three kills at random moments: the same weights, bit for bit, as a run that nobody disturbed (benchmarks/soak.py)."""

import json
import sys

import pytest

from tests.conftest import TINY, run, words


@pytest.mark.slow
def test_three_kills_change_nothing(data_dir, tmp_path):
    flags = {**TINY, "per_device_train_batch_size": 4, "hidden_dropout_prob": 0.1, "validate_every": "1%"}
    flags |= {"total_training_time": "10m"}
    command = [sys.executable, "benchmarks/soak.py", "--data_dir", data_dir, "--output_dir", tmp_path / "soak"]
    command += ["--max_steps", 800, "--kills", 3, "--reference", "--checkpoint_every", "1s", "--", *words(flags)]
    run(command, ok=True)
    figures = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert figures["held"] and sum(job["rank"] >= 0 for job in figures["jobs"]) == 3
    assert figures["checks"]["weights of an undisturbed run"] == "bit-equal"
