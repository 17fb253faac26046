import io

import torch

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.scheduler import TimeScheduler, get_time_budget_schedule


def optimizer(rate=0.5):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    return torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.1}], lr=rate)


def test_only_progress_counts():
    progress = [0.0]
    opt = optimizer()
    scheduler = TimeScheduler(opt, make_curve("linear"), lambda: progress[0])
    progress[0] = 0.25
    for _ in range(5):  # repeated or skipped calls change nothing
        scheduler.step()
    assert [group["lr"] for group in opt.param_groups] == [0.375, 0.075000000000000011]
    progress[0] = 7.0
    scheduler.step()
    assert [group["lr"] for group in opt.param_groups] == [0.0, 0.0]


def test_state_is_plain_numbers_and_resumes():
    progress = [0.4]
    scheduler = TimeScheduler(optimizer(), make_curve("linear"), lambda: progress[0])
    scheduler.step()
    buffer = io.BytesIO()
    torch.save(scheduler.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other_optimizer = optimizer()
    other = TimeScheduler(other_optimizer, make_curve("linear"), lambda: 0.0)
    other.load_state_dict(state)
    assert other_optimizer.param_groups[0]["lr"] == 0.3 and other.get_last_lr() == scheduler.get_last_lr()


def test_a_loop_without_transformers():
    now = [0.0]
    clock = BudgetClock(100.0, time_fn=lambda: now[0])
    opt = optimizer()
    schedule = get_time_budget_schedule(opt, clock, curve="linear", warmup_proportion=0.1)
    rates = []
    for second in (0, 5, 10, 55, 100):
        now[0] = float(second)
        opt.step()
        schedule.step()
        rates.append(round(opt.param_groups[0]["lr"], 6))
    assert rates == [0.0, 0.25, 0.5, 0.25, 0.0]
