"""Imports point one way: standard library < torch < transformers."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "budget_trainer"
STANDARD_ONLY = {"clock", "curves", "errors", "stages", "model_types", "stop_request", "__init__"}
STANDARD_ONLY |= {"step_times", "validation_plan", "watch_checks"}
STANDARD_ONLY |= {"command", "help_groups"}
OF_MIGRATION = ("original_flags", "original_values", "original_command", "launcher", "other_scripts", "differences")
STANDARD_ONLY |= {f"migration.{name}" for name in OF_MIGRATION}
STANDARD_ONLY |= {"planned", "planning.child", "planning.memory", "planning.sizes", "planning.candidates"}
STANDARD_ONLY |= {"planning.predict", "planning.result", "planning.text"}
NO_TRANSFORMERS = STANDARD_ONLY | {"distributed", "agreement", "scheduler", "checkpoints", "run_folder", "flops"}
NO_TRANSFORMERS |= {"objective", "hashing", "choice", "objective_checks", "whole_words", "rows", "permutation"}
STANDARD_ONLY |= {"glue.__init__", "glue.tasks", "glue.tsv", "glue.shares", "lifeline"}
STANDARD_ONLY |= {"glue.results", "glue.published", "glue.time_marked", "glue.suite_file"}
STANDARD_ONLY |= {"sweep.__init__", "sweep.records", "sweep.searched", "sweep.ranking"}
STANDARD_ONLY |= {"markdown", "hub_files", "glue.report_markdown"}
NO_TRANSFORMERS |= {*STANDARD_ONLY, "glue.scores"}
NO_TRANSFORMERS |= {"lamb", "optimizer_checks", "engine_optimizers", "attention", "fused_attention", "cross_entropy"}
LEAVES = {"errors", "curves", "clock", "distributed", "evaluation", "report", "stages", "flops"}
LEAVES |= {
    "lamb",
    "engine_optimizers",
    "card_markdown",
    "markdown",
    "data_statement",
    "checkpoints",
    "model_types",
    "layer_norm",
    "few_bit_dropout",
    "host_memory",
    "cross_entropy",
}
LEAVES |= {"command", "help_groups", "step_times", "stop_request", "validation_plan", "watch_checks"}
LEAVES |= {"card_scores", "hub_errors", "hub_files"}
LEAVES |= {"hashing", "choice", "whole_words", "objective_checks", "masked_batch", "twins", "rows", "permutation"}
LEAVES |= {"glue.tasks", "glue.shares", "lifeline"}
ABOVE_LEAVES = {
    "glue.tsv": {"errors", "glue.tasks"},
    "glue.scores": {"errors", "glue.tasks"},
    "agreement": {"distributed", "stop_request"},
    "objective": {"errors", "choice", "hashing", "masked_batch", "objective_checks", "twins"},
    "attention": {"errors", "few_bit_dropout"},
    "optimizer_checks": {"errors", "lamb"},
    "data": {"errors", "permutation", "rows"},
    "card_sections": {"card_markdown", "card_scores", "data_statement", "markdown"},
    "hub_client": {"errors", "hub_errors"},
}


def imports(path, top_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def ours(path):
    return {name.split(".", 1)[1] for name in imports(path) if name.startswith("budget_trainer.")}


MODULES = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in PACKAGE.rglob("*.py")}


PUBLISHING = {"publish", "hub_push", "hub_client", "hub_errors", "hub_files", "model_card", "hub_update"}
PUBLISHING |= {
    "command",
    "background_push",
    "card_sections",
    "card_scores",
    "card_markdown",
    "data_statement",
    "markdown",
}


def test_publishing_starts_without_torch():
    """It runs beside a training, in a process of its own: the client and YAML are all that it needs."""
    for name in PUBLISHING:
        roots = {module.split(".")[0] for module in imports(MODULES[name])}
        assert roots <= set(sys.stdlib_module_names) | {"budget_trainer", "huggingface_hub", "yaml"}, name
        assert ours(MODULES[name]) <= PUBLISHING | {"errors"}, name


def test_standard_library_only():
    for name in STANDARD_ONLY:
        roots = {module.split(".")[0] for module in imports(MODULES[name])}
        assert roots <= set(sys.stdlib_module_names) | {"budget_trainer"}, name


def test_no_transformers_below_the_trainer():
    for name in NO_TRANSFORMERS:
        roots = {module.split(".")[0] for module in imports(MODULES[name])}
        assert not roots & {"transformers", "accelerate", "datasets"}, name


def test_leaves_import_nothing_of_ours_but_the_error():
    for name in LEAVES:
        assert ours(MODULES[name]) <= {"errors"}, name


def test_what_stands_on_leaves_stands_on_these_only():
    for name, below in ABOVE_LEAVES.items():
        assert ours(MODULES[name]) <= below, name
        assert below <= LEAVES


def test_no_cycles():
    edges = {name: ours(path) for name, path in MODULES.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in done or name not in edges:
            return
        path.append(name)
        for other in edges[name]:
            visit(other)
        path.pop()
        done.add(name)

    for name in edges:
        visit(name)


def test_names_of_folders_and_the_escape_of_markdown_stand_once():
    """`finetune-<percent>` is read by one pattern, and text becomes Markdown by one escape."""
    for text, home in ((r"finetune-(\d", "hub_files"), (r"[\\`*", "markdown")):
        assert [name for name, path in MODULES.items() if text in path.read_text()] == [home]


def test_deepspeed_is_imported_only_by_the_optimizers():
    for name, path in MODULES.items():
        roots = {module.split(".")[0] for module in imports(path)}
        assert "deepspeed" not in roots or name == "engine_optimizers", name
    top = {module.split(".")[0] for module in imports(MODULES["engine_optimizers"], top_only=True)}
    assert not top & {"deepspeed", "apex"}, "only where they are asked for"


def test_scripts_do_not_import_each_other():
    scripts = {"train_mlm", "finetune_glue", "sweep"}
    for script in scripts:
        path = ROOT / f"{script}.py"
        if path.exists():
            assert not scripts & {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("code", ["import budget_trainer", "from budget_trainer import BudgetClock, make_curve"])
def test_the_clock_starts_without_heavy_imports(code):
    check = f"import sys; {code}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lazy_names_exist():
    import budget_trainer

    for name in budget_trainer.__all__:
        assert getattr(budget_trainer, name) is not None
    with pytest.raises(AttributeError):
        budget_trainer.nonesuch  # noqa: B018


def test_every_flag_is_read():
    """A flag nobody reads is a defect: each of ours is used outside of its declaration."""
    from dataclasses import fields

    from budget_trainer import arguments

    text = "".join(path.read_text() for name, path in MODULES.items() if name != "arguments")
    text += (ROOT / "train_mlm.py").read_text()
    for group in arguments.GROUPS[:-1]:
        for field in fields(group):
            assert f".{field.name}" in text or f'"{field.name}"' in text, field.name


def test_every_flag_of_finetune_glue_is_read():
    from dataclasses import fields

    from budget_trainer.glue import arguments

    text = "".join(
        path.read_text() for name, path in MODULES.items() if name.startswith("glue.") and name != "glue.arguments"
    )
    text += (ROOT / "finetune_glue.py").read_text()
    for group in arguments.GROUPS[:-1]:
        for field in fields(group):
            assert f".{field.name}" in text or f'"{field.name}"' in text, field.name


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
    from dataclasses import fields

    from budget_trainer.arguments import RunArguments
    from budget_trainer.refused_flags import REPLACED

    names = {field.name for field in fields(RunArguments) if field.init}
    assert not names - set(READ) - set(REPLACED), "new flags: say whether they are read"
    assert not set(READ) & set(REPLACED)
