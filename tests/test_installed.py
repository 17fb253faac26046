"""The wheel of this tree in an environment with its plain dependencies alone, where there is no clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.config.test_command_line import CONFIG, ENTRY_POINTS
from tests.conftest import ROOT
from tests.forked import run_forked
from tests.plain import make_environment, plain_dependencies

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BUILT_FROM = "setup.cfg pyproject.toml README.md LICENSE budget_trainer data_prep recipes accelerate_configs".split()
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
RUN = "--data_dir data --output_dir out --total_training_time 10m --use_cpu true".split()
GLUE = "--model_name_or_path model --task_name RTE --output_dir out --use_cpu true".split()
# What needs an extra, which is not there: the command ends before it looks for data or a model.
NEEDS = [
    ("deepspeed", ("budget-profile", "zero2")),
    ("deepspeed", ("budget-quickstart", "--profile", "zero3")),
    ("deepspeed", ("budget-sweep", "cpu_10m", "--output_dir", "out", "--accelerate_config", "zero2")),
    ("deepspeed", ("budget-train-mlm", "quickstart", *RUN, "--deepspeed", "zero.json")),
    ("hdf5", ("budget-prep-hdf5", "--input", "shard.hdf5", "--tokenizer", "tokenizer", "--output_dir", "out")),
    *(("trackers", ("budget-train-mlm", "quickstart", *RUN, "--report_to", name)) for name in ("wandb", "trackio")),
    ("trackers", ("budget-finetune-glue", *GLUE, "--report_to", "wandb")),
    ("energy", ("budget-train-mlm", "quickstart", *RUN, "--country_iso_code", "DEU")),
    ("energy", ("budget-finetune-glue", *GLUE, "--country_iso_code", "DEU")),
]
OF_A_CLONE = {"test", "site", "notebook", "ecosystem-test"}  # extras of what the wheel does not have
HELP = {name: (name, "--help") for name in ENTRY_POINTS}
BAD = {name: (name, "--no_such_flag", *(["1"] if name != "budget-migrate" else [])) for name in ENTRY_POINTS}
PRINTED = "--data_dir data --output_dir out --total_training_time 10m --print_config".split()
CONFIGS = {name: ("budget-train-mlm", name, *PRINTED) for name in ("mine.yaml", "cpu_10m", "cpu_10min")}


def checked(command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without isolation from a copy of the tree, so that nothing is written into that."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "tree").mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "tree" / name)
    checked([*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, folder / "tree"])
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def plain(wheel, tmp_path_factory):
    """The environment: its `python`, the variables `env` of a process that works in it, what it `holds` beside the wheel."""
    holds = plain_dependencies(wheel)
    python = make_environment(tmp_path_factory.mktemp("installed") / "plain", holds.values())
    checked([*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel])
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]), "OMP_NUM_THREADS": "1"}
    return SimpleNamespace(python=python, env=env, holds=holds)


@pytest.fixture(scope="module")
def installed(plain):
    """What runs a command of the installed package outside of any clone: its words to the finished process."""

    def call(*command, cwd):
        return subprocess.run([*map(str, command)], cwd=cwd, env=plain.env, capture_output=True, text=True)

    return call


@pytest.fixture(scope="module")
def ends(plain, tmp_path_factory):
    """How the commands of HELP, BAD, CONFIGS and NEEDS end by their words, all in one folder, in which nothing was written."""
    folder = tmp_path_factory.mktemp("ends")
    given = {"mine.yaml": (ROOT / "recipes" / "cpu_10m.yaml").read_text(), "zero.json": "{}", "shard.hdf5": ""}
    for name, text in given.items():
        (folder / name).write_text(text)
    words = [*HELP.values(), *BAD.values(), *CONFIGS.values(), *(needs for _, needs in NEEDS)]
    lines = [[plain.python.with_name(name), *rest] for name, *rest in words]
    found = run_forked(lines, python=plain.python, cwd=folder, env=plain.env)
    assert {path.name for path in folder.iterdir()} == given.keys()
    return dict(zip(words, found, strict=True))


@pytest.fixture(scope="module")
def quickstart(installed, tmp_path_factory):
    """The folder in which budget-quickstart was run, and how that ended."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, installed("budget-quickstart", "--total_training_time", "30s", cwd=folder)


def test_the_wheel_has_two_packages_and_every_file_once(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"budget_trainer", "data_prep"}
    for home in ("recipes", "accelerate_configs"):
        inside = {name.removeprefix("budget_trainer/") for name in names if name.startswith(f"budget_trainer/{home}/")}
        files = [path for path in (ROOT / home).rglob("*") if path.suffix in (".yaml", ".sbatch")]
        assert inside == {str(path.relative_to(ROOT)) for path in files if path.parent.name != "ablations"}
    modules = {
        str(path.relative_to(ROOT)) for top in ("budget_trainer", "data_prep") for path in (ROOT / top).rglob("*.py")
    }
    assert modules == {name for name in names if name.endswith(".py")}


LOOK = """
import importlib.util, json, sys
from importlib.metadata import distributions
from accelerate.utils import is_deepspeed_available
from transformers.integrations.integration_utils import is_trackio_available, is_wandb_available
there = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
available = [is_deepspeed_available(), is_trackio_available(), is_wandb_available()]
print(json.dumps([[one.metadata["Name"] for one in distributions()], there, available, sys.path]))
"""
ABSENT = "deepspeed h5py wandb trackio codecarbon pytest ruff mkdocs nbclient tests".split()
THERE = "torch transformers evaluate sklearn scipy optuna sqlalchemy budget_trainer data_prep".split()


