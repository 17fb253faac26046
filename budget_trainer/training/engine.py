"""The engine that the launcher chose: its configuration, whose checkpoints it reads, and ZeRO's for other numbers of processes.

DeepSpeed converts ZeRO's partitions to its universal form, which is kept beside them in the checkpoint.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import fresh_folder, publish_folder, write_atomic
from budget_trainer.model.engine_optimizers import check_engine, let_deepspeed_step, zero_stage
from budget_trainer.model.optimizers import OptimizerOptions
from budget_trainer.training.run_folder import complete_manifest

log = logging.getLogger(__name__)
_OWNED = {"optimizer": "optimizer_type", "scheduler": "curve"}  # block of a DeepSpeed JSON: the flag that says it here
_CONVERTED_OPTIMIZERS = ("adam", "adamw")  # DeepSpeed converts Adam's two moments and nothing else
_FOLDER, _LATEST = "universal", "latest_universal"  # the second is DeepSpeed's name for a file that names the first


def engine_name(run: TrainingArguments) -> str:
    """`single`, `ddp`, `fsdp` or `deepspeed-zero<stage>`."""
    stage = zero_stage(run.deepspeed_plugin)
    if stage is not None:
        return f"deepspeed-zero{stage}"
    if _asks_for_fsdp(run):
        return "fsdp"
    return "ddp" if run.world_size > 1 else "single"


def _asks_for_fsdp(run: TrainingArguments) -> bool:
    return bool(run.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def resolve_engine(
    run: TrainingArguments, optimizer: OptimizerOptions | None = None, checkpoint: Path | None = None
) -> str:
    """The name of the engine. InputError where it cannot run here, contradicts the recipe, cannot take the optimizer's step,
    or cannot go on from the checkpoint.

    Clipping, accumulation, batch and precision may stand in a DeepSpeed JSON as `auto` or with the recipe's value. Under
    ZeRO-3 the weights are gathered on saving: without that a checkpoint holds empty tensors. DeepSpeed is told to step the
    optimizer that we build, where it would not do so by itself.
    """
    if run.use_cpu and _asks_for_fsdp(run):
        raise InputError(
            "distributed_type: FSDP on a CPU silently trains as DDP; launch with accelerate_configs/cpu_2proc.yaml, or use "
            "fsdp.yaml on GPUs"
        )
    engine, stage = engine_name(run), zero_stage(run.deepspeed_plugin)
    if run.deepspeed_plugin is not None:
        _resolve_deepspeed(run, stage)
    if optimizer is not None:
        if checkpoint is not None:
            _check_loadable(checkpoint, engine, run.world_size, optimizer.name)
        if let_deepspeed_step(run.deepspeed_plugin, optimizer.name) and run.process_index == 0:
            log.info(
                "offloading: torch's own optimizer, DeepSpeed's CPU Adam is not built (DS_BUILD_CPU_ADAM=1 pip install)"
            )
        name, impl, lamb = optimizer.name, optimizer.optimizer_impl, optimizer.lamb
        here: dict[str, Any] = {"device": run.device.type, "zero_stage": stage, "fsdp": engine == "fsdp"}
        here |= {"max_grad_norm": run.max_grad_norm, "lamb": lamb if name == "lamb" else None}
        check_engine(name, impl, **here)
    return engine


def _resolve_deepspeed(run: TrainingArguments, stage: int | None) -> None:
    config: dict[str, Any] = run.deepspeed_plugin.deepspeed_config  # type: ignore[union-attr]
    for block, flag in _OWNED.items():
        if block in config:
            raise InputError(f"deepspeed_config: the block {block!r} is train_mlm.py's; remove it and use {flag}")
    for field, path in (("output_dir", run.output_dir), ("resume_from_checkpoint", run.resume_from_checkpoint)):
        if path and set(path) & set("*?["):
            reason = "holds *, ? or [, which DeepSpeed takes for a pattern when it reads a checkpoint"
            raise InputError(f"{field}: {path} {reason}; give another name")
    batch = run.per_device_train_batch_size * run.gradient_accumulation_steps * run.world_size
    wanted = {
        "gradient_clipping": ("max_grad_norm", run.max_grad_norm),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", run.gradient_accumulation_steps),
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", run.per_device_train_batch_size),
        "train_batch_size": ("per_device_train_batch_size x gradient_accumulation_steps x processes", batch),
        "fp16.enabled": ("fp16", run.fp16),
        "bf16.enabled": ("bf16", run.bf16),
    }
    for key, (flag, value) in wanted.items():
        section, _, name = key.rpartition(".")
        theirs = (config.get(section, {}) if section else config).get(name, "auto")
        if theirs not in ("auto", None) and theirs != value:
            raise InputError(
                f"deepspeed_config: {key} is {theirs} (or missing), {flag} is {value}; write {key} as 'auto' and leave it to "
                "the recipe"
            )
    if stage == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True


def _check_loadable(checkpoint: Path, engine: str, world_size: int, optimizer_type: str) -> None:
    """Refuse a checkpoint whose optimizer state this engine cannot take: ZeRO's partitions are of its processes."""
    manifest = complete_manifest(checkpoint)
    theirs, size = manifest["engine"], manifest["world_size"]
    plain = {"single", "ddp"}
    if theirs != engine and not {theirs, engine} <= plain:
        raise InputError(
            f"resume_from_checkpoint: {checkpoint} was written by the engine {theirs}, this run has {engine}, which cannot "
            f"read its optimizer state; launch it with {theirs} again"
        )
    converts = engine != "deepspeed-zero0" and optimizer_type in _CONVERTED_OPTIMIZERS
    if size != world_size and engine.startswith("deepspeed") and not converts:
        raise InputError(
            f"resume_from_checkpoint: {checkpoint} holds the state of {optimizer_type} in {size} partitions, this run has "
            f"{world_size} processes; only {' and '.join(_CONVERTED_OPTIMIZERS)} under ZeRO are converted, so launch it with "
            f"--num_processes {size}"
        )


