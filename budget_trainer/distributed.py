"""The one control message per optimizer step: every rank learns the same numbers, so all decide the same thing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist


class ControlChannel:
    """A gloo group of our own, for small CPU tensors: the device's queue is never drained for a message.

    Accelerate opens a plain nccl group on GPUs, which takes no CPU tensors. Without a process group of more than one
    rank every call is local. `timeout_seconds` bounds the wait for a rank that died.
    """

    def __init__(self, timeout_seconds: float = 600.0) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.world_size = dist.get_world_size() if distributed else 1
        self._group: dist.ProcessGroup | None = None
        if self.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def agree(self, readings: Sequence[float], flags: Sequence[bool] = ()) -> tuple[list[float], list[bool]]:
        """Rank 0's `readings` and, of each flag, whether any rank raised it; the same on all ranks.

        One all-reduce (maximum) over len(readings) + len(flags) float64 numbers: the other ranks send -inf in the
        place of readings.
        """
        if self._group is None:
            return [float(reading) for reading in readings], [bool(flag) for flag in flags]
        mine = readings if self.rank == 0 else [-math.inf] * len(readings)
        message = torch.tensor([*mine, *map(float, flags)], dtype=torch.float64)
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self._group)
        values = message.tolist()
        return values[: len(readings)], [value > 0 for value in values[len(readings) :]]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a CPU tensor over the ranks."""
        if self._group is not None:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's CPU tensor on every rank."""
        if self._group is not None:
            dist.broadcast(tensor, src=0, group=self._group)
        return tensor

    def gather(self, value: object) -> list:
        """A small picklable value of every rank, in rank order, on every rank."""
        values: list = [value] * self.world_size
        if self._group is not None:
            dist.all_gather_object(values, value, group=self._group)
        return values

    def barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)


def leave() -> None:
    """Close the process groups before the interpreter ends.

    A rank that ends while its communication threads live can abort in their destructors, and the launcher takes that for
    a failure (seen once with DeepSpeed over gloo). Nothing waits here: no rank has a message under way.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
