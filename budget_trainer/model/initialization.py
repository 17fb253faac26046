"""Start where counting ends: initial weights from the statistics of the corpus, paid for out of the budget.

The embeddings start as the truncated SVD of positive pointwise mutual information (the matrix that skip-gram factorises
implicitly: Levy and Goldberg, NeurIPS 2014), one set of columns per relative position; the first layer's heads start by
looking at the neighbours; the output bias at the frequencies of the tokens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from budget_trainer.core.errors import InputError
from budget_trainer.model.build import PADDED_ROW_BIAS, SPECIAL_NAMES

_Entries = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]  # row, column, value


def cooccurrence_embeddings(
    rows: NDArray[np.int64],
    vocab_size: int,
    size: int,
    *,
    special_ids: Mapping[str, int],
    distances: Sequence[int] = (1, 2),
    context_words: int = 8192,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Return [vocab_size, size] embeddings from the co-occurrences in `rows` ([n, L] token ids).

    Each token is described by what stands `distances` before and after it, as PPMI with the context distribution
    smoothed by 0.75 (Levy, Goldberg and Dagan, TACL 2015), reduced by a randomised SVD to U * sqrt(S). Pairs with a
    special token do not count. Tokens that never occur get zeros. The contexts of a relative position are the
    `context_words` most frequent tokens.
    """
    occurrences = np.bincount(rows.reshape(-1), minlength=vocab_size)
    special = list(special_ids.values())
    occurrences[special] = 0
    order = np.argsort(-occurrences, kind="stable")[:context_words]
    order = order[occurrences[order] > 0]
    frequent = np.full(vocab_size, -1, np.int64)  # the column of each token, -1 without one
    frequent[order] = np.arange(len(order))
    blocks = []
    with ThreadPoolExecutor(len(distances)) as pool:  # NumPy sorts without the lock of the interpreter
        for left, right, counts in pool.map(lambda distance: _pairs(rows, distance, vocab_size, special), distances):
            blocks.append(_ppmi(left, frequent[right], counts))  # the context stands after the token
            blocks.append(_ppmi(right, frequent[left], counts))  # ... before it
    return _reduce(blocks, vocab_size, context_words, size, seed)


def _pairs(rows: NDArray[np.int64], distance: int, vocab_size: int, special: list[int]) -> _Entries:
    """The different pairs (token, token `distance` later within a row) and how often each occurs."""
    ordinary = np.ones(vocab_size, bool)
    ordinary[special] = False
    left, right = rows[:, :-distance].reshape(-1), rows[:, distance:].reshape(-1)
    keep = ordinary[left] & ordinary[right]
    number: Any = np.uint32 if vocab_size**2 < 2**32 else np.uint64  # the smaller, the faster it is sorted
    keys = left[keep].astype(number) * number(vocab_size) + right[keep].astype(number)
    keys, counts = np.unique(keys, return_counts=True)
    keys = keys.astype(np.int64)
    return keys // vocab_size, keys % vocab_size, counts.astype(np.float64)


def _ppmi(tokens: NDArray[np.int64], columns: NDArray[np.int64], counts: NDArray[np.float64]) -> _Entries:
    """The positive entries (token, column, value) of the PMI matrix."""
    known = columns >= 0
    tokens, columns, counts = tokens[known], columns[known], counts[known]
    total = counts.sum()
    of_token = np.bincount(tokens, counts)
    of_context = np.bincount(columns, counts) ** 0.75
    of_context *= total / of_context.sum()
    values = np.log(counts * total / (of_token[tokens] * of_context[columns]))
    positive = values > 0
    return tokens[positive], columns[positive], values[positive].astype(np.float32)


def _to_torch(sparse: csr_matrix) -> torch.Tensor:
    with warnings.catch_warnings():  # sparse CSR is called beta at every first use
        warnings.simplefilter("ignore", UserWarning)
        starts, columns, values = map(torch.from_numpy, (sparse.indptr, sparse.indices, sparse.data))
        return torch.sparse_csr_tensor(starts, columns, values, size=sparse.shape)


