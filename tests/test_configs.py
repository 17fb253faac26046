"""Every YAML of the repository parses, Accelerate takes every launch configuration, the Dockerfile installs what was tested."""

import argparse
import json
import re
from configparser import ConfigParser
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from benchmarks import ablations
from budget_trainer.config.arguments import RunArguments
from budget_trainer.config.recipe import Recipe, parse_recipe
from tests import documents
from tests.conftest import ROOT, words

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ABLATIONS = sorted((ROOT / "recipes" / "ablations").glob("*.yaml"))
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def launched(config: Path, *flags: str) -> argparse.Namespace:
    """What `accelerate launch --config_file config FLAGS script.py` would start."""
    arguments = launch_command_parser().parse_args(["--config_file", str(config), *flags, "script.py"])
    return _validate_launch_command(arguments)[0]


def test_every_yaml_parses_to_a_mapping() -> None:
    for path in [*ROOT.glob("*.cff"), *ROOT.glob(".*.yaml"), *(ROOT / "recipes").rglob("*.yaml"), *CONFIGS]:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


TWO = ["--num_processes", "2"]
OF_NODES = {"num_processes": 16, "machine_rank": 1, "main_process_ip": "10.0.0.1"}
NODES, OF_NODES = words(OF_NODES), {**OF_NODES, "num_machines": 2, "main_process_port": 29500}


def zero(stage: int, optimizer: str = "none", parameters: str = "none") -> dict[str, object]:
    started = {"use_deepspeed": True, "zero_stage": stage, "num_processes": 2}
    return started | {"offload_optimizer_device": optimizer, "offload_param_device": parameters}


@pytest.mark.parametrize(
    ("name", "flags", "started"),
    [
        ("cpu", [], {"num_processes": 1, "multi_gpu": False, "use_cpu": True}),
        ("cpu_2proc", [], {"num_processes": 2, "multi_gpu": True, "use_cpu": True}),
        ("single_gpu", [], {"num_processes": 1, "multi_gpu": False, "use_cpu": False}),
        ("mps", [], {"num_processes": 1, "multi_gpu": False, "use_cpu": False}),
        ("ddp", ["--num_processes", "8"], {"num_processes": 8, "multi_gpu": True, "use_cpu": False}),
        ("zero1", TWO, zero(1)),
        ("zero2", TWO, zero(2)),
        ("zero3", TWO, zero(3)),
        ("zero2_offload", TWO, zero(2, "cpu")),
        ("zero3_offload", TWO, zero(3, "cpu", "cpu")),
        ("fsdp", TWO, {"use_fsdp": True, "fsdp_version": 2, "num_processes": 2}),
        ("multi_node_ddp", NODES, {**OF_NODES, "use_deepspeed": False, "multi_gpu": True}),
        ("multi_node_zero2", NODES, {**OF_NODES, "use_deepspeed": True, "multi_gpu": False}),
    ],
)
def test_a_configuration_starts_what_its_name_says(name: str, flags: list[str], started: dict[str, object]) -> None:
    arguments = launched(ROOT / "accelerate_configs" / f"{name}.yaml", *flags)
    assert {key: getattr(arguments, key) for key in started} == started


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_and_optimizer_schedule_and_numbers_are_the_recipes(path: Path) -> None:
    load_config_from_file(str(path))
    config = yaml.safe_load(path.read_text())
    own = "zero_stage offload_optimizer_device offload_param_device zero3_init_flag zero3_save_16bit_model"
    assert set(config.get("deepspeed_config", {})) <= {*own.split(), "deepspeed_multinode_launcher"}
    assert config["mixed_precision"] == "no"


def test_the_number_of_gpus_has_to_be_given() -> None:
    with pytest.raises(ValueError, match="num_processes"):
        launched(ROOT / "accelerate_configs" / "ddp.yaml")
    named = {path.stem for path in CONFIGS if yaml.safe_load(path.read_text())["num_processes"] == -1}
    assert named == {path.stem for path in CONFIGS} - {"cpu", "cpu_2proc", "single_gpu", "mps"}


SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
DOCKER = (
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL STOPSIGNAL USER VOLUME WORKDIR".split()
)


