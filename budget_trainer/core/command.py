"""How every command begins and ends: signals, exit codes, the line of an error. Nothing heavy is imported for these."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from budget_trainer import __version__
from budget_trainer.core.errors import InputError, LostRank, RunError, StopAsked
from budget_trainer.core.io import DISK_ERRNOS, user_path

_BY_PROGRAM = 1  # no signal has this number


class StopRequest:
    """Remembers that this process was asked to stop; what follows is agreed on by all ranks (`Agreement`)."""

    def __init__(self) -> None:
        self.signal_number = 0  # 0: nobody asked
        self._before: dict[int, Any] = {}

    def ask(self, signal_number: int = _BY_PROGRAM) -> None:
        """Ask for a stop with a checkpoint after this step; safe in a signal handler."""
        self.signal_number = signal_number

    def listen(self) -> None:
        """SIGTERM, SIGINT and SIGUSR1 ask from now on; a second SIGINT ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
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

    @staticmethod
    def name_of(number: int) -> str:
        """`SIGTERM` of 15; `a request` of what was no signal."""
        return "a request" if number == _BY_PROGRAM else signal.Signals(number).name


DONE, FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 85, 130, 141
EXIT_CODES = {
    DONE: "done",
    FAILED: "it cannot go on (diverged, a process lost, no room on the disk); check_submission: there are findings",
    BAD_INPUT: "bad input: one line says the field, the value and the fix; nothing was written over",
    RESUMABLE: "stopped in good order by a signal or --job_time_limit: the same command goes on",
    INTERRUPTED: "Ctrl-C, in data_prep SIGTERM too; in a training and GLUE the second one, the first stops in good order (85)",
    PIPE_CLOSED: "whoever read the output has closed the pipe, as `head` does",
}
EXIT_CODES_TEXT = "exit codes:\n" + "".join(f"  {code:<4} {meaning}\n" for code, meaning in EXIT_CODES.items())
QUESTIONS = ("--help", "-h", "--print_config", "--print-config")  # answered without a run


class _Unsaid(logging.Filter):
    """Leaves out the lines that hold a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self._text not in record.getMessage()


# Advice of libraries about what is decided here, by its logger: whether compiling pays is measured, a CPU is asked for.
_ADVICE = {
    "transformers.training_args": _Unsaid("The speedups for torchdynamo mostly come with GPU Ampere"),
    "DeepSpeed": _Unsaid("Setting accelerator to CPU"),
}
_SECRET = re.compile(r"(?:hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9_.-]{6,}")
_MODULE = re.compile(r"(budget_trainer|data_prep)\.[\w.]+")


def _wants_colour(stream: IO[str]) -> bool:
    """Whether `stream` is to be coloured: on a terminal; NO_COLOR and TERM=dumb say no, FORCE_COLOR says yes."""
    if os.environ.get("NO_COLOR") or os.environ.get("FORCE_COLOR"):
        return not os.environ.get("NO_COLOR")
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def with_bold_headings(text: str, stream: IO[str]) -> str:
    """`text` with its lines that end in a colon and begin at the margin in bold, where `stream` is coloured."""
    return re.sub(r"(?m)^(\S.*:)$", "\033[1m\\1\033[0m", text) if _wants_colour(stream) else text


def redacted(text: str, token: str | None = None) -> str:
    """`text` as one line without `token`, without what looks like one, and without the signed parts of addresses."""
    text = _SECRET.sub("<token>", text.replace(token, "<token>") if token else text)
    return " ".join(re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text).split())


def _say_error(message: str) -> None:
    """`error: ...` in one line on stderr; a token in the wrong place stays unsaid."""
    word = "\033[31merror:\033[0m" if _wants_colour(sys.stderr) else "error:"
    print(f"{word} {redacted(message)}", file=sys.stderr, flush=True)


def program(default: str) -> str:
    """How this program was called, for its usage line; `default` where that is none of ours, as in a test."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = Path(sys.argv[0]).name
    module = "" if spec is None else spec.name.removesuffix(".__main__")  # a package is run by its __main__
    if _MODULE.fullmatch(module) or (module and f"{module}.py" == default):
        return f"python -m {module}"
    return name if spec is None and name.startswith("budget-") else default


def _path(text: str) -> str:
    try:
        return user_path(text, "path")
    except InputError as error:  # argparse says the flag
        raise argparse.ArgumentTypeError(str(error).removeprefix("path: ")) from None


