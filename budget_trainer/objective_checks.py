"""What MaskingCollator's arguments must be: each function raises InputError with field, value and fix."""

from __future__ import annotations

from collections.abc import Mapping

from budget_trainer.errors import InputError

SMALLEST_BODY = 8  # tokens between [CLS] and [SEP] of a part of a block


def check_special_ids(special_ids: Mapping[str, int], vocab_size: int) -> None:
    """The five special tokens are there, inside of the vocabulary, and not all of it."""
    for name in ("pad", "unk", "cls", "sep", "mask"):
        if name not in special_ids:
            raise InputError(f"special_ids={dict(special_ids)} lacks {name!r}: give pad, unk, cls, sep and mask")
        if not 0 <= special_ids[name] < vocab_size:
            raise InputError(f"special_ids[{name!r}]={special_ids[name]} is outside the vocabulary of {vocab_size}")
    if vocab_size <= len(set(special_ids.values())):
        raise InputError(f"vocab_size={vocab_size} holds special tokens only: use a larger tokenizer")


def check_rates(mlm_probability: float, mask_replace_prob: float, random_replace_prob: float) -> None:
    """Shares are between 0 and 1, also together."""
    if not 0 < mlm_probability <= 1:
        raise InputError(f"mlm_probability={mlm_probability} must be above 0 and at most 1, such as 0.15")
    for name, value in (("mask_replace_prob", mask_replace_prob), ("random_replace_prob", random_replace_prob)):
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value} must be between 0 and 1")
    if mask_replace_prob + random_replace_prob > 1 + 1e-9:
        raise InputError(
            f"mask_replace_prob={mask_replace_prob} and random_replace_prob={random_replace_prob} exceed 1 together: "
            "lower one of them"
        )


def check_counts(block_size: int, max_predictions_per_seq: int | None, dup_factor: int | None) -> None:
    """Sizes that are whole numbers are large enough."""
    if block_size < 3:
        raise InputError(f"block_size={block_size} leaves no token between [CLS] and [SEP]: use 3 or more")
    if max_predictions_per_seq is not None and max_predictions_per_seq < 1:
        raise InputError(f"max_predictions_per_seq={max_predictions_per_seq} must be 1 or more, such as 20")
    if dup_factor is not None and dup_factor < 1:
        raise InputError(f"dup_factor={dup_factor} must be 1 or more; leave it out for fresh masks in every epoch")


def check_parts(sequence_parts: int, block_size: int) -> None:
    """The parts divide the block and leave a body."""
    if sequence_parts == 1:
        return
    if sequence_parts < 1 or block_size % sequence_parts:
        raise InputError(f"sequence_parts={sequence_parts} does not divide block_size={block_size}: use 1, 2 or 4")
    if block_size // sequence_parts - 2 < SMALLEST_BODY:
        raise InputError(
            f"sequence_parts={sequence_parts} leaves {block_size // sequence_parts - 2} tokens between [CLS] and [SEP] in "
            f"parts of block_size={block_size}: use fewer parts, for {SMALLEST_BODY} tokens or more"
        )
