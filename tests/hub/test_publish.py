"""Publishing, with the real client against a Hub on loopback: what goes over the wire, and what must never."""

import json
import os
import re
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants, set_client_factory
from huggingface_hub.utils import _http
from transformers import BertForSequenceClassification

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.markdown import inline, without_folders
from budget_trainer.reporting import hub as hub_module
from budget_trainer.reporting import publish
from budget_trainer.reporting.hub import redacted, retried
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
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", impatient)  # the client's own pauses
    monkeypatch.setattr(hub_module.Hub.__init__, "__kwdefaults__", {"sleep": lambda seconds: None})
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
    (folder / "glue_report.json").write_text(json.dumps(GLUE))
    code, out, _ = call(
        folder, "--hub_model_id", "mini", "--hub_private_repo", "--license", "mit", "--language", "en,de"
    )
    assert code == 0 and out.strip() == f"{hub.url}/ada/mini"
    repo = hub.repos["ada/mini"]
    assert repo.private and set(repo.branches) == {"main", "finetune-12.5", "finetune-50"}
    made_here = {"README.md", "run_report.json", "glue_report.json", ".gitattributes"}
    assert set(repo.files()) == made_here | {*NATIVE, "run_report.png"}
    assert {name: repo.files()[name] for name in NATIVE} == local(folder / "final", *NATIVE)
    assert repo.files()["run_report.png"] == (folder / "run_report.png").read_bytes()
    for mark in ("finetune-12.5", "finetune-50"):
        assert set(repo.files(mark)) == {".gitattributes", "README.md", *NATIVE}
        assert {name: repo.files(mark)[name] for name in NATIVE} == local(folder / mark, *NATIVE)
    assert not any(
        b"/home/ada" in data or TOKEN.encode() in data for files in repo.commits.values() for data in files.values()
    )
    assert not [one for one in hub.requests if "pickle" in one[1] or one[1].endswith(".bin")]
    head = ModelCard(repo.files()["README.md"].decode()).data
    assert (head.license, head.language, head.pipeline_tag) == ("mit", ["en", "de"], "fill-mask")


def of_a_machine(folder):
    """GLUE's report of a suite whose data lay in a home, as glue.report writes it, and a run's report that says more."""
    report = {
        "model": "/home/ada/runs/mini/final",
        "scores": GLUE,
        "tasks": {"CoLA": {"notes": ["seed 3 failed (see /home/ada/runs/mini_1/log.txt), and/or https://x.org/a/b"]}},
        "absent": {"QNLI": "QNLI/train.tsv is not in /home/ada/my_glue"},
        "submission": {"missing": {"QNLI.tsv": "no '/home/ada/my data/QNLI' or ~/glue/QNLI; see `/home/ada/x`."}},
    }
    (folder / "glue_report.json").write_text(json.dumps(report))
    texts = [report["model"], *report["absent"].values(), *report["tasks"]["CoLA"]["notes"]]
    texts += report["submission"]["missing"].values()
    (folder / "glue_report.md").write_text("# GLUE\n\n" + "\n".join(f"- {inline(text)}" for text in texts))
    shutil.copy(folder / "glue_report.md", folder / "finetune-50")
    run_report = json.loads((folder / "run_report.json").read_text())
    run_report["stop_reason"] = "signal, told by /home/ada/jobs/stop.sh"
    (folder / "run_report.json").write_text(json.dumps(run_report))


def test_no_folder_of_a_machine_is_published(hub, folder, call):
    of_a_machine(folder)
    assert call(folder)[0] == 0
    repo = hub.repos["ada/mini"]
    for files in repo.commits.values():
        assert not [name for name, data in files.items() if b"/home/ada" in data or b"my data" in data]
    report, text = (repo.files()[f"glue_report.{kind}"] for kind in ("json", "md"))
    content = json.loads(report)
    assert content["model"] == "final" and content["scores"] == GLUE
    assert content["absent"] == {"QNLI": "QNLI/train.tsv is not in my_glue"}
    assert content["tasks"]["CoLA"]["notes"] == ["seed 3 failed (see log.txt), and/or https://x.org/a/b"]
    assert content["submission"]["missing"] == {"QNLI.tsv": "no 'QNLI' or QNLI; see `x`."}
    assert text.decode().splitlines()[2:] == [
        "- final",
        "- QNLI/train.tsv is not in my\\_glue",
        "- seed 3 failed (see log.txt), and/or https://x.org/a/b",
        "- no 'QNLI' or QNLI; see \\`x\\`.",
    ]
    assert json.loads(repo.files()["run_report.json"])["stop_reason"] == "signal, told by stop.sh"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--data_dir=/home/ada/a_b,(/home/ada/b)", "--data_dir=a_b,(b)"),
        ("/home/ada/my data/x", "x"),
        ("/home/ada/a is not /home/ada/b/", "a is not b"),
        ("at file:///home/ada/x.txt:12", "at x.txt:12"),
        (r"C:\Users\ada\glue, D:/ada/x", "glue, x"),
        ("PATH=/home/ada/a:/home/ada/b", "PATH=a:b"),
        ("in /home/ada's/é,f/g.", "in g."),
        ("wikimedia/wikipedia, out/run, ../x/y, 2/3, tokens/s, </s>, / and s3://a/b", None),
    ],
)
def test_paths_inside_of_texts(text, expected):
    assert without_folders({"a": [text]}) == {"a": [text if expected is None else expected]}


