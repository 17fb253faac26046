"""Embeddings from co-occurrence against the exact SVD, and heads that attend to fixed offsets."""

import numpy as np
import pytest
import torch

from budget_trainer.core.errors import InputError
from budget_trainer.model.initialization import cooccurrence_embeddings, set_embeddings, set_offset_heads
from tests.model.models import SPECIAL, tiny


def model(model_type="modernbert", **config):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 32}
    return tiny(model_type, **sizes, model_config=config or None, seed=0)


def text(rows=2000, length=16):
    """Even tokens stand before 10..19, odd ones before 20..29: two classes that only their neighbours tell apart."""
    chance = np.random.default_rng(0)
    ids = np.empty((rows, length), np.int64)
    ids[:, ::2] = chance.integers(30, 60, (rows, length // 2))
    ids[:, 1::2] = np.where(ids[:, ::2] % 2 == 0, 10, 20) + chance.integers(0, 10, (rows, length // 2))
    ids[:, 0] = SPECIAL["cls"]
    return ids


def test_tokens_with_the_same_neighbours_are_near():
    embeddings = cooccurrence_embeddings(text(), 100, 8, special_ids=SPECIAL, distances=(1,), context_words=50)
    assert embeddings.shape == (100, 8) and embeddings.dtype == np.float32
    units = embeddings[30:60] / np.linalg.norm(embeddings[30:60], axis=1, keepdims=True)
    similar = units @ units.T
    even = np.arange(30) % 2 == 0
    same, other = similar[np.ix_(even, even)].mean(), similar[np.ix_(even, ~even)].mean()
    assert same > 0.8 and other < 0.3
    assert np.abs(embeddings[list(SPECIAL.values())]).max() < 1e-3 and np.abs(embeddings[70:]).max() < 1e-3


def test_equals_the_exact_svd():
    rows = text(500)
    mine = cooccurrence_embeddings(rows, 100, 40, special_ids=SPECIAL, distances=(1,), context_words=60)
    pairs = np.zeros((100, 100))
    for row in rows:
        for a, b in zip(row, row[1:], strict=False):
            if a > 4 and b > 4:
                pairs[a, b] += 1
    blocks = []
    for counts in (pairs, pairs.T):
        context = counts.sum(0) ** 0.75
        context *= counts.sum() / context.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            blocks.append(
                np.nan_to_num(np.maximum(np.log(counts * counts.sum() / np.outer(counts.sum(1), context)), 0))
            )
    u, s, _ = np.linalg.svd(np.hstack(blocks), full_matrices=False)
    exact = (u * np.sqrt(s))[:, :40]
    gram = lambda e: e @ e.T  # noqa: E731  (the SVD's signs are free)
    assert np.linalg.norm(gram(mine) - gram(exact)) / np.linalg.norm(gram(exact)) < 0.05


def test_small_vocabulary_and_repeatable():
    a, b = (cooccurrence_embeddings(text(50), 100, 128, special_ids=SPECIAL, seed=3) for _ in range(2))
    assert a.shape == (100, 128) and np.isfinite(a).all() and np.array_equal(a, b)


def test_set_embeddings_keeps_ties():
    net = model()
    values = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    set_embeddings(net, values, 0.03)
    table = net.get_input_embeddings().weight
    assert float(table[:100].detach().std()) == pytest.approx(0.03, rel=1e-3)
    assert net.get_output_embeddings().weight is table
    with pytest.raises(InputError, match="embedding_init"):
        set_embeddings(net, values[:, :32], 0.03)


def test_offset_heads_attend_to_their_offset():
    rope = {kind: {"rope_type": "default", "rope_theta": 100.0} for kind in ("full_attention", "sliding_attention")}
    net = model(attention_bias=True, rope_parameters=rope).eval()
    set_offset_heads(net, offsets=(-1, 1, -2, 2), gain=16.0)
    net.set_attn_implementation("eager")
    ids = torch.randint(5, 100, (64, 20))
    with torch.no_grad():  # the tokens' own part of the scores differs from row to row, the offset's does not
        attention = net.model(input_ids=ids, output_attentions=True).attentions[0].mean(0)
    for head, offset in enumerate((-1, 1, -2, 2)):
        looked_at = attention[head].argmax(-1)
        middle = torch.arange(3, 17)
        assert torch.equal(looked_at[middle] - middle, torch.full((14,), offset)), head


def test_offset_heads_refuse_other_models():
    for net in (model(), model("bert")):
        with pytest.raises(InputError, match="^offset_heads: "):
            set_offset_heads(net)
