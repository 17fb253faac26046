"""Model FLOPs per token, and the FLOP/s that a device reaches: their quotient with tokens/s is MFU. Parameters of the body.

The convention is PaLM's (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): the matrix products that a forward and a
backward pass need, at 2 FLOPs per multiply-add, the backward pass twice the forward pass; nothing for embedding
look-ups, norms, activations, softmax, dropout, the optimizer, or activations that are computed a second time. A leaf.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from budget_trainer.core.errors import InputError

# Modules of next-sentence prediction: they look at [CLS] only, once per block.
_PER_BLOCK = {"pooler", "seq_relationship"}


def model_flops_per_token(model: Any, block_size: int, predictions_per_block: float) -> float:
    """Training FLOPs per token position: 3 x (encoder + attention + share of the head).

    Counted is what is computed: where the last layer is sparse (see `sparse`), its queries, output and feed-forward block
    count as the head does, for packed documents of megatron-bert on a GPU too, which compute all of its queries.

    Per position of a forward pass: 2 per weight of every linear layer of the encoder; 4 * L * A per layer for the two
    attention products (L the block, A heads x head size), the whole L x L whatever windows or document masks leave
    of it; and 2 per weight of the head (transform and vocabulary projection, its padded rows included) for
    `predictions_per_block` of the L positions; of a sampled softmax, the rows that are sampled.

    Args:
        model: a masked language model of Transformers, not wrapped (DDP, torch.compile). Counted are `nn.Linear`
            modules, each as used once per pass: types that share layers (albert) or convolve come out too low.
        block_size: L, tokens in a block.
        predictions_per_block: slots that go through the head; L for dense prediction.

    Raises:
        InputError: block_size is below 1, or predictions_per_block outside of [0, block_size].
    """
    if block_size < 1 or not 0 <= predictions_per_block <= block_size:
        raise InputError(
            f"predictions_per_block={predictions_per_block} must be between 0 and block_size={block_size}, which is 1 or more"
        )
    config = model.config
    encoder = {id(module) for module in model.base_model.modules()}
    heads = getattr(config, "num_attention_heads", None) or 0  # fnet has none: it mixes tokens by Fourier transforms
    head_size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // max(1, heads)
    share = predictions_per_block / block_size
    last = model.positions_used(share) if hasattr(model, "positions_used") else {}
    layers = getattr(config, "num_hidden_layers", 0) - (1 - share if last else 0)
    sampled, projection = getattr(model, "sampled_softmax", None), model.get_output_embeddings()
    forward = 4.0 * block_size * heads * head_size * layers
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        uses = last.get(module, 1.0 if id(module) in encoder or name.startswith("detection.") else share)
        if sampled is not None and module is projection:
            uses *= sampled.samples / module.out_features
        if _PER_BLOCK.intersection(name.split(".")):
            uses = 1 / block_size
        forward += 2.0 * module.in_features * module.out_features * uses
    return 3.0 * forward


def body_parameters(base: Any) -> int:
    """Parameters of the layers of a base model; where its class has no one module for them, of all but embeddings."""
    layers = getattr(base, "encoder", None) or getattr(base, "layers", None)
    named = base.named_parameters() if layers is None else layers.named_parameters()
    return sum(parameter.numel() for name, parameter in named if layers is not None or "embed" not in name)


@torch.no_grad()
def measure_peak_flops(device: torch.device | str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of the best of the square matrix products that fit into `seconds`, one more at most.

    The best, so that a share of it never flatters. Random numbers, because a GPU multiplies zeros faster. On a GPU
    8192 x 8192, timed by the device's events; on a CPU 2048 x 2048 where 10 of them fit, else 1024.
    """
    begin = time.perf_counter()
    device = torch.device(device)
    product, count = _product(device, dtype, 8192 if device.type == "cuda" else 1024)
    if device.type != "cuda" and 10 * 2**3 * _seconds(product, device) < seconds:
        product, count = _product(device, dtype, 2048)
        product()
    best = _seconds(product, device)
    while time.perf_counter() - begin < seconds:
        best = min(best, _seconds(product, device))
    return count / best


def _product(device: torch.device, dtype: torch.dtype, size: int) -> tuple[Any, float]:
    """A warmed-up size x size product as a function of nothing, and its FLOPs."""
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)

    def product() -> None:
        torch.mm(left, right, out=out)

    product()
    return product, 2.0 * size**3


def _seconds(product: Any, device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        product()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    started = time.perf_counter()
    product()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - started
