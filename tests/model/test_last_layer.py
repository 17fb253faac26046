"""The last layer at masked positions: the loss, the gradients and the logits of the whole layer."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from budget_trainer.config.recipe import parse_recipe
from budget_trainer.data.folder import DataFolder
from budget_trainer.model import attention
from budget_trainer.model.sparse import HEADS
from budget_trainer.training.parts import RunParts
from tests.conftest import TINY, words
from tests.model.models import VOCAB, assert_near
from tests.model.models import loss_and_gradients as step
from tests.model.test_attention import packed, predictions, tiny

FORMS = ["bert", "roberta", "xlm-roberta", "camembert", "megatron-bert", "modernbert"]
# The latter two have roberta's code.
CASES = [("megatron-bert", "eager"), ("xlm-roberta", "sdpa"), ("camembert", "sdpa")]
CASES += [(kind, how) for kind in ("bert", "roberta", "modernbert") for how in ("sdpa", "eager")]


def batch_of(what):
    batch = packed(rows=3, padded=what != "full")
    if what != "documents":
        del batch["document_ids"]
    batch |= predictions(batch["input_ids"])
    batch["labels"][1, -1] = -100  # a slot that is not used
    return batch


def loss_and_gradients(model, batch, sparse):
    model.sparse_last_layer = sparse
    return step(model, batch)


def last_layer(model):
    base = model.base_model
    return (base.layers if model.config.model_type == "modernbert" else base.encoder.layer)[-1]


@pytest.mark.parametrize("what", ["full", "padding", "documents"])
@pytest.mark.parametrize("model_type,how", CASES)
def test_equals_the_whole_layer(model_type, how, what):
    model, batch = tiny(model_type, how).double(), batch_of(what)
    assert model.last_layer_is_sparse
    whole, its = loss_and_gradients(model, batch, False)
    loss, gradients = loss_and_gradients(model, batch, True)
    assert loss == pytest.approx(whole, rel=1e-6, abs=1e-6)  # the loss is float32
    assert_near(gradients, its, rtol=1e-4)


@pytest.mark.parametrize("model_type,how", CASES)
def test_logits_are_the_stock_class_s(tmp_path, model_type, how):
    model, batch = tiny(model_type, how).eval(), batch_of("padding")
    model.save_pretrained(tmp_path)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    positions, _ = batch.pop("masked_positions"), batch.pop("labels")
    with torch.no_grad():
        ours = model.masked_logits(batch["input_ids"], batch["attention_mask"], positions)
        logits = stock(**batch).logits
    expected = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1])).flatten(0, 1)
    torch.testing.assert_close(ours[:, :VOCAB], expected[:, :VOCAB], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", FORMS)
def test_computes_only_masked_positions(model_type):
    model, batch = tiny(model_type), batch_of("full")
    seen = {}

    def see(name):
        return lambda module, given, out: seen.update({name: out.shape[1]})

    for name, module in last_layer(model).named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(see(name))
    model(**batch)
    slots, length = batch["masked_positions"].shape[1], batch["input_ids"].shape[1]
    everywhere = {name.rsplit(".", 1)[-1] for name, count in seen.items() if count == length}
    assert everywhere == (set() if model_type == "modernbert" else {"key", "value"})
    assert list(seen.values()).count(slots) == len(seen) - len(everywhere)
    assert len(seen) == (3 if model_type == "modernbert" else 6)


@pytest.mark.parametrize("model_type", FORMS)
def test_gradient_checkpointing(model_type):
    model, batch = tiny(model_type), batch_of("padding")
    loss, gradients = loss_and_gradients(model, batch, True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    _, projection, *_ = (module for module in last_layer(model).modules() if isinstance(module, torch.nn.Linear))
    projection.register_forward_hook(lambda *given: calls.append(1))
    again, others = loss_and_gradients(model, batch, True)
    assert loss == again and len(calls) == 2, "computed forward, and again for the backward pass"
    assert_near(others, gradients, 1e-7)


def test_other_types_compute_the_whole_layer():
    for model_type in HEADS.keys() - set(FORMS):
        assert not tiny(model_type).last_layer_is_sparse
    model = tiny("bert")
    model.sparse_mask_prediction = False
    assert not model.last_layer_is_sparse


def test_bf16_and_dropout_run():
    """Additive masks are float32 beside bf16 queries; dropout makes two passes differ."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model, batch = tiny("bert", "eager", **dropout), batch_of("padding")
    with torch.autocast("cpu", torch.bfloat16):
        first, second = model(**batch).loss, model(**batch).loss
    assert torch.isfinite(first) and first != second


def test_packed_documents_by_a_kernel_that_takes_all_queries(monkeypatch):
    """megatron-bert's other masks: flex_attention, here not made into a kernel."""
    model, batch = tiny("megatron-bert").double(), batch_of("documents")
    with torch.no_grad():  # flex_attention has no backward pass on a CPU
        model.sparse_last_layer = False
        whole = model(**batch).loss
        model.sparse_last_layer = True
        monkeypatch.setattr(attention, "choose_backend", lambda *queries: "flex")
        model.compile(backend="eager")
        torch.testing.assert_close(model(**batch).loss, whole, rtol=1e-6, atol=1e-6)


def made(data_dir, folder, **flags):
    """The model that train_mlm.py makes of these flags, on a CPU."""
    flags = {**TINY, "data_dir": data_dir, "output_dir": folder / "out", "total_training_time": "10m", **flags}
    recipe = parse_recipe(words({**flags, "use_cpu": "true"}))
    return RunParts(recipe, recipe.training_arguments(), DataFolder.open(recipe.data_dir)).make_model()


def test_a_run_s_model_is_made_so(data_dir, tmp_path):
    model = made(data_dir, tmp_path)
    assert model.last_layer_is_sparse
    assert any(isinstance(module, nn.Dropout) and type(module) is not nn.Dropout for module in model.modules())
    assert not made(data_dir, tmp_path, sparse_last_layer="false").last_layer_is_sparse
