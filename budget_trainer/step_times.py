"""How long the next step will take, guessed from the steps before. Standard library only."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

LAST_STEPS = 32


class StepTimes:
    """Fed with the clock's seconds by phase after every step.

    The first step of new shapes compiles and warms up: it says nothing of the next one, but what it compiled is the guess
    for the next compilation.
    """

    def __init__(self) -> None:
        self.compiles = True  # whether the next step is the first of its shapes
        self.compile_seconds = 0.0  # what the longest compilation took
        self._seconds: deque[float] = deque(maxlen=LAST_STEPS)
        self._worked = self._compiled = 0.0  # seconds of train and data_wait, and of compile, up to the last step

    def begin(self, shares: Mapping[str, float]) -> None:
        """A job begins to train, and with it new shapes."""
        self.compiles, self._compiled = True, shares["compile"]

    def step_done(self, shares: Mapping[str, float], compiling: bool) -> None:
        """A step has ended; `compiling`: torch.compile is on."""
        worked = shares["train"] + shares["data_wait"]
        if not self.compiles:
            self._seconds.append(worked - self._worked)
        elif compiling:
            self.compile_seconds = max(self.compile_seconds, shares["compile"] - self._compiled)
            self._compiled = shares["compile"]
        self._worked, self.compiles = worked, False

    def expect(self, longer: float, compiles: bool) -> None:
        """The next steps take `longer` times what the last ones took; with `compiles` the next one compiles as well."""
        self._seconds = deque((seconds * longer for seconds in self._seconds), maxlen=LAST_STEPS)
        self.compiles = self.compiles or compiles

    def next_step(self) -> float:
        """A cautious guess: the longest of the last 8, but no more than 3 medians (an outlier); 0.0 before any."""
        if not self._seconds:
            return 0.0
        return min(max(list(self._seconds)[-8:]), 3.0 * median(self._seconds))
