"""Whether bf16 and torch.compile pay on this machine."""

from __future__ import annotations

import shutil

import torch
from transformers import TrainingArguments

COMPILE_FROM_SECONDS = 120.0  # compiling takes 20 to 60 s of set-up; a shorter budget does not earn it back


def settle_speed(run: TrainingArguments, budget_seconds: float) -> list[str]:
    """Switch off what the machine or the budget does not carry (`auto_speed`); returns a line for the log each.

    torch.compile needs a C++ compiler and a budget of at least 2 minutes, bf16 on a CPU its instructions.
    """
    said = []
    if run.torch_compile:
        if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
            said.append("torch_compile: off, there is no C++ compiler here (install g++ to have it)")
        elif budget_seconds < COMPILE_FROM_SECONDS:
            said.append(f"torch_compile: off, a budget below {COMPILE_FROM_SECONDS:g}s does not earn it back")
        if said:
            run.torch_compile, run.torch_compile_backend, run.torch_compile_mode = False, None, None
    if run.bf16 and run.device.type == "cpu" and not cpu_has_bf16():
        run.bf16 = False
        run.mixed_precision = "no"
        said.append("bf16: off, this CPU has no instructions for it")
    return said


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (avx512_bf16 or amx)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
