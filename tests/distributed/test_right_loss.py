"""The loss is the mean over all predicted tokens of the global batch, whatever accumulation and ranks.

The stock class under Trainer is off by the accumulation steps and by the ranks.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import STEPS, launcher, losses, run

pytestmark = pytest.mark.slow
MODELS = ("bert", "megatron-bert", "modernbert")
BATCHES = {"1x8": (1, 8), "8x1": (8, 1), "8x1-dense": (8, 1), "2 processes x 4": (4, 1), "2x2x2": (2, 2)}
TOLERANCE = 1e-4


def options(model, batch, data_dir, folder):
    micro, accumulation = BATCHES[batch]
    options = {**STEPS, "model_type": model, "warmup_proportion": 0.1, "adam_epsilon": 1e-6}
    options |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    options |= {"sparse_mask_prediction": not batch.endswith("dense")}
    return options | {"data_dir": str(data_dir), "output_dir": str(folder / f"{model}-{batch}")}


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("right_loss")
    batches_of = {"cpu": ("1x8", "8x1", "8x1-dense"), "cpu_2proc": ("2 processes x 4", "2x2x2")}
    for config, batches in batches_of.items():
        flags = json.dumps([options(model, batch, data_dir, folder) for model in MODELS for batch in batches])
        run(launcher(config, "tests/distributed/many_runs.py", flags), ok=True)
    return folder


def distance(a, b):
    """||a - b|| / ||b|| over all tensors."""
    a, b = torch.cat([x.flatten().double() for x in a]), torch.cat([x.flatten().double() for x in b])
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("batch", ["1x8", "8x1-dense", "2 processes x 4", "2x2x2"])
@pytest.mark.parametrize("model", MODELS)
def test_same_training_however_the_batch_is_cut(runs, model, batch):
    mine, reference = runs / f"{model}-{batch}", runs / f"{model}-8x1"
    lines = [losses(folder) for folder in (mine, reference)]
    assert len(lines[0]) == len(lines[1]) == 20
    for name in ("loss", "grad_norm"):
        values = [torch.tensor([line[name] for line in half]) for half in lines]
        assert distance([values[0]], [values[1]]) < TOLERANCE, name
        assert torch.allclose(*values, rtol=TOLERANCE), name
    weights = [load_file(folder / "final" / "model.safetensors") for folder in (mine, reference)]
    assert weights[0].keys() == weights[1].keys()
    assert distance(weights[0].values(), weights[1].values()) < TOLERANCE
    assert 4.0 < lines[0][0]["loss"] < 7.0  # ln 500 is 6.2: neither 8 times too large nor too small


def test_it_did_train(runs):
    for model in MODELS:
        first, *_, a, b, c, d = (line["loss"] for line in losses(runs / f"{model}-8x1"))
        assert (a + b + c + d) / 4 < first - 0.02, model
