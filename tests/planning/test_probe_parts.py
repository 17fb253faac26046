"""The planner's probe in parts: sizes and their choice, memory, the order of its steps, how it ends."""

import json
import math
import mmap
import sys
import time

import pytest
import torch

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.planning.candidates import (
    MicroStep,
    bisect_fits,
    choose,
    first_size,
    largest_that_fits,
    micro_batches,
    predicted_memory,
    thinned,
)
from budget_trainer.planning.child import ask_probe
from budget_trainer.planning.measure import ProbeTrainer, Taken, free_bytes, peak_bytes, reset_peak
from budget_trainer.planning.probe import check_weights_fit, planned_error
from budget_trainer.planning.schedule import (
    Found,
    compilation,
    compile_seconds,
    ladder,
    shapes,
    steady,
    steady_state,
    turns,
)


@pytest.mark.parametrize(
    ("total", "allowed", "expected"),
    [
        (16, lambda a: True, [1, 2, 4, 8, 16]),
        (12, lambda a: True, [1, 2, 3, 4, 6, 12]),
        (16, lambda a: a % 4 == 0, [1, 2, 4]),
        (1, lambda a: True, [1]),
    ],
)
def test_micro_batches_make_up_the_batch(total, allowed, expected):
    assert micro_batches(total, allowed) == expected


def test_an_open_batch_tries_powers_of_two():
    assert micro_batches(None)[:4] == [1, 2, 4, 8]
    assert thinned([1, 2, 3, 4, 5, 6, 8, 24]) == [1, 2, 3, 4, 6, 8, 24]
    assert thinned([10, 11]) == [11]


def test_the_smaller_one_within_the_noise_is_chosen_and_the_batch_counts():
    def steps(work, rest=0.0, noise=0.0):
        return [MicroStep(0.0, work * (1 + noise * (number % 3 - 1)), rest) for number in range(9)]

    assert choose({4: steps(0.4), 8: steps(0.79), 16: steps(1.58)}, 16) == 4  # 1.3 % slower
    assert choose({4: steps(0.5), 8: steps(0.79), 16: steps(1.57)}, 16) == 8
    # The optimizer comes once per step: alone, 4 would look much slower than 16.
    assert choose({4: steps(0.4, rest=1.0), 16: steps(1.6, rest=1.0)}, 16) == 4
    assert choose({4: steps(0.4, rest=1.0), 16: steps(1.6, rest=1.0)}, None) == 16


def test_memory_is_extrapolated_along_a_line():
    peaks = {1: 110.0, 2: 120.0, 4: 140.0}
    assert predicted_memory(peaks, 8) == 180.0
    assert largest_that_fits(peaks, 200.0) == 10
    assert largest_that_fits({1: 100.0, 2: 100.0}, 200.0) is None
    assert predicted_memory({4: 100.0}, 8) == 200.0
    assert predicted_memory({2: 100.0, 4: 100.0}, 8) == 200.0  # no growth seen is no promise of none


def test_the_first_size_is_one_that_has_run():
    assert first_size([1, 2, 4, 8, 16, 32, 64], 32) == 8 and first_size([1, 61], 32) == 1
    assert first_size([1, 2, 4, 8, 16, 32, 64], 32, marked=32) == 32 and first_size([1, 8, 64], 32, marked=32) == 8
    assert first_size([48, 96], 32) == 48 and first_size([1, 2], 1) == 1


def test_the_high_water_mark_begins_anew():
    with mmap.mmap(-1, 2**28) as block:  # not malloc's: a test of this process may have told it to keep what is freed
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        with_it = peak_bytes()
    if not reset_peak():
        pytest.skip("this system does not reset it")
    assert peak_bytes() < with_it - 2**27
    before = peak_bytes()
    with mmap.mmap(-1, 2**27) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert 0.8 * 2**27 < peak_bytes() - before < 1.2 * 2**27


def play(schedule, peak, fits=lambda size: True, seconds=lambda size: 1e-4 * size):
    """Answer a schedule's orders as a machine would; returns the sizes in order."""
    sizes = []
    try:
        order = next(schedule)
        while True:
            sizes.append(order.micro_batch)
            step = MicroStep(0.0, seconds(order.micro_batch), 0.0)
            order = schedule.send(Taken(step, peak(order.micro_batch), fits(order.micro_batch)))
    except StopIteration:
        return sizes


def test_a_cpu_never_tries_what_would_not_fit():
    found = Found(peaks={0: 100.0})
    sizes = play(ladder(found, [1, 2, 4, 8, 16, 32], 32, 200.0, math.inf, gpu=False), lambda size: 100 + 10 * size)
    assert max(sizes) == 8 and found.refused == 16  # 180 fits, 260 would not


def test_a_gpu_bisects_between_what_fits_and_what_does_not():
    found = Found()
    play(ladder(found, [8, 16, 32, 64], None, 1e9, math.inf, gpu=True), float, fits=lambda size: size <= 50)
    assert max(found.measured) <= 50 < found.refused
    assert found.refused - max(found.measured) <= max(found.measured) // 8
    assert bisect_fits(2, 6, [1, 2, 3, 4, 6]) == 4 and bisect_fits(2, 3, [1, 2, 3]) is None


def test_a_size_that_fails_in_its_second_step_did_not_fit():
    found, steps = Found(), iter(range(100))
    play(
        ladder(found, [16, 32, 64], 64, 1e9, math.inf, gpu=True),
        float,
        fits=lambda size: size < 64 or next(steps) == 0,
    )
    assert next(steps) == 2 and found.refused == 64 and max(found.peaks) == max(found.measured) == 32


