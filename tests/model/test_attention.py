"""Packed documents do not see each other, and the joined projections equal the library's modules."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoModelForMaskedLM

from budget_trainer.core.errors import InputError
from budget_trainer.model import attention
from budget_trainer.model.attention import _attend, build_mask, choose_backend
from budget_trainer.model.sparse import FUSED, check_document_mask
from tests.model.models import (
    DOCUMENTS,
    GPU,
    KINDS,
    LENGTH,
    PADDING,
    SPANS,
    assert_near,
    loss_and_gradients,
    packed,
    pick,
    predictions,
    sharp,
    stock_twin,
)

# ---- the pure functions ----


@pytest.mark.parametrize(
    ("ids", "positions", "starts"),
    [
        ([[0, 0, 0]], [[0, 1, 2]], [0, 3, 3, 3]),
        ([[0, 0, 1], [5, 5, 5]], [[0, 1, 0], [0, 1, 2]], [0, 2, 3, 6, 6, 6, 6]),
        ([[0, 1, 2], [2, 2, -1]], [[0, 0, 0], [0, 1, 0]], [0, 1, 2, 3, 5, 6, 6]),
    ],
)
def test_positions_and_segments(ids, positions, starts):
    ids = torch.tensor(ids)
    for padding, first in ((None, 0), (1, 2)):  # RoBERTa's begin behind the padding id
        table = SimpleNamespace(padding_idx=padding)
        base = SimpleNamespace(embeddings=SimpleNamespace(position_embeddings=table))
        assert (attention.position_ids(base, ids) - first).tolist() == positions
    segments = build_mask(ids, "varlen")
    assert segments.starts.tolist() == starts and segments.starts.dtype == torch.int32 and segments.longest == 3


def test_the_number_of_documents_can_be_bounded():
    ids = torch.tensor([[0, 0, 1, 1], [0, 0, 1, -1]])
    assert build_mask(ids, "varlen", 2).starts.tolist() == [0, 2, 4, 6, 7, 8, 8]
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        build_mask(torch.arange(8).reshape(2, 4), "varlen", 1)


def mask_of(how, mask, ids, model_type="bert", **config):
    return attention.static_mask(SimpleNamespace(_attn_implementation=how, model_type=model_type, **config), mask, ids)


def test_masks():
    ids = attention.separate_padding(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 1, 0]]))
    assert ids.tolist() == [[0, 0, 1, -1]]
    mask = mask_of("sdpa", None, ids)
    assert mask.int().tolist() == [[[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]]
    added = mask_of("eager", None, ids)
    assert added.isfinite().all() and (added[~mask] < -1e38).all() and (added[mask] == 0).all()
    both = mask_of("sdpa", torch.tensor([[1, 1, 1, 0]]), None, model_type="modernbert", sliding_window=1)
    assert both["full_attention"].int().tolist() == [[[[1, 1, 1, 0]]]]
    near = both["sliding_attention"]
    assert near.int().tolist() == [[[[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]]
    cpu = torch.device("cpu")
    assert choose_backend(cpu, torch.float32) == choose_backend(cpu, torch.bfloat16, 32, dropout=0.1) == "sdpa"


def qkv_and_ids(rows=2, heads=2, width=16, device="cpu", dtype=torch.float32):
    given = packed(rows)
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(rows, LENGTH, 3, heads, width, generator=generator)
    ids = attention.separate_padding(given["document_ids"], given["attention_mask"]).to(device)
    return qkv.to(device, dtype).requires_grad_(), ids


def test_segments_and_block_masks_say_what_the_boolean_mask_says():
    qkv, ids = qkv_and_ids()
    expected = _attend(qkv, build_mask(ids, "sdpa"))
    starts = build_mask(ids, "varlen").starts.tolist()
    parts = qkv.flatten(0, 1)
    pieces = [_attend(parts[None, a:b], None)[0] for a, b in itertools.pairwise(starts) if a < b]
    assert torch.allclose(torch.cat(pieces).view_as(expected), expected, atol=1e-6)
    query, key, value = qkv.detach().permute(2, 0, 3, 1, 4).unbind(0)
    blocks = flex_attention(query, key, value, block_mask=build_mask(ids, "flex"))
    assert torch.allclose(blocks.transpose(1, 2).flatten(2), expected, atol=1e-5)


# ---- the joined projections ----


@pytest.mark.parametrize("model_type", FUSED)
def test_dropout_of_attention_acts_in_training_only(model_type):
    model = sharp(model_type, attention_probs_dropout_prob=0.5)
    inputs = packed()
    inputs |= predictions(inputs["input_ids"])
    assert model(**inputs).loss.item() != model(**inputs).loss.item()
    model.eval()
    assert model(**inputs).loss.item() == model(**inputs).loss.item()


@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "roberta"])
def test_probabilities_come_from_the_library(model_type):
    model = sharp(model_type, "eager").eval()
    stock = stock_twin(model, AutoModelForMaskedLM).eval()
    inputs = pick(packed(), "input_ids", "attention_mask")
    ours, theirs = (m(**inputs, output_attentions=True).attentions for m in (model, stock))
    assert_near(ours, theirs, 1e-5)


# ---- packed documents ----


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("model_type", "how"), KINDS)
def test_a_packed_document_equals_one_in_its_own_block(model_type, how, padded):
    model, inputs = sharp(model_type, how).eval(), packed(padded=padded)
    plain = {name: tensor for name, tensor in inputs.items() if name != "document_ids"}
    slots = torch.arange(DOCUMENTS[0], LENGTH - PADDING).repeat(2, 1)
    with torch.no_grad():
        logits = model(**inputs).logits
        for span in SPANS:
            alone = model(input_ids=inputs["input_ids"][:, span]).logits
            assert torch.allclose(logits[:, span], alone, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(model(**plain).logits[:, : DOCUMENTS[0]], logits[:, : DOCUMENTS[0]], atol=1e-3)
        # What changes in the first document, the predictions at positions of the others do not see to the last bit.
        before = model(**inputs, masked_positions=slots).logits
        inputs["input_ids"][:, 5] = (inputs["input_ids"][:, 5] + 1) % 90 + 5
        assert torch.equal(model(**inputs, masked_positions=slots).logits, before)


@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "roberta", "modernbert", "eurobert"])
def test_training_on_packed_documents_equals_training_on_each(model_type):
    model, inputs = sharp(model_type), packed()
    positions = torch.arange(LENGTH - PADDING).repeat(2, 1)
    labels = inputs["input_ids"].gather(1, positions)
    loss, gradients = loss_and_gradients(model, inputs | {"masked_positions": positions, "labels": labels})
    model.zero_grad()
    total = 0.0
    for span in SPANS:
        ids = inputs["input_ids"][:, span]
        slots = torch.arange(ids.shape[1]).repeat(2, 1)
        part = model(input_ids=ids, masked_positions=slots, labels=ids, num_items_in_batch=labels.numel()).loss
        part.backward()
        total += part.item()
    assert loss == pytest.approx(total, rel=1e-5)
    each = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert_near(gradients, each, 1e-5, 1e-4)


@pytest.mark.parametrize("layers_only", [True, False])
@pytest.mark.parametrize("model_type", ["megatron-bert", "bert", "modernbert", "eurobert"])  # roberta is as bert
def test_compiled_training_on_packed_documents(model_type, layers_only):
    torch._dynamo.reset()
    model, inputs = sharp(model_type), packed()
    inputs |= predictions(inputs["input_ids"]) | {"num_items_in_batch": 12}
    loss, gradients = loss_and_gradients(model, inputs)
    if layers_only:  # as Accelerate's regional compilation does
        base = model.base_model
        for layer in base.encoder.layer if hasattr(base, "encoder") else base.layers:
            layer.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    else:
        model.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**inputs).loss.item() == pytest.approx(loss, rel=0.05)
    again, compiled = loss_and_gradients(model, inputs)
    assert again == pytest.approx(loss, rel=1e-5)
    assert_near(compiled, gradients, 1e-5, 1e-4)


def test_what_cannot_keep_documents_apart_says_so():
    for model_type, _ in KINDS:
        check_document_mask(sharp(model_type))
    other, flex = sharp("distilbert"), sharp("modernbert")
    flex.config._attn_implementation = "flex_attention"
    for model, message in ((other, "'distilbert' cannot keep packed"), (flex, "attn_implementation='flex_attention'")):
        with pytest.raises(InputError, match=message):
            check_document_mask(model)
        with pytest.raises(InputError, match=message):
            model(**packed())


# ---- on a GPU ----


@GPU
def test_a_gpu_takes_flash_in_half_precision_without_dropout():
    device = torch.device("cuda", 0)
    if torch.cuda.get_device_properties(device).major >= 8:
        assert choose_backend(device, torch.bfloat16) == choose_backend(device, torch.float16) == "varlen"
    assert choose_backend(device, torch.float32) == "flex"
    assert choose_backend(device, torch.bfloat16, dropout=0.1) == "sdpa"
    assert choose_backend(device, torch.bfloat16, head_dim=8) != "flex"


@GPU
@pytest.mark.parametrize(
    ("backend", "dtype"), [("varlen", torch.bfloat16), ("varlen", torch.float16), ("flex", torch.bfloat16)]
)
def test_gpu_backends_equal_sdpa(backend, dtype):
    qkv, ids = qkv_and_ids(rows=3, heads=4, width=64, device="cuda", dtype=dtype)
    weight = torch.randn(3, LENGTH, 256, device="cuda", dtype=dtype)
    expected = _attend(qkv, build_mask(ids, "sdpa"))
    wanted = torch.autograd.grad((expected * weight).sum(), qkv)[0]
    for bound in (None, 5):
        found = _attend(qkv, build_mask(ids, backend, bound))
        gradient = torch.autograd.grad((found * weight).sum(), qkv)[0]
        assert (found - expected).norm() < 0.01 * expected.norm()
        assert (gradient - wanted).norm() < 0.02 * wanted.norm()


@GPU
@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("model_type", ["modernbert", "bert", "megatron-bert"])
def test_a_training_step_never_waits_for_the_gpu(model_type, padded, documents):
    model = sharp(model_type, hidden_dropout_prob=0.1).cuda()
    inputs = packed(padded=padded)
    inputs |= predictions(inputs["input_ids"])
    inputs = {name: tensor.cuda() for name, tensor in inputs.items() if documents or name != "document_ids"}
    inputs["num_items_in_batch"] = torch.tensor(12, device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()

    step()  # libraries are loaded and kernels built
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
