"""The scores of a model card: the pinned evaluation and GLUE, as `model-index` entries of the Hub. Nearly a leaf."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget_trainer.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

GLUE_REPORT = "glue_report.json"
PINNED = (
    ("loss", "loss", "nats per predicted token"),
    ("accuracy", "accuracy", "accuracy of the masked tokens"),
    ("bits_per_byte", "bits_per_byte", "bits per byte"),
)


@dataclass(frozen=True)
class GlueScore:
    """One score of a fine-tuned model: `task` as GLUE writes it (CoLA), `value` a share of 1 (0.571 is 57.1 points)."""

    task: str
    metric: str
    value: float
    split: str = "validation"
    seeds: int | None = None  # of which `value` is the median


def read_glue(folder: Path) -> list[GlueScore]:
    """The scores in `folder`/glue_report.json, none where there is no such file.

    The file is an object with, at "scores", a list of {"task": "CoLA", "metric": "matthews_correlation", "value": 0.571,
    "split": "validation", "seeds": 5} (the last two may be missing), or that list alone; a value beyond 1 is taken for
    GLUE's points of 100. InputError for another form.
    """
    path = folder / GLUE_REPORT
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{GLUE_REPORT}: {path} cannot be read ({error}); make it anew, or move it away") from None
    return glue_scores(text, str(path))


def glue_scores(text: str, where: str) -> list[GlueScore]:
    """The scores in the `text` of a glue_report.json, see `read_glue`; InputError, with `where` it is, for another form."""
    try:
        content = json.loads(text)
        entries = content["scores"] if isinstance(content, dict) else content
        return [_score(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{GLUE_REPORT}: {where} is not a list of {{"task", "metric", "value", "split"}} ({error!r}); make it anew with '
            "finetune_glue.py, or move it away"
        ) from None


def _score(entry: Mapping[str, Any]) -> GlueScore:
    value = float(entry["value"])
    if not math.isfinite(value) or abs(value) > 100:
        raise ValueError(f"value {value}")
    value = value if abs(value) <= 1 else value / 100
    seeds = int(entry["seeds"]) if entry.get("seeds") is not None else None
    return GlueScore(str(entry["task"]), str(entry["metric"]), value, str(entry.get("split", "validation")), seeds)


def eval_results(report: Mapping[str, Any], scores: Sequence[GlueScore]) -> list[EvalResult]:
    """What the Hub shows beside the card: the pinned evaluation of the run's report, and GLUE as shares of 1."""
    from huggingface_hub import EvalResult

    evaluation = report.get("evaluation") or {}
    pinned = [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modelling",
            dataset_type="held-out",
            dataset_name="Held-out blocks of the pre-training corpus",
            dataset_split="validation",
            metric_type=metric,
            metric_name=name,
            metric_value=round(float(evaluation[key]), 5),
        )
        for key, metric, name in PINNED
        if evaluation.get(key) is not None
    ]
    glue = [
        EvalResult(
            task_type="text-classification",
            task_name="Fine-tuned on GLUE",
            dataset_type="nyu-mll/glue",
            dataset_name=f"GLUE {score.task}",
            dataset_config=_where(score)[0],
            dataset_split=_where(score)[1],
            metric_type=score.metric,
            metric_value=round(score.value, 5),
        )
        for score in scores
    ]
    return pinned + glue


def _where(score: GlueScore) -> tuple[str, str]:
    """Configuration and split of the data set `nyu-mll/glue`: SST-2 is sst2, MNLI-mm the mismatched split of mnli."""
    name = score.task.lower().replace("-", "").replace("_", "")
    if not name.startswith("mnli"):
        return name, score.split
    half = "mismatched" if name in ("mnlimm", "mnlimismatched") else "matched"
    return "mnli", score.split if score.split.endswith("matched") else f"{score.split}_{half}"
