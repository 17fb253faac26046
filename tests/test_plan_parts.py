"""The planner's parts, without a probe: sizes and their choice, memory, the simulated budget, the written recipe."""

import json
import math
import mmap
import sys
import time

import pytest
import torch
import yaml

from benchmarks import planner
from budget_trainer.errors import InputError, RunError
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
from budget_trainer.planning.measure import ProbeTrainer, Taken
from budget_trainer.planning.memory import free_bytes, peak_bytes, reset_peak
from budget_trainer.planning.predict import Costs, Limits, simulate
from budget_trainer.planning.probe import check_weights_fit, planned_error
from budget_trainer.planning.result import make_plan, repeats
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
from budget_trainer.planning.sizes import judge, neighbours
from budget_trainer.planning.text import plan_text, sketch
from budget_trainer.recipe_edit import edited
from budget_trainer.stages import make_stages
from budget_trainer.validation_plan import EveryShare

PLAIN = make_stages(mlm_probability=0.15, gradient_accumulation_steps=2, block_size=128)


def costs(**changes):
    usual = {"setup": 10.0, "compile": 0.0, "save": 1.0, "reserve": 1.8, "checkpoint": 4.0, "evaluate": 2.0}
    usual |= {"rehearse": 0.0, "micro_batch": 8, "step": MicroStep(0.0, 0.4, 0.2)}
    return Costs(**(usual | changes))


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


def test_the_planner_benchmark_judges():
    found = {"planned": {"tokens": {"planned": 100.0, "did": 109.0}}, "loss_percent": 11.0, "scan": {}}
    lines, held = planner.judge(found)
    assert held == {"tokens": True, "choice": False} and [line.split()[-1] for line in lines] == ["yes", "NO"]
    assert planner.judge({"planned": {"tokens": {"planned": 100.0, "did": 89.0}}})[1] == {"tokens": False}


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


def test_a_budget_is_spent_as_the_run_spends_it():
    found = simulate(costs(), Limits(total=100.0, end=100.0), PLAIN, None, block_size=128)
    # Set-up 10 and the rehearsed save 1; 1.8 are kept; steps of 2 x 0.4 + 0.2.
    assert found.steps == 87 and found.tokens == 87 * 16 * 128
    assert found.save_seconds == 2.0 and found.used_seconds == pytest.approx(99.0)
    assert found.tokens_per_second == pytest.approx(16 * 128)


def told(**changes):
    """What a probe tells, made up: a batch of 16, micro-batch 8 in 0.4 s and 0.2 s per step, set-up 10, a save 1."""
    facts = {
        "found": {
            "measured": {"8": vars(MicroStep(0.0, 0.4, 0.2)), "16": vars(MicroStep(0.0, 1.2, 0.2))},
            "rounds": 9,
            "peaks": {"8": 2.0**30, "16": 2.0**31},
            "refused": 64,
            "cut_short": None,
            "micro_batch": 8,
            "relative": {},
            "unmeasured": [],
            "steady": None,
            "compile_seconds": [],
        },
        "recipe": {},
        "data": {"path": "d", "fingerprint": "f"},
        "hardware": {"cpu": "c", "cores": 2},
        "device": "cpu",
        "total_per_process": 16,
        "mlm_probability": 0.15,
        "block_size": 128,
        "curves": {},
        "total_seconds": 100.0,
        "end_seconds": 100.0,
        "setup": {"imports": 10.0},
        "save": {"model": 1.0, "reserve": 1.8, "checkpoint": 4.0},
        "evaluate": {"rehearsal": 0.0, "each": 0.0},
        "speed": {"bf16": False, "compile": "whole"},
        "auto_speed": False,
        "settled_blocks": 8,
        "workers": 0,
        "schedule": {"schedule": "time", "curve": "linear", "warmup_proportion": 0.1, "curve_options": {}},
        "learning_rate": 1e-3,
        "max_steps": None,
        "checkpoint_seconds": math.inf,
        "checkpoint_samples": None,
        "markers": [],
        "writes_final": True,
        "validation": None,
        "flops_per_token": 1e6,
        "rows": 1000,
        "dup_factor": None,
        "batch_asked": True,
        "limit_bytes": 2.0**33,
        "peak_flops": 1e9,
        "parameters": 1e6,
        "model_type": "bert",
        "shapes": [],
    }
    return facts | changes


