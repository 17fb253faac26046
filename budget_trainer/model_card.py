"""The model card of a finished run: README.md beside the weights, in the form that the Hub reads."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_trainer import card_sections as sections
from budget_trainer.card_markdown import public, without_folders
from budget_trainer.card_scores import GlueScore, eval_results
from budget_trainer.errors import InputError
from budget_trainer.markdown import fence, inline

UNKNOWN_LICENSE = "unknown"  # the Hub's word for it
_SEAL = re.compile(r"\n<!-- written by budget-trainer, unchanged while this is right: ([0-9a-f]{64}) -->\n?\Z")


def write_model_card(
    folder: Path,
    report: Mapping[str, Any],
    *,
    run_report: Path,
    picture: Path,
    **options: Any,
) -> Path:
    """Write `folder`/README.md from the run's report, and put `run_report` and `picture` beside it.

    `options` are those of `card_text`; the copy of the report is without secrets and folders of this machine. Returns
    the card's path. Raises OSError where a file cannot be read or written.
    """
    content = json.loads(Path(run_report).read_text(encoding="utf-8"))
    (folder / "run_report.json").write_bytes(public_report(content))
    if Path(picture).resolve() != (folder / "run_report.png").resolve():
        shutil.copyfile(picture, folder / "run_report.png")
    options.setdefault("name", folder.resolve().parent.name)
    card = folder / "README.md"
    card.write_text(card_text(report, **options), encoding="utf-8")
    return card


def card_text(
    report: Mapping[str, Any],
    *,
    name: str,
    license: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
    scores: Sequence[GlueScore] = (),
    path: str = ".",
    revisions: Sequence[str] = (),
    picture: bool = True,
    classifier: bool = False,
) -> str:
    """The card: metadata, what the report says, how to load the model from `path`; its last line seals it (`sealed`).

    `license`, `language` and `datasets` are Hub identifiers; without a licence the card says that it is unknown.
    `revisions` are the names of time-marked models beside this one, `scores` those of GLUE, `picture` says whether
    run_report.png lies beside the card, `classifier` that the model was fine-tuned to classify.
    """
    report, license = without_folders(report), license or UNKNOWN_LICENSE
    head = _metadata(report, name, license, language, datasets, scores, classifier)
    body = [f"# {inline(name)}", sections.summary(report, classifier)]
    if picture:
        body.append("![Loss, learning rate, throughput and where the budget went](run_report.png)")
    how = sections.classifier_usage(path) if classifier else sections.usage(path, revisions)
    body.append(f"## How to use it\n\n{how}")
    body += _of_run(report, scores)
    if not classifier:
        body.append(f"## Data\n\n{sections.data(report)}")
    body.append(f"## Licence\n\n{sections.licence(license)}")
    if not classifier:
        body.append(f"## Limitations\n\n{sections.limitations(report)}")
    body.append("## Citation\n\nThe method is that of this paper:\n\n" + fence(sections.CITATION, "bibtex"))
    return _seal(f"---\n{head}\n---\n\n" + "\n\n".join(body) + "\n")


def _of_run(report: Mapping[str, Any], scores: Sequence[GlueScore]) -> list[str]:
    """What is known of a model whose training left a report, and its scores."""
    glue = [f"## GLUE\n\n{sections.glue(scores)}"] if scores else []
    if "shares" not in report:
        return glue
    planned = sections.planned(report)
    return [
        f"## Results\n\n{sections.results(report)}",
        *glue,
        f"## Where the budget went\n\n{sections.budget(report)}" + (f"\n\n{planned}" if planned else ""),
        f"## Recipe\n\n{sections.recipe(report)}",
        f"## Hardware and versions\n\n{sections.environment(report)}",
        "All of it, machine-readable: [run_report.json](run_report.json).",
    ]


def marked_card_text(model_type: str, *, mark: str, license: str | None, path: str) -> str:
    """The card of a time-marked model, such as `finetune-50`: what it is, and where the finished one lies."""
    license, name = license or UNKNOWN_LICENSE, path.split("/")[-1]
    head = _metadata({"model_type": model_type}, name, license, (), (), (), False)
    percent = inline(mark.removeprefix("finetune-"))
    text = (
        f"# {inline(name)} at {percent} % of its budget\n\nThe weights of a pre-training run as they were when {percent} % of "
        f"its wall-clock budget was used, with the learning rate of that moment. The finished model is the revision `main` "
        f'of {inline(path)}; this one loads with `revision="{inline(mark)}"`.\n\n## Licence\n\n{sections.licence(license)}\n'
    )
    return _seal(f"---\n{head}\n---\n\n{text}")


def public_report(report: Mapping[str, Any]) -> bytes:
    """The run's report as it may lie beside the card: JSON without secrets and folders of this machine."""
    shown = {key: value for key, value in report.items() if key != "hub"}
    return public_json({**shown, "recipe": public(report.get("recipe") or {})})


def public_json(content: Any) -> bytes:
    """`content` as JSON, without the folders of this machine."""
    return (json.dumps(without_folders(content), indent=2) + "\n").encode()


def check_license(license: str | None) -> None:
    """InputError for what cannot be an identifier of the Hub's list."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(
            f"license: {license!r} is no identifier; use one such as apache-2.0, mit or cc-by-sa-4.0 "
            "(https://huggingface.co/docs/hub/repositories-licenses), or leave it out"
        )


def sealed(card: str) -> bool:
    """Whether `card` is as it was written here: nobody has edited it since, so that it may be written anew."""
    found = _SEAL.search(card)
    return found is not None and found.group(1) == hashlib.sha256(card[: found.start()].encode()).hexdigest()


def _seal(card: str) -> str:
    digest = hashlib.sha256(card.encode()).hexdigest()
    return f"{card}\n<!-- written by budget-trainer, unchanged while this is right: {digest} -->\n"


def _metadata(
    report: Mapping[str, Any],
    name: str,
    license: str,
    language: Sequence[str],
    datasets: Sequence[str],
    scores: Sequence[GlueScore],
    classifier: bool,
) -> str:
    """The YAML between the dashes, with a `model-index` where there are results."""
    from huggingface_hub import ModelCardData

    kind = " ".join(str(report.get("model_type") or "").split())
    tags = ["masked-lm", "pretraining", "time-budget"] if not classifier else ["time-budget"]
    data = ModelCardData(
        model_name=" ".join(name.split()),
        library_name="transformers",
        pipeline_tag="text-classification" if classifier else "fill-mask",
        license=license,
        language=list(language) or None,
        datasets=list(datasets) or None,
        tags=tags + ([kind] if kind else []),
        eval_results=eval_results(report, scores) or None,
    )
    return data.to_yaml()
