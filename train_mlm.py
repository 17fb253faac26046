#!/usr/bin/env python3
"""Pre-train a masked language model inside a wall-clock budget.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_mlm.py recipes/quickstart.yaml \
        --data_dir out/data --output_dir out/run --total_training_time 10m

The recipe comes first, the command line wins, an unknown key is an error. Everything counts from the first line below
until the model is on disk in <output_dir>/final/: imports, set-up, compilation, data, validation, saves.
"""

from budget_trainer.budget.clock import BudgetClock

CLOCK = BudgetClock()  # before the heavy imports: they are paid for out of the budget

from collections.abc import Sequence  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from functools import partial  # noqa: E402

from budget_trainer.core import jobs  # noqa: E402
from budget_trainer.core.command import DONE, RESUMABLE  # noqa: E402
from budget_trainer.core.stop_request import StopRequest  # noqa: E402
from budget_trainer.training.script import exit_process, run_script  # noqa: E402


def train(argv: Sequence[str] | None, stop: StopRequest, at_exit: ExitStack) -> int:
    """One run, or one job of it. Returns the exit code: 0 finished, 85 to be resumed."""
    from budget_trainer.budget.channel import Agreement, ControlChannel
    from budget_trainer.config.parser import parse_recipe
    from budget_trainer.data.folder import DataFolder
    from budget_trainer.model.optimizers import build_optimizer
    from budget_trainer.training import checkpoints, launch, run_folder
    from budget_trainer.training import run as run_module
    from budget_trainer.training.engine import (
        check_loadable,
        engine_name,
        prepare_universal_checkpoint,
        resolve_engine_config,
    )
    from budget_trainer.training.finish import conclude, finish_report, save_final
    from budget_trainer.training.precision import resolve_compute_mode
    from budget_trainer.training.run import add_callbacks
    from budget_trainer.training.trainer import TimeBudgetTrainer

    # What was asked, on what data, in which folder. Nothing is written before every check has passed.
    recipe = parse_recipe(argv)
    run, output_dir = recipe.run, recipe.output_dir
    CLOCK.total_seconds = recipe.total_seconds
    launch.prepare(run)
    channel = ControlChannel(timeout_seconds=min(600.0, run.ddp_timeout))
    agreement = Agreement(channel, stop)
    data = DataFolder.open(recipe.data_dir)
    if run.resume_from_checkpoint is not None and run_folder.awaits_evaluation(output_dir):
        at_exit.close()  # no more work that a signal would have to save
        finish_report(recipe, data, channel, CLOCK)
        return DONE
    checkpoint = run_folder.find_checkpoint(output_dir, run.resume_from_checkpoint)
    columns = data.columns_for(document_mask=recipe.data.document_mask, next_sentence=recipe.add_nsp)
    blocks = data.train(seed=run.seed, columns=columns)
    run_module.check_data(data, blocks, recipe)
    run_module.check_contents(data, recipe, channel)
    resolve_engine_config(run)
    check_loadable(checkpoint, engine_name(run), run.world_size, recipe.optimizer.optimizer_type)
    launch.check_trackers(run)
    job = run_folder.restore_clock(CLOCK, output_dir, checkpoint)

    # The model, what a checkpoint of this run belongs to, and whether bf16 and compiling pay here.
    model = run_module.make_model(recipe, data, blocks, channel, resumed=checkpoint is not None)
    collator = run_module.make_collator(recipe, data)
    micro_batch = collator(blocks.__getitems__(range(run.per_device_train_batch_size)))
    left = recipe.seconds_left(CLOCK.elapsed_seconds())
    speed = resolve_compute_mode(recipe, model, micro_batch, left, checkpoint, channel)
    launch.raise_if_stop_requested(agreement, output_dir, "set-up")
    optimizer_options = run_module.optimizer_options(recipe)
    identity = run_module.identity(model, data, recipe)
    run_folder.check_identity(identity, output_dir, checkpoint)
    if checkpoint is not None and run.process_index == 0:  # it is this run's: from here on its clock is kept
        at_exit.enter_context(run_module.claim(output_dir, identity, job, CLOCK))
    prepare_universal_checkpoint(checkpoint, run, channel)

    # The Trainer: the budget first, then what happens at shares of it.
    budget = run_module.make_budget(recipe, CLOCK, agreement)
    trainer = TimeBudgetTrainer(
        model=model,
        args=run,
        train_dataset=blocks,
        data_collator=collator,
        processing_class=data.load_tokenizer(),
        create_optimizer_fn=partial(build_optimizer, recipe.optimizer.optimizer_type, **optimizer_options),
        evaluation=run_module.make_evaluation(data),
        time_budget=budget,
        identity=identity,
        stages=recipe.stages(data.block_size),
        throughput=run_module.make_throughput(recipe, budget),
        speed=speed,
        regional_compile=recipe.budget.regional_compile,
        **recipe.schedule(),
    )

    # How long the end takes is measured; only then is a new folder this run's (a resumed one was so above).
    at_exit.callback(checkpoints.release_disk_space, output_dir)
    trainer.rehearse_save(output_dir, reserve_disk=recipe.budget.finetune_checkpoint_at_end)
    samples_per_epoch = run_module.samples_per_epoch(recipe, data)
    validation = recipe.validation_plan(samples_per_epoch)
    if validation is not None:
        trainer.rehearse_evaluation(validation.seconds_between(recipe.total_seconds))
    launch.raise_if_stop_requested(agreement, output_dir, "set-up")
    budget.check_room(resumed=checkpoint is not None)
    if checkpoint is None and run.process_index == 0:
        at_exit.enter_context(run_module.claim(output_dir, identity, job, CLOCK))
    callbacks = add_callbacks(trainer, recipe, validation, samples_per_epoch, job)

    # Train until the budget ends, then put the model on disk: here the budget ends. A signal on any rank makes all of
    # them stop after the same step, with a checkpoint.
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    resumable = budget.stop_reason in ("job_time_limit", "stop_requested")
    final = output_dir / run_folder.FINAL if recipe.budget.finetune_checkpoint_at_end and not resumable else None
    if final is not None:
        save_final(trainer, callbacks, recipe, final)
    CLOCK.stop()
    at_exit.close()  # clock.json has its last entry, and signals end the process again
    if resumable:
        if run.process_index == 0:
            run_folder.mark_resumable(output_dir, str(budget.stop_reason))
        return RESUMABLE

    conclude(trainer, callbacks, recipe, final)  # outside of the budget
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """`train`, with every end in one line and an exit code of `command.EXIT_CODES`."""
    jobs.end_with_parent()
    return run_script("train_mlm", train, argv)


def command() -> None:
    """The script, and the entry point budget-train-mlm."""
    exit_process(main())


if __name__ == "__main__":
    command()
