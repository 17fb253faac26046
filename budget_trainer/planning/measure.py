"""The run's own Trainer, made to take steps of any micro-batch, each timed in its parts; and the memory that they take."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from budget_trainer.planning.steps import MicroStep, StepRequest, StepResult, Steps
from budget_trainer.training.recovery import is_out_of_memory
from budget_trainer.training.trainer import TimeBudgetTrainer

_MEMORY_SHARE = 0.7  # of what is free, on a CPU


class Memory:
    """The memory of the run's device, in bytes: what torch reserves of a GPU, what this process has resident on a CPU."""

    def __init__(self, device: torch.device, cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._gpu, self._cgroup = device.type == "cuda", cgroup

    def peak(self) -> float:
        """The most that was used so far, since `reset_peak` where that works."""
        if self._gpu:
            return float(torch.cuda.max_memory_reserved())
        with suppress(OSError, StopIteration):  # psutil knows no high-water mark here, and getrusage's is not reset
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(most if sys.platform == "darwin" else most * 1024)

    def reset_peak(self) -> bool:
        """Let the high-water mark begin anew at what is used now; False where the system does not do that."""
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return self.peak() < psutil.Process().memory_info().rss + 2**24  # some kernels take the word and do nothing

    def limit(self, used: float = 0.0) -> float:
        """What the steps may use: a GPU whole, on a CPU `used` and _MEMORY_SHARE of what it can still give.

        That is what the machine has, or the tightest of the cgroups this process is in, whichever is less.
        """
        if self._gpu:
            return float(torch.cuda.get_device_properties(0).total_memory)
        free = min([float(psutil.virtual_memory().available), *self._cgroup_rooms()])
        return used + _MEMORY_SHARE * free

    def _cgroup_rooms(self) -> list[float]:
        """Limit less use (but for the file cache, which goes first) of every cgroup above this process, version 2 or 1."""
        root = self._cgroup
        folders = [root, root / "memory"]  # all that a container sees
        with suppress(OSError):
            for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
                _, controllers, path = line.split(":", 2)
                if controllers in ("", "memory"):
                    own = (root if controllers == "" else root / "memory") / path.lstrip("/")
                    folders += [folder for folder in (own, *own.parents) if root in folder.parents]
        rooms = []
        for folder in folders:
            for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
                with suppress(OSError, ValueError):  # not there, or "max"
                    room = float((folder / limit).read_text()) - float((folder / used).read_text())
                    stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
                    rooms.append(max(0.0, room + float(stat.get("total_inactive_file", stat.get("inactive_file", 0)))))
        return rooms

    def return_freed(self) -> None:
        """Give back to the system what was freed and is still held, by torch on a GPU and by glibc's malloc."""
        if self._gpu:
            torch.cuda.empty_cache()
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)


class _ProbeDone(Exception):
    """Ends the training that the probe is."""


class ProbeTrainer(TimeBudgetTrainer):
    """Takes the steps that are asked for, instead of the run's.

    Everything else is the run's: precision, compilation, loss, clipping, optimizer, guards, callbacks. On a GPU the
    queue is drained at the borders of the parts, so that each has its own time.
    """

    _steps: Steps
    _request: StepRequest | None = None
    _fits = True
    _next_block = 0
    _begin = _fetched = _worked = 0.0
    first_step_at: float | None = None  # of time.monotonic()

    def measure(self, steps: Steps) -> None:
        """Take the steps that `steps` asks for, to its end; it is sent what came of each.

        A step may want for memory anywhere: in its batch, in forward and backward, or in the optimizer, whose first step
        makes its states. Then training begins anew, and `steps` is sent that it did not fit.
        """
        self._steps, self._memory = steps, Memory(self.args.device)
        done = False
        while not done:
            try:
                self.train()
            except _ProbeDone:
                done = True
            except RuntimeError as error:
                wanted_memory = is_out_of_memory(error) or is_out_of_memory(error.__cause__)
                if self._request is None or not self._fits or not wanted_memory:  # before a step: nothing fits
                    raise
                self._fits = False
            if not self._fits:  # outside of the handler: its traceback holds the tensors
                assert self.model is not None and self.optimizer is not None
                self.model.zero_grad(set_to_none=True)
                self.optimizer.state.clear()  # some are made, some not
                self._memory.return_freed()

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        now = self._now()
        try:
            if self._request is None:
                self.first_step_at = now
                self._request = next(self._steps)
            else:
                step = MicroStep(self._fetched - self._begin, self._worked - self._fetched, now - self._worked)
                self._request = self._steps.send(StepResult(step, self._memory.peak(), self._fits))
        except StopIteration:
            raise _ProbeDone from None
        self._fits = True
        self._memory.reset_peak()
        self._begin = self._fetched = self._worked = self._now()
        blocks: Any = self.train_dataset
        size = self._request.micro_batch
        begin = self._next_block if self._next_block + size <= blocks.rows else 0
        self._next_block = begin + size
        rows = blocks.__getitems__(range(begin, begin + size))
        collate: Any = self._request.collator or self.data_collator
        self.args.per_device_train_batch_size = size
        result = super().get_batch_samples(iter([collate(rows)]), 1, device)
        self._fetched = self._worked = self._now()
        return result

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        assert self._request is not None
        eager = self._request.eager and self.args.torch_compile
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._worked = self._now()
        return loss

    def _now(self) -> float:
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()
