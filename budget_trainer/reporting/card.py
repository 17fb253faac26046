"""The model card: README.md beside the weights, made from the run's report by the template card.md.jinja."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256
from budget_trainer.core.output import fence, inline, table
from budget_trainer.reporting.energy import energy_text, energy_words
from budget_trainer.reporting.report import PICTURE, REPORT, in_run, public_report

GLUE_REPORT, FINE_TUNING = "glue_report.json", "fine_tuning"  # the key: what a run on GLUE used
# Of the pinned evaluation: key in the report, name in the card, name in the metadata.
_EVALUATION = (
    ("loss", "loss", "nats per predicted token"),
    ("accuracy", "accuracy", "accuracy of the masked tokens"),
    ("bits_per_byte", "bits per byte", "bits per byte"),
)
_SHOWN_SOURCES = 20
# The last line of a card. A person who edits the text above leaves it as it is, so that it no longer fits.
_SEAL = "\n<!-- budget-trainer rewrites this card unless it was edited; SHA-256 of the text above: {} -->\n"


@dataclass(frozen=True)
class GlueScore:
    """One score of a fine-tuned model: `task` as GLUE writes it (CoLA), `value` a share of 1 (0.571 is 57.1 points).

    `tried` has the same score of each learning rate that was tried, `flags` are finetune_glue.py's at the best of them.
    """

    task: str
    metric: str
    value: float
    split: str = "validation"
    seeds: int | None = None  # of which `value` is the median
    learning_rate: float | None = None  # the best
    tried: Mapping[float, float] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    starts_from: str | None = None  # the task whose fine-tuned model was tuned further


def parse_glue_scores(text: str, where: str) -> list[GlueScore]:
    """The scores in the text of a glue_report.json that lies at `where`.

    It is an object with, at "scores", a list of {"task": "CoLA", "metric": "matthews_correlation", "value": 0.571}, or that
    list alone; a value beyond 1 is taken for GLUE's points of 100. An entry may have the other fields of `GlueScore`: "split",
    "seeds", "learning_rate", "flags", "starts_from", and "tried" as a list of {"learning_rate": 5e-5, "value": 0.52}.
    InputError for another form.
    """
    scores = []
    try:
        content = json.loads(text)
        for entry in content["scores"] if isinstance(content, dict) else content:
            seeds, rate, base = (entry.get(name) for name in ("seeds", "learning_rate", "starts_from"))
            score = GlueScore(
                *(str(entry["task"]), str(entry["metric"]), _share(entry["value"])),
                split=str(entry.get("split", "validation")),
                seeds=None if seeds is None else int(seeds),
                learning_rate=None if rate is None else float(rate),
                tried={float(one["learning_rate"]): _share(one["value"]) for one in entry.get("tried", ())},
                flags={str(name): str(value) for name, value in entry.get("flags", {}).items()},
                starts_from=None if base is None else str(base),
            )
            scores.append(score)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{GLUE_REPORT}: {where} is not a list of {{"task", "metric", "value", "split"}} ({error!r}); make it anew with '
            "finetune_glue.py, or move it away"
        ) from None
    return scores


def _share(value: Any) -> float:
    value = float(value)
    if not abs(value) <= 100:
        raise ValueError(f"value {value}")
    return value if abs(value) <= 1 else value / 100


def rates_text(tried: Mapping[float, float]) -> str:
    """Scores, shares of 1, of the learning rates that were tried: `5e-5: 52.0, 3e-4: 57.1`."""
    return ", ".join(f"{_rate_text(rate)}: {100 * value:.1f}" for rate, value in tried.items())


def _rate_text(rate: float | None) -> str:
    return "" if rate is None else f"{Decimal(str(rate)):e}"


def check_license(license: str | None) -> None:
    """InputError for what cannot be an identifier of the Hub's list."""
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(
            f"license: {license!r} is no identifier; use one such as apache-2.0, mit or cc-by-sa-4.0 "
            "(https://huggingface.co/docs/hub/repositories-licenses), or leave it out"
        )


def write_model_card(final: Path, *, license: str | None = None, language: Sequence[str] = ()) -> Path:
    """Write the card of a finished run into the folder of its model, with copies of its report and picture.

    Both are read from the folder above. The copy of the report is without secrets and folders of this machine. Returns
    the card's path. Raises OSError where a file cannot be read or written.
    """
    run, card = in_run(final).parent, final / "README.md"
    report = json.loads((run / REPORT).read_text(encoding="utf-8"))
    (final / REPORT).write_bytes(public_report(report))
    shutil.copyfile(run / PICTURE, final / PICTURE)
    card.write_text(card_text(report, name=run.name, license=license, language=language), encoding="utf-8")
    return card


