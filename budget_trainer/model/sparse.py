"""Sparse prediction on the library's own classes: only masked positions go through the head, the projection and the last layer.

Shapes are static, and nothing is read back from the device.

Nothing but the head reads what the last layer makes. So its queries, output projection and feed-forward block are computed
at masked positions alone, keys and values at every one; the loss and all gradients stay. At 15 % of 128 positions that saves
70 % of the layer: 17 % of the encoder's matrix products in a model of 4 layers, 3 % in one of 24.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import gelu
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb, eager_attention_forward

from budget_trainer.core.errors import InputError
from budget_trainer.model import attention
from budget_trainer.model.attention import attend_by_head, fuse_attention
from budget_trainer.model.cross_entropy import (
    ReplacedTokenDetection,
    SampledSoftmax,
    linear_cross_entropy,
    logits_loss,
    loss_per_label,
    matmul_dtype,
)
from budget_trainer.model.patches import with_mixin


class _AtMaskedPositions(nn.Module):
    """Mixed into an encoder layer of the library: same modules, same state, and a forward for some positions."""

    at: Callable[..., Any]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *args: Any,
        masked_positions: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Return states [B, S, H] at `masked_positions` [B, S] of [B, L, H]; without positions, the library's forward."""
        if masked_positions is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        return self.at(hidden_states, masked_positions, _rows_at(attention_mask, masked_positions), **kwargs)


class _BertLayer(_AtMaskedPositions):
    """Of bert, roberta and their kin; attends by SDPA, whatever the other layers do."""

    def at(self: Any, states: Tensor, positions: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        here = _gather(states, positions)
        context = _attend(self.attention.self, here, states, mask)
        return self.feed_forward_chunk(self.attention.output(context, here))


class _MegatronLayer(_AtMaskedPositions):
    """Of megatron-bert, which normalises before attention and returns a tuple."""

    def at(self: Any, states: Tensor, positions: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor]:
        normal = self.attention.ln(states)
        if isinstance(mask, Tensor | None):
            context = _attend(self.attention.self, _gather(normal, positions), normal, mask)
        else:  # the kernels of packed documents on a GPU take all queries
            context = _gather(self.attention.self(normal, mask)[0], positions)
        return (self.feed_forward_chunk(self.attention.output(context, _gather(states, positions))),)


class _ModernLayer(_AtMaskedPositions):
    """Of modernbert: rotary positions, one Wqkv, the library's choice of attention."""

    def at(self: Any, states: Tensor, positions: Tensor, mask: Any, position_embeddings: Any, **kwargs: Any) -> Tensor:
        here = _gather(states, positions)
        here = here + _attend_rotary(self.attn, self.attn_norm(states), positions, position_embeddings, mask)
        return here + self.mlp(self.mlp_norm(here))


_LAST_LAYERS: dict[str, Any] = dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BertLayer)
_LAST_LAYERS |= {"megatron-bert": _MegatronLayer, "modernbert": _ModernLayer}


def _gather(states: Tensor, positions: Tensor) -> Tensor:
    """[B, S, D]: states [B, L, D] at positions [B, S]."""
    batch, length, width = states.shape
    start = torch.arange(batch, device=states.device)[:, None] * length
    flat = states.reshape(batch * length, width).index_select(0, (positions + start).flatten())
    return flat.view(batch, -1, width)


