"""One run, a task with a seed and a configuration: what it is made from, and its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from budget_trainer.agreement import Agreement
from budget_trainer.callbacks.time_budget import TimeBudgetCallback
from budget_trainer.clock import BudgetClock
from budget_trainer.engine_config import engine_name
from budget_trainer.errors import InputError
from budget_trainer.glue.best import Best
from budget_trainer.glue.data import TaskData, load_task, splits_of
from budget_trainer.glue.encoding import encode, make_collator
from budget_trainer.glue.model import load_classifier, load_tokenizer, model_digest, resolve_model
from budget_trainer.glue.parsing import Request
from budget_trainer.glue.prediction import Predictor
from budget_trainer.glue.tasks import Task
from budget_trainer.glue.trainer import GlueTrainer, curve_name


@dataclass
class Sources:
    """What a run is made from, before anything is trained: data, the checkpoint's folder, the tokenizer."""

    data: TaskData
    folder: Path
    tokenizer: Any
    digest: str  # of the model with its tokenizer


def check_engine(run: TrainingArguments) -> None:
    """Refuse the engines that leave no rank with whole weights: scoring, and keeping the best ones, would gather them."""
    engine = engine_name(run)
    if engine in ("deepspeed-zero3", "fsdp"):
        raise InputError(
            f"distributed_type: {engine} shards the weights, which an encoder on GLUE does not need; launch with "
            "accelerate_configs/ddp.yaml, zero1.yaml or zero2.yaml"
        )


def gather_sources(request: Request, task: Task) -> Sources:
    """Load and check what `request` names for `task`. InputError where the task cannot be run on it."""
    glue, run = request.glue, request.run
    data = load_task(task, request.glue_dir, glue.dataset_name)
    limits = {"train": glue.max_train_samples, "dev": glue.max_eval_samples, "test": glue.max_predict_samples}
    for split, _ in splits_of(task):
        if split.name in data.splits:
            kind = "test" if split.is_test else "train" if split is task.train else "dev"
            data.splits[split.name] = data.splits[split.name].first(limits[kind])
    check_data(data, run.do_train, run.do_eval, run.do_predict)
    folder = resolve_model(str(glue.model_name_or_path))
    tokenizer_folder = folder if glue.tokenizer_name is None else resolve_model(glue.tokenizer_name, "tokenizer_name")
    return Sources(data, folder, load_tokenizer(tokenizer_folder), model_digest(folder, tokenizer_folder))


def check_data(data: TaskData, do_train: bool, do_eval: bool, do_predict: bool) -> None:
    """Refuse a task without the data that is asked for; of several dev or test splits one is enough."""
    task = data.task
    groups = {"do_train": (do_train, [task.train] if task.train else []), "do_eval": (do_eval, list(task.dev))}
    if not do_train and not do_eval:
        groups["do_predict"] = (do_predict, [split for split, _ in splits_of(task) if split.is_test])
    for flag, (wanted, splits) in groups.items():
        if not wanted or any(split.name in data.splits for split in splits):
            continue
        if not splits:
            raise InputError(f"task_name: {task.name} has nothing to {flag.removeprefix('do_')} on; use {task.shared}")
        raise InputError(f"{flag}: {task.name} has no data for it ({data.absent[splits[0].name]}); add the file")


def make_parts(
    request: Request, sources: Sources, clock: BudgetClock, agreement: Agreement
) -> tuple[GlueTrainer, Predictor]:
    """The Trainer with everything in it, and what predicts."""
    run, glue, task = request.run, request.glue, sources.data.task
    if clock.total_seconds != float("inf"):
        curve_name(run)  # refuses early what does not follow time
    dtype = torch.bfloat16 if run.bf16 else torch.float16 if run.fp16 else None
    collator = make_collator(sources.tokenizer, run.device, glue.max_seq_length, glue.pad_to_max_length)
    predictor = Predictor(collator, run.per_device_eval_batch_size, run.device, agreement, dtype)
    encoded = {
        name: encode(sources.tokenizer, examples, glue.max_seq_length)
        for name, examples in sources.data.splits.items()
        if (name == "train" and run.do_train) or name in {split.name for split in task.dev}
    }
    dev = {split.name: encoded[split.name] for split in task.dev if split.name in encoded and run.do_eval}
    if not dev:
        run.eval_strategy = "no"
    model = load_classifier(
        sources.folder, task, sources.tokenizer, glue.max_seq_length, run.seed, new_head=run.do_train
    )
    trainer = GlueTrainer(
        model=model,
        args=run,
        train_dataset=encoded.get("train"),
        eval_dataset=next(iter(dev.values()), None),
        data_collator=collator,
        processing_class=sources.tokenizer,
        time_budget=TimeBudgetCallback(clock=clock, agreement=agreement),
        best=Best(task, dev, predictor.logits),
        patience=glue.early_stopping_patience,
    )
    return trainer, predictor
