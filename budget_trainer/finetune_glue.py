"""Fine-tune a checkpoint on GLUE, inside a time budget: finetune_glue.py, budget-finetune-glue.

    accelerate launch --config_file $(budget-profile cpu) -m budget_trainer.finetune_glue \
        --model_name_or_path out/run/final --task_name MRPC --output_dir out/mrpc
    budget-finetune-glue --model_name_or_path out/run/final --task_name all --grid paper --intermediate_task MNLI \
        --output_dir out/glue --total_training_time 1h

The flags are those of Hugging Face's run_glue. One task is trained here; several, a grid or seeds make a suite, which starts
a process of this module for each run.
"""

from budget_trainer.budget.clock import BudgetClock

CLOCK = BudgetClock()  # before the heavy imports: they are paid for out of the budget

import math  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from contextlib import ExitStack  # noqa: E402

from budget_trainer.core import jobs  # noqa: E402
from budget_trainer.core.command import (  # noqa: E402
    DONE,
    StopRequest,  # noqa: E402
    exit_process,
    run_script,
)
from budget_trainer.reporting.energy import EnergyMeter  # noqa: E402


def finetune(argv: Sequence[str] | None, stop: StopRequest, at_exit: ExitStack) -> int:
    """One run, or a suite of them. Returns the exit code: 0 all done, 1 some run of a suite failed."""
    energy = EnergyMeter(CLOCK)
    from budget_trainer.glue.arguments import parse_request

    request = parse_request(argv)
    CLOCK.total_seconds = math.inf if request.total_seconds is None else request.total_seconds
    if request.is_suite:
        from budget_trainer.glue.suite import run_checkpoints, run_suite

        if request.suite.checkpoints is None:
            suites = [run_suite(request, CLOCK, stop)]
        else:
            suites = run_checkpoints(request, CLOCK, stop)
        return 1 if any(suite.failed for suite in suites) else DONE

    from budget_trainer.glue.run import GlueRun

    run = GlueRun(request, CLOCK, stop, energy)  # checks the machine
    with run.owned_folder():  # no second process may work in it; nothing of a run is written before claim_folder
        run.load()  # data, checkpoint, tokenizer
        run.build_trainer()
        run.claim_folder()
        run.train()  # as long as the budget lets; the best weights by the dev score become the model
        run.predict()
        run.write_result()  # result.json comes last: it says that the run is finished
        at_exit.close()  # what follows is outside of the budget, and any signal may end it
        run.push()
    return DONE


def answer(words: Sequence[str]) -> str:
    """What `--help` or `--print_config` asks for."""
    from budget_trainer.config import help
    from budget_trainer.glue import arguments

    return help.answer(words, arguments.PARSER, arguments.parse_request)


def main(argv: Sequence[str] | None = None) -> int:
    """`finetune`, with every end in one line and an exit code of `command.EXIT_CODES`."""
    jobs.end_with_parent()
    return run_script(finetune, argv, answer)


def command() -> None:
    """The script, the module, and the entry point budget-finetune-glue."""
    exit_process(main())


if __name__ == "__main__":
    command()
