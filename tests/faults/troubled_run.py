"""train_mlm.py whose ranks have troubles of their own: `troubled_run.py '{"late": 1, "skew": 1}' FLAGS...`.

late: from its 5th second on that rank sleeps 2 s before a random step, 5 times. skew: that rank's clock is 5 s ahead.
"""

import json
import os
import random
import sys
import time

import train_mlm
from budget_trainer.core.command import exit_process
from budget_trainer.training.trainer import TimeBudgetTrainer

TROUBLES = json.loads(sys.argv[1])
RANK = int(os.environ.get("RANK", "0"))
if TROUBLES.get("skew") == RANK:
    train_mlm.CLOCK._time_fn = lambda: time.monotonic() + 5.0

chance, naps = random.Random(RANK), []
compute_loss = TimeBudgetTrainer.compute_loss


def late(self, *args, **kwargs):
    due = self.is_in_train and len(naps) < 5 and train_mlm.CLOCK.job_seconds() > 5 + 5 * len(naps)
    if TROUBLES.get("late") == RANK and due and chance.random() < 0.05:
        naps.append(self.state.global_step)
        time.sleep(2.0)
    return compute_loss(self, *args, **kwargs)


TimeBudgetTrainer.compute_loss = late
code = train_mlm.main(sys.argv[2:])
if TROUBLES.get("late") == RANK:
    print("late before the steps", naps, file=sys.stderr, flush=True)
exit_process(code)
