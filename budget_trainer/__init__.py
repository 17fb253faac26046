"""Pre-train a masked language model inside a wall-clock budget. Names are imported when first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "BudgetClock": "budget.clock",
    "ControlChannel": "budget.channel",
    "CURVES": "budget.curves",
    "InputError": "core.errors",
    "TimeBudgetCallback": "budget.callback",
    "TimeBudgetTrainer": "training.trainer",
    "TimeScheduleMixin": "budget.mixin",
    "TimeScheduler": "budget.scheduler",
    "format_duration": "budget.clock",
    "get_time_budget_schedule": "budget.scheduler",
    "make_curve": "budget.curves",
    "parse_duration": "budget.clock",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