def _reduce(
    blocks: Sequence[_Entries], vocab_size: int, context_words: int, size: int, seed: int
) -> NDArray[np.float32]:
    """U * sqrt(S) of the blocks side by side, by a randomised range finder with one power iteration (Halko 2011)."""
    shifted = [(tokens, columns + i * context_words, values) for i, (tokens, columns, values) in enumerate(blocks)]
    row, column, value = (np.concatenate(parts) for parts in zip(*shifted, strict=True))
    shape = (vocab_size, context_words * len(blocks))
    sparse = csr_matrix((value, (row, column)), shape=shape)  # torch's own conversion takes four times as long
    matrix, transposed = _to_torch(sparse), _to_torch(sparse.T.tocsr())
    probe = torch.randn(shape[1], min(size + 32, vocab_size), generator=torch.Generator().manual_seed(seed))
    for _ in range(2):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(probe)[0])[0]
        probe = transposed @ basis
    vectors, values, _ = torch.linalg.svd(probe.T @ probe)
    embeddings = torch.zeros(vocab_size, size)
    left = (basis @ vectors) * values.clamp_min(0).pow(0.25)  # singular values are roots of these: sqrt(S)
    embeddings[:, : min(size, left.shape[1])] = left[:, :size]
    return embeddings.numpy()


@torch.no_grad()
def set_embeddings(model: Any, embeddings: NDArray[np.float32], standard_deviation: float) -> None:
    """Make `embeddings` ([v, H]) the first v input embeddings and output weights, scaled to a standard deviation."""
    values = torch.from_numpy(embeddings)
    values = values * (standard_deviation / values.std())
    tables = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not tables[0] and output.weight.shape == tables[0].shape:
        tables.append(output.weight)
    for table in tables:
        if table.shape[1] != values.shape[1]:
            raise InputError(
                f"embedding_init: cooccurrence makes {values.shape[1]} numbers per token, the embeddings of "
                f"{model.config.model_type!r} have {table.shape[1]}; use embedding_init normal"
            )
        table[: len(values)] = values.to(table.dtype)


@torch.no_grad()
def set_offset_heads(model: Any, offsets: Sequence[int] = (-1, 1, -2, 2), layers: int = 1, gain: float = 8.0) -> None:
    """Let the heads of the first `layers` layers begin by attending to relative `offsets` (cyclically over the heads).

    Constant query and key biases do it through the rotary embedding: the score of a key at relative position d is
    gain * mean over the frequencies w of cos(w * (d - offset)), greatest at d = offset. Needs a model with rotary
    positions, one Wqkv and attention biases (`modernbert` with attention_bias: true). Raises InputError for others.
    """
    config = model.config
    if config.model_type != "modernbert" or not config.attention_bias:
        raise InputError(
            f"offset_heads: {config.model_type!r} without rotary positions and attention biases cannot have them; use "
            "model_type modernbert with model_config {attention_bias: true}, or leave offset_heads out"
        )
    width = config.hidden_size // config.num_attention_heads
    for index in range(min(layers, config.num_hidden_layers)):
        theta = config.rope_parameters[config.layer_types[index]]["rope_theta"]
        frequencies = theta ** -(torch.arange(0, width, 2).float() / width)
        amplitude = math.sqrt(gain * math.sqrt(width) / (width // 2))
        bias = model.model.layers[index].attn.Wqkv.bias
        queries, keys, _ = bias.view(3, config.num_attention_heads, width)
        for head in range(config.num_attention_heads):
            angle = offsets[head % len(offsets)] * frequencies
            queries[head] = amplitude * torch.cat([angle.cos(), angle.sin()])
            keys[head] = amplitude * torch.cat([torch.ones_like(angle), torch.zeros_like(angle)])


def set_output_bias(model: Any, unigram_counts: NDArray[Any]) -> None:
    """Set the output bias to log unigram frequencies (add-one smoothed), so that training starts at that plateau.

    Args:
        unigram_counts: [vocab_size] occurrences of each token; rows beyond are padding of the vocabulary.

    Raises:
        InputError: the model has no output bias, or more counts are given than it has rows.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is None:
        raise InputError(f"unigram_bias: model_type {model.config.model_type!r} has no output bias; set it to false")
    counts = np.array(unigram_counts, dtype=np.float64)
    if counts.ndim != 1 or not 0 < len(counts) <= len(bias) or (counts < 0).any():
        raise InputError(f"unigram_counts of shape {counts.shape} must hold up to {len(bias)} counts, one per token")
    for key in chain(*SPECIAL_NAMES.values()):  # never a label
        token = getattr(model.config, key, None)
        if isinstance(token, int) and token < len(counts):
            counts[token] = 0
    with torch.no_grad():
        bias.fill_(PADDED_ROW_BIAS)
        bias[: len(counts)] = torch.from_numpy(np.log((counts + 1) / (counts + 1).sum())).to(bias)
