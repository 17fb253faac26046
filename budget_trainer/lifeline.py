"""A run that another process has started ends with it, however that ends. Standard library only."""

from __future__ import annotations

import os
import sys
import threading

VARIABLE = "BUDGET_LIFELINE"  # set for a run whose standard input is a pipe that a suite or a sweep holds open


def hold() -> None:
    """Where a suite or a sweep has started this process: end it at once when that is gone.

    Nothing is ever written to the pipe; its end means that the other side has closed it, or was killed. A launcher between the
    two hands standard input on.
    """
    if os.environ.get(VARIABLE):
        threading.Thread(target=_wait, name="lifeline", daemon=True).start()


def _wait() -> None:
    try:
        while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 64):
            pass
    except OSError:
        pass
    os._exit(85)
