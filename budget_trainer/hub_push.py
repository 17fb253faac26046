"""From a folder to what is to be on the Hub: known files with their cards, reports without folders of this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budget_trainer import hub_files, model_card
from budget_trainer.card_markdown import without_folders
from budget_trainer.card_scores import GLUE_REPORT, GlueScore, read_glue
from budget_trainer.errors import InputError
from budget_trainer.hub_files import CARD, MAIN, PICTURE, REPORT, Revision

GLUE_TEXT = "glue_report.md"


@dataclass(frozen=True)
class PushOptions:
    """Where to and how. `hub_model_id` None is the folder's name, one without owner belongs to the token's owner.

    `license` and `language` (codes) None are those of the run's recipe; `overwrite` replaces another model. `glue_report`
    is the folder of a suite's glue_report.json, None the one that is published; where that has none, the scores that the
    Hub has of the same weights stay.
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


def prepare(
    folder: Path, options: PushOptions, repo_id: str, scores_there: Sequence[GlueScore] = ()
) -> list[Revision]:
    """What is to be on the Hub: the revisions of `folder` with their cards, `main` last. InputError as `read_revisions`.

    A card that a person has edited stays as it is; InputError where a licence or language is asked for beside it.
    `scores_there` are the card's where no suite is given and none lies in the folder.
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
            scores = read_glue(scored) or list(scores_there)
            card = _main_card(folder, scores, revision, report, marks, repo_id, license, language)
            revision = _with_reports(folder, scored, revision)
        else:
            kind = str(_config(revision)["model_type"])
            card = model_card.marked_card_text(kind, mark=revision.name, license=license, path=repo_id)
        revision = _public(revision)
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
    scores: Sequence[GlueScore],
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
        scores=scores,
        path=repo_id,
        revisions=marks,
        picture=PICTURE in revision.files or (folder / PICTURE).is_file(),
        classifier=kind.endswith("ForSequenceClassification"),
    )


def _with_reports(folder: Path, scored: Path, revision: Revision) -> Revision:
    """What lies beside `final/` and belongs to it: the run's report, the picture, GLUE."""
    files = dict(revision.files)
    for name in (REPORT, PICTURE, GLUE_REPORT, "glue_report.png", GLUE_TEXT):
        path = (folder if name in (REPORT, PICTURE) else scored) / name
        if path.is_file():
            files[name] = path
    return replace(revision, files=files)


_PUBLIC: dict[str, Callable[[str], bytes]] = {
    REPORT: lambda text: model_card.public_report(json.loads(text)),
    GLUE_REPORT: lambda text: model_card.public_json(json.loads(text)),
    GLUE_TEXT: lambda text: str(without_folders(text)).encode(),
}


def _public(revision: Revision) -> Revision:
    """The revision whose reports are without what is private."""
    files = dict(revision.files)
    for name, made in _PUBLIC.items():
        path = files.get(name)
        if isinstance(path, Path):
            try:
                files[name] = made(path.read_text(encoding="utf-8"))
            except (ValueError, AttributeError, TypeError) as error:
                raise InputError(f"{name}: {path} cannot be read ({error}); mend it, or move it away") from None
    return replace(revision, files=files)
