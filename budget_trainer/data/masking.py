"""Dynamic masking as a pure function of (seed, epoch, row, position).

Every random decision is a hash of the place where it is taken: 64 bits by the finaliser of SplitMix64 (Steele, Lea and Flood,
OOPSLA 2014), modulo 2**64 on numpy arrays. So a block gets the same mask whatever the number of ranks, workers or restarts, and
nothing has to be saved to resume. Tests pin the values, which a resumed run needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from budget_trainer.core.errors import InputError
from budget_trainer.data.repeated_passages import PIECES, check_repeated_passages, repeat_passages
from budget_trainer.data.whole_words import choose_words, word_table

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Batch = Mapping[str, Any] | Sequence[Mapping[str, Any]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the increment of SplitMix64
_TOP = np.uint64(1 << 63)
# One constant per decision, so that which token is chosen says nothing about what happens to it.
_STREAM_CHOICE, _STREAM_ACTION, _STREAM_TOKEN = np.uint64(1), np.uint64(2), np.uint64(3)
_STREAM_REPEATED, _STREAM_PIECES, _STREAM_TURN = np.uint64(4), np.uint64(5), np.uint64(6)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_IGNORED_LABEL = -100  # the label that torch's cross entropy leaves out by default
REPLACED = 0.5  # of the chosen tokens in blocks with passages twice: by one that fits what stands before it
_SMALLEST_BODY = 8  # tokens between [CLS] and [SEP] of a part of a block
# torch hands each tensor over in shared memory of its own, which costs a connection each: 0.3 to 0.5 ms, as much as it
# takes to mask 32 blocks of 128. Below this size a pipe is faster.
PIPE_BYTES = 2**20


class _MaskedBatch(dict[str, torch.Tensor]):
    """Another process that receives it gets a plain dict of the same tensors."""

    def __reduce__(self) -> tuple[Any, ...]:
        if sum(tensor.nbytes for tensor in self.values()) > PIPE_BYTES:
            return dict, (list(self.items()),)
        return _from_arrays, ({name: tensor.numpy() for name, tensor in self.items()},)


def _from_arrays(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def prediction_slots(mlm_probability: float, block_size: int) -> int:
    """The largest number of predictions that a block of `block_size` tokens with [CLS] and [SEP] can need."""
    return max(1, round(mlm_probability * (block_size - 2)))


class Bigrams:
    """The tokens that follow each token in a part of a corpus, to draw from with the frequencies that they have there.

    Args:
        rows: [n, L] token ids, at least one pair whose second token is ordinary.
        vocab_size, special_ids: as MaskingCollator's; special tokens are never drawn.
    """

    def __init__(self, rows: NDArray[Any], vocab_size: int, special_ids: Mapping[str, int]) -> None:
        left, right = rows[:, :-1].reshape(-1), rows[:, 1:].reshape(-1)
        ordinary = np.ones(vocab_size, dtype=bool)
        ordinary[list(special_ids.values())] = False
        keep = ordinary[right]
        left, right = left[keep], right[keep]
        self._next = right[np.argsort(left, kind="stable")].astype(np.int32)
        self._first = np.concatenate([[0], np.cumsum(np.bincount(left, minlength=vocab_size))])

    def draw(self, before: I64, bits: U64) -> I64:
        """For each token in `before` one that follows it, by 64 random `bits` each; where none does, any of them all."""
        first, count = self._first[before], self._first[before + 1] - self._first[before]
        first, count = np.where(count > 0, first, 0), np.where(count > 0, count, len(self._next))
        return self._next[first + (bits % count.astype(np.uint64)).astype(np.int64)].astype(np.int64)


class MaskingCollator:
    """Turn rows of token ids into a masked-language-modelling batch with a fixed number of prediction slots.

    Of the n tokens of a block that are not [CLS], [SEP] or padding, `min(S, max(1, round(mlm_probability * n)))` are
    chosen, those with the smallest hash. A chosen token becomes [MASK] with probability `mask_replace_prob`, a uniform
    random ordinary token with `random_replace_prob`, and else stays. With `bigrams`, REPLACED of the chosen tokens of a block
    that holds passages twice become one that follows the same token elsewhere, and the others what they become anywhere.

    Args:
        seed: any int; another seed gives other masks.
        special_ids: token ids named pad, unk, cls, sep and mask.
        vocab_size: `vocabulary_size(tokenizer)`; random tokens are drawn below it, never a special one.
        mlm_probability: the share of tokens to predict, in (0, 1].
        mask_replace_prob, random_replace_prob: 0.8 and 0.1 as in BERT, 1 and 0 for all-[MASK]; together at most 1.
        max_predictions_per_seq: S, the slots of a block (20 in the paper). By default `prediction_slots`, the smallest
            number that never cuts a choice short: 19 for blocks of 128 at 15 %.
        block_size: L, tokens in a block, [CLS] and [SEP] included.
        dup_factor: with N, the epoch counts modulo N: N fixed maskings of each block, as the original's data held;
            None gives fresh masks for ever.
        has_padding: True when blocks may hold padding. The output then always has an attention mask, else never.
        whole_words: bool [vocab_size] from `whole_words.continues_word`. Words are then chosen whole, by the hash of their
            first token, as many as fit into the wanted number of tokens; where none fits, none is predicted.
        sequence_parts: P. A block is cut into P blocks of L / P tokens, each with its own [CLS] and [SEP], which overwrite
            the tokens at its ends. S is that of the part: `prediction_slots`, or max_predictions_per_seq / P rounded up.
        twin_probability: the share of these blocks, in [0, 1], that hold passages twice (`repeat_passages`).
        bigrams: the `Bigrams` of the corpus, for tokens that fit what stands before them.

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
        whole_words: NDArray[np.bool_] | None = None,
        sequence_parts: int = 1,
        twin_probability: float = 0.0,
        bigrams: Bigrams | None = None,
    ) -> None:
        for name in ("pad", "unk", "cls", "sep", "mask"):
            token = special_ids.get(name, -1)
            _check(
                (
                    0 <= token < vocab_size,
                    f"special_ids={dict(special_ids)}: no {name!r} in [0, {vocab_size}); give one",
                )
            )
        framing = [special_ids[name] for name in ("pad", "cls", "sep", "mask")]
        slots, both = max_predictions_per_seq, mask_replace_prob + random_replace_prob
        _check(
            (len(set(framing)) == 4, f"special_ids={dict(special_ids)}: roles share an id; give each its own"),
            (
                vocab_size > len(set(special_ids.values())),
                f"vocab_size={vocab_size} holds special tokens only; use more",
            ),
            (mask_replace_prob >= 0, f"mask_replace_prob={mask_replace_prob} is below 0; give a share such as 0.8"),
            (
                random_replace_prob >= 0,
                f"random_replace_prob={random_replace_prob} is below 0; give a share such as 0.1",
            ),
            (both <= 1 + 1e-9, f"random_replace_prob={random_replace_prob} and mask_replace_prob exceed 1; lower one"),
            (block_size >= 3, f"block_size={block_size} leaves no token between [CLS] and [SEP]; use 3 or more"),
            (slots is None or slots >= 1, f"max_predictions_per_seq={slots} is below 1; give a number such as 20"),
            (
                dup_factor is None or dup_factor >= 1,
                f"dup_factor={dup_factor} is below 1; leave it out for fresh masks",
            ),
        )
        self.seed, self.block_size, self.max_predictions_per_seq = seed, block_size, max_predictions_per_seq
        self.mask_replace_prob, self.random_replace_prob = mask_replace_prob, random_replace_prob
        self.dup_factor, self.has_padding, self.twin_probability = dup_factor, has_padding, twin_probability
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = framing
        self._bigrams = bigrams
        specials = sorted(set(special_ids.values()))
        self._ordinary_ids = np.setdiff1d(np.arange(vocab_size), specials)
        self._words = None if whole_words is None else word_table(whole_words, specials, vocab_size)
        self._set_stage(mlm_probability, sequence_parts)

    def with_stage(
        self, *, mlm_probability: float | None = None, sequence_parts: int | None = None
    ) -> MaskingCollator:
        """A copy for another stage of the budget; None leaves a value as it is. The slots follow both."""
        other = copy.copy(self)
        rate = self.mlm_probability if mlm_probability is None else mlm_probability
        other._set_stage(rate, self.sequence_parts if sequence_parts is None else sequence_parts)
        return other

    def _set_stage(self, mlm_probability: float, sequence_parts: int) -> None:
        parts, rate = f"sequence_parts={sequence_parts}", mlm_probability
        _check(
            (0 < rate <= 1, f"mlm_probability={rate} is not above 0 and at most 1; give a share such as 0.15"),
            (
                sequence_parts >= 1 and self.block_size % sequence_parts == 0,
                f"{parts} does not divide block_size={self.block_size}; use 1, 2 or 4",
            ),
        )
        length = self.block_size // sequence_parts
        body = f"{parts} leaves {length - 2} tokens between [CLS] and [SEP]; use fewer, for {_SMALLEST_BODY} or more"
        _check((sequence_parts == 1 or length - 2 >= _SMALLEST_BODY, body))
        check_repeated_passages(self.twin_probability, length)
        self.mlm_probability, self.sequence_parts = mlm_probability, sequence_parts
        if self.max_predictions_per_seq is None:
            self.slots = prediction_slots(mlm_probability, length)
        else:
            self.slots = -(-self.max_predictions_per_seq // sequence_parts)

    def __call__(self, batch: Batch) -> _MaskedBatch:
        """Mask one batch.

        Args:
            batch: `input_ids` [B, L], `epoch` [B] and `row` [B], integer arrays; or a list of such samples without B.
                `document_ids` [B, L], `token_type_ids` [B, L] (both cut like the ids) and `next_sentence_label` [B] are
                passed on where they are there.

        Returns:
            int64 tensors, N = B * P blocks of M = L / P tokens, the parts of a block side by side: `input_ids` [N, M]
            after corruption, `masked_positions` [N, S] in rising order (0 in unused slots), `labels` [N, S] (-100 in
            unused slots), and `attention_mask` [N, M] where blocks may be padded (of a part without a token: [CLS]).

        Raises:
            InputError: padding without has_padding; a length that the parts do not divide; pairs in parts or with twins.
        """
        rows = _stack(batch)
        ids = np.array(rows["input_ids"], dtype=np.int64)  # a copy: the caller's may be a memory map
        keys = self._row_keys(np.asarray(rows["epoch"]), np.asarray(rows["row"]))
        if not self.has_padding and (ids == self.pad_id).any():
            raise InputError("has_padding=False, but a block holds padding: set has_padding=True")
        out = self._passed_on(rows, ids.shape)
        ids = self._cut_ids(ids)
        repeated = self._repeat_passages(ids, keys, out) if self.twin_probability else np.zeros(len(ids), bool)
        positions, used = self._choose(ids, keys)
        originals = np.take_along_axis(ids, positions, axis=1)
        if self.has_padding:
            out["attention_mask"] = (ids != self.pad_id).astype(np.int64)
        # Only used slots write: an unused one points at position 0, which may hold a token that is to stay.
        r, s = np.nonzero(used)
        ids[r, positions[r, s]] = self._replace(ids, originals, positions, keys, repeated)[r, s]
        out |= {"input_ids": ids, "masked_positions": positions, "labels": np.where(used, originals, _IGNORED_LABEL)}
        return _MaskedBatch(_from_arrays(out))

    def _row_keys(self, epoch: NDArray[Any], row: NDArray[Any]) -> U64:
        """The key [B, 1] of each block's masking in its epoch."""
        if self.dup_factor is not None:
            epoch = epoch % self.dup_factor
        seed = np.array([self.seed & int(_LAST)], dtype=np.uint64)
        return hash64(hash64(seed, epoch.astype(np.uint64)), row.astype(np.uint64))[:, None]

    def _cut_ids(self, ids: I64) -> I64:
        """[B, L] cut into [N, M], with [CLS] and [SEP] at the borders between the parts."""
        if self.sequence_parts == 1:
            return ids
        parts = ids.reshape(len(ids), self.sequence_parts, -1)
        parts[:, 1:, 0] = self.cls_id  # also where the part is all padding: one position has to be visible
        ends = parts[:, :-1, -1]
        ends[ends != self.pad_id] = self.sep_id  # a text that ended before has its [SEP]
        return parts.reshape(-1, parts.shape[2])

    def _passed_on(self, rows: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """The columns besides the ids, int64, cut like them."""
        if shape[1] % self.sequence_parts:
            raise InputError(f"sequence_parts={self.sequence_parts} does not divide the block's {shape[1]} tokens")
        out: dict[str, NDArray[Any]] = {}
        for name in ("document_ids", "token_type_ids"):
            if name in rows:
                out[name] = np.array(rows[name], dtype=np.int64).reshape(-1, shape[1] // self.sequence_parts)
        if self.sequence_parts > 1 and "document_ids" in out:
            documents = out["document_ids"]
            # [CLS] belongs to the first document of its part, [SEP] to the last; the count begins at 0.
            documents[:, 0], documents[:, -1] = documents[:, 1], documents[:, -2]
            documents -= documents[:, :1].copy()
        if "next_sentence_label" in rows:
            if self.sequence_parts > 1:
                raise InputError(f"sequence_parts={self.sequence_parts} would cut sentence pairs apart; use 1")
            out["next_sentence_label"] = np.array(rows["next_sentence_label"], dtype=np.int64)
        return out

    def _repeat_passages(self, ids: I64, keys: U64, out: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Let a share of the blocks [N, M] hold passages twice, and say so in `document_ids`; in place. Which, [N]."""
        if "token_type_ids" in out or "next_sentence_label" in out:
            raise InputError(f"twin_probability: {self.twin_probability} beside sentence pairs; use 0, or other data")
        own = hash64(keys ^ _STREAM_REPEATED, np.arange(self.sequence_parts, dtype=np.uint64)).reshape(-1)
        repeated = uniform(own) < self.twin_probability
        rows = np.flatnonzero(repeated)
        chosen, own = ids[rows], own[rows, None]
        draw = hash64(own ^ _STREAM_PIECES, np.zeros(1, dtype=np.uint64))[:, 0]
        turns = hash64(own ^ _STREAM_TURN, np.arange(max(PIECES), dtype=np.uint64))
        special = self.pad_id, self.cls_id, self.sep_id
        ids[rows], piece, written = repeat_passages(chosen, self._candidates(chosen), draw, turns, *special)
        if "document_ids" in out:
            documents = out["document_ids"][rows]  # stays apart where a piece is as it was
            apart = np.where(written, piece, max(PIECES) * (1 + documents) + piece)
            out["document_ids"][rows] = np.where(written.any(axis=1, keepdims=True), apart, documents)
        return repeated

    def _candidates(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Bool, the shape of ids: neither padding, [CLS] nor [SEP]."""
        return (ids != self.pad_id) & (ids != self.cls_id) & (ids != self.sep_id)

    def _choose(self, ids: I64, keys: U64) -> tuple[I64, NDArray[np.bool_]]:
        """The positions [N, S] to predict, rising, 0 where unused; and which slots are used [N, S]."""
        length = ids.shape[1]
        candidate = self._candidates(ids)
        counts = np.count_nonzero(candidate, axis=1)
        wanted = np.minimum(np.maximum(1, np.rint(self.mlm_probability * counts)), np.minimum(counts, self.slots))
        # The score ends in the position and begins with "no candidate": one sort of numbers, without ties, and the
        # positions come out of it. 56 bits of the hash are left in blocks of 128.
        place_mask = np.uint64((1 << length.bit_length()) - 1)
        score = hash64(keys ^ _STREAM_CHOICE, np.arange(length * self.sequence_parts, dtype=np.uint64))
        score = score.reshape(ids.shape)
        score >>= np.uint64(1)
        score &= ~place_mask
        score |= np.arange(length, dtype=np.uint64)
        if self._words is not None:
            return _slots_of(choose_words(self._words[ids], candidate, score, place_mask, wanted), self.slots)
        score[~candidate] |= _TOP
        return _smallest(score, place_mask, wanted, self.slots)

    def _replace(self, ids: I64, originals: I64, positions: I64, keys: U64, repeated: NDArray[np.bool_]) -> I64:
        """What is shown of `originals`, the tokens of ids [N, M] at the chosen positions [N, S]."""
        length, before = ids.shape[1], np.take_along_axis(ids, np.maximum(positions - 1, 0), axis=1)
        if self.sequence_parts > 1:  # hashes are those of the position in the block
            positions = positions + np.arange(len(positions))[:, None] % self.sequence_parts * length
            keys = np.repeat(keys, self.sequence_parts, axis=0)
        place = positions.astype(np.uint64)
        action = uniform(hash64(keys ^ _STREAM_ACTION, place))
        # A modulo of these favours some values by at most their number / 2**64.
        bits = hash64(keys ^ _STREAM_TOKEN, place)
        compared = repeated[:, None] & (self._bigrams is not None)
        fitting = compared & (action < REPLACED)
        action = np.where(compared, (action - REPLACED) / (1 - REPLACED), action)
        drawn = self._ordinary_ids[bits % np.uint64(len(self._ordinary_ids))]
        replaced = action < self.mask_replace_prob + self.random_replace_prob
        kept = np.where(replaced, drawn, originals)
        shown = np.where(action < self.mask_replace_prob, self.mask_id, kept)
        return shown if self._bigrams is None else np.where(fitting, self._bigrams.draw(before, bits), shown)


# ---- hashing


def _mix64(x: U64) -> U64:
    """A bijective scrambling of uint64 values of any shape (the output function of SplitMix64)."""
    x = x ^ (x >> np.uint64(30))  # the only copy: the rest works in place
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def hash64(key: U64, counter: U64) -> U64:
    """64 hash bits for each broadcast pair of key and counter."""
    return _mix64(_mix64(key) + (counter + np.uint64(1)) * _GOLDEN)


def uniform(bits: U64) -> NDArray[np.float64]:
    """Float64 in [0, 1) of 64 hash bits, from their upper 53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


# ---- slots


def _smallest(score: U64, place_mask: np.uint64, wanted: NDArray[Any], slots: int) -> tuple[I64, NDArray[np.bool_]]:
    """The positions [N, slots] of the `wanted` [N] smallest scores [N, M], rising, 0 if unused; and the used."""
    length = score.shape[1]
    kept = min(slots, length)
    if kept < length:
        score = np.partition(score, kept - 1, axis=1)[:, :kept]
    if (wanted < kept).any():  # in full blocks all of them are taken
        score = np.sort(score, axis=1)
    positions = (score & place_mask).astype(np.int64)
    positions = np.pad(positions, ((0, 0), (0, slots - kept)))
    used = np.arange(slots) < wanted[:, None]
    positions = np.sort(np.where(used, positions, length), axis=1)  # used slots come first
    return np.where(used, positions, 0), used


def _slots_of(chosen: NDArray[np.bool_], slots: int) -> tuple[I64, NDArray[np.bool_]]:
    """The positions [N, slots] of the chosen tokens [N, M], rising, 0 in unused slots; and which are used."""
    counts = np.count_nonzero(chosen, axis=1)
    used = np.arange(slots) < counts[:, None]
    positions = np.zeros(used.shape, np.int64)
    positions[used] = np.nonzero(chosen)[1]  # both go row by row
    return positions, used


def _stack(batch: Batch) -> Mapping[str, Any]:
    if isinstance(batch, Mapping):
        return batch
    return {name: np.stack([np.asarray(sample[name]) for sample in batch]) for name in batch[0]}


def _check(*rules: tuple[bool, str]) -> None:
    """Raise InputError with the text of the first rule that does not hold."""
    for holds, text in rules:
        if not holds:
            raise InputError(text)