def test_a_plan_follows_from_what_the_probe_told():
    plan = make_plan(told(), num_processes=2, price_per_hour=36.0)
    # As above: 87 steps of 16 blocks of 128 tokens, here on each of two.
    assert plan["prediction"]["tokens"] == 87 * 16 * 128 * 2 and plan["passes_over_corpus"] == 87 * 32 / 1000
    assert (plan["micro_batch"], plan["gradient_accumulation_steps"], plan["total_batch"]) == (8, 2, 32)
    assert plan["measured"][8]["tokens_per_second"] == pytest.approx(16 * 128 / 1.0)
    assert plan["cost"] == pytest.approx(1.0) and plan["largest_micro_batch"] == {"tried": 16, "extrapolated": 64}
    assert "micro-batch 16 fits, 64 does not" in plan_text(plan) and "did not end within the probe" in plan_text(plan)


@pytest.mark.parametrize("kind", ["no", "whole"])
def test_a_plan_is_made_of_the_steady_steps(kind):
    steady = steady_state([MicroStep(0.0, 0.8, 0.2)] * 8 + [MicroStep(0.0, 0.7, 0.1)] * 10)
    found = told()["found"] | {"steady": steady, "compile_seconds": [5.0, 2.0]}
    plan = make_plan(told(found=found, speed={"bf16": False, "compile": kind}), num_processes=1, price_per_hour=None)
    assert plan["step_seconds"] == pytest.approx(2 * 13.4 / 18 + 2.6 / 18)
    assert plan["prediction"]["compile_seconds"] == pytest.approx(0 if kind == "no" else 2 + plan["step_seconds"])
    assert "within the 16 s that were measured of it" in plan_text(plan)


def test_an_epoch_is_a_shard_per_process():
    epochs = {
        "middle": 1,
        "begin": 1,
        "end": 1,
        "begin_proportion": 0.0,
        "end_proportion": 0.0,
        "samples_per_epoch": 160,
    }
    changes = {"validation": ["EveryEpochs", epochs], "evaluate": {"rehearsal": 0.0, "each": 1.0}}
    changes |= {"checkpoint_samples": 320, "rows": 2000, "speed": {"bf16": False, "compile": "no"}}
    one, four = (make_plan(told(**changes), num_processes=n, price_per_hour=None)["prediction"] for n in (1, 4))
    assert one["validations"] == four["validations"] > 5 and four["samples"] == 4 * one["samples"]
    assert one["save_seconds"] == four["save_seconds"] > 10
    with pytest.raises(InputError, match="num_processes: 200 processes take 3200 blocks per step, d has 2000"):
        make_plan(told(**changes), num_processes=200, price_per_hour=None)


def test_where_compiling_does_not_pay_the_runs_own_try_is_in_its_set_up():
    slow = steady_state([MicroStep(0.0, 0.5, 0.2)] * 20)
    found = told()["found"] | {"steady": slow, "compile_seconds": [9.0, 6.0]}
    long = {"auto_speed": True, "total_seconds": 3600.0, "end_seconds": 3600.0, "setup": {"precision": 2.0}}
    plan = make_plan(told(found=found, **long), num_processes=1, price_per_hour=None)
    assert plan["speed"]["compile"] == "no" and plan["steady"] is None
    assert plan["setup"] == {"precision": 2.0, "compiling in the run's probe": 12.0}
    assert plan["step_seconds"] == pytest.approx(1.0)  # of the eager steps
    stalled = steady_state([MicroStep(0.0, 0.3, 0.2)] * 19 + [MicroStep(0.0, 9.0, 0.2)])
    plan = make_plan(told(found=found | {"steady": stalled}, **long), num_processes=1, price_per_hour=None)
    assert plan["speed"]["compile"] == "whole"  # a stall says nothing of compiling
    endless = {**long, "total_seconds": math.inf, "end_seconds": math.inf, "max_steps": 50}
    kinds = [
        make_plan(told(found=found | {"steady": state}, **endless), num_processes=1, price_per_hour=None)["speed"]
        for state in (slow, stalled)
    ]
    assert [kind["compile"] for kind in kinds] == ["no", "whole"]  # as the run, which then takes the faster way


