"""One matrix product for query, key and value, and fused attention, in the library's own self-attention modules."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budget_trainer.attention import attend

if TYPE_CHECKING:
    _Base = nn.Module
else:
    _Base = object


class FusedSelfAttention(_Base):
    """Mixed into a BERT-like self-attention module of the library: same parameters, same state, faster forward.

    The three projections stay the module's parameters (checkpoints, optimizer groups and partitions do not change);
    they are joined for one matrix product.
    """

    # Keywords that say nothing about how to attend.
    UNUSED = ("position_ids", "use_cache", "masked_positions")

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """Return the context [B, L, H] of states [B, L, H], and no probabilities; see `attend` for the mask.

        Where the caller wants probabilities, a cache or cross attention, the library's own forward answers.
        """
        wanted = any(v is not None and v is not False for k, v in kwargs.items() if k not in self.UNUSED)
        if args or wanted or not self._fused():
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        module: Any = self
        layers = (module.query, module.key, module.value)
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        heads = (3, module.num_attention_heads, module.attention_head_size)
        qkv = F.linear(hidden_states, weight, bias).view(*hidden_states.shape[:-1], *heads)
        return attend(qkv, attention_mask, module.dropout.p if self.training else 0.0), None  # type: ignore

    def _fused(self) -> bool:
        """Whether the module may attend by SDPA; megatron-bert's has no config, and no other path in the library."""
        config = getattr(self, "config", None)
        return config is None or config._attn_implementation == "sdpa"


@cache
def fused_class(cls: Any) -> Any:
    """Return the subclass of a self-attention module with `FusedSelfAttention`, under the same name."""
    return type(cls.__name__, (FusedSelfAttention, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def fuse_attention(model: nn.Module) -> None:
    """Give every BERT-like self-attention module of a model the faster forward: nothing is built twice or copied."""
    for module in model.modules():
        if type(module).__name__.endswith("SelfAttention"):
            kind: Any = type(module)  # mypy takes a class for unhashable where its instances define __hash__
            module.__class__ = fused_class(kind)
