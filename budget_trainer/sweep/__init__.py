"""The search for the best recipe under a total time.

    budget-sweep sweep.yaml --output_dir out/sweep --total_time 8h         (or: python sweep.py ...)
    budget-sweep --param_file original.yaml --job_name experiment --dry_run

The file is one of this project (`search`, `parameters`, ...) or one of academic-budget-bert's (`hyperparameters`,
`default_parameters`), unchanged; the command line wins. Each trial is a process of budget_trainer.train_mlm in its own folder;
Optuna asks and tells. Repeating the command goes on, after a signal (exit code 85) or a kill too.
"""

from budget_trainer.budget.clock import BudgetClock

CLOCK = BudgetClock()  # total_time counts from here

from collections.abc import Sequence  # noqa: E402
from contextlib import ExitStack  # noqa: E402

from budget_trainer.core.command import (  # noqa: E402
    DONE,
    StopRequest,  # noqa: E402
    run_script,
)


def sweep(argv: Sequence[str] | None, stop: StopRequest, at_exit: ExitStack) -> int:
    """Run the trials, or print their commands. Returns the exit code: 0 done, 1 no trial finished."""
    from budget_trainer.sweep.command import parse_request

    request = parse_request(argv)
    if request.dry_run:
        request.print_commands()
        return DONE
    spec = request.spec()
    from budget_trainer.sweep.run import run_sweep

    return run_sweep(spec, CLOCK, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """`sweep`, with every end in one line and an exit code of `command.EXIT_CODES`."""
    return run_script(sweep, argv)
