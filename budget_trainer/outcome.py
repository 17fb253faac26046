"""The account of a finished run: run_report.json, its picture and the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from budget_trainer.data import BlockDataset
from budget_trainer.engine_config import engine_name
from budget_trainer.happenings import Happenings
from budget_trainer.model_card import write_model_card
from budget_trainer.modeling import parameter_count
from budget_trainer.report import draw_report, environment, read_progress, write_json_atomic
from budget_trainer.trainer import TimeBudgetTrainer


def account(
    trainer: TimeBudgetTrainer,
    happenings: Happenings,
    evaluation: dict[str, float] | None,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """What the report says. Call it on all ranks (their step counts and learning rates are gathered)."""
    progress = happenings.progress
    if progress.steps == 0:  # nothing was left to train: the account is the earlier jobs'
        progress.restore(trainer.state)
    budget, shares = trainer.time_budget, trainer.clock.shares()
    mine = {"rank": trainer.channel.rank, "steps": progress.steps, "learning_rates_sha256": progress.rates_sha256}
    assert isinstance(trainer.train_dataset, BlockDataset)
    model: Any = trainer.model
    samples = trainer.samples_consumed
    block = trainer._block_size()
    worked = shares["train"] + shares["data_wait"] + shares["compile"]
    return {
        "budget_seconds": budget.end_seconds,
        "used_seconds": sum(shares.values()),
        "overrun_seconds": max(0.0, sum(shares.values()) - budget.end_seconds),
        "shares": shares,
        "steps": trainer.state.global_step,
        "samples": samples,
        "tokens": samples * block,
        "tokens_per_second": samples * block / worked if worked > 0 else 0.0,
        **(trainer.throughput.overall() if trainer.throughput is not None else {}),
        "data_wait_share": shares["data_wait"] / worked if worked > 0 else 0.0,
        "speed": trainer.speed,
        "passes_over_corpus": samples / trainer.train_dataset.rows,
        "learning_rate_last": progress.learning_rate_last,
        "learning_rate_peak": progress.learning_rate_peak,
        "evaluation": evaluation and {name.removeprefix("eval_"): value for name, value in evaluation.items()},
        "world_size": trainer.args.world_size,
        "engine": engine_name(trainer.args),
        **happenings.guard.account(),
        "stop_reason": budget.stop_reason or "max_steps",
        "jobs": progress.job,
        "parameters": parameter_count(model),
        "model_type": model.config.model_type,
        **environment(),
        "recipe": recipe,
        "ranks": trainer.channel.gather(mine),
    }


def write_outcome(output_dir: Path, report: dict[str, Any], progress: Path, final: Path | None) -> None:
    """Write `run_report.json` and `.png`, and the card into `final` (main process only)."""
    json_path, picture = output_dir / "run_report.json", output_dir / "run_report.png"
    write_json_atomic(json_path, report)
    draw_report(report, read_progress(progress), picture)
    if final is not None:
        write_model_card(final, report, run_report=json_path, picture=picture)
