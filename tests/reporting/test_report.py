"""The report: progress lines, the picture and the model card."""

import json
import math
import re
import time
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_json_atomic
from budget_trainer.fill_mask import _fill_mask
from budget_trainer.reporting.card import card_text, is_unedited, write_model_card
from budget_trainer.reporting.report import _draw_report, _read_progress, environment, print_summary, public_report


def line(job, step, **more):
    return {"job": job, "elapsed_seconds": 2.0 * step, "share": step / 100, "step": step, "loss": 3.0, **more}


def report(**more):
    return {
        "budget_seconds": 300.0,
        "used_seconds": 295.0,
        "shares": {"setup": 9.0, "compile": 20.0, "train": 250.0, "data_wait": 0.5, "evaluate": 14.0, "save": 1.5},
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


EVALUATION = {"evaluation": {"loss": 2.0}}


def test_shorter_budgets_are_told(capsys, tmp_path):
    grown = report(earlier_budgets=["2m", "3m"], overrun_seconds=0.0)
    print_summary(grown, tmp_path)
    assert "given more time: it was finished at 2m, 3m before\n" in capsys.readouterr().out
    assert "(finished at 2m, 3m before, and given more time)" in card_text(grown, name="x")
    print_summary(report(overrun_seconds=0.0), tmp_path)
    assert "more time" not in capsys.readouterr().out and "more time" not in card_text(report(), name="x")


@pytest.mark.parametrize(
    ("lines", "tail", "kept"),
    [
        ([line(1, 10), line(1, 20), line(1, 20, **EVALUATION)], "", [0, 1, 2]),
        # a later job repeats the steps after its checkpoint
        ([line(1, 10), line(1, 20), line(1, 30), line(2, 25), line(2, 35), line(3, 26)], "", [0, 1, 3, 5]),
        # a line that a crash has cut: the last one, or the last of a job
        ([line(1, 10)], '{"job": 1, "elap', [0]),
        ([line(1, 10), '{"job": 1, "elap', line(2, 11)], "", [0, 2]),
        ([line(1, 10), "nonsense", "7", "{}", "\0" * 50, line(1, 20)], "", [0, 5]),  # a bad place of the disk
        ([], "", []),
    ],
)
def test_progress(tmp_path, lines, tail, kept):
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines) + tail)
    assert _read_progress(path) == [lines[index] for index in kept]
    path.unlink()
    assert _read_progress(path) == []


def test_environment_names_versions_and_hardware():
    found = environment()
    assert {"python", "torch", "transformers"} <= set(found["versions"])
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["memory_gib"] > 0
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["git_commit"])


MANY = [line(1, step, learning_rate=1e-3, tokens_per_second=2e4) for step in range(100_000)]
ODD = [line(1, 5, evaluation={"loss": math.nan}), line(1, 6, evaluation={"loss": 2})]
UNFINISHED = {"evaluation": None, "budget_seconds": math.inf, "parameters": None}


PICTURES = {
    "long": (report(), MANY),
    "two lines, no evaluation": (report(**UNFINISHED), [line(1, 1), line(1, 2, loss=None)]),
    "nothing": ({}, []),
    "odd values": (report(model_type="$odd_{name"), ODD),
}


@pytest.mark.parametrize(("run", "lines"), PICTURES.values(), ids=PICTURES)
def test_a_picture_is_drawn_of_any_run(tmp_path, run, lines):
    begin = time.process_time()
    _draw_report(run, lines, tmp_path / "run_report.png")
    assert (tmp_path / "run_report.png").read_bytes().startswith(b"\x89PNG")
    assert time.process_time() - begin < 20


def test_the_card_carries_figures_recipe_and_picture(tmp_path):
    final = tmp_path / "final"
    final.mkdir()
    write_json_atomic(tmp_path / "run_report.json", report(hub={"error": None}))
    (tmp_path / "run_report.png").write_bytes(b"\x89PNG")
    card = ModelCard(write_model_card(final, license="apache-2.0", language=["en"]).read_text())  # as the Hub reads it
    head, body = card.data.to_dict(), card.text
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "fill-mask"
    assert head["license"] == "apache-2.0" and head["language"] == ["en"] and "datasets" not in head
    assert body.startswith(f"\n# {tmp_path.name}".replace("_", "\\_"))
    assert "in 4m55s of a wall-clock budget of 5m" in body
    assert "| bits per byte | 2.3100 |" in body and "| compile | 20.0 | 6.8 |" in body
    assert "(run_report.png)" in body and (final / "run_report.png").is_file()
    assert "(run_report.json)" in body and "hub" not in json.loads((final / "run_report.json").read_text())
    recipe = re.search(r"```yaml\n(.*?)```", body, re.DOTALL)
    expected = {"learning_rate": 1e-3, "total_training_time": "5m", "curve": "linear"}
    assert recipe and yaml.safe_load(recipe[1]) == expected