def needs_conversion(checkpoint: Path | None, run: TrainingArguments) -> bool:
    """Whether `checkpoint` holds the partitions of another number of processes."""
    if checkpoint is None or run.deepspeed_plugin is None:
        return False
    return int(complete_manifest(checkpoint)["world_size"]) != run.world_size


def prepare_universal_checkpoint(checkpoint: Path | None, run: TrainingArguments, channel: ControlChannel) -> None:
    """Where `needs_conversion`, convert (main process; once for each checkpoint) and tell DeepSpeed to load that form.

    Call it on all ranks before a Trainer is made. RunError where DeepSpeed's converter fails.
    """
    plugin = run.deepspeed_plugin
    if checkpoint is None or plugin is None or not needs_conversion(checkpoint, run):
        return
    failed, latest = None, checkpoint / _LATEST
    converted = latest.is_file() and latest.read_text(encoding="utf-8") == _FOLDER
    if run.process_index == 0 and not converted:
        log.info("resume: %s is converted for %d processes", checkpoint, run.world_size)
        try:
            _convert(checkpoint)
        except (RunError, OSError) as error:
            failed = str(error)
    failed = channel.gather(failed)[0]
    if failed is not None:
        raise RunError(failed)
    plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = True


def restore_group_options(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Give back what DeepSpeed's loader of that form does not (0.19): to each group its own hyper-parameters (stage 3 gives
    all of them the first one's), to each parameter a step count of its own, where the optimizer wants it.

    `groups` are the optimizer's groups as they were before the load, whose `params` and `lr` are not looked at: the rates
    are the schedule's.
    """
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update({name: value for name, value in own.items() if name not in ("params", "lr")})
    on_device = any(group.get("fused") or group.get("capturable") for group in groups)
    for parameter, state in optimizer.state.items():
        step = state.get("step")
        if isinstance(step, torch.Tensor):
            state["step"] = step.clone().to(parameter.device if on_device else "cpu")


def _convert(checkpoint: Path) -> None:
    """Written aside and renamed; the file that names it comes last."""
    partitions = checkpoint / (checkpoint / "latest").read_text(encoding="utf-8").strip()
    aside = checkpoint / f".partial-{_FOLDER}"
    fresh_folder(aside)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(partitions), "--output_folder", str(aside)]
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(
            f"resume_from_checkpoint: DeepSpeed could not convert {checkpoint} for another number of processes ({reason}); "
            "launch with the number it was written by"
        )
    (checkpoint / _LATEST).unlink(missing_ok=True)
    publish_folder(aside, checkpoint / _FOLDER)
    write_atomic(checkpoint / _LATEST, _FOLDER)
