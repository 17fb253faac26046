"""What the launcher's configuration asks for beside the recipe is taken over or refused, and never comes back."""

import os
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
import torch
from transformers import Trainer

from budget_trainer.config.arguments import RunArguments
from budget_trainer.core.errors import InputError
from budget_trainer.core.jobs import check_unseen
from budget_trainer.glue.suite import run_suite
from budget_trainer.plan import main as plan
from budget_trainer.sweep.command import check_start
from budget_trainer.training.launch import _take_over, count_devices
from budget_trainer.training.trainer import TimeBudgetTrainer
from tests.conftest import ROOT
from tests.model.models import tiny

COMPILES = {"DYNAMO_BACKEND": "INDUCTOR", "DYNAMO_MODE": "default", "DYNAMO_USE_FULLGRAPH": "False"}


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """The arguments of a run under a launcher that set these variables."""

    def call(variables, **flags):
        for name, value in variables.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)
        return RunArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **flags)

    return call


@pytest.mark.parametrize(("variables", "flags"), [({"USE_DEEPSPEED": "true"}, {}), ({}, {"deepspeed": "zero.json"})])
def test_without_deepspeed_one_line_names_the_extra(launched, monkeypatch, variables, flags):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(InputError, match=r"^deepspeed: not installed; pip install 'budget-trainer\[deepspeed\]'"):
        launched(variables, **flags)


@pytest.mark.parametrize(
    ("variables", "flags", "found"),
    [
        ({"MIXED_PRECISION": "bf16"}, {}, {"bf16": True, "mixed_precision": "bf16"}),
        ({"MIXED_PRECISION": "BF16"}, {"bf16": True}, {"bf16": True, "mixed_precision": "bf16"}),
        ({"MIXED_PRECISION": "no"}, {"bf16": True}, {"bf16": True, "mixed_precision": "bf16"}),
        ({"MIXED_PRECISION": "no"}, {}, {"bf16": False, "mixed_precision": "no"}),
        ({"MIXED_PRECISION": "fp16"}, {}, {"fp16": False, "mixed_precision": "no"}),
        ({}, {}, {"bf16": False, "mixed_precision": "no", "torch_compile": False}),
        (COMPILES, {}, {"torch_compile": True, "torch_compile_backend": "inductor", "torch_compile_mode": None}),
        (
            COMPILES | {"DYNAMO_MODE": "max-autotune"},
            {"torch_compile": True, "torch_compile_mode": "max-autotune"},
            {"torch_compile_backend": "inductor", "torch_compile_mode": "max-autotune"},
        ),
        ({"DYNAMO_BACKEND": "NO", "DYNAMO_USE_FULLGRAPH": "True"}, {}, {"torch_compile": False}),
        ({"DYNAMO_BACKEND": "no"}, {"torch_compile": True}, {"torch_compile_backend": "inductor"}),
    ],
)
def test_the_arguments_say_what_will_run(launched, variables, flags, found):
    args = launched(variables, **flags)
    assert _take_over(args) is False
    assert {name: getattr(args, name) for name in found} == found
    # What asked is gone: where bf16 or compiling is switched off later, nothing switches it on again.
    args.bf16, args.mixed_precision, args.torch_compile, args.torch_compile_backend = False, "no", False, None
    accelerator = Trainer(tiny("bert"), args).accelerator
    assert accelerator.mixed_precision == "no" and accelerator.state.dynamo_plugin.backend.value == "NO"
    # `check_launch` knows a launcher by this variable.
    assert ("ACCELERATE_MIXED_PRECISION" in os.environ) is ("MIXED_PRECISION" in variables)


def test_layer_by_layer(launched):
    assert _take_over(launched(COMPILES | {"DYNAMO_USE_REGIONAL_COMPILATION": "True"})) is True