def test_the_card_stays_valid_whatever_the_data_say():
    odd = "a | b\n---\n```\n<script>*x*</script>: { {{ 1 }}"
    recipe = {"note": odd, "hub_token": "hf_secret", "data_dir": "/home/me", "p": Path("/h/p")}
    hardware = {"cpu": odd, "cores": 2, "gpus": [{"name": odd, "memory_gib": 8}]}
    run = report(model_type=odd, recipe=recipe, hardware=hardware)
    card = ModelCard(card_text(run, name=odd))
    assert card.data.to_dict()["tags"][-1] == " ".join(odd.split())
    for part in ("hf_secret", "/home/me", "<script>"):
        assert part not in card.text.split("## Recipe")[0] + card.text.split("</details>")[1]
    fence = re.search(r"^(`{4,})yaml\n(.*?)\n\1$", card.text, re.DOTALL | re.MULTILINE)
    assert fence and yaml.safe_load(fence[2]) == {"note": odd, "p": "p"}
    rows = [row for row in card.text.splitlines() if row.startswith("| CPU")]
    assert len(rows) == 1 and len(re.findall(r"(?<!\\)\|", rows[0])) == 3


SOURCES = [{"name": f"part-{n}.txt", "kind": "text", "documents": 10, "text_bytes": 2_000_000} for n in range(30)]
DATA = {"sources": [{**SOURCES[0], "dropped": {"redirect": 3}}, *SOURCES[1:]], "documents": 300, "tokens": 10**6}
DATA |= {"rows": 99, "packing": "packed", "validation_fraction": 0.01, "block_size": 128}
SHOWN = ["| part-0.txt | text | 10 | 2.0 |", "| 10 more |  | 100 | 20.0 |", "trained on blocks of 128 tokens"]
SHOWN += ["Trained on 300 documents, 1,000,000 tokens, 99 blocks (packed). Left out: 3 redirect. Held out for"]
PLANNED = {"same_machine": False, "tokens": {"planned": 10, "did": 9}, "steps": {"planned": 1, "did": None}}
BARE = {"shares": {}, "budget_seconds": math.inf}


@pytest.mark.parametrize(
    ("run", "parts", "absent"),
    [
        (BARE, ["| evaluation | none was made |", "has not stated a licence"], []),
        (report(), ["was not recorded", "of the same sources"], ["longer input", "planned and did"]),
        (report(data=DATA), SHOWN, []),
        (report(planned=PLANNED), ["| tokens | 10.0 | 9.0 |", "The plan was made on another machine."], ["| steps"]),
    ],
)
def test_sections_of_the_card(run, parts, absent):
    text = card_text(run, name="mini")
    assert not [part for part in parts if part not in text] and not [part for part in absent if part in text]


def test_a_card_knows_whether_it_was_edited():
    text = card_text(report(), name="mini")
    assert is_unedited(text) and is_unedited(card_text({}, name="mini", mark="finetune-50"))
    for edited in (text + "Thanks.\n", text.replace("mini", "maxi"), "# mini\n", ""):
        assert not is_unedited(edited)


def test_the_report_beside_the_card_is_for_everybody():
    private = {"data_dir": "/home/me/d", "hub_token": "hf_secret", "deepspeed": "/home/me/zero.json", "nothing": None}
    run = report(recipe={**private, "learning_rate": 1e-3}, hub={}, data={"sources": [{"name": "/home/me/a.txt"}]})
    shown = json.loads(public_report(run))
    assert shown["recipe"] == {"deepspeed": "zero.json", "learning_rate": 1e-3} and "hub" not in shown
    assert shown["data"] == {"sources": [{"name": "a.txt"}]} and shown["evaluation"] == run["evaluation"]


@pytest.mark.parametrize("text", ["no mask", "[MASK] and [MASK]"])
def test_fill_mask_wants_one_mask(text):
    with pytest.raises(InputError, match="exactly once"):
        _fill_mask("nowhere", [text])
