"""Attention: masks of packed blocks (no token sees another document), and a faster forward for the library's modules.

`document_ids` [B, L] say which document each token of a block belongs to; only whether neighbours and pairs are equal
counts. `fuse_attention` joins query, key and value into one matrix product and attends by SDPA or a fused kernel.
Everything has static shapes, and nothing is read back from the device.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from budget_trainer.model.patches import dropout as few_bit_dropout
from budget_trainer.model.patches import with_mixin

PADDING = -1  # the document of padding
_HAS_TRITON = find_spec("triton") is not None


class _Segments(NamedTuple):
    """Documents for flash varlen: where each starts in the flattened batch (int32, rising), and the longest possible."""

    starts: Tensor
    longest: int


AttentionMask = Tensor | BlockMask | _Segments | None


def separate_padding(document_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the ids [B, L] with padding, 0 in the mask [B, L], as a document of its own: no row is fully masked."""
    return document_ids if attention_mask is None else document_ids.where(attention_mask.bool(), PADDING)


def _document_mask(document_ids: Tensor) -> Tensor:
    """[B, 1, L, L]: True where both tokens are of the same document."""
    return document_ids[:, None, :, None] == document_ids[:, None, None, :]


def _begins(document_ids: Tensor) -> Tensor:
    """[B, L]: True where a document begins."""
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return begins


def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int = 64, dropout: float = 0.0) -> str:
    """Return the fastest attention of packed blocks for queries of this kind: "varlen", "flex" or "sdpa".

    Flash varlen needs an Ampere GPU or later, half precision and a head of 8, 16, ... 256; flex_attention a GPU with
    Triton and a head of at least 16. Neither drops out probabilities.
    """
    if device.type != "cuda" or dropout > 0:
        return "sdpa"
    half = dtype in (torch.bfloat16, torch.float16)
    if half and head_dim % 8 == 0 and head_dim <= 256 and torch.cuda.get_device_properties(device).major >= 8:
        return "varlen"
    return "flex" if _HAS_TRITON and head_dim >= 16 else "sdpa"


