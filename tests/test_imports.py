"""Imports point one way, and every flag is read."""

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import budget_trainer
from budget_trainer.config.arguments import REPLACED, RunArguments
from tests.conftest import ROOT

PACKAGE = ROOT / "budget_trainer"
STORIES = {script: PACKAGE / f"{script}.py" for script in ("train_mlm", "finetune_glue")}
STORIES |= {"sweep": PACKAGE / "sweep" / "__init__.py"}
MODULES = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in PACKAGE.rglob("*.py")}


def test_the_contracts_of_setup_cfg_hold():
    """Which package may import which, and what needs no torch, stands in setup.cfg as contracts of import-linter."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "setup.cfg"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for script, story in STORIES.items():
        others = "|".join(other for other in STORIES if other != script)
        imported = (
            rf"^\s*(from|import) (optuna|{others}|budget_trainer\.({others})|budget_trainer import .*\b({others}))\b"
        )
        assert not re.search(imported, story.read_text(), re.M), script
        starter = (ROOT / f"{script}.py").read_text()
        assert (
            re.search(rf"^from budget_trainer\.{script} import \w+$", starter, re.M) and "import torch" not in starter
        )


def test_the_clock_starts_without_heavy_imports():
    check = "import sys; from budget_trainer import BudgetClock, make_curve; "
    check += "assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lazy_names_exist():
    for name in budget_trainer.__all__:
        assert getattr(budget_trainer, name) is not None
    with pytest.raises(AttributeError):
        budget_trainer.nonesuch  # noqa: B018


@pytest.mark.parametrize(("group", "package"), [("config.arguments", ""), ("glue.arguments", "glue.")])
def test_every_flag_is_read(group, package):
    """A flag nobody reads is a defect: each of ours is used outside of its declaration."""
    arguments = importlib.import_module(f"budget_trainer.{group}")
    homes = [path for name, path in MODULES.items() if name.startswith(package) and name != "config.arguments"]
    text = "".join(path.read_text() for path in [*homes, *STORIES.values()])
    for flag in (flag for group in arguments.GROUPS[:-1] for flag in group.__dataclass_fields__):
        assert f".{flag}" in text or f'"{flag}"' in text or f"    {flag}: " in text, flag


# TrainingArguments that Trainer, Accelerate or this project read in such a run.
READ = """output_dir per_device_train_batch_size max_steps learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon
max_grad_norm gradient_accumulation_steps average_tokens_across_devices bf16 fp16 bf16_dtype tf32 logging_strategy
logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm
report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id save_total_limit seed
full_determinism use_cpu torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context dataloader_in_order accelerator_config parallelism_config deepspeed fsdp fsdp_config
ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
local_rank resume_from_checkpoint include_num_input_tokens_seen debug skip_memory_metrics liger_kernel_config
use_liger_kernel use_cache place_model_on_device push_to_hub hub_model_id hub_strategy hub_private_repo""".split()


def test_every_flag_of_training_arguments_is_read_or_refused():
    names = {field.name for field in fields(RunArguments) if field.init}
    assert not names - set(READ) - set(REPLACED), "new flags: say whether they are read"
    assert not set(READ) & set(REPLACED)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path):
    """Many of its imports stand in functions that only a long run calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in (
            "budget_trainer",
            "data_prep",
            "benchmarks",
        ):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), (
                    f"{node.module}.{name}"
                )
