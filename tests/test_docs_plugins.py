"""The programs in docs/plugins.md are run as they stand there, and keep what the page says of them."""

import re
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from budget_trainer.data.folder import DataFolder
from budget_trainer.model.build import build_model
from tests.conftest import ROOT, launcher, run

PAGE = (ROOT / "docs" / "plugins.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def program(title):
    """The one Python block under the heading that begins with `title`."""
    (section,) = (text for name, text in SECTIONS.items() if name.startswith(title))
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    return code


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A first step in this process, with one thread: its imports take seconds, which the small budgets below do not have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code = (
        program("Any Trainer: stop in time")
        .replace('"out/stop",', '"out/stop", max_steps=1,')
        .replace('"5s"', '"10m"')
    )
    code = code.replace('"out/', f'"{tmp_path_factory.mktemp("warm")}/')
    exec(compile(code, "warm", "exec"), {"__name__": "__main__"})
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def execute(tmp_path, monkeypatch, warm):
    """Runs a program in an empty folder, in this process; returns its variables."""
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)

    def call(title):
        names = {"__name__": "__main__"}
        exec(compile(program(title), f"docs/plugins.md, {title}", "exec"), names)
        return names

    yield call
    AcceleratorState._reset_state(reset_partial_state=True)


def check_kept(budget, model):
    """The model is on disk inside of the budget, most of which was used: shares with room for a step that stalls."""
    assert budget.stop_reason == "budget"
    assert (Path("out") / model / "final" / "model.safetensors").exists()
    assert 0.5 < budget.share < 1.25


def check_rates(trainer, peak):
    """The learning rate was up, the schedule has arrived at 0, and the last step was near that."""
    used = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert 0.7 * peak < max(used) <= peak and used[-1] < 0.35 * peak
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=0.02 * peak)


def test_nobody_is_told_to_write_a_number_of_steps_that_is_never_reached():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert "10**9" not in path.read_text().replace("ExactSampler(0, 10**9)", ""), path


def test_stop(execute):
    names = execute("Any Trainer: stop in time")
    check_kept(names["budget"], "stop")
    assert names["trainer"].state.global_step > 3


def test_curve(execute):
    names = execute("Any Trainer: the learning rate follows the clock")
    trainer = names["trainer"]
    check_kept(trainer.time_budget, "curve")
    check_rates(trainer, 1e-3)
    assert 0.5 <= names["half_time"].done_at < 0.9
    shares = [line["share"] for line in names["lines"]]
    assert shares == sorted(shares) and shares[-1] > 0.5


def test_jobs(execute):
    names = execute("Several jobs, one budget")
    first, second = names["first"], names["second"]
    assert first.time_budget.stop_reason == "job_time_limit" and first.time_budget.share < 0.7
    check_kept(second.time_budget, "jobs")
    assert second.state.global_step > first.state.global_step
    clock = second.time_budget.clock
    assert clock.elapsed_seconds() - clock.job_seconds() == pytest.approx(first.time_budget.reading.elapsed, abs=0.5)
    check_rates(second, 1e-3)


def test_seq2seq(execute):
    names = execute("Seq2SeqTrainer, SFTTrainer, your own subclass")
    trainer = names["trainer"]
    check_kept(trainer.time_budget, "seq2seq")
    check_rates(trainer, 3e-3)
    assert names["used"] < 1.5 * 4


def test_loop_on_two_processes(data_dir, tmp_path):
    """Both ranks end at the same step with the same rate, near 0, inside of the budget."""
    code = program("A loop of your own, with Accelerate").replace('"data/blocks"', f'"{data_dir}"')
    code = code.replace('"out/', f'"{tmp_path}/out/')
    (tmp_path / "loop.py").write_text(code)
    done = run(launcher("cpu_2proc", tmp_path / "loop.py"), ok=True)
    found = re.search(
        r"(\d+) steps, loss .*, ([\d.]+) s used, last learning rates \[([\d.e-]+), ([\d.e-]+)\]", done.stdout
    )
    assert found, done.stdout
    steps, used, one, other = map(float, found.groups())
    assert steps > 3 and used < 1.5 * 6
    assert one == other < 0.2 * 2e-2
    assert (tmp_path / "out" / "loop" / "final" / "model.safetensors").exists()


def test_score(execute, data_dir, tmp_path):
    """The score of an untrained model is that of chance, and is the same twice."""
    data = DataFolder.open(data_dir)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "blocks").symlink_to(data_dir)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"vocab_size": data.vocab_size, "max_position_embeddings": 128}
    model = build_model("bert", special_ids=data.special_ids, **sizes)
    model.save_pretrained(tmp_path / "out" / "run" / "final")
    first, again = execute("Only the score")["score"], execute("Only the score")["score"]
    assert first == again and first["complete"]
    assert first["loss"] == pytest.approx(6.2, abs=0.4)  # ln of 500 tokens