def test_a_size_that_fails_in_the_turns_is_not_chosen():
    found = Found(measured={size: [MicroStep(0.0, 0.1, 0.0)] for size in (32, 64)}, peaks={32: 1.0, 64: 2.0})
    play(turns(found, 64, 0, 0.0), float, fits=lambda size: size < 64)
    assert found.micro_batch == 32 and found.refused == 64 and set(found.peaks) == {32}
    with pytest.raises(RunError, match="plan a smaller model"):
        play(turns(found, 64, 0, 0.0), float, fits=lambda size: False)


def test_the_rest_of_the_time_goes_to_steps_as_the_run_takes_them():
    found, told_of, begin = Found(micro_batch=8), [], time.monotonic()
    assert play(compilation(found), float, seconds=lambda size: 5.0) == [8] and compile_seconds(found) == []
    play(steady(found, begin + 0.2, True, lambda: told_of.append(len(found.steady))), float, seconds=lambda size: 5e-4)
    assert begin + 0.19 <= time.monotonic() and len(found.steady) > 2 and told_of == [1]  # and not at every step
    assert compile_seconds(found) == pytest.approx([4.9995, 4.9995])
    found.saved = 3.0
    assert compile_seconds(found) == [4.9995, pytest.approx(1.9995)]
    with pytest.raises(RunError, match="once more it does not"):
        play(steady(found, begin, True, list), float, fits=lambda size: False)


def test_stages_are_measured_as_far_as_the_time_goes():
    found = Found(micro_batch=8)
    play(shapes(found, {"0.15@1": list, "0.15@2": list}, time.monotonic() - 1), float)
    assert found.unmeasured == ["0.15@1", "0.15@2"] and not found.relative
    play(shapes(found, {"0.15@1": list}, time.monotonic() + 60), float)
    assert found.relative == {"0.15@1": pytest.approx(1.0)}


def test_on_a_cpu_weights_that_cannot_fit_are_not_made():
    rows = [{"own": True, "parameters": 10**9}, {"own": False, "parameters": 10**12}]
    check_weights_fit(rows, "adamw", 16e9)
    check_weights_fit([], "adamw", 1.0)  # it brings its own shape
    with pytest.raises(RunError, match="does not fit into the memory"):
        check_weights_fit(rows, "adamw", 15.9e9)
    check_weights_fit(rows, "muon", 12e9)


def test_the_mean_over_slow_and_fast_minutes_counts():
    slow, fast = MicroStep(0.0, 1.6, 0.4), MicroStep(0.0, 0.8, 0.2)
    state = steady_state([fast] * 8 + [slow] * 4)
    assert state["step"]["work"] == pytest.approx(12.8 / 12) and state["seconds"] == pytest.approx(16.0)
    assert state["fastest"] == pytest.approx(4 / 3) and state["slowest"] == pytest.approx(2 / 3)
    assert steady_state([fast])["slowest"] is None  # one window tells of no difference


def test_want_of_memory_anywhere_is_said_in_one_line():
    from_run = RunError("per_device_train_batch_size: 8 does not fit; go on with --resume_from_checkpoint auto")
    from_run.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    for error in (torch.OutOfMemoryError("CUDA out of memory"), from_run):
        line = planned_error(error)
        assert isinstance(line, RunError) and "does not fit" in str(line) and "resume" not in str(line)
    assert planned_error(known := InputError("x: y")) is known
    with pytest.raises(RuntimeError, match="a defect"):
        planned_error(RuntimeError("a defect"))


def test_an_optimizer_whose_states_do_not_fit_refuses_the_size():
    weight = torch.nn.Parameter(torch.ones(2))
    inner = torch.optim.SGD([weight], momentum=0.9)

    def refused(*_, **__):
        inner.state[weight] = {"half": "made"}
        raise torch.OutOfMemoryError("CUDA out of memory")

    inner.step = refused
    trainer = ProbeTrainer.__new__(ProbeTrainer)
    trainer.optimizer, trainer.model, trainer._fits = inner, torch.nn.Linear(1, 1), True
    trainer._guard_optimizer()
    inner.step()
    assert not trainer._fits and not inner.state


@pytest.mark.parametrize("chosen", [None, 8])
def test_a_probe_that_crashes_is_not_taken_for_one_without_time(chosen, tmp_path, monkeypatch):
    """A stand-in for the interpreter tells of a choice, or of none, and crashes."""
    told = json.dumps({"found": {"micro_batch": chosen}})
    (tmp_path / "python").write_text(
        f"#!{sys.executable}\nimport json, os, sys\norder = json.loads(sys.argv[-1])\n"
        f"os.write(order['fd'], {(told + chr(10)).encode()!r})\nprint('no compiler here')\nsys.exit(3)\n"
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    said = "it ended with exit code 3; its last words: no compiler here"
    if chosen is None:
        with pytest.raises(RunError, match=said):
            ask_probe(["r.yaml"], tmp_path, time.monotonic() + 20)
    else:
        assert ask_probe(["r.yaml"], tmp_path, time.monotonic() + 20)["failed"] == said


def test_free_memory_heeds_the_cgroup(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n")
    none = free_bytes(tmp_path / "none", tmp_path / "meminfo")
    assert none == 1024e6
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert free_bytes(tmp_path, tmp_path / "meminfo") == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path, tmp_path / "meminfo") == 1024e6
