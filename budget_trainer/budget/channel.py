"""One control message per optimizer step: every rank learns the same numbers, so all decide the same thing."""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import LostRank

_ROLL_CALL_SECONDS = 5.0  # torchrun kills the survivors of a lost process after 30 s
_HERE, _GONE, _SILENT = 0, 1, 2  # what a roll call finds


class ControlChannel:
    """A gloo group of our own, for small CPU tensors: the device's queue is never drained for a message.

    Accelerate opens a plain nccl group on GPUs, which takes no CPU tensors. Without a process group of more than one
    rank every call is local. `timeout_seconds` bounds the wait for a rank that does not come; then every call raises
    LostRank, which names the ranks that are missing.
    """

    def __init__(self, timeout_seconds: float = 600.0) -> None:
        distributed = dist.is_available() and dist.is_initialized()  # some builds of torch come without
        self.rank = dist.get_rank() if distributed else 0
        self.world_size = dist.get_world_size() if distributed else 1
        self.timeout_seconds = timeout_seconds
        self._group: dist.ProcessGroup | None = None
        self._roll_call: dist.ProcessGroup | None = None
        if self.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            self._roll_call = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            atexit.register(self.close)

    def close(self) -> None:
        """End the groups' threads; without a call this happens when the interpreter begins to exit.

        A thread of gloo that lets go of its last tensor while Python's objects are taken down aborts the process, and
        the launcher reports a failure of a run that had ended well (seen in a quarter of the exits behind an all-gather).
        """
        groups, self._group, self._roll_call = (self._group, self._roll_call), None, None
        if dist.is_initialized():  # else the caller has destroyed all groups
            for group in filter(None, groups):
                dist.destroy_process_group(group)

    def agree(self, readings: Sequence[float], flags: Sequence[int] = ()) -> tuple[list[float], list[int]]:
        """Rank 0's `readings` and, of each flag, the highest value that any rank raised (0: nobody did), on all ranks.

        One all-reduce (maximum) over len(readings) + len(flags) float64 numbers; the other ranks send -inf as readings.
        """
        if self._group is None:
            return [float(reading) for reading in readings], [int(flag) for flag in flags]
        mine = readings if self.rank == 0 else [-math.inf] * len(readings)
        message = torch.tensor([*mine, *map(float, flags)], dtype=torch.float64)
        self._guarded(lambda: dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self._group))
        values = message.tolist()
        return values[: len(readings)], [int(value) for value in values[len(readings) :]]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a CPU tensor over the ranks."""
        if self._group is not None:
            self._guarded(lambda: dist.all_reduce(tensor, group=self._group))
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's CPU tensor on every rank."""
        if self._group is not None:
            self._guarded(lambda: dist.broadcast(tensor, src=0, group=self._group))
        return tensor

    def gather(self, value: object) -> list:
        """A small picklable value of every rank, in rank order, on every rank."""
        values: list = [value] * self.world_size
        if self._group is not None:
            self._guarded(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def barrier(self) -> None:
        if self._group is not None:
            self._guarded(lambda: dist.barrier(group=self._group))

    def _guarded(self, message: Callable[[], object]) -> None:
        try:
            message()
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> LostRank:
        """What to raise when a collective has failed with `error`. The ranks that are left call it together."""
        atexit.unregister(self.close)  # its threads may wait for the lost rank, and an exit would wait for them
        reason = " ".join(str(error).split())[:160]
        return LostRank(f"{self.roll_call()} ({reason})", resumable=True)

    def roll_call(self) -> str:
        """Name the ranks that do not answer, after 5 s at most. Every rank whose collective failed calls it.

        A rank whose connection is closed has gone; where none has, the silent ones are named, which may be alive.
        """
        if self._group is None:
            return "a collective failed in a run of one process"
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        sent = [_post(dist.isend, torch.ones(1), rank, self._roll_call) for rank in others]
        answers = [_post(dist.irecv, torch.zeros(1), rank, self._roll_call) for rank in others]
        end = time.monotonic() + _ROLL_CALL_SECONDS
        found = {rank: _wait(work, end) for rank, work in zip(others, answers, strict=True)}
        for work, rank in zip(sent, others, strict=True):
            if found[rank] == _HERE:
                _wait(work, end)  # until then gloo needs the message to be kept
        for state, words in ((_GONE, "is gone"), (_SILENT, f"did not answer within {_ROLL_CALL_SECONDS:g}s")):
            names = [str(rank) for rank in others if found[rank] == state]
            if names:
                return f"rank {', '.join(names)} of {self.world_size} {words}"
        return f"all {self.world_size} ranks are there, and a message among them failed"


def _post(send_or_receive: Callable[..., Any], tensor: torch.Tensor, rank: int, group: Any) -> Any:
    """The work of an isend or irecv; None where the connection is closed."""
    try:
        return send_or_receive(tensor, rank, group=group)
    except RuntimeError:
        return None


def _wait(work: Any, end: float) -> int:
    """What became of a posted message by `end` (of time.monotonic): _HERE, _GONE (an error) or _SILENT."""
    wait = max(end - time.monotonic(), 0.05)
    with suppress(RuntimeError):
        if work is not None:
            work.wait(timedelta(seconds=wait))
            return _HERE
    return _SILENT if time.monotonic() >= end - 0.05 else _GONE  # gloo counts in whole milliseconds


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error of training itself (DDP's or DeepSpeed's collectives) means that a peer has gone."""
    broken = ("gloo", "NCCL", "Connection reset", "Connection closed", "ProcessGroup")
    found = isinstance(error, dist.DistError) or any(word in str(error) for word in broken)
    return isinstance(error, RuntimeError) and found


_RANK = 1000  # a stop travels as its signal's number + _RANK x the rank


class Agreement:
    """Flags over a channel: raised at any moment, by a signal handler too, and acted on only once all ranks know them.

    After each `exchange`: `stop_asked_by` says who asked for a stop, `bad_step` whether any rank reported one since the last.
    """

    def __init__(self, channel: ControlChannel, stop: StopRequest) -> None:
        self.channel, self.stop = channel, stop
        self.stop_asked_by = ""  # as "SIGTERM on rank 1"
        self.bad_step = False
        self._bad_here = False

    def report_bad_step(self) -> None:
        """Raise the flag that this rank's step had a loss or a gradient that is not finite."""
        self._bad_here = True

    def exchange(self, readings: Sequence[float] = ()) -> list[float]:
        """Rank 0's `readings`, after the flags have gone around with them; every rank calls it at the same point."""
        asked = self.stop.signal_number
        mine = [asked and asked + _RANK * self.channel.rank, int(self._bad_here)]
        values, (stop, bad) = self.channel.agree(readings, mine)
        self.bad_step, self._bad_here = bool(bad), False
        if stop:
            rank, number = divmod(stop, _RANK)
            self.stop_asked_by = f"{StopRequest.name_of(number)} on rank {rank}"
        return values

    def agree_on_stop(self) -> bool:
        """Exchange the flags between two readings: whether any rank was asked to stop. Call it on all ranks."""
        bad = self.bad_step, self._bad_here
        self.exchange()
        self.bad_step, self._bad_here = bad
        return bool(self.stop_asked_by)
