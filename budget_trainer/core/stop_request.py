"""A wish to stop: by a signal, or by a program. Standard library only, so that it listens before the heavy imports."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
BY_PROGRAM = 1  # no signal has this number


class StopRequest:
    """Remembers that this process was asked to stop; what follows is agreed on by all ranks (`Agreement`)."""

    def __init__(self) -> None:
        self.signal_number = 0  # 0: nobody asked
        self._before: dict[int, Any] = {}

    def ask(self, signal_number: int = BY_PROGRAM) -> None:
        """Ask for a stop with a checkpoint after this step; safe in a signal handler."""
        self.signal_number = signal_number

    def listen(self) -> None:
        """SIGTERM, SIGINT and SIGUSR1 ask from now on; a second SIGINT ends the process at once."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.ask(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self) -> None:
        """Signals do again what they did before `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def signal_name(number: int) -> str:
    """`SIGTERM` of 15; `a request` of what was no signal."""
    return "a request" if number == BY_PROGRAM else signal.Signals(number).name
