"""Whether bf16 and torch.compile pay on this machine."""

from __future__ import annotations

import os
import shutil

import torch
from transformers import TrainingArguments

COMPILE_FROM_SECONDS = 240.0  # compiling takes 20 to 60 s and saves a third of a step: a shorter budget loses by it


COMPILERS = ("c++", "g++", "clang++")


def settle_speed(run: TrainingArguments, budget_seconds: float, auto_speed: bool) -> list[str]:
    """Switch off what the machine or the budget does not carry; returns a line for the log each.

    torch.compile needs a C++ compiler; without one training is eager. With `auto_speed` it also needs a budget of at
    least 4 minutes, and bf16 on a CPU needs its instructions.
    """
    said = []
    if run.torch_compile and run.torch_compile_backend == "inductor":
        if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), *COMPILERS)):
            said.append("torch_compile: off, there is no C++ compiler here (install g++ to have it)")
        elif auto_speed and budget_seconds < COMPILE_FROM_SECONDS:
            said.append(f"torch_compile: off, a budget below {COMPILE_FROM_SECONDS:g}s does not earn it back")
        if said:
            run.torch_compile, run.torch_compile_backend, run.torch_compile_mode = False, None, None
    if auto_speed and run.bf16 and run.device.type == "cpu" and not cpu_has_bf16():
        run.bf16 = False
        run.mixed_precision = "no"
        said.append("bf16: off, this CPU has no instructions for it")
    return said


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (avx512_bf16 or amx)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
