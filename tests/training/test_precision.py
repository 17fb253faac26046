"""What the probe of bf16 and torch.compile decides, and that it leaves no trace."""

import json
import math

import pytest
import torch

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.config.arguments import RunArguments
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.model.build import build_model
from budget_trainer.training import precision
from budget_trainer.training.precision import ComputeMode, _Cost, probe
from tests.conftest import words

FP32, BF16 = ComputeMode(False, "no"), ComputeMode(True, "no")
REGIONAL, WHOLE = ComputeMode(True, "regional"), ComputeMode(True, "whole")


def tiny():
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = build_model("bert", vocab_size=64, special_ids=special, max_position_embeddings=16, **sizes)
    positions, labels = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[7, 8], [9, -100]])
    batch = {"input_ids": torch.randint(5, 64, (2, 16)), "masked_positions": positions, "labels": labels}
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


@pytest.fixture
def costs(monkeypatch):
    """What the probe measures, without measuring."""
    table = {}
    measured = lambda asked, *rest: {mode: cost for mode, cost in table.items() if asked.bf16 or not mode.bf16}  # noqa: E731
    monkeypatch.setattr(precision, "probe", measured)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision, "has_compiler", lambda: True)
    return table


def resolve(tmp_path, flags, remaining=None, checkpoint=None):
    """What is settled (bf16, compile), all that is stored, and the arguments that follow."""
    base = {"data_dir": tmp_path, "output_dir": tmp_path / "out", "total_training_time": "10m", "report_to": "none"}
    recipe = parse_recipe(words({**base, **flags}))
    remaining = min(recipe.end_seconds, recipe.job_limit_seconds) if remaining is None else remaining
    args = RunArguments.of(recipe.training)
    resolved = precision.resolve_compute_mode(recipe, args, None, {}, remaining, checkpoint, ControlChannel())
    return ComputeMode(**resolved["settled"]), resolved, args


MEASURED = {FP32: _Cost(1.0), BF16: _Cost(2.0)}
BF16_PAYS = {FP32: _Cost(2.0), BF16: _Cost(1.0)}
AUTO, COMPILED = {"bf16": "true", "auto_speed": "true"}, {"torch_compile": "true"}
BOTH = {**AUTO, **COMPILED}
PARTS = {REGIONAL: _Cost(0.7, 10.0), WHOLE: _Cost(0.69, 300.0)}


@pytest.mark.parametrize(
    ("flags", "measured", "remaining", "mode"),
    [
        (AUTO, MEASURED, None, FP32),  # what does not pay is off
        (AUTO, {BF16: _Cost(1.0), FP32: _Cost(1.0)}, None, BF16),
        ({"bf16": "true"}, MEASURED, None, BF16),  # without auto_speed the recipe decides
        ({**BOTH, "total_training_time": "60s"}, BF16_PAYS, None, BF16),  # too dear to probe: by rule
        ({**BOTH, "total_training_time": "3m"}, BF16_PAYS, None, BF16),
        (BOTH, BF16_PAYS, None, WHOLE),
        ({**BOTH, "use_cpu": "true"}, MEASURED, None, FP32),  # float32 on a CPU is not compiled by rule
        ({"auto_speed": "true", **COMPILED, "use_cpu": "true"}, {}, None, FP32),
        ({**BOTH, "total_training_time": "1h"}, {**BF16_PAYS, **PARTS}, None, REGIONAL),
        (BOTH, {**MEASURED, **PARTS}, math.inf, WHOLE),  # without an end the fastest
    ],
)
def test_the_mode_that_pays(tmp_path, costs, flags, measured, remaining, mode):
    costs.update(measured)
    chosen, _, args = resolve(tmp_path, flags, remaining)
    assert chosen == mode
    assert args.bf16 == mode.bf16 and args.torch_compile == (mode.compile != "no")
    assert mode.bf16 or args.mixed_precision == "no"


def test_a_resumed_job_keeps_what_was_resolved(tmp_path, costs):
    costs.update(BF16_PAYS)
    stored = {"asked": {"bf16": True, "compile": "no"}, "settled": {"bf16": False, "compile": "no"}}
    (tmp_path / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"speed": stored}}))
    _, resolved, args = resolve(tmp_path, AUTO, checkpoint=tmp_path)
    assert resolved == stored and not args.bf16


def test_no_compiler_no_compiling(tmp_path, costs, monkeypatch):
    monkeypatch.setattr(precision, "has_compiler", lambda: False)
    mode, _, args = resolve(tmp_path, COMPILED)
    assert mode.compile == "no" and not args.torch_compile
