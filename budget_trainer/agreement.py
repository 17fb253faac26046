"""What the ranks of a run agree on with every control message: rank 0's readings, and flags that any rank may raise."""

from __future__ import annotations

from collections.abc import Sequence

from budget_trainer.distributed import ControlChannel
from budget_trainer.stop_request import StopRequest, signal_name

_RANK = 1000  # a stop travels as its signal's number + _RANK x the rank


class Agreement:
    """Flags over a channel. A flag is raised at any moment, by a signal handler too; decisions read only what was agreed.

    After each `read` (the same on all ranks): `stop_asked_by` says who asked for a stop, and `bad_step` whether any rank
    reported one since the reading before.
    """

    def __init__(self, channel: ControlChannel, stop: StopRequest) -> None:
        self.channel, self.stop = channel, stop
        self.stop_asked_by = ""  # as "SIGTERM on rank 1"
        self.bad_step = False
        self._bad_here = False

    def report_bad_step(self) -> None:
        """Say that this rank's step had a loss or a gradient that is not finite."""
        self._bad_here = True

    def read(self, readings: Sequence[float] = ()) -> list[float]:
        """Rank 0's `readings`, after the flags have gone around with them; every rank calls it at the same point."""
        asked = self.stop.signal_number
        mine = [asked and asked + _RANK * self.channel.rank, int(self._bad_here)]
        values, (stop, bad) = self.channel.agree(readings, mine)
        self.bad_step, self._bad_here = bool(bad), False
        if stop:
            rank, number = divmod(stop, _RANK)
            self.stop_asked_by = f"{signal_name(number)} on rank {rank}"
        return values

    def wants_stop(self) -> bool:
        """Whether any rank was asked to stop by now, between two readings."""
        bad = self.bad_step, self._bad_here
        self.read()
        self.bad_step, self._bad_here = bad
        return bool(self.stop_asked_by)
