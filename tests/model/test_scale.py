"""Scales moved into norms: the same outputs, other matrices; what cannot have it is refused."""

import pytest
import torch

from budget_trainer.core.errors import InputError
from budget_trainer.model.checkpoint import check_scalable, scale_weights
from tests.model.models import tiny

BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}


def trained_like(**config):
    """A model whose weights are as different from their start as those of a long run."""
    model = tiny("modernbert", model_config=config or None, seed=0).eval()
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            factor = 0.3 + index % 5 if parameter.ndim == 2 else 1.0
            parameter.copy_(factor * parameter + 0.1 * torch.randn(parameter.shape, generator=chance))
    return model


def logits(model):
    ids = torch.arange(5, 21).view(2, 8)
    with torch.no_grad():
        of_all = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    tokens = model.decoder.bias > -1000  # what fills the vocabulary up has -10,000, beside which all is small
    return of_all[..., tokens]


def saved(model):
    """The weights as a file has them: a tied decoder is not there a second time."""
    return {name: t for name, t in model.state_dict().items() if name not in (model.all_tied_weights_keys or {})}


def load(model, weights, eps):
    model.load_state_dict(weights, strict=False)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps = eps


def rms(weights, *names):
    return [float(tensor.square().mean().sqrt()) for name, tensor in weights.items() if name.endswith(names)]


@pytest.mark.parametrize("config", [{}, BIASES], ids=["no biases", "biases everywhere"])
@pytest.mark.parametrize("target", [0.02, 0.5])
def test_outputs_stay_and_matrices_get_the_scale(config, target):
    model = trained_like(**config)
    before, weights = logits(model), saved(model)
    scaled, eps = scale_weights(weights, target, model.config.norm_eps)
    load(model, scaled, eps)
    after = model.state_dict()
    torch.testing.assert_close(logits(model), before, rtol=2e-3, atol=2e-3 * float(before.std()))
    *_, first = sorted(name for name in after if name.endswith("layers.0.attn.Wqkv.weight"))
    inner = rms({n: t for n, t in after.items() if n != first}, "attn.Wqkv.weight", "mlp.Wi.weight")
    assert inner == pytest.approx([target] * len(inner), rel=1e-4)
    outer = rms(after, ".Wo.weight")
    assert sum(value**2 for value in outer) / len(outer) == pytest.approx(target**2, rel=1e-4)
    assert rms(after, "tok_embeddings.weight") == pytest.approx([target], rel=1e-4)
    for name in ("head.dense.weight", "model.final_norm.weight"):
        assert torch.equal(after[name], weights[name])


def test_rows_as_small_as_epsilon_stay_what_they_are():
    """Of rare tokens: with the epsilon of before their states would change."""
    model = trained_like()
    with torch.no_grad():
        model.model.embeddings.tok_embeddings.weight[5:13] *= 0.003 / 0.2
    before = logits(model)
    scaled, eps = scale_weights(saved(model), 0.02, model.config.norm_eps)
    load(model, scaled, model.config.norm_eps)
    assert (logits(model) - before).abs().max() > 0.1 * before.std()
    load(model, scaled, eps)
    torch.testing.assert_close(logits(model), before, rtol=2e-3, atol=2e-3 * float(before.std()))


def test_a_decoder_of_its_own_keeps_its_head():
    model = trained_like(tie_word_embeddings=False)
    before, weights = logits(model), saved(model)
    scaled, eps = scale_weights(weights, 0.05, model.config.norm_eps)
    load(model, scaled, eps)
    assert rms(scaled, "tok_embeddings.weight") == pytest.approx([0.05], rel=1e-4)
    assert torch.equal(scaled["head.norm.weight"], weights["head.norm.weight"])
    torch.testing.assert_close(logits(model), before, rtol=2e-3, atol=2e-3 * float(before.std()))


def test_zeros_and_half_precision():
    weights = {name: tensor.bfloat16() for name, tensor in trained_like().state_dict().items()}
    weights["model.layers.1.mlp.Wi.weight"].zero_()
    scaled, _ = scale_weights(weights, 0.02, 1e-5)
    assert {tensor.dtype for tensor in scaled.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() for tensor in scaled.values())


def test_other_types_are_refused():
    with pytest.raises(
        InputError, match="final_weight_rms: model_type bert cannot .* use modernbert, or leave it out"
    ):
        check_scalable(tiny("bert").config)
