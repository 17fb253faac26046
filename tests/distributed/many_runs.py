"""Several runs of train_mlm.py in one (possibly distributed) process: `many_runs.py '[{flags}, {flags}]'`."""

import json
import sys

from budget_trainer import train_mlm
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.command import exit_process
from tests.conftest import words

for options in json.loads(sys.argv[1]):
    train_mlm.CLOCK = BudgetClock()
    code = train_mlm.main(words(options))
    if code:
        sys.exit(code)
exit_process(0)
