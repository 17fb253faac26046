"""What happens while a run trains, each thing one callback: the trail, what is kept, validation, guards, the bar."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import ProgressCallback

from budget_trainer import run_folder
from budget_trainer.background_push import BackgroundPush
from budget_trainer.callbacks.early_stop import EarlyStop
from budget_trainer.callbacks.guard import Guard
from budget_trainer.callbacks.milestones import CheckpointCadence, FinetuneMarkers, ValidationCadence
from budget_trainer.callbacks.progress import BudgetProgressBar, ProgressLog
from budget_trainer.checked_recipe import Recipe
from budget_trainer.trainer import TimeBudgetTrainer
from budget_trainer.validation_plan import ValidationPlan


@dataclass(frozen=True)
class RunCallbacks:
    """What the account of the run is made from."""

    progress: ProgressLog
    markers: FinetuneMarkers
    guard: Guard
    push: BackgroundPush | None = None  # to the Hub, where that was asked for (main process)


def add_callbacks(
    trainer: TimeBudgetTrainer, recipe: Recipe, validation: ValidationPlan | None, samples_per_epoch: int, job: int
) -> RunCallbacks:
    """Add everything in its order: the guard comes behind what saves, because a bad step is not saved."""
    budget, output_dir, watch = trainer.time_budget, recipe.output_dir, recipe.watch
    progress = ProgressLog(budget, output_dir / run_folder.PROGRESS, job)
    markers = FinetuneMarkers(budget, recipe.markers, output_dir, trainer.save_folder)
    epochs = recipe.budget.num_epochs_between_checkpoints
    every_samples = None if epochs is None or epochs == -1 else epochs * samples_per_epoch
    guard = Guard(
        budget,
        max_bad_steps=watch.max_bad_steps,
        max_roll_backs=watch.max_roll_backs,
        roll_back_lr_factor=watch.roll_back_lr_factor,
        scale_cnt_limit=watch.scale_cnt_limit,
        loss_spike=watch.loss_spike,
        roll_back=trainer.roll_back,
        loss_scale=trainer.loss_scale,
    )

    def samples() -> int:
        return trainer.samples_consumed

    trainer.add_callback(progress)
    trainer.add_callback(markers)
    trainer.add_callback(CheckpointCadence(budget, recipe.checkpoint_seconds, every_samples, samples))
    if validation is not None:
        trainer.add_callback(ValidationCadence(budget, validation, samples))
    trainer.add_callback(guard)
    if watch.early_stop_eval_loss is not None:
        trainer.add_callback(EarlyStop(budget, recipe.early_stop_seconds, watch.early_stop_eval_loss))
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(BudgetProgressBar(budget))
    return RunCallbacks(progress, markers, guard, _start_push(trainer, recipe))


def _start_push(trainer: TimeBudgetTrainer, recipe: Recipe) -> BackgroundPush | None:
    """The push, begun where time-marked models go to the Hub while the training goes on."""
    if recipe.push is None or trainer.args.process_index != 0:
        return None
    push = BackgroundPush(recipe.output_dir, recipe.push.options)
    if recipe.push.at_every_save and recipe.markers:
        push.start()
    return push