def test_stages_without_time_are_named():
    found = Found(micro_batch=8)
    play(shapes(found, {"0.15@1": list, "0.15@2": list}, time.monotonic() - 1), float)
    assert found.unmeasured == ["0.15@1", "0.15@2"] and not found.relative
    plan = make_plan(
        told(found=told()["found"] | {"unmeasured": found.unmeasured}), num_processes=1, price_per_hour=None
    )
    assert "no time to measure the stages 0.15@1, 0.15@2" in " ".join(plan_text(plan).split())
    play(shapes(found, {"0.15@1": list}, time.monotonic() + 60), float)
    assert found.relative == {"0.15@1": pytest.approx(1.0)}


def test_on_a_cpu_weights_that_cannot_fit_are_not_made():
    rows = [{"own": True, "parameters": 10**9}, {"own": False, "parameters": 10**12}]
    check_weights_fit(rows, "adamw", 16e9)
    check_weights_fit([], "adamw", 1.0)  # it brings its own shape
    with pytest.raises(RunError, match="does not fit into the memory"):
        check_weights_fit(rows, "adamw", 15.9e9)
    check_weights_fit(rows, "muon", 12e9)


def test_a_plan_says_that_the_probe_failed():
    text = " ".join(plan_text(make_plan(told(failed="exit code 3"), num_processes=1, price_per_hour=None)).split())
    assert "warning the probe failed" in text and "exit code 3" in text and "--probe_seconds" not in text


def test_validation_markers_checkpoints_and_compiling_cost_their_time():
    limits = Limits(total=100.0, end=100.0, checkpoint_every=40.0, markers=(0.5,))
    found = simulate(costs(compile=5.0), limits, PLAIN, EveryShare(0.25), block_size=128, num_processes=3)
    assert found.validations == 3 and found.evaluate_seconds == 6.0
    assert found.save_seconds == 1 + 1 + 2 * 4 + 1
    assert found.compile_seconds == 6.0  # with the step it happens in
    assert found.samples == found.steps * 48
    assert found.used_seconds <= 100.0


def test_what_would_endanger_the_last_save_is_left_out():
    limits = Limits(total=100.0, end=100.0, checkpoint_every=98.0, markers=(0.985,))
    found = simulate(costs(), limits, PLAIN, None, block_size=128)
    assert found.save_seconds == 2.0 and found.used_seconds <= 100.0


def test_stages_change_batch_and_speed():
    stages = make_stages(
        mlm_probability=0.3,
        gradient_accumulation_steps=2,
        block_size=128,
        mlm_probability_curve="0.3@0,0.15@0.5",
        batch_size_curve="0.5@0,1@0.5",
    )
    found = simulate(costs(relative={(0.15, 1): 0.5}), Limits(100.0, 100.0), stages, None, block_size=128)
    # 43.6 s of 8 blocks in 0.6 s, then 16 blocks in 2 x 0.2 + 0.2 = 0.6 s.
    assert found.samples == pytest.approx(43.6 / 0.6 * 8 + 43.6 / 0.6 * 16, rel=0.03)
    assert {point["batch_size"] for point in found.schedule} == {8, 16}


def test_long_runs_go_several_steps_at_a_time_and_come_to_the_same():
    step = MicroStep(0.0, 0.0004, 0.0002)
    found = simulate(costs(step=step), Limits(1000.0, 1000.0), PLAIN, EveryShare(0.1), block_size=128)
    assert found.steps == pytest.approx((1000 - 12.8 - 18) / 0.001, rel=0.005)