def instructions() -> list[tuple[str, str]]:
    """(instruction, what follows) of each in the Dockerfile, lines that go on joined."""
    text = re.sub(r"(?m)^[ \t]*#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
    split = [line.strip().partition(" ") for line in text.splitlines() if line.strip()]
    return [(kind, rest.strip()) for kind, _, rest in split]


def test_the_dockerfile_installs_the_tested_versions_on_a_cuda_base() -> None:
    found = instructions()
    assert found[0][0] == "FROM" and re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-[\w-]+-ubuntu\d\d\.04", found[0][1])
    assert {kind for kind, _ in found} <= set(DOCKER)
    (at,) = (place for place, (kind, text) in enumerate(found) if kind == "RUN" and "pip install" in text)
    (pip,) = (line for line in documents.commands(found[at][1]) if line[:2] == ["pip", "install"])
    assert pip[pip.index("--constraint") + 1] == "constraints.txt"
    assert pip[-1].partition("[")[0] == "." and ("COPY", ". .") in found[:at]
    assert set(re.findall(r"\w+", pip[-1])) <= set(SETUP["options.extras_require"])
    (command,) = (json.loads(text) for kind, text in found if kind == "CMD")
    assert f"{command[0]} =" in SETUP["options.entry_points"]["console_scripts"]


def tested_versions() -> dict[str, str]:
    lines = re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text())
    return {canonicalize_name(name): version for name, version in lines}


def test_constraints_have_a_version_within_each_requirement() -> None:
    """Of the plain installation, and of every extra but one: that of other libraries' tests has constraints of its own."""
    tested = tested_versions()
    extras = [text for name, text in SETUP["options.extras_require"].items() if name != "ecosystem-test"]
    for line in "\n".join([SETUP["options"]["install_requires"], *extras]).split():
        needed = Requirement(line)
        assert needed.specifier.contains(tested[canonicalize_name(needed.name)]), line


def test_constraints_admit_the_lowest_python() -> None:
    """Each version installs on the first Python that setup.cfg admits: a distribution's is often not its newest patch."""
    (lowest,) = re.findall(r"^>=([\d.]+)$", SETUP["options"]["python_requires"])
    tested = tested_versions()
    here = [found for found in distributions() if found.version == tested.get(canonicalize_name(found.name))]
    if not here:
        pytest.skip("none of the tested versions is installed")
    for found in here:
        needs = found.metadata["Requires-Python"] or ""
        assert SpecifierSet(needs).contains(lowest), f"{found.name} {found.version} needs Python {needs}"


def flags_of(recipe):
    return recipe.as_dict(RunArguments.of(recipe.training))


def parsed(path: Path, folder: Path) -> Recipe:
    """What train_mlm.py makes of the recipe; fp16 is left out, because it needs a GPU."""
    flags = {"data_dir": folder, "output_dir": folder / "out", "total_training_time": "1h", "use_cpu": "true"}
    return parse_recipe([str(path), *words({**flags, "fp16": "false"})])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_train_mlm_takes_the_recipe(path: Path, tmp_path: Path) -> None:
    recipe = parsed(path, tmp_path)
    assert recipe.explicit >= {"model_type", "optimizer_type", "learning_rate", "curve", "warmup_proportion"}


def test_the_papers_batch_is_the_same_on_one_gpu_and_on_eight(tmp_path: Path) -> None:
    eight, one = (parsed(ROOT / "recipes" / f"{name}.yaml", tmp_path) for name in ("izsak2021", "izsak2021_1gpu"))
    for run, processes in ((eight.training, 8), (one.training, 1)):
        assert processes * run.per_device_train_batch_size * run.gradient_accumulation_steps == 4096
    same = {name: (value, flags_of(one)[name]) for name, value in flags_of(eight).items()}
    assert {name for name, (a, b) in same.items() if a != b} == {"recipe", "gradient_accumulation_steps"}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_ablation_changes_its_recipe(path: Path, tmp_path: Path) -> None:
    base = ROOT / "recipes" / path.name
    variants = ablations.gather(str(path), [])
    ablations.check(variants, [str(base)])
    assert 1 <= len(variants) <= 12
    before = flags_of(parsed(base, tmp_path))
    for name, changes in variants.items():
        after = flags_of(parsed(Path(ablations.write_variant(base, changes, tmp_path / "recipe.yaml")), tmp_path))
        different = {key for key in before if before[key] != after[key]} - {"recipe"}
        assert different and different <= set(changes), name
