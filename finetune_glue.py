#!/usr/bin/env python3
"""Fine-tune a checkpoint on GLUE: one task, several, or all of them with a grid and seeds, inside a time budget.

    accelerate launch --config_file accelerate_configs/cpu.yaml finetune_glue.py --model_name_or_path out/run/final \
        --task_name MRPC --output_dir out/mrpc
    python finetune_glue.py --model_name_or_path out/run/final --task_name all --grid recipes/glue/paper.yaml \
        --intermediate_task MNLI --output_dir out/glue --total_training_time 1h

The flags are those of Hugging Face's run_glue. One task is trained here; several, a grid or seeds make a suite, which starts
a process of this script for each run.
"""

from budget_trainer.budget.clock import BudgetClock

CLOCK = BudgetClock()  # before the heavy imports: they are paid for out of the budget

import math  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from contextlib import ExitStack  # noqa: E402

from budget_trainer.core import jobs  # noqa: E402
from budget_trainer.core.command import DONE  # noqa: E402
from budget_trainer.core.errors import StopAsked  # noqa: E402
from budget_trainer.core.stop_request import StopRequest  # noqa: E402
from budget_trainer.training.script import exit_process, run_script  # noqa: E402


def finetune(argv: Sequence[str] | None, stop: StopRequest, at_exit: ExitStack) -> int:
    """What was asked for. Returns the exit code: 0 all done, 1 some run of a suite failed, 85 stopped by a signal."""
    from budget_trainer.glue.arguments import parse_request

    request = parse_request(argv)
    CLOCK.total_seconds = math.inf if request.total_seconds is None else request.total_seconds
    if request.suite.checkpoints is not None:
        from budget_trainer.glue.suite import run_checkpoints

        return run_checkpoints(request, CLOCK, stop)
    if request.is_suite:
        from budget_trainer.glue.suite import run_suite

        return run_suite(request, CLOCK, stop)

    from budget_trainer.budget.channel import Agreement, ControlChannel
    from budget_trainer.glue import push, result, run
    from budget_trainer.training import launch
    from budget_trainer.training.engine import resolve_engine_config
    from budget_trainer.training.recovery import explain_out_of_memory

    # What was asked, on what data, from which checkpoint. Nothing is written before every check has passed.
    arguments, output_dir = request.run, request.output_dir
    launch.prepare(arguments)
    resolve_engine_config(arguments)
    run.check_engine(arguments)
    result.check_free(output_dir, request.glue.overwrite_output_dir)
    launch.check_trackers(arguments)
    agreement = Agreement(ControlChannel(timeout_seconds=min(600.0, arguments.ddp_timeout)), stop)
    sources = run.gather_sources(request, request.tasks[0])
    trainer, predictor = run.make_parts(request, sources, CLOCK, agreement)
    if agreement.agree_on_stop():
        raise StopAsked(f"{agreement.stop_asked_by} during set-up")
    if arguments.should_save:
        result.clear(output_dir)

    # Train, as long as the budget lets or the epochs say; the best weights by the dev score become the model.
    model = trainer.model
    if arguments.do_train:
        run.reserve_end(trainer, predictor, sources, output_dir)
        with explain_out_of_memory(arguments):
            trainer.train()
        if trainer.time_budget.stop_reason == "stop_requested":
            raise StopAsked(f"{agreement.stop_asked_by} during training")
        trainer.settle_best()
        model = run.best_model(trainer, sources, output_dir)
    elif arguments.do_eval:
        trainer.evaluate()

    # The outputs for dev are those that were scored; result.json comes last: it says that the run is finished.
    outputs = dict(trainer.best.logits)
    if arguments.do_predict:
        with CLOCK.phase("evaluate"):
            outputs |= run.predict_tests(predictor, model, request, sources)
    if arguments.should_save:
        run.keep(request, sources, trainer, outputs, run.account)
    trainer.time_budget.channel.barrier()
    at_exit.close()  # what follows is outside of the budget, and any signal may end it
    if arguments.should_save:
        push.publish(output_dir, request.push)
    return DONE


def told(error: Exception) -> Exception:
    """The error in the words of a run on GLUE, where there is nothing to resume."""
    from budget_trainer.glue import result

    return result.told(error)


def main(argv: Sequence[str] | None = None) -> int:
    """`finetune`, with every end in one line and an exit code of `command.EXIT_CODES`."""
    jobs.end_with_parent()
    return run_script("finetune_glue", finetune, argv, told)


def command() -> None:
    """The script, and the entry point budget-finetune-glue."""
    exit_process(main())


if __name__ == "__main__":
    command()