def test_the_second_call_sends_only_what_changed(hub, folder, call):
    assert call(folder)[0] == 0
    repo, before = hub.repos["ada/mini"], len(hub.requests)
    heads = dict(repo.branches)
    assert call(folder)[0] == 0
    assert repo.branches == heads
    again = [f"{method} {path}" for method, path, *_ in hub.requests[before:]]
    assert not [one for one in again if "commit/" in one or "preupload" in one or "/upload/" in one]
    (folder / "glue_report.json").write_text(json.dumps(GLUE))
    before = len(hub.requests)
    assert call(folder)[0] == 0
    assert not [one for one in hub.requests[before:] if "/upload/" in one[1]], "the weights are there"
    changed = {name for name, data in repo.files().items() if repo.commits[heads["main"]].get(name) != data}
    assert changed == {"README.md", "glue_report.json"} and repo.branches["finetune-50"] == heads["finetune-50"]


def test_glue_and_losses_are_metadata_of_the_card(hub, folder, call):
    (folder / "glue_report.json").write_text(json.dumps({"scores": GLUE}))
    assert call(folder, "--hub_model_id", "ada/mini")[0] == 0
    card = ModelCard(hub.repos["ada/mini"].files()["README.md"].decode())
    found = {
        (one.dataset_config, one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results
    }
    assert found == {
        (None, "validation", "loss"): 2.91,
        (None, "validation", "accuracy"): 0.41,
        (None, "validation", "bits_per_byte"): 2.31,
        ("cola", "validation", "matthews_correlation"): 0.571,
        ("stsb", "validation", "spearmanr"): 0.882,
        ("mnli", "validation_mismatched", "accuracy"): 0.84,
    }
    assert card.data.model_name == "mini" and card.data.license == "unknown"
    for part in (
        "| CoLA | matthews\\_correlation | validation | 57.1 | 5 |",
        "wikimedia/wikipedia",
        "`finetune-12.5`",
    ):
        assert part in card.text, part
    for title in ("How to use it", "Results", "GLUE", "Recipe", "Hardware", "Data", "Licence", "Limitations"):
        assert f"## {title}" in card.text


@pytest.mark.parametrize("kind", ["final", "finetune-50"])
def test_the_folder_of_one_model(hub, folder, call, kind):
    assert call(folder / kind, "--hub_model_id", "one")[0] == 0
    repo = hub.repos["ada/one"]
    assert set(repo.branches) == {"main"} and {name: repo.files()[name] for name in NATIVE} == local(
        folder / kind, *NATIVE
    )
    assert "fill-mask" in repo.files()["README.md"].decode()


def test_a_fine_tuned_model_is_one_that_classifies(hub, tokenizer, tmp_path, call):
    write_model(tmp_path / "cola", tokenizer, 0, BertForSequenceClassification)
    assert call(tmp_path / "cola")[0] == 0
    card = ModelCard(hub.repos["ada/cola"].files()["README.md"].decode())
    assert (
        card.data.pipeline_tag == "text-classification"
        and 'pipeline("text-classification", model="ada/cola")' in card.text
    )


def test_a_card_that_a_person_edited_stays(hub, folder, call):
    assert call(folder)[0] == 0
    repo = hub.repos["ada/mini"]
    theirs = repo.files()["README.md"] + b"\nWith thanks to Charles.\n"
    repo.put("main", {**repo.files(), "README.md": theirs}, "Update README.md")
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
    before = dict(repo.branches)
    code, _, errors = call(folder)
    assert (
        code == 2
        and f"hub_model_id: {hub.url}/ada/mini, main, holds another model (model.safetensors differs)" in errors[0]
    )
    assert repo.branches["main"] == before["main"]
    assert call(folder, "--overwrite")[0] == 0
    assert repo.files()["model.safetensors"] == (folder / "final" / "model.safetensors").read_bytes()
    assert "merges.txt" not in repo.files() and ".gitattributes" in repo.files(), "nothing of the other is left"
    assert repo.commits[before["main"]]["merges.txt"], "git has it"


def test_a_public_repository_is_not_taken_for_a_private_one(hub, folder, call):
    assert call(folder)[0] == 0
    code, _, errors = call(folder, "--hub_private_repo")
    assert code == 2 and "is there and public; make it private in its settings" in errors[0]


WRONG = {
    "read-only token": (
        {"HF_TOKEN": READ_TOKEN},
        [],
        "hub_token: the token of ada can only read; log in with `hf auth login`",
    ),
    "unknown token": ({"HF_TOKEN": "hf_NobodyKnowsThis"}, [], "the Hub does not accept this token (401); log in with"),
    "token in the command": ({}, ["--hub_token", "hf_NobodyKnowsThis"], "does not accept this token (401)"),
    "no token": ({"HF_TOKEN": ""}, [], "hub_token: there is none; log in with `hf auth login`, or set HF_TOKEN"),
    "name": (
        {},
        ["--hub_model_id", "ada/m i/ni"],
        "hub_model_id: 'ada/m i/ni' is not a name on the Hub; write user/name",
    ),
    "licence": ({}, ["--license", "My own"], "license: 'My own' is no identifier; use one such as apache-2.0"),
    "flag": (
        {},
        ["--hub_tokn", "hf_NobodyKnowsThis"],
        "command line: unrecognized arguments: --hub_tokn <token>; see",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(hub, folder, call, monkeypatch, case):
    environment, words, expected = WRONG[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, errors = call(folder, *words)
    assert code == 2 and len(errors) == 1 and expected in errors[0], errors
    assert not hub.repos


def test_offline_is_offline(hub, folder, call, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, errors = call(folder)
    assert code == 2 and errors == ["HF_HUB_OFFLINE: set, so the Hub is not asked for anything; unset it to publish"]


def test_a_token_without_the_right(hub, folder, call):
    hub.forbidden = True
    code, _, errors = call(folder, "--hub_model_id", "charles/mini")
    assert code == 2 and errors == [
        "hub_token: this token may not write to charles/mini (403); log in with `hf auth login`, or set HF_TOKEN to a "
        "token with write access from https://huggingface.co/settings/tokens"
    ]


def spoil(folder, name, content=None):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


SPOILED = {
    "no config": (("config.json",), "is not a model's folder (no config.json); give a run's --output_dir"),
    "no type": (("config.json", b"{}"), "is not a model's folder (config.json names no model_type)"),
    "no JSON": (("config.json", b"{"), "is not a model's folder (config.json cannot be read"),
    "code": (
        ("config.json", b'{"model_type": "x", "auto_map": {}}'),
        "needs code of its own (auto_map in config.json)",
    ),
    "no weights": (
        ("model.safetensors",),
        "has no weights as safetensors (only training_args.bin, whose format can run code",
    ),
    "pickle": (("model.safetensors", b"\x80\x04\x95pickle"), "model.safetensors is no complete safetensors file"),
    "no tokenizer": (("tokenizer.json",), "has no tokenizer (tokenizer.json, vocab.txt, ...)"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_not_published(hub, folder, call, case):
    change, expected = SPOILED[case]
    spoil(folder / "final", *change)
    code, _, errors = call(folder)
    assert code == 2 and len(errors) == 1 and expected in errors[0], errors
    assert not hub.requests, "known before the Hub hears of it"


def test_a_truncated_model_and_a_missing_part(hub, folder, call):
    whole = (folder / "final" / "model.safetensors").read_bytes()
    spoil(folder / "final", "model.safetensors", whole[:-1])
    assert "is no complete safetensors file" in call(folder)[2][0]
    spoil(folder / "final", "model.safetensors", whole)
    spoil(folder / "final", "model.safetensors.index.json", b'{"weight_map": {"a": "model-2.safetensors"}}')
    assert "lacks model-2.safetensors, which model.safetensors.index.json names" in call(folder)[2][0]
    assert "is not a folder" in call(folder / "nothing")[2][0]
    (folder / "glue_report.json").write_text('[{"task": "CoLA"}]')
    spoil(folder / "final", "model.safetensors.index.json")
    assert "glue_report.json" in call(folder)[2][0]


def test_dry_run_asks_nothing(hub, folder, call, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    code, out, _ = call(folder, "--dry_run")
    assert code == 0 and not hub.requests
    assert "mini, main:" in out and "mini, finetune-50:" in out and "not published: training_args.bin" in out


@pytest.mark.parametrize("where", ["whoami", "POST /api/repos/create", "validate-yaml", "preupload", "objects/batch"])
def test_a_busy_hub_is_asked_again(hub, folder, call, where):
    hub.failing = [[where, 2, 503]]
    assert call(folder / "final", "--hub_model_id", "mini")[0] == 0
    assert hub.repos["ada/mini"].files()["model.safetensors"] == (folder / "final" / "model.safetensors").read_bytes()
    assert hub.failing[0][1] == 0


@pytest.mark.parametrize(
    ("where", "status"), [("PUT /upload/", 500), ("commit/main", 502), ("GET .*/tree/", 429), ("refs", 504)]
)
def test_other_steps_are_tried_again(hub, folder, call, where, status):
    hub.failing = [[where, 2, status]]
    assert call(folder / "final", "--hub_model_id", "mini")[0] == 0
    assert "config.json" in hub.repos["ada/mini"].files() and hub.failing[0][1] == 0


def test_an_answer_that_is_lost_is_no_second_commit(hub, folder, call):
    hub.lost = "commit/main"
    assert call(folder / "final", "--hub_model_id", "mini")[0] == 0
    assert len(hub.repos["ada/mini"].history["main"]) == 2 and hub.lost is None


def test_a_hub_that_never_recovers(hub, folder, call):
    hub.failing = [["commit/main", 10**6, 503]]
    code, _, errors = call(folder, "--hub_model_id", "mini")
    assert code == 1 and errors == [
        "ada/mini, main: HTTP 503: told to fail, and here is your <token>, 6 times; nothing half is left there, repeat it later"
    ]
    assert set(hub.repos["ada/mini"].files()) == {".gitattributes"}
    hub.failing = []
    assert call(folder, "--hub_model_id", "mini")[0] == 0


def test_a_hub_that_says_nothing(hub, folder, call, monkeypatch):
    monkeypatch.setattr(publish, "TIMEOUT_SECONDS", 0.2)
    hub.delay = 0.6
    code, _, errors = call(folder)
    assert code == 1 and re.match(r"the Hub: ReadTimeout.*, 6 times; nothing half is left", errors[0])


def test_nobody_is_there(hub, folder, call):
    hub.close()
    code, _, errors = call(folder)
    assert code == 1 and re.match(r"the Hub: Conn.*refused, 6 times; nothing half is left there", errors[0])


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
    assert len(hub.calls("POST .*commit/finetune-50")) == 1
    hub.delay = 0.0
    done = run(command, env=hub.environment())
    assert done.returncode == 0 and TOKEN not in done.stdout + done.stderr
    assert len(hub.calls("POST .*commit/finetune-50")) == 1 and len(hub.calls("POST .*commit/main")) == 1
    assert {name: repo.files()[name] for name in NATIVE} == local(folder / "final", *NATIVE)


def test_the_pauses_grow_and_the_hub_may_say_how_long():
    class Answer(Exception):
        def __init__(self, status, headers):
            self.response = type("Response", (), {"status_code": status, "headers": headers})()

    waited, errors = [], [Answer(503, {}), Answer(429, {"Retry-After": "7"}), TimeoutError(), ConnectionResetError()]
    errors.append(Answer(429, {"RateLimit": '"api";r=0;t=55'}))

    def action():
        if errors:
            raise errors.pop(0)
        return "done"

    assert retried(action, "x", sleep=waited.append) == "done" and waited == [1, 7, 4, 8, 56]
    with pytest.raises(RunError, match=r"x: HTTP 503, 2 times"):
        retried(lambda: (_ for _ in ()).throw(Answer(503, {})), "x", sleep=waited.append, tries=2)
    with pytest.raises(InputError, match="this token may not write to x"):
        retried(lambda: (_ for _ in ()).throw(Answer(403, {})), "x", sleep=waited.append)


def test_what_is_redacted():
    text = "Bearer abc123 hf_AbCdEf1234 at https://s3/x?X-Amz-Signature=1&y=2 end\nof it"
    assert redacted(text, "abc123") == "Bearer <token> <token> at https://s3/x end of it"


def test_shapes_of_the_weights_survive(hub, folder, call):
    """What the Hub stores opens as the model that was saved."""
    from safetensors.numpy import load, load_file

    assert call(folder)[0] == 0
    stored, saved = (
        load(hub.repos["ada/mini"].files()["model.safetensors"]),
        load_file(folder / "final" / "model.safetensors"),
    )
    assert stored.keys() == saved.keys() and all(np.array_equal(stored[name], saved[name]) for name in saved)