def build_mask(document_ids: Tensor, backend: str, max_documents: int | None = None) -> AttentionMask:
    """Return the mask of ids [B, L] in the form of the backend; made once per forward pass, used by every layer.

    Args:
        max_documents: the most documents in any block; by default L, which always suffices, but each possible one costs
            flash varlen a little. More documents than that stop a GPU with an index error instead of a wrong result.
    """
    batch, length = document_ids.shape
    if backend == "varlen":
        # One more for the padding. Documents that do not exist start and end where the batch ends: they are empty.
        count = batch * min(length, (max_documents or length) + 1)
        place = torch.arange(batch * length, device=document_ids.device)
        starts = torch.full((count + 1,), batch * length, dtype=torch.int64, device=document_ids.device)
        starts = starts.scatter_reduce(0, _begins(document_ids).flatten().cumsum(0) - 1, place, "amin")
        return _Segments(starts.int(), length)
    if backend == "flex":

        def same(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return document_ids[b, query] == document_ids[b, key]

        return create_block_mask(same, batch, None, length, length, device=document_ids.device)
    return _document_mask(document_ids)


def _attend(qkv: Tensor, mask: AttentionMask, dropout: float = 0.0) -> Tensor:
    """Return the context [B, L, H * D] of queries, keys and values [B, L, 3, H, D].

    Args:
        mask: of `build_mask`; or a tensor that broadcasts to [B, H, L, L], bool (True where attention may go) or additive.
        dropout: probability of dropping an attention weight; 0 with _Segments and BlockMask.
    """
    batch, length = qkv.shape[:2]
    if isinstance(mask, _Segments):
        query, key, value = qkv.flatten(0, 1).unbind(1)
        packed = varlen_attn(query, key, value, mask.starts, mask.starts, mask.longest, mask.longest)
        return packed.reshape(batch, length, -1)  # type: ignore[union-attr]
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        return flex(query, key, value, block_mask=mask).transpose(1, 2).flatten(2)
    return attend_by_head(query, key, value, mask, dropout)


def attend_by_head(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Return the context [B, S, H * D] of queries [B, H, S, D] over keys and values [B, H, L, D]; see `_attend`."""
    if dropout > 0 and query.device.type == "cpu" and not torch.compiler.is_compiling():
        # SDPA drops out on a CPU in separate steps too, and draws more bits.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if mask is not None:
            boolean = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if boolean else scores + mask
        context = few_bit_dropout(scores.softmax(-1), dropout) @ value
    else:
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)  # additive, in float32 even under autocast
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return context.transpose(1, 2).flatten(2)


@cache
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, dynamic=False)  # uncompiled it would compute all scores in separate steps


def position_ids(base: Any, document_ids: Tensor) -> Tensor:
    """Return the position ids [B, L] that restart at each document; RoBERTa's begin behind the padding id."""
    padding = base.embeddings.position_embeddings.padding_idx
    place = torch.arange(document_ids.shape[1], device=document_ids.device)
    restarted = place - torch.where(_begins(document_ids), place, 0).cummax(dim=1).values
    return restarted + (0 if padding is None else padding + 1)


def static_mask(config: Any, mask: Tensor | None, document_ids: Tensor | None) -> Any:
    """Return the mask as SDPA or eager attention takes it; the library would first read `mask.all()` to the host."""
    how = config._attn_implementation
    if document_ids is not None:
        full = _document_mask(document_ids)  # padding has a document of its own
    elif mask is None or how not in ("sdpa", "eager"):
        return mask
    else:
        full = mask[:, None, None, :].bool()
    masks = {"full_attention": full}
    if config.model_type == "modernbert":
        place = torch.arange(full.shape[-1], device=full.device)
        distance = (place[:, None] - place[None, :]).abs()
        # A token always sees itself: far inside padding a window would hold nothing, and a softmax of nothing is NaN.
        masks["sliding_attention"] = (full & (distance <= config.sliding_window)) | (distance == 0)
    if how == "eager":  # which adds a mask: 0, or float32's lowest where attention must not go
        lowest = torch.finfo(torch.float32).min
        masks = {name: torch.zeros_like(m, dtype=torch.float32).masked_fill(~m, lowest) for name, m in masks.items()}
    return masks if len(masks) > 1 else masks["full_attention"]


class _FusedSelfAttention(nn.Module):
    """Mixed into a BERT-like self-attention module of the library: same parameters, same state, faster forward.

    The three projections stay the module's parameters; they are joined for one matrix product.
    """

    UNUSED = ("position_ids", "use_cache", "masked_positions")  # keywords that say nothing about how to attend

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """Return the context [B, L, H] of states [B, L, H], and no probabilities; see `_attend` for the mask.

        Where the caller wants probabilities, a cache or cross attention, or not SDPA, the library's own forward answers.
        """
        module: Any = self
        config = getattr(self, "config", None)  # megatron-bert's attention has none, and no other path in the library
        wanted = any(v is not None and v is not False for k, v in kwargs.items() if k not in self.UNUSED)
        if args or wanted or not (config is None or config._attn_implementation == "sdpa"):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        layers = (module.query, module.key, module.value)
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        heads = (3, module.num_attention_heads, module.attention_head_size)
        qkv = F.linear(hidden_states, weight, bias).view(*hidden_states.shape[:-1], *heads)
        return _attend(qkv, attention_mask, module.dropout.p if self.training else 0.0), None  # type: ignore


def fuse_attention(model: Any) -> None:
    """Give every BERT-like self-attention module of a model the forward of _FusedSelfAttention."""
    for module in model.modules():
        if type(module).__name__.endswith("SelfAttention"):
            module.__class__ = with_mixin(_FusedSelfAttention, module.__class__)
