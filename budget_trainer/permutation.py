"""A random order of n things that is never written down: a keyed bijection of range(n)."""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # the constants of splitmix64's finaliser


def permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a keyed bijection of range(n) sends `positions` (any shape, each in [0, n)): int64 of the same shape.

    A balanced Feistel network permutes the 4**k numbers that enclose range(n) (at most 4 n of them); a result outside
    is sent through again until it falls inside ("cycle walking", Black and Rogaway 2002), which keeps it a bijection.
    No memory beyond the positions: an epoch of a billion rows needs no list.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    values = np.array(positions, np.uint64)  # a copy: walked in place
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        mixed = right ^ key
        for shift, factor in zip((30, 27), _MIX, strict=True):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor  # array arithmetic wraps modulo 2**64
        # The high bits are the well mixed ones.
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)) & mask
    return (left << half) | right
