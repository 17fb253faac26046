"""When a stage begins, what throughput counts, and early stopping, on clocks that the test turns."""

import json
import math

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from budget_trainer.budget.callback import Reading, StepTimes, TimeBudgetCallback
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.stages import Stage, make_stages
from budget_trainer.training.callbacks import BudgetProgressBar, EarlyStop, ProgressLog, StageCadence, Throughput


class Run:
    """A trainer of nothing: `step` counts a step's micro-batches and lets the cadence decide."""

    def __init__(self, *, torch_compile=False, left=1000.0, compile_seconds=0.0, progress=0.0, **curves):
        self.args = TrainingArguments(torch_compile=torch_compile, use_cpu=True, report_to="none")
        self.time_budget = TimeBudgetCallback(clock=BudgetClock(100.0, time_fn=lambda: 0.0))
        self.time_budget.reading = Reading(100.0 - left, 0.0, 1.0, 1.0, 1.0, 0.0, compile_seconds)
        self.progress, self.micro_batches, self.entered = progress, 0, []
        stages = make_stages(mlm_probability=0.15, gradient_accumulation_steps=8, block_size=128, **curves)
        self.cadence = StageCadence(self, stages)
        self.cadence.on_train_begin(self.args, TrainerState(), TrainerControl())

    def schedule_progress(self):
        return self.progress

    def enter_stage(self, stage, compiles):
        self.entered.append((stage, compiles))

    def step(self, progress):
        self.micro_batches += self.entered[-1][0].accumulation
        self.progress = progress
        self.cadence.on_step_end(self.args, TrainerState(), TrainerControl())
        return self.entered[-1]


def test_a_doubled_batch_waits_for_a_count_that_it_divides():
    run = Run(batch_size_curve="0.125@0,0.25@0.1,1@0.5")
    assert run.entered == [(Stage(0.15, 1, 1), False)]
    assert run.step(0.05)[0].accumulation == 1
    assert run.micro_batches == 1
    assert run.step(0.2)[0].accumulation == 2, "2 micro-batches are behind us"
    assert [run.step(0.6)[0].accumulation for _ in range(3)] == [2, 2, 8]
    assert run.micro_batches == 8


def test_progress_is_json_also_where_a_number_is_not_finite(tmp_path):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    budget = TimeBudgetCallback(clock=BudgetClock(100.0, time_fn=lambda: 0.0))
    log, state = ProgressLog(budget, tmp_path / "progress.jsonl", 1), TrainerState(is_world_process_zero=True)
    log.on_train_begin(None, state, None)
    for logs in ({"loss": math.inf, "grad_norm": torch.tensor(math.nan)}, {"eval_loss": math.nan, "eval_tokens": 3}):
        log.on_log(None, state, None, logs)
    log.on_train_end(None, state, None)
    lines = [json.loads(line, parse_constant=no_constant) for line in open(tmp_path / "progress.jsonl")]
    assert lines[0]["loss"] is lines[0]["grad_norm"] is None
    assert lines[1]["evaluation"] == {"loss": None, "tokens": 3}


def test_the_bar_says_what_is_left_and_the_last_validation(capsys):
    budget = TimeBudgetCallback(clock=BudgetClock(3600.0, time_fn=lambda: 0.0))
    bar, state = BudgetProgressBar(budget), TrainerState(is_world_process_zero=True)
    args = TrainingArguments(use_cpu=True, report_to="none", disable_tqdm=False)
    bar.on_train_begin(args, state, None)
    bar.on_log(args, state, None, {"loss": 2.31, "learning_rate": 8.1e-4, "tokens_per_second": 18300.0})
    bar.on_log(args, state, None, {"eval_loss": 2.4})
    budget.reading = Reading(elapsed=744.0)
    bar.on_step_end(args, state, None)
    bar.on_train_end(args, state, None)
    told = "12.4/60.0 min, 47m36s left · loss 2.310 · lr 8.1e-04 · 18,300 tokens/s · validation 2.400"
    assert told in capsys.readouterr().err


def test_resume_begins_in_the_stage_of_the_progress():
    run = Run(mlm_probability_curve="0.3@0,0.15@0.5", progress=0.7)
    assert run.entered == [(Stage(0.15, 8, 1), False)]
    assert run.step(0.8) == (Stage(0.15, 8, 1), False) and len(run.entered) == 1


