"""What is searched: lists of values, and ranges. Standard library and the reading of recipes; Optuna only where it is used."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.recipe_file import NULLS, yaml_typed

RANGE_KEYS = ("low", "high", "step", "log")
_WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class Choices:
    """One of several values: text, numbers, true or false. A mapping (`model_config`) is one as JSON."""

    values: tuple[Any, ...]

    def points(self) -> list[Any]:
        return list(self.values)

    def probes(self) -> list[Any]:
        """Values to check before anything starts."""
        return list(self.values)

    def as_yaml(self) -> Any:
        return list(self.values)

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def count(self) -> int | None:
        """How many values there are."""
        return len(self.values)


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included; `whole` numbers where both are written as such."""

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    def points(self) -> list[Any] | None:
        """All values; None where there is no step between them."""
        count, step = self.count(), self._step()
        if count is None or step is None:
            return None
        return [self._number(self.low + place * step) for place in range(count)]

    def count(self) -> int | None:
        """How many values there are, without making them; None where there is no step between them."""
        step = self._step()
        return None if step is None else int(round((self.high - self.low) / step)) + 1

    def _step(self) -> float | None:
        return self.step if self.step is not None else 1 if self.whole and not self.log else None

    def probes(self) -> list[Any]:
        """Values to check before anything starts."""
        return [self._number(self.low), self._number(self.high)]

    def _number(self, value: float) -> float:
        return int(value) if self.whole else round(value, 12)

    def as_yaml(self) -> Any:
        found: dict[str, Any] = {"low": self._number(self.low), "high": self._number(self.high)}
        return found | ({"step": self.step} if self.step is not None else {}) | ({"log": True} if self.log else {})

    def distribution(self) -> Any:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


Space = dict[str, Choices | Range]


def read_space(parameters: Any) -> Space:
    """The `parameters` of a sweep file, scalars as text (`1e-4` is a number, whatever YAML thinks).

    Raises:
        InputError: nothing to search, an empty list, a value twice, a range that is none.
    """
    if not isinstance(parameters, dict) or not parameters:
        raise InputError("parameters: nothing to search; write one `flag: [value, value]` or {low: , high: } per line")
    return {name: _read_one(name, given) for name, given in parameters.items()}


def _read_one(name: str, given: Any) -> Choices | Range:
    if isinstance(given, dict) and "choices" in given:
        other = [key for key in given if key != "choices"]
        if other:
            raise InputError(f"{name}: {other[0]!r} beside choices; a list of values has nothing else")
        given = given["choices"]
    if isinstance(given, list):
        return _choices(name, given)
    if isinstance(given, dict):
        return _range(name, given)
    raise InputError(f"{name}: {given!r} is one value; put it under fixed, or write {name}: [{given}, ...]")


def _choices(name: str, given: list[Any]) -> Choices:
    if not given:
        raise InputError(f"{name}: an empty list leaves nothing to try; write {name}: [first, second]")
    values: list[Any] = []
    for text in given:
        if isinstance(text, list) or text in NULLS:
            raise InputError(f"{name}: {text!r} is not one value; write a number, a word or a mapping")
        value = yaml_typed(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}: {text!r} is not finite; take it out")
        value = json.dumps(value) if isinstance(value, dict) else value
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values):
            raise InputError(f"{name}: {text} stands twice; take one out")
        values.append(value)
    return Choices(tuple(values))


def _range(name: str, given: dict[str, Any]) -> Range:
    for key in given:
        if key not in RANGE_KEYS:
            close = difflib.get_close_matches(key, (*RANGE_KEYS, "choices"), n=1)
            fix = f"did you mean {close[0]}?" if close else "a range has low, high, step and log"
            raise InputError(f"{name}: {key!r} is unknown; {fix}")
    for key in ("low", "high"):
        if key not in given:
            raise InputError(f"{name}: {key} is missing; write {name}: {{low: , high: }}")
    low, high = (_number(name, key, given[key]) for key in ("low", "high"))
    step = _number(name, "step", given["step"]) if "step" in given else None
    log = yaml_typed(given.get("log", "false"))
    if not isinstance(log, bool):
        raise InputError(f"{name}: log {given['log']!r} is not true or false; write log: true")
    if low > high:
        raise InputError(f"{name}: low {given['low']} is above high {given['high']}; exchange them")
    if log and low <= 0:
        raise InputError(f"{name}: low {given['low']} is not above 0, and log needs it; raise it, or leave log out")
    if log and step is not None:
        raise InputError(f"{name}: step beside log: true; leave one of them out")
    written = [given[key] for key in ("low", "high", "step") if key in given]
    whole = all(_WHOLE.fullmatch(text.strip()) for text in written)
    if step is not None:
        if step <= 0:
            raise InputError(f"{name}: step {given['step']} is not above 0; give a number above it")
        places = (high - low) / step
        if abs(places - round(places)) > 1e-6:
            last = f"{low + math.floor(places) * step:g}"
            raise InputError(f"{name}: high {given['high']} is not low plus a multiple of step; write high: {last}")
    return Range(low, high, step, log, whole)


def _number(name: str, key: str, text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name}: {key} {text!r} is not a number; correct it")
    return value


def grid_size(space: Space) -> int | None:
    """How many combinations there are; None where a range has no step."""
    counts = [dimension.count() for dimension in space.values()]
    return None if any(count is None for count in counts) else math.prod(count or 0 for count in counts)


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """All of them, in the order of the file; the last parameter changes fastest.

    Raises InputError for a range without a step.
    """
    lists = {name: dimension.points() for name, dimension in space.items()}
    for name, found in lists.items():
        if found is None:
            raise InputError(f"{name}: a range without step, and a grid needs points; add step, or list the values")
    for chosen in itertools.product(*(found or () for found in lists.values())):
        yield dict(zip(lists, chosen, strict=True))


def as_flag(name: str, value: Any) -> str:
    """`--name=value` as train_mlm.py reads it."""
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
