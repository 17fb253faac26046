"""How the two scripts begin and end: what is answered without a run, the signals, and every end as an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NoReturn

from budget_trainer.core.command import BAD_INPUT, DONE, FAILED, INTERRUPTED, RESUMABLE, run_command
from budget_trainer.core.errors import InputError, RunError, StopAsked
from budget_trainer.core.stop_request import StopRequest

ANSWERS = ("--help", "-h", "--version", "--print_config", "--print-config")


def run_script(
    name: str,
    work: Callable[[Sequence[str] | None, StopRequest, ExitStack], int],
    argv: Sequence[str] | None,
    told: Callable[[Exception], Exception] = lambda error: error,
) -> int:
    """The exit code of `work(argv, stop, at_exit)`, whose errors end in one line on stderr (`command.EXIT_CODES`).

    Signals ask `stop` from here on, and do what they did before when `at_exit` is closed. `told` says an error in the
    words of this script. `--help`, `--version` and `--print_config` are answered here: nothing is started or written.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in ANSWERS for word in words):
        return run_command(lambda: _answer(name, words))
    stop = StopRequest()
    with ExitStack() as at_exit:
        stop.listen()  # before the heavy imports; a second SIGINT ends at once
        at_exit.callback(stop.restore)
        try:
            return work(argv, stop, at_exit)
        except StopAsked as asked:
            logging.getLogger(name).info("stopped: %s", asked)
            return RESUMABLE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return INTERRUPTED
        except (InputError, RunError, OSError) as error:
            from budget_trainer.training.launch import report_error

            report_error(told(error), stop)
            return BAD_INPUT if isinstance(error, InputError) else FAILED


def exit_process(code: int) -> NoReturn:
    """End the process with `code`; a distributed one without the interpreter's clean-up (`exit_without_teardown`)."""
    if code in (DONE, RESUMABLE, INTERRUPTED) and "torch.distributed" in sys.modules:
        from budget_trainer.budget.channel import exit_without_teardown

        exit_without_teardown(code)
    sys.exit(code)


def _answer(name: str, words: list[str]) -> None:
    if "--version" in words and "--help" not in words and "-h" not in words:
        from budget_trainer import __version__

        print(f"budget-trainer {__version__}")
        return
    if "--help" in words or "-h" in words:
        from budget_trainer.config.help import help_text

        print(help_text(name), end="")
        return
    from budget_trainer.config.help import printed_config

    text = printed_config(name, [word for word in words if word not in ANSWERS])
    if os.environ.get("RANK", "0") == "0":
        print(text, end="")
