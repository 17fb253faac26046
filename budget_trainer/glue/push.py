"""The fine-tuned model of a run for the Hub: what was asked for, its scores beside it, the push when the run has ended."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from budget_trainer.config.arguments import CardArguments
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_json_atomic
from budget_trainer.glue.results import MODEL, read_result, write_result
from budget_trainer.glue.tasks import TASKS
from budget_trainer.reporting.card import GLUE_REPORT
from budget_trainer.reporting.hub import PushOptions
from budget_trainer.reporting.publish import BackgroundPush, resolve_push


def resolve_model_push(
    training: Any, card: CardArguments, keeps_model: bool, explicit: Collection[str]
) -> PushOptions | None:
    """How to push, None where that was not asked for; `training` are the values of the flags of TrainingArguments.

    The repository has the name of output_dir where none was given. InputError as `resolve_push`.
    """
    if training.push_to_hub and not keeps_model:
        raise InputError("push_to_hub: the run keeps no model; let it train (do_train), with save_model true")
    folder = Path(training.output_dir)
    name = training.hub_model_id or folder.resolve().name
    return resolve_push(
        folder,
        PushOptions(name, training.hub_private_repo, card.license, card.language),
        push_to_hub=training.push_to_hub,
        hub_strategy="end",
        explicit=explicit,
        saves_models=True,
        main_process=os.environ.get("RANK", "0") == "0",
    )


def publish(output_dir: Path, push: PushOptions | None) -> None:
    """Push `model/` where that was asked for, and write into `result.json`, at `hub`, what came of it (main process).

    A push that fails changes nothing else. It waits for the Hub, outside of the budget.
    """
    result = read_result(output_dir)
    if push is None or result is None:
        return
    model = output_dir / MODEL
    write_json_atomic(model / GLUE_REPORT, {"scores": scores(result)})
    write_result(output_dir, {**result, "hub": BackgroundPush(model, push).finish()})


def scores(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The dev scores of a `result.json` as a model card takes them; of all official rows only."""
    splits = {split.name: split.hub for split in TASKS[result["task"]].dev}
    return [
        {"task": result["task"], "metric": metric, "value": value, "split": splits[name], "seeds": 1}
        for name, values in result["metrics"].items()
        if result["official_rows"].get(name)
        for metric, value in values.items()
    ]
