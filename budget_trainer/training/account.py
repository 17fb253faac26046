"""The account of a run: what `run_report.json` says, its picture and the model card, and the lines at the end."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.config.recipe import Recipe
from budget_trainer.core.io import write_json_atomic
from budget_trainer.data.order import BlockDataset
from budget_trainer.reporting.card import write_model_card
from budget_trainer.reporting.publish import BackgroundPush
from budget_trainer.reporting.report import (
    Plan,
    describe_data,
    draw_report,
    read_progress,
)
from budget_trainer.training import run_folder
from budget_trainer.training.callbacks import FinetuneMarkers, ProgressLog
from budget_trainer.training.engine import engine_name
from budget_trainer.training.recovery import Guard
from budget_trainer.training.trainer import TimeBudgetTrainer

log = logging.getLogger(__name__)
PUSH_MARGIN_SECONDS = 5.0  # of the job, for the report behind the push


@dataclass(frozen=True)
class RunCallbacks:
    """The callbacks that the account reads, and the push to the Hub (main process; None where there is none)."""

    progress: ProgressLog
    markers: FinetuneMarkers
    guard: Guard
    push: BackgroundPush | None = None


def account(trainer: TimeBudgetTrainer, callbacks: RunCallbacks, recipe: Recipe) -> dict[str, Any]:
    """The report without its evaluation. Call it on all ranks: steps and learning rates are gathered."""
    progress = callbacks.progress
    if progress.steps == 0:  # nothing was left to train: the account is the earlier jobs'
        progress.restore(trainer.state)
        callbacks.guard.restore(trainer.state)
    budget, shares = trainer.time_budget, trainer.clock.seconds_by_phase()
    mine = {"rank": trainer.channel.rank, "steps": progress.steps, "learning_rates_sha256": progress.rates_sha256}
    assert isinstance(trainer.train_dataset, BlockDataset)
    model: Any = trainer.model
    samples = trainer.samples_consumed
    block = trainer.block_size
    worked = shares["train"] + shares["data_wait"] + shares["compile"]
    return {
        "budget_seconds": budget.end_seconds,
        **used_seconds(shares, budget.end_seconds),
        "shares": shares,
        "steps": trainer.state.global_step,
        "samples": samples,
        "tokens": samples * block,
        "tokens_per_second": samples * block / worked if worked > 0 else 0.0,
        **(trainer.throughput.overall() if trainer.throughput is not None else {}),
        "data_wait_share": shares["data_wait"] / worked if worked > 0 else 0.0,
        "speed": trainer.compute_mode,
        "passes_over_corpus": samples / trainer.train_dataset.rows,
        "learning_rate_last": progress.learning_rate_last,
        "learning_rate_peak": progress.learning_rate_peak,
        "evaluation": None,
        "markers_in_final": callbacks.markers.in_final(),
        "world_size": trainer.args.world_size,
        "engine": engine_name(trainer.args),
        **callbacks.guard.counts(),
        "stop_reason": budget.stop_reason or "max_steps",
        "jobs": progress.job,
        "parameters": model.num_parameters(),
        "model_type": model.config.model_type,
        "recipe": recipe.as_dict(trainer.args),
        "data": _data(recipe.data_dir),
        "ranks": trainer.channel.gather(mine),
    }


def used_seconds(shares: dict[str, float], budget_seconds: float | None) -> dict[str, float]:
    """`used_seconds` and `overrun_seconds` of a run that spent `shares` (seconds by phase)."""
    used = sum(shares.values())
    return {
        "used_seconds": used,
        "overrun_seconds": max(0.0, used - (math.inf if budget_seconds is None else budget_seconds)),
    }


def write_results(recipe: Recipe, report: dict[str, Any], final: Path | None) -> None:
    """Write `run_report.json`, its picture and the card in `final`; print the summary (main process)."""
    output_dir = recipe.output_dir
    if recipe.plan is not None:
        report["planned"] = recipe.plan.compare(report)
    write_json_atomic(output_dir / run_folder.REPORT, report)
    draw_report(report, read_progress(output_dir / run_folder.PROGRESS), output_dir / "run_report.png")
    if final is not None:
        card = recipe.card
        language = (card.language or "").replace(",", " ").split()
        write_model_card(final, license=card.license, language=language)
    run_folder.RunFolder(output_dir).end_evaluation()
    _print_summary(report, output_dir)


def _print_summary(report: dict[str, Any], output_dir: Path) -> None:
    """The lines at the end of a run."""
    evaluation, shares = report["evaluation"], report["shares"]
    parts = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in shares.items() if seconds >= 0.05)
    limit = report["budget_seconds"]  # none, or infinite before it was JSON
    budget = f" of {limit:.1f}s" if limit is not None and math.isfinite(limit) else ""
    print(
        f"\n{report['steps']} steps, {report['tokens']:,} tokens at {report['tokens_per_second']:,.0f}/s; used "
        f"{report['used_seconds']:.1f}s{budget} ({parts})"
    )
    if report.get("mfu"):
        print(
            f"{report['model_tflops_per_second']:.3g} TFLOP/s of the model, {100 * report['mfu']:.1f} % of this device's "
            f"matmul peak; waiting for data {100 * report['data_wait_share']:.2f} %"
        )
    if report.get("planned"):
        print(Plan.line(report["planned"]))
    if report["overrun_seconds"] > 0:
        print(f"the budget was overrun by {report['overrun_seconds']:.1f}s")
    print(
        f"held-out loss {evaluation['loss']:.4f}, accuracy {evaluation['accuracy']:.4f}, "
        f"bits per byte {evaluation['bits_per_byte']:.4f}\nreport in {output_dir}/run_report.json and .png",
        flush=True,
    )


def finish_push(push: BackgroundPush, output_dir: Path, report: dict[str, Any], seconds_left: float) -> None:
    """Wait for the Hub as long as the job may take, and add what came of it to the report. A failure changes nothing."""
    report = {**report, "hub": push.finish(seconds_left - PUSH_MARGIN_SECONDS)}
    try:
        write_json_atomic(output_dir / run_folder.REPORT, report)
    except OSError as error:
        log.warning("%s: not written (%s)", output_dir / run_folder.REPORT, error.strerror)


def _data(data_dir: Path) -> dict[str, Any]:
    """What the model was trained on, for the card; nothing where the folder has gone meanwhile."""
    try:
        return describe_data(data_dir)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
