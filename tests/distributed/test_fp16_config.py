"""fp16, clipping and accumulation of the recipe are in the configuration that DeepSpeed gets, under every ZeRO profile."""

import json
import sys

import pytest

from tests.conftest import TINY, run, words

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")


@pytest.mark.slow
def test_the_recipe_s_fp16_reaches_every_engine(data_dir, tmp_path):
    options = {**TINY, "data_dir": data_dir, "total_training_time": "10m", "fp16": True, "max_grad_norm": 0.7}
    options |= {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 5}
    done = run(
        [sys.executable, "tests/distributed/fp16_config.py", tmp_path, *words(options)], env={"DS_ACCELERATOR": "cpu"}
    )
    configs = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(configs) == {"zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"}, done.stderr
    for name, config in configs.items():
        assert config["fp16"]["enabled"] is True and not config.get("bf16", {}).get("enabled"), name
        assert not config["fp16"].get("loss_scale"), "0 or absent: dynamic"
        assert config["zero_optimization"]["stage"] == int(name[4]), name
        assert (config["gradient_clipping"], config["gradient_accumulation_steps"]) == (0.7, 3), name
        assert config["train_micro_batch_size_per_gpu"] == 5 and config["train_batch_size"] == 15, name
        gathers = config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save")
        assert gathers is True or config["zero_optimization"]["stage"] < 3, name
