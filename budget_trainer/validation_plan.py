"""When to validate: at shares of the budget, or in the original's terms. Pure functions of share and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class ValidationPlan(Protocol):
    """`mark` numbers the validations that were due up to a point; a validation is due where it rises."""

    def mark(self, last: int, share: float, samples: int) -> int:
        """The newest mark after `last`, at this share of the budget and these samples consumed."""
        ...

    def seconds_between(self, total_seconds: float) -> float:
        """The shortest time between two validations that the plan foresees in a budget of `total_seconds`."""
        ...


@dataclass(frozen=True)
class EveryShare:
    """Each time another `every` of the budget is used (`--validate_every 2%`)."""

    every: float

    def mark(self, last: int, share: float, samples: int) -> int:
        return int(share / self.every)

    def seconds_between(self, total_seconds: float) -> float:
        return total_seconds * self.every


@dataclass(frozen=True)
class EveryEpochs:
    """Every so many "epochs", one training shard per process each, more often at both ends of the budget.

    The original's `validation_epochs`, `_begin` and `_end` (run_pretraining.py:95): in the first `begin_proportion` of the
    budget every `begin` epochs, in the last `end_proportion` every `end`, else every `middle`. A mark is an epoch.
    """

    middle: int
    begin: int
    end: int
    begin_proportion: float
    end_proportion: float
    samples_per_epoch: int

    def mark(self, last: int, share: float, samples: int) -> int:
        period = self.middle
        if share < self.begin_proportion:
            period = self.begin
        elif share > 1 - self.end_proportion:
            period = self.end
        epoch = samples // self.samples_per_epoch
        return epoch if epoch - last >= period else last

    def seconds_between(self, total_seconds: float) -> float:
        """Unknown before the first epoch was timed: 2 % of the budget, as often as anybody needs to look."""
        return 0.02 * total_seconds
