"""glibc keeps what is freed, where it is glibc and the user said nothing."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# A block of 64 MiB, freed and taken again: page faults come back where it went to the kernel.
CODE = """
import resource, sys, torch
from budget_trainer.model.cpu import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()  # the heap grows to its size
print(int(kept), faults())
"""


def child(how, **environ):
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run([sys.executable, "-c", CODE, how], env=env, capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    return bool(kept), faults


def test_freed_memory_is_used_again():
    if sys.platform != "linux":
        pytest.skip("glibc only")
    kept, faults = child("keep")
    if not kept:
        pytest.skip("this C library has no mallopt")
    _, before = child("leave")
    assert faults * 10 < before


def test_the_user_s_own_settings_stay():
    assert child("keep", MALLOC_ARENA_MAX="2")[0] is False
