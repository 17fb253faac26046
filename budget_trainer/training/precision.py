"""Whether bf16 and torch.compile pay on this machine, in this budget: measured, not assumed.

bf16 doubles the speed of large matrices on some CPUs with avx512_bf16 and halves it on others; compiling takes 20 to 60 s
and saves up to a third of a step in bf16, but hardly anything in float32 on a CPU. `resolve_compute_mode` decides before
Trainer is built, because Accelerator fixes the precision.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import compile_regions

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.config.arguments import RunArguments
from budget_trainer.config.recipe import Recipe
from budget_trainer.training.engine import engine_name
from budget_trainer.training.recovery import explain_out_of_memory
from budget_trainer.training.run_folder import COMPUTE_MODE_KEY, stored_in

log = logging.getLogger(__name__)
_PROBE_SHARE = 0.03  # of the budget
_PROBE_FROM_SECONDS = 120.0  # a shorter budget is not probed
_COMPILE_FROM_SECONDS = 240.0  # where compiling is too dear to be probed, a shorter budget loses by it
_COMPILE_PROBE_SECONDS = 45.0  # probes shorter than this do not try to compile
_REPEATS = 3
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class ComputeMode:
    """How a step is computed: in bf16 or float32, and what of the model is compiled (`no`, `regional`, `whole`)."""

    bf16: bool
    compile: str

    @property
    def eager(self) -> ComputeMode:
        """The same precision, not compiled."""
        return replace(self, compile="no")

    def __str__(self) -> str:
        return ("bf16" if self.bf16 else "fp32") + ("" if self.compile == "no" else f" {self.compile} compiled")


@dataclass(frozen=True)
class _Cost:
    """What a mode costs: seconds per micro-batch, and once for compiling."""

    step: float
    compile: float = 0.0


def resolve_compute_mode(
    recipe: Recipe,
    run: RunArguments,
    model: Any,
    batch: Mapping[str, torch.Tensor],
    remaining_seconds: float,
    checkpoint: Path | None,
    channel: ControlChannel,
) -> dict[str, Any]:
    """Resolve `bf16` and `torch_compile` of the arguments `run`; returns what a checkpoint remembers.

    torch.compile needs a C++ compiler, and weights that are there (not ZeRO-3's); else training is eager. With
    `auto_speed` both have to pay: a probe of at most 3 % of what is left measures bf16 against fp32 and, where that
    buys enough time, compiling against not; rank 0's measurement counts. A resumed job takes what its checkpoint
    remembers. `batch` is a collated micro-batch, `remaining_seconds` what this job may still use.
    """
    compiles = ("regional" if recipe.budget.regional_compile else "whole") if run.torch_compile else "no"
    asked = mode = ComputeMode(bool(run.bf16), compiles)
    if mode.compile != "no" and run.torch_compile_backend == "inductor" and not has_compiler():
        log.info("torch_compile: off, there is no C++ compiler here (install g++ to have it)")
        mode = mode.eager
    if mode.compile != "no" and engine_name(run) == "deepspeed-zero3":
        log.info("torch_compile: off, ZeRO-3 gathers weights as they are touched, which a compiled graph does not see")
        mode = mode.eager
    if recipe.budget.auto_speed:
        stored = stored_in(checkpoint, COMPUTE_MODE_KEY) if checkpoint is not None else {}
        if stored.get("asked") == asdict(asked):
            kept = ComputeMode(**stored["settled"])
            mode = kept if mode.compile != "no" else kept.eager
        else:
            mode = _cheapest(mode, run, model, batch, remaining_seconds)
            mode = channel.gather(mode)[0]
    # The arguments say what was resolved, before Trainer reads them.
    if run.bf16 and not mode.bf16:
        run.bf16, run.mixed_precision = False, "no"
    if run.torch_compile and mode.compile == "no":
        run.torch_compile, run.torch_compile_backend, run.torch_compile_mode = False, None, None
    return {"asked": asdict(asked), "settled": asdict(mode)}


def most_steps(costs: Mapping[ComputeMode, _Cost], remaining_seconds: float) -> ComputeMode:
    """The mode that takes the most steps in what is left (without end: the fastest); the first one of equals."""
    if math.isinf(remaining_seconds):
        return min(costs, key=lambda mode: costs[mode].step)
    return max(costs, key=lambda mode: (remaining_seconds - costs[mode].compile) / costs[mode].step)


def has_compiler() -> bool:
    """Whether a C++ compiler is at hand for torch.compile."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), *_COMPILERS))


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (avx512_bf16 or amx)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _cheapest(
    mode: ComputeMode, run: RunArguments, model: Any, batch: Mapping[str, torch.Tensor], remaining: float
) -> ComputeMode:
    """What of `mode` pays: by rule where the budget is short or an engine places the model, else by probe."""
    on_cpu = run.device.type == "cpu"
    if mode.bf16 and on_cpu and not cpu_has_bf16():
        log.info("bf16: off, this CPU has no instructions for it")
        mode = replace(mode, bf16=False)
    limit = _PROBE_SHARE * remaining
    # DeepSpeed and FSDP shard the model when Trainer is built: nothing can be timed before.
    probes = remaining >= _PROBE_FROM_SECONDS and engine_name(run) in ("single", "ddp")
    times_compiling = probes and limit >= _COMPILE_PROBE_SECONDS
    if mode.compile != "no" and not times_compiling and remaining < _COMPILE_FROM_SECONDS:
        log.info("torch_compile: off, a budget below %gs does not earn it back", _COMPILE_FROM_SECONDS)
        mode = mode.eager
    with explain_out_of_memory(run):
        costs = probe(mode, model, batch, run.device, limit) if probes else {}
    compiled = {way: cost for way, cost in costs.items() if way.compile != "no"}
    if costs:
        eager = most_steps({way: cost for way, cost in costs.items() if way.compile == "no"}, remaining)
        if compiled:
            mode = most_steps({eager: costs[eager], **compiled}, remaining)
        else:
            mode = replace(mode, bf16=eager.bf16)
        times = ", ".join(f"{way} {cost.step:.3f}s" for way, cost in costs.items())
        log.info("a micro-batch takes %s: %s", times, mode)
    if mode.compile != "no" and not mode.bf16 and on_cpu and not compiled:
        log.info("torch_compile: off, float32 on a CPU is about as fast without")  # 201 ms and 198 ms (cpu_10m)
        mode = mode.eager
    return mode


def probe(
    asked: ComputeMode,
    model: Any,
    batch: Mapping[str, torch.Tensor],
    device: torch.device,
    limit_seconds: float,
    time_fn: Callable[[], float] = time.monotonic,
) -> dict[ComputeMode, _Cost]:
    """Time forward and backward of one micro-batch in the ways that `asked` allows, within `limit_seconds`.

    Eager ways first; compiled ones, in the faster precision, only where the limit is 45 s or more. What no longer fits is
    left out, so the result may be empty. Weights, gradients and the random state are left as they were.
    """
    begin = time_fn()
    ways = [asked.eager] + ([ComputeMode(False, "no")] if asked.bf16 else [])
    compiles = asked.compile != "no" and limit_seconds >= _COMPILE_PROBE_SECONDS
    if len(ways) == 1 and not compiles:
        return {}
    model.to(device)
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    costs: dict[ComputeMode, _Cost] = {}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while ways:
            way = ways.pop(0)
            longest = max((cost.step for cost in costs.values()), default=0.0)
            needed = _COMPILE_PROBE_SECONDS / 2 if way.compile != "no" else 0.0
            if time_fn() - begin + needed + (_REPEATS + 1) * 2 * longest > limit_seconds and costs:
                break
            costs[way] = _time(_compiled(model, way), inputs, way, device, time_fn)
            if compiles and not ways:
                faster = min(costs, key=lambda way: costs[way].step)
                ways, compiles = [ComputeMode(faster.bf16, "regional"), ComputeMode(faster.bf16, "whole")], False
    model.zero_grad(set_to_none=True)
    return costs if len(costs) > 1 else {}


def _time(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    way: ComputeMode,
    device: torch.device,
    time_fn: Callable[[], float],
) -> _Cost:
    """The first pass (it compiles and warms up) and the fastest of _REPEATS more."""
    seconds = []
    for _ in range(1 + _REPEATS):
        begin = time_fn()
        with torch.autocast(device.type, torch.bfloat16, enabled=way.bf16):
            loss = model(**inputs).loss
        loss.backward()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time_fn() - begin)
    step = max(min(seconds[1:]), 1e-6)
    return _Cost(step, max(0.0, seconds[0] - step) if way.compile != "no" else 0.0)


def _compiled(model: Any, way: ComputeMode) -> Any:
    if way.compile == "no":
        return model
    return compile_regions(model, dynamic=False) if way.compile == "regional" else torch.compile(model, dynamic=False)
