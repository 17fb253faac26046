"""Which tokens of a block are predicted: those with the smallest scores, alone or in whole words (numpy only).

Scores are uint64 [N, M], different within each row, whose bits under `place_mask` are the position in the row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from budget_trainer.errors import InputError

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

_STARTS, _CONTINUES, _SPECIAL = 0, 1, 2
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)


def smallest(score: U64, place_mask: np.uint64, wanted: NDArray[Any], slots: int) -> tuple[I64, NDArray[np.bool_]]:
    """Return the positions [N, slots] of the `wanted` [N] smallest scores [N, M], rising, 0 if unused; and the used."""
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


def slots_of(chosen: NDArray[np.bool_], slots: int) -> tuple[I64, NDArray[np.bool_]]:
    """Return the positions [N, slots] of the chosen tokens [N, M], rising, 0 in unused slots; and which are used."""
    counts = np.count_nonzero(chosen, axis=1)
    used = np.arange(slots) < counts[:, None]
    positions = np.zeros(used.shape, np.int64)
    positions[used] = np.nonzero(chosen)[1]  # both go row by row
    return positions, used


def word_table(continues: NDArray[Any], special_ids: list[int], vocab_size: int) -> NDArray[np.int8]:
    """Return int8 [vocab_size] for `choose_words` from the bool array of `continues_word`.

    Raises:
        InputError: `continues` is not one-dimensional with an entry per token.
    """
    continues = np.asarray(continues)
    if continues.shape != (vocab_size,):
        raise InputError(
            f"whole_words: shape {continues.shape} for a vocabulary of {vocab_size}; give one bool per token "
            "(continues_word(tokenizer))"
        )
    table = np.where(continues.astype(bool), _CONTINUES, _STARTS).astype(np.int8)
    table[special_ids] = _SPECIAL
    return table


def choose_words(
    kinds: NDArray[np.int8],
    candidate: NDArray[np.bool_],
    score: NDArray[np.uint64],
    place_mask: np.uint64,
    wanted: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Choose whole words, lowest score of the first token first, each that still fits into `wanted` tokens.

    A word that does not fit is passed over, as in BERT's create_pretraining_data.py; where none fits, nothing is chosen.

    Args:
        kinds: [N, M] entries of `word_table` for the tokens.
        candidate: [N, M] tokens that may be chosen; the others are in no word.
        score: [N, M] different in each row; the bits under `place_mask` are the position.
        wanted: [N] the most tokens to choose in each row.

    Returns:
        bool [N, M], the chosen tokens.
    """
    rows, length = kinds.shape
    if not rows:
        return candidate
    # A word also begins where the token before is special, or in no word at all.
    broken = np.ones((rows, length), bool)
    broken[:, 1:] = (kinds[:, :-1] == _SPECIAL) | ~candidate[:, :-1]
    start = candidate & (broken | (kinds != _CONTINUES))
    place = np.arange(length)
    first = np.maximum.accumulate(np.where(start, place, 0), axis=1)  # of the word that each token is in
    flat = (first + np.arange(rows)[:, None] * length)[candidate]
    sizes = np.bincount(flat, minlength=rows * length).reshape(rows, length)
    order = np.sort(np.where(start, score, _LAST), axis=1)
    words = start.sum(axis=1)
    left = wanted.astype(np.int64)
    chosen = np.zeros((rows, length), bool)
    every = np.arange(rows)
    for rank in range(int(words.max())):  # over the words, all rows at once; few more than are chosen
        word = (order[:, rank] & place_mask).astype(np.int64) % length  # beyond a row's last word: any, not taken
        size = sizes[every, word]
        taken = (size <= left) & (rank < words)
        chosen[every[taken], word[taken]] = True
        left -= np.where(taken, size, 0)
        if not left.any():
            break
    return np.take_along_axis(chosen, first, axis=1) & candidate
