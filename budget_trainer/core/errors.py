"""What ends a run early. The text of an error is one line; where it is in parts, it is made here, once."""

from __future__ import annotations

from typing import Any

RESUME = "go on with --resume_from_checkpoint auto"


class InputError(ValueError):
    """Bad input: `field: value problem; fix`, as one text or in parts. Nothing was written over."""

    def __init__(
        self, text: str = "", *, field: str = "", value: Any = None, problem: str = "", fix: str = ""
    ) -> None:
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        shown = "" if value is None else f"{value!r} "
        super().__init__(text or f"{field}: {shown}{problem}; {fix}")


class RunError(RuntimeError):
    """A run that cannot go on: the cause, and what to do; checkpoints stay as they are.

    `resumable`: the run can be gone on with after `fix`.
    """

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


class Diverged(RunError):
    """Going back to a checkpoint and lowering the learning rate did not help."""


class StopAsked(Exception):
    """A signal asked for a stop before there was anything to save."""
