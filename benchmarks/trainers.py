"""The Trainers that run a workload: ours, as train_mlm.py builds it, and the stock one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.measured import Gauge, Measured
from benchmarks.workload import ROWS, Rows, Text, Workload
from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.lead import ENDLESS_STEPS
from budget_trainer.config.arguments import RunArguments, launched_on_cpu
from budget_trainer.core.errors import InputError
from budget_trainer.core.machine import keep_freed_memory
from budget_trainer.data.masking import MaskingCollator
from budget_trainer.model.build import build_model
from budget_trainer.model.optimizers import build_optimizer
from budget_trainer.model.patches import use_few_bit_dropout
from budget_trainer.training.precision import ComputeMode, cpu_has_bf16, has_compiler, most_steps, probe
from budget_trainer.training.trainer import TimeBudgetTrainer

PROBE_LIMIT_SECONDS, SETTLED_FOR_SECONDS = 120.0, 600.0
LEARNING_RATE = 1e-4  # constant and low: speed is measured here, and no run may diverge


class OurTrainer(Measured, TimeBudgetTrainer):
    """train_mlm.py's Trainer, measured."""


class StockTrainer(Measured, Trainer):
    """Transformers' Trainer, measured."""


def settled(w: Workload, model: Any, micro_batch: dict[str, torch.Tensor], device: torch.device) -> Workload:
    """The workload with the precision and compilation that take the most steps in SETTLED_FOR_SECONDS.

    A run of that length would not pay for a probe of compiling; here it is always tried where it was asked for.
    """
    bf16 = w.bf16 and (device.type != "cpu" or cpu_has_bf16())
    asked = ComputeMode(bf16, "whole" if w.compile and has_compiler() else "no")
    costs = probe(asked, model, micro_batch, device, PROBE_LIMIT_SECONDS)
    best = most_steps(costs, SETTLED_FOR_SECONDS) if costs else ComputeMode(bf16, "no")
    return replace(w, bf16=best.bf16, compile=best.compile != "no", regional_compile=best.compile == "regional")


def ours(w: Workload, text: Text, folder: Path) -> tuple[OurTrainer, Workload]:
    """The parts of train_mlm.py: its model, collator, data set, optimizer and Trainer, with a budget without an end.

    Also returns the workload with what was settled.
    """
    on_cpu = w.use_cpu or launched_on_cpu()
    device = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator() or torch.device("cpu")
    if device.type == "cpu":
        keep_freed_memory()
    model = build_model(
        w.model_type,
        vocab_size=w.vocab_size,
        special_ids=text.special_ids,
        max_position_embeddings=w.block_size,
        hidden_size=w.hidden_size,
        num_hidden_layers=w.num_hidden_layers,
        num_attention_heads=w.num_attention_heads,
        intermediate_size=w.intermediate_size,
        hidden_dropout_prob=w.dropout,
        attention_probs_dropout_prob=w.dropout,
        model_config=w.model_config,
        sparse_mask_prediction=w.sparse,
    )
    if device.type == "cpu":
        use_few_bit_dropout(model)
    collator = MaskingCollator(
        seed=0,
        special_ids=text.special_ids,
        vocab_size=w.vocab_size,
        block_size=w.block_size,
        mlm_probability=w.mlm_probability,
    )
    if w.settle:
        micro_batch = collator(text.blocks.__getitems__(range(w.batch_size)))
        w = settled(w, model, micro_batch, device)
    run = RunArguments(
        output_dir=str(folder),
        per_device_train_batch_size=w.batch_size,
        gradient_accumulation_steps=w.gradient_accumulation_steps,
        max_steps=ENDLESS_STEPS,
        learning_rate=LEARNING_RATE,
        bf16=w.bf16,
        torch_compile=w.compile,
        dataloader_num_workers=w.dataloader_num_workers,
        use_cpu=w.use_cpu,
        logging_steps=50,
        disable_tqdm=True,
        report_to="none",
    )
    budget = TimeBudgetCallback(clock=BudgetClock("1000h"))
    budget.save_seconds = 1.0  # nothing is saved here, so nothing is rehearsed
    trainer = OurTrainer(
        model=model,
        args=run,
        train_dataset=text.blocks,
        data_collator=collator,
        create_optimizer_fn=partial(
            build_optimizer, w.optimizer_type, learning_rate=LEARNING_RATE, weight_decay=run.weight_decay
        ),
        time_budget=budget,
        curve="constant",
        gauge=Gauge(run.device),
        regional_compile=w.regional_compile,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, w


def stock(
    w: Workload, text: Text, folder: Path, most_rows: int | None = ROWS, positions: int | None = None, **training: Any
) -> tuple[StockTrainer, Workload]:
    """What a user writes with Transformers alone: stock model, collator, optimizer and Trainer at their defaults.

    Only BERT, and without gradient accumulation, with which the stock class scales its loss wrongly. It has `most_rows` of
    the text (None: all) and `positions` (None: those of a block); `training` are arguments of its TrainingArguments beside or
    instead of these.
    """
    if w.model_type != "bert" or w.gradient_accumulation_steps != 1:
        raise InputError("stock: compares model_type bert without gradient accumulation; leave them at that")
    tokenizer = text.tokenizer()
    config = BertConfig(
        vocab_size=w.vocab_size,
        hidden_size=w.hidden_size,
        num_hidden_layers=w.num_hidden_layers,
        num_attention_heads=w.num_attention_heads,
        intermediate_size=w.intermediate_size,
        max_position_embeddings=positions or w.block_size,
        hidden_dropout_prob=w.dropout,
        attention_probs_dropout_prob=w.dropout,
    )
    run = TrainingArguments(
        str(folder),
        per_device_train_batch_size=w.batch_size,
        weight_decay=0.01,
        bf16=w.bf16,
        torch_compile=w.compile,
        dataloader_num_workers=w.dataloader_num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=w.use_cpu or not torch.accelerator.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        disable_tqdm=True,
        **{"max_steps": 1_000_000, "learning_rate": LEARNING_RATE, **training},
    )
    trainer = StockTrainer(
        model=BertForMaskedLM(config),
        args=run,
        train_dataset=Rows(text.rows(w.batch_size, most_rows)),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=w.mlm_probability),
        processing_class=tokenizer,
        gauge=Gauge(run.device),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, w
