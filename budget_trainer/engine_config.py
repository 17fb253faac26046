"""Which engine the launcher chose, and what its configuration must leave to the recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainingArguments

from budget_trainer.engine_optimizers import zero_stage
from budget_trainer.errors import InputError

OWNED = {"optimizer": "optimizer_type", "scheduler": "curve"}  # block of a DeepSpeed JSON: the flag that says it here


def engine_name(run: TrainingArguments) -> str:
    """`single`, `ddp`, `fsdp` or `deepspeed-zero<stage>`."""
    stage = zero_stage(run.deepspeed_plugin)
    if stage is not None:
        return f"deepspeed-zero{stage}"
    if asks_for_fsdp(run):
        return "fsdp"
    return "ddp" if run.world_size > 1 else "single"


def asks_for_fsdp(run: TrainingArguments) -> bool:
    return bool(run.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


@contextmanager
def sharded_by_layer(plugin: Any, model: Any) -> Iterator[None]:
    """While Accelerate prepares it, let FSDP shard a model by encoder layer and leave all the rest to the root.

    Embeddings and head share tensors in most types (the word embeddings, a bias), and FSDP2 refuses a tensor in two of its
    groups: a model's own list (`_no_split_modules`) would put the embeddings apart, Accelerate the output projection. Classes
    that the launch configuration names are kept.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module))
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in next(lists, ())})
    names = ("get_input_embeddings", "get_output_embeddings")  # how Accelerate finds what it would put apart
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def settle_engine_config(run: TrainingArguments) -> None:
    """Refuse an engine that cannot run here, and a DeepSpeed configuration that contradicts the recipe.

    Clipping, accumulation, batch and precision may stand in a DeepSpeed JSON as `auto` or with the recipe's value. Under
    ZeRO-3 the weights are gathered on saving: without that a checkpoint holds empty tensors.
    """
    if run.use_cpu and asks_for_fsdp(run):
        raise InputError(
            "distributed_type: FSDP on a CPU silently trains as DDP; launch with accelerate_configs/cpu_2proc.yaml, or use "
            "fsdp.yaml on GPUs"
        )
    if run.deepspeed_plugin is None:
        return
    config: dict[str, Any] = run.deepspeed_plugin.deepspeed_config
    for block, flag in OWNED.items():
        if block in config:
            raise InputError(f"deepspeed_config: the block {block!r} is train_mlm.py's; remove it and use {flag}")
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
    if zero_stage(run.deepspeed_plugin) == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
