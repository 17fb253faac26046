"""Processes that end right behind a message."""

import sys

from tests.conftest import run

# A thread of gloo that is still to let go of the message when its process ends: it has the lowest priority and the process
# one CPU, so that in nearly half of the exits the thread comes last.
CODE = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from budget_trainer.budget.channel import ControlChannel

sys.setswitchinterval(10)
for pair in range(4):
    for rank in range(2):
        if not os.fork():
            cpus = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cpus[rank % len(cpus)]})
            dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/{pair}", rank=rank, world_size=2)
            channel = ControlChannel()
            for thread in Path("/proc/self/task").iterdir():
                if "gloo_runloop" in (thread / "comm").read_text():
                    os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
            sys.exit(channel.gather(rank) != [0, 1])
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)])
"""


def test_a_process_that_ends_behind_a_message_ends_well(tmp_path):
    assert run([sys.executable, "-c", CODE, tmp_path], timeout=200, ok=True).stdout == f"{[0] * 8}\n"
