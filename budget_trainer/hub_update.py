"""What is on the Hub is compared with what is to be there, and what changed is sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from budget_trainer import hub_files, model_card
from budget_trainer.card_scores import GLUE_REPORT, GlueScore, glue_scores
from budget_trainer.errors import InputError
from budget_trainer.hub_client import Hub, same
from budget_trainer.hub_files import CARD, MAIN, Revision

log = logging.getLogger(__name__)
WEIGHTS = (".safetensors", *hub_files.PICKLES, ".onnx", ".gguf")
KEPT = (".gitattributes", "LICENSE", "NOTICE")  # by --overwrite


def scores_there(hub: Hub, revisions: Sequence[Revision]) -> list[GlueScore]:
    """The scores of glue_report.json on the Hub, which the card keeps: where `main` has the same weights and none of ours.

    InputError where they cannot be read.
    """
    ours = next((revision for revision in revisions if revision.name == MAIN), None)
    if ours is None or GLUE_REPORT in ours.files:
        return []
    there = hub.files(MAIN)
    if GLUE_REPORT not in there or _other_model(ours, there) is not None:
        return []
    return glue_scores(hub.read_text(MAIN, GLUE_REPORT), f"{hub.url}, {MAIN},")


def push(
    hub: Hub, revisions: Sequence[Revision], *, overwrite: bool, told: Callable[[str, dict[str, Any]], None]
) -> None:
    """Bring every revision to its state here, one commit each, and tell what was done as (name, account).

    Nothing is sent where nothing changed. InputError where another model is there, unless `overwrite`.
    """
    branches = hub.branches()
    for revision in revisions:
        if revision.name not in branches and revision.name != MAIN:
            hub.make_branch(revision.name)
        told(revision.name, _push_one(hub, revision, overwrite, branches.get(revision.name)))


def _push_one(hub: Hub, revision: Revision, overwrite: bool, newest: str | None) -> dict[str, Any]:
    there = hub.files(revision.name)
    files = dict(revision.files)
    another = _other_model(revision, there)
    if another is not None and not overwrite:
        raise InputError(
            f"hub_model_id: {hub.url}, {revision.name}, holds another model ({another} differs); give another name, or "
            "--overwrite to replace it (git keeps the old one)"
        )
    kept = another is None and not overwrite and _edited(hub, revision, there)
    if kept:
        log.warning("%s, %s: %s was edited there and stays; --overwrite replaces it", hub.repo_id, revision.name, CARD)
        del files[CARD]
    changed = {name: content for name, content in files.items() if name not in there or not same(content, there[name])}
    gone = [name for name in there if name not in files and not name.startswith(KEPT)] if another is not None else []
    if changed or gone:
        newest = hub.commit(revision.name, changed, gone, f"Publish {len(changed)} files with budget-trainer")
    account = {"commit": newest, "sent": len(changed), "unchanged": len(files) - len(changed)}
    return account | ({"card": "edited there, kept"} if kept else {}) | ({"deleted": len(gone)} if gone else {})


def _other_model(revision: Revision, there: dict[str, tuple[int, str]]) -> str | None:
    """The file by which the repository holds another model than ours: weights that differ. None where it does not."""
    weights = [name for name in there if name.endswith(WEIGHTS)]
    for name in revision.weights:
        if name in there and not same(revision.files[name], there[name]):
            return name
    if weights and not set(weights) & set(revision.weights):
        return weights[0]
    return "config.json" if not weights and "config.json" in there else None


def _edited(hub: Hub, revision: Revision, there: dict[str, tuple[int, str]]) -> bool:
    """Whether the card there is a person's: not ours as we wrote it, and more than the first lines of a new one."""
    if CARD not in there or same(revision.files[CARD], there[CARD]):
        return False
    text = hub.read_text(revision.name, CARD)
    body = text.split("\n---", 1)[-1] if text.startswith("---") else text
    return bool(body.strip(" \n-")) and not model_card.sealed(text)