def _rows_at(mask: Any, positions: Tensor) -> Any:
    """Return the rows of an attention mask [B, 1, L or 1, L] for queries at positions [B, S]: [B, 1, S or 1, L].

    None, and the masks of kernels (see `attention.build_mask`), as they are.
    """
    if not isinstance(mask, Tensor) or mask.shape[2] == 1:
        return mask
    mask = mask.expand(len(positions), -1, -1, -1)
    return mask.gather(2, positions[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def _attend(attention: Any, queries: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the context [B, S, H] of `queries` [B, S, H] over `states` [B, L, H] in a BERT-like attention module."""
    heads = (attention.num_attention_heads, attention.attention_head_size)
    parts = (attention.query(queries), attention.key(states), attention.value(states))
    query, key, value = (part.unflatten(-1, heads).transpose(1, 2) for part in parts)
    return attend_by_head(query, key, value, mask, attention.dropout.p if attention.training else 0.0)


def _attend_rotary(
    attention: Any, normal: Tensor, positions: Tensor, position_embeddings: Any, mask: Tensor | None
) -> Tensor:
    """Return modernbert's attention output [B, S, H] at positions [B, S] of normalised states [B, L, H]."""
    width = normal.shape[-1]
    weight, bias = attention.Wqkv.weight, attention.Wqkv.bias
    biases = (None, None) if bias is None else (bias[:width], bias[width:])
    head = attention.head_dim
    query = F.linear(_gather(normal, positions), weight[:width], biases[0]).unflatten(-1, (-1, head))
    key, value = F.linear(normal, weight[width:], biases[1]).unflatten(-1, (2, -1, head)).unbind(-3)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    cos, sin = (table.expand(len(positions), -1, -1) for table in position_embeddings)
    place = positions[..., None].expand(-1, -1, cos.shape[-1])
    # No heads in place of the other one: queries and keys are at different positions.
    query, _ = apply_rotary_pos_emb(query, query[:, :0], cos.gather(1, place), sin.gather(1, place), unsqueeze_dim=1)
    key, _ = apply_rotary_pos_emb(key, key[:, :0], cos, sin, unsqueeze_dim=1)
    how = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    options = {"scaling": head**-0.5, "sliding_window": attention.sliding_window}
    options["dropout"] = attention.attention_dropout if attention.training else 0.0
    context, _ = how(attention, query, key, value, mask, **options)
    return attention.out_drop(attention.Wo(context.reshape(*positions.shape, -1)))


def _bert_transform(model: Any, hidden: Tensor) -> Tensor:
    return model.cls.predictions.transform(hidden)


def _roberta_transform(model: Any, hidden: Tensor) -> Tensor:
    return model.lm_head.layer_norm(gelu(model.lm_head.dense(hidden)))


# What a model does to hidden states [..., H] before their projection onto the vocabulary, its output embeddings. Types
# not listed compute all logits, then gather.
HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bert": _bert_transform,
    "megatron-bert": _bert_transform,
    "roberta": _roberta_transform,
    "roberta-prelayernorm": _roberta_transform,
    "xlm-roberta": _roberta_transform,
    "camembert": _roberta_transform,
    "modernbert": lambda model, hidden: model.head(hidden),
    "eurobert": lambda model, hidden: hidden,
}
# Types whose self-attention has `query`, `key` and `value` projections, which are joined.
FUSED = ("bert", "megatron-bert", "roberta", "roberta-prelayernorm", "xlm-roberta", "camembert")


@dataclass
class _WithDetection(MaskedLMOutput):
    """`loss` is `masked_loss` and the weighted `detection_loss` together."""

    masked_loss: Tensor | None = None
    detection_loss: Tensor | None = None


if TYPE_CHECKING:
    _ModelBase = PreTrainedModel
else:
    _ModelBase = object


class SparsePrediction(_ModelBase):
    """Mixed into a masked-LM class of the library by `sparse_class`."""

    # Trainer then passes num_items_in_batch and does not divide by the accumulation steps; the forward below uses it.
    # (The stock BertForMaskedLM only looks as if it did, and trains with a loss several times too large.)
    accepts_loss_kwargs = True
    sparse_mask_prediction = True
    sparse_last_layer = True
    cross_entropy = "chunked"  # or "full": all logits of a batch at once
    max_documents: int | None = None  # in a block; see `attention.build_mask`
    sampled_softmax: SampledSoftmax | None  # of `sample_softmax`
    detection: ReplacedTokenDetection | None  # of `detect_replaced_tokens`

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.sampled_softmax = self.detection = None
        encodes = not getattr(config, "is_decoder", False)
        if encodes and config.model_type in FUSED:
            fuse_attention(self)
        if encodes and config.model_type in _LAST_LAYERS:
            layer = self._last_layer
            layer.__class__ = with_mixin(_LAST_LAYERS[config.model_type], layer.__class__)

    @property
    def _last_layer(self) -> Any:
        base: Any = self.base_model
        return (base.layers if self.config.model_type == "modernbert" else base.encoder.layer)[-1]

    @property
    def last_layer_is_sparse(self) -> bool:
        """Whether training computes the last layer at masked positions only.

        Its attention has to take other queries than keys: megatron-bert's is ours, others' must be SDPA or eager.
        """
        kind, how = self.config.model_type, self.config._attn_implementation
        encodes = not getattr(self.config, "is_decoder", False)  # a decoder's mask may be None: causal by itself
        able = encodes and kind in _LAST_LAYERS and (kind == "megatron-bert" or how in ("sdpa", "eager"))
        return able and self._is_sparse and self.sparse_last_layer and self.detection is None

    def positions_used(self, share: float) -> dict[nn.Module, float]:
        """Return the share of positions that each linear map of a sparse last layer sees, `share` being masked."""
        if not self.last_layer_is_sparse:
            return {}
        everywhere = {"key": 1.0, "value": 1.0, "Wqkv": (2 + share) / 3}
        parts = self._last_layer.named_modules()
        return {m: everywhere.get(name.rsplit(".", 1)[-1], share) for name, m in parts if isinstance(m, nn.Linear)}

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the last hidden states [B, L, H] for token ids [B, L] and a mask [B, L], 1 where there is a token.

        With `document_ids` [B, L] no attention crosses documents, and absolute positions restart at each. With
        `masked_positions` [B, S], where `last_layer_is_sparse`, the states at those: [B, S, H].
        """
        if document_ids is not None:
            check_document_mask(self)
            document_ids = attention.separate_padding(document_ids, attention_mask)
            if self.config.model_type not in ("modernbert", "eurobert"):  # rotary positions need no restart
                kwargs.setdefault("position_ids", attention.position_ids(self.base_model, document_ids))
        mask = attention.static_mask(self.config, attention_mask, document_ids)
        return self.base_model(input_ids=input_ids, attention_mask=mask, **kwargs)[0]

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., H]."""
        return self.get_output_embeddings()(HEADS[self.config.model_type](self, hidden))

    def masked_loss(self, hidden: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the loss of hidden states [N, H] with labels [N]; without their logits where the class allows it.

        It is the summed cross entropy in nats over `num_items_in_batch`, or over the labels that are not -100. In training
        mode it is estimated, where `sample_softmax` was called.
        """
        projection: Any = self.get_output_embeddings()
        sampled = self.sampled_softmax if self.training else None
        if sampled is None and (self.cross_entropy == "full" or type(projection) is not nn.Linear):
            return logits_loss(self.predict(hidden), labels, num_items_in_batch)
        states = HEADS[self.config.model_type](self, hidden)
        # compiled by itself a module has no truth value
        cross_entropy = linear_cross_entropy if sampled is None else sampled
        total = cross_entropy(states, projection.weight, projection.bias, labels)
        return loss_per_label(total, labels, num_items_in_batch)

    def sample_softmax(self, counts: NDArray[Any], samples: int, rank: int = 0, world_size: int = 1) -> None:
        """Train with the loss of a `SampledSoftmax` from here on: `samples` of the vocabulary by `counts` [v] of labels.

        Rows of the projection beyond v count 0. Evaluation stays exact.

        Raises:
            InputError: `samples` is not below v, or the type has no projection that could be sampled.
        """
        kind, projection = self.config.model_type, self.get_output_embeddings()
        if not self._is_sparse or type(projection) is not nn.Linear:
            raise InputError(
                f"cross_entropy: sampled needs sparse_mask_prediction and one of {', '.join(HEADS)}, not model_type={kind!r} "
                f"with sparse_mask_prediction {str(self.sparse_mask_prediction).lower()}; use chunked"
            )
        if not 0 < samples < len(counts):
            raise InputError(
                f"softmax_samples: {samples} must be from 1 to below the vocabulary, which has {len(counts)} tokens; lower it, "
                "or use cross_entropy chunked"
            )
        padded = np.zeros(projection.out_features)
        padded[: len(counts)] = counts
        self.sampled_softmax = SampledSoftmax(padded, samples, rank, world_size)

    def detect_replaced_tokens(self, weight: float, special_ids: Mapping[str, int], seed: int) -> None:
        """Train with `weight` times the loss of a new `ReplacedTokenDetection` beside the masked one from here on; it falls.

        Raises:
            InputError: the type has no hidden states of its own here, or every position is predicted.
        """
        if not self._is_sparse:
            raise InputError(
                f"detection_weight: {weight} needs sparse_mask_prediction and one of {', '.join(HEADS)}, not model_type="
                f"{self.config.model_type!r} with sparse_mask_prediction {str(self.sparse_mask_prediction).lower()}; use 0"
            )
        table: Any = self.get_input_embeddings()
        width, std = table.weight.shape[1], self.config.initializer_range
        self.detection = ReplacedTokenDetection(width, weight, special_ids, std, seed)

    def num_parameters(self, *args: Any, **kwargs: Any) -> int:
        """As the library's, without the head of `detect_replaced_tokens`, which no saved model has."""
        head = 0 if self.detection is None else sum(parameter.numel() for parameter in self.detection.parameters())
        return super().num_parameters(*args, **kwargs) - head

    def _loss(self, labels: Tensor, num_items_in_batch: Tensor | int | None, **given: Any) -> MaskedLMOutput:
        """The loss of training, which needs no logits."""
        flat = labels.flatten()
        if self.detection is None or not self.training:
            return MaskedLMOutput(loss=self.masked_loss(self.masked_hidden(**given), flat, num_items_in_batch))
        positions = given.pop("masked_positions")
        states = self.encode(**given)
        loss = self.masked_loss(_gather(states, positions).flatten(0, 1), flat, num_items_in_batch)
        detection = self.detection(states, given["input_ids"], positions, labels)
        if num_items_in_batch is not None:  # this call's part of the step, as it has of the masked loss
            detection = loss_per_label(detection * (flat != -100).sum(), flat, num_items_in_batch)
        parts = {"masked_loss": loss.detach(), "detection_loss": detection.detach()}
        return _WithDetection(loss=loss + self.detection.strength * detection, **parts)

    def masked_hidden(self, input_ids: Tensor, masked_positions: Tensor, **kwargs: Any) -> Tensor:
        """Return the last hidden states [B * S, H] at positions [B, S] of each block; the rest is for `encode`."""
        if self.last_layer_is_sparse:
            return self.encode(input_ids, masked_positions=masked_positions, **kwargs).flatten(0, 1)
        return _gather(self.encode(input_ids, **kwargs), masked_positions).flatten(0, 1)

    def masked_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None, masked_positions: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return the logits [B * S, V] at positions [B, S] of each block, not through a compiled `__call__`."""
        kwargs["attention_mask"] = attention_mask
        if self._is_sparse:
            return self.predict(self.masked_hidden(input_ids, masked_positions, **kwargs))
        return _gather(self.dense_logits(input_ids, **kwargs), masked_positions).flatten(0, 1)

    @property
    def _is_sparse(self) -> bool:
        return self.sparse_mask_prediction and self.config.model_type in HEADS

    def dense_logits(
        self, input_ids: Any, attention_mask: Tensor | None, document_ids: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the stock class's logits [B, L, V], or what it lacks: those of packed documents."""
        if document_ids is not None:
            return self.predict(self.encode(input_ids, attention_mask, document_ids=document_ids, **kwargs))
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs).logits

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        masked_positions: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict the masked positions; without positions, labels and documents, exactly the stock forward.

        Args:
            input_ids, attention_mask: as in `encode`; no mask is faster, where no block has padding.
            masked_positions: [B, S] positions to predict, any in unused slots; None predicts every position.
            labels: [B, S], or [B, L] without masked_positions; -100 in slots that do not count.
            num_items_in_batch: the number of labels in the whole optimizer step on all ranks, which divides the summed
                loss; by default the mean over this call's labels is taken.
            return_logits: also return logits [B * S, V]; training does without.
            document_ids: [B, L], rising within a block: the document of each token, which alone it attends to.

        Returns:
            MaskedLMOutput with the loss in nats per label, in float32.

        Raises:
            InputError: document_ids for a type that cannot keep documents apart.
        """
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if document_ids is not None:
            given["document_ids"] = document_ids
        if masked_positions is None:
            if labels is None and document_ids is None:
                return super().forward(**given)
            logits = self.dense_logits(**given)
            if labels is None:
                return MaskedLMOutput(logits=logits)
            logits = logits.flatten(0, 1)
        else:
            given["masked_positions"] = masked_positions
            if labels is not None and not return_logits and self._is_sparse:
                return self._loss(labels, num_items_in_batch, **given)
            logits = self.masked_logits(**given)
        loss = None if labels is None else logits_loss(logits, labels.flatten(), num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits if return_logits or loss is None else None)


class _SparseMegatronBert(SparsePrediction):
    """megatron-bert with fused attention, also of packed documents; the library has only the eager one."""

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """As the parent's; calls embeddings and layers, because the base model would always build a float mask."""
        base: Any = self.base_model
        mask: attention.AttentionMask = None
        if document_ids is not None:
            document_ids = attention.separate_padding(document_ids, attention_mask)
            kwargs.setdefault("position_ids", attention.position_ids(base, document_ids))
            mask = attention.build_mask(document_ids, self._backend(input_ids.device), self.max_documents)
        elif attention_mask is not None:
            mask = attention_mask[:, None, None, :].bool()
        *layers, last = base.encoder.layer
        states = base.embeddings(input_ids, **kwargs)
        for layer in layers:
            states = layer(states, mask)[0]
        return base.encoder.ln(last(states, mask, masked_positions=masked_positions)[0])

    def _backend(self, device: torch.device) -> str:
        config, dtype = self.config, matmul_dtype(device, self.dtype)
        dropout = config.attention_probs_dropout_prob if self.training else 0.0
        return attention.choose_backend(device, dtype, config.hidden_size // config.num_attention_heads, dropout)


def check_document_mask(model: Any) -> None:
    """Raise InputError where `model` cannot keep the documents of a packed block apart; call it at set-up."""
    kind, how = model.config.model_type, model.config._attn_implementation
    if kind not in HEADS or not isinstance(model, SparsePrediction):
        raise InputError(f"model_type={kind!r} cannot keep packed documents apart: use one of {', '.join(HEADS)}")
    if kind != "megatron-bert" and how not in ("sdpa", "eager"):
        raise InputError(f"attn_implementation={how!r} cannot keep packed documents apart: use 'sdpa' or 'eager'")


def sparse_class(cls: Any) -> Any:
    """Return the subclass of a masked-LM class with sparse prediction, under the same name and config class."""
    mixin = _SparseMegatronBert if cls.config_class.model_type == "megatron-bert" else SparsePrediction  # type: ignore
    return with_mixin(mixin, cls)  # type: ignore[no-any-return]
