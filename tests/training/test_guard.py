"""A bad step has no effect; bad ones in a row go back to a checkpoint; what does not help ends the run in one line."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.channel import Agreement, ControlChannel
from budget_trainer.config.arguments import WatchArguments
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import RunError
from budget_trainer.model.optimizers import OPTIMIZERS, build_optimizer
from budget_trainer.training.callbacks import Guard
from budget_trainer.training.recovery import BadSteps, withhold
from tests.conftest import ROOT, STEPS, batch_of_epoch, losses, report, run, words

FAULTY_RUN = ROOT / "tests" / "faults" / "faulty_run.py"


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(6, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 6))


def one_step(model, optimizer, bad, judge):
    loss = model(torch.arange(6)).logsumexp(-1).sum() * (math.nan if bad else 1.0)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    verdict = judge(norm, model, optimizer)
    optimizer.step()
    optimizer.zero_grad()
    return verdict


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_step_leaves_no_trace(name):
    """Also in the moments: the next good step is the one that would have come without it."""
    finals = []
    for steps in ([False, True, False], [False, False]):
        model = net()
        optimizer = build_optimizer(name, model, learning_rate=1e-2, weight_decay=0.1)
        bad_steps, verdicts = BadSteps(), []
        for bad in steps:
            one_step(model, optimizer, bad, bad_steps.judge)
            verdicts.append(bad_steps.finished)
        assert verdicts == steps
        finals.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_on_a_device_the_gradients_are_withheld(name):
    """What a GPU does, here on CPU tensors: without reading the verdict, no weight becomes NaN."""
    model = net()
    optimizer = build_optimizer(name, model, learning_rate=1e-2, weight_decay=0.0)

    def judge(norm, model, optimizer):
        withhold(~torch.isfinite(norm), model, optimizer)

    one_step(model, optimizer, False, judge)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    one_step(model, optimizer, True, judge)
    after = list(model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    one_step(model, optimizer, False, judge)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "it goes on"


class Trained:
    """What Guard asks of a trainer, without a model."""

    def __init__(self, checkpoint=None, **options):
        self.time_budget = TimeBudgetCallback(100.0, agreement=Agreement(ControlChannel(), StopRequest()))
        self.learning_rate_factor, self.checkpoint, self.scale, self.state = 1.0, checkpoint, None, TrainerState()
        self.guard = Guard(self, WatchArguments(**options))
        self.guard.on_train_begin(None, self.state, TrainerControl())

    def roll_back(self):
        return self.checkpoint

    def loss_scale(self):
        return self.scale

    def step(self, bad, last=False):
        """End a step; whether a checkpoint that was due is still written."""
        if bad:
            self.time_budget.agreement.report_bad_step()
        self.time_budget.agreement.exchange()
        self.state.global_step += 1
        control = TrainerControl(should_save=True, should_training_stop=last)
        self.guard.on_step_end(None, self.state, control)
        return control.should_save

    def log(self, loss, step=1):
        self.state.global_step = step
        self.guard.on_log(None, self.state, TrainerControl(), logs={"loss": loss})


def test_roll_back_after_bad_steps_in_a_row_and_a_clear_end(tmp_path):
    run = Trained(tmp_path / "checkpoint-1", max_bad_steps=2, max_roll_backs=2)
    bad = [False, True, False, True, True, True, True, True]
    saved, roll_backs, factors = zip(
        *((run.step(one), run.guard.roll_backs, run.learning_rate_factor) for one in bad), strict=True
    )
    assert saved == tuple(not one for one in bad), "a bad step is not saved"
    assert roll_backs == (0, 0, 0, 0, 1, 1, 2, 2) and factors == tuple(0.5**count for count in roll_backs)
    counts = run.guard.counts()
    with pytest.raises(RunError, match=r"step 9: 2 steps in a row .* after 2 roll-backs \(max_roll_backs 2\)"):
        run.step(True)
    again = Guard(Trained(), WatchArguments())  # a resumed job remembers
    again.on_train_begin(None, run.state, TrainerControl())
    assert again.counts() == counts


def test_the_last_step_changes_nothing_and_a_bad_validation_goes_back(tmp_path):
    run = Trained(max_bad_steps=1, max_roll_backs=0)
    assert run.step(True, last=True) and (run.guard.roll_backs, run.guard.bad_steps) == (0, 1)
    run = Trained(tmp_path)
    for loss, roll_backs in ((3.0, 0), (math.nan, 1)):
        run.guard.on_evaluate(None, run.state, TrainerControl(), metrics={"eval_loss": loss})
        assert run.guard.roll_backs == roll_backs


def test_spikes_are_reported(caplog):
    run = Trained(loss_spike=1.0)
    for loss in [4.0] * 20 + [4.9, 5.2, math.nan, 4.0]:
        run.log(loss)
    assert run.guard.loss_spikes == 1 and "loss spike: 5.200" in caplog.text


def test_a_stuck_loss_scale_ends_the_run():
    run = Trained(scale_cnt_limit=100)
    for step, run.scale in ((50, 1.0), (100, 2.0), (150, 1.0), (200, 1.0)):
        run.log(4.0, step)
    with pytest.raises(RunError, match=r"loss scale is at 1 for 100 steps \(scale_cnt_limit 100\)"):
        run.log(4.0, 250)


# ---- real runs, with a loss that is made NaN ----

STEPS = {**STEPS, "max_steps": 24, "num_epochs_between_checkpoints": 1}


def nan_run(bad, options, folder, **kwargs):
    command = [sys.executable, FAULTY_RUN, json.dumps({"nan": {"0": bad}}), *words({**options, "output_dir": folder})]
    return run(command, **kwargs)


def test_bad_steps_are_counted_and_the_run_goes_back(data_dir, tmp_path):
    batch = batch_of_epoch(data_dir, 8)  # a checkpoint after step 8
    options = {**STEPS, "data_dir": data_dir, "per_device_train_batch_size": batch, "max_bad_steps": 2}
    done = nan_run([4, 11, 12], options, tmp_path / "out", ok=True)
    lines = {line["step"]: line for line in losses(tmp_path / "out")}
    assert lines[4]["loss"] is None and lines[4]["bad_steps"] == 1 and lines[5]["loss"] > 0
    assert "step 12: 2 steps in a row had a loss or gradient that is not finite: back to" in done.stderr
    assert "checkpoint-8, from here 0.5 of the learning rate" in done.stderr
    assert lines[12]["learning_rate"] == lines[10]["learning_rate"] == 2 * lines[13]["learning_rate"]
    account = report(tmp_path / "out")
    assert (account["bad_steps"], account["roll_backs"]) == (3, 1) and account["steps"] == 24
    assert account["samples"] == 24 * batch, "the data goes on"
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "out/final/model.safetensors").values())


def test_the_loss_of_a_line_is_that_of_its_good_steps(data_dir, tmp_path):
    """One line each for steps 2 to 4, 5 to 8 and 9 to 12; 2 and 6 are bad. A job that goes on from step 8 knows of neither."""
    batch = batch_of_epoch(data_dir, 8)  # a checkpoint after step 8
    options = {**STEPS, "data_dir": data_dir, "per_device_train_batch_size": batch, "max_steps": 12}
    options |= {"learning_rate": 0, "embedding_learning_rate": 0}  # so every loss is that of its batch alone
    options |= {"detection_weight": 1, "twin_probability": 0.3}
    nan_run([], {**options, "num_epochs_between_checkpoints": -1}, tmp_path / "clean", ok=True)
    alone = {line["step"]: line for line in losses(tmp_path / "clean")}
    options, out = {**options, "logging_steps": 4}, tmp_path / "out"
    nan_run([2, 6], options, out, ok=True)
    lines = {line["step"]: line for line in losses(out)}
    assert lines[4]["bad_steps"] == lines[8]["bad_steps"] == 1
    for step, good in ((4, (3, 4)), (8, (5, 7, 8)), (12, (9, 10, 11, 12))):  # the first step has a line of its own
        for name in ("loss", "masked_loss", "detection_loss"):
            expected = sum(alone[one][name] for one in good) / len(good)
            assert lines[step][name] == pytest.approx(expected, rel=1e-5), name
    (out / "final").rename(tmp_path / "moved")
    (out / "run_report.json").unlink()
    nan_run([], {**options, "resume_from_checkpoint": "auto"}, out, ok=True)
    (again,) = losses(out, job=2)
    assert again["step"] == 12 and again["loss"] == pytest.approx(lines[12]["loss"], rel=1e-6)
    assert "bad_steps" not in again and report(out)["bad_steps"] == 2


def test_a_run_that_diverges_ends_in_one_line(data_dir, tmp_path):
    options = {**STEPS, "data_dir": data_dir, "max_bad_steps": 2, "num_epochs_between_checkpoints": -1}
    done = nan_run(list(range(3, 20)), {**options, "max_roll_backs": 1}, tmp_path / "out")
    assert done.returncode == 1 and not (tmp_path / "out" / "final").exists() and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: step 6: 2 steps in a row")
    assert "back to the weights as they are, there is no checkpoint yet, from here 0.5 of the" in done.stderr
