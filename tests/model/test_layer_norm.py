"""apex's LayerNorm: another kernel on the same parameters, or one line that says why not."""

import json
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from budget_trainer.core.errors import InputError
from budget_trainer.model.engine_optimizers import use_apex
from budget_trainer.model.optimizers import build_optimizer
from tests.model.models import GPU, assert_near, batch, loss_and_gradients, pick, tiny

BIASED = {"modernbert": {"model_config": {"norm_bias": True}}}


class FusedLayerNorm(nn.LayerNorm):
    """The interface of apex's class, with torch's kernel: only a stand-in at the import."""

    calls = 0

    def forward(self, states):
        FusedLayerNorm.calls += 1
        return super().forward(states)


@pytest.fixture
def apex(monkeypatch):
    module = SimpleNamespace(FusedLayerNorm=FusedLayerNorm)
    monkeypatch.setitem(sys.modules, "apex", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "apex.normalization", module)
    return module


@pytest.mark.parametrize("model_type", ["bert-mlm", "bert", "roberta-prelayernorm", "modernbert", "deberta-v2"])
def test_the_same_model_with_another_kernel(apex, model_type, tmp_path):
    model, plain = (tiny(model_type, **BIASED.get(model_type, {})).eval() for _ in range(2))
    before = dict(model.named_parameters())
    norms = sum(type(module) is nn.LayerNorm for module in model.modules())
    assert use_apex(model, "cuda") == norms > 3
    assert not any(type(module) is nn.LayerNorm for module in model.modules())
    assert not any(module.training for module in model.modules())
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)

    FusedLayerNorm.calls = 0
    loss, gradients = loss_and_gradients(model, batch())
    expected, wanted = loss_and_gradients(plain, batch())
    assert FusedLayerNorm.calls >= norms and loss == pytest.approx(expected, abs=1e-6)
    assert_near(gradients, wanted)

    fused, usual = (build_optimizer("adamw", m, learning_rate=1e-3).param_groups for m in (model, plain))
    assert [(g["name"], len(g["params"])) for g in fused] == [(g["name"], len(g["params"])) for g in usual]

    model.save_pretrained(tmp_path / "fused")
    plain.save_pretrained(tmp_path / "plain")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("fused", "plain")]
    assert configs[0] == configs[1]
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "fused").eval()
    given = pick(batch(padded=False), "input_ids")
    assert torch.allclose(stock(**given).logits, model(**given).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("modernbert", "(modernbert: model_config {norm_bias: true})"), ("eurobert", "no LayerN")],
)
def test_models_it_cannot_serve(apex, model_type, expected):
    with pytest.raises(InputError) as refused:
        use_apex(tiny(model_type), "cuda")
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_it_is_nvidias_and_needs_a_gpu(apex, monkeypatch):
    model = tiny("bert")
    with pytest.raises(InputError, match="^layer_norm_type: apex runs on NVIDIA GPUs, this run is on 'cpu'; use"):
        use_apex(model, torch.device("cpu"))

    absent = r"^layer_norm_type: apex is not installed \(.*\); build NVIDIA's from source \("
    no_extension = Mock(side_effect=ImportError("No module named 'fused_layer_norm_cuda'"))
    for change in (
        lambda: monkeypatch.setattr(apex, "FusedLayerNorm", no_extension),
        lambda: monkeypatch.delattr(apex, "FusedLayerNorm"),  # the other package of that name
        lambda: monkeypatch.setitem(sys.modules, "apex.normalization", None),
    ):
        change()
        with pytest.raises(InputError, match=absent):
            use_apex(model, "cuda")


@pytest.mark.parametrize("layer_norm_type", ["apex", "pytorch"])
def test_the_flag(apex, open_run, monkeypatch, layer_norm_type):
    run = open_run(model_type="bert-mlm", layer_norm_type=layer_norm_type)
    monkeypatch.setattr(type(run.args), "device", torch.device("cuda"))
    model = run.untrained_model()
    assert model.config.model_type == "megatron-bert"
    assert any(type(module) is FusedLayerNorm for module in model.modules()) is (layer_norm_type == "apex")


@GPU
def test_apex_itself_gives_the_same_loss():
    pytest.importorskip("apex.normalization")
    model, plain = (tiny("bert-mlm").cuda() for _ in range(2))
    use_apex(model, "cuda")
    inputs = {name: tensor.cuda() for name, tensor in batch().items()}
    loss, gradients = loss_and_gradients(model, inputs)
    expected, wanted = loss_and_gradients(plain, inputs)
    assert loss == pytest.approx(expected, abs=1e-4)
    assert_near(gradients, wanted, 1e-3)
