"""What the probe of bf16 and torch.compile decides, and that it leaves no trace."""

import json
import math

import pytest
import torch

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.model.build import build_model
from budget_trainer.training import precision
from budget_trainer.training.precision import ComputeMode, Cost, most_steps, probe

FP32, BF16 = ComputeMode(False, "no"), ComputeMode(True, "no")
REGIONAL, WHOLE = ComputeMode(True, "regional"), ComputeMode(True, "whole")


@pytest.mark.parametrize(
    ("costs", "remaining", "best"),
    [
        ({BF16: Cost(1.0), FP32: Cost(2.0)}, 600, BF16),
        ({BF16: Cost(2.0), FP32: Cost(1.0)}, 600, FP32),
        ({BF16: Cost(1.0), WHOLE: Cost(0.5, 60.0)}, 60, BF16),
        ({BF16: Cost(1.0), WHOLE: Cost(0.5, 60.0)}, 600, WHOLE),
        ({BF16: Cost(1.0), REGIONAL: Cost(0.6, 10.0), WHOLE: Cost(0.5, 60.0)}, 120, REGIONAL),
        ({BF16: Cost(1.0), FP32: Cost(1.0)}, 600, BF16),
    ],
)
def test_most_steps(costs, remaining, best):
    assert most_steps(costs, remaining) == best


def tiny():
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    model = build_model(
        "bert",
        vocab_size=64,
        special_ids=special,
        max_position_embeddings=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    batch = {
        "input_ids": torch.randint(5, 64, (2, 16)),
        "masked_positions": torch.tensor([[1, 2], [3, 4]]),
        "labels": torch.tensor([[7, 8], [9, -100]]),
    }
    return model, batch


def test_the_probe_leaves_no_trace():
    model, batch = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    costs = probe(ComputeMode(True, "whole"), model, batch, torch.device("cpu"), limit_seconds=10.0)
    assert set(costs) == {BF16, FP32} and all(cost.step > 0 for cost in costs.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_probe_ends_in_time():
    """On a clock where each look takes 100 s the first way is measured and the second no longer fits."""
    model, batch = tiny()
    now = iter(range(0, 10**6, 100))
    assert probe(BF16, model, batch, torch.device("cpu"), 150.0, time_fn=lambda: float(next(now))) == {}


def recipe_of(tmp_path, **flags):
    base = {"data_dir": tmp_path, "output_dir": tmp_path / "out", "total_training_time": "10m", "report_to": "none"}
    words = [word for name, value in {**base, **flags}.items() for word in (f"--{name}", str(value))]
    return parse_recipe(words)


@pytest.fixture
def costs(monkeypatch):
    """What the probe measures, without measuring."""
    table = {}
    monkeypatch.setattr(
        precision, "probe", lambda asked, *rest: {w: c for w, c in table.items() if asked.bf16 or not w.bf16}
    )
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision, "has_compiler", lambda: True)
    return table


def resolve(recipe, remaining=None, checkpoint=None):
    remaining = recipe.seconds_left(0.0) if remaining is None else remaining
    args = recipe.training_arguments()
    return precision.resolve_compute_mode(recipe, args, None, {}, remaining, checkpoint, ControlChannel()), args


MEASURED = {FP32: Cost(1.0), BF16: Cost(2.0)}
BF16_PAYS = {FP32: Cost(2.0), BF16: Cost(1.0)}
AUTO, COMPILED = {"bf16": "true", "auto_speed": "true"}, {"torch_compile": "true"}


@pytest.mark.parametrize(
    ("flags", "measured", "mode"),
    [
        (AUTO, MEASURED, FP32),  # what does not pay is off
        ({"bf16": "true"}, MEASURED, BF16),  # without auto_speed the recipe decides
        ({**AUTO, **COMPILED, "total_training_time": "60s"}, BF16_PAYS, BF16),  # too dear to probe: by rule
        ({**AUTO, **COMPILED, "total_training_time": "3m"}, BF16_PAYS, BF16),
        ({**AUTO, **COMPILED, "total_training_time": "10m"}, BF16_PAYS, WHOLE),
        ({**AUTO, **COMPILED, "use_cpu": "true"}, MEASURED, FP32),  # float32 on a CPU is not compiled by rule
        ({"auto_speed": "true", **COMPILED, "use_cpu": "true"}, {}, FP32),
        (
            {**AUTO, **COMPILED, "total_training_time": "1h"},
            {**BF16_PAYS, REGIONAL: Cost(0.7, 10.0), WHOLE: Cost(0.69, 300.0)},
            REGIONAL,
        ),
    ],
)
def test_the_mode_that_pays(tmp_path, costs, flags, measured, mode):
    costs.update(measured)
    recipe = recipe_of(tmp_path, **flags)
    resolved, args = resolve(recipe)
    settled = resolved["settled"]
    assert (settled["bf16"], settled["compile"]) == (mode.bf16, mode.compile)
    assert args.bf16 == mode.bf16 and args.torch_compile == (mode.compile != "no")
    assert mode.bf16 or args.mixed_precision == "no"


def test_a_resumed_job_keeps_what_was_resolved(tmp_path, costs):
    costs.update(BF16_PAYS)
    stored = {"asked": {"bf16": True, "compile": "no"}, "settled": {"bf16": False, "compile": "no"}}
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"speed": stored}}))
    recipe = recipe_of(tmp_path, **AUTO)
    resolved, args = resolve(recipe, checkpoint=checkpoint)
    assert resolved == stored and not args.bf16


def test_without_an_end_the_fastest_mode_is_taken(tmp_path, costs):
    costs.update({**MEASURED, REGIONAL: Cost(0.7, 10.0), WHOLE: Cost(0.69, 300.0)})
    assert resolve(recipe_of(tmp_path, **AUTO, **COMPILED), math.inf)[0]["settled"]["compile"] == "whole"


def test_no_compiler_no_compiling(tmp_path, costs, monkeypatch):
    monkeypatch.setattr(precision, "has_compiler", lambda: False)
    recipe = recipe_of(tmp_path, **COMPILED)
    resolved, args = resolve(recipe)
    assert resolved["settled"]["compile"] == "no" and not args.torch_compile
