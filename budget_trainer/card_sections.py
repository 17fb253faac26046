"""The sections of a model card, each a function of the run's report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from budget_trainer import data_statement
from budget_trainer.card_markdown import dump_yaml, duration, public
from budget_trainer.card_scores import GlueScore
from budget_trainer.markdown import fence, inline, table

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
    how = f" in {duration(report.get('used_seconds') or 0)}"
    how += f" of a wall-clock budget of {duration(budget)}" if budget and math.isfinite(budget) else ""
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


def glue(scores: Sequence[GlueScore]) -> str:
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


def planned(report: Mapping[str, Any]) -> str:
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


def data(report: Mapping[str, Any]) -> str:
    """Where the text came from, as far as the manifest of the data folder says."""
    described = report.get("data") or {}
    if not described.get("sources"):
        return "What text the model was trained on was not recorded."
    parts = [table(("source", "form", "documents", "MB of text"), data_statement.rows(described))]
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
