"""Dynamic masking as a pure function of (seed, epoch, row, position).

Every random decision is a counter-based hash (the finaliser of SplitMix64: Steele, Lea and Flood, OOPSLA 2014) of the
place where it is taken, so a block gets the same mask whatever the number of ranks, workers or restarts, and
nothing has to be saved to resume. All arithmetic is modulo 2**64 on numpy arrays, without a loop over rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from budget_trainer.errors import InputError

IGNORED_LABEL = -100  # the label that torch's cross entropy leaves out by default

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the increment of SplitMix64
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
# One constant per decision, so that which token is chosen says nothing about what happens to it.
_STREAM_CHOICE, _STREAM_ACTION, _STREAM_TOKEN = np.uint64(1), np.uint64(2), np.uint64(3)

Batch = Mapping[str, Any] | Sequence[Mapping[str, Any]]
U64 = NDArray[np.uint64]


def mix64(x: U64) -> U64:
    """Return a bijective scrambling of uint64 values of any shape (the output function of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLY_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLY_2
    return x ^ (x >> np.uint64(31))


def hash64(key: U64, counter: U64) -> U64:
    """Return 64 hash bits for each broadcast pair of key and counter."""
    return mix64(mix64(key) + (counter + np.uint64(1)) * _GOLDEN)


def uniform(bits: U64) -> NDArray[np.float64]:
    """Turn 64 hash bits into a float64 in [0, 1), from their upper 53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def prediction_slots(mlm_probability: float, block_size: int) -> int:
    """Return the largest number of predictions a block of `block_size` tokens with [CLS] and [SEP] can need."""
    return max(1, round(mlm_probability * (block_size - 2)))


class MaskingCollator:
    """Turn rows of token ids into a masked-language-modelling batch with a fixed number of prediction slots.

    Of the n tokens of a block that are not [CLS], [SEP] or padding, `min(S, max(1, round(mlm_probability * n)))` are
    chosen, those with the smallest hash. A chosen token becomes [MASK] with probability `mask_replace_prob`, a uniform
    random ordinary token with `random_replace_prob`, and else stays.

    Args:
        seed: any int; another seed gives other masks.
        special_ids: token ids named pad, unk, cls, sep and mask.
        vocab_size: len(tokenizer); random tokens are drawn below it, never a special one.
        mlm_probability: the share of tokens to predict, in (0, 1].
        mask_replace_prob, random_replace_prob: 0.8 and 0.1 as in BERT; their sum is at most 1.
        max_predictions_per_seq: S, the slots of a block (20 in the paper). By default `prediction_slots`, the smallest
            number that never cuts a choice short: 19 for blocks of 128 at 15 %.
        block_size: tokens in a block, [CLS] and [SEP] included.
        dup_factor: with N, the epoch counts modulo N: N fixed maskings of each block, as the original's data held;
            None gives fresh masks for ever.
        has_padding: True when blocks may hold padding. The output then always has an attention mask, else never:
            keys stay the same in every batch (torch.compile), and full blocks take the faster attention without one.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        seed: int,
        special_ids: Mapping[str, int],
        vocab_size: int,
        block_size: int,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        max_predictions_per_seq: int | None = None,
        dup_factor: int | None = None,
        has_padding: bool = False,
    ) -> None:
        _check_special_ids(special_ids, vocab_size)
        _check_rates(mlm_probability, mask_replace_prob, random_replace_prob)
        _check_counts(block_size, max_predictions_per_seq, dup_factor)
        self.seed = seed
        self.mlm_probability = mlm_probability
        self.mask_replace_prob = mask_replace_prob
        self.random_replace_prob = random_replace_prob
        self.block_size = block_size
        self.slots = max_predictions_per_seq or prediction_slots(mlm_probability, block_size)
        self.dup_factor = dup_factor
        self.has_padding = has_padding
        self.pad_id, self.mask_id = special_ids["pad"], special_ids["mask"]
        self._never_chosen = tuple(special_ids[name] for name in ("pad", "cls", "sep"))
        self._ordinary_ids = np.setdiff1d(np.arange(vocab_size), list(special_ids.values()))

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Mask one batch.

        Args:
            batch: `input_ids` [B, L], `epoch` [B] and `row` [B], integer arrays; or a list of such samples without B.
                `token_type_ids` [B, L] are passed on.

        Returns:
            int64 tensors: `input_ids` [B, L] after corruption, `masked_positions` [B, S] in rising order (0 in unused
            slots), `labels` [B, S] (-100 in unused slots), and `attention_mask` [B, L] where blocks may be padded.
        """
        rows = _stack(batch)
        ids = np.array(rows["input_ids"], dtype=np.int64)  # a copy: the caller's may be a memory map
        keys = self._row_keys(np.asarray(rows["epoch"]), np.asarray(rows["row"]))
        if not self.has_padding and (ids == self.pad_id).any():
            raise InputError("has_padding=False, but a block holds padding: set has_padding=True")
        positions, used = self._choose(ids, keys)
        originals = np.take_along_axis(ids, positions, axis=1)
        out = {"attention_mask": (ids != self.pad_id).astype(np.int64)} if self.has_padding else {}
        # Only used slots write: an unused one points at position 0, which may hold a token that is to stay.
        r, s = np.nonzero(used)
        ids[r, positions[r, s]] = self._replace(originals, positions, keys)[r, s]
        out |= {"input_ids": ids, "masked_positions": positions, "labels": np.where(used, originals, IGNORED_LABEL)}
        if "token_type_ids" in rows:
            out["token_type_ids"] = np.array(rows["token_type_ids"], dtype=np.int64)
        return {name: torch.from_numpy(array) for name, array in out.items()}

    def _row_keys(self, epoch: NDArray[Any], row: NDArray[Any]) -> U64:
        """Return the key [B, 1] of each block's masking in its epoch."""
        if self.dup_factor is not None:
            epoch = epoch % self.dup_factor
        seed = np.array([self.seed & int(_LAST)], dtype=np.uint64)
        return hash64(hash64(seed, epoch.astype(np.uint64)), row.astype(np.uint64))[:, None]

    def _choose(self, ids: NDArray[np.int64], keys: U64) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the positions [B, S] to predict, rising, 0 where unused; and which slots are used [B, S]."""
        length = ids.shape[1]
        candidate = ~np.logical_or.reduce([ids == special for special in self._never_chosen])
        counts = candidate.sum(axis=1)
        wanted = np.minimum(np.maximum(1, np.rint(self.mlm_probability * counts)), np.minimum(counts, self.slots))
        score = np.where(candidate, hash64(keys ^ _STREAM_CHOICE, np.arange(length, dtype=np.uint64)), _LAST)
        order = np.argsort(score, axis=1, kind="stable")[:, : self.slots]
        slot = np.arange(self.slots)
        used = slot < wanted[:, None]
        order = np.pad(order, ((0, 0), (0, self.slots - order.shape[1])))  # where S exceeds the length
        positions = np.sort(np.where(used, order, length), axis=1)  # used slots come first
        return np.where(used, positions, 0), used

    def _replace(self, originals: NDArray[np.int64], positions: NDArray[np.int64], keys: U64) -> NDArray[np.int64]:
        """Return what stands in the input at the chosen positions [B, S]."""
        place = positions.astype(np.uint64)
        action = uniform(hash64(keys ^ _STREAM_ACTION, place))
        # The modulo favours some ids by at most vocab_size / 2**64.
        drawn = hash64(keys ^ _STREAM_TOKEN, place) % np.uint64(len(self._ordinary_ids))
        kept = np.where(
            action < self.mask_replace_prob + self.random_replace_prob, self._ordinary_ids[drawn], originals
        )
        return np.where(action < self.mask_replace_prob, self.mask_id, kept)


def _stack(batch: Batch) -> Mapping[str, Any]:
    """Return the batch as a mapping of arrays, stacking a list of samples."""
    if isinstance(batch, Mapping):
        return batch
    return {name: np.stack([np.asarray(sample[name]) for sample in batch]) for name in batch[0]}


def _check_special_ids(special_ids: Mapping[str, int], vocab_size: int) -> None:
    for name in ("pad", "unk", "cls", "sep", "mask"):
        if name not in special_ids:
            raise InputError(f"special_ids={dict(special_ids)} lacks {name!r}: give pad, unk, cls, sep and mask")
        if not 0 <= special_ids[name] < vocab_size:
            raise InputError(f"special_ids[{name!r}]={special_ids[name]} is outside the vocabulary of {vocab_size}")
    if vocab_size <= len(set(special_ids.values())):
        raise InputError(f"vocab_size={vocab_size} holds special tokens only: use a larger tokenizer")


def _check_rates(mlm_probability: float, mask_replace_prob: float, random_replace_prob: float) -> None:
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


def _check_counts(block_size: int, max_predictions_per_seq: int | None, dup_factor: int | None) -> None:
    if block_size < 3:
        raise InputError(f"block_size={block_size} leaves no token between [CLS] and [SEP]: use 3 or more")
    if max_predictions_per_seq is not None and max_predictions_per_seq < 1:
        raise InputError(f"max_predictions_per_seq={max_predictions_per_seq} must be 1 or more, such as 20")
    if dup_factor is not None and dup_factor < 1:
        raise InputError(f"dup_factor={dup_factor} must be 1 or more; leave it out for fresh masks in every epoch")
