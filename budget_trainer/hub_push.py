"""From a folder to the Hub: what is published gets its cards, what is there is compared, what changed is sent."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budget_trainer import hub_files, model_card
from budget_trainer.card_scores import GLUE_REPORT, read_glue
from budget_trainer.errors import InputError
from budget_trainer.hub_client import Hub, same
from budget_trainer.hub_files import CARD, MAIN, PICTURE, REPORT, Revision

log = logging.getLogger(__name__)
WEIGHTS = (".safetensors", *hub_files.PICKLES, ".onnx", ".gguf")
KEPT = (".gitattributes", "LICENSE", "NOTICE")  # by --overwrite


@dataclass(frozen=True)
class PushOptions:
    """Where to and how. `hub_model_id` None is the folder's name, one without owner belongs to the token's owner.

    `license` and `language` (codes) None are those of the run's recipe; `overwrite` replaces another model. `glue_report`
    is the folder of a suite's glue_report.json, None the one that is published.
    """

    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    license: str | None = None
    language: str | None = None
    overwrite: bool = False
    glue_report: Path | None = None

    def command(self, folder: Path) -> str:
        """The command that repeats the push."""
        words = ["python", "-m", "budget_trainer.publish", str(folder)]
        words += ["--hub_model_id", self.hub_model_id] if self.hub_model_id else []
        words += ["--hub_private_repo"] if self.hub_private_repo else []
        for name in ("license", "language", "glue_report"):
            words += [f"--{name}", str(getattr(self, name))] if getattr(self, name) else []
        return shlex.join(words)


def default_name(folder: Path) -> str:
    """The name of the run's folder, or the model's."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == hub_files.FINAL else whole.name


def prepare(folder: Path, options: PushOptions, repo_id: str) -> list[Revision]:
    """What is to be on the Hub: the revisions of `folder` with their cards, `main` last. InputError as `read_revisions`.

    A card that a person has edited stays as it is; InputError where a licence or language is asked for beside it.
    """
    model_card.check_license(options.license)
    revisions = hub_files.read_revisions(folder)
    report, scored = _report(folder), options.glue_report or folder
    if options.glue_report is not None and not (scored / GLUE_REPORT).is_file():
        raise InputError(
            f"glue_report: {scored} has no {GLUE_REPORT}; give the --output_dir of a suite that has ended"
        )
    recipe = report.get("recipe") or {}
    license = options.license or recipe.get("license")
    language = options.language or recipe.get("language")
    marks = [revision.name for revision in revisions if revision.name != MAIN]
    prepared = []
    for revision in revisions:
        if revision.name == MAIN:
            card = _main_card(folder, scored, revision, report, marks, repo_id, license, language)
            revision = _with_reports(folder, scored, revision, report)
        else:
            kind = str(_config(revision)["model_type"])
            card = model_card.marked_card_text(kind, mark=revision.name, license=license, path=repo_id)
        own = revision.files.get(CARD)
        if isinstance(own, Path) and not model_card.sealed(own.read_text(encoding="utf-8", errors="replace")):
            if options.license or options.language:
                raise InputError(
                    f"license: {own} was edited, so it stays as it is; write licence and language into its first lines"
                )
        else:
            revision = replace(revision, files={**revision.files, CARD: card.encode()})
        prepared.append(revision)
    return prepared


def _report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{REPORT}: {path} cannot be read ({error}); mend it, or move it away") from None


def _config(revision: Revision) -> dict[str, Any]:
    path = revision.files["config.json"]
    assert isinstance(path, Path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _main_card(
    folder: Path,
    scored: Path,
    revision: Revision,
    report: dict[str, Any],
    marks: Sequence[str],
    repo_id: str,
    license: str | None,
    language: str | None,
) -> str:
    config = _config(revision)
    kind = str((config.get("architectures") or [""])[0])
    return model_card.card_text(
        report or {"model_type": config["model_type"]},
        name=repo_id.split("/")[-1],
        license=license,
        language=(language or "").replace(",", " ").split(),
        scores=read_glue(scored),
        path=repo_id,
        revisions=marks,
        picture=PICTURE in revision.files or (folder / PICTURE).is_file(),
        classifier=kind.endswith("ForSequenceClassification"),
    )


def _with_reports(folder: Path, scored: Path, revision: Revision, report: dict[str, Any]) -> Revision:
    """What lies beside `final/` and belongs to it: the report without what is private, the picture, GLUE."""
    files = dict(revision.files)
    for name in (PICTURE, GLUE_REPORT, "glue_report.png", "glue_report.md"):
        path = (folder if name == PICTURE else scored) / name
        if path.is_file():
            files[name] = path
    if report:
        files[REPORT] = model_card.public_report(report)
    scores = files.get(GLUE_REPORT)
    if isinstance(scores, Path):
        files[GLUE_REPORT] = model_card.public_json(json.loads(scores.read_text(encoding="utf-8")))
    return replace(revision, files=files)


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
