"""The probe as a process: started, listened to, ended in time with everything below it. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError, RunError

LINES_OF_LOG = 3


def ask_probe(words: Sequence[str], folder: Path, deadline: float) -> dict[str, Any]:
    """What `budget_trainer.planning.probe` told of the run `words` until `deadline` (of time.monotonic()).

    `failed` is in it where the probe died behind its choice of a micro-batch: how, and its last words.

    Raises:
        InputError, RunError: as the probe did; RunError where it died.
    """
    reader, writer = os.pipe()
    order = {"words": list(words), "fd": writer, "deadline": deadline, "folder": str(folder)}
    command = [sys.executable, "-m", "budget_trainer.planning.probe", json.dumps(order)]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        probe = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # ends with this process, and the probe with it
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[writer],
            start_new_session=True,
            env={**os.environ, **_one_gpu()},
        )
    os.close(writer)
    try:
        told, ended = _listen(reader, deadline)
        code = probe.wait(timeout=5) if ended else None
    except subprocess.TimeoutExpired:
        code = None
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(probe.pid, signal.SIGKILL)  # compilers have processes of their own
        probe.wait()
    if "error" in told:
        raise InputError(told["error"]) if told["bad_input"] else RunError(told["error"])
    if code not in (0, None):
        failed = f"it ended with {_reason(code)}; {_last_words(log)}"
        if not (told.get("found") or {}).get("micro_batch"):
            raise RunError(f"probe: {failed}")
        told["failed"] = failed
    return told


def _one_gpu() -> dict[str, str]:
    """The first of the GPUs that are visible: Trainer would spread over all of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[0]}


def _listen(reader: int, deadline: float) -> tuple[dict[str, Any], bool]:
    """The last whole line told until `deadline`, and whether the teller has closed the pipe."""
    content, ended = b"", False
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        part = os.read(reader, 1 << 16)
        if not part:
            ended = True
            break
        content += part
    lines = content.split(b"\n")[:-1]
    return (json.loads(lines[-1]) if lines else {}), ended


def _reason(code: int) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, as where memory is short; plan a smaller model or micro-batch"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "its last words: " + " | ".join(lines[-LINES_OF_LOG:]) if lines else "it said nothing"
