"""A Trainer that plans by steps follows the budget: streams, ratios, its own end, several trainings. On a fake clock."""

import json
import logging
import shutil

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from budget_trainer import BudgetClock, InputError, TimeBudgetCallback, TimeScheduleMixin
from budget_trainer.budget.callback import STATE_KEY
from budget_trainer.budget.lead import TrainerLead
from tests.training.test_trainer import Mixed, Tick, Words, parts


class Stream(torch.utils.data.IterableDataset):
    """The first rows of Words, without a length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return map(Words().__getitem__, range(self.rows))


def make(kind, folder, total, *more, tick=None, budget=None, train_dataset=None, given=None, callbacks=(), **options):
    """A trainer of `kind` and its fake clock; each step takes a second, `options` are TrainingArguments'."""
    tick = tick or Tick()
    budget = budget or TimeBudgetCallback(clock=BudgetClock(total, time_fn=lambda: tick.now))
    every = {**parts(folder, **{"max_steps": -1, "logging_strategy": "no", **options}), **(given or {})}
    every |= {"train_dataset": train_dataset} if train_dataset is not None else {}
    if issubclass(kind, TimeScheduleMixin):
        return kind(**every, time_budget=budget, callbacks=[tick, *callbacks], **dict(more)), tick
    return kind(**every, callbacks=[budget, tick, *callbacks]), tick


def budget_of(trainer):
    return next(found for found in trainer.callback_handler.callbacks if isinstance(found, TimeBudgetCallback))


BOTH = pytest.mark.parametrize("kind", [Trainer, Mixed])


@pytest.mark.parametrize(("kind", "accumulation"), [(Trainer, 1), (Mixed, 1), (Trainer, 4), (Mixed, 4)])
def test_a_stream_that_ends_begins_again(kind, accumulation, tmp_path):
    """11 rows are 6 batches: one step and a rest of two with accumulation, whose gradients are dropped."""
    given = {"max_steps": 10**9} if kind is Trainer else {}
    trainer, _ = make(
        kind, tmp_path, 20.0, train_dataset=Stream(11), gradient_accumulation_steps=accumulation, **given
    )
    grads = []
    drop = trainer.callback_handler.on_epoch_begin

    def on_epoch_begin(*args):
        grads.append(any(p.grad is not None for p in trainer.model.parameters()))
        return drop(*args)

    trainer.callback_handler.on_epoch_begin = on_epoch_begin
    trainer.train()
    budget = budget_of(trainer)
    steps, passes = (20, 4) if accumulation == 1 else (10, 10)  # the rest takes its second too
    assert budget.stop_reason == "budget" and trainer.state.global_step == steps
    assert len(grads) == passes and not any(grads)
    assert trainer.args.max_steps == given.get("max_steps", -1)


def test_a_stream_that_is_shorter_than_a_step_is_refused(tmp_path):
    trainer, _ = make(Mixed, tmp_path, 50.0, train_dataset=Stream(4), gradient_accumulation_steps=4)
    with pytest.raises(
        InputError, match="gradient_accumulation_steps: 4 batches make a step, train_dataset has 2; give fewer"
    ):
        trainer.train()


@BOTH
def test_a_stream_resumed_in_a_later_pass_goes_on(kind, tmp_path):
    """The checkpoint of step 8 lies in the second pass of 5 steps: none of its batches are looked for in the first."""
    options = {"max_steps": 10**9, "save_strategy": "steps", "save_steps": 8}
    first, _ = make(kind, tmp_path, 12.0, train_dataset=Stream(10), **options)
    first.train()
    shutil.rmtree(tmp_path / "checkpoint-12")
    second, _ = make(kind, tmp_path, 20.0, train_dataset=Stream(10), **{**options, "save_strategy": "no"})
    second.train(resume_from_checkpoint=True)
    assert budget_of(second).stop_reason == "budget" and second.state.global_step == 28
    assert budget_of(second).lead.stored["passes"] == 1 + 4 and not second.args.ignore_data_skip


