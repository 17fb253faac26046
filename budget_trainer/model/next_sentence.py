"""Next-sentence prediction beside the masked language model (Devlin et al. 2019), on the library's own classes.

A batch brings `token_type_ids` [B, L] and `next_sentence_label` [B]: 0 where sentence B follows A, 1 where it does not.
The loss is the mean over all predicted tokens of the optimizer step plus the mean over all its pairs, whatever
accumulation and ranks. Trainer hands in the number of labels of the step only (`num_items_in_batch`), so whoever
assembles the step adds the number of its pairs to every batch: `count_pairs`, which TimeBudgetTrainer calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from budget_trainer.core.errors import InputError
from budget_trainer.model.patches import with_mixin
from budget_trainer.model.sparse import SparsePrediction, sparse_class
from budget_trainer.model.types import check_pair_type


class _PairPrediction(SparsePrediction):
    """Mixed into the sparse form of a class with both heads by `pair_class`."""

    last_layer_is_sparse = False  # the pooler reads [CLS], and both heads share one pass

    def encode(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, hidden: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """As the parent's; returns `hidden` [B, L, H] where the states are already there, so both heads share them."""
        return super().encode(input_ids, attention_mask, **kwargs) if hidden is None else hidden

    def predict(self, hidden: Tensor) -> Tensor:
        """As the parent's."""
        heads: Any = self.cls
        return heads.predictions(hidden)

    def dense_logits(self, input_ids: Any, attention_mask: Tensor | None, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """As the parent's; the stock class names its own differently."""
        return self.predict(self.encode(input_ids, attention_mask, **kwargs))

    def pair_scores(self, hidden: Tensor) -> Tensor:
        """Return the scores [B, 2] of "B follows A" and "B is random" from hidden states [B, L, H]."""
        model: Any = self
        return model.cls.seq_relationship(model.base_model.pooler(hidden))

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        masked_positions: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        token_type_ids: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        num_pairs_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Train both heads; without `labels` the stock forward, without `next_sentence_label` the parent's (see there).

        Args:
            token_type_ids: [B, L], 0 in the first sentence and 1 in the second; by default all 0.
            next_sentence_label: [B], 0 where the second sentence follows the first.
            num_pairs_in_batch: the number of pairs in the whole optimizer step on all ranks, which divides the summed
                loss; by default the mean over this call's pairs is taken.

        Returns:
            BertForPreTrainingOutput with the sum of both losses in nats, in float32; logits only with `return_logits`.

        Raises:
            InputError: the number of labels of the step is given, that of its pairs is not.
        """
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, **kwargs}
        if labels is None and masked_positions is None:
            return super().forward(input_ids=input_ids, next_sentence_label=next_sentence_label, **given)
        given |= {"masked_positions": masked_positions, "labels": labels, "return_logits": return_logits}
        given["num_items_in_batch"] = num_items_in_batch
        if labels is None or next_sentence_label is None:
            return super().forward(input_ids=input_ids, **given)
        if num_items_in_batch is not None and num_pairs_in_batch is None:
            raise InputError(
                "num_pairs_in_batch: missing beside num_items_in_batch; add the number of sentence pairs of the optimizer "
                "step to the batch (budget_trainer.model.next_sentence.count_pairs)"
            )
        assert input_ids is not None
        hidden = self.encode(input_ids, attention_mask, token_type_ids=token_type_ids, **kwargs)
        tokens = super().forward(input_ids=input_ids, hidden=hidden, **given)
        scores = self.pair_scores(hidden)
        pairs = F.cross_entropy(scores.float(), next_sentence_label, reduction="sum")
        loss = tokens.loss + pairs / (len(next_sentence_label) if num_pairs_in_batch is None else num_pairs_in_batch)
        return BertForPreTrainingOutput(loss=loss, prediction_logits=tokens.logits, seq_relationship_logits=scores)


def count_pairs(batches: Sequence[dict[str, Any]], world_size: int) -> None:
    """Add `num_pairs_in_batch` to the micro-batches of one optimizer step on this rank, where they hold pairs.

    Every rank has as many blocks in a step. A tensor, filled on the labels' device: a new number compiles nothing anew.
    """
    labels = [batch["next_sentence_label"] for batch in batches if "next_sentence_label" in batch]
    if not labels:
        return
    # A whole number, because DeepSpeed's plug casts floats to the model's precision.
    total = torch.full((), world_size * sum(map(len, labels)), dtype=torch.long, device=labels[0].device)
    for batch in batches:
        batch["num_pairs_in_batch"] = total


def pair_class(config: PretrainedConfig) -> Any:
    """Return the class of a config with both heads and sparse prediction, under the library's name.

    Raises:
        InputError: the model type has no such class, or knows only one token type.
    """
    check_pair_type(config.model_type)
    if config.type_vocab_size < 2:
        raise InputError(
            f"type_vocab_size: {config.type_vocab_size} cannot tell the sentences of a pair apart; set it to 2, or leave "
            "add_nsp out"
        )
    return with_mixin(_PairPrediction, sparse_class(MODEL_FOR_PRETRAINING_MAPPING[type(config)]))
