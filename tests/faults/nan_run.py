"""train_mlm.py with a loss that is NaN at given steps of given ranks: `nan_run.py '{"1": [3, 4]}' FLAGS...`."""

import json
import math
import os
import sys

import train_mlm
from budget_trainer.core.command import exit_process
from budget_trainer.training.trainer import TimeBudgetTrainer

BAD = json.loads(sys.argv[1]).get(os.environ.get("RANK", "0"), [])
compute_loss = TimeBudgetTrainer.compute_loss


def poisoned(self, *args, **kwargs):
    loss = compute_loss(self, *args, **kwargs)
    return loss * math.nan if self.state.global_step + 1 in BAD and self.is_in_train else loss


TimeBudgetTrainer.compute_loss = poisoned
code = train_mlm.main(sys.argv[2:])
exit_process(code)
