"""The process of a run: its log, its trackers, whether the launcher started what was asked for, and its last error."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging as hf_logging

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.core.errors import InputError
from budget_trainer.core.machine import keep_freed_memory
from budget_trainer.reporting.energy import EnergyMeter

log = logging.getLogger(__name__)
_DYNAMO = "ACCELERATE_DYNAMO_"


def prepare(
    run: TrainingArguments, named: Collection[str] = (), *, compiles: bool = True, trackers: bool = True
) -> bool:
    """Configure the log, take over what the launcher asks for (returns what that does), check the launch and the `trackers`
    asked for, which write into the run's folder where they can, and on a CPU keep freed memory with the process."""
    configure_logging(run)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(str(run.output_dir)) / "tensorboard"))
    os.environ.setdefault("WANDB_DIR", str(run.output_dir))
    regional = _take_over(run, named, compiles)
    check_launch(run.world_size, run.n_gpu)
    if trackers:
        _prepare_trackers(run)
    if run.device.type == "cpu":
        keep_freed_memory()
    return regional


def _take_over(run: TrainingArguments, named: Collection[str] = (), compiles: bool = True) -> bool:
    """Write what the launcher's environment asks for into `run`, the one place that counts from here on; forget it there.

    Returns whether to compile layer by layer. InputError where a flag in `named` (by recipe or command line) says otherwise,
    where the script never `compiles`, and for what is not trained here (fp8, Megatron-LM, parallelism configurations).
    """
    for engine in ("MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() in ("1", "true", "yes"):
            raise InputError(f"distributed_type: {engine} is not trained here; launch with one of accelerate_configs/")
    _take_over_precision(run, named)
    return _take_over_compilation(run, named, compiles)


def _take_over_precision(run: TrainingArguments, named: Collection[str]) -> None:
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"
    if asked not in ("no", "bf16", "fp16"):
        raise InputError(f"mixed_precision: {asked} is not trained here; write bf16 or 'no' into the launcher's file")
    if asked == "fp16" and run.device.type == "cpu" and not run.bf16:
        log.info("mixed_precision: fp16 of the launcher's configuration needs a GPU, this run is in float32")
        run.mixed_precision = "no"
    elif asked != "no" and not getattr(run, asked):
        other = "fp16" if asked == "bf16" else "bf16"
        if asked in named or getattr(run, other):
            says = f"{asked} is false" if asked in named else f"{other} is true"
            raise InputError(f"mixed_precision: the launcher's configuration says {asked}, but {says}; leave one out")
        setattr(run, asked, True)
        log.info("%s: from the launcher's configuration (mixed_precision)", asked)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # `check_launch` looks for it
        os.environ["ACCELERATE_MIXED_PRECISION"] = run.mixed_precision


def _take_over_compilation(run: TrainingArguments, named: Collection[str], compiles: bool) -> bool:
    names = [name for name in os.environ if name.startswith(_DYNAMO)]
    told = {name.removeprefix(_DYNAMO): os.environ.pop(name).lower() for name in names}
    backend, mode = told.get("BACKEND", ""), told.get("MODE", "")
    if backend in ("", "no"):
        _check_compiler(run)
        return False
    what = f"dynamo_config: the launcher's configuration compiles with {backend}"
    if not compiles:
        raise InputError(f"{what}, but rows differ in length, so nothing is compiled here; take it out")
    for option in ("USE_FULLGRAPH", "USE_DYNAMIC"):
        if told.get(option) in ("1", "true", "yes"):
            raise InputError(f"dynamo_config: dynamo_{option.lower()} cannot be chosen, shapes are fixed; take it out")
    mode, regional = ("" if mode == "default" else mode), told.get("USE_REGIONAL_COMPILATION") in ("1", "true", "yes")
    ours = (run.torch_compile_backend, run.torch_compile_mode or "") if run.torch_compile else ()
    if (ours and ours != (backend, mode)) or (not ours and "torch_compile" in named):
        says = f"torch_compile with {ours[0]} {ours[1]}".rstrip() if ours else "torch_compile false"
        raise InputError(f"{what} {mode}".rstrip() + f", the recipe says {says}; leave one of them out")
    run.torch_compile, run.torch_compile_backend, run.torch_compile_mode = True, backend, mode or None
    _check_compiler(run)
    log.info("torch_compile: %s%s, from the launcher's configuration", backend, " layer by layer" if regional else "")
    return regional


def _check_compiler(run: TrainingArguments) -> None:
    """Refuse a backend or mode that nobody knows: torch would at the first step."""
    backend, mode = str(run.torch_compile_backend).upper(), run.torch_compile_mode
    if run.torch_compile and backend not in set(DynamoBackend):
        known = ", ".join(sorted(name.lower() for name in set(DynamoBackend) - {"NO"}))
        raise InputError(f"torch_compile_backend: {backend.lower()} is unknown; give one of {known}")
    if run.torch_compile and mode and mode not in (modes := torch._inductor.list_mode_options()):
        raise InputError(f"torch_compile_mode: {mode} is unknown; give one of {', '.join(modes)}")


def configure_logging(run: TrainingArguments) -> None:
    """Log at info in the main process and only warnings in the others."""
    level = logging.INFO if run.process_index == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    for noisy in ("httpx", "datasets", "matplotlib", "fsspec", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    hf_logging.set_verbosity_warning()
    hf_logging.disable_progress_bar()  # the budget's bar is the only one


def count_devices(energy: EnergyMeter, run: TrainingArguments, channel: ControlChannel) -> None:
    """Let the first process of each machine count the processes and the accelerators of the run there. Every rank calls it."""
    gpu: Any = torch.cuda.get_device_properties(run.device) if run.device.type == "cuda" else None
    first = run.process_index - run.local_process_index  # of this machine
    named = (run.device.type, "") if gpu is None else (gpu.name, str(getattr(gpu, "uuid", "")))
    for rank, (machine, pid, name, uuid) in enumerate(channel.gather((first, os.getpid(), *named))):
        if run.local_process_index != 0 or machine != first:
            continue
        if rank != run.process_index:
            energy.add_process(pid)
        if uuid:
            energy.add_gpu(uuid, name)
        elif name != "cpu":
            energy.add_unmeasured(name)


def _prepare_trackers(run: TrainingArguments) -> None:
    """Refuse a tracker that is unknown or not installed before anything is written; let none wait for a token or a network.

    Weights & Biases, which would ask for an account, keeps its files here where nobody is logged in. Trackio, which gives a run
    without a name a random one each time it is opened, goes on in the same run after a restart.
    """
    for name in run.report_to or []:
        try:
            for tracker in get_reporting_integration_callbacks([name]):
                tracker()
        except (ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            fix = "pip install 'budget-trainer[trackers]'" if name in ("wandb", "trackio") else "install it"
            raise InputError(f"report_to: {name!r} cannot be used ({reason}); {fix}, or choose another") from None
    if "wandb" in (run.report_to or []) and "WANDB_MODE" not in os.environ and not _has_wandb_key():
        os.environ["WANDB_MODE"] = "offline"
        log.info(
            "wandb: nobody is logged in, so it is offline; `wandb sync %s/wandb/offline-run-*` uploads", run.output_dir
        )
    if "trackio" in (run.report_to or []) and run.run_name is None:
        run.run_name = Path(str(run.output_dir)).resolve().name


def _has_wandb_key() -> bool:
    """Whether a key for Weights & Biases is in the environment, or in ~/.netrc, where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(str(host)) is not None
    return False


def check_launch(processes: int, gpus_of_this_process: int = 1) -> None:
    """Refuse to train alone where the launcher was asked for several processes: each would train its own model.

    Several GPUs in one process are refused too: Trainer would use DataParallel, whose batch is not what was asked for.
    """
    if gpus_of_this_process > 1:
        raise InputError(
            f"num_processes: 1 process sees {gpus_of_this_process} GPUs; launch with accelerate_configs/ddp.yaml "
            f"--num_processes {gpus_of_this_process}, or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ:  # accelerate's one-process launcher, asked for more
        raise InputError(
            "num_processes: the launcher was asked for several processes and started one (a profile of one process, or "
            "MULTI_CPU without mpirun); launch with accelerate_configs/cpu_2proc.yaml or ddp.yaml"
        )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != processes:
        raise InputError(
            f"WORLD_SIZE: the launcher started {asked} processes, but {processes} train together; launch with a profile "
            "of accelerate_configs/ (on a CPU cpu_2proc.yaml, or add --use_cpu true)"
        )
