"""How much memory this process has used at most, and how much is left to it; cgroup limits count. Standard library only.

The run's own Trainer, made to take steps of any micro-batch, each timed in its parts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from budget_trainer.data.folder import BlockDataset
from budget_trainer.planning.candidates import MicroStep
from budget_trainer.training.recovery import is_out_of_memory
from budget_trainer.training.trainer import TimeBudgetTrainer

CGROUP = Path("/sys/fs/cgroup")


def peak_bytes() -> float:
    """The most resident memory that this process has had, since `reset_peak` where that works."""
    if (used := _of_this_process("VmHWM")) is not None:
        return used
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def reset_peak() -> bool:
    """Let the high-water mark begin anew at what is used now; False where the system does not do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    most, used = _of_this_process("VmHWM"), _of_this_process("VmRSS")
    return most is not None and used is not None and most < used + 2**24  # some kernels take the word and do nothing


def return_freed() -> None:
    """Give back to the system what was freed and is still held by malloc (glibc's only)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _of_this_process(name: str) -> float | None:
    """A number of /proc/self/status in bytes; None where there is none."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def free_bytes(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> float:
    """What the machine can still give, or the tightest of the cgroups this process is in, whichever is less."""
    return min([_available(meminfo), *_cgroup_rooms(cgroup)])


def _available(meminfo: Path) -> float:
    try:
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # not Linux: half of what there is


def _cgroup_rooms(root: Path) -> list[float]:
    """Limit less use (but for the file cache, which goes first) of every cgroup above this process, version 2 or 1."""
    rooms = []
    for folder in _own_cgroups(root):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None and limit < 2**60:
                rooms.append(max(0.0, limit - used + _file_cache(folder)))
    return rooms


def _own_cgroups(root: Path) -> list[Path]:
    """The folders from this process's cgroup up to the root, which is all that a container sees."""
    folders = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory") and path not in ("", "/"):
            own = (root if controllers == "" else root / "memory") / path.lstrip("/")
            folders += [own, *(parent for parent in own.parents if root in parent.parents)]
    return list(dict.fromkeys(folders))


def _file_cache(folder: Path) -> float:
    try:
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return float(value)
    except (OSError, ValueError):
        pass
    return 0.0


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or "max"
        return None


@dataclass(frozen=True)
class Order:
    """A step to take: blocks, eager even where the model is compiled, and a collator other than the run's first one."""

    micro_batch: int
    eager: bool = True
    collator: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Taken:
    """What came of it: the parts in seconds, the memory's high-water mark during it in bytes, or that it did not fit."""

    step: MicroStep
    peak_bytes: float
    fits: bool = True


Schedule = Generator[Order, Taken, None]


class ProbeDone(Exception):
    """Ends the training that the probe is."""


class ProbeTrainer(TimeBudgetTrainer):
    """Takes the steps that `orders` asks for (a generator that is sent what came of each), then raises ProbeDone.

    Everything else is the run's: precision, compilation, loss, clipping, optimizer, guards, callbacks. On a GPU the
    queue is drained at the borders of the parts, so that each has its own time.
    """

    def __init__(self, *args: Any, train_dataset: BlockDataset, **kwargs: Any) -> None:
        super().__init__(*args, train_dataset=train_dataset, **kwargs)
        self.blocks, self.orders = train_dataset, _nothing()
        self._order: Order | None = None
        self._begin = self._fetched = self._worked = 0.0
        self._fits, self._next_block = True, 0
        self.first_step_at: float | None = None

    def measure(self, orders: Schedule) -> None:
        """Train as `orders` says, to its end."""
        self.orders = orders
        try:
            self.train()
        except ProbeDone:
            pass

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        now = self._now()
        try:
            if self._order is None:
                self.first_step_at = now
                self._guard_optimizer()
                self._order = next(self.orders)
            else:
                self._order = self.orders.send(self._account(now))
        except StopIteration:
            raise ProbeDone from None
        self._new_peak()
        self._begin = self._now()
        size = self._order.micro_batch
        begin = self._next_block if self._next_block + size <= self.blocks.rows else 0
        self._next_block = begin + size
        rows = self.blocks.__getitems__(range(begin, begin + size))
        collate: Any = self._order.collator or self.data_collator
        self.args.per_device_train_batch_size = size
        result = super().get_batch_samples(iter([collate(rows)]), 1, device)
        self._fetched = self._worked = self._now()
        return result

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        assert self._order is not None
        self._fits = True
        eager = self._order.eager and self.args.torch_compile
        try:
            with torch.compiler.set_stance("force_eager") if eager else nullcontext():
                loss = super().training_step(model, inputs, num_items_in_batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._fits, loss = False, torch.zeros((), device=self.args.device)
        if not self._fits:  # outside of the handler: its traceback holds the tensors
            self._free()
        self._worked = self._now()
        return loss

    def _guard_optimizer(self) -> None:
        """The optimizer's step may be what does not fit, the first one above all: it makes the states."""
        optimizer: Any = self.optimizer
        take = optimizer.step

        @wraps(take)  # the scheduler has left a mark on it
        def step(*args: Any, **kwargs: Any) -> Any:
            try:
                return take(*args, **kwargs)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._fits = False
            optimizer.state.clear()  # some are made, some are not
            self._free()
            return None

        optimizer.step = step

    def _free(self) -> None:
        assert self.model is not None
        self.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()

    def _new_peak(self) -> None:
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()

    def _account(self, now: float) -> Taken:
        step = MicroStep(self._fetched - self._begin, self._worked - self._fetched, now - self._worked)
        cuda = self.args.device.type == "cuda"
        peak = float(torch.cuda.max_memory_reserved()) if cuda else peak_bytes()
        return Taken(step, peak, self._fits)

    def _now(self) -> float:
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()


def _nothing() -> Schedule:
    return
    yield
