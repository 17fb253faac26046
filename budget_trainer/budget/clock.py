"""Durations, deadlines, the clock of a budget and its file `clock.json`: the only module that reads time for a decision."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from numbers import Real
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic

PHASES = ("setup", "compile", "train", "data_wait", "evaluate", "save")
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)")


def parse_duration(value: str | float, field: str = "duration", bare_unit: str | None = None) -> float:
    """Seconds of a duration such as `24h`, `90m`, `1h30m` or `45s`; InputError for anything else, and for zero and less.

    A bare number is taken in `bare_unit` where the original's flag had one (hours for `total_training_time`), else refused.
    """
    text = str(value).strip().lower()
    fix = "write it as 24h, 90m, 1h30m or 45s"
    try:
        number = float(text)
    except ValueError:
        parts = _PART.findall(text)
        if not parts or "".join(_PART.sub("", text).split()):
            raise InputError(f"{field}: {value!r} is not a duration; {fix}") from None
        seconds = sum(float(amount) * UNITS[unit] for amount, unit in parts)
    else:
        if bare_unit is None:
            raise InputError(f"{field}: {value!r} has no unit; {fix}")
        seconds = number * UNITS[bare_unit]
    if not 0 < seconds < math.inf:
        raise InputError(f"{field}: {text[:40]!r} is not {'finite' if seconds > 0 else 'above zero'}; {fix}")
    return seconds


def to_seconds(value: Any, field: str) -> float:
    """Seconds of a text as `parse_duration` takes it, of a `timedelta`, or of a number of seconds (infinite: no limit).

    InputError for anything else, and for zero and less.
    """
    if isinstance(value, str):
        return parse_duration(value, field)
    number: Any = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError
        seconds = float(number)  # NumPy's timedelta64 is an integer, and has none
    except (TypeError, OverflowError):
        raise InputError(f"{field}: {str(value)[:40]} is not a duration; write it as 24h, 90m, 1h30m or 45s") from None
    if not seconds > 0:
        raise InputError(f"{field}: {value!r} is not above zero; write it as 2h")
    return seconds


def parse_deadline(text: str, field: str = "deadline") -> datetime:
    """The moment of a text in ISO 8601 with its time zone, as `2026-12-24T08:00+01:00`; InputError for anything else."""
    fix = "write it as 2026-12-24T08:00+01:00, or with Z for UTC"
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(f"{field}: {text!r} is not a moment in ISO 8601; {fix}") from None
    if moment.utcoffset() is None:
        raise InputError(f"{field}: {text!r} has no time zone; {fix}")
    return moment


def seconds_until(moment: datetime, now: datetime | None = None) -> float:
    """Wall-clock seconds from `now` (None: the present) to `moment`; below zero where that is over."""
    return (moment - (now or datetime.now(UTC))).total_seconds()


def format_duration(seconds: float) -> str:
    """`seconds` as a short text that `parse_duration` reads back: 5400 -> `1h30m`, 12.34 -> `12.3s`. Infinite: `no limit`."""
    if math.isinf(seconds):
        return "no limit"
    if seconds < 60:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s"))
    return "".join(f"{amount}{unit}" for amount, unit in parts if amount)


class BudgetClock:
    """Monotonic time used by a run, over all its jobs, and what it went into. Safe to read from another thread.

    `total_training_time` is a duration (`24h`), a `timedelta`, seconds, or None for no limit; it can be set later through
    `total_seconds`, so that a script can start the clock in its first line.
    """

    def __init__(
        self,
        total_training_time: str | float | timedelta | None = None,
        *,
        time_fn: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_seconds = math.inf
        if total_training_time is not None:
            self.total_seconds = to_seconds(total_training_time, "total_training_time")
        self._time_fn = time_fn
        self._lock = threading.RLock()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._before = dict.fromkeys(PHASES, 0.0)  # of earlier jobs of the same run
        self._phase: str | None = "setup"  # None once stopped
        self._since = time_fn()

    def _count(self) -> None:
        """Add the time since the last look to the present phase."""
        now = self._time_fn()
        if self._phase is not None:
            self._seconds[self._phase] += now - self._since
        self._since = now

    def job_seconds(self) -> float:
        """Seconds since this clock was made, until it was stopped."""
        with self._lock:
            self._count()
            return sum(self._seconds.values())

    def elapsed_seconds(self) -> float:
        """Seconds used by the run: this job and the earlier ones."""
        return self.job_seconds() + sum(self._before.values())

    def remaining_seconds(self) -> float:
        return self.total_seconds - self.elapsed_seconds()

    def seconds_by_phase(self) -> dict[str, float]:
        """Disjoint seconds by phase over all jobs; their sum is `elapsed_seconds()`."""
        with self._lock:
            self._count()
            return {name: self._seconds[name] + self._before[name] for name in PHASES}

    def enter(self, phase: str) -> str | None:
        """Count time as `phase` from now on; returns the phase left. Does nothing on a stopped clock."""
        if phase not in PHASES:
            raise ValueError(f"phase {phase!r} is not one of {', '.join(PHASES)}")
        with self._lock:
            left = self._phase
            if left is not None:
                self._count()
                self._phase = phase
            return left

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[], float]]:
        """Count the time of a block as `name`; yields a function that returns the seconds counted so since it began."""
        begin = self.seconds_by_phase().get(name, 0.0)
        left = self.enter(name)
        try:
            yield lambda: self.seconds_by_phase()[name] - begin
        finally:
            if left is not None:
                self.enter(left)

    def restore(self, seconds_by_phase: dict[str, float]) -> None:
        """Add the seconds that earlier jobs of this run have used."""
        with self._lock:
            self._before = {name: float(seconds_by_phase.get(name, 0.0)) for name in PHASES}

    def stop(self) -> float:
        """Stop for good: what follows is outside the budget. Returns the seconds used."""
        with self._lock:
            self._count()
            self._phase = None
        return self.elapsed_seconds()


def read_clock(path: str | os.PathLike[str]) -> dict[str, float]:
    """The seconds by phase in a file of `keep_clock`; empty where there is none. InputError on a damaged one."""
    try:
        seconds = json.loads(Path(path).read_text(encoding="utf-8"))["shares"]
        return {name: float(seconds[name]) for name in PHASES}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"clock.json: {path} cannot be read ({error!r}); delete it to begin anew") from None


@contextmanager
def keep_clock(
    path: str | os.PathLike[str],
    clock: BudgetClock,
    every_seconds: float = 1.0,
    more: Callable[[], dict[str, Any]] = dict,
) -> Iterator[None]:
    """Write the seconds used so far to `clock.json` now, once a second, and at the end of the block.

    A thread does it, so that a crash, a long compilation or a save is charged as it happens. What `more` returns is written
    with them.
    """
    done = threading.Event()

    def write() -> None:
        seconds = clock.seconds_by_phase()
        content = {"elapsed_seconds": sum(seconds.values()), "phase": clock._phase, "shares": seconds, **more()}
        # Not durable: an fsync once a second would wait for a disk that is busy with a checkpoint, inside the budget.
        write_atomic(path, json.dumps(content) + "\n", durable=False)

    def keep() -> None:
        while not done.wait(every_seconds):
            with suppress(OSError):  # a full disk must not end the run; the save that needs the disk will speak up
                write()

    write()
    thread = threading.Thread(target=keep, name="clock.json", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(OSError):
            write()
