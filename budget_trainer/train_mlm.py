"""Pre-train a masked language model inside a wall-clock budget: train_mlm.py, budget-train-mlm.

    accelerate launch --config_file $(budget-profile ddp) --num_processes 8 -m budget_trainer.train_mlm izsak2021 \
        --data_dir out/data --output_dir out/run --total_training_time 24h

The recipe comes first, the command line wins, an unknown key is an error. Everything counts from the first line below
until the model is on disk in <output_dir>/final/: imports, set-up, compilation, data, validation, saves.
"""

from budget_trainer.budget.clock import BudgetClock

CLOCK = BudgetClock()  # before the heavy imports: they are paid for out of the budget

from collections.abc import Sequence  # noqa: E402
from contextlib import ExitStack  # noqa: E402

from budget_trainer.core import jobs  # noqa: E402
from budget_trainer.core.command import StopRequest, exit_process, run_script  # noqa: E402
from budget_trainer.core.errors import RESUME  # noqa: E402
from budget_trainer.reporting.energy import EnergyMeter  # noqa: E402


def train(argv: Sequence[str] | None, stop: StopRequest, at_exit: ExitStack) -> int:
    """One run, or one job of it. Returns the exit code: 0 finished, 85 to be resumed."""
    energy = EnergyMeter(CLOCK)
    from budget_trainer.config.recipe import parse_recipe
    from budget_trainer.training.run import PretrainingRun

    run = PretrainingRun(parse_recipe(argv), CLOCK, stop, at_exit, energy=energy)
    with run.owned_folder():  # no second process may work in it
        if run.awaits_evaluation:
            return run.evaluate_final()
        run.open_data()
        run.build_model()
        run.build_trainer()
        run.claim_folder()
        run.train()
        return run.finish()


def answer(words: Sequence[str]) -> str:
    """What `--help` or `--print_config` asks for."""
    from budget_trainer.config import arguments, help, recipe

    return help.answer(words, arguments.PARSER, recipe.parse_recipe)


def main(argv: Sequence[str] | None = None) -> int:
    """`train`, with every end in one line and an exit code of `command.EXIT_CODES`."""
    jobs.end_with_parent()
    return run_script(train, argv, answer, again=RESUME)


def command() -> None:
    """The script, the module, and the entry point budget-train-mlm."""
    exit_process(main())


if __name__ == "__main__":
    command()
