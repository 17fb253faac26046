"""Jobs with small commands as processes: slots, ends, limits, stops."""

import json
import os
import signal
import sys
import threading
import time

import psutil
import pytest

from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import StopAsked
from budget_trainer.core.jobs import BESIDE, VARIABLE, Job, run_jobs, runs_beside
from tests.conftest import children, wait_for


def python(code):
    return [sys.executable, "-S", "-c", code]


SLEEP = python("import time; time.sleep(60)")
# Answers no request to stop, and has a child of its own.
STUBBORN = python(
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']); print('up', flush=True); time.sleep(60)"
)


def asleep():
    """Processes of a job that are still there."""
    found = map(psutil.Process, children(os.getpid()))
    return [child for child in found if "sleep(60)" in " ".join(child.cmdline())]


def run(tmp_path, *jobs, slots=(None,), stop=None):
    """Run jobs (their keywords, or a function of none that gives them); the ends in the order they came."""
    ends, waiting = [], list(enumerate(jobs))

    def next_job():
        if not waiting:
            return None
        number, keywords = waiting.pop(0)
        return Job(**{"log": tmp_path / f"{number}.log", "on_end": ends.append, **keywords})

    run_jobs(slots, next_job, stop or StopRequest())
    return ends


# Waits for what the words say: `n,m`, until so many run and so many on its device; `=x` makes that file, `?x` waits for it.
BESIDE_OTHERS = f"""import json, os, sys, time
path = json.loads(os.environ['{BESIDE}'])[-1]
for word in sys.argv[1:]:
    if word[0] == '=':
        open(word[1:], 'w').close()
    while not (os.path.exists(word[1:]) if word[0] in '=?' else open(path).read().split() == word.split(',')):
        time.sleep(0.02)
"""


def test_runs_know_how_many_they_are(tmp_path, monkeypatch):
    """On the machine and on their device, when others begin and when they end."""
    monkeypatch.delenv(BESIDE, raising=False)
    words = [["3,2", "=a", "2,1", "=b", "1,1"], ["3,2", "?a", "?c"], ["3,1", "=c", "?b"]]
    limit = {"watch": lambda seconds: "waited in vain" if seconds > 60 else None, "grace_seconds": 0.0}
    words = [[word[0] + str(tmp_path / word[1:]) if word[0] in "=?" else word for word in one] for one in words]
    jobs = [{"command": [*python(BESIDE_OTHERS), *one], **limit} for one in words]
    ends = run(tmp_path, *jobs, slots=("0", "0", "1"))
    assert [(end.code, end.reason) for end in ends] == [(0, None)] * 3, [end.error for end in ends]


def test_runs_below_runs_are_counted_by_both(tmp_path, monkeypatch):
    monkeypatch.delenv(BESIDE, raising=False)
    assert runs_beside() == (1, 1)
    (tmp_path / "sweep").write_text("4 2\n")
    monkeypatch.setenv(BESIDE, json.dumps([str(tmp_path / "sweep")]))
    assert runs_beside() == (4, 2)
    run(tmp_path, {"command": python(f"import os; print(os.environ['{BESIDE}'])")})
    above, own = json.loads((tmp_path / "0.log").read_text())
    assert above == str(tmp_path / "sweep") and not os.path.exists(own), "it ends with the jobs"
    (tmp_path / "suite").write_text("3 1\n")
    monkeypatch.setenv(BESIDE, json.dumps([above, str(tmp_path / "suite")]))
    assert runs_beside() == (12, 2)


@pytest.mark.parametrize(
    ("code", "exit_code", "error"),
    [
        ("print('one\\n\\n  two  ')", 0, "two"),
        ("print('error: a\\nerror: no room\\nlater'); raise SystemExit(3)", 3, "no room"),
        ("import sys; print('x', file=sys.stderr); raise ValueError('bad')", 1, "ValueError: bad"),
        ("print('KeyError: x\\nCalledProcessError: y')", 0, "KeyError: x"),
        ("print('x' * 600)", 0, "x" * 500),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "it ended with code -9"),
    ],
)
def test_how_a_process_ended_and_the_line_that_says_why(tmp_path, code, exit_code, error):
    (end,) = run(tmp_path, {"command": python(code)})
    assert (end.code, end.error, end.reason) == (exit_code, error, None) and 0 < end.seconds < 30


