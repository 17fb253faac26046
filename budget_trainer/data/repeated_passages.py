"""Blocks that hold a passage twice, so that a model learns to compare two texts from plain text.

[CLS] a [SEP] a turned round [SEP]: what is masked in one copy mostly stands in the other, at a distance that differs from
block to block, so attention has to find equal tokens wherever they are. Translation language modelling (Lample and Conneau,
NeurIPS 2019) does the same with a sentence and its translation; here no second language is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budget_trainer.core.errors import InputError

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

SMALLEST_PIECE = 16  # tokens of [CLS] a [SEP] a [SEP]
SMALLEST_COPY = 4  # tokens of a
PIECES = (1, 2, 4)  # passages of a block, drawn evenly from the counts that divide it and leave room


def check_repeated_passages(twin_probability: float, length: int) -> None:
    """A share, and blocks (or parts of them) of `length` tokens with room for a passage twice."""
    if not 0 <= twin_probability <= 1:
        raise InputError(f"twin_probability: {twin_probability} is not a share; give one between 0 and 1, such as 0.3")
    if twin_probability and length < SMALLEST_PIECE:
        raise InputError(
            f"twin_probability: {twin_probability} needs blocks of {SMALLEST_PIECE} tokens or more, and there are some of "
            f"{length}; use longer ones, fewer parts (sequence_length_curve), or 0"
        )


def repeat_passages(
    ids: I64, ordinary: NDArray[np.bool_], draw: U64, turns: U64, pad_id: int, cls_id: int, sep_id: int
) -> tuple[I64, I64, NDArray[np.bool_]]:
    """The rows [K, L] with passages twice, the number [K, L] of each token's piece, and whether it was written [K, L].

    A row is cut into one, two or four pieces; of each, as many of its own tokens as fit are written twice, the second time
    beginning elsewhere. Lengths stay: padding is where it was. A piece with too few tokens is left as it is.

    Args:
        ids: int64 [K, L], padding at the end only.
        ordinary: bool [K, L], neither padding, [CLS] nor [SEP].
        draw, turns: uint64 [K] and [K, 4], random bits, for the number of pieces and where each one's second copy begins.
    """
    length = ids.shape[1]
    counts = [k for k in PIECES if length % k == 0 and length // k >= SMALLEST_PIECE]
    drawn = draw % np.uint64(len(counts))
    out, numbers, written = ids.copy(), np.zeros_like(ids), np.zeros(ids.shape, dtype=bool)
    for place, pieces in enumerate(counts):
        rows = np.flatnonzero(drawn == place)
        shape = (len(rows) * pieces, length // pieces)
        before, special = ids[rows].reshape(shape), (pad_id, cls_id, sep_id)
        twice, enough = _twice(before, ordinary[rows].reshape(shape), turns[rows, :pieces], special)
        out[rows] = np.where(enough, twice, before).reshape(len(rows), length)
        numbers[rows] = np.repeat(np.arange(pieces), length // pieces)
        written[rows] = np.broadcast_to(enough, shape).reshape(len(rows), length)
    return out, numbers, written


def _twice(
    ids: I64, ordinary: NDArray[np.bool_], turns: U64, special: tuple[int, int, int]
) -> tuple[I64, NDArray[np.bool_]]:
    """The pieces [N, M] with their text twice, and which of them have enough for it [N, 1]."""
    pad_id, cls_id, sep_id = special
    tokens = np.take_along_axis(ids, np.argsort(~ordinary, axis=1, kind="stable"), axis=1)  # ordinary ones in front
    used = np.count_nonzero(ids != pad_id, axis=1)[:, None]
    have, room = np.count_nonzero(ordinary, axis=1)[:, None], (used - 3) // 2
    size = np.minimum(have, room)  # of the first copy
    enough = (size >= SMALLEST_COPY) & (2 * have >= room)  # the second one repeats a text that is too short
    size = np.maximum(size, SMALLEST_COPY)  # where it is not enough, nothing of this is taken
    turn = 1 + (turns.reshape(-1, 1) % (size - 1).astype(np.uint64)).astype(np.int64)
    place = np.arange(ids.shape[1])
    source = np.where(place <= size, place - 1, (place - size - 2 + turn) % size)
    twice = np.take_along_axis(tokens, np.clip(source, 0, ids.shape[1] - 1), axis=1)
    twice[:, 0] = cls_id
    twice[(place == size + 1) | (place == used - 1)] = sep_id
    twice[place >= used] = pad_id
    return twice, enough