def card_text(
    report: Mapping[str, Any],
    *,
    name: str,
    path: str = ".",
    license: str | None = None,
    language: Sequence[str] = (),
    scores: Sequence[GlueScore] = (),
    marks: Sequence[str] = (),
    mark: str | None = None,
    picture: bool = True,
    classifier: bool = False,
) -> str:
    """The card: metadata for the Hub and Markdown; `is_unedited` as long as nobody changes it.

    Args:
        report: the content of run_report.json, or only `model_type` where there is none, and of a fine-tuning what is
            known of its `energy`, `hardware`, `versions` and `world_size`.
        path: what loads the model, a name on the Hub or a folder.
        license, language: identifiers of the Hub; without a licence the card says that it is unknown.
        scores: those of GLUE.
        marks: the revisions of time-marked models beside this one.
        mark: the model is the time-marked one of this name (`finetune-50`).
        picture: whether run_report.png lies beside the card.
        classifier: the model was fine-tuned to classify.

    Raises:
        InputError: `license` cannot be an identifier.
    """
    check_license(license)
    report, license = json.loads(public_report(report)), license or "unknown"
    kind = " ".join(str(report.get("model_type") or "").split())
    tags = ["time-budget"] if classifier else ["masked-lm", "pretraining", "time-budget"]
    data = ModelCardData(
        model_name=" ".join(name.split()),
        library_name="transformers",
        pipeline_tag="text-classification" if classifier else "fill-mask",
        license=license,
        language=list(language) or None,
        tags=tags + ([kind] if kind else []),
        eval_results=[*_evaluation_results(report), *map(_glue_result, scores)] or None,
        **_emissions(report, classifier),
    )
    recipe = yaml.safe_dump(report.get("recipe") or {}, sort_keys=False, allow_unicode=True, width=1000)
    card = ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        inline=inline,
        table=table,
        report=report,
        name=name,
        path=path,
        license=license,
        marks=marks,
        mark=mark,
        picture=picture,
        classifier=classifier,
        summary=_summary(report, classifier),
        energy=energy_words(report["energy"]) if report.get("energy") else [],
        energy_text=energy_text,
        measures=_EVALUATION,
        glue=[(s.task, s.metric, s.split, f"{100 * s.value:.1f}", str(s.seeds or "")) for s in scores],
        tuning=_tuning(scores),
        recipe=fence(recipe.rstrip(), "yaml"),
        sources=_sources(report.get("data") or {}),
        corpus=_corpus(report.get("data") or {}),
    )
    return _sealed(f"{str(card).rstrip()}\n")


def _sealed(text: str) -> str:
    return text + _SEAL.format(sha256(text))


def is_unedited(card: str) -> bool:
    """Whether `card` is as `card_text` wrote it, so that it may be written anew."""
    text = card.rpartition(_SEAL.partition("{")[0])[0]
    return card.rstrip("\n") == _sealed(text).rstrip("\n")


def _evaluation_results(report: Mapping[str, Any]) -> list[EvalResult]:
    evaluation = report.get("evaluation") or {}
    return [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modelling",
            dataset_type="held-out",
            dataset_name="Held-out blocks of the pre-training corpus",
            dataset_split="validation",
            metric_type=key,
            metric_name=name,
            metric_value=round(float(evaluation[key]), 5),
        )
        for key, _, name in _EVALUATION
        if evaluation.get(key) is not None
    ]


def _glue_result(score: GlueScore) -> EvalResult:
    """An entry for the data set `nyu-mll/glue`: SST-2 is its sst2, MNLI-mm the mismatched split of its mnli."""
    config, split = score.task.lower().replace("-", "").replace("_", ""), score.split
    if config.startswith("mnli"):
        half = "mismatched" if config in ("mnlimm", "mnlimismatched") else "matched"
        config, split = "mnli", split if split.endswith("matched") else f"{split}_{half}"
    return EvalResult(
        task_type="text-classification",
        task_name="Fine-tuned on GLUE",
        dataset_type="nyu-mll/glue",
        dataset_name=f"GLUE {score.task}",
        dataset_config=config,
        dataset_split=split,
        metric_type=score.metric,
        metric_value=round(score.value, 5),
    )


