"""The result of a run as a dict: what `result.json` holds."""

from __future__ import annotations

from typing import Any

from budget_trainer.glue.parsing import Request
from budget_trainer.glue.run import Sources
from budget_trainer.glue.trainer import GlueTrainer
from budget_trainer.report import environment

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
        "seconds": {"total": budget.clock.elapsed_seconds(), **budget.clock.shares()},
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
