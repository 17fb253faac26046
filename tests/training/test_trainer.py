"""The parts as plugins of anybody's Trainer."""

import signal
from datetime import timedelta

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from budget_trainer import BudgetClock, InputError, TimeBudgetCallback, TimeScheduleMixin
from budget_trainer.budget.callback import Reading
from budget_trainer.budget.channel import Agreement
from budget_trainer.core.command import StopRequest


class Tick(TrainerCallback):
    """Each step takes one second of a fake clock."""

    def __init__(self):
        self.now, self.rates = 0.0, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.now += 1.0

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])


class Words(torch.utils.data.Dataset):
    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        ids = torch.tensor([(index * 7 + i) % 50 for i in range(8)])
        return {"input_ids": ids, "labels": ids}


def parts(folder, **options):
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    settings = {"max_steps": 1000, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "learning_rate": 0.1, **options}
    args = TrainingArguments(str(folder), **settings)
    return {"model": BertForMaskedLM(config), "args": args, "train_dataset": Words()}


Mixed = type("Mixed", (TimeScheduleMixin, Trainer), {})


def trained(folder, total, *, early=None, arguments=None, **options):
    """A trainer after training on a fake clock of `total` seconds, a Mixed one where it has options; budget and rates."""
    tick = Tick()
    budget = TimeBudgetCallback(clock=BudgetClock(total, time_fn=lambda: tick.now), early_exit_time_marker=early)
    given = parts(folder, **(arguments or {}))
    mixed = {**given, "callbacks": [tick], "time_budget": budget, **options}
    trainer = Mixed(**mixed) if options else Trainer(**given, callbacks=[budget, tick])
    trainer.train()
    return trainer, budget, tick.rates


def test_callback_stops_a_plain_trainer(tmp_path):
    trainer, budget, _ = trained(tmp_path, 50.0)
    assert budget.stop_reason == "budget" and trainer.state.global_step == 50, "nothing to save"
    assert trainer.state.stateful_callbacks["time_budget_clock"]["elapsed_seconds"] == 50.0


def test_callback_with_a_real_clock(tmp_path):
    budget = TimeBudgetCallback("3s")
    trainer = Trainer(**parts(tmp_path, max_steps=-1), callbacks=[budget])
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert budget.stop_reason == "budget" and 0 < trainer.state.global_step < 10**6
    assert budget.reading.save > 0 and budget.clock.elapsed_seconds() <= 3
    assert not list(tmp_path.glob(".partial*"))


def test_early_exit_stays_on_the_curve_of_the_whole_budget(tmp_path):
    trainer, budget, rates = trained(tmp_path, 100.0, early=50.0, warmup_proportion=0.0)
    assert budget.stop_reason == "early_exit_time_marker" and trainer.state.global_step == 50
    assert 0.045 < rates[-1] < 0.055


def test_mixin_schedules_by_time(tmp_path):
    trainer, _, rates = trained(tmp_path, 100.0, curve="linear", warmup_proportion=0.1)
    assert 0.095 < max(rates) <= 0.1 and rates.index(max(rates)) in (9, 10, 11)
    assert rates[-1] <= 0.02 * max(rates) and sorted(rates[12:], reverse=True) == rates[12:]
    assert all(0 <= line["share"] <= 1 for line in trainer.state.log_history if "loss" in line)


def test_mixin_schedules_by_step(tmp_path):
    _, _, rates = trained(tmp_path, None, arguments={"max_steps": 10}, schedule="step", warmup_proportion=0.0)
    assert rates == pytest.approx([0.1 * (1 - step / 10) for step in range(10)])


def test_a_budget_that_the_setup_has_eaten_is_reported():
    times = iter([0.0, *[11.0] * 9])
    budget = TimeBudgetCallback(clock=BudgetClock(10.0, time_fn=lambda: next(times)))
    with pytest.raises(InputError, match=r"total_training_time: 10\.0s is spent before the first step"):
        budget.check_room()


class Channel:
    """One rank of two; a signal arrives while the message is under way."""

    rank, world_size = 1, 2

    def __init__(self):
        self.others, self.while_under_way = [0, 0], lambda: None

    def agree(self, readings, flags):
        agreed = [max(flag, other) for flag, other in zip(flags, self.others, strict=True)]
        self.while_under_way()
        return list(readings), agreed


@pytest.fixture
def ranks(tmp_path):
    """A channel, the budget of its rank, and a function that ends a step: whether training stops then."""
    channel, args = Channel(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    clock = BudgetClock(100.0, time_fn=lambda: 0.0)
    budget = TimeBudgetCallback(clock=clock, agreement=Agreement(channel, StopRequest()))

    def step():
        control, state = TrainerControl(), TrainerState(stateful_callbacks={})
        budget.on_optimizer_step(args, state, control)
        budget.on_step_end(args, state, control)
        assert control.should_save == control.should_training_stop
        return control.should_training_stop

    return channel, budget, step


def test_a_signal_counts_when_it_was_agreed_on(ranks):
    channel, budget, step = ranks
    channel.while_under_way = lambda: budget.agreement.stop.ask(signal.SIGTERM)
    assert not step(), "the others do not know of it yet"
    assert step() and budget.stop_reason == "stop_requested"
    assert budget.agreement.stop_asked_by == "SIGTERM on rank 1"


def test_a_bad_step_of_any_rank_counts_once(ranks):
    channel, budget, step = ranks
    for mine, other in ((True, 0), (False, 1), (False, 0)):
        if mine:
            budget.agreement.report_bad_step()
        channel.others = [0, other]
        assert not budget.agreement.agree_on_stop()  # asked in between: it takes nothing away
        step()
        assert budget.bad_step == (mine or bool(other))


def test_optional_work_is_promised_once():
    budget = TimeBudgetCallback(clock=BudgetClock(60.0, time_fn=lambda: 0.0))
    budget.reading = Reading(elapsed=54.0, job=54.0, step=0.1, save=1.5, checkpoint=4.0, evaluate=2.0)
    assert budget.reserve(1.5)
    assert not budget.reserve(4.0), "the marker has taken the room"
    assert budget.reserve(2.0) and not budget.reserve(2.0)


@pytest.mark.parametrize(
    "bad",
    [
        "soon",
        "-1s",
        -3,
        0,
        True,
        float("nan"),
        [3],
        b"3s",
        timedelta(0),
        timedelta(seconds=-1),
        None,
        np.timedelta64(3, "s"),
        10**400,
    ],
)
@pytest.mark.parametrize("field", ["total_training_time", "early_exit_time_marker", "job_time_limit"])
def test_bad_budgets(field, bad):
    """Each limit is refused where it is given, not hours later. (No limit is no bad one but for the budget itself.)"""
    if bad is None and field != "total_training_time":
        return
    with pytest.raises(InputError, match=f"{field}: "):
        TimeBudgetCallback(**{"total_training_time": "1h", field: bad})


@pytest.mark.parametrize("good", ["90m", 5400, 5400.0, np.float32(5400), timedelta(hours=1.5)])
def test_a_duration_is_a_text_a_number_or_a_timedelta(good):
    budget = TimeBudgetCallback(good, early_exit_time_marker=good, job_time_limit=good)
    assert (
        budget.total_seconds
        == budget.early_exit_seconds
        == budget.job_limit_seconds
        == BudgetClock(good).total_seconds
        == 5400
    )
