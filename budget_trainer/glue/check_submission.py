"""Check files for the GLUE leaderboard against its format: `python -m budget_trainer.glue.check_submission ZIP_OR_FOLDER`.

One line per finding: file, row, what is wrong, and the fix. Rows count from 0 as the leaderboard's index does. Exit code 0:
the submission is complete and as the leaderboard wants it; 1: it is not, the findings say why; 2: there is nothing to check
(no such path, not a zip). `--partial` accepts missing files: those that are there are checked. Standard library only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from budget_trainer.core.command import Parser, run_command
from budget_trainer.glue.submission import check_submission


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 right, 1 findings, 2 nothing to check."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Parser("python -m budget_trainer.glue.check_submission", "Check files for the GLUE leaderboard.")
    parser.add_argument("path", type=Path, help="glue_submission.zip, or the folder submission/")
    parser.add_argument("--partial", action="store_true", help="files may be missing; check those that are there")
    given = parser.parse_args(arguments)
    findings = check_submission(given.path, given.partial)
    print("\n".join(findings) if findings else f"{given.path}: as the GLUE leaderboard wants it")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
