"""Sparse prediction on the library's own classes: only masked positions go through the head and the projection.

`sparse_class` mixes it into a stock class under the same name, with the same weights: whatever is saved loads with stock
`AutoModelForMaskedLM`. Shapes are static, and nothing is read back from the device.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.megatron_bert.modeling_megatron_bert import MegatronBertSelfAttention

# The modules that turn hidden states into logits, in order. Types not listed compute all logits, then gather.
HEADS = {
    "bert": ("cls",),
    "megatron-bert": ("cls",),
    "roberta": ("lm_head",),
    "roberta-prelayernorm": ("lm_head",),
    "xlm-roberta": ("lm_head",),
    "camembert": ("lm_head",),
    "modernbert": ("head", "decoder"),
    "eurobert": ("lm_head",),
}

if TYPE_CHECKING:
    _Base = PreTrainedModel
else:
    _Base = object


class SparsePrediction(_Base):
    """Mixed into a masked-LM class of the library by `sparse_class`."""

    # Trainer then passes num_items_in_batch and does not divide by the accumulation steps; the forward below uses it.
    # (The stock BertForMaskedLM only looks as if it did, and trains with a loss several times too large.)
    accepts_loss_kwargs = True
    sparse_mask_prediction = True

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the last hidden states [B, L, H] for token ids [B, L] and a mask [B, L], 1 where there is a token."""
        mask = _static_mask(self.config, attention_mask, input_ids)
        return self.base_model(input_ids=input_ids, attention_mask=mask, **kwargs)[0]

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., H]."""
        for name in HEADS[self.config.model_type]:
            hidden = getattr(self, name)(hidden)
        return hidden

    def masked_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, masked_positions: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return the logits [B * S, V] at positions [B, S] of each block, not through a compiled `__call__`."""
        if self.sparse_mask_prediction and self.config.model_type in HEADS:
            return self.predict(_gather(self.encode(input_ids, attention_mask, **kwargs), masked_positions))
        return _gather(self.dense_logits(input_ids, attention_mask, **kwargs), masked_positions)

    def dense_logits(self, input_ids: Tensor | None, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:
        """Return the stock class's logits [B, L, V]."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs).logits

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        masked_positions: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Predict the masked positions; without `masked_positions` and `labels`, exactly the stock forward.

        Args:
            input_ids: [B, L] token ids.
            attention_mask: [B, L], 1 where there is a token; leave it out when no block has padding, which is faster.
            masked_positions: [B, S] positions to predict, any in unused slots; None predicts every position.
            labels: [B, S], or [B, L] without masked_positions; -100 in slots that do not count.
            num_items_in_batch: the number of labels in the whole optimizer step on all ranks, which divides the summed
                loss; by default the mean over this call's labels is taken.
            return_logits: also return logits [B * S, V]; training does without.

        Returns:
            MaskedLMOutput with the loss in nats per label, in float32.
        """
        if masked_positions is None:
            if labels is None:
                return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            logits = self.dense_logits(input_ids, attention_mask, **kwargs).flatten(0, 1)
        else:
            assert input_ids is not None
            logits = self.masked_logits(input_ids, attention_mask, masked_positions, **kwargs)
        loss = None if labels is None else _mean_loss(logits, labels.flatten(), num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits if return_logits or loss is None else None)


class SparseMegatronBert(SparsePrediction):
    """megatron-bert with PyTorch's fused attention; the library has only the eager one for this class."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for module in self.modules():
            if type(module) is MegatronBertSelfAttention:
                # Same parameters, same state, another forward: nothing is built twice or copied.
                module.__class__ = FusedMegatronBertSelfAttention

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """As the parent's; calls embeddings and encoder, because the base model would always build a float mask."""
        base: Any = self.base_model
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        return base.encoder(base.embeddings(input_ids, **kwargs), attention_mask=mask)[0]


class FusedMegatronBertSelfAttention(MegatronBertSelfAttention):
    """The library's module with `scaled_dot_product_attention` inside, where nothing needs the probabilities."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """Return the context [B, L, H] of states [B, L, H]; the mask broadcasts to [B, 1, L, L], bool or additive."""
        if args or any(value is not None and value is not False for value in kwargs.values()):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        heads = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            layer(hidden_states).view(heads).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask.to(query.dtype)  # additive, in float32 even under autocast
        dropout = self.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout)
        return (context.transpose(1, 2).flatten(2),)


def _gather(states: Tensor, positions: Tensor) -> Tensor:
    """Return [B * S, D]: states [B, L, D] at positions [B, S]."""
    batch, length, width = states.shape
    start = torch.arange(batch, device=states.device)[:, None] * length
    return states.reshape(batch * length, width).index_select(0, (positions + start).flatten())


def _mean_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Return the cross entropy of logits [N, V] and labels [N] in nats, divided by the number of labels that count."""
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    if num_items_in_batch is None:
        return total / (labels != -100).sum().clamp(min=1)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def _static_mask(config: PretrainedConfig, mask: Tensor | None, input_ids: Tensor) -> Any:
    """Return the mask as fused attention takes it; the library would first read `mask.all()` back to the host."""
    if mask is None or config._attn_implementation != "sdpa":
        return mask
    full = mask[:, None, None, :].bool()
    if config.model_type != "modernbert":
        return full
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    near = (place[:, None] - place[None, :]).abs() <= config.sliding_window
    return {"full_attention": full, "sliding_attention": full & near}


@cache
def sparse_class(cls: type) -> type:
    """Return the subclass of a masked-LM class with sparse prediction, under the same name and config class."""
    mixin = SparseMegatronBert if cls.config_class.model_type == "megatron-bert" else SparsePrediction  # type: ignore
    # The name becomes `architectures` in config.json; the library finds the module's source by __module__.
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
