"""What many tests share: a tiny data folder, a tiny recipe, a launcher."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

# One thread in each worker of the tests and in what it starts, set before torch is imported: with two workers on two cores,
# threads of both wait for each other in every small product.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("BUDGET_DATA") or ROOT.parent / "shared" / "data")
TINY = {"model_type": "modernbert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"intermediate_size": 64, "max_position_embeddings": 128, "hidden_dropout_prob": 0.0}
TINY |= {"attention_probs_dropout_prob": 0.0, "per_device_train_batch_size": 8, "learning_rate": "2e-3"}
TINY |= {"logging_steps": 1, "report_to": "none"}
STEPS = {**TINY, "lr_schedule": "step", "max_steps": 20, "warmup_proportion": 0, "curve": "constant"}
STEPS |= {"total_training_time": "10m", "disable_tqdm": True}

# The order of files and folders: what takes longest comes first, so that two workers that each take the next file are both
# busy to the end. Other files take seconds.
LONGEST_FIRST = """test_installed test_baselines test_notebook distributed sweep planning glue training faults hub test_slurm
test_command_line data_prep migrate model config test_docs_plugins test_benchmarks""".split()


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, order.get(item.path.parent.name, len(order))))


def words(options):
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def environment(more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def run(command, *, ok=False, **options):
    """Run a command of the project to its end; with `ok` the test fails where the command does."""
    kept = {"cwd": ROOT, "env": environment(options.pop("env", {})), "capture_output": True, "text": True}
    done = subprocess.run([*map(str, command)], **kept, **options)
    assert not ok or done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done


def launcher(config, script="train_mlm.py", *rest):
    """The words of `accelerate launch` with a file, or a configuration of accelerate_configs/ by its name."""
    path = config if isinstance(config, Path) else ROOT / "accelerate_configs" / f"{config}.yaml"
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path, script, *rest]


def on_cpus(processes):
    return "cpu" if processes == 1 else "cpu_2proc"


def launch(options, *, processes=1, script="train_mlm.py", **kwargs):
    """`accelerate launch` of a script with the flags in `options`."""
    return run(launcher(on_cpus(processes), script, *words(options)), **kwargs)


def write_cpu_form(name, folder, **changes):
    """A GPU profile of accelerate_configs/ for two processes without a GPU, as a file in `folder`; None drops a key."""
    config = yaml.safe_load((ROOT / "accelerate_configs" / f"{name}.yaml").read_text())
    path = Path(folder) / f"{name}_cpu.yaml"
    config |= {"use_cpu": True, "num_processes": 2, **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def launch_form(config, options, script="train_mlm.py", *rest, **kwargs):
    """`accelerate launch` with a configuration of `write_cpu_form`."""
    return run(launcher(config, script, *rest, *words(options)), env={"DS_ACCELERATOR": "cpu"}, **kwargs)


def start(options, *, processes=2, script="train_mlm.py"):
    """The same without waiting for its end: the launcher's process, whose stderr is read with `communicate`."""
    return spawn(launcher(on_cpus(processes), script, *words(options)), stdout=subprocess.DEVNULL)


STARTED = []


def spawn(command, *, env=None, stdout=subprocess.PIPE):
    """A command of the project as a process of its own, with stderr as a pipe; killed when the test is over."""
    kept = {"cwd": ROOT, "env": environment(env or {}), "stdout": stdout, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*map(str, command)], **kept)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """Accelerate collects garbage before each training, most of a test's time."""
    monkeypatch.setattr("gc.collect", lambda *args: 0)


@pytest.fixture(autouse=True)
def own_chance():
    """Random numbers of a test depend on its seed alone, not on the tests that ran before it in the same process."""
    import torch  # after OMP_NUM_THREADS is set

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_folders_of_trackers(monkeypatch):
    """A run in this process sets them for good; the next test's is to have its own."""
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    yield
    while STARTED:
        process = STARTED.pop()
        for pid in [*children(process.pid), process.pid] if process.poll() is None else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # an orphan may hold the pipe
            process.communicate(timeout=10)


