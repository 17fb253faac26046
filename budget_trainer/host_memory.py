"""Freed memory stays with the process, for training on a CPU.

glibc gives every large block back to the kernel when a tensor dies, and the next step pays for zeroed pages anew: on two
cores that was 10 % of a step of a model 256 wide (README of the recipes). Blocks then come from one heap that only grows.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
SET_BY_USER = ("MALLOC_", "GLIBC_TUNABLES")  # beginnings of environment variables


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; return whether it does. Another C library, or the user's own settings, stay."""
    if sys.platform != "linux" or any(name.startswith(SET_BY_USER) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Never a mapping of its own for a large block, and never back to the kernel.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
