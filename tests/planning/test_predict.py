"""From measured durations to what a run does: the run's own budget on a fake clock, and the plan that follows."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks import planner
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.planning import predict as predict_module
from budget_trainer.planning.predict import Costs, predict
from budget_trainer.planning.result import ProbeReport, draw_plan, make_plan, plan_text
from budget_trainer.planning.steps import Measurements, MicroStep

# A batch of 16: micro-batch 8 in 0.4 s and 0.2 s per step, set-up 10, a save 1 for which 1.8 are kept.
STEP = MicroStep(0.0, 0.4, 0.2)
COSTS = Costs(128, setup=10.0, save=1.0, reserve=1.8, checkpoint=4.0, evaluate=2.0, micro_batch=8, step=STEP)
FLAGS = {"data_dir": "d", "output_dir": "o", "total_training_time": "100s", "learning_rate": 1e-3}
FLAGS |= {"warmup_proportion": 0.1, "per_device_train_batch_size": 16}
ENDLESS = {"total_training_time": None, "lr_schedule": "step", "max_steps": 50}


def recipe_of(**flags):
    return parse_recipe([f"--{name}={value}" for name, value in (FLAGS | flags).items() if value is not None])


def result(costs=None, processes=1, **flags):
    return SimpleNamespace(**predict(replace(COSTS, **(costs or {})), recipe_of(**flags), 2, processes))


def test_a_budget_is_spent_as_the_run_spends_it():
    found = result()
    # Set-up 10 and the rehearsed save 1; 1.8 are kept; steps of 2 x 0.4 + 0.2.
    assert found.steps == 87 and found.tokens == 87 * 16 * 128
    assert found.save_seconds == 2.0 and found.used_seconds == pytest.approx(99.0)
    assert found.tokens_per_second == pytest.approx(16 * 128)
    rates = [point["learning_rate"] for point in found.schedule]
    assert max(rates) > 0.95e-3 and rates[0] < rates[3] and rates[-1] == 0  # warmed up, then down to zero


def test_validation_markers_checkpoints_and_compiling_cost_their_time():
    due = {"checkpoint_every": "40s", "finetune_time_markers": "0.5", "validate_every": "25%"}
    found = result({"compile": 5.0}, processes=3, **due)
    assert found.validations == 3 and found.evaluate_seconds == 6.0
    assert found.save_seconds == 1 + 1 + 2 * 4 + 1
    assert found.compile_seconds == 6.0  # with the step it happens in
    assert found.samples == found.steps * 48 and found.used_seconds <= 100.0


@pytest.mark.parametrize("due", [{"checkpoint_every": "98s"}, {"finetune_time_markers": "0.985"}])
def test_what_would_endanger_the_last_save_is_left_out(due):
    found = result(**due)
    assert found.save_seconds == 2.0 and found.used_seconds <= 100.0


def test_stages_change_batch_and_speed():
    curves = {"mlm_probability_curve": "0.3@0,0.15@0.5", "batch_size_curve": "0.5@0,1@0.5"}
    found = result({"relative": {(0.15, 1): 0.5}}, **curves, gradient_accumulation_steps=2)
    # 43.6 s of 8 blocks in 0.6 s, then 16 blocks in 2 x 0.2 + 0.2 = 0.6 s.
    assert found.samples == pytest.approx(43.6 / 0.6 * 8 + 43.6 / 0.6 * 16, rel=0.03)
    assert {point["batch_size"] for point in found.schedule} == {8, 16}


def test_strides_come_to_the_same_as_single_steps(monkeypatch):
    flags = {"total_training_time": "300s", "checkpoint_every": "40s", "finetune_time_markers": "0.5"}
    flags |= {"validate_every": "10%", "batch_size_curve": "0.5@0,1@0.3"}
    costs = {"step": MicroStep(0.0, 0.008, 0.004)}
    monkeypatch.setattr(predict_module, "MOST_STRIDES", 10**6)
    single = result(costs, **flags)
    monkeypatch.setattr(predict_module, "MOST_STRIDES", 1000)
    strides = result(costs, **flags)
    assert single.steps > 10_000 and strides.steps == pytest.approx(single.steps, rel=0.001)
    assert strides.samples == pytest.approx(single.samples, rel=0.002)
    assert strides.validations == single.validations and strides.save_seconds == single.save_seconds
    assert strides.used_seconds == pytest.approx(single.used_seconds, abs=0.03)


def test_a_day_of_short_steps_is_predicted_at_once():
    begin = time.monotonic()
    found = result({"step": MicroStep(0.0, 0.004, 0.002)}, total_training_time="24h", validate_every="2%")
    assert found.steps == pytest.approx((86400 - 12.8 - 98) / 0.01, rel=1e-4) and found.validations == 49
    assert time.monotonic() - begin < 10  # 0.4 s on a core with nothing else to do


def test_max_steps_and_an_early_exit_end_it():
    by_steps, early = result(**ENDLESS), result(early_exit_time_marker="50s")
    assert by_steps.steps == 50 and by_steps.schedule[24]["progress"] == pytest.approx(0.5)
    assert early.steps == 37 and early.schedule[-2]["progress"] < 0.5


def test_a_budget_below_the_set_up_is_refused():
    with pytest.raises(InputError, match=r"total_training_time: 12s is too short.*set-up takes 11s"):
        result(total_training_time="12s")


REPORT = ProbeReport(
    recipe=recipe_of(),
    costs=Costs(128, samples_per_epoch=160, save=1.0, reserve=1.8, checkpoint=4.0),
    flags={},
    data={"path": "d", "fingerprint": "f"},
    rows=1000,
    hardware={"cpu": "c", "cores": 2},
    device="cpu",
    results=Measurements(
        {8: [STEP], 16: [MicroStep(0.0, 1.2, 0.2)]}, {8: 2.0**30, 16: 2.0**31}, refused=64, micro_batch=8
    ),
    **{"parameters": 10**6, "model_type": "bert", "flops_per_token": 1e6, "peak_flops": 1e9, "compile": "whole"},
    **{"tried_blocks": 8, "setup": {"imports": 10.0}, "limit_bytes": 2.0**33},
)


def plan_of(num_processes=1, price_per_hour=None, failed=None, results=None, flags=None, size_fit=None, **report):
    results = replace(REPORT.results, **(results or {}))
    report = replace(REPORT, recipe=recipe_of(**(flags or {})), results=results, **report)
    asked = {"num_processes": num_processes, "price_per_hour": price_per_hour}
    return make_plan(report, **asked, failed=failed, size_fit=size_fit)


def text_of(*args, **options):
    return " ".join(plan_text(plan_of(*args, **options)).split())


def test_a_plan_follows_from_what_the_probe_measured(tmp_path):
    plan, text = plan_of(2, price_per_hour=36.0), text_of(2)
    # As above: 87 steps of 16 blocks of 128 tokens, here on each of two.
    assert plan["prediction"]["tokens"] == 87 * 16 * 128 * 2 and plan["passes_over_corpus"] == 87 * 32 / 1000
    assert (plan["micro_batch"], plan["gradient_accumulation_steps"], plan["total_batch"]) == (8, 2, 32)
    assert plan["measured"][8]["tokens_per_second"] == pytest.approx(16 * 128 / 1.0)
    assert plan["cost"] == pytest.approx(1.0) and plan["largest_micro_batch"] == {"tried": 16, "extrapolated": 64}
    shown = ("16 fits, 64 does not", "did not end within the probe", "2 processes are 2 times as fast")
    assert all(words in text for words in (*shown, "32 blocks per step, 15 % masked, 128 tokens long"))
    draw_plan(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["no", "whole"])
def test_a_plan_is_made_of_the_steady_steps(kind):
    steady = [MicroStep(0.0, 0.8, 0.2)] * 8 + [MicroStep(0.0, 0.7, 0.1)] * 10
    options = {"results": {"steady": steady, "first_compiled": 9.0 + 0.8, "cached": 4.0}, "compile": kind}
    plan = plan_of(**options)
    assert plan["step_seconds"] == pytest.approx(2 * 13.4 / 18 + 2.6 / 18)
    compiling = 0 if kind == "no" else 5 + plan["step_seconds"]
    assert plan["prediction"]["compile_seconds"] == pytest.approx(compiling)
    text = text_of(**options)
    assert "within the 16 s that were measured of it" in text and ("(9.0 s without)" in text) == (kind == "whole")


def test_an_epoch_is_a_shard_per_process():
    flags = {"validation_epochs": 1, "num_epochs_between_checkpoints": 2}
    flags |= {"validation_begin_proportion": 0.0, "validation_end_proportion": 0.0}
    costs = replace(REPORT.costs, evaluate=1.0)
    options = {"flags": flags, "costs": costs, "rows": 2000, "compile": "no"}
    one, four = (plan_of(number, **options)["prediction"] for number in (1, 4))
    assert one["validations"] == four["validations"] > 5 and four["samples"] == 4 * one["samples"]
    assert one["save_seconds"] == four["save_seconds"] > 10
    with pytest.raises(InputError, match="num_processes: 200 processes take 3200 blocks per step, d has 2000"):
        plan_of(200, **options)


def test_where_compiling_does_not_pay_the_runs_own_try_is_in_its_set_up():
    slow, stalled = [MicroStep(0.0, 0.5, 0.2)] * 20, [MicroStep(0.0, 0.3, 0.2)] * 19 + [MicroStep(0.0, 9.0, 0.2)]

    def long_plan(steady, **flags):
        results = {"steady": steady, "first_compiled": 6.0 + steady[0].seconds()}
        flags = {"total_training_time": "1h", "auto_speed": True, **flags}
        return plan_of(results=results, flags=flags, setup={"precision": 2.0})

    plan = long_plan(slow)
    assert plan["speed"]["compile"] == "no" and plan["steady"] is None
    assert plan["setup"] == {"precision": 2.0, "compiling in the run's probe": pytest.approx(12.0)}
    assert plan["step_seconds"] == pytest.approx(1.0)  # of the eager steps
    assert long_plan(stalled)["speed"]["compile"] == "whole"  # a stall says nothing of compiling
    # Without an end as the run, which then takes the faster way.
    assert [long_plan(steady, **ENDLESS)["speed"]["compile"] for steady in (slow, stalled)] == ["no", "whole"]


def test_what_is_missing_in_a_plan_is_said():
    assert "no time to measure the stages 0.15@1, 0.15@2" in text_of(results={"unmeasured": [(0.15, 1), (0.15, 2)]})
    failed = text_of(failed="exit code 3")
    assert "warning the probe failed" in failed and "exit code 3" in failed and "--probe_seconds" not in failed
    for report, where in ((None, "setting up"), (replace(REPORT, results=Measurements()), "among its first steps")):
        with pytest.raises(RunError, match=f"its time was over .*{where}"):
            make_plan(report, num_processes=1, price_per_hour=None)


@pytest.mark.parametrize(
    ("passes", "dup", "level"),
    [(3, None, "fine"), (10, None, "note"), (50, None, "warning"), (10, 1, "warning"), (10, 10, "note")],
)
def test_repeats(passes, dup, level):
    plan = plan_of(rows=int(87 * 16 / passes), flags={"dup_factor": dup})
    assert plan["repeats"]["level"] == level  # fixed masks wear out sooner


def test_model_sizes_stand_around_the_recipe():
    flags = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "total_training_time": "1000000s"}
    bert = {"parameters": 109 * 10**6, "body_parameters": 85 * 10**6, "predicted_share": 0.15}
    sizes = plan_of(flags=flags, **bert)["sizes"]
    assert [(row["layers"], row["width"]) for row in sizes] == [(4, 512), (8, 512), (12, 768), (24, 1024)]
    own = next(row for row in sizes if row["own"])
    assert own["parameters"] == 109e6 and own["flops_per_token"] == 1e6
    assert sizes[-1]["body_parameters"] == pytest.approx(85e6 * 2 * (1024 / 768) ** 2)  # 302 M of bert-large
    assert sizes[0]["tokens"] > 4 * own["tokens"]


def test_the_planner_benchmark_judges():
    found = {"planned": {"tokens": {"planned": 100.0, "did": 109.0}}, "loss_percent": 11.0, "scan": {}}
    lines, held = planner.judge(found)
    assert held == {"tokens": True, "choice": False} and [line.split()[-1] for line in lines] == ["yes", "NO"]
    assert planner.judge({"planned": {"tokens": {"planned": 100.0, "did": 89.0}}})[1] == {"tokens": False}