@pytest.mark.parametrize(
    ("variables", "named", "flags", "expected"),
    [
        (
            {"MIXED_PRECISION": "bf16"},
            {"bf16"},
            {},
            "mixed_precision: the launcher's configuration says bf16, but bf16 is",
        ),
        ({"MIXED_PRECISION": "fp16"}, {"bf16"}, {"bf16": True}, "says fp16, but bf16 is true; leave one out"),
        ({"MIXED_PRECISION": "fp8"}, (), {}, "mixed_precision: fp8 is not trained here; write bf16 or 'no' into"),
        (COMPILES, {"torch_compile"}, {}, "compiles with inductor, the recipe says torch_compile false; leave one"),
        (
            COMPILES | {"DYNAMO_BACKEND": "EAGER"},
            {"torch_compile"},
            {"torch_compile": True},
            "dynamo_config: .* with eager, the recipe says torch_compile with inductor; leave one of them out",
        ),
        (
            COMPILES | {"DYNAMO_BACKEND": "nobody's"},
            (),
            {},
            "torch_compile_backend: nobody's is unknown; give one of aot_",
        ),
        (COMPILES | {"DYNAMO_MODE": "fast"}, (), {}, "torch_compile_mode: fast is unknown; give one of default, "),
        ({}, (), {"torch_compile": True, "torch_compile_mode": "fast"}, "torch_compile_mode: fast is unknown; give"),
        (COMPILES | {"DYNAMO_USE_FULLGRAPH": "True"}, (), {}, "dynamo_use_fullgraph cannot be chosen, shapes"),
        (COMPILES | {"DYNAMO_USE_DYNAMIC": "true"}, (), {}, "dynamo_use_dynamic cannot be chosen, shapes"),
        ({"USE_MEGATRON_LM": "true"}, (), {}, "distributed_type: MEGATRON_LM is not trained here; launch"),
        (
            {"USE_PARALLELISM_CONFIG": "true"},
            (),
            {},
            "distributed_type: PARALLELISM_CONFIG is not trained here; launch",
        ),
    ],
)
def test_two_that_contradict_each_other_are_refused(launched, variables, named, flags, expected):
    args = launched(variables, **flags)
    with pytest.raises(InputError, match=expected):
        _take_over(args, named)


def test_glue_compiles_nothing(launched):
    with pytest.raises(InputError, match="dynamo_config: .* rows differ in length, so nothing is compiled here; take"):
        _take_over(launched(COMPILES), compiles=False)


@pytest.mark.parametrize("name", [f"ACCELERATE_{n}" for n in ("MIXED_PRECISION", "DYNAMO_BACKEND", "USE_FSDP")])
def test_a_suite_a_sweep_or_a_plan_says_what_its_runs_would_not_see(monkeypatch, launched, capfd, name):
    args = launched({})
    monkeypatch.setenv(name, "NO")
    check_unseen()
    monkeypatch.setenv(name, "BF16")
    assert plan([str(ROOT / "recipes" / "quickstart.yaml")]) == 2
    assert f"error: {name}: bf16 of the launcher's" in capfd.readouterr().err
    for start in (
        check_unseen,
        partial(check_start, Mock(), True),
        partial(run_suite, Mock(run=args), Mock(), Mock()),
    ):
        with pytest.raises(
            InputError, match=f"^{name}: bf16 of the launcher's configuration would not reach the runs"
        ):
            start()


def test_a_run_is_computed_and_reported_in_what_the_launcher_asked_for(monkeypatch, open_run):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for name, value in (COMPILES | {"DYNAMO_USE_REGIONAL_COMPILATION": "True"}).items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    run = open_run()
    assert run.flags["bf16"] is run.flags["torch_compile"] is run.flags["regional_compile"] is True
    run.make_model()
    inputs = run.collator(run.blocks.__getitems__(range(2)))
    run.args.torch_compile, run.args.torch_compile_backend = False, None  # as on a machine without a compiler
    run.compute_mode = None
    run.make_trainer(TimeBudgetTrainer, identity={})
    seen = []
    last = [module for module in run.model.base_model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    with run.trainer.accelerator.autocast():
        run.model(**inputs)
    assert seen == [torch.bfloat16] and run.trainer.accelerator.state.dynamo_plugin.backend.value == "NO"
    with pytest.raises(InputError, match="layer by layer, but regional_compile is false; leave one of them out"):
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
        monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "True")
        open_run(regional_compile="false")


@pytest.mark.parametrize(
    ("rank", "local_rank", "counted"),
    [
        (0, 0, [call.add_gpu("a", "H200"), call.add_process(12), call.add_gpu("b", "H200")]),
        (1, 1, []),
        (2, 0, [call.add_gpu("c", "H200"), call.add_process(14), call.add_unmeasured("mps")]),
    ],
)
def test_devices_are_counted_by_the_first_process_of_their_machine(rank, local_rank, counted):
    ranks = [(0, 11, "H200", "a"), (0, 12, "H200", "b"), (2, 13, "H200", "c"), (2, 14, "mps", "")]
    energy, channel = Mock(), Mock(gather=Mock(return_value=ranks))
    run = SimpleNamespace(device=torch.device("cpu"), process_index=rank, local_process_index=local_rank)
    count_devices(energy, run, channel)
    assert energy.mock_calls == counted
    channel.gather.assert_called_once_with((rank - local_rank, os.getpid(), "cpu", ""))
