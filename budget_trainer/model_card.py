"""The model card of a finished run: README.md beside the weights, in the form that the Hub reads. A leaf."""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PRIVATE = re.compile(r"token|password|secret|api_key|_dir$|_file$")  # of this machine or person, not of the recipe
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


def write_model_card(
    folder: Path,
    report: Mapping[str, Any],
    *,
    run_report: Path,
    picture: Path,
    name: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> Path:
    """Write `folder`/README.md from the run's report, and copy `run_report` and `picture` beside it.

    `license`, `language` and `datasets` are Hub identifiers; what is not given is left out. Returns the card's path.
    Raises OSError where a file cannot be read or written.
    """
    for source, target in ((run_report, "run_report.json"), (picture, "run_report.png")):
        if Path(source).resolve() != (folder / target).resolve():
            shutil.copyfile(source, folder / target)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "fill-mask"}
    head |= {"license": license} if license else {}
    head |= {"language": list(language)} if language else {}
    head |= {"datasets": list(datasets)} if datasets else {}
    kind = " ".join(str(report.get("model_type") or "").split())
    head["tags"] = ["masked-lm", "pretraining", "time-budget"] + ([kind] if kind else [])
    title = name or folder.resolve().parent.name
    card = folder / "README.md"
    card.write_text(f"---\n{_yaml(head)}---\n\n{_body(title, report)}", encoding="utf-8")
    return card


def _body(title: str, report: Mapping[str, Any]) -> str:
    recipe = {key: value for key, value in (report.get("recipe") or {}).items() if value is not None}
    recipe = {key: value for key, value in recipe.items() if not PRIVATE.search(key)}
    sections = [
        f"# {_text(title)}",
        _summary(report),
        "![Loss, learning rate, throughput and where the budget went](run_report.png)",
        "## How to use it\n\n" + _fence(_usage(), "python"),
        "## Results\n\n" + _table(("measure", "value"), _results(report)) + f"\n\nThe evaluation: {EVALUATION}",
        "## Where the budget went\n\n" + _table(("share", "seconds", "percent"), _shares(report)),
        "## Recipe\n\n<details><summary>Every argument of the run</summary>\n\n"
        + _fence(_yaml(recipe).rstrip(), "yaml")
        + "\n\n</details>",
        "## Hardware and versions\n\n" + _table(("what", "value"), _environment(report)),
        "All of it, machine-readable: [run_report.json](run_report.json).",
        "## Citation\n\nThe method is that of this paper:\n\n" + _fence(CITATION, "bibtex"),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(report: Mapping[str, Any]) -> str:
    size, budget = report.get("parameters"), report.get("budget_seconds")
    what = f"A {_text(report.get('model_type') or 'Transformers')} masked language model"
    what += f" with {size / 1e6:,.1f} million parameters" if size else ""
    how = f" in {_duration(report.get('used_seconds') or 0)}"
    how += f" of a wall-clock budget of {_duration(budget)}" if budget and math.isfinite(budget) else ""
    steps, tokens = report.get("steps") or 0, report.get("tokens") or 0
    origin = "pre-trained from scratch"
    if (report.get("recipe") or {}).get("model_name_or_path"):
        origin = "pre-trained further from existing weights"
    return f"{what}, {origin}{how}: {steps:,} steps, {tokens:,} token positions."


def _usage() -> str:
    return """import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

path = "."  # this folder, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForMaskedLM.from_pretrained(path)
inputs = tokenizer(f"The capital of France is {tokenizer.mask_token}.", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
best = logits[inputs["input_ids"] == tokenizer.mask_token_id].topk(5).indices[0]
print(tokenizer.convert_ids_to_tokens(best))"""


def _results(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
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
    return rows


def _shares(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    shares = report.get("shares") or {}
    whole = sum(shares.values()) or 1.0
    return [(key.replace("_", " "), f"{value:,.1f}", f"{100 * value / whole:.1f}") for key, value in shares.items()]


def _environment(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    hardware = report.get("hardware") or {}
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware.get("gpus") or []) or "none"
    rows: list[tuple[str, ...]] = [
        ("CPU", f"{hardware.get('cpu', 'unknown')}, {hardware.get('cores', '?')} cores"),
        ("GPUs", gpus),
    ]
    rows.append(("processes", f"{report.get('world_size') or 1} ({report.get('engine') or 'plain'})"))
    rows += [(key.replace("_", "-"), str(value)) for key, value in (report.get("versions") or {}).items()]
    return [*rows, ("commit of budget-trainer", str(report.get("git_commit") or "not a git checkout"))]


def _duration(seconds: float) -> str:
    if seconds < 180:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:,.1f} minutes" if seconds < 6 * 3600 else f"{seconds / 3600:,.1f} hours"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value: Any) -> str:
    """One line in which nothing is Markdown or HTML, whatever the data say."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(value).split()))


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True, width=1000)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _fence(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
