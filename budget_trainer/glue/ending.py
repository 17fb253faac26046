"""The end of a run: the time it will take, the best model, the predictions, the result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer import checkpoints
from budget_trainer.glue.data import TaskData, splits_of
from budget_trainer.glue.encoding import Rows, encode
from budget_trainer.glue.files import RESULT
from budget_trainer.glue.model import load_classifier
from budget_trainer.glue.parsing import Request
from budget_trainer.glue.prediction import Predictor
from budget_trainer.glue.result import MODEL, write_predictions, write_result
from budget_trainer.glue.run import Sources
from budget_trainer.glue.trainer import GlueTrainer

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
            staging = checkpoints.fresh(checkpoints.staging_folder(output_dir / MODEL))
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
    budget.save_seconds = 2 * budget.reserve(save) + budget.evaluate_seconds + after + FIXED_SECONDS


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
            staging = checkpoints.fresh(checkpoints.staging_folder(target))
            model: Any = trainer.accelerator.unwrap_model(trainer.model)
            model.save_pretrained(staging, state_dict=trainer.best.state)
            sources.tokenizer.save_pretrained(staging)
            checkpoints.publish(staging, target)
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
