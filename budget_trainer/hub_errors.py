"""What the Hub's client raises, as one line without secrets; what is worth another try. A leaf.

Nothing here names the HTTP library: huggingface_hub changed it between its versions 1 and 2.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from budget_trainer.errors import InputError, RunError

log = logging.getLogger(__name__)
TRIES = 6
LONGEST_WAIT_SECONDS = 60.0
TOKENS = "https://huggingface.co/settings/tokens"
LOG_IN = f"log in with `hf auth login`, or set HF_TOKEN to a token with write access from {TOKENS}"
_SECRET = re.compile(r"(?:hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9_.-]{6,}")
_AGAIN = {408, 409, 412, 425, 429}  # and 5xx: busy, or somebody else was committing
Result = TypeVar("Result")


def redacted(text: str, token: str | None = None) -> str:
    """`text` as one line without `token`, without what looks like one, and without the signed parts of addresses."""
    if token:
        text = text.replace(token, "<token>")
    text = _SECRET.sub("<token>", text)
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
    return " ".join(text.split())


def retried(
    action: Callable[[], Result],
    what: str,
    *,
    token: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    tries: int = TRIES,
) -> Result:
    """`action()`, up to `tries` times with growing pauses while the Hub is busy, silent or out of reach.

    The client repeats only parts of an upload by itself. `action` must bear repetition. InputError for what a person has
    to mend, RunError where it is given up.
    """
    for number in range(1, tries + 1):
        try:
            return action()
        except Exception as error:
            if isinstance(error, InputError):
                raise
            refusal = _refused(error, what, token)
            if refusal is not None:
                raise refusal from None  # the client's own message may hold parts of the request
            reason = _reason(error, token)
            if number == tries:
                raise RunError(
                    f"{what}: {reason}, {tries} times; nothing half is left there, repeat it later"
                ) from None
            seconds = _pause(error, number)
            log.warning("%s: %s; again in %.0f s (%d of %d)", what, reason, seconds, number + 1, tries)
            sleep(seconds)
    raise AssertionError("unreachable")


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: the client wraps failed uploads."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of the client, if there was an answer."""
    response = _first(error, "response")
    return None if response is None else int(response.status_code)


def is_missing(error: BaseException) -> bool:
    """Whether a repository, revision or file is not there (or not for this token)."""
    return status_of(error) in (404, 410) or type(error).__name__ in ("RepositoryNotFoundError", "EntryNotFoundError")


def _refused(error: Exception, what: str, token: str | None) -> InputError | RunError | None:
    """The one line for an error that another try would not mend; None for the others."""
    status = status_of(error)
    if type(error).__name__ == "OfflineModeIsEnabled":
        return InputError("HF_HUB_OFFLINE: set, so the Hub is not asked for anything; unset it to publish")
    if status == 401:
        return InputError(f"hub_token: {what} does not accept this token (401); {LOG_IN}")
    if status == 403:
        return InputError(f"hub_token: this token may not write to {what} (403); {LOG_IN}")
    if status is not None and status not in _AGAIN and status < 500:
        where = "hub_model_id" if status == 404 else "publish"
        return InputError(
            f"{where}: {what}: the Hub refuses it ({_reason(error, token)}); check the name and its rights"
        )
    if status is not None or isinstance(error, json.JSONDecodeError):  # a page of a proxy in place of an answer
        return None
    if isinstance(error, ValueError):
        return InputError(f"publish: {what}: {redacted(str(error), token)}; correct it and repeat")
    local = isinstance(error, OSError) and error.errno is not None and error.filename is not None
    if local:
        return RunError(f"{what}: {redacted(str(error), token)}; repeat it when the file can be read")
    transient = isinstance(error, OSError | RuntimeError) or _of_http(error)
    return None if transient else RunError(f"{what}: {type(error).__name__}: {redacted(str(error), token)}")


def _of_http(error: BaseException) -> bool:
    return any(type(one).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "hf_xet") for one in chain(error))


def _reason(error: BaseException, token: str | None) -> str:
    """`HTTP 503: busy` or `ReadTimeout`, in a few words."""
    status, innermost = status_of(error), list(chain(error))[-1]
    if status is None:
        text = redacted(str(innermost), token)
        return f"{type(innermost).__name__}: {text}" if text else type(innermost).__name__
    said = _first(error, "server_message")
    return f"HTTP {status}: {redacted(str(said), token)[:200]}" if said else f"HTTP {status}"


def _pause(error: BaseException, number: int) -> float:
    """Seconds before the next try: what the Hub asks for, 5 minutes at most; else 1, 2, 4, ..., a minute at most."""
    headers: Any = getattr(_first(error, "response"), "headers", {})
    asked = str(headers.get("Retry-After", ""))
    limit = re.search(r"\br=0\b.*\bt=(\d+)", str(headers.get("RateLimit", "")))
    if asked.isdigit() or limit:
        return min(float(asked) if asked.isdigit() else float(limit.group(1)) + 1 if limit else 0.0, 300.0)
    return min(2.0 ** (number - 1), LONGEST_WAIT_SECONDS)


def _first(error: BaseException, name: str) -> Any:
    """The attribute `name` of the first error of the chain that has one."""
    return next((found for one in chain(error) if (found := getattr(one, name, None)) is not None), None)
