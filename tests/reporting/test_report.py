"""The report: progress lines, JSON, the picture and the model card."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_json_atomic
from budget_trainer.fill_mask import fill_mask
from budget_trainer.reporting.card import card_text, public_report, sealed, write_model_card
from budget_trainer.reporting.report import draw_report, environment, read_progress


def line(job: int, step: int, **more: Any) -> dict[str, Any]:
    return {"job": job, "elapsed_seconds": 2.0 * step, "share": step / 100, "step": step, "loss": 3.0, **more}


def report(**more: Any) -> dict[str, Any]:
    shares = {"setup": 9.0, "compile": 20.0, "train": 250.0, "data_wait": 0.5, "evaluate": 14.0, "save": 1.5}
    return {
        "budget_seconds": 300.0,
        "used_seconds": 295.0,
        "shares": shares,
        "steps": 400,
        "tokens": 819200,
        "tokens_per_second": 2777.0,
        "evaluation": {"loss": 2.91, "accuracy": 0.41, "bits_per_byte": 2.31, "tokens": 18000, "blocks": 1000},
        "world_size": 2,
        "engine": "ddp",
        "parameters": 11_223_344,
        "model_type": "modernbert",
        "recipe": {"learning_rate": 1e-3, "total_training_time": "5m", "curve": "linear", "nothing": None},
        **environment(),
        **more,
    }


def write(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines) + tail, encoding="utf-8")
    return path


def test_progress_of_one_job_is_read_in_order(tmp_path: Path) -> None:
    lines = [line(1, 10), line(1, 20), line(1, 20, evaluation={"loss": 2.0})]
    assert read_progress(write(tmp_path / "progress.jsonl", lines)) == lines


def test_a_later_job_supersedes_the_steps_it_repeats(tmp_path: Path) -> None:
    first = [line(1, 10), line(1, 20), line(1, 30), line(1, 30, evaluation={"loss": 2.0})]
    second, third = [line(2, 25), line(2, 35)], [line(3, 26)]
    path = write(tmp_path / "progress.jsonl", first + second + third)
    assert [(entry["job"], entry["step"]) for entry in read_progress(path)] == [(1, 10), (1, 20), (2, 25), (3, 26)]


@pytest.mark.parametrize("after", [[], [line(2, 11)]], ids=["last line", "last line of a job"])
def test_a_line_cut_by_a_crash_is_ignored(tmp_path: Path, after: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "progress.jsonl", [line(1, 10)], tail='{"job": 1, "elap')
    if after:
        path.write_text(path.read_text() + "\n" + json.dumps(after[0]) + "\n")
    assert read_progress(path) == [line(1, 10), *after]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "progress.jsonl", [line(1, 10)], tail="nonsense\n" + json.dumps(line(1, 20)) + "\n")
    with pytest.raises(InputError, match=r"progress\.jsonl: line 2"):
        read_progress(path)


def test_environment_names_versions_and_hardware() -> None:
    found = environment()
    assert {"python", "torch", "transformers"} <= set(found["versions"])
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_gib"] > 0
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["git_commit"])


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        (report(), [line(1, step, learning_rate=1e-3, tokens_per_second=2e4) for step in range(1, 50)]),
        (report(evaluation=None, budget_seconds=math.inf, parameters=None), [line(1, 1), line(1, 2, loss=None)]),
        ({}, []),
        (
            report(model_type="$odd_{name"),
            [line(1, 5, evaluation={"loss": math.nan}), line(1, 6, evaluation={"loss": 2})],
        ),
    ],
    ids=["usual", "two lines, no evaluation", "nothing", "odd values"],
)
def test_a_picture_is_drawn_of_any_run(tmp_path: Path, run: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    draw_report(run, lines, tmp_path / "run_report.png")
    assert (tmp_path / "run_report.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_run_is_drawn_quickly(tmp_path: Path) -> None:
    lines = [line(1, step, learning_rate=1e-3, tokens_per_second=2e4) for step in range(100_000)]
    begin = time.process_time()
    draw_report(report(), lines, tmp_path / "run_report.png")
    assert time.process_time() - begin < 20


def card(folder: Path, run: dict[str, Any], **options: Any) -> tuple[dict[str, Any], str]:
    """The card's front matter, parsed, and its body."""
    out = folder.parent
    write_json_atomic(out / "run_report.json", run)
    draw_report(run, [], out / "run_report.png")
    folder.mkdir()
    text = write_model_card(
        folder, run, run_report=out / "run_report.json", picture=out / "run_report.png", **options
    ).read_text()
    parsed = ModelCard(text)  # the Hub's own reading of it
    return parsed.data.to_dict(), parsed.text


