"""apex's LayerNorm: another kernel on the same parameters, or one line that says why not."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from budget_trainer.model.engine_optimizers import use_apex
from budget_trainer.model.optimizers import build_optimizer
from budget_trainer.training.parts import RunParts
from tests.conftest import TINY, words
from tests.model.models import assert_near, batch, loss_and_gradients, pick, tiny

BIASED = {"modernbert": {"model_config": {"norm_bias": True}}}


class FusedLayerNorm(nn.Module):
    """The interface of apex's class, with torch's kernel: only a stand-in at the import."""

    calls = 0

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, memory_efficient=False):
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = torch.Size(shape)
        self.eps, self.memory_efficient = eps, memory_efficient
        self.weight = nn.Parameter(torch.empty(self.normalized_shape)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.empty(self.normalized_shape)) if elementwise_affine else None

    def forward(self, states):
        FusedLayerNorm.calls += 1
        return F.layer_norm(states, self.normalized_shape, self.weight, self.bias, self.eps)


@pytest.fixture
def apex(monkeypatch):
    package, module = ModuleType("apex"), ModuleType("apex.normalization")
    module.FusedLayerNorm = FusedLayerNorm
    monkeypatch.setitem(sys.modules, "apex", package)
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
    [
        ("modernbert", "has none; give the model one (modernbert: model_config {norm_bias: true})"),
        ("eurobert", "no LayerNorm"),
    ],
)
def test_models_it_cannot_serve(apex, model_type, expected):
    with pytest.raises(InputError) as refused:
        use_apex(tiny(model_type), "cuda")
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_it_is_nvidias_and_needs_a_gpu(apex, monkeypatch):
    model = tiny("bert")
    with pytest.raises(
        InputError, match="^layer_norm_type: apex runs on NVIDIA GPUs, this run is on 'cpu'; use layer_norm"
    ):
        use_apex(model, torch.device("cpu"))

    def no_extension(*args, **kwargs):
        raise ImportError("No module named 'fused_layer_norm_cuda'")

    absent = r"^layer_norm_type: apex is not installed \(.*\); build NVIDIA's from source \("
    for change in (
        lambda: monkeypatch.setattr(apex, "FusedLayerNorm", no_extension),
        lambda: monkeypatch.delattr(apex, "FusedLayerNorm"),  # the other package of that name
        lambda: monkeypatch.setitem(sys.modules, "apex.normalization", None),
    ):
        change()
        with pytest.raises(InputError, match=absent):
            use_apex(model, "cuda")


@pytest.mark.parametrize("layer_norm_type", ["apex", "pytorch"])
def test_the_flag(apex, data_dir, tmp_path, monkeypatch, layer_norm_type):
    options = {**TINY, "model_type": "bert-mlm", "layer_norm_type": layer_norm_type, "data_dir": data_dir}
    recipe = parse_recipe(words({**options, "output_dir": tmp_path / "out", "total_training_time": "30s"}))
    args = recipe.training_arguments()
    monkeypatch.setattr(type(args), "device", torch.device("cuda"))
    data = DataFolder.open(data_dir)
    model = RunParts(recipe, args, data).make_model()
    assert model.config.model_type == "megatron-bert"
    assert any(type(module) is FusedLayerNorm for module in model.modules()) is (layer_norm_type == "apex")


def _has_apex():
    try:
        use_apex(nn.Sequential(nn.LayerNorm(1)), "cuda" if torch.cuda.is_available() else "cpu")
    except InputError:
        return False
    return True


@pytest.mark.skipif(not _has_apex(), reason="needs NVIDIA's apex and a GPU")
def test_apex_itself_gives_the_same_loss():
    model, plain = (tiny("bert-mlm").cuda() for _ in range(2))
    use_apex(model, "cuda")
    inputs = {name: tensor.cuda() for name, tensor in batch().items()}
    loss, gradients = loss_and_gradients(model, inputs)
    expected, wanted = loss_and_gradients(plain, inputs)
    assert loss == pytest.approx(expected, abs=1e-4)
    assert_near(gradients, wanted, 1e-3)
