"""Pushing to the Hub beside a run: a process of its own, at the lowest priority, that can neither stop nor delay it.

The process is `python -m budget_trainer.publish --follow`. It finds what is complete in the output folder by itself; the
run only says when it has ended, and reads the account. The token goes through the environment, never a command line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.reporting.card import check_license
from budget_trainer.reporting.hub import PushOptions, check_locally, default_name, redacted
from budget_trainer.reporting.publish import FINISH

log = logging.getLogger(__name__)
STRATEGIES = ("every_save", "end")
BELONGING = ("hub_model_id", "hub_private_repo", "hub_strategy")


@dataclass(frozen=True)
class Push:
    """What a run was asked to push: `at_every_save` time-marked models go while it trains, else all at the end."""

    options: PushOptions
    at_every_save: bool


def settle_push(
    folder: Path,
    options: PushOptions,
    *,
    push_to_hub: bool,
    hub_strategy: str,
    explicit: Collection[str],
    saves_models: bool,
    main_process: bool,
) -> Push | None:
    """The push that the flags ask for. InputError where they contradict each other, or where it is known to fail.

    `explicit` are the flags that somebody named; only the main process needs a token. No network is asked: what only
    the Hub knows is said at the end.
    """
    check_license(options.license)
    if not push_to_hub:
        belonging = () if "push_to_hub" in explicit else BELONGING  # who says no to it means what belongs to it too
        for name in sorted(set(explicit) & set(belonging)):
            raise InputError(f"{name}: given without push_to_hub; add --push_to_hub, or leave it out")
        return None
    if hub_strategy not in STRATEGIES:
        raise InputError(
            f"hub_strategy: {hub_strategy!r} would upload training checkpoints, which stay here; choose every_save (each "
            "time-marked model as soon as it is saved) or end"
        )
    if not saves_models:
        raise InputError(
            "push_to_hub: the run keeps no model; leave no_finetune_checkpoint_at_end out, or add finetune_time_markers"
        )
    if main_process:
        try:
            check_locally(options.hub_model_id or default_name(folder))
        except InputError as error:
            raise InputError(f"{error}; or leave push_to_hub out and publish later") from None
    return Push(options, hub_strategy == "every_save")


class BackgroundPush:
    """Publishes `folder` from a process of its own. `start` may be called at any time, `finish` once, at the end.

    Neither raises: a push that fails is an entry of the account that `finish` returns.
    """

    def __init__(self, folder: Path, options: PushOptions) -> None:
        self.folder, self.options = folder, options
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin to publish what appears in the folder. Does nothing where that has begun already."""
        if self._process is not None:
            return
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        try:
            self._process = subprocess.Popen(
                self._command(),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a Ctrl-C is for the run
            )
        except OSError as error:
            log.warning("the publisher cannot be started (%s); tried again at the end", error)

    def _command(self) -> list[str]:
        o = self.options
        words = [sys.executable, "-m", "budget_trainer.publish", str(self.folder), "--follow"]
        for name in ("hub_model_id", "license", "language", "glue_report"):
            words += [f"--{name}", str(getattr(o, name))] if getattr(o, name) is not None else []
        words += ["--hub_private_repo"] if o.hub_private_repo else []
        return words + (["--overwrite"] if o.overwrite else [])

    def finish(self, seconds: float = math.inf) -> dict[str, Any]:
        """Publish everything and wait for it, `seconds` at most; then one line in the log and the account.

        The account: `repo_id`, `url`, `revisions` (name -> commit, files sent and unchanged), `error` (None where all is
        there), and with an error `repeat`, the command that makes up for it.
        """
        self.start()
        account = self._wait(seconds)
        if account.get("error"):
            account["repeat"] = self.options.command(self.folder)
            log.warning(
                "not pushed: %s; the model is in %s; repeat: %s", account["error"], self.folder, account["repeat"]
            )
        else:
            sent = sum(entry["sent"] for entry in account["revisions"].values())
            log.info("pushed to %s: %s (%d files)", account["url"], ", ".join(account["revisions"]), sent)
        return account

    def _wait(self, seconds: float) -> dict[str, Any]:
        process = self._process
        if process is None:
            return {"error": "its process cannot be started"}
        log.info("waiting for the Hub%s", "" if math.isinf(seconds) else f", {seconds:.0f} s at most")
        try:
            out, _ = process.communicate(f"{FINISH}\n", timeout=None if math.isinf(seconds) else max(0.0, seconds))
            return dict(json.loads(out.strip().rpartition("\n")[2]))
        except subprocess.TimeoutExpired:
            reason = "it was not there when the time of the job ended"
        except KeyboardInterrupt:
            reason = "interrupted"
        except (OSError, ValueError, TypeError) as error:
            reason = redacted(f"its process ended ({process.poll()}): {error}")
        process.kill()
        process.communicate()
        return {"error": reason}