def test_one_job_on_each_device(tmp_path):
    code = f"import os, time; device = os.environ['CUDA_VISIBLE_DEVICES']; folder = {str(tmp_path)!r} + '/busy' + device; "
    code += "os.mkdir(folder); time.sleep(0.2); os.rmdir(folder); print(device)"
    ends = run(tmp_path, *[{"command": python(code)}] * 5, slots=["0", "1"])
    assert [end.code for end in ends] == [0] * 5, [end.error for end in ends]
    assert {end.error for end in ends} == {"0", "1"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins nothing")
def test_a_job_is_pinned_to_the_core_of_its_slot_and_this_process_is_not(tmp_path):
    here = os.sched_getaffinity(0)
    code = "import os; print(os.sched_getaffinity(0), os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'))"
    ends = run(tmp_path, *[{"command": python(code)}] * len(here), slots=sorted(here))
    device = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert {end.error for end in ends} == {f"{{{core}}} 1 {device}" for core in here} and os.sched_getaffinity(
        0
    ) == here


def test_environment_log_and_inherited_descriptor(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "log").write_text("before\n")
    code = f"import os; print('RANK' in os.environ, 'ACCELERATE_USE_CPU' in os.environ, os.environ[{VARIABLE!r}]); "
    with open(tmp_path / "lock", "w") as lock:
        inherited = lock.fileno()
        command = python(code + f"os.fstat({inherited}); print(os.get_inheritable({inherited}))")
        run(tmp_path, {"command": command, "log": tmp_path / "log", "append": True, "inherited": inherited})
    assert (tmp_path / "log").read_text() == "before\nFalse False 1\nTrue\n"


def test_a_job_may_follow_on_the_same_device(tmp_path):
    (tmp_path / "log").write_text("before\n")
    second = Job(command=python("print('second')"), log=tmp_path / "log", append=True, on_end=lambda end: None)
    run(tmp_path, {"command": python("print('first')"), "log": tmp_path / "log", "on_end": lambda end: second})
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


@pytest.mark.parametrize(("command", "grace"), [(SLEEP, 20.0), (SLEEP, 0.0), (STUBBORN, 0.3)])
def test_a_job_is_ended_when_its_watch_says_so(tmp_path, command, grace):
    def watch(seconds):
        up = command is SLEEP or (tmp_path / "0.log").read_text()
        return "it takes too long" if seconds > 0.3 and up else None

    begin = time.monotonic()
    (end,) = run(tmp_path, {"command": command, "watch": watch, "grace_seconds": grace})
    assert end.reason == "it takes too long" and time.monotonic() - begin < 15
    assert end.code == (-signal.SIGTERM if command is SLEEP and grace else -signal.SIGKILL)
    assert not asleep()


def test_a_signal_ends_all_jobs(tmp_path):
    stop = StopRequest()
    threading.Timer(0.5, stop.ask, [signal.SIGTERM]).start()
    with pytest.raises(StopAsked, match="SIGTERM; repeat the command to go on"):
        run(tmp_path, {"command": SLEEP}, {"command": SLEEP}, {"command": SLEEP}, slots=["0", "1"], stop=stop)
    assert not asleep() and not (tmp_path / "2.log").exists(), "none is begun any more"


@pytest.mark.parametrize("where", ["watch", "on_end"])
def test_an_error_of_the_caller_ends_the_other_jobs(tmp_path, where):
    def broken(_):
        raise ZeroDivisionError

    jobs = [{"command": SLEEP}, {"command": python("pass") if where == "on_end" else SLEEP, where: broken}]
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, *jobs, slots=["0", "1"])
    assert not asleep()


def test_a_job_ends_with_the_process_that_started_it(tmp_path):
    """kill -9 of the parent: the pipe that it held open ends."""
    child = "import time; from budget_trainer.core.jobs import end_with_parent; end_with_parent(); print('up', flush=True); "
    child += "time.sleep(60)"
    log = tmp_path / "log"
    parent = f"""
import sys
from pathlib import Path
from budget_trainer.core.jobs import Job, StopRequest, run_jobs
jobs = [Job(command=[sys.executable, "-c", {child!r}], log=Path({str(log)!r}), on_end=print)]
run_jobs([None], lambda: jobs.pop() if jobs else None, StopRequest())
"""
    process = psutil.Popen([sys.executable, "-c", parent])
    wait_for(lambda: log.exists() and log.read_text(), 30)
    (started,) = process.children()
    process.kill()
    process.wait()
    started.wait(20)
