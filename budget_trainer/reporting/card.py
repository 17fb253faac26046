"""The scores of a model card: the pinned evaluation and GLUE, as `model-index` entries of the Hub. Nearly a leaf.

The sections of a model card, each a function of the run's report.

The model card of a finished run: README.md beside the weights, in the form that the Hub reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.markdown import dump_yaml, fence, inline, public, table, without_folders
from budget_trainer.reporting import report as report_module

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


CITATION = """@inproceedings{izsak-etal-2021-train,
  title     = {How to Train {BERT} with an Academic Budget},
  author    = {Izsak, Peter and Berchansky, Moshe and Levy, Omer},
  booktitle = {Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing},
  year      = {2021}
}"""
EVALUATION = (
    "15 % of the non-special tokens of held-out blocks of 128 tokens, 80 % of them masked, 10 % replaced and 10 % "
    "kept, with a fixed seed: the same whatever the recipe trained with. Loss is in nats per predicted token; bits "
    "per byte compares across tokenizers."
)


def summary(report: Mapping[str, Any], classifier: bool = False) -> str:
    if classifier:
        return f"A {inline(report.get('model_type') or 'Transformers')} model, fine-tuned to classify text."
    size, budget = report.get("parameters"), report.get("budget_seconds")
    what = f"A {inline(report.get('model_type') or 'Transformers')} masked language model"
    what += f" with {size / 1e6:,.1f} million parameters" if size else ""
    if not report.get("steps"):
        return f"{what}."
    how = f" in {format_duration(report.get('used_seconds') or 0)}"
    how += f" of a wall-clock budget of {format_duration(budget)}" if budget and math.isfinite(budget) else ""
    origin = "pre-trained from scratch"
    if (report.get("recipe") or {}).get("model_name_or_path"):
        origin = "pre-trained further from existing weights"
    return f"{what}, {origin}{how}: {report['steps']:,} steps, {report.get('tokens') or 0:,} token positions."


def usage(path: str, revisions: Sequence[str] = ()) -> str:
    """Code that loads the model from `path`, a name on the Hub or a folder; `revisions` are its time-marked models."""
    fill = f"""from transformers import pipeline

fill = pipeline("fill-mask", model="{path}")
for guess in fill(f"The capital of France is {{fill.tokenizer.mask_token}}."):
    print(f"{{guess['score']:.3f}}", guess["token_str"])"""
    parts = [
        fence(fill, "python"),
        "To fine-tune it, with a new classification head:",
        fence(_classify(path), "python"),
    ]
    if revisions:
        names = ", ".join(f"`{inline(name)}`" for name in revisions)
        parts.append(
            f"The model as it was at shares of the budget, in per cent: {names}. Load one with `revision="
            f'"{inline(revisions[0])}"`.'
        )
    return "\n\n".join(parts)


def _classify(path: str) -> str:
    return f"""from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
model = AutoModelForSequenceClassification.from_pretrained("{path}", num_labels=2)
inputs = tokenizer(["It was a good film.", "It was not."], padding=True, return_tensors="pt")
print(model(**inputs).logits.shape)  # one row per text; the head is new: train it first"""


def classifier_usage(path: str) -> str:
    """The same for a model that was fine-tuned already."""
    code = f"""from transformers import pipeline

classify = pipeline("text-classification", model="{path}")
print(classify("It was a good film."))"""
    return fence(code, "python")


def results(report: Mapping[str, Any]) -> str:
    evaluation = report.get("evaluation") or {}
    rows: list[tuple[str, ...]] = [
        (label, f"{evaluation[key]:.4f}")
        for key, label in (("loss", "loss"), ("accuracy", "accuracy"), ("bits_per_byte", "bits per byte"))
        if evaluation.get(key) is not None
    ]
    rows = rows or [("evaluation", "none was made")]
    if evaluation.get("blocks"):
        rows.append(("evaluated on", f"{evaluation['blocks']:,} blocks, {evaluation.get('tokens') or 0:,} tokens"))
    if report.get("tokens_per_second"):
        rows.append(("training tokens per second", f"{report['tokens_per_second']:,.0f}"))
    if report.get("mfu"):
        rows.append(("model FLOPs utilisation", f"{100 * report['mfu']:.1f} % of the measured matmul peak"))
    return table(("measure", "value"), rows) + f"\n\nThe evaluation: {EVALUATION}"


def glue_section(scores: Sequence[GlueScore]) -> str:
    """GLUE in points of 100, as its tables have it."""
    rows = [
        (score.task, score.metric, score.split, f"{100 * score.value:.1f}", str(score.seeds or "")) for score in scores
    ]
    head = ("task", "metric", "split", "score x 100", "median of seeds")
    return "Fine-tuned on each task:\n\n" + table(head, rows)


def budget(report: Mapping[str, Any]) -> str:
    shares = report.get("shares") or {}
    whole = sum(shares.values()) or 1.0
    rows = [(key.replace("_", " "), f"{value:,.1f}", f"{100 * value / whole:.1f}") for key, value in shares.items()]
    return table(("share", "seconds", "percent"), rows)


