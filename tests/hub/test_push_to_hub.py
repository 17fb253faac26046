"""`--push_to_hub`: beside the training, outside of the budget, and never in its way."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time

import psutil
import pytest
from huggingface_hub import constants

from budget_trainer import train_mlm
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.config.arguments import RunArguments
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.reporting.hub import PushOptions, redacted
from budget_trainer.reporting.publish import BackgroundPush
from budget_trainer.training import run_folder
from tests.conftest import ROOT, TINY, progress, report, run, train, wait_for, words
from tests.hub.conftest import NATIVE, local
from tests.hub.server import READ_TOKEN, TOKEN, Hub

BUDGET = 26.0
LOADED_ELSEWHERE = """
import importlib.util, re, sys
assert importlib.util.find_spec("budget_trainer") is None, "the example must not need it"
card = open(sys.argv[1]).read()
blocks = re.findall(r"```python\\n(.*?)```", card, re.S)
assert len(blocks) == 2
for block in blocks:
    exec(compile(block, "README.md", "exec"), {})
"""


@pytest.fixture(scope="module")
def hub():
    server = Hub()
    yield server
    server.close()


def no_token_anywhere(done, folder):
    """Neither in what the run wrote to the terminal nor in any file."""
    written = (done.stdout + done.stderr).encode() + b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert TOKEN.encode() not in written and READ_TOKEN.encode() not in written


def options_of(data_dir, output_dir, **flags):
    known = {**TINY, "data_dir": data_dir, "output_dir": output_dir, "total_training_time": f"{BUDGET}s"}
    return known | {"push_to_hub": "true"} | flags


@pytest.fixture(scope="module")
def pushed(hub, data_dir, tmp_path_factory):
    """A run beside a Hub that is slow and fails now and then: its output folder, and what it said."""
    output_dir = tmp_path_factory.mktemp("pushed") / "tiny"
    about = {"hub_model_id": "tiny", "hub_private_repo": "true", "license": "mit", "language": "en"}
    options = options_of(data_dir, output_dir, finetune_time_markers="0.6", report_to="tensorboard", **about)
    hub.delay, hub.failing = 0.7, [["commit/finetune-60", 1, 500], ["refs", 1, 503]]
    done = train(options, env=hub.environment())
    hub.delay, hub.failing = 0.0, []
    assert done.returncode == 0, done.stderr
    return output_dir, done


@pytest.mark.slow
def test_a_slow_hub_changes_nothing_and_gets_all(hub, pushed):
    output_dir, done = pushed
    account = report(output_dir)
    assert account["overrun_seconds"] == 0 and account["stop_reason"] == "budget"
    assert account["used_seconds"] > 0.9 * BUDGET, "and the training had all of its time"
    marked, final = (hub.calls(f"commit/{name}$")[0][3] for name in ("finetune-60", "main"))
    assert marked < final, "the time-marked model went first"
    assert marked - hub.requests[0][3] > 0.25 * BUDGET, "or the Hub was not slow"
    steps = [line["elapsed_seconds"] for line in progress(output_dir)[1:]]
    longest = max(after - before for before, after in zip(steps, steps[1:], strict=False))
    assert longest < 0.2 * BUDGET, "no step waited for it"
    no_token_anywhere(done, output_dir)
    repo, account = hub.repos["ada/tiny"], report(output_dir)["hub"]
    assert repo.private and account["error"] is None and account["url"] == f"{hub.url}/ada/tiny"
    assert set(account["revisions"]) == {"main", "finetune-60"}
    assert account["revisions"]["main"]["commit"] == repo.branches["main"]
    assert {name: repo.files()[name] for name in NATIVE} == local(output_dir / "final", *NATIVE)
    assert {name: repo.files("finetune-60")[name] for name in NATIVE} == local(output_dir / "finetune-60", *NATIVE)
    assert f"pushed to {hub.url}/ada/tiny: finetune-60, main" in done.stderr
    assert len(repo.history["finetune-60"]) == 2, "one commit: the last push found the card as it was"
    card, parts = (
        repo.files()["README.md"].decode(),
        ("license: mit", "corpus.txt", "model-index", 'revision="finetune-60"'),
    )
    assert not [part for part in parts if part not in card]
    assert str(output_dir.parent) not in card + repo.files()["run_report.json"].decode()
    assert "license: mit" in repo.files("finetune-60")["README.md"].decode()


@pytest.mark.slow
def test_the_card_loads_the_model_where_this_package_is_not(hub, pushed, tmp_path):
    """Its code runs as it stands, against the Hub, with nothing but Transformers."""
    card = tmp_path / "README.md"
    card.write_bytes(hub.repos["ada/tiny"].files()["README.md"])
    packages = os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment = {**kept, **hub.environment(), "PYTHONPATH": packages, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-S", "-P", "-c", LOADED_ELSEWHERE, str(card)]  # -S: no .pth, so no editable install
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^0\.\d{3} ", done.stdout, re.M)) == 5 and "torch.Size([2, 2])" in done.stdout


@pytest.mark.slow
def test_a_push_that_is_refused_is_no_failure(hub, data_dir, tmp_path):
    """A read-only token is known to the Hub alone: the run ends well, says what to do, and that works."""
    output_dir = tmp_path / "refused"
    flags = {"lr_schedule": "step", "max_steps": 3, "warmup_proportion": 0, "total_training_time": "10m"}
    flags |= {"hub_strategy": "end", "hub_model_id": "ada/refused"}
    done = train(options_of(data_dir, output_dir, **flags), env=hub.environment(READ_TOKEN), ok=True)
    account = report(output_dir)["hub"]
    assert account["error"].startswith("hub_token: the token of ada can only read; log in with")
    assert f"not pushed: {account['error']}; the model is in {output_dir}; repeat: {account['repeat']}" in done.stderr
    assert "Traceback" not in done.stderr and "ada/refused" not in hub.repos
    no_token_anywhere(done, output_dir)
    again = run([sys.executable, *account["repeat"].split()[1:]], env=hub.environment())
    assert again.returncode == 0, again.stderr
    stored = hub.repos["ada/refused"].files()
    assert {name: stored[name] for name in NATIVE} == local(output_dir / "final", *NATIVE)
    assert b"license: unknown" in stored["README.md"] and "hub" not in json.loads(stored["run_report.json"])


@pytest.fixture
def asked(monkeypatch, hub):
    for name, value in hub.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.delay, hub.failing = 0.0, []


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_evaluation_is_pushed_as_well(asked, pushed, data_dir, tmp_path, monkeypatch):
    """The next job makes up for the evaluation, and then for the push."""
    output_dir = shutil.copytree(pushed[0], tmp_path / "tiny")
    account = report(output_dir)
    del account["hub"]
    (output_dir / "run_report.json").write_text(json.dumps({**account, "evaluation": None}))
    run_folder.RunFolder(output_dir).set_state(run_folder.EVALUATING)
    again = {"hub_model_id": "ada/later", "job_time_limit": "1h", "resume_from_checkpoint": "auto"}
    monkeypatch.setattr(train_mlm, "CLOCK", BudgetClock())
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    assert train_mlm.main(words(options_of(data_dir, output_dir, **again))) == 0
    account = report(output_dir)
    assert account["hub"]["error"] is None and account["evaluation"]["loss"] > 0
    assert set(asked.repos["ada/later"].branches) == {"main", "finetune-60"}


def publishers():
    return [child for child in psutil.Process().children() if "budget_trainer.publish" in child.cmdline()]


def test_waiting_has_an_end(asked, folder):
    asked.delay = 60.0
    begin = time.monotonic()
    account = BackgroundPush(folder, PushOptions("ada/never")).finish(3.0)
    assert time.monotonic() - begin < 10 and not publishers()
    assert account["error"] == "it was not there when the time of the job ended"
    assert account["repeat"] == f"python -m budget_trainer.publish {folder} --hub_model_id ada/never"


def test_a_publisher_that_dies(asked, folder):
    """It is at the lowest priority, has no token on its command line, and nothing that happens to it ends the run."""
    asked.delay, seen = 60.0, []
    asked.requests.clear()

    def kill():
        wait_for(lambda: asked.requests and publishers())
        (process,) = publishers()
        seen.append((process.nice(), process.cmdline()))
        process.kill()

    threading.Thread(target=kill).start()
    account = BackgroundPush(folder, PushOptions("ada/dead")).finish()
    assert account["error"].startswith("its process ended (-9)")
    assert seen[0][0] == 19 and TOKEN not in " ".join(seen[0][1])


ORPHAN = """
import sys, time
from pathlib import Path
from budget_trainer.reporting.hub import PushOptions
from budget_trainer.reporting.publish import BackgroundPush
BackgroundPush(Path(sys.argv[1]), PushOptions("ada/orphan")).start()
time.sleep(100)
"""


def test_a_publisher_ends_with_its_run(asked, folder):
    """The run is killed: nobody stays behind, though a push is on its way."""
    asked.delay = 60.0
    asked.requests.clear()
    process = psutil.Popen([sys.executable, "-c", ORPHAN, str(folder)], cwd=ROOT)
    wait_for(lambda: asked.requests)
    (publisher,) = process.children()
    process.kill()
    process.wait()
    wait_for(lambda: not publisher.is_running() or publisher.status() == psutil.STATUS_ZOMBIE, 20)


def parsed(folder, **flags):
    given = {"data_dir": folder, "output_dir": folder / "out", "total_training_time": "1h", "use_cpu": True}
    return parse_recipe(words({**given, **flags}))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"push_to_hub": True}, "hub_token: there is none; log in with `hf auth login`, or set HF_TOKEN to a token"),
        ({"hub_model_id": "ada/x"}, "hub_model_id: given without push_to_hub; add --push_to_hub, or leave it out"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "hub_strategy: 'checkpoint' would upload training"),
        ({"push_to_hub": True, "finetune_checkpoint_at_end": False}, "push_to_hub: the run keeps no model; leave no_"),
        ({"learning_rate": "1e-3 hf_SomethingSecret"}, "learning_rate: '1e-3 hf_SomethingSecret' is not a number"),
        ({"license": "GPL, mostly"}, "license: 'GPL, mostly' is no identifier; use one such as apache-2.0"),
        ({"hub_token": "hf_SomethingSecret"}, "hub_token: not used here (command line); log in with `hf auth login`"),
    ],
)
def test_what_is_known_before_the_budget_begins(tmp_path, monkeypatch, flags, expected):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError) as refused:
        parsed(tmp_path, **flags)
    assert str(refused.value).startswith(expected)
    assert "hf_" not in redacted(str(refused.value)), "as the scripts say it"


def test_a_name_and_a_token_are_enough_to_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    recipe = parsed(tmp_path, push_to_hub=True, hub_strategy="end", license="cc-by-sa-4.0")
    assert recipe.push is not None and not recipe.push.at_every_save and recipe.push.license == "cc-by-sa-4.0"
    args = RunArguments.of(recipe.training)
    assert not args.push_to_hub, "Trainer would push by itself"
    assert recipe.as_dict(args)["push_to_hub"] is True and TOKEN not in json.dumps(recipe.as_dict(args), default=str)
    with pytest.raises(InputError, match=r"hub_model_id: 'a/b/c' is not a name on the Hub; write user/name"):
        parsed(tmp_path, push_to_hub=True, hub_model_id="a/b/c")
    # A recipe that names its repository can be tried, planned or searched without pushing.
    assert parsed(tmp_path, hub_model_id="ada/x", push_to_hub=False).push is None
