"""The wheel of this tree, installed where there is no clone: its commands, files and child processes."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.config.test_command_line import ENTRY_POINTS
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BUILT_FROM = "setup.cfg pyproject.toml README.md LICENSE budget_trainer data_prep recipes accelerate_configs".split()


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
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    checked([*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, folder / "tree"])
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What runs a command of the installed package outside of any clone: its words to the finished process."""
    site = tmp_path_factory.mktemp("installed") / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    checked([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel])
    path = os.pathsep.join([str(site / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": path, "OMP_NUM_THREADS": "1"}

    def call(*command, cwd):
        return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)

    return call


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


def test_the_plain_dependencies_are_enough_for_all_three_scripts(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needed = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", archive.read(name).decode(), re.M)
    assert {"evaluate", "scikit-learn", "scipy", "optuna", "SQLAlchemy"} <= set(needed)
    for package in needed:
        assert importlib.metadata.version(package)


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_help_and_bad_input_of_every_command(installed, name, tmp_path):
    done = installed(name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {name} ") and "Traceback" not in done.stderr
    assert str(ROOT) not in done.stdout
    bad = ["--no_such_flag", *(["1"] if name != "budget-migrate" else [])]
    done = installed(name, *bad, cwd=tmp_path)
    *_, line = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_recipes_are_listed_shown_and_copied(installed, tmp_path):
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
    flags = ["--data_dir", "data", "--output_dir", "out", "--total_training_time", "10m", "--print_config"]
    printed = installed("budget-train-mlm", "mine.yaml", *flags, cwd=tmp_path)
    named = installed("budget-train-mlm", "cpu_10m", *flags, cwd=tmp_path)
    assert printed.returncode == named.returncode == 0
    assert re.sub(r"#.*", "", printed.stdout) == re.sub(r"#.*", "", named.stdout)
    done = installed("budget-train-mlm", "cpu_10min", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "did you mean cpu_10m?" in done.stderr


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
    done = installed("bash", "-c", f"{line} --max_steps 3", cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "out" / "two" / "final" / "config.json").is_file()


def test_the_planner_and_a_sweep_start_their_processes(installed, quickstart):
    folder, _ = quickstart
    flags = ["--data_dir", "out/quickstart-data/blocks", "--total_training_time", "10m"]
    done = installed("budget-plan", "quickstart", *flags, "--write", "planned.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "$(budget-profile cpu) -m budget_trainer.train_mlm planned.yaml" in done.stdout
    (folder / "seeds.yaml").write_text(
        "recipe: quickstart\naccelerate_config: cpu\nparameters: {seed: [1]}\ntime_per_trial: 20s\ntotal_time: 10m\n"
        "fixed: {data_dir: out/quickstart-data/blocks}\noutput_dir: out/sweep\n"
    )
    done = installed("budget-sweep", "seeds.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "-m budget_trainer.train_mlm" in (folder / "out" / "sweep" / "sweep_report.md").read_text()