def test_the_environment_has_the_plain_dependencies_alone(wheel, plain, tmp_path):
    done = checked([plain.python, "-c", LOOK, *ABSENT, *THERE], cwd=tmp_path, env=plain.env)
    names, there, available, path = json.loads(done.stdout)
    assert there == THERE and not any(available)
    assert {*map(canonicalize_name, names)} == plain.holds.keys() | {"budget-trainer"}
    assert not [folder for folder in path if Path(folder) in (ROOT, *ROOT.parents)], "no clone"
    (made,) = distributions(path=[str(wheel)])
    extra = {Requirement(text).name for text in made.requires if "extra ==" in text}
    assert "pytest" in extra and {*map(canonicalize_name, extra)} & plain.holds.keys() <= {"setuptools"}  # PyTorch's


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_help_and_bad_input_of_every_command(ends, name):
    done = ends[HELP[name]]
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name} ") and done.stderr == "", done.stderr
    assert str(ROOT) not in done.stdout
    done = ends[BAD[name]]
    *_, line = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(("extra", "words"), NEEDS, ids=[f"{words[0]} {words[-1]}" for _, words in NEEDS])
def test_what_needs_an_extra_names_it_in_one_line(ends, extra, words):
    done = ends[words]
    *_, line = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and f"budget-trainer[{extra}]" in line, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr


def test_every_extra_is_asked_for():
    assert {extra for extra, _ in NEEDS} == set(CONFIG["options.extras_require"]) - OF_A_CLONE


def test_recipes_are_listed_shown_and_copied(installed, ends, tmp_path):
    listed = installed("budget-recipes", cwd=tmp_path).stdout
    assert all(
        f"  {name} " in listed for name in ("cpu_10m", "izsak2021", "glue/paper", "sweeps/cpu_10m", "data/wikibooks")
    )
    shown = installed("budget-recipes", "show", "cpu_10m", cwd=tmp_path).stdout
    assert installed("budget-recipes", "copy", "cpu_10m", "mine.yaml", cwd=tmp_path).returncode == 0
    assert shown == (tmp_path / "mine.yaml").read_text() == (ROOT / "recipes" / "cpu_10m.yaml").read_text()
    profile = Path(installed("budget-profile", "ddp", cwd=tmp_path).stdout.strip())
    assert profile.read_text() == (ROOT / "accelerate_configs" / "ddp.yaml").read_text()
    assert ROOT not in profile.parents
    printed, named, unknown = (ends[CONFIGS[name]] for name in ("mine.yaml", "cpu_10m", "cpu_10min"))
    assert printed.returncode == named.returncode == 0
    assert re.sub(r"#.*", "", printed.stdout) == re.sub(r"#.*", "", named.stdout)
    assert unknown.returncode == 2 and "did you mean cpu_10m?" in unknown.stderr


def test_quickstart_trains_and_fills_masks(quickstart):
    folder, done = quickstart
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (folder / "out" / "quickstart" / "final" / "model.safetensors").is_file()
    assert len(re.findall(r"^    \S+ [\d.]+ %   ", done.stdout, re.M)) == 5, "five masks"
    screen = done.stdout + done.stderr
    advice = ("Warning", "torchdynamo", "were not passed", "Setting accelerator", "[notice]", "accelerate config")
    assert not [text for text in advice if text in screen], "nothing of other libraries"
    stages = ("data: ", "model: ", "rehearsal: ", "training: ", "evaluation: ")
    assert [len(re.findall(rf"^\S+ \S+: {stage}", screen, re.M)) for stage in stages] == [1] * 5, "a line per stage"
    *_, title, first, glue, publish = done.stdout.rstrip().splitlines()
    assert title == "next:" and "fill_mask" in first and "finetune_glue" in glue and "publish" in publish
    assert re.search(r"^energy [\d.]+ Wh \(", done.stdout, re.M)
    assert {path.name for path in folder.iterdir()} == {"out"}


def test_a_launcher_takes_profile_and_module(installed, quickstart):
    folder, _ = quickstart
    line = "accelerate launch --config_file $(budget-profile cpu_2proc) -m budget_trainer.train_mlm quickstart"
    line += " --data_dir out/quickstart-data/blocks --output_dir out/two --total_training_time 5m --lr_schedule step"
    done = installed("bash", "-c", f"{line} --max_steps 3 --torch_compile false --auto_speed false", cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "out" / "two" / "final" / "config.json").is_file()


def test_the_planner_and_a_sweep_start_their_processes(installed, quickstart):
    folder, _ = quickstart
    flags = ["--data_dir", "out/quickstart-data/blocks", "--total_training_time", "3m"]  # too short to compile
    flags += ["--probe_seconds", "40", "--write", "planned.yaml"]
    done = installed("budget-plan", "quickstart", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "$(budget-profile cpu) -m budget_trainer.train_mlm planned.yaml" in done.stdout
    (folder / "seeds.yaml").write_text(
        "recipe: quickstart\naccelerate_config: cpu\nparameters: {seed: [1]}\ntime_per_trial: 20s\ntotal_time: 10m\n"
        "fixed: {data_dir: out/quickstart-data/blocks}\noutput_dir: out/sweep\n"
    )
    done = installed("budget-sweep", "seeds.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "-m budget_trainer.train_mlm" in (folder / "out" / "sweep" / "sweep_report.md").read_text()
