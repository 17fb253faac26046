"""Sparse prediction, the sparse last layer, joined projections, chunks and a sample of all tokens change no loss, no
gradient and no logit."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from budget_trainer.model import attention
from budget_trainer.model.cross_entropy import SampledSoftmax
from budget_trainer.model.sparse import FUSED, HEADS
from tests.model.models import (
    KINDS,
    assert_near,
    loss_and_gradients,
    packed,
    pick,
    predictions,
    sharp,
    stock_twin,
)

LAST_LAYERS = ["bert", "roberta", "xlm-roberta", "camembert", "megatron-bert", "modernbert"]
PLAIN = {"sparse_last_layer": False, "cross_entropy": "full", "sparse_mask_prediction": False}
PAIRS = [("bert", "sdpa", True), ("megatron-bert", "eager", True)]
OTHERS = [("distilbert", "sdpa", False), ("electra", "sdpa", False)]


def batch_of(what):
    batch = packed(rows=3, padded=what != "full")
    if what != "documents":
        del batch["document_ids"]
    batch |= predictions(batch["input_ids"])
    batch["labels"][1, -1] = -100  # a slot that is not used
    return batch


@pytest.mark.parametrize("what", ["full", "padding", "documents"])
@pytest.mark.parametrize(("model_type", "how", "add_nsp"), [*((*kind, False) for kind in KINDS), *PAIRS, *OTHERS])
def test_no_shortcut_changes_loss_or_gradients(model_type, how, add_nsp, what):
    model, batch = sharp(model_type, how, add_nsp=add_nsp).double(), batch_of(what)
    if model_type not in HEADS:
        batch.pop("document_ids", None)
    if add_nsp:
        batch["next_sentence_label"] = torch.tensor([0, 1, 0])
    assert model.last_layer_is_sparse is (model_type in LAST_LAYERS and not add_nsp)
    loss, gradients = loss_and_gradients(model, batch)
    rows = model.config.vocab_size
    all_sampled = {"sampled_softmax": SampledSoftmax(np.arange(rows), rows)}
    for name, plain in (all_sampled | PLAIN).items():
        setattr(model, name, plain)
        its, others = loss_and_gradients(model, batch)
        assert its == pytest.approx(loss, rel=1e-6, abs=1e-6), name  # the loss is float32
        assert_near(others, gradients, rtol=1e-4)
        model.sampled_softmax = None
    assert not model.last_layer_is_sparse


@pytest.mark.parametrize("what", ["full", "padding"])
@pytest.mark.parametrize(("model_type", "how"), KINDS)
def test_equals_the_stock_class(model_type, how, what):
    model, batch = sharp(model_type, how), batch_of(what)
    ours = [m for m in model.base_model.modules() if type(m).__name__.endswith("SelfAttention")]
    assert bool(ours) is (model_type in FUSED)
    assert all(type(module).forward.__module__ == attention.__name__ for module in ours)
    stock, given = stock_twin(model, AutoModelForMaskedLM), pick(batch, "input_ids", "attention_mask")
    valid = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
    labels = torch.full_like(given["input_ids"], -100).scatter(1, batch["masked_positions"], batch["labels"])
    expected = stock(**given, labels=labels)
    for logits in (model(**given).logits, model.predict(model.encode(**given))):
        assert_near(logits[valid], expected.logits[valid], 1e-5)
    places = batch["masked_positions"][..., None].expand(-1, -1, logits.shape[-1])
    assert_near(model(**batch, return_logits=True).logits, expected.logits.gather(1, places).flatten(0, 1), 1e-5)
    assert model(**batch).logits is None
    assert model(**given, labels=labels).loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # eager attention adds masks in float32 to scores in bf16
        assert model(**batch).loss.item() == pytest.approx(expected.loss.item(), rel=0.05)
    loss, gradients = loss_and_gradients(model, batch)
    assert loss == pytest.approx(expected.loss.item(), abs=1e-5)
    expected.loss.backward()
    assert_near(gradients, {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}, 1e-5)


@pytest.mark.parametrize("model_type", LAST_LAYERS)
def test_computes_only_masked_positions(model_type):
    model, batch = sharp(model_type), batch_of("full")
    seen = {}
    for name, module in model._last_layer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: out.shape[1]}))
    model(**batch)
    slots, length = batch["masked_positions"].shape[1], batch["input_ids"].shape[1]
    everywhere = {name.rsplit(".", 1)[-1] for name, count in seen.items() if count == length}
    assert everywhere == (set() if model_type == "modernbert" else {"key", "value"})
    assert list(seen.values()).count(slots) == len(seen) - len(everywhere)
    assert len(seen) == (3 if model_type == "modernbert" else 6)


@pytest.mark.parametrize("model_type", LAST_LAYERS)
def test_gradient_checkpointing(model_type):
    model, batch = sharp(model_type), batch_of("padding")
    loss, gradients = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    _, projection, *_ = (module for module in model._last_layer.modules() if isinstance(module, torch.nn.Linear))
    projection.register_forward_hook(lambda *given: calls.append(1))
    again, others = loss_and_gradients(model, batch)
    assert loss == again and len(calls) == 2, "computed forward, and again for the backward pass"
    assert_near(others, gradients, 1e-7)


def test_packed_documents_by_a_kernel_that_takes_all_queries(monkeypatch):
    """megatron-bert's other masks: flex_attention, here not made into a kernel."""
    model, batch = sharp("megatron-bert").double(), batch_of("documents")
    with torch.no_grad():  # flex_attention has no backward pass on a CPU
        model.sparse_last_layer = False
        whole = model(**batch).loss
        model.sparse_last_layer = True
        monkeypatch.setattr(attention, "choose_backend", lambda *queries: "flex")
        model.compile(backend="eager")
        torch.testing.assert_close(model(**batch).loss, whole, rtol=1e-6, atol=1e-6)


def test_a_run_s_model_is_made_so(open_run):
    model, plain = (open_run(sparse_last_layer=sparse).untrained_model() for sparse in (True, False))
    assert model.last_layer_is_sparse and not plain.last_layer_is_sparse
    assert any(isinstance(module, nn.Dropout) and type(module) is not nn.Dropout for module in model.modules())


def test_a_run_samples_by_its_tokens_also_where_it_goes_on(open_run, tmp_path):
    run = open_run(cross_entropy="sampled", softmax_samples=100)
    shares = []
    for checkpoint in (None, tmp_path):
        run.checkpoint = checkpoint
        run.read_data()
        run.make_model()
        shares.append(run.model.sampled_softmax._sums.diff()[: run.data.vocab_size])
        assert run.is_new is (checkpoint is None) is bool(run.model.get_output_embeddings().bias[0] != 0)
    special = list(run.data.special_ids.values())
    assert torch.equal(*shares) and run.data.unigram_counts()[special].max() > 1000
    assert (shares[0][special] < 1.001 * shares[0].min()).all(), "no labels"
