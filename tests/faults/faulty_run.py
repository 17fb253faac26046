"""train_mlm.py whose ranks have faults: `faulty_run.py '{"nan": {"1": [3, 4]}, "late": 0, "skew": 1}' FLAGS...`.

nan: the loss of that rank is NaN at these steps. late: from its 5th second on that rank sleeps 2 s before a random step,
5 times. skew: that rank's clock is 5 s ahead.
"""

import json
import math
import os
import random
import sys
import time

from budget_trainer import train_mlm
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.command import exit_process
from budget_trainer.training.trainer import TimeBudgetTrainer

FAULTS, RANK = json.loads(sys.argv[1]), os.environ.get("RANK", "0")
BAD = FAULTS.get("nan", {}).get(RANK, [])
if str(FAULTS.get("skew")) == RANK:
    ahead = [0.0]
    train_mlm.CLOCK = BudgetClock(time_fn=lambda: time.monotonic() + ahead[0])
    ahead[0] = 5.0

chance, naps = random.Random(int(RANK)), []
compute_loss = TimeBudgetTrainer.compute_loss


def faulty(self, *args, **kwargs):
    due = self.is_in_train and len(naps) < 5 and train_mlm.CLOCK.job_seconds() > 5 + 5 * len(naps)
    if str(FAULTS.get("late")) == RANK and due and chance.random() < 0.05:
        naps.append(self.state.global_step)
        time.sleep(2.0)
    loss = compute_loss(self, *args, **kwargs)
    return loss * math.nan if self.state.global_step + 1 in BAD and self.is_in_train else loss


TimeBudgetTrainer.compute_loss = faulty
code = train_mlm.main(sys.argv[2:])
if naps:
    print("late before the steps", naps, file=sys.stderr, flush=True)
exit_process(code)
