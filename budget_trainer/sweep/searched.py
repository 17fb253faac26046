"""The parameters of a sweep as a report needs them: their range or choices, in words, and where a value lies in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NEAR = 0.05  # of the range, on its own scale: a best value so close to an end says that the range may be too narrow
ORDERED = 3  # of fewer choices one always is an end


@dataclass(frozen=True)
class Searched:
    """One parameter: either `low` and `high`, on a logarithmic scale where `log`, or `choices`."""

    name: str
    low: float | None
    high: float | None
    log: bool
    choices: tuple[Any, ...]
    step: float | None = None

    @property
    def words(self) -> str:
        if self.low is None or self.high is None:
            return "one of " + ", ".join(short(choice) for choice in self.choices)
        scale = (
            ", on a logarithmic scale"
            if self.log
            else ""
            if self.step is None
            else f", in steps of {short(self.step)}"
        )
        return f"{short(self.low)} to {short(self.high)}{scale}"

    @property
    def varies(self) -> bool:
        return len(self.choices) > 1 or self.low != self.high

    def numbers(self) -> list[float] | None:
        """The choices, or both ends of the range, as numbers; None where one is a word."""
        found = [number(given) for given in (self.choices if self.low is None else (self.low, self.high))]
        return None if None in found else [value for value in found if value is not None]

    def end(self, value: Any) -> str | None:
        """`lower` or `upper` where the value lies at that end of what was searched, else None."""
        at = number(value)
        if at is None or not self.varies:
            return None
        if self.low is None or self.high is None:
            numbers = self.numbers()
            if numbers is None or len(set(numbers)) < ORDERED:
                return None
            return "lower" if at <= min(numbers) else "upper" if at >= max(numbers) else None
        low, high = self.low, self.high
        if self.log and low > 0 and at > 0:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low)
        return "lower" if share < NEAR else "upper" if share > 1 - NEAR else None


def searched(space: Mapping[str, Any]) -> list[Searched]:
    """The space of a sweep file; numbers may be text (`1e-3` is, to YAML)."""
    return [_one(name, given) for name, given in space.items()]


def _one(name: str, given: Any) -> Searched:
    if isinstance(given, Mapping) and "low" in given:
        log = str(given.get("log", False)).lower() in ("true", "yes", "1")
        return Searched(name, number(given["low"]), number(given["high"]), log, (), number(given.get("step")))
    choices = given["choices"] if isinstance(given, Mapping) else given
    return Searched(name, None, None, False, tuple(choices) if isinstance(choices, list | tuple) else (choices,))


def number(value: Any) -> float | None:
    """`value` as a finite number, or None: words, true and false are none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def short(value: Any) -> str:
    """A value in a few characters: four digits of a fraction, all of a whole number."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 10 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)
