"""Recipes, grids, sweep files and profiles by name; what setup.cfg puts into the package."""

import configparser
import re
import shlex
import sys
from pathlib import Path

import pytest

from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core import package_data
from budget_trainer.core.errors import InputError
from budget_trainer.core.package_data import launch_text, main, next_steps, profile, profile_path, recipe_path
from budget_trainer.glue.plan import read_grid
from budget_trainer.sweep.command import check_start, parse_request
from data_prep import quickstart
from tests.conftest import ROOT, TINY, words
from tests.test_docs_commands import check_command

RECIPES, PROFILES = ROOT / "recipes", ROOT / "accelerate_configs"


def test_setup_cfg_names_every_package_and_every_file():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    data = {"budget_trainer.recipes": RECIPES, "budget_trainer.accelerate_configs": PROFILES}
    folders = [path.parent for name in ("budget_trainer", "data_prep") for path in (ROOT / name).rglob("__init__.py")]
    packages = {str(folder.relative_to(ROOT)).replace("/", ".") for folder in folders}
    assert set(setup["options"]["packages"].split()) == packages | data.keys()
    patterns = setup["options.package_data"]
    for package, home in data.items():
        assert f"{package} = {home.name}" in setup["options"]["package_dir"]
        found = {path for pattern in patterns[package].split() for path in home.glob(pattern)}
        files = {path for path in home.rglob("*") if path.is_file() and path.suffix != ".md"}
        assert found == {path for path in files if path.parent.name != "ablations"}  # these are the benchmarks'


@pytest.mark.parametrize(
    ("text", "folder", "file"),
    [
        ("cpu_10m", "", "cpu_10m.yaml"),
        ("paper", "glue", "glue/paper.yaml"),
        ("glue/paper", "", "glue/paper.yaml"),
        ("cpu_10m", "sweeps", "sweeps/cpu_10m.yaml"),
        ("wikibooks", "data", "data/wikibooks.yaml"),
    ],
)
def test_a_name_finds_its_file(text, folder, file, tmp_path, monkeypatch):
    """From any folder, beside a folder of that name too; a file of that name wins."""
    monkeypatch.chdir(tmp_path)
    assert recipe_path(text, "recipe", folder) == str(RECIPES / file)
    (tmp_path / text).mkdir(parents=True)
    assert recipe_path(text, "recipe", folder) == str(RECIPES / file)
    (tmp_path / text).rmdir()
    (tmp_path / text).touch()
    assert recipe_path(text, "recipe", folder) == text


