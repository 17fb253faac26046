"""What ends a run early. The text of an error is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

RESUME = "go on with --resume_from_checkpoint auto"


class InputError(ValueError):
    """Bad input: `field: value problem; fix`. Nothing was written over."""

    exit_code = 2


@contextmanager
def collected(refusals: list[str]) -> Iterator[None]:
    """Put the line of an InputError of the block into `refusals`, which are to be told together."""
    try:
        yield
    except InputError as error:
        refusals.append(str(error))


class NoLocks(InputError):
    """A file system on which no file can be locked."""


class RunError(RuntimeError):
    """A run that cannot go on: the cause, and what to do; checkpoints stay as they are.

    `resumable`: the run can be gone on with after `fix`.
    """

    exit_code = 1

    def __init__(self, cause: str, *, fix: str = "", resumable: bool = False) -> None:
        self.cause, self.fix, self.resumable = cause, fix, resumable
        super().__init__(cause)

    def line(self, again: str = RESUME) -> str:
        """The error as one line; `again` says how this script goes on."""
        steps = [self.fix] * bool(self.fix) + [again] * self.resumable
        return "; ".join([self.cause, ", then ".join(steps)][: 1 + bool(steps)])

    def __str__(self) -> str:
        return self.line()


class LostRank(RunError):
    """A process of the run no longer answers."""


class StopAsked(Exception):
    """A signal asked for a stop before there was anything to save."""
