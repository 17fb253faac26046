"""The learning rate as a function of progress, as a PyTorch scheduler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.curves import Curve, make_curve

log = logging.getLogger(__name__)


class TimeScheduler(LRScheduler):
    """Sets every group's rate to its base rate times `curve(progress_fn())` times `rate_factor_fn()`.

    `progress_fn` returns the progress in [0, 1] and is read at each `.step()`; the step counter is never used, so
    fp16's skipped steps, accumulation or repeated calls cannot bend the curve. The state holds plain numbers only
    (it is loaded with `weights_only=True`).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        curve: Curve,
        progress_fn: Callable[[], float],
        rate_factor_fn: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.curve, self.progress_fn, self.rate_factor_fn = curve, progress_fn, rate_factor_fn
        self.progress = 0.0
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        self.progress = min(max(self.progress_fn(), 0.0), 1.0)
        multiplier = self.curve(self.progress) * self.rate_factor_fn()
        return [base * multiplier for base in self.base_lrs]

    def refresh(self) -> None:
        """Set the rates of the present progress again, where something else has changed them."""
        self._set(self.get_lr())

    def _set(self, rates: list[Any]) -> None:
        self._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        numbers = {"last_epoch": self.last_epoch, "progress": self.progress}
        functions = {
            "lr_lambdas": [None] * len(self.base_lrs)
        }  # as LambdaLR asks for, so that Trainer's own can go on
        return {"base_lrs": list(self.base_lrs), **numbers, "_last_lr": list(self._last_lr), **functions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counters and the rates; of another scheduler the counter alone. The base rates stay the optimizer's."""
        self.last_epoch = state_dict.get("last_epoch", 0)
        if "progress" in state_dict:
            self.progress = state_dict["progress"]
            self._set(list(state_dict["_last_lr"]))
        else:
            log.info(
                "the checkpoint's learning rates are another scheduler's: the curve begins where the clock stands"
            )
            self.refresh()


def get_time_budget_schedule(
    optimizer: Optimizer, clock: BudgetClock, curve: str = "linear", warmup_proportion: float = 0.06, **options: Any
) -> TimeScheduler:
    """A schedule for a loop of one's own, without Transformers, one process: call `.step()` after each update.

    Progress is the elapsed share of `clock.total_seconds`. `options` go to the curve (see `curves.make_curve`).
    """

    def progress() -> float:
        return clock.elapsed_seconds() / clock.total_seconds

    return TimeScheduler(optimizer, make_curve(curve, warmup_proportion, **options), progress)
