"""A Trainer that says where its time goes, and a callback that trains in timed stretches. Shared by the benchmarks.

Everything is measured from Trainer's own methods, PyTorch's optimizer hooks and callbacks: the loop that is timed is the
loop that users get.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.core.machine import reset_resident_peak, resident_peak

PHASES = ("data_wait", "forward", "backward", "clip", "optimizer")  # what is left of a step is "rest"
SETTLING_STEPS = 1  # untimed after every pause: other processes have emptied the caches

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class Gauge:
    """Seconds per phase since the last reset.

    With `synchronise` the device's queue is drained at every border, so that each phase gets its own device time;
    without it a phase on a GPU is what the host took to queue the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.synchronise = False
        self.reset()

    def reset(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def now(self) -> float:
        if self.synchronise:
            self.drain()
        return time.perf_counter()

    def drain(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - begin


class Measured(_Base):
    """Mixed into a Trainer: fills `gauge`. The backward pass is what training_step does after compute_loss."""

    def __init__(self, *args: Any, gauge: Gauge, **kwargs: Any) -> None:
        self.gauge = gauge
        self._forward_end = self._step_begin = 0.0
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        with self.gauge.phase("data_wait"):
            return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self.gauge.phase("forward"):
            loss = super().compute_loss(*args, **kwargs)
        self._forward_end = time.perf_counter()
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.gauge.seconds["backward"] += self.gauge.now() - self._forward_end
        return loss

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        with self.gauge.phase("clip"):
            return super()._clip_grad_norm(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        first = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if first:
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
        return optimizer

    def _before_step(self, *_: Any) -> None:
        self._step_begin = self.gauge.now()

    def _after_step(self, *_: Any) -> None:
        self.gauge.seconds["optimizer"] += self.gauge.now() - self._step_begin


class Stretches(TrainerCallback):
    """Trains in stretches and stops the clock between them.

    After `warmup_steps` steps (compilation is in the first) and after every stretch, `next_stretch` gets an account and
    answers with the number of steps to time next and whether to synchronise; None ends training. The account of a
    stretch: `steps`, `seconds`, `phases` (seconds of each), `peak_memory_mib`; that of the warm-up: `warmup_seconds` and
    `first_step_seconds`. Add it as the last callback.
    """

    def __init__(
        self, gauge: Gauge, warmup_steps: int, next_stretch: Callable[[dict[str, Any]], tuple[int, bool] | None]
    ) -> None:
        self.gauge, self.next_stretch = gauge, next_stretch
        self._done, self._steps, self._first = 0, 0, 0.0
        self._settled_at = warmup_steps
        self._begin = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._done += 1
        if self._done == 1:
            self.gauge.drain()
            self._first = time.perf_counter() - self._begin
        if self._done == self._settled_at + self._steps:
            self._account(control)
        elif self._done == self._settled_at:
            self.gauge.drain()
            self.gauge.reset()
            self._begin = time.perf_counter()

    def _account(self, control: TrainerControl) -> None:
        self.gauge.drain()
        seconds = time.perf_counter() - self._begin
        if self._steps:
            account: dict[str, Any] = {"steps": self._steps, "seconds": seconds, "phases": dict(self.gauge.seconds)}
            account["peak_memory_mib"] = peak_memory_mib(self.gauge.device)
        else:
            account = {"warmup_seconds": seconds, "first_step_seconds": self._first}
            reset_peak_memory(self.gauge.device)  # compilation's is not training's
        if self.gauge.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes have their turn on this device
        answer = self.next_stretch(account)
        if answer is None:
            control.should_training_stop = True
            return
        self._steps, self.gauge.synchronise = answer
        self._settled_at = self._done + SETTLING_STEPS


def reset_peak_memory(device: torch.device) -> None:
    """Start the high-water mark anew: the device's, or this process's resident memory (Linux; elsewhere it stays)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    reset_resident_peak()  # where that does nothing the mark is that of the whole process, compilation included


def peak_memory_mib(device: torch.device) -> float:
    """MiB: the most that tensors took on a GPU, or the most resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resident_peak() / 2**20


def shares(phases: dict[str, float], seconds: float) -> dict[str, float]:
    """Each phase's share of `seconds`, `rest`, and `trainer_overhead`: all outside of forward, backward and optimizer."""
    result = {name: value / seconds for name, value in phases.items()}
    result["rest"] = 1.0 - sum(result.values())
    result["trainer_overhead"] = 1.0 - sum(result[name] for name in ("forward", "backward", "optimizer"))
    return result
