"""What all commands share: exit codes, the line of an error, colour on a terminal only, and the name in a usage line.

Standard library only: no command waits for torch before it has said what is wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

from budget_trainer import __version__
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import DISK_ERRNOS

DONE, FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 85, 130, 141
EXIT_CODES = {
    DONE: "done",
    FAILED: "it cannot go on (diverged, a process lost, no room on the disk); check_submission: there are findings",
    BAD_INPUT: "bad input: one line says the field, the value and the fix; nothing was written over",
    RESUMABLE: "stopped in good order by a signal or --job_time_limit: the same command goes on",
    INTERRUPTED: "Ctrl-C; in a training and in GLUE the second one, the first asks for a stop in good order (85)",
    PIPE_CLOSED: "whoever read the output has closed the pipe, as `| head` does",
}
_MODULE = re.compile(r"(budget_trainer|data_prep)\.[\w.]+")


def wants_colour(stream: IO[str]) -> bool:
    """Whether `stream` is to be coloured: on a terminal; NO_COLOR and TERM=dumb say no, FORCE_COLOR says yes."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def with_bold_headings(text: str, stream: IO[str]) -> str:
    """`text` with its lines that end in a colon and begin at the margin in bold, where `stream` is coloured."""
    return re.sub(r"(?m)^(\S.*:)$", "\033[1m\\1\033[0m", text) if wants_colour(stream) else text


def say_error(message: str) -> None:
    """`error: ...` in one line on stderr."""
    word = "\033[31merror:\033[0m" if wants_colour(sys.stderr) else "error:"
    print(f"{word} {' '.join(message.split())}", file=sys.stderr, flush=True)


def program(default: str) -> str:
    """How this program was called, for its usage line: the script, the entry point, or `python -m MODULE`.

    `default` where that is none of ours, as in a test.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = Path(sys.argv[0]).name
    module = "" if spec is None else spec.name.removesuffix(".__main__")  # a package is run by its __main__
    if _MODULE.fullmatch(module) or (module and f"{module}.py" == default):
        return f"python -m {module}"
    return name if spec is None and name.startswith("budget-") else default


def exit_codes_text() -> str:
    """The table of exit codes, for the end of a help text."""
    return "exit codes:\n" + "".join(f"  {code:<4} {meaning}\n" for code, meaning in EXIT_CODES.items())


class Parser(argparse.ArgumentParser):
    """argparse without guessing, whose errors are an InputError (one line), and whose help ends with the exit codes."""

    def __init__(
        self, default_program: str, description: str | None, formatter: type[argparse.HelpFormatter] | None = None
    ) -> None:
        super().__init__(
            prog=program(default_program),
            description=description,
            allow_abbrev=False,
            formatter_class=formatter or argparse.HelpFormatter,
        )
        self.color = False  # Python 3.14 has colours of its own
        self.add_argument("--version", action="version", version=f"budget-trainer {__version__}")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see {self.prog} --help")

    def format_help(self) -> str:
        """The help with the exit codes, its headings in bold on a terminal."""
        return with_bold_headings(f"{super().format_help()}\n{exit_codes_text()}", sys.stdout)


def exit_code(error: BaseException) -> int:
    """The exit code that an error stands for: the user's to mend (2), or not (1)."""
    if isinstance(error, OSError):
        return FAILED if error.errno in DISK_ERRNOS else BAD_INPUT
    return BAD_INPUT if isinstance(error, InputError) else FAILED


def run_command(work: Callable[[], int | None]) -> int:
    """The exit code of `work`, whose errors end in one line: see EXIT_CODES.

    `work` returns its own exit code, or None for 0.
    """
    try:
        try:
            return work() or DONE
        finally:
            sys.stdout.flush()  # here, not in the interpreter's last moments: the reader may be gone
    except BrokenPipeError:
        close_quietly()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except (InputError, RunError, OSError) as error:
        reason, code = str(error), exit_code(error)
    # Only now the error lets go of what was being read, and its progress bar ends: the reason is the last line.
    say_error(reason)
    return code


def close_quietly() -> None:
    """Behind a BrokenPipeError: what is still in the buffer of stdout goes nowhere, and nobody complains of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
