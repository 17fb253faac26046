"""Every YAML of the repository parses, and Accelerate takes every launch configuration."""

import argparse
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from benchmarks import ablations
from budget_trainer.config.recipe import Recipe, parse_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ABLATIONS = sorted((ROOT / "recipes" / "ablations").glob("*.yaml"))
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


@pytest.mark.parametrize(
    ("name", "stage", "offload"),
    [
        ("zero1", 1, ("none", "none")),
        ("zero2", 2, ("none", "none")),
        ("zero3", 3, ("none", "none")),
        ("zero2_offload", 2, ("cpu", "none")),
        ("zero3_offload", 3, ("cpu", "cpu")),
    ],
)
def test_a_zero_profile_starts_deepspeed(name: str, stage: int, offload: tuple[str, str]) -> None:
    arguments = launched(ROOT / "accelerate_configs" / f"{name}.yaml", "--num_processes", "2")
    assert (arguments.use_deepspeed, arguments.zero_stage, arguments.num_processes) == (True, stage, 2)
    assert (arguments.offload_optimizer_device, arguments.offload_param_device) == offload


def test_fsdp_starts_fsdp() -> None:
    arguments = launched(ROOT / "accelerate_configs" / "fsdp.yaml", "--num_processes", "2")
    assert (arguments.use_fsdp, arguments.fsdp_version, arguments.num_processes) == (True, 2, 2)


@pytest.mark.parametrize(("name", "deepspeed"), [("multi_node_ddp", False), ("multi_node_zero2", True)])
def test_a_profile_of_several_machines(name: str, deepspeed: bool) -> None:
    flags = ["--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    arguments = launched(ROOT / "accelerate_configs" / f"{name}.yaml", *flags)
    assert (arguments.num_machines, arguments.num_processes, arguments.machine_rank) == (2, 16, 1)
    assert (arguments.use_deepspeed, arguments.multi_gpu) == (deepspeed, not deepspeed)
    assert (arguments.main_process_ip, arguments.main_process_port) == ("10.0.0.1", 29500)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_deepspeed_leaves_optimizer_schedule_and_numbers_to_the_recipe(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    own = {
        "zero_stage",
        "offload_optimizer_device",
        "offload_param_device",
        "zero3_init_flag",
        "zero3_save_16bit_model",
    }
    assert set(config.get("deepspeed_config", {})) <= own | {"deepspeed_multinode_launcher"}
    assert config["mixed_precision"] == "no"


def test_the_number_of_gpus_has_to_be_given() -> None:
    with pytest.raises(ValueError, match="num_processes"):
        launched(ROOT / "accelerate_configs" / "ddp.yaml")
    named = {path.stem for path in CONFIGS if yaml.safe_load(path.read_text())["num_processes"] == -1}
    assert named == {path.stem for path in CONFIGS} - {"cpu", "cpu_2proc", "single_gpu"}


def test_the_documents_say_which_to_choose() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text()
    assert not [path.name for path in (ROOT / "accelerate_configs").iterdir() if f"`{path.name}`" not in page]


def flags_of(recipe):
    return recipe.as_dict(recipe.training_arguments())


def parsed(path: Path, folder: Path) -> Recipe:
    """What train_mlm.py makes of the recipe; fp16 is left out, because it needs a GPU."""
    flags = ["--data_dir", str(folder), "--output_dir", str(folder / "out"), "--total_training_time", "1h"]
    return parse_recipe([str(path), *flags, "--use_cpu", "true", "--fp16", "false"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_train_mlm_takes_the_recipe(path: Path, tmp_path: Path) -> None:
    recipe = parsed(path, tmp_path)
    assert recipe.model.hidden_size % recipe.model.num_attention_heads == 0
    assert recipe.explicit >= {"model_type", "optimizer_type", "learning_rate", "curve", "warmup_proportion"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_its_row_and_its_command(path: Path) -> None:
    """In the table of results; a recipe that nobody has run says how to run it."""
    readme = (ROOT / "recipes" / "README.md").read_text()
    rows = [line.split("|") for line in readme.splitlines() if line.startswith(f"| `{path.name}`")]
    rates = [row[5].strip() for row in rows if len(row) == 10]  # 8 columns; tokens/s is the fifth
    assert rates, "no row"
    assert set(rates) != {"unmeasured"} or f"train_mlm.py recipes/{path.name}" in readme


def test_the_papers_batch_is_the_same_on_one_gpu_and_on_eight(tmp_path: Path) -> None:
    eight, one = (parsed(ROOT / "recipes" / f"{name}.yaml", tmp_path) for name in ("izsak2021", "izsak2021_1gpu"))
    batch = [
        run.per_device_train_batch_size * run.gradient_accumulation_steps for run in (eight.training, one.training)
    ]
    assert [8 * batch[0], batch[1]] == [4096, 4096]
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
