"""Pre-train a masked language model inside a wall-clock budget. Names are imported when first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "BudgetClock": "clock",
    "ControlChannel": "distributed",
    "CURVES": "curves",
    "InputError": "errors",
    "TimeBudgetCallback": "callbacks.time_budget",
    "TimeBudgetTrainer": "trainer",
    "TimeScheduleMixin": "mixin",
    "TimeScheduler": "scheduler",
    "format_duration": "clock",
    "get_time_budget_schedule": "scheduler",
    "make_curve": "curves",
    "parse_duration": "clock",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