@pytest.mark.parametrize(("left", "entered"), [(50.0, True), (21.0, False)])
def test_compiling_again_has_to_be_affordable(left, entered):
    run = Run(torch_compile=True, left=left, compile_seconds=20.0, mlm_probability_curve="0.3@0,0.15@0.5")
    stage, compiles = run.step(0.6)
    assert (stage.mlm_probability == 0.15) == entered and compiles == entered
    run.step(0.7)
    assert len(run.entered) == (2 if entered else 1)


def test_a_larger_batch_keeps_its_shapes():
    run = Run(torch_compile=True, left=5.0, compile_seconds=20.0, batch_size_curve="0.5@0,1@0.5")
    assert [run.step(0.6)[0].accumulation for _ in range(2)] == [4, 8]
    assert run.entered[-1] == (Stage(0.15, 8, 1), False)


def test_the_guess_of_the_next_step_grows_with_the_batch():
    steps, worked = StepTimes(), 0.0
    for seconds in (5.0, 1.0, 1.0, 1.2):  # the first one warms up
        worked += seconds
        steps.step_done({"train": worked, "data_wait": 0.0, "compile": 0.0}, compiling=False)
    assert steps.next_step() == pytest.approx(1.2)
    steps.expect(2.0, compiles=False)
    assert steps.next_step() == pytest.approx(2.4)


class TimedRun:
    """Steps of two processes that the test gives; `now` is the time on the clock."""

    def __init__(self, peak_flops):
        self.now, self.state = 0.0, TrainerState()
        self.clock = BudgetClock(100.0, time_fn=lambda: self.now)
        self.throughput = Throughput(TimeBudgetCallback(clock=self.clock), world_size=2, peak_flops=peak_flops)
        self.throughput.flops_per_token = 1e6
        self.throughput.on_train_begin(None, self.state, TrainerControl())

    def step(self, tokens, predicted, **seconds):
        self.throughput.count(tokens, predicted)
        for phase, spent in seconds.items():
            self.clock.enter(phase)
            self.now += spent
        self.throughput.on_step_end(None, self.state, TrainerControl())


def test_rates_are_since_the_last_line():
    run = TimedRun(peak_flops=1e9)
    for _ in range(4):
        run.step(1000, torch.tensor(150), train=1.8, data_wait=0.2)
    first = {"tokens_per_second": 500.0, "mfu": 500 * 1e6 / 2e9, "data_wait_share": 0.1, "predicted_share": 0.15}
    rates = run.throughput.rates()
    assert {name: rates[name] for name in first} == pytest.approx(first)
    assert rates["tflops"] == pytest.approx(500 * 1e6 / 1e12, rel=1e-2)
    run.step(1000, torch.tensor(300), train=1.0)
    second = {"tokens_per_second": 1000.0, "data_wait_share": 0.0, "predicted_share": 0.3}
    rates, overall = run.throughput.rates(), run.throughput.overall()
    assert {name: rates[name] for name in second} == pytest.approx(second)
    assert overall["mfu"] == pytest.approx(5000 * 1e6 / 9.0 / 2e9) and overall["peak_tflops"] == 1e-3


def test_an_unknown_peak_gives_no_mfu():
    run = TimedRun(peak_flops=0.0)
    run.step(1000, None, train=1.0)
    assert not {"mfu", "predicted_share"} & set(run.throughput.rates()) and run.throughput.overall()["mfu"] is None


@pytest.mark.parametrize(
    ("elapsed", "loss", "stops"), [(50.0, 7.0, False), (70.0, 5.9, False), (70.0, 6.1, True), (70.0, math.nan, True)]
)
def test_early_stop(elapsed, loss, stops):
    budget = TimeBudgetCallback(100.0)
    budget.reading = Reading(elapsed, elapsed, 0.1, 0.1, 0.1, 0.1)
    control = TrainerControl()
    EarlyStop(budget, 60.0, 6.0).on_evaluate(None, TrainerState(), control, metrics={"eval_loss": loss})
    assert control.should_training_stop == stops and (budget.stop_reason == "early_stop") == stops
