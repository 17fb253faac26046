"""Two ranks on a control channel; rank 1 stays away from one message: `lost_rank.py FOLDER late|gone`."""

import sys
import time
from pathlib import Path

import torch.distributed as dist

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.core.errors import LostRank

folder, how = Path(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo")
channel = ControlChannel(timeout_seconds=4.0)
channel.agree([1.0], [0])
if channel.rank == 1:
    time.sleep(15 if how == "late" else 0)
    sys.exit(0)
begin = time.monotonic()
try:
    channel.agree([2.0], [0])
except LostRank as lost:
    (folder / "said.txt").write_text(f"{time.monotonic() - begin:.1f} {lost}")
sys.exit(0)