@pytest.mark.parametrize(
    ("kind", "rows", "options", "steps"),
    [
        (Trainer, 4, {}, 20),
        (Mixed, 4, {}, 20),
        (Mixed, 4, {"num_train_epochs": 2}, 4),
        (Mixed, 4, {"max_steps": 5}, 5),
        (Trainer, 4, {"max_steps": 5}, 5),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_without_a_limit_of_its_own_training_ends_with_the_budget(
    kind, rows, options, steps, stream, tmp_path, caplog
):
    data = Stream(rows) if stream else torch.utils.data.Subset(Words(), range(rows))
    if kind is Trainer and stream:
        options = {**options, "max_steps": options.get("max_steps", 10**12)}  # Trainer asks for a number first
    trainer, _ = make(kind, tmp_path, 20.0, train_dataset=data, **options)
    trainer.train()
    assert trainer.state.global_step == steps
    assert budget_of(trainer).stop_reason == ("budget" if steps == 20 else None)
    ended = [line for line in caplog.messages if line.startswith("training was ended by")]
    assert len(ended) == (steps < 20)


@pytest.mark.parametrize(
    ("kind", "given"), [(Trainer, {}), (Trainer, {"max_steps": 10**9}), (Mixed, {}), (Mixed, {"max_steps": 10**9})]
)
def test_ratios_are_shares_of_the_budget(kind, given, tmp_path):
    options = {
        f"{what}_{key}": value
        for what in ("save", "eval", "logging")
        for key, value in (("strategy", "steps"), ("steps", 0.2))
    }
    few = {"eval_dataset": torch.utils.data.Subset(Words(), range(2))}
    trainer, _ = make(kind, tmp_path, 25.0, given=few, **options, **given)
    trainer.train()
    marks = [*range(5, 25, 5), trainer.state.global_step]
    assert len(marks) == 5 and trainer.state.global_step >= 24
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) == marks
    for key in ("loss", "eval_loss"):
        assert [line["step"] for line in trainer.state.log_history if key in line] == marks, key


@BOTH
def test_a_loop_that_fires_no_optimizer_step_is_stopped(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(CallbackHandler, "on_optimizer_step", lambda self, args, state, control: control)
    trainer, tick = make(kind, tmp_path, 20.0)
    trainer.train()
    assert trainer.state.global_step == 20 and max(tick.rates) > 0.08


def test_a_slow_accumulation_is_not_waited_for(tmp_path):
    class Slow(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            tick.now += 1.0

    trainer, tick = make(Mixed, tmp_path, 20.0, callbacks=[Slow()], gradient_accumulation_steps=64)
    trainer.train()
    assert trainer.state.global_step == 0 and tick.now <= 22 and budget_of(trainer).stop_reason == "budget"


@BOTH
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_slow_data_are_not_waited_for(kind, strategy, tmp_path):
    """Eight batches of 3 s make a step, which 20 s do not carry: no batch is waited for once they are over."""

    class Slow(Stream):
        def __iter__(self):
            for row in super().__iter__():
                tick.now += 1.5
                yield row

    trainer, tick = make(
        kind,
        tmp_path,
        20.0,
        train_dataset=Slow(1000),
        max_steps=10**6,
        gradient_accumulation_steps=8,
        save_strategy=strategy,
    )
    trainer.train()
    assert budget_of(trainer).stop_reason == "budget" and trainer.state.global_step == 0 and tick.now <= 22


def test_a_clock_that_was_used_up_is_named(tmp_path):
    tick = Tick()
    clock = BudgetClock(5.0, time_fn=lambda: tick.now)
    for _ in range(2):
        trainer, _ = make(Trainer, tmp_path, None, tick=tick, budget=TimeBudgetCallback(clock=clock))
        if tick.now == 0:
            trainer.train()
    with pytest.raises(InputError, match="5.0s is spent, an earlier training used the same clock"):
        trainer.train()


@pytest.mark.parametrize("warmup", [0.1, 10**7])
def test_a_warm_up_that_no_budget_ends_is_refused(warmup, tmp_path):
    trainer, _ = make(Trainer, tmp_path, 50.0, warmup_steps=warmup)
    with pytest.raises(InputError, match="warmup_steps: .* which no budget reaches; use TimeScheduleMixin"):
        trainer.train()


def test_a_schedule_that_stays_up_is_told_once(tmp_path, caplog):
    for kind, told in (("linear", 1), ("constant", 0)):
        caplog.clear()
        make(Trainer, tmp_path, 5.0, lr_scheduler_type=kind)[0].train()
        assert len([line for line in caplog.messages if line.startswith("lr_scheduler_type: linear")]) == told


# ---- the end ----


class Paced(Trainer):
    """Evaluations, saves of the model and checkpoints take seconds of the fake clock."""

    evaluation, saving, checkpoint = 0.0, 0.0, 0.0
    tick: Tick

    def evaluate(self, *args, **kwargs):
        self.tick.now += self.evaluation
        return super().evaluate(*args, **kwargs)

    def _save(self, *args, **kwargs):
        self.tick.now += self.saving
        super()._save(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, folder):
        self.tick.now += self.checkpoint
        super()._save_optimizer_and_scheduler(folder)


class PacedMixed(TimeScheduleMixin, Paced):
    pass


def paced(kind, folder, total, model=None, seconds=(0.0, 0.0, 0.0), **options):
    """Train, and save the model at the end; the steps of checkpoints and evaluations."""
    tick = Tick()
    given = {"eval_dataset": torch.utils.data.Subset(Words(), range(2))} | ({"model": model} if model else {})
    names = dict(zip(("evaluation", "saving", "checkpoint"), seconds, strict=True))
    trainer, _ = make(
        type(kind.__name__, (kind,), {"tick": tick, **names}), folder, total, tick=tick, given=given, **options
    )
    trainer.train()
    trainer.save_model(str(folder / "final"))
    saved = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    return trainer, tick, saved, [line["step"] for line in trainer.state.log_history if "eval_loss" in line]


PACED = pytest.mark.parametrize("kind", [Paced, PacedMixed])


@PACED
@pytest.mark.parametrize("plain", [False, True])
def test_the_save_of_the_trainer_itself_is_reserved(kind, plain, tmp_path):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(50, 50))

        def forward(self, input_ids, labels):
            return {"loss": self.weight[input_ids].mean()}

    trainer, tick, _, _ = paced(kind, tmp_path, 50.0, Plain() if plain else None, (0, 2, 0))
    assert budget_of(trainer).reading.save >= 2 and 44 < tick.now <= 50
    assert (tmp_path / "final" / "model.safetensors").exists() and not list(tmp_path.glob(".partial*"))


@PACED
@pytest.mark.parametrize(
    ("options", "saved", "evaluated"),
    [
        ({"save_strategy": "steps", "save_steps": 20, "eval_strategy": "steps", "eval_steps": 20}, [20, -1], [20, -1]),
        ({"save_strategy": "epoch", "eval_strategy": "epoch"}, [10, 20, -1], [10, 20, -1]),
        ({"eval_strategy": "steps", "eval_steps": 20}, [], [20, -1]),
        ({"save_strategy": "steps", "save_steps": 20}, [20, -1], []),
    ],
)
def test_the_end_is_trainers_end(kind, options, saved, evaluated, tmp_path):
    """What Trainer does at its last step is done at the budget's last step, inside the budget; the model follows."""
    rows = torch.utils.data.Subset(Words(), range(20))
    trainer, tick, checkpoints, evaluations = paced(
        kind, tmp_path, 60.0, None, (4.0, 0.5, 1.0), train_dataset=rows, **options
    )
    last, stop = trainer.state.global_step, budget_of(trainer)
    assert stop.stop_reason == "budget" and 45 < tick.now <= 60
    marks = [step for step in saved + evaluated if step > 0]
    for expected, found in ((saved, checkpoints), (evaluated, evaluations)):
        assert bool(found) == bool(expected) and (not found or found[-1] == last) and len(found) == len(set(found))
        assert not found or set(marks) & set(found) and found[0] == expected[0]


@PACED
def test_the_best_model_is_loaded_inside_the_budget(kind, tmp_path, monkeypatch):
    loads = []

    def load(self):
        self.tick.now += 1.0
        loads.append(self.tick.now)

    monkeypatch.setattr(Trainer, "_load_best_model", load)
    options = {
        "eval_strategy": "steps",
        "eval_steps": 10,
        "save_strategy": "steps",
        "save_steps": 10,
        "save_total_limit": 1,
    }
    trainer, tick, saved, evaluations = paced(
        kind, tmp_path, 50.0, None, (1.0, 0.7, 0.5), load_best_model_at_end=True, **options
    )
    assert len(loads) == 1 and tick.now <= 50 and evaluations[-1] == trainer.state.global_step


@PACED
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_an_end_that_takes_most_of_the_budget_is_left_out_in_one_line(kind, strategy, tmp_path, caplog):
    options = {"eval_strategy": strategy, "eval_steps": 5}
    rows = torch.utils.data.Subset(Words(), range(10))
    trainer, tick, _, evaluations = paced(kind, tmp_path, 30.0, None, (16.0, 0.0, 0.0), train_dataset=rows, **options)
    assert tick.now <= 30 and evaluations == [5]
    assert len([line for line in caplog.messages if line.startswith("the last evaluation is left out, it takes")]) == 1


@PACED
def test_what_was_never_timed_is_not_begun_at_the_end(kind, tmp_path, caplog):
    trainer, tick, _, evaluations = paced(kind, tmp_path, 30.0, None, (9.0, 0.0, 0.0), eval_strategy="epoch")
    assert tick.now <= 30 and evaluations == []
    assert "the last evaluation is left out, it was never timed" in caplog.text


@pytest.mark.parametrize(
    ("kind", "stream", "seconds", "evaluated"),
    [(Paced, False, 2.0, []), (PacedMixed, True, 2.0, []), (PacedMixed, False, 0.05, [5])],
)
def test_an_evaluation_that_would_make_training_late_is_broken_off(kind, stream, seconds, evaluated, tmp_path, caplog):
    """Methods of the trainer's own are not timed before: the first evaluation is watched, and training goes on."""

    class Watched(kind):
        def prediction_step(self, *args, **kwargs):
            tick.now += seconds
            return super().prediction_step(*args, **kwargs)

    tick = Tick()
    rows = Stream(160) if stream else torch.utils.data.Subset(Words(), range(160))
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 5, "eval_steps": 5}
    Watched.tick, options = tick, {"eval_strategy": "steps", **best}
    trainer, _ = make(Watched, tmp_path, 20.0, tick=tick, given={"eval_dataset": rows}, **options)
    trainer.train()
    found = [line["step"] for line in trainer.state.log_history if "eval_loss" in line]
    assert tick.now <= 20 and trainer.state.global_step >= 9 and found[:1] == evaluated
    broken = [line for line in caplog.messages if "the evaluation is broken off after" in line]
    assert len(broken) == (not evaluated) and (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir()


@pytest.mark.parametrize("event", ["on_log", "on_evaluate"])
def test_what_is_asked_for_in_a_log_or_an_evaluation_is_made_where_the_budget_carries_it(event, tmp_path):
    def ask(self, args, state, control, **kwargs):
        control.should_save = True

    tick = Tick()
    kind = type("Asked", (PacedMixed,), {"tick": tick, "checkpoint": 3.0})
    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_strategy": "steps", "logging_steps": 2}
    few = {"eval_dataset": torch.utils.data.Subset(Words(), range(2))}
    asks = [type("Asks", (TrainerCallback,), {event: ask})()]
    trainer, _ = make(kind, tmp_path, 20.0, tick=tick, given=few, callbacks=asks, **options)
    trainer.train()
    saved = [path.name for path in tmp_path.glob("checkpoint-*")]
    assert 18 < tick.now <= 20 and 2 <= len(saved) <= 4 and f"checkpoint-{trainer.state.global_step}" not in saved


def test_what_another_callback_asks_for_is_made_where_the_budget_carries_it(tmp_path):
    class Asks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = control.should_save = state.global_step % 5 == 0

    tick = Tick()
    kind = type("Asked", (PacedMixed,), {"tick": tick, "evaluation": 6.0, "checkpoint": 2.0})
    few = {"eval_dataset": torch.utils.data.Subset(Words(), range(2))}
    trainer, _ = make(kind, tmp_path, 40.0, tick=tick, given=few, callbacks=[Asks()])
    trainer.add_callback(Asks())  # behind all others
    trainer.train()
    evaluated = [line["step"] for line in trainer.state.log_history if "eval_loss" in line]
    assert 30 < tick.now <= 40 and evaluated == [5, 10, 15]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]


def test_a_callback_that_was_taken_out_does_nothing(tmp_path):
    trainer, _ = make(Trainer, tmp_path, 2.0, max_steps=5)
    trainer.remove_callback(TimeBudgetCallback)
    trainer.train()
    assert trainer.state.global_step == 5
    assert not [found for found in trainer.callback_handler.callbacks if isinstance(found, TrainerLead)]


@pytest.mark.parametrize(("strategy", "evaluates"), [("no", False), ("steps", True)])
def test_a_job_that_ends_leaves_a_checkpoint_and_no_evaluation(strategy, evaluates, tmp_path):
    tick = Tick()
    budget = TimeBudgetCallback(clock=BudgetClock(100.0, time_fn=lambda: tick.now), job_time_limit=20)
    few = {"eval_dataset": torch.utils.data.Subset(Words(), range(2))}
    options = {"eval_strategy": strategy, "eval_steps": 20} if evaluates else {}
    trainer, _ = make(Mixed, tmp_path, None, tick=tick, budget=budget, given=few, **options)
    trainer.train()
    assert budget.stop_reason == "job_time_limit" and (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir()
    assert not [line for line in trainer.state.log_history if "eval_loss" in line]


def test_a_later_job_knows_what_evaluations_took(tmp_path):
    """Those of a trainer's own methods are not timed before: its end has one, since the first job had."""
    options = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 6}
    tick = Tick()
    kind = type("Own", (PacedMixed,), {"tick": tick, "evaluation": 2.0})
    few = {"eval_dataset": torch.utils.data.Subset(Words(), range(2))}
    for limit in (12, None):
        clock = BudgetClock(30.0, time_fn=lambda: tick.now)
        clock.restore({"train": tick.now} if limit is None else {})
        budget = TimeBudgetCallback(clock=clock, job_time_limit=limit)
        later = {**options, "eval_delay": 20} if limit is None else options
        trainer, _ = make(kind, tmp_path, None, tick=tick, budget=budget, given=few, **later)
        trainer.train(resume_from_checkpoint=limit is None)
    evaluated = [line["step"] for line in trainer.state.log_history if "eval_loss" in line]
    assert budget.stop_reason == "budget" and evaluated[-1] == trainer.state.global_step > 20


def test_an_evaluation_is_timed_before_training(tmp_path):
    """By some of its batches, without a trace: the random numbers and the mode of the model stay."""
    few = {
        "eval_dataset": {
            "a": torch.utils.data.Subset(Words(), range(40)),
            "b": torch.utils.data.Subset(Words(), range(2)),
        }
    }
    trainer = Trainer(**{**parts(tmp_path, eval_strategy="epoch"), **few}, callbacks=[TimeBudgetCallback("1h")])
    lead = budget_of(trainer).lead
    budget_of(trainer).clock = BudgetClock(60.0)
    before = torch.get_rng_state()
    trainer.model.train()
    assert 0 < lead._time_evaluation() < 60
    assert torch.equal(torch.get_rng_state(), before) and trainer.model.training


def test_a_save_that_cannot_be_rehearsed_is_reserved_by_size(tmp_path, caplog):
    class Broken(Trainer):
        def save_model(self, output_dir=None):
            raise RuntimeError("an invalid python storage")

    budget = TimeBudgetCallback("1m")
    trainer = Broken(**parts(tmp_path, max_steps=2), callbacks=[budget])
    trainer.train()
    assert (
        budget.reading.save > 0.3 and "could not be rehearsed (RuntimeError: an invalid python storage)" in caplog.text
    )


# ---- one source, several trainings ----


@pytest.mark.parametrize(
    ("options", "arguments", "text"),
    [
        ({"curve": "cosine"}, {"lr_scheduler_type": "linear"}, None),
        ({}, {"lr_scheduler_type": "cosine", "warmup_steps": 0.2}, None),
        ({"curve": "exp"}, {"lr_scheduler_type": "cosine"}, "lr_scheduler_type: 'cosine' stands beside curve exp"),
        ({}, {"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: 'polynomial' does not follow"),
        ({}, {"lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs: .* use curve_options"),
        ({}, {"warmup_steps": 100}, "warmup_steps: 100 steps are no share"),
        ({"warmup_proportion": 0.2}, {"warmup_steps": 0.1}, "warmup_steps: 0.1 stands beside warmup_proportion 0.2"),
        ({"curve": lambda progress: 1.0}, {"warmup_steps": 0.1}, "warmup_steps: 0.1 stands beside curve"),
        (
            {"curve": lambda progress: 1.0, "warmup_proportion": 0.1},
            {},
            "curve: a function takes no warmup_proportion",
        ),
        (
            {"curve": "wsd", "curve_options": {"decay": 0.4}},
            {},
            "decay: the curve wsd has no such option; it has decay_p",
        ),
        ({"optimizers": True}, {}, "optimizers: LambdaLR stands beside the curve"),
        (
            {"total_training_time": "1h"},
            {},
            "total_training_time: '1h' stands beside time_budget; give one of the two",
        ),
    ],
)
def test_one_source_for_the_learning_rate(options, arguments, text, tmp_path):
    if "optimizers" in options:
        given = parts(tmp_path)
        optimizer = torch.optim.SGD(given["model"].parameters(), 0.1)
        options = {
            "optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)),
            "model": given["model"],
        }
    if text is not None:
        with pytest.raises(InputError, match=text):
            make(Mixed, tmp_path, 50.0, given=options, **arguments)
        return
    trainer, tick = make(Mixed, tmp_path, 50.0, given=options, **arguments)
    trainer.train()
    warm = 10 if "warmup_steps" in arguments else 3
    assert max(tick.rates) > 0.096 and tick.rates.index(max(tick.rates)) in (warm - 1, warm, warm + 1)
    assert tick.rates[warm + (50 - warm) // 4] == pytest.approx(0.0854, abs=0.006), "a quarter of a cosine's way"


def test_epochs_of_a_stream_count_in_each_training(tmp_path, monkeypatch):
    tick = Tick()
    made = lambda *args: BudgetClock(*args, time_fn=lambda: tick.now)  # noqa: E731
    monkeypatch.setattr("budget_trainer.budget.callback.BudgetClock", made)
    options = {"train_dataset": Stream(4), "num_train_epochs": 2, "save_strategy": "epoch"}
    trainer, _ = make(Mixed, tmp_path, None, tick=tick, budget=TimeBudgetCallback(20.0), **options)
    for _ in range(2):
        trainer.train()
        assert trainer.state.global_step == 4
    # The checkpoint behind a pass counts it.
    stored = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert stored[STATE_KEY]["passes"] == 1


def test_a_callback_that_moves_on_leaves_nothing_in_its_trainer(tmp_path):
    first, _ = make(Trainer, tmp_path / "a", 10.0)
    budget = budget_of(first)
    first.remove_callback(budget)
    second, _ = make(Trainer, tmp_path / "b", None, budget=budget)
    lead, methods = budget.lead, vars(second)["get_batch_samples"]
    assert lead.trainer is second and lead in second.callback_handler.callbacks
    assert lead not in first.callback_handler.callbacks
    lead.find_trainer()
    assert vars(second)["get_batch_samples"] is methods


def test_the_mixin_stands_first():
    with pytest.raises(TypeError, match="TimeScheduleMixin comes first"):
        type("Wrong", (Trainer, TimeScheduleMixin), {})


@BOTH
def test_each_training_of_one_object_has_the_whole_budget(kind, tmp_path, monkeypatch):
    tick = Tick()
    made = lambda *args: BudgetClock(*args, time_fn=lambda: tick.now)  # noqa: E731
    monkeypatch.setattr("budget_trainer.budget.callback.BudgetClock", made)
    budget = TimeBudgetCallback(10.0)
    steps = []
    for _ in range(2):  # folds with one callback
        trainer, _ = make(kind, tmp_path, None, tick=tick, budget=budget)
        for _ in range(2):
            trainer.train()
            steps.append(trainer.state.global_step)
            tick.now += 7.0
    assert steps == [10] * 4
    for expected in (1, 10):  # a stop that was asked for between two trainings is for the next one
        if expected == 1:
            budget.request_stop()
        trainer.train()
        assert trainer.state.global_step == expected

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7 and not steps:
                raise KeyboardInterrupt

    steps.clear()
    trainer, _ = make(kind, tmp_path, None, tick=tick, budget=budget, callbacks=[Fails()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    steps.append(1)
    trainer.train()
    assert trainer.state.global_step == 10, "one that was interrupted is not counted"


def test_checkpoints_go_from_one_kind_to_another(tmp_path, monkeypatch, caplog):
    """Of a stock Trainer, the callback's and the mixin's: the clock goes on where there was one, and the curve with it."""
    caplog.set_level(logging.INFO)
    tick = Tick()
    made = lambda *args: BudgetClock(*args, time_fn=lambda: tick.now)  # noqa: E731
    monkeypatch.setattr("budget_trainer.budget.callback.BudgetClock", made)
    steps = elapsed = 0
    for kind in ("stock", Mixed, Trainer, Mixed, "stock", Trainer):
        caplog.clear()
        steps += 2
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps, "ignore_data_skip": True}
        if kind == "stock":
            trainer = Trainer(**parts(tmp_path, **options))  # keeps the clock as it is
        else:
            trainer, _ = make(kind, tmp_path, None, tick=tick, budget=TimeBudgetCallback(50.0), **options)
        trainer.train(resume_from_checkpoint=steps > 2)
        assert trainer.state.global_step == steps
        if kind != "stock":
            assert ("has no clock: it begins at 0" in caplog.text) == (elapsed == 0)
            elapsed += 2
            assert budget_of(trainer).reading.elapsed == elapsed
