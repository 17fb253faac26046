import pytest
import torch

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.scheduler import TimeScheduler, get_time_budget_schedule


def optimizer(rate=0.5):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    return torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.1}], lr=rate)


def test_only_progress_counts():
    opt, progress = optimizer(), [0.0]
    scheduler = TimeScheduler(opt, make_curve("linear"), lambda: progress[0])
    progress[0] = 0.25
    for _ in range(5):  # repeated or skipped calls change nothing
        scheduler.step()
    assert [group["lr"] for group in opt.param_groups] == [0.375, 0.075000000000000011]
    progress[0] = 7.0
    scheduler.step()
    assert [group["lr"] for group in opt.param_groups] == [0.0, 0.0]


def test_state_is_plain_numbers_and_resumes(tmp_path):
    scheduler = TimeScheduler(optimizer(), make_curve("linear"), lambda: 0.4)
    scheduler.step()
    torch.save(scheduler.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    other_optimizer = optimizer()
    other = TimeScheduler(other_optimizer, make_curve("linear"), lambda: 0.0)
    other.load_state_dict(state)
    assert other_optimizer.param_groups[0]["lr"] == 0.3 and other.get_last_lr() == scheduler.get_last_lr()


def test_states_of_torchs_schedulers_and_of_this_one_load_into_each_other():
    """Without its own progress the curve begins where `progress_fn` stands; a counter goes on either way."""
    stock = torch.optim.lr_scheduler.LambdaLR(optimizer(), lambda step: 1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), 10)
    opt = optimizer()
    timed = TimeScheduler(opt, make_curve("linear"), lambda: 0.4)
    for other in (stock, cosine):
        other.last_epoch = 7
        timed.load_state_dict(other.state_dict())
        assert timed.last_epoch == 7 and opt.param_groups[0]["lr"] == 0.3
        other.last_epoch = 0
        other.load_state_dict(timed.state_dict())
        assert other.last_epoch == 7


@pytest.mark.parametrize("budget", [100, 600, 1800, 3600, 86400])
@pytest.mark.parametrize(
    ("curve", "options", "expected"),
    [
        ("linear", {}, {0.0: 0.0, 0.03: 0.5, 0.06: 1.0, 0.06 + 1e-6: 1.0, 0.53: 0.5, 1.0: 0.0}),
        ("exp", {}, {0.06: 1.0, 0.295: 0.01**0.25, 0.53: 0.1, 1.0: 0.01}),
        ("exp", {"decay_rate": 0.5, "decay_step": 0.25}, {0.06: 1.0, 0.295: 0.5, 0.53: 0.25, 1.0: 0.0625}),
    ],
)
def test_a_loop_without_transformers_has_the_curve_of_any_budget(budget, curve, options, expected):
    """The original had 0.157 of the peak after the warmup of 10 minutes (B3), and 0.9998 after a day of exp (B4)."""
    now = [0.0]
    clock = BudgetClock(float(budget), time_fn=lambda: now[0])
    opt = optimizer()
    schedule = get_time_budget_schedule(opt, clock, curve=curve, warmup_proportion=0.06, **options)
    for share, multiplier in expected.items():
        now[0] = share * budget
        opt.step()
        schedule.step()
        assert opt.param_groups[0]["lr"] == pytest.approx(0.5 * multiplier, abs=1e-5)
