"""Publish a run or a model on the Hugging Face Hub: python -m budget_trainer.publish out/run --hub_model_id user/name

A run's folder becomes a model repository: final/ with card, report and picture is the revision `main`, each time-marked
model a branch of its name (finetune-50). A second call sends only what changed. Weights go as safetensors only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget_trainer.core.command import INTERRUPTED, Parser, run_command
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.reporting import hub as hub_module
from budget_trainer.reporting.hub import (
    TIMEOUT_SECONDS,
    Hub,
    PushOptions,
    check_locally,
    default_name,
    prepare,
    push,
    redacted,
    scores_there,
    use_timeout,
)

log = logging.getLogger("publish")
FINISH = "finish"  # said by a run that has ended, to its publisher
LOOK_EVERY_SECONDS = 1.0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m budget_trainer.publish", __doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the --output_dir of a run, or the folder of one model")
    add("--hub_model_id", help="user/name; without user the token's owner, without both the folder's name")
    add("--hub_private_repo", action="store_true", help="make the repository private (a public one is refused)")
    add("--hub_token", help="better in HF_TOKEN or by `hf auth login`: command lines are seen by others")
    add("--license", help="of the weights, as apache-2.0 (the recipe's; else the card says that it is unknown)")
    add("--language", help="of the text, as en or en,de")
    suite = (
        "a suite of finetune_glue.py whose scores are the card's; without it those in DIR, where there are none those"
    )
    add("--glue_report", type=Path, metavar="DIR", help=f"{suite} on the Hub, which stay while the weights do")
    add("--overwrite", action="store_true", help="replace another model that is there")
    add("--dry_run", action="store_true", help="show what would be published; asks the network for nothing")
    add("--follow", action="store_true", help=argparse.SUPPRESS)  # a run's publisher, see background_push
    return parser.parse_args(argv)


@dataclass
class Publisher:
    """Brings `folder` to the Hub, once or again and again; `account` is what the report of a run says of it."""

    folder: Path
    options: PushOptions
    hub_token: str | None = None
    hub: Hub | None = None
    account: dict[str, Any] = field(default_factory=dict)

    def publish(self, only_marked: bool = False) -> None:
        """Everything that is there now, or its time-marked models. InputError or RunError as `push`."""
        check_locally(self.options.hub_model_id, self.hub_token)
        repo_id = self.options.hub_model_id or default_name(self.folder)
        prepare(self.folder, self.options, repo_id)  # whatever is wrong here is known before the Hub hears of it
        if self.hub is None:
            hub = Hub(self.hub_token)
            owner = hub.sign_in()
            whole = repo_id if "/" in repo_id else f"{owner}/{repo_id}"
            check_locally(whole, self.hub_token)
            hub.open(whole, self.options.hub_private_repo)
            self.hub = hub
            self.account |= {"repo_id": whole, "url": hub.url, "revisions": {}}
        revisions = prepare(self.folder, self.options, self.hub.repo_id)
        kept = [] if only_marked else scores_there(self.hub, revisions)
        if kept:
            revisions = prepare(self.folder, self.options, self.hub.repo_id, kept)
        if only_marked:
            revisions = [revision for revision in revisions if revision.name != hub_module.MAIN]
        push(self.hub, revisions, overwrite=self.options.overwrite, told=self._told)

    def _told(self, name: str, account: dict[str, Any]) -> None:
        assert self.hub is not None
        before = self.account["revisions"].get(name, {}).get("sent", 0)  # by an earlier push of this process
        sent, unchanged = account["sent"] + before, max(0, account["unchanged"] - before)
        self.account["revisions"][name] = {**account, "sent": sent, "unchanged": unchanged}
        log.info("%s, %s: %d files sent, %d unchanged", self.hub.url, name, account["sent"], account["unchanged"])


def show(folder: Path, options: PushOptions) -> None:
    """Print what would be published, with sizes in bytes, and what would stay here."""
    repo_id = options.hub_model_id or default_name(folder)
    for revision in prepare(folder, options, repo_id):
        print(f"{repo_id}, {revision.name}:")
        for name, content in sorted(revision.files.items()):
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"  {size:>14,}  {name}")
        if revision.left_out:
            print(f"  not published: {', '.join(revision.left_out)}")


def follow(publisher: Publisher) -> None:
    """Beside a run: publish time-marked models as they appear, the rest when the run says FINISH on standard input.

    Ends at once where the run does without a word. The account is one line of JSON on standard output.
    """
    os.nice(19)  # the run comes first
    said: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(said,), daemon=True).start()
    seen: list[Path] = []
    ended = False
    while not ended:
        try:
            ended = said.get(timeout=LOOK_EVERY_SECONDS) == FINISH
        except queue.Empty:
            pass
        marked = hub_module.marked(publisher.folder)
        if not ended and marked != seen:
            seen = marked
            _attempt(publisher, only_marked=True)
    _attempt(publisher, only_marked=False)
    print(json.dumps(publisher.account), flush=True)


def _listen(said: queue.Queue[str]) -> None:
    for line in sys.stdin:
        said.put(line.strip())
        if line.strip() == FINISH:
            return
    os._exit(1)  # the run is gone; what was not sent is sent by the next one, or by hand


def _attempt(publisher: Publisher, only_marked: bool) -> None:
    """One push whose failure is an entry of the account: the run goes on, and the last push tries everything again."""
    publisher.account["error"] = None
    try:
        publisher.publish(only_marked)
    except (InputError, RunError) as error:
        publisher.account["error"] = str(error)
    except Exception as error:  # a defect here must not cost the account
        publisher.account["error"] = f"{type(error).__name__}: {redacted(str(error), publisher.hub_token)}"
    if publisher.account["error"] and only_marked:
        log.warning("%s; tried again at the end", publisher.account["error"])


def _quiet() -> None:
    """Our lines only: the client's warnings name signed addresses."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    for noisy in ("httpx", "httpx2", "httpcore", "huggingface_hub", "filelock"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when all of it is there, 2 for what a person has to mend, 1 where the Hub does not do it."""
    args: list[argparse.Namespace] = []

    def work() -> None:
        try:
            args.append(_parse(argv))
            _main(args[0])
        except (InputError, RunError) as error:  # a token in the wrong place stays unsaid
            raise type(error)(redacted(str(error), args[0].hub_token if args else None)) from None

    code = run_command(work)
    if code == INTERRUPTED:
        print("the same command goes on", file=sys.stderr, flush=True)
    return code


def _main(args: argparse.Namespace) -> None:
    options = PushOptions(
        args.hub_model_id,
        args.hub_private_repo or None,
        args.license,
        args.language,
        args.overwrite,
        args.glue_report,
    )
    if args.dry_run:
        show(args.folder, options)
        return
    _quiet()
    use_timeout(TIMEOUT_SECONDS)
    publisher = Publisher(args.folder, options, args.hub_token)
    if args.follow:
        follow(publisher)
    else:
        publisher.publish()
        print(publisher.account["url"])


if __name__ == "__main__":
    sys.exit(main())
