"""Publishing, with the real client against a Hub on loopback: what goes over the wire, and what must never."""

import json
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard, constants, set_client_factory
from huggingface_hub.utils import _http
from safetensors.numpy import load
from transformers import BertForSequenceClassification

from budget_trainer.reporting import hub as hub_module
from budget_trainer.reporting import publish
from budget_trainer.reporting.hub import redacted
from tests.conftest import run, spawn, wait_for
from tests.hub.conftest import NATIVE, local, write_model
from tests.hub.server import READ_TOKEN, TOKEN, Hub

GLUE = [
    {"task": "CoLA", "metric": "matthews_correlation", "value": 0.571, "split": "validation", "seeds": 5},
    {"task": "STS-B", "metric": "spearmanr", "value": 88.2},
    {"task": "MNLI-mm", "metric": "accuracy", "value": 0.84},
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The Hub on loopback, and this process's client turned to it."""
    server = Hub()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    changed = {"HUGGINGFACE_CO_URL_TEMPLATE": template, "ENDPOINT": server.url, "HF_HUB_DISABLE_XET": True}
    for name, value in {**changed, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": str(tmp_path / "no-token")}.items():
        monkeypatch.setattr(constants, name, value)
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", impatient)  # the client's own pauses
    monkeypatch.setattr(publish, "PAUSE_SECONDS", (0.0, 0.0))
    yield server
    server.close()
    set_client_factory(_http.default_client_factory)


@pytest.fixture
def call(capfd):
    """The command in this process: exit code, output, errors; nowhere a token."""

    def call(*words):
        code = publish.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "hf_" not in out + err
        return code, out, [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]

    return call


def test_a_run_becomes_a_repository_byte_for_byte(hub, folder, call):
    report = {"scores": GLUE, "model": "/home/ada/runs/mini/final", "absent": {"QNLI": "in and/or https://x.org/a"}}
    (folder / "glue_report.json").write_text(json.dumps(report))
    flags = "--hub_model_id mini --hub_private_repo --license mit --language en,de".split()
    code, out, _ = call(folder, *flags)
    assert code == 0 and out.strip() == f"{hub.url}/ada/mini"
    repo = hub.repos["ada/mini"]
    files = repo.files()
    assert repo.private and set(repo.branches) == {"main", "finetune-12.5", "finetune-50"}
    made_here = {"README.md", "run_report.json", "glue_report.json", ".gitattributes"}
    assert set(files) == made_here | {*NATIVE, "run_report.png"}
    assert {name: files[name] for name in NATIVE} == local(folder / "final", *NATIVE)
    assert files["run_report.png"] == (folder / "run_report.png").read_bytes()
    assert load(files["model.safetensors"]), "it opens"
    for mark in ("finetune-12.5", "finetune-50"):
        assert set(repo.files(mark)) == {".gitattributes", "README.md", *NATIVE}
        assert {name: repo.files(mark)[name] for name in NATIVE} == local(folder / mark, *NATIVE)
        assert f'revision="{mark}"' in repo.files(mark)["README.md"].decode()
    everything = [data for files in repo.commits.values() for data in files.values()]
    assert not any(b"/home/ada" in data or TOKEN.encode() in data for data in everything)
    assert not [one for one in hub.requests if "pickle" in one[1] or one[1].endswith(".bin")]
    assert json.loads(files["glue_report.json"]) == {**report, "model": "final"}
    assert "hub_token" not in json.loads(files["run_report.json"])["recipe"]

    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.pipeline_tag) == ("mit", ["en", "de"], "fill-mask")
    assert card.data.model_name == "mini"
    results = {
        (one.dataset_config, one.dataset_split, one.metric_type, one.metric_value) for one in card.data.eval_results
    }
    pretrained = {("loss", 2.91), ("accuracy", 0.41), ("bits_per_byte", 2.31)}
    glue = {("cola", "validation", "matthews_correlation", 0.571), ("stsb", "validation", "spearmanr", 0.882)}
    glue |= {("mnli", "validation_mismatched", "accuracy", 0.84)}
    assert results == glue | {(None, "validation", *pair) for pair in pretrained}
    titles = ("How to use it", "Results", "GLUE", "Where the budget went", "Recipe", "Hardware", "Data", "Licence")
    parts = [f"## {title}" for title in (*titles, "Limitations", "Citation")]
    parts += ["| CoLA | matthews\\_correlation | validation | 57.1 | 5 |", "wikimedia/wikipedia", "`finetune-12.5`"]
    assert not [part for part in parts if part not in card.text]


def test_the_second_call_sends_only_what_changed(hub, folder, call):
    assert call(folder)[0] == 0
    repo = hub.repos["ada/mini"]
    heads = dict(repo.branches)
    for expected in (set(), {"README.md", "glue_report.json"}):
        before = len(hub.requests)
        assert call(folder)[0] == 0
        assert not [one for one in hub.requests[before:] if "/upload/" in one[1]], "the weights are there"
        changed = {name for name, data in repo.files().items() if repo.commits[heads["main"]].get(name) != data}
        assert changed == expected and (repo.branches == heads) == (not expected)
        assert repo.branches["finetune-50"] == heads["finetune-50"]
        (folder / "glue_report.json").write_text(json.dumps(GLUE))
    code, _, errors = call(folder, "--hub_private_repo")
    assert code == 2 and "is there and public; make it private in its settings" in errors[0]


@pytest.mark.parametrize("kind", ["final", "finetune-50", "classifier"])
def test_the_folder_of_one_model(hub, folder, tokenizer, call, kind):
    write_model(folder / "classifier", tokenizer, 0, BertForSequenceClassification)
    assert call(folder / kind, "--hub_model_id", "one")[0] == 0
    repo = hub.repos["ada/one"]
    assert set(repo.branches) == {"main"}
    assert {name: repo.files()[name] for name in NATIVE} == local(folder / kind, *NATIVE)
    task, card = "text-classification" if kind == "classifier" else "fill-mask", repo.files()["README.md"].decode()
    assert f'pipeline("{task}", model="ada/one")' in card and ModelCard(card).data.pipeline_tag == task


def test_a_card_that_a_person_edited_stays(hub, folder, call):
    assert call(folder)[0] == 0
    repo = hub.repos["ada/mini"]
    theirs = repo.files()["README.md"] + b"\nWith thanks to Charles.\n"
    repo.put("main", {**repo.files(), "README.md": theirs})
    (folder / "glue_report.json").write_text(json.dumps(GLUE))
    assert call(folder)[0] == 0
    assert repo.files()["README.md"] == theirs and "glue_report.json" in repo.files()
    assert call(folder, "--overwrite")[0] == 0
    assert b"Charles" not in repo.files()["README.md"]
    own = folder / "final" / "README.md"
    own.write_text("---\nlicense: mit\n---\nMine.\n")
    assert call(folder, "--overwrite")[0] == 0 and repo.files()["README.md"] == own.read_bytes()
    code, _, errors = call(folder, "--license", "mit")
    assert code == 2 and "was edited, so it stays as it is; write licence and language into" in errors[0]


def test_another_model_is_not_written_over(hub, folder, tokenizer, tmp_path, call):
    other = tmp_path / "other"
    write_model(other, tokenizer, 99)
    (other / "merges.txt").write_text("a b\n")
    assert call(other, "--hub_model_id", "mini")[0] == 0
    repo = hub.repos["ada/mini"]
    before = repo.branches["main"]
    code, _, errors = call(folder)
    assert code == 2 and repo.branches["main"] == before
    assert f"hub_model_id: {hub.url}/ada/mini, main, holds another model (model.safetensors differs)" in errors[0]
    assert call(folder, "--overwrite")[0] == 0
    assert repo.files()["model.safetensors"] == (folder / "final" / "model.safetensors").read_bytes()
    assert "merges.txt" not in repo.files() and ".gitattributes" in repo.files(), "nothing of the other is left"
    assert repo.commits[before]["merges.txt"], "git has it"


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access from https://huggingface.co"


@pytest.mark.parametrize(
    ("token", "words", "expected"),
    [
        (READ_TOKEN, [], f"hub_token: the token of ada can only read; {LOG_IN}"),
        ("hf_NobodyKnowsThis", [], "hub_token: the Hub does not accept this token (401); log in with"),
        (TOKEN, ["--hub_token", "hf_NobodyKnowsThis"], "hub_token: the Hub does not accept this token (401)"),
        ("", [], f"hub_token: there is none; {LOG_IN}"),
        (TOKEN, ["--hub_model_id", "m i/ni"], "hub_model_id: 'm i/ni' is not a name on the Hub; write user/name"),
        (TOKEN, ["--license", "My own"], "license: 'My own' is no identifier; use one such as apache-2.0"),
        (TOKEN, ["--hub_tokn", "hf_Nobody"], "command line: unrecognized arguments: --hub_tokn <token>; see"),
        (TOKEN, ["--hub_model_id", "charles/x"], f"hub_token: this token may not write to charles/x (403); {LOG_IN}"),
        ("offline", [], "HF_HUB_OFFLINE: set, so the Hub is not asked for anything; unset it to publish"),
    ],
)
def test_what_is_wrong_is_one_line(hub, folder, call, monkeypatch, token, words, expected):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", token == "offline")
    code, _, errors = call(folder, *words)
    assert code == 2 and len(errors) == 1 and errors[0].startswith(expected), errors
    assert not hub.repos


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("final/config.json", None, "is not a model's folder (no config.json); give a run's --output_dir"),
        ("final/config.json", b"{}", "is not a model's folder (config.json names no model_type)"),
        ("final/config.json", b"{", "is not a model's folder (config.json cannot be read"),
        ("final/config.json", b'{"model_type": "x", "auto_map": {}}', "needs code of its own (auto_map in config.js"),
        ("final/model.safetensors", None, "has no weights as safetensors (only training_args.bin, whose format can"),
        ("final/model.safetensors", b"\x80\x04\x95pickle", "model.safetensors is no complete safetensors file"),
        ("final/model.safetensors", "truncated", "model.safetensors is no complete safetensors file"),
        ("final/model.safetensors.index.json", b'{"weight_map": {"a": "model-2.safetensors"}}', "lacks model-2.safet"),
        ("final/tokenizer.json", None, "has no tokenizer (tokenizer.json, vocab.txt, ...)"),
        ("glue_report.json", b'[{"task": "CoLA"}]', "glue_report.json"),
        ("glue_report.json", b'[{"task": "RTE", "metric": "f1", "value": 1, "tried": [5e-5]}]', "glue_report.json"),
        ("run_report.json", b"{", "run_report.json: "),
        ("", None, "is not a folder"),
    ],
)
def test_what_is_not_published(hub, folder, call, name, content, expected):
    path = folder / name
    if content is None:
        path.unlink() if name else None
    else:
        path.write_bytes(path.read_bytes()[:-1] if content == "truncated" else content)
    code, _, errors = call(folder if name else folder / "nothing")
    assert code == 2 and len(errors) == 1 and expected in errors[0], errors
    assert not hub.requests, "known before the Hub hears of it"


