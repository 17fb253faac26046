"""How fast the run is and how much of the device it uses, at every log line."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budget_trainer.callbacks.time_budget import TimeBudgetCallback

WORK = ("train", "data_wait", "compile")


class Throughput(TrainerCallback):
    """Counts tokens and model FLOPs per step and turns them into rates when `rates` is asked.

    `flops_per_token` is of the forward and backward pass as `flops.model_flops_per_token` counts them; `peak_flops` is one
    device's measured FLOP/s (0.0: unknown); MFU is the share of it, over all devices, in the seconds of training,
    waiting for data and compiling. Nothing is read back from the device until a line is logged.
    """

    def __init__(self, time_budget: TimeBudgetCallback, world_size: int, peak_flops: float = 0.0) -> None:
        self.time_budget, self.world_size, self.peak_flops = time_budget, world_size, peak_flops
        self.flops_per_token = 0.0
        self.tokens = 0  # of this job, over all ranks
        self.flops = 0.0
        self._predicted: Any = 0  # predicted tokens since the last line; a tensor on the device once it was counted
        self._step_tokens = 0
        self._begin: dict[str, float] = {}
        self._mark: tuple[int, float, dict[str, float]] = (0, 0.0, {})

    def count(self, tokens: int, predicted: Any) -> None:
        """A step's token positions over all ranks and its predicted tokens (a tensor, or None where not known)."""
        self._step_tokens = tokens
        if isinstance(predicted, torch.Tensor):
            self._predicted = self._predicted + predicted.detach()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begin = self._shares()
        self._mark = (self.tokens, self.flops, self._begin)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tokens += self._step_tokens
        self.flops += self._step_tokens * self.flops_per_token

    def rates(self) -> dict[str, float]:
        """Since the line before: `tokens_per_second`, `tflops` (of the model, 1e12 per second over all ranks), `mfu`,
        `data_wait_share` of the worked seconds, and `predicted_share` of the token positions."""
        tokens, flops, before = self._mark
        now = self._shares()
        self._mark = (self.tokens, self.flops, now)
        spent = {name: now[name] - before.get(name, 0.0) for name in WORK}
        seconds = max(sum(spent.values()), 1e-9)
        done = self.tokens - tokens
        rate = (self.flops - flops) / seconds
        out = {
            "tokens_per_second": round(done / seconds, 1),
            "tflops": round(rate / 1e12, 6),
            "data_wait_share": round(spent["data_wait"] / seconds, 5),
        }
        if self.peak_flops > 0:
            out["mfu"] = round(rate / (self.peak_flops * self.world_size), 4)
        if isinstance(self._predicted, torch.Tensor) and done:
            out["predicted_share"] = round(float(self._predicted) / done, 5)
        self._predicted = 0
        return out

    def overall(self) -> dict[str, float | None]:
        """Of this job: `model_tflops_per_second`, `mfu`, `peak_tflops` of one device; None where not known."""
        seconds = sum(self._shares()[name] - self._begin.get(name, 0.0) for name in WORK)
        rate = self.flops / seconds if seconds > 0 and self.flops else None
        peak = self.peak_flops or None
        return {
            "model_tflops_per_second": None if rate is None else rate / 1e12,
            "mfu": None if rate is None or peak is None else rate / (peak * self.world_size),
            "peak_tflops": None if peak is None else peak / 1e12,
        }

    def _shares(self) -> dict[str, float]:
        assert self.time_budget.clock is not None
        return self.time_budget.clock.shares()