def planned_section(report: Mapping[str, Any]) -> str:
    """What `budget_trainer.plan` had promised beside what came of it; empty where there was no plan."""
    plan = report.get("planned") or {}
    rows = [
        (name.replace("_", " "), f"{pair['planned']:,.1f}", f"{pair['did']:,.1f}")
        for name, pair in plan.items()
        if isinstance(pair, Mapping) and pair.get("did") is not None
    ]
    if not rows:
        return ""
    where = "" if plan.get("same_machine") else "\n\nThe plan was made on another machine."
    return table(("planned and did", "planned", "did"), rows) + where


def recipe(report: Mapping[str, Any]) -> str:
    shown = fence(dump_yaml(public(report.get("recipe") or {})).rstrip(), "yaml")
    return f"<details><summary>Every argument of the run</summary>\n\n{shown}\n\n</details>"


def environment(report: Mapping[str, Any]) -> str:
    hardware = report.get("hardware") or {}
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware.get("gpus") or []) or "none"
    rows: list[tuple[str, ...]] = [
        ("CPU", f"{hardware.get('cpu', 'unknown')}, {hardware.get('cores', '?')} cores"),
        ("GPUs", gpus),
        ("processes", f"{report.get('world_size') or 1} ({report.get('engine') or 'plain'})"),
    ]
    rows += [(key.replace("_", "-"), str(value)) for key, value in (report.get("versions") or {}).items()]
    rows.append(("commit of budget-trainer", str(report.get("git_commit") or "not a git checkout")))
    return table(("what", "value"), rows)


def data_section(report: Mapping[str, Any]) -> str:
    """Where the text came from, as far as the manifest of the data folder says."""
    described = report.get("data") or {}
    if not described.get("sources"):
        return "What text the model was trained on was not recorded."
    parts = [table(("source", "form", "documents", "MB of text"), report_module.rows(described))]
    counts = [
        f"{described[key]:,} {unit}"
        for key, unit in (("documents", "documents"), ("tokens", "tokens"), ("rows", "blocks"))
        if described.get(key)
    ]
    dropped: dict[str, int] = {}
    for source in described["sources"]:
        for reason, count in (source.get("dropped") or {}).items():
            dropped[reason] = dropped.get(reason, 0) + int(count)
    text = f"Trained on {', '.join(counts)} ({inline(described.get('packing', ''))})" if counts else ""
    text += (
        f"; left out: {', '.join(f'{count:,} {inline(reason)}' for reason, count in dropped.items())}"
        if dropped
        else ""
    )
    if described.get("validation_text"):
        text += f". Held out: {inline(described['validation_text'])}"
    elif described.get("validation_fraction"):
        text += f". Held out for the evaluation: {100 * described['validation_fraction']:g} % of the documents"
    parts.append(text + ".")
    parts.append("The text keeps the licences and rights of its sources, which the data folder does not record.")
    return "\n\n".join(parts)


def licence(license: str) -> str:
    if license == "unknown":
        return "Whoever published these weights has not stated a licence for them: ask before you use them."
    return f"The weights: {inline(license)}."


def limitations(report: Mapping[str, Any]) -> str:
    length = (report.get("data") or {}).get("block_size")
    points = [
        "It fills in masked tokens and is meant to be fine-tuned; it does not write text or follow instructions.",
        "It repeats the facts, errors and prejudices of the text it was trained on; none of these were measured.",
        "Loss and accuracy above are on text of the same sources; other text, and other languages, will be worse.",
    ]
    if length:
        points.insert(
            1, f"It was trained on blocks of {length} tokens: what it does with longer input was not measured."
        )
    if not (report.get("evaluation") or {}).get("blocks"):
        points = [point for point in points if not re.match("Loss and accuracy", point)]
    return "\n".join(f"- {point}" for point in points)


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
    body = [f"# {inline(name)}", summary(report, classifier)]
    if picture:
        body.append("![Loss, learning rate, throughput and where the budget went](run_report.png)")
    how = classifier_usage(path) if classifier else usage(path, revisions)
    body.append(f"## How to use it\n\n{how}")
    body += _of_run(report, scores)
    if not classifier:
        body.append(f"## Data\n\n{data_section(report)}")
    body.append(f"## Licence\n\n{licence(license)}")
    if not classifier:
        body.append(f"## Limitations\n\n{limitations(report)}")
    body.append("## Citation\n\nThe method is that of this paper:\n\n" + fence(CITATION, "bibtex"))
    return _seal(f"---\n{head}\n---\n\n" + "\n\n".join(body) + "\n")


def _of_run(report: Mapping[str, Any], scores: Sequence[GlueScore]) -> list[str]:
    """What is known of a model whose training left a report, and its scores."""
    glue = [f"## GLUE\n\n{glue_section(scores)}"] if scores else []
    if "shares" not in report:
        return glue
    planned = planned_section(report)
    return [
        f"## Results\n\n{results(report)}",
        *glue,
        f"## Where the budget went\n\n{budget(report)}" + (f"\n\n{planned}" if planned else ""),
        f"## Recipe\n\n{recipe(report)}",
        f"## Hardware and versions\n\n{environment(report)}",
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
        f'of {inline(path)}; this one loads with `revision="{inline(mark)}"`.\n\n## Licence\n\n{licence(license)}\n'
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
