"""The text of a recipe with other values in it, as plans and sweeps write it."""

import pytest
import yaml

from budget_trainer.config.edit import edited

RECIPE = """# What it is.
hidden_size: 64  # narrow
model_config:
  global_attn_every_n_layers: 1
  rope_parameters: {a: {b: 1}}

# The batch.
per_device_train_batch_size: 16
no_unigram_bias: true
"""


def test_a_recipe_is_filled_in_and_keeps_its_comments():
    values = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "unigram_bias": "false"}
    text = edited(RECIPE, values | {"model_config": '{"x": 1}', "learning_rate": "1e-3"}, whose="the plan")
    assert "# What it is." in text and "# narrow" in text and "# The batch." in text
    assert "per_device_train_batch_size: 4  # the plan's; was 16\n" in text
    read = yaml.load(text, yaml.BaseLoader)
    assert read["model_config"] == {"x": "1"} and read["per_device_train_batch_size"] == "4"
    assert read["learning_rate"] == "1e-3" and "no_unigram_bias" not in read and read["hidden_size"] == "64"


@pytest.mark.parametrize(
    "base",
    [
        "hidden_size: &w 64\nper_device_train_batch_size: *w\n",
        "{per_device_train_batch_size: 16,\n hidden_size: 64}\n",
        "{no_bf16: true, hidden_size: 64}\n",
        "---\nhidden_size: 64\n...\n",
        '"hidden_size": >-\n  64\n',
    ],
)
def test_any_recipe_that_is_read_can_be_filled_in(base):
    text = edited(base, {"per_device_train_batch_size": 4, "bf16": "true"}, whose="the plan", head="# head\nseed: 1\n")
    expected = {"hidden_size": "64", "per_device_train_batch_size": "4", "bf16": "true", "seed": "1"}
    assert yaml.load(text, yaml.BaseLoader) == expected
