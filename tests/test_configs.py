"""Every YAML of the repository parses, and Accelerate takes every launch configuration."""

import argparse
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
HIDDEN = ("out", "build", "dist", "runs")
YAMLS = sorted(
    path
    for suffix in ("*.yaml", "*.yml", "*.cff")
    for path in ROOT.rglob(suffix)
    if not any(part.startswith(".") or part in HIDDEN for part in path.relative_to(ROOT).parts)
)


def launched(config: Path, *flags: str) -> argparse.Namespace:
    """What `accelerate launch --config_file config FLAGS script.py` would start."""
    arguments = launch_command_parser().parse_args(["--config_file", str(config), *flags, "script.py"])
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_parses_to_a_mapping(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_knows_every_key(path: Path) -> None:
    load_config_from_file(str(path))


@pytest.mark.parametrize(
    ("name", "processes", "multi", "cpu"),
    [("cpu", 1, False, True), ("cpu_2proc", 2, True, True), ("single_gpu", 1, False, False), ("ddp", 8, True, False)],
)
def test_a_configuration_starts_what_its_name_says(name: str, processes: int, multi: bool, cpu: bool) -> None:
    flags = ["--num_processes", "8"] if name == "ddp" else []
    arguments = launched(ROOT / "accelerate_configs" / f"{name}.yaml", *flags)
    assert (arguments.num_processes, arguments.multi_gpu, arguments.use_cpu) == (processes, multi, cpu)


def test_ddp_asks_for_the_number_of_gpus() -> None:
    with pytest.raises(ValueError, match="num_processes"):
        launched(ROOT / "accelerate_configs" / "ddp.yaml")