def test_dry_run_asks_nothing(hub, folder, call, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    code, out, _ = call(folder, "--dry_run")
    assert code == 0 and not hub.requests
    assert "mini, main:" in out and "mini, finetune-50:" in out and "not published: training_args.bin" in out


STEPS = ["whoami", "POST /api/repos/create", "validate-yaml", "preupload", "objects/batch", "PUT /upload/"]


@pytest.mark.parametrize(
    ("where", "status"),
    [*((step, 503) for step in STEPS), ("commit/main", 502), ("GET .*/tree/", 429), ("commit/main", None)],
)
def test_a_busy_hub_is_asked_again(hub, folder, call, where, status):
    """With None for a status the request is done, but its answer is lost: that is no second commit."""
    if status is None:
        hub.lost = where
    else:
        hub.failing = [[where, 2, status]]
    assert call(folder / "final", "--hub_model_id", "mini")[0] == 0
    repo = hub.repos["ada/mini"]
    assert repo.files()["model.safetensors"] == (folder / "final" / "model.safetensors").read_bytes()
    assert len(repo.history["main"]) == 2 and hub.lost is None and all(left == 0 for _, left, _ in hub.failing)


def test_a_hub_that_never_answers_well(hub, folder, call, monkeypatch):
    hub.failing = [["commit/main", 10**6, 503]]
    code, _, errors = call(folder / "final", "--hub_model_id", "mini")
    expected = (
        "ada/mini, main: HTTP 503: told to fail, and here is your <token>; nothing half is left there, repeat it"
    )
    assert code == 1 and errors[0].startswith(expected) and set(hub.repos["ada/mini"].files()) == {".gitattributes"}
    assert len(hub.calls("whoami")) == 3, "that often it was tried"
    monkeypatch.setattr(hub_module, "TIMEOUT_SECONDS", 0.2)
    hub.delay, hub.failing = 0.6, []
    code, _, errors = call(folder)
    assert code == 1 and re.match(r"the Hub: ReadTimeout.*; nothing half is left", errors[0])
    hub.close()
    code, _, errors = call(folder)
    assert code == 1 and re.match(r"the Hub: Conn.*refused; nothing half is left there", errors[0])


def test_a_kill_in_the_middle_and_the_same_command(hub, folder):
    """Killed while the weights of `main` are on their way: what was sent before is not sent again."""
    hub.delay = 0.1
    command = [sys.executable, "-m", "budget_trainer.publish", folder]
    process = spawn(command, env=hub.environment())
    wait_for(lambda: len(hub.calls("PUT /upload/")) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    repo = hub.repos["ada/mini"]
    assert {"finetune-12.5", "finetune-50"} <= set(repo.branches) and "config.json" not in repo.files()
    hub.delay = 0.0
    done = run(command, env=hub.environment())
    assert done.returncode == 0 and TOKEN not in done.stdout + done.stderr
    assert len(hub.calls("POST .*commit/finetune-50")) == 1 and len(hub.calls("POST .*commit/main")) == 1
    assert {name: repo.files()[name] for name in NATIVE} == local(folder / "final", *NATIVE)


def test_what_is_redacted():
    text = "Bearer abc123 hf_AbCdEf1234 at https://s3/x?X-Amz-Signature=1&y=2 end\nof it"
    assert redacted(text, "abc123") == "Bearer <token> <token> at https://s3/x end of it"
