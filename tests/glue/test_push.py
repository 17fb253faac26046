"""The model of a run on the Hub, and the scores of a suite in the card of what it scored."""

import json
import shutil
import sys

import pytest
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from tests.conftest import run, words
from tests.hub.conftest import NATIVE, local
from tests.hub.server import TOKEN, Hub


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.close()


def pushed(hub, options, **changes):
    command = [sys.executable, "finetune_glue.py", *words({**options, "push_to_hub": "true", **changes})]
    return run(command, env=hub.environment())


def test_a_fine_tuned_model_is_pushed(hub, options, tmp_path):
    done = pushed(hub, options, hub_model_id="mini-mrpc", license="mit", price_per_hour=3600)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    result = json.loads((out / "result.json").read_text())
    assert result["hub"]["error"] is None and result["hub"]["repo_id"] == "ada/mini-mrpc"
    files = hub.repos["ada/mini-mrpc"].files()
    assert {name: files[name] for name in NATIVE} == local(out / "model", *NATIVE)
    card = ModelCard(files["README.md"].decode())
    head, used = card.data, json.loads(files["glue_report.json"])["fine_tuning"]
    assert used["energy"] == result["energy"] and used["hardware"] == result["environment"]["hardware"]
    assert "## Energy and hardware" in card.text
    assert f"cost {result['seconds']['total']:.2f} at 3600 per hour" in card.text
    assert (head.license, head.pipeline_tag) == ("mit", "text-classification")
    assert TOKEN not in done.stdout + done.stderr and TOKEN not in (out / "result.json").read_text()


def test_a_push_that_fails_changes_nothing_else(hub, options, tmp_path):
    hub.failing = [["whoami", 99, 401]]
    done = pushed(hub, options, num_train_epochs=1)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert done.returncode == 0 and result["hub"]["error"] and result["metrics"]["dev"]["accuracy"] >= 0
    assert result["hub"]["repeat"].startswith("python -m budget_trainer.publish ")
    assert "--hub_model_id out" in result["hub"]["repeat"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"push_to_hub": "true", "seeds": "1,2"}, "push_to_hub: a suite scores a model and keeps none; publish that"),
        ({"push_to_hub": "true", "save_model": "false"}, "push_to_hub: the run keeps no model; let it train"),
        ({"hub_model_id": "me/it"}, "hub_model_id: given without push_to_hub"),
        ({"push_to_hub": "true", "hub_model_id": "no name"}, "hub_model_id: "),
        ({"push_to_hub": "true", "hub_strategy": "end"}, "hub_strategy: not used here (command line); the model is"),
        ({"push_to_hub": "true", "license": "none at all"}, "license: "),
    ],
)
def test_what_is_known_before_it_begins(finetune, error, monkeypatch, tmp_path, changes, expected):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert finetune(**changes)[0] == 2
    assert error().startswith(expected) and not (tmp_path / "out").exists()


def published(hub, *arguments):
    return run([sys.executable, "-m", "budget_trainer.publish", *arguments], env=hub.environment())


def scores_of(files):
    """What the Hub reads: `model-index` in the first lines of the card that is stored."""
    return [
        (one.dataset_config, one.dataset_split, one.metric_type, one.metric_value)
        for one in ModelCard(files["README.md"].decode()).data.eval_results or ()
    ]


def test_the_scores_of_a_suite_go_into_the_card_of_its_model(hub, tiny_model, tmp_path):
    """And stay there without the flag, for as long as the weights do."""
    suite, model = tmp_path / "suite", tmp_path / "model"
    suite.mkdir()
    shutil.copytree(tiny_model, model)
    score = {"task": "RTE", "metric": "accuracy", "value": 0.61, "split": "validation", "seeds": 5}
    (suite / "glue_report.json").write_text(json.dumps({"scores": [score]}))
    (suite / "glue_report.md").write_text("# GLUE\n")
    words = [model, "--hub_model_id", "scored"]
    assert published(hub, *words, "--glue_report", suite).returncode == 0
    repo, expected = hub.repos["ada/scored"], [("rte", "validation", "accuracy", 0.61)]
    first = repo.files()
    assert scores_of(first) == expected and "| RTE | accuracy |" in first["README.md"].decode()
    assert json.loads(first["glue_report.json"])["scores"] == [score] and first["glue_report.md"] == b"# GLUE\n"

    commits = len(repo.history["main"])
    assert published(hub, *words).returncode == 0
    assert repo.files() == first and len(repo.history["main"]) == commits, "nothing changed, so nothing is sent"
    assert published(hub, *words, "--license", "mit").returncode == 0
    again = repo.files()
    assert scores_of(again) == expected and ModelCard(again["README.md"].decode()).data.license == "mit"

    weights = model / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert published(hub, *words, "--overwrite").returncode == 0
    assert scores_of(repo.files()) == [] and not [name for name in repo.files() if name.startswith("glue_report")]


def test_scores_that_cannot_be_read(hub, tiny_model, tmp_path):
    words = [tiny_model, "--hub_model_id", "scored"]
    done = published(hub, *words, "--glue_report", tmp_path / "nothing")
    assert done.returncode == 2 and "error: glue_report: " in done.stderr and not hub.repos
    assert published(hub, *words).returncode == 0
    repo = hub.repos["ada/scored"]
    repo.put("main", {**repo.files(), "glue_report.json": b"[5]"})
    done = published(hub, *words)
    assert done.returncode == 2
    assert f"error: glue_report.json: {hub.url}/ada/scored, main, is not a list of" in done.stderr