def children(pid):
    """Process ids below `pid`; those that have ended, and that nobody has waited for, are none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process.pid for process in psutil.Process(pid).children(recursive=True) if alive(process.pid)]
    return []


def rank_pid(launcher_pid, rank):
    """The process of a rank below its launcher; None before it is there."""
    for pid in children(launcher_pid):
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).environ().get("RANK") == str(rank):
                return pid


def wait_for(condition, seconds=200):
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def train(options, **kwargs):
    """train_mlm.py as a child process without a launcher."""
    return run([sys.executable, "train_mlm.py", *words(options)], **kwargs)


@pytest.fixture
def refused(capfd, monkeypatch):
    """Run train_mlm.py in this process until it refuses; its exit code and its one line of error."""
    from budget_trainer import train_mlm
    from budget_trainer.budget.clock import BudgetClock

    def call(options, *recipe):
        monkeypatch.setattr(train_mlm, "CLOCK", BudgetClock())
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "none")  # or train_mlm sets it for good
        code = train_mlm.main([*map(str, recipe), *words(options)])
        (line,) = {line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")}
        return code, line

    return call


def report(output_dir):
    return json.loads((Path(output_dir) / "run_report.json").read_text())


def progress(output_dir):
    return [json.loads(line) for line in (Path(output_dir) / "progress.jsonl").read_text().splitlines()]


def losses(output_dir, job=None):
    """The lines of `progress.jsonl` that have a loss, of one job or of all."""
    return [line for line in progress(output_dir) if "loss" in line and job in (None, line["job"])]


def batch_of_epoch(data_dir, steps):
    """The rows per step with which half of the training rows, one of two ranks' share, is an epoch of `steps` steps."""
    manifest = json.loads((data_dir / "manifest.json").read_text())
    return -(-(manifest["splits"]["train"]["rows"] // 2) // steps)


def read_documents(path, kind="auto", **options):
    """The documents at `path`, as data_prep reads them; `options` are the other fields of `Source`."""
    from data_prep.sources import Source

    return Source(str(path), kind, **options).documents()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text of 400 documents in a made-up language with structure: short, but not empty for a model."""
    chance = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    lexicon = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(400)]
    folder = tmp_path_factory.mktemp("corpus")
    with open(folder / "corpus.txt", "w", encoding="utf-8") as text:
        for _ in range(400):
            for _ in range(chance.randint(1, 4)):
                start = chance.randrange(400)
                line = [lexicon[(start + 7 * i * i) % 400] for i in range(chance.randint(10, 60))]
                text.write(" ".join(line).capitalize() + ".\n")
            text.write("\n")
    return folder / "corpus.txt"


@pytest.fixture(scope="session")
def tokenizer(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    flags = {"input": corpus, "vocab_size": 500, "output_dir": folder}
    run([sys.executable, "-m", "data_prep.tokenizer", *words(flags)], ok=True)
    return folder


@pytest.fixture
def open_run(monkeypatch, data_dir, tmp_path):
    """Make the run of a tiny recipe with other flags in this process, and open its data; it is not begun."""
    from budget_trainer.budget.clock import BudgetClock
    from budget_trainer.config.recipe import parse_recipe
    from budget_trainer.core.command import StopRequest
    from budget_trainer.training.run import PretrainingRun

    def call(**flags):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))  # or the run sets it for good
        options = {**TINY, "data_dir": data_dir, "output_dir": tmp_path / "out", "total_training_time": "10m"}
        recipe = parse_recipe(words({**options, "use_cpu": True, **flags}))
        opened = PretrainingRun(recipe, BudgetClock(), StopRequest(), contextlib.ExitStack())
        opened.read_data()
        opened.check_data()
        return opened

    return call


@pytest.fixture(scope="session")
def data_dir(corpus, tokenizer, tmp_path_factory):
    """Blocks of 64 tokens in 2 shards."""
    folder = tmp_path_factory.mktemp("data") / "blocks"
    flags = {"input": corpus, "tokenizer": tokenizer, "output_dir": folder, "block_size": 64}
    flags |= {"num_shards": 2, "num_proc": 1, "validation_fraction": 0.1}
    run([sys.executable, "-m", "data_prep.blocks", *words(flags)], ok=True)
    return folder


def alive(pid):
    """Whether a process is there, and no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
