"""One run, a task with a seed and a configuration: what it is made from, and its parts.

The result of a run as a dict: what `result.json` holds.

The end of a run: the time it will take, the best model, the predictions, the result.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.channel import Agreement
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder, publish_folder
from budget_trainer.glue.arguments import Request
from budget_trainer.glue.data import TaskData, load_task, splits_of
from budget_trainer.glue.encoding import Rows, encode, make_collator
from budget_trainer.glue.files import RESULT
from budget_trainer.glue.model import load_classifier, load_tokenizer, model_digest, resolve_model
from budget_trainer.glue.result import MODEL, write_predictions, write_result
from budget_trainer.glue.tasks import Task
from budget_trainer.glue.trainer import Best, GlueTrainer, Predictor, curve_name
from budget_trainer.reporting.report import environment
from budget_trainer.training import checkpoints
from budget_trainer.training.engine import engine_name


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


# Flags that change what a run computes; `processes` and the engine are beside them.
CONFIGURATION = {
    "glue": (
        "max_seq_length",
        "pad_to_max_length",
        "max_train_samples",
        "max_eval_samples",
        "max_predict_samples",
        "early_stopping_patience",
        "total_training_time",
    ),
    "run": (
        "learning_rate",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "warmup_steps",
        "eval_strategy",
        "eval_steps",
        "bf16",
        "fp16",
        "train_sampling_strategy",
        "label_smoothing_factor",
    ),
}


def account(request: Request, sources: Sources, trainer: GlueTrainer, predictions: dict[str, str]) -> dict[str, Any]:
    """Everything a reader of a run may want: scores, how they came about, from what, on what.

    `metrics` are those of the best evaluation; `headline` is the one that chose it. Times are in seconds.
    """
    run, task, best, budget = request.run, sources.data.task, trainer.best, trainer.time_budget
    assert budget.clock is not None
    chosen = best.evaluations[best.place] if best.place is not None else None
    names = list(best.dev)
    trained = run.do_train
    model: Any = trainer.model
    return {
        "task": task.name,
        "seed": run.seed,
        "model": {
            "name_or_path": request.glue.model_name_or_path,
            "sha256": sources.digest,
            "type": model.config.model_type,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "configuration": configuration(request),
        "headline": {
            "metric": task.headline,
            "split": names[0] if chosen else None,
            "value": best.headline(best.metrics) if chosen else None,
        },
        "metrics": best.metrics,
        "evaluations": best.evaluations,
        "best_epoch": chosen["epoch"] if chosen and trained else None,
        "best_step": chosen["step"] if chosen and trained else None,
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "stopped_by": (budget.stop_reason or "num_train_epochs") if trained else None,
        "seconds": {"total": budget.clock.elapsed_seconds(), **budget.clock.seconds_by_phase()},
        "budget_seconds": request.total_seconds,
        "rows": {name: len(examples) for name, examples in sources.data.splits.items()},
        "official_rows": sources.data.official(),
        "absent_splits": sources.data.absent,
        "data_sha256": sources.data.digest,
        "predictions": predictions,
        "environment": {**environment(), "device": run.device.type, "processes": run.world_size},
    }


def configuration(request: Request) -> dict[str, Any]:
    """The flags that change what a run computes, with their values."""
    run: Any = request.run
    scheduler = getattr(run.lr_scheduler_type, "value", str(run.lr_scheduler_type))
    values = {name: getattr(request.glue, name) for name in CONFIGURATION["glue"]}
    values |= {name: _plain(getattr(run, name)) for name in CONFIGURATION["run"]}
    return {**values, "lr_scheduler_type": scheduler}


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


log = logging.getLogger(__name__)
PROBE_BATCHES = 2
FIXED_SECONDS = 1.0  # what does not grow with the model: seen 0.7 s too late of 44 beside other work
UNEVEN = 1.2  # a later evaluation may take so much longer than the one measured


def reserve_end(trainer: GlueTrainer, predictor: Predictor, sources: Sources, output_dir: Path) -> None:
    """Under a budget: measure what has to happen after training, and keep the time for it.

    That is one evaluation, the predictions, and writing and reading the model. Two batches of the longest rows are timed.
    """
    budget, clock = trainer.time_budget, trainer.time_budget.clock
    assert clock is not None
    if clock.total_seconds == float("inf"):
        return
    model: Any = trainer.model
    begin = clock.elapsed_seconds()
    with clock.phase("save"):
        if trainer.args.should_save:
            staging = fresh_folder(checkpoints.staging_folder(output_dir / MODEL))
            model.save_pretrained(staging)
            checkpoints.discard(output_dir / MODEL)
    save, begin = clock.elapsed_seconds() - begin, clock.elapsed_seconds()
    rows: Rows | None = next(iter(trainer.best.dev.values()), trainer.train_dataset)  # type: ignore[assignment]
    assert rows is not None
    with clock.phase("evaluate"):
        predictor.logits(model.to(trainer.args.device), rows, PROBE_BATCHES)
    probed = min(len(rows), PROBE_BATCHES * predictor.batch_size * trainer.args.world_size)
    per_row = (clock.elapsed_seconds() - begin) / probed
    tested = sum(len(e) for name, e in sources.data.splits.items() if name in test_splits(sources.data))
    budget.evaluate_seconds = UNEVEN * per_row * sum(len(split) for split in trainer.best.dev.values())
    after = UNEVEN * per_row * tested if trainer.args.do_predict else 0.0
    budget.save_seconds = 2 * budget.save_allowance(save) + budget.evaluate_seconds + after + FIXED_SECONDS


def test_splits(data: TaskData) -> list[str]:
    """The splits to predict that there are, in order."""
    return [split.name for split, _ in splits_of(data.task) if split.is_test and split.name in data.splits]


def best_model(trainer: GlueTrainer, sources: Sources, output_dir: Path) -> Any:
    """Write the best weights to `model/`, complete or absent, and read them back as a plain model on every rank.

    One way for all engines: what predicts is what was saved.
    """
    target, args = output_dir / MODEL, trainer.args
    clock = trainer.time_budget.clock
    assert clock is not None
    with clock.phase("save"):
        if args.should_save:
            staging = fresh_folder(checkpoints.staging_folder(target))
            model: Any = trainer.accelerator.unwrap_model(trainer.model)
            model.save_pretrained(staging, state_dict=trainer.best.state)
            sources.tokenizer.save_pretrained(staging)
            publish_folder(staging, target)
            trainer.best.state = None
        trainer.time_budget.channel.barrier()
        task, tokenizer = sources.data.task, sources.tokenizer
        reloaded = load_classifier(target, task, tokenizer, max_seq_length=1, seed=args.seed, new_head=False)
        return reloaded.to(args.device)


def predict_tests(predictor: Predictor, model: Any, request: Request, sources: Sources) -> dict[str, np.ndarray]:
    """The outputs for every test split that there is, AX among MNLI's."""
    return {
        name: predictor.logits(
            model, encode(sources.tokenizer, sources.data.splits[name], request.glue.max_seq_length)
        )
        for name in test_splits(sources.data)
    }


def keep(
    request: Request,
    sources: Sources,
    trainer: GlueTrainer,
    outputs: dict[str, np.ndarray],
    account: Callable[[Request, Sources, GlueTrainer, dict[str, str]], dict[str, Any]],
) -> None:
    """Write the predictions and, last, `result.json` with the `account` (main process)."""
    clock, output_dir = trainer.time_budget.clock, request.output_dir
    assert clock is not None
    with clock.phase("save"):
        output_dir.mkdir(parents=True, exist_ok=True)
        paths = {}
        for split, owner in splits_of(sources.data.task):
            if split.name in outputs:
                rows = trainer.best.dev.get(split.name)
                references = None if rows is None else rows.labels
                paths[split.name] = write_predictions(output_dir, owner, split.name, outputs[split.name], references)
        if not request.glue.save_model:
            shutil.rmtree(output_dir / MODEL, ignore_errors=True)
    clock.stop()
    write_result(output_dir, account(request, sources, trainer, paths))
    if trainer.best.metrics:
        value = trainer.best.headline(trainer.best.metrics)
        log.info(
            "%s: %s %.4f on dev; %s", sources.data.task.name, sources.data.task.headline, value, output_dir / RESULT
        )
