"""Publish a run or a model on the Hugging Face Hub: python -m budget_trainer.publish out/run --hub_model_id user/name

A run's folder becomes a model repository: final/ with card, report and picture is the revision `main`, each time-marked
model a branch of its name (finetune-50). A second call sends only what changed. Weights go as safetensors only.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils import disable_progress_bars

from budget_trainer.core.command import INTERRUPTED, Parser, run_command
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.jobs import child_environment, end_with_parent
from budget_trainer.reporting import hub
from budget_trainer.reporting.card import check_license
from budget_trainer.reporting.hub import PushOptions

log = logging.getLogger("publish")
PAUSE_SECONDS = (5.0, 30.0)  # before the second and the third attempt
_LOOK_EVERY_SECONDS = 1.0
_MODULE = "budget_trainer.publish"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when all of it is there, 2 for what a person has to correct, 1 where the Hub does not do it."""
    end_with_parent()  # where a run has started this process
    args = argparse.Namespace(hub_token=None, json=False)

    def work() -> int:
        try:
            _parser().parse_args(argv, args)
            account = _publish(args)
        except (InputError, RunError) as error:  # a token in the wrong place is not shown
            message = hub.redacted(str(error), args.hub_token)
            if not args.json:
                raise type(error)(message) from None
            if args.only_marked:
                log.warning("%s; tried again at the end", message)
            print(json.dumps({"error": message}))
            return error.exit_code
        if account:
            print(json.dumps({**account, "error": None}) if args.json else account["url"])
        return 0

    code = run_command(work)
    if code == INTERRUPTED:
        print("the same command goes on", file=sys.stderr, flush=True)
    return code