def test_max_steps_and_an_early_exit_end_it():
    by_steps = Limits(math.inf, math.inf, max_steps=50, by_steps=True)
    assert simulate(costs(), by_steps, PLAIN, None, block_size=128).steps == 50
    early = simulate(costs(), Limits(total=100.0, end=50.0), PLAIN, None, block_size=128)
    assert early.steps == 37 and early.schedule[-2]["progress"] < 0.5


def test_a_budget_below_the_set_up_is_refused():
    with pytest.raises(InputError, match=r"total_training_time: 12s is too short.*set-up takes 11s"):
        simulate(costs(), Limits(12.0, 12.0), PLAIN, None, block_size=128)


@pytest.mark.parametrize(("passes", "dup", "level"), [(3, None, "fine"), (10, None, "note"), (50, None, "warning")])
def test_repeats(passes, dup, level):
    assert repeats(passes, dup)["level"] == level


def test_fixed_masks_wear_out_sooner():
    assert repeats(10, 1)["level"] == "warning" and repeats(10, 10)["level"] == "note"


def test_model_sizes_stand_around_the_recipe_and_one_is_named():
    assert neighbours(12, 768) == [(4, 512), (8, 512), (12, 768), (24, 1024)]
    shapes = [
        {"layers": n, "width": 1, "flops_per_token": 1.0 * n, "body_parameters": 10 * n, "own": n == 2}
        for n in (1, 2, 4)
    ]
    rows = judge(shapes, tokens=5000.0)
    assert [row["tokens"] for row in rows] == [10000, 5000, 2500]
    assert [row["suits"] for row in rows] == [False, False, True]  # 1000, 250 and 62.5 tokens per parameter


RECIPE = """# What it is.
hidden_size: 64  # narrow
model_config:
  global_attn_every_n_layers: 1
  rope_parameters: {a: {b: 1}}

# The batch.
per_device_train_batch_size: 16
no_unigram_bias: true
"""


def test_a_recipe_is_filled_in_and_keeps_its_comments():
    values = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "unigram_bias": "false"}
    text = edited(RECIPE, values | {"model_config": '{"x": 1}', "learning_rate": "1e-3"}, whose="the plan")
    assert "# What it is." in text and "# narrow" in text and "# The batch." in text
    assert "per_device_train_batch_size: 4  # the plan's; was 16\n" in text
    read = yaml.load(text, yaml.BaseLoader)
    assert read["model_config"] == {"x": "1"} and read["per_device_train_batch_size"] == "4"
    assert read["learning_rate"] == "1e-3" and "no_unigram_bias" not in read and read["hidden_size"] == "64"


def test_a_recipe_in_flow_style_is_written_anew():
    text = edited(
        "{hidden_size: 64, per_device_train_batch_size: 16}", {"per_device_train_batch_size": 4}, whose="the plan"
    )
    assert yaml.load(text, yaml.BaseLoader) == {"hidden_size": "64", "per_device_train_batch_size": "4"}


@pytest.mark.parametrize(
    "base",
    [
        "hidden_size: &w 64\nper_device_train_batch_size: *w\n",
        "{per_device_train_batch_size: 16,\n hidden_size: 64}\n",
        "{no_bf16: true, hidden_size: 64}\n",
        "---\nhidden_size: 64\n...\n",
    ],
)
def test_any_recipe_that_is_read_can_be_filled_in(base):
    text = edited(base, {"per_device_train_batch_size": 4, "bf16": "true"}, whose="the plan")
    assert yaml.load(f"# head\n{text}", yaml.BaseLoader) == {
        "hidden_size": "64",
        "per_device_train_batch_size": "4",
        "bf16": "true",
    }


def test_the_sketch_shows_set_up_warm_up_and_stages():
    found = simulate(costs(), Limits(100.0, 100.0), PLAIN, None, block_size=128)
    lines = sketch(found.schedule)
    assert "·····" in lines[0] and lines[0].count("█") >= 1 and "16 blocks per step, 15 % masked" in lines[1]