def _emissions(report: Mapping[str, Any], classifier: bool) -> dict[str, Any]:
    """`co2_eq_emissions` as the Hub has it (huggingface.co/docs/hub/model-cards-co2), in grams; empty where not known."""
    energy = report.get("energy") or {}
    if not (found := energy.get("emissions")):
        return {}
    hardware, world = report.get("hardware") or {}, report.get("world_size") or 1
    gpus = [gpu["name"] for gpu in hardware.get("gpus") or []] if "gpu" in energy["sources"] else []
    used = f"{world} x {gpus[0]}" if gpus else f"{hardware.get('cores')} cores of {hardware.get('cpu')}"
    basis = "partly estimated" if energy["estimated"] else "measured"
    about = {
        "emissions": round(1000 * found["kg_co2eq"], 6),
        "source": f"{found['source']}, of {basis} energy",
        "training_type": "fine-tuning" if classifier else "pre-training",
        "geographical_location": found["country"],
        "hardware_used": " ".join(used.split()),
    }
    return {"co2_eq_emissions": about}


def _tuning(scores: Sequence[GlueScore]) -> list[tuple[str, ...]]:
    """How each task was fine-tuned, by its first score, where that is known."""
    rows: dict[str, tuple[str, ...]] = {}
    for score in (score for score in scores if score.learning_rate is not None):
        further = [f"{name} {value}" for name, value in sorted(score.flags.items()) if name != "learning_rate"]
        further += [f"from the model of {score.starts_from}"] if score.starts_from else []
        row = score.task, _rate_text(score.learning_rate), rates_text(score.tried), ", ".join(further)
        rows.setdefault(score.task, row)
    return list(rows.values())


def _summary(report: Mapping[str, Any], classifier: bool) -> str:
    kind = f"A {inline(report.get('model_type') or 'Transformers')}"
    if classifier:
        return f"{kind} model, fine-tuned to classify text."
    size, budget = report.get("parameters"), report.get("budget_seconds")
    what = f"{kind} masked language model" + (f" with {size / 1e6:,.1f} million parameters" if size else "")
    if not report.get("steps"):
        return f"{what}."
    how = f" in {format_duration(report.get('used_seconds') or 0)}"
    how += f" of a wall-clock budget of {format_duration(budget)}" if budget and math.isfinite(budget) else ""
    earlier = ", ".join(report.get("earlier_budgets") or [])
    how += f" (finished at {earlier} before, and given more time)" if earlier else ""
    further = (report.get("recipe") or {}).get("model_name_or_path")
    origin = "pre-trained further from existing weights" if further else "pre-trained from scratch"
    return f"{what}, {origin}{how}: {report['steps']:,} steps, {report.get('tokens') or 0:,} token positions."


def _sources(corpus: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The sources of `report.describe_data`; those beyond _SHOWN_SOURCES become one row."""
    sources = list(corpus.get("sources") or [])
    rest = sources[_SHOWN_SOURCES:]
    if rest:
        total = {key: sum(source.get(key) or 0 for source in rest) for key in ("documents", "text_bytes")}
        sources = [*sources[:_SHOWN_SOURCES], {"name": f"{len(rest)} more", **total}]
    rows = []
    for source in sources:
        documents, size = source.get("documents"), source.get("text_bytes")
        counts = (f"{documents:,}" if documents else "", f"{size / 1e6:,.1f}" if size else "")
        rows.append((str(source["name"]), str(source.get("kind", "")), *counts))
    return rows


def _corpus(corpus: Mapping[str, Any]) -> str:
    units = (("documents", "documents"), ("tokens", "tokens"), ("rows", "blocks"))
    counts = [f"{corpus[key]:,} {unit}" for key, unit in units if corpus.get(key)]
    dropped: Counter[str] = Counter()
    for source in corpus.get("sources") or []:
        dropped.update(source.get("dropped") or {})
    parts = []
    if counts:
        parts.append(f"Trained on {', '.join(counts)} ({inline(corpus.get('packing', ''))})")
    if dropped:
        parts.append(f"Left out: {', '.join(f'{count:,} {inline(reason)}' for reason, count in dropped.items())}")
    if corpus.get("validation_text"):
        parts.append(f"Held out: {inline(corpus['validation_text'])}")
    elif corpus.get("validation_fraction"):
        parts.append(f"Held out for the evaluation: {100 * corpus['validation_fraction']:g} % of the documents")
    return ". ".join(parts)
