"""From what a probe tells to a plan: the simulated budget, the choice of a size, the text."""

import math

import pytest

from benchmarks import planner
from budget_trainer.budget.stages import EveryShare, make_stages
from budget_trainer.core.errors import InputError
from budget_trainer.planning.candidates import MicroStep
from budget_trainer.planning.predict import Costs, Limits, simulate
from budget_trainer.planning.result import judge, make_plan, neighbours, repeats
from budget_trainer.planning.schedule import steady_state
from budget_trainer.planning.text import plan_text, sketch

PLAIN = make_stages(mlm_probability=0.15, gradient_accumulation_steps=2, block_size=128)


def costs(**changes):
    usual = {"setup": 10.0, "compile": 0.0, "save": 1.0, "reserve": 1.8, "checkpoint": 4.0, "evaluate": 2.0}
    usual |= {"rehearse": 0.0, "micro_batch": 8, "step": MicroStep(0.0, 0.4, 0.2)}
    return Costs(**(usual | changes))


def test_the_planner_benchmark_judges():
    found = {"planned": {"tokens": {"planned": 100.0, "did": 109.0}}, "loss_percent": 11.0, "scan": {}}
    lines, held = planner.judge(found)
    assert held == {"tokens": True, "choice": False} and [line.split()[-1] for line in lines] == ["yes", "NO"]
    assert planner.judge({"planned": {"tokens": {"planned": 100.0, "did": 89.0}}})[1] == {"tokens": False}


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
    plan = make_plan(
        told(found=told()["found"] | {"unmeasured": ["0.15@1", "0.15@2"]}), num_processes=1, price_per_hour=None
    )
    assert "no time to measure the stages 0.15@1, 0.15@2" in " ".join(plan_text(plan).split())


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


def test_the_sketch_shows_set_up_warm_up_and_stages():
    found = simulate(costs(), Limits(100.0, 100.0), PLAIN, None, block_size=128)
    lines = sketch(found.schedule)
    assert "·····" in lines[0] and lines[0].count("█") >= 1 and "16 blocks per step, 15 % masked" in lines[1]