class Parser(argparse.ArgumentParser):
    """argparse without guessing, whose errors are an InputError (one line), and whose help ends with the exit codes.

    The types Path and "path" take `~` and `$VAR` as a shell does.
    """

    def __init__(
        self, called: str, about: str | None, formatter: type[argparse.HelpFormatter] = argparse.HelpFormatter
    ) -> None:
        super().__init__(prog=program(called), description=about, allow_abbrev=False, formatter_class=formatter)
        self.color = False  # Python 3.14 has colours of its own
        self.register("type", Path, lambda text: Path(_path(text)))
        self.register("type", "path", _path)  # as text
        self.add_argument("--version", action="version", version=f"budget-trainer {__version__}")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see {self.prog} --help")

    def format_help(self) -> str:
        """The help with the exit codes, its headings in bold on a terminal."""
        return with_bold_headings(f"{super().format_help()}\n{EXIT_CODES_TEXT}", sys.stdout)

    def print_help(self, file: Any = None) -> None:
        """As argparse's, but a closed pipe is an error."""
        print(self.format_help(), end="", file=file)


def _interrupted() -> int:
    print("interrupted", file=sys.stderr, flush=True)
    return INTERRUPTED


def run_command(work: Callable[[], int | None], again: str = "repeat the command") -> int:
    """The exit code of `work` (None: 0), whose errors end in one line; `again` says how what is resumable goes on.

    A character that stdout cannot show, in whatever locale, is printed as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return work() or DONE
        finally:
            sys.stdout.flush()  # here, not in the interpreter's last moments: the reader may be gone
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # what is still in the buffer of stdout goes there
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _interrupted()
    except StopAsked as asked:
        logging.getLogger("budget_trainer").info("stopped: %s", asked)
        return RESUMABLE
    except (InputError, RunError) as error:
        reason, code = error.line(again) if isinstance(error, RunError) else str(error), error.exit_code
        others = not isinstance(error, LostRank)
    except OSError as error:
        reason, code, others = str(error), BAD_INPUT, True
        if error.errno in DISK_ERRNOS:
            cause = f"{error.filename or 'a file'}: {error.strerror}"
            reason, code = RunError(cause, fix="mend that", resumable=True).line(again), FAILED
    except Exception as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return _interrupted()  # and a library's pool of processes has then failed to end well
    # Only now the error lets go of what was being read, and its progress bar ends: the reason is the last line.
    if others and os.environ.get("RANK", "0") != "0":
        # Rank 0 speaks for all, unless it has not met the error: then the launcher has not ended this one.
        time.sleep(3)
    _say_error(reason)
    return code


def run_script(
    work: Callable[[Sequence[str] | None, StopRequest, ExitStack], int],
    argv: Sequence[str] | None = None,
    answer: Callable[[Sequence[str]], str] | None = None,
    again: str = "repeat the command",
) -> int:
    """`run_command` of `work(argv, stop, at_exit)`: signals ask `stop` until `at_exit` is closed, as it is at the end.

    They do so before the heavy imports; a second SIGINT ends at once. `--version`, and with `answer` QUESTIONS, are
    answered by one process, without a run: nothing is started or written.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    asks = any(word in QUESTIONS for word in words)

    def respond() -> None:
        text = answer(words) if answer is not None and asks else f"budget-trainer {__version__}\n"
        if os.environ.get("RANK", "0") == "0":
            print(text, end="")

    def begin() -> int:
        for name, unsaid in _ADVICE.items():
            logging.getLogger(name).addFilter(unsaid)
        stop = StopRequest()
        with ExitStack() as at_exit:
            stop.listen()
            at_exit.callback(stop.restore)
            try:
                return work(argv, stop, at_exit)
            except OSError as error:
                if error.errno not in DISK_ERRNOS:  # nothing that a run foresees: where it came from is worth knowing
                    logging.getLogger("budget_trainer").warning("an error of the system", exc_info=True)
                raise

    return run_command(respond if answer is not None and (asks or "--version" in words) else begin, again)


def exit_process(code: int) -> NoReturn:
    """End the process with `code`, when all ranks have nothing more to say to each other.

    A process to which a launcher gave a rank ends without the interpreter's clean-up but for the functions of atexit: one whose
    communication threads live while modules are taken down can abort (seen with DDP and DeepSpeed over gloo), which
    launchers report; and it takes seconds, in which the other ranks would repeat rank 0's error.
    """
    if "RANK" in os.environ:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
