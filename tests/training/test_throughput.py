"""Tokens per second, FLOPs, MFU and waiting, from a clock that the test turns."""

import pytest
import torch
from transformers import TrainerControl, TrainerState

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.training.callbacks import Throughput


class Run:
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
    run = Run(peak_flops=1e9)
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
    run = Run(peak_flops=0.0)
    run.step(1000, None, train=1.0)
    assert not {"mfu", "predicted_share"} & set(run.throughput.rates()) and run.throughput.overall()["mfu"] is None