def _parser() -> Parser:
    parser = Parser("python -m budget_trainer.publish", __doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the --output_dir of a run, or the folder of one model")
    add("--hub_model_id", help="user/name; without user the token's owner, without both the folder's name")
    add("--hub_private_repo", action="store_true", default=None, help="make it private (a public one is refused)")
    add("--hub_token", help="better in HF_TOKEN or by `hf auth login`: command lines are seen by others")
    add("--license", help="of the weights, as apache-2.0 (the recipe's; else the card says that it is unknown)")
    add("--language", help="of the text, as en or en,de")
    suite = "a suite of finetune_glue.py whose scores are the card's; without it those in DIR, else those"
    add("--glue_report", type=Path, metavar="DIR", help=f"{suite} on the Hub, which stay while the weights do")
    add("--overwrite", action="store_true", help="replace another model that is there")
    add("--dry_run", action="store_true", help="show what would be published; asks the network for nothing")
    # For BackgroundPush:
    add("--json", action="store_true", help=argparse.SUPPRESS)  # print the account in place of the address
    add("--only_marked", action="store_true", help=argparse.SUPPRESS)  # time-marked models
    return parser


def _publish(args: argparse.Namespace) -> dict[str, Any] | None:
    """The account of the push; None of a dry run."""
    given = {field.name: getattr(args, field.name) for field in fields(PushOptions) if hasattr(args, field.name)}
    options = PushOptions(**given)
    if args.dry_run:
        repo_id = options.name(args.folder)
        for revision in hub.prepare(args.folder, options, repo_id):
            print(f"{repo_id}, {revision.name}:")
            for name, content in sorted(revision.files.items()):
                size = len(content) if isinstance(content, bytes) else content.stat().st_size  # bytes
                print(f"  {size:>14,}  {name}")
            if revision.left_out:
                print(f"  not published: {', '.join(revision.left_out)}")
        return None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    for noisy in (
        "httpx",
        "httpx2",
        "httpcore",
        "huggingface_hub",
        "filelock",
    ):  # their warnings name signed addresses
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    # The client asks again for uploads and listings only. What a first attempt has sent is not sent again, so that the whole
    # push can be repeated, even where only the answer to a commit was lost.
    for seconds in (*PAUSE_SECONDS, None):
        try:
            return hub.push(args.folder, options, args.hub_token, only_marked=args.only_marked)
        except hub.HubBusy as error:
            if seconds is None:
                raise
            log.warning("%s; again in %.0f s", error, seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def resolve_push(
    folder: Path,
    options: PushOptions,
    *,
    push_to_hub: bool,
    hub_strategy: str,
    explicit: Collection[str],
    saves_models: bool,
    main_process: bool,
) -> PushOptions | None:
    """The push that the flags of a run ask for, or None. InputError where they contradict each other, or it is known to fail.

    `explicit` are the flags that somebody named; only the main process needs a token. The network is not asked: what only
    the Hub knows is an error at the end of the run.
    """
    check_license(options.license)
    if not push_to_hub:
        if "push_to_hub" not in explicit:  # who says no to it says no to the flags that belong to it
            for name in sorted({*explicit} & {"hub_model_id", "hub_private_repo", "hub_strategy"}):
                raise InputError(f"{name}: given without push_to_hub; add --push_to_hub, or leave it out")
        return None
    if hub_strategy not in ("every_save", "end"):
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
            hub.check_locally(options.name(folder))
        except InputError as error:
            raise InputError(f"{error}; or leave push_to_hub out and publish later") from None
    return replace(options, at_every_save=hub_strategy == "every_save")


class BackgroundPush:
    """Publishes the folder of a run by processes of their own, at the lowest priority, which can neither stop nor delay it.

    A failed push is an entry of the account that `finish` returns; nothing raises. The token goes through the environment,
    never a command line. A process ends with the run that started it.
    """

    def __init__(self, folder: Path, options: PushOptions) -> None:
        self.folder, self.options = folder, options
        self._process: subprocess.Popen[str] | None = None
        self._finishing = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self) -> None:
        """Begin to push each time-marked model when it is complete, while the run goes on."""
        self._watcher = threading.Thread(target=self._watch, name="push", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        pushed: list[Path] = []
        while not self._finishing.wait(_LOOK_EVERY_SECONDS):
            found = hub.marked_models(self.folder)
            if found != pushed and (self._process is None or self._process.poll() is not None):
                pushed = found
                try:
                    self._process = self._publish("--only_marked")
                except OSError as error:
                    log.warning("the push cannot be started (%s); tried again at the end", error)

    def finish(self, seconds: float = math.inf) -> dict[str, Any]:
        """Push everything and wait for it, `seconds` at most; then one line in the log and the account.

        The account: that of `hub.push`, `error` (None where all is there), and with an error `repeat`, the command that
        makes up for it.
        """
        log.info("waiting for the Hub%s", "" if math.isinf(seconds) else f", {seconds:.0f} s at most")
        deadline = None if math.isinf(seconds) else time.monotonic() + seconds
        self._finishing.set()
        if self._watcher is not None:
            self._watcher.join()
        try:
            if self._process is not None:
                self._process.wait(deadline and max(0.0, deadline - time.monotonic()))
            self._process = self._publish()
            self._process.wait(deadline and max(0.0, deadline - time.monotonic()))
            assert self._process.stdout is not None
            account = dict(json.loads(self._process.stdout.read()))
        except subprocess.TimeoutExpired:
            account = {"error": "it was not there when the time of the job ended"}
        except KeyboardInterrupt:
            account = {"error": "interrupted"}
        except (OSError, ValueError, TypeError) as error:
            code = None if self._process is None else self._process.poll()
            account = {"error": hub.redacted(f"its process ended ({code}): {error}")}
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if account["error"] is None:
            log.info("pushed to %s: %s", account["url"], ", ".join(account["revisions"]))
            return account
        account["repeat"] = repeat = shlex.join(["python", "-m", _MODULE, *self.options.words(self.folder)])
        log.warning("not pushed: %s; the model is in %s; repeat: %s", account["error"], self.folder, repeat)
        return account

    def _publish(self, *flags: str) -> subprocess.Popen[str]:
        overwrite = ["--overwrite"] if self.options.overwrite else []
        words = [*self.options.words(self.folder), *overwrite, "--json", *flags]
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, *words],
            env=child_environment(),
            stdin=subprocess.PIPE,  # its end tells the process that this one is gone
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the run
        )
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        return process


if __name__ == "__main__":
    sys.exit(main())