@pytest.mark.parametrize(
    ("text", "folder", "said"),
    [
        ("cpu_10min", "", "recipe: 'cpu_10min' is neither a file nor a recipe of the package; did you mean cpu_10m?"),
        ("papr", "glue", "did you mean paper?"),
        ("paper", "", "give a YAML file, or a name that budget-recipes lists"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(text, folder, said):
    with pytest.raises(InputError) as error:
        recipe_path(text, "recipe", folder)
    assert said in str(error.value)
    for path in ("none.yaml", "folder/none", "./cpu_10m"):  # its reader says that it is not there
        assert recipe_path(path, "recipe", folder) == path


def test_a_profile_is_a_name_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in (("ddp", "ddp.yaml"), ("slurm.sbatch", "slurm.sbatch")):
        assert profile_path(name, "profile") == PROFILES / file
    (tmp_path / "ddp").touch()
    assert profile_path("ddp", "profile") == Path("ddp")
    for text, fix in (("zero9", "did you mean zero"), ("none.yaml", "give a profile as in accelerate_configs/")):
        with pytest.raises(InputError, match=rf"^profile: {text} is not there; {fix}"):
            profile_path(text, "profile")


def test_a_profile_of_deepspeed_names_the_extra_where_that_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    told = r"zero3 starts DeepSpeed, which is not installed; pip install 'budget-trainer\[deepspeed\]', or give"
    assert profile(["zero3"]) == 2 and profile(["fsdp"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: name: {told}", line)
    with pytest.raises(InputError, match=rf"^profile: {told}"):
        quickstart._parse(["--profile", "zero3"])
    sweep = parse_request(["cpu_10m", "--output_dir", str(tmp_path), "--accelerate_config", "zero3"]).spec()
    with pytest.raises(InputError, match=rf"^accelerate_config: {told}"):
        check_start(sweep, True)


def test_list_show_copy_and_profile(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines if line.startswith("  ")}
    there = {path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml")}
    assert set(listed) == {str(path) for path in there if path.parts[0] != "ablations"}
    assert all(len(line.split()) > 3 and len(line) <= 100 for line in listed.values()), "each with a line"
    assert main(["show", "glue/quick"]) == 0
    assert capsys.readouterr().out == (RECIPES / "glue" / "quick.yaml").read_text()
    for file, copied in ((), "cpu_1h.yaml"), (("own/mine.yaml",), "own/mine.yaml"):
        assert main(["copy", "cpu_1h", *file]) == 0
        assert (tmp_path / copied).read_text() == (RECIPES / "cpu_1h.yaml").read_text()
    assert profile(["ddp"]) == 0 and profile([]) == 0
    said = capsys.readouterr().out.splitlines()
    assert str(PROFILES / "ddp.yaml") in said and {"cpu", "zero2", "slurm.sbatch"} <= set(said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["show"], "name: missing; give one of "),
        (["show", "cpu10m"], "name: 'cpu10m' is no recipe of the package; did you mean cpu_10m?"),
        (["copy", "cpu_1h", "there.yaml"], "file: there.yaml is there already; give another name"),
        (["delete", "cpu_1h"], "command line: argument action: invalid choice"),
    ],
)
def test_bad_input_of_budget_recipes(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").touch()
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert profile(["dpp"]) == 2 and "did you mean ddp?" in capsys.readouterr().err


def test_every_command_takes_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"data_dir": "data", "output_dir": "out", "total_training_time": "1h", "use_cpu": "true"}
    assert parse_recipe(["quickstart", *words(flags)]).path == str(RECIPES / "quickstart.yaml")
    assert read_grid("paper", None, 1).seeds == [1, 2, 3, 4, 5]
    spec = parse_request(["cpu_10m", "--output_dir", "out"]).spec()
    assert spec.job_name == "cpu_10m" and spec.accelerate_config == PROFILES / "cpu.yaml"
    assert spec.base_recipe()["hidden_size"] == "256"
    (tmp_path / "quickstart").write_text("".join(f"{key}: {value}\n" for key, value in TINY.items()))
    assert parse_recipe(["quickstart", *words(flags)]).model.hidden_size == TINY["hidden_size"], "a file wins"


def test_commands_are_those_of_a_clone_or_of_an_installed_package(monkeypatch, tmp_path):
    line = "accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 4 train_mlm.py"
    assert launch_text("ddp", "--num_processes 4") == line
    monkeypatch.chdir(tmp_path)
    line = "accelerate launch --config_file $(budget-profile ddp) --num_processes 4 -m budget_trainer.train_mlm"
    assert launch_text("ddp", "--num_processes 4") == line, "outside of the clone its files have no short name"
    monkeypatch.setattr(package_data, "CLONE", None)
    assert launch_text("ddp", "--num_processes 4") == line


def test_what_to_do_next_are_commands_as_they_stand(monkeypatch, tmp_path):
    title, *lines = next_steps(tmp_path / "a run").splitlines()
    assert title == "next:" and [line[2:10].strip() for line in lines] == ["try it", "GLUE", "publish"]
    for line in lines:
        command = shlex.split(line[line.index("python") :])
        assert any(str(tmp_path / "a run") in word for word in command)
        check_command(command, monkeypatch)


CPU = "use_cpu: true\nnum_processes: 2\n"


@pytest.mark.parametrize(
    ("profile", "launch", "variables", "threads"),
    [
        (CPU, "", {}, "4"),
        (CPU, "--num_processes 4", {}, "2"),
        (CPU, "--num_processes=16", {}, "1"),
        ("use_cpu: true\n", "", {}, "8"),
        (CPU, "", {"OMP_NUM_THREADS": "3"}, None),
        ("use_cpu: false\nnum_processes: -1\n", "", {}, None),
    ],
)
def test_quickstart_chooses_the_threads_that_accelerate_would(
    monkeypatch, tmp_path, profile, launch, variables, threads
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(quickstart.psutil, "cpu_count", lambda logical: 8)
    (tmp_path / "profile.yaml").write_text(profile)
    args = quickstart._parse(["--profile", str(tmp_path / "profile.yaml"), f"--launch={launch}"])
    assert quickstart._threads(args) == ({} if threads is None else {"OMP_NUM_THREADS": threads})


@pytest.mark.parametrize(
    ("profile", "launch", "said"),
    [
        ("use_cpu: [", "", "profile: .*profile.yaml is no YAML file; give one that `accelerate config` writes"),
        (CPU, "--main_process_ip 'a", "launch: .* cannot be read .No closing quotation.; close the quotation mark"),
    ],
)
def test_quickstart_refuses_what_it_cannot_read(tmp_path, profile, launch, said):
    (tmp_path / "profile.yaml").write_text(profile)
    with pytest.raises(InputError, match=f"^{said}"):
        quickstart._parse(["--profile", str(tmp_path / "profile.yaml"), f"--launch={launch}"])
