"""Counter-based hashing: 64 random bits for each place where something is decided, without any state.

The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), modulo 2**64 on numpy arrays. The masks of a run that
is resumed must not change with a new version of this package: the values are pinned by tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the increment of SplitMix64
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def mix64(x: U64) -> U64:
    """Return a bijective scrambling of uint64 values of any shape (the output function of SplitMix64)."""
    x = x ^ (x >> np.uint64(30))  # the only copy: the rest works in place
    x *= _MULTIPLY_1
    x ^= x >> np.uint64(27)
    x *= _MULTIPLY_2
    x ^= x >> np.uint64(31)
    return x


def hash64(key: U64, counter: U64) -> U64:
    """Return 64 hash bits for each broadcast pair of key and counter."""
    return mix64(mix64(key) + (counter + np.uint64(1)) * _GOLDEN)


def uniform(bits: U64) -> NDArray[np.float64]:
    """Turn 64 hash bits into a float64 in [0, 1), from their upper 53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
