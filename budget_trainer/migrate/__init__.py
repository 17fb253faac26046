"""Moving over from academic-budget-bert: its commands, flags and sweeps become recipes.

`python -m budget_trainer.migrate`; the command line is in `command`.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command; imported when it is called."""
    from budget_trainer.migrate import command

    return command.main(argv)
