"""Tokens per second, FLOPs, MFU and waiting, from a clock that the test turns."""

import pytest
import torch
from transformers import TrainerControl, TrainerState

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.training.callbacks import Throughput


class Clock:
    def __init__(self):
        self.spent = {"setup": 3.0, "compile": 0.0, "train": 0.0, "data_wait": 0.0, "evaluate": 9.0, "save": 1.0}

    def seconds_by_phase(self):
        return dict(self.spent)


def run_of(peak):
    budget = TimeBudgetCallback(100.0)
    budget.clock = Clock()
    throughput = Throughput(budget, world_size=2, peak_flops=peak)
    throughput.flops_per_token = 1e6
    throughput.on_train_begin(None, TrainerState(), TrainerControl())
    return throughput, budget.clock


def test_rates_are_since_the_last_line():
    throughput, clock = run_of(peak=1e9)
    for _ in range(4):
        throughput.count(1000, torch.tensor(150))
        clock.spent["train"] += 1.8
        clock.spent["data_wait"] += 0.2
        throughput.on_step_end(None, TrainerState(), TrainerControl())
    rates = throughput.rates()
    assert rates["tokens_per_second"] == 500.0
    assert rates["tflops"] == pytest.approx(500 * 1e6 / 1e12, rel=1e-2)
    assert rates["mfu"] == pytest.approx(500 * 1e6 / 2e9)
    assert rates["data_wait_share"] == pytest.approx(0.1)
    assert rates["predicted_share"] == pytest.approx(0.15)
    throughput.count(1000, torch.tensor(300))
    clock.spent["train"] += 1.0
    throughput.on_step_end(None, TrainerState(), TrainerControl())
    rates = throughput.rates()
    assert rates["tokens_per_second"] == 1000.0 and rates["predicted_share"] == pytest.approx(0.3)
    assert rates["data_wait_share"] == 0.0
    overall = throughput.overall()
    assert overall["mfu"] == pytest.approx(5000 * 1e6 / 9.0 / 2e9) and overall["peak_tflops"] == 1e-3


def test_an_unknown_peak_gives_no_mfu():
    throughput, clock = run_of(peak=0.0)
    throughput.count(1000, None)
    clock.spent["train"] += 1.0
    throughput.on_step_end(None, TrainerState(), TrainerControl())
    rates = throughput.rates()
    assert "mfu" not in rates and "predicted_share" not in rates
    assert throughput.overall()["mfu"] is None