def test_the_card_carries_figures_recipe_and_picture(tmp_path: Path) -> None:
    head, body = card(tmp_path / "final", report(), license="apache-2.0", language=["en"])
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "fill-mask"
    assert head["license"] == "apache-2.0" and head["language"] == ["en"] and "datasets" not in head
    assert "| bits per byte | 2.3100 |" in body and "| compile | 20.0 | 6.8 |" in body
    assert "(run_report.png)" in body and (tmp_path / "final" / "run_report.png").is_file()
    assert "(run_report.json)" in body and (tmp_path / "final" / "run_report.json").is_file()
    recipe = re.search(r"```yaml\n(.*?)```", body, re.DOTALL)
    assert recipe and yaml.safe_load(recipe.group(1)) == {
        "learning_rate": 1e-3,
        "total_training_time": "5m",
        "curve": "linear",
    }


def test_the_card_stays_valid_whatever_the_data_say(tmp_path: Path) -> None:
    odd = "a | b\n---\n```\n<script>*x*</script>: {"
    run = report(
        model_type=odd, recipe={"note": odd, "hub_token": "hf_secret", "data_dir": "/home/me", "n": [1, Path("p")]}
    )
    run["hardware"] = {"cpu": odd, "cores": 2, "gpus": [{"name": odd, "memory_gib": 8}]}
    head, body = card(tmp_path / "final", run, name=odd)
    assert head["tags"][-1] == " ".join(odd.split())
    assert "hf_secret" not in body and "/home/me" not in body and "<script>" not in body.split("## Recipe")[0]
    fence = re.search(r"^(`{4,})yaml\n(.*?)\n\1$", body, re.DOTALL | re.MULTILINE)
    assert fence and yaml.safe_load(fence.group(2)) == {"note": odd, "n": [1, "p"]}
    rows = [row for row in body.splitlines() if row.startswith("| CPU")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 3


def test_the_card_of_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    head, body = card(tmp_path / "final", {"shares": {}, "budget_seconds": math.inf})
    assert head["license"] == "unknown" and "has not stated a licence" in body
    assert "| evaluation | none was made |" in body


def test_a_card_tells_whether_it_was_edited() -> None:
    text = card_text(report(), name="mini")
    assert sealed(text) and sealed(card_text({}, name="mini"))
    assert not sealed(text + "Thanks.\n") and not sealed(text.replace("mini", "maxi")) and not sealed("# mini\n")


def test_the_report_beside_the_card_is_for_everybody() -> None:
    private = {"data_dir": "/home/me/d", "hub_token": "hf_secret", "deepspeed": "/home/me/zero.json", "nothing": None}
    run = report(
        recipe={**private, "learning_rate": 1e-3}, hub={"error": None}, data={"sources": [{"name": "/home/me/a.txt"}]}
    )
    shown = json.loads(public_report(run))
    assert shown["recipe"] == {"deepspeed": "zero.json", "learning_rate": 1e-3} and "hub" not in shown
    assert shown["data"] == {"sources": [{"name": "a.txt"}]} and shown["evaluation"] == run["evaluation"]


def test_the_card_says_what_the_model_was_trained_on() -> None:
    sources = [{"name": f"part-{n}.txt", "kind": "text", "documents": 10, "text_bytes": 2_000_000} for n in range(30)]
    sources[0]["dropped"] = {"redirect": 3}
    data = {
        "sources": sources,
        "documents": 300,
        "tokens": 10**6,
        "rows": 99,
        "packing": "packed",
        "validation_fraction": 0.01,
    }
    text = card_text(report(data=data), name="mini")
    assert "| part-0.txt | text | 10 | 2.0 |" in text and "| 10 more |  | 100 | 20.0 |" in text
    assert "Trained on 300 documents, 1,000,000 tokens, 99 blocks (packed); left out: 3 redirect. Held out" in text
    assert "was not recorded" in card_text(report(), name="mini")


@pytest.mark.parametrize("text", ["no mask", "[MASK] and [MASK]"])
def test_fill_mask_wants_one_mask(text: str) -> None:
    with pytest.raises(InputError, match="exactly once"):
        fill_mask("nowhere", [text])
