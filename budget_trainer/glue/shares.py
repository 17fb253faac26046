"""How the time of a suite is divided over its runs. Pure functions of seconds; standard library only."""

from __future__ import annotations

from collections.abc import Sequence

FIRST_OVERHEAD = 15.0  # a guess at starting and ending a process, until one was measured
LEAST_RUN = 20.0  # below this not even the set-up of a tiny model fits
UNEVEN = 1.2  # the next start may take so much longer than the longest so far


def share(free_seconds: float, weights: Sequence[float], overhead: float) -> float:
    """The seconds of the first of the runs that are left, start and end included.

    Each run gets `overhead`, and of the rest a part by its weight; what a run leaves goes to those after it. With less than
    the overhead for each, equal parts.
    """
    if free_seconds <= overhead * len(weights):
        return free_seconds / len(weights)
    return overhead + (free_seconds - overhead * len(weights)) * weights[0] / sum(weights)


def free_seconds(remaining: float, running: Sequence[float], devices: int) -> float:
    """Device-seconds for runs that have not begun: what is left on all devices, less what the running ones may use."""
    return max(0.0, remaining * devices - sum(min(max(left, 0.0), remaining) for left in running))
