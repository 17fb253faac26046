"""From what the probe measured to what the run will do: a simulation of its budget, step by step. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from budget_trainer.budget.curves import make_curve
from budget_trainer.budget.stages import Stage, Stages, ValidationPlan
from budget_trainer.core.errors import InputError
from budget_trainer.planning.candidates import MicroStep

MOST_ROUNDS = 20_000  # of the simulation: longer runs go several steps at a time
POINTS = 400  # of the schedule's picture


@dataclass(frozen=True)
class Costs:
    """Seconds of what a run does beside stepping, and its micro-batch. `setup` ends where the first step begins."""

    setup: float
    compile: float  # for new shapes; 0.0: not compiled
    save: float  # the model
    reserve: float  # kept free for the last save
    checkpoint: float
    evaluate: float  # a validation during training
    rehearse: float  # of that, before training
    micro_batch: int
    step: MicroStep
    relative: dict[tuple[float, int], float] = field(
        default_factory=dict
    )  # work at (masking rate, parts), 1: the first
    workers: int = 0


@dataclass(frozen=True)
class Limits:
    """When the run ends and what it does on the way; seconds, infinite where there is no limit."""

    total: float
    end: float
    max_steps: int | None = None
    by_steps: bool = False  # the schedule follows the steps
    checkpoint_every: float = math.inf
    checkpoint_samples: int | None = None
    markers: tuple[float, ...] = ()
    writes_final: bool = True


@dataclass
class Prediction:
    """What the run will have done at its end, over all processes. Seconds by the clock's phases."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    setup_seconds: float = 0.0
    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    save_seconds: float = 0.0
    used_seconds: float = 0.0
    validations: int = 0
    schedule: list[dict[str, float]] = field(default_factory=list)


def simulate(
    costs: Costs,
    limits: Limits,
    stages: Stages,
    validation: ValidationPlan | None,
    *,
    block_size: int,
    num_processes: int = 1,
    curve: Callable[[float], float] | None = None,
    learning_rate: float = 1.0,
) -> Prediction:
    """Let the budget pass as TimeBudgetCallback does: set-up, steps, what is due on the way, the last save.

    Raises:
        InputError: set-up and the last save leave no time for a step.
    """
    curve = curve or make_curve("linear")
    out = Prediction(setup_seconds=costs.setup, evaluate_seconds=costs.rehearse, save_seconds=costs.save)
    stage = stages.at(0.0)
    now = costs.setup + costs.rehearse + costs.save  # rehearsals of the save and the validation
    first = costs.compile + _step_seconds(costs, stage)
    if now + first + costs.reserve > limits.end:
        raise InputError(
            f"total_training_time: {limits.end:.0f}s is too short here: set-up takes {now:.0f}s, the first step "
            f"{first:.1f}s{' with its compilation' if costs.compile else ''}, the last save {costs.reserve:.1f}s; give more "
            "time or a smaller model"
        )
    estimate = min((limits.end - now) / _step_seconds(costs, stage), limits.max_steps or math.inf)
    stride = max(1, int(estimate / MOST_ROUNDS))
    point = max(1, int(estimate / stride / POINTS))
    shapes, begin, mark, passed, rounds = {_shape(stage)}, 0.0, 0, 0, 0
    saved = _checkpoints(limits, now, 0)
    while True:
        step = _step_seconds(costs, stage)
        compiles = costs.compile if rounds == 0 else 0.0
        if now + compiles + step + costs.reserve > limits.end:
            break
        left = limits.max_steps - out.steps if limits.max_steps is not None else math.inf
        if left <= 0:
            break
        fits = int((limits.end - costs.reserve - now - compiles) / step) if math.isfinite(limits.end) else stride
        count = 1 if rounds == 0 else int(max(1, min(stride, left, fits)))
        now += compiles + count * step
        out.steps += count
        out.samples += count * costs.micro_batch * stage.accumulation * num_processes
        out.compile_seconds += compiles + (step if compiles else 0.0)  # the clock counts the first step there
        out.train_seconds += (count - (1 if compiles else 0)) * step
        begin = now if rounds == 0 else begin
        progress = _progress(limits, costs, now, step, begin, out.steps)
        if rounds % point == 0:
            out.schedule.append(_point(now, progress, curve, learning_rate, stage, costs, block_size, num_processes))
        rounds += 1
        share = now / limits.total if math.isfinite(limits.total) else 0.0
        if validation is not None and (due := validation.mark(mark, share, out.samples)) > mark:
            mark = due
            if now + costs.evaluate + step + costs.reserve <= limits.end:
                now, out.validations = now + costs.evaluate, out.validations + 1
                out.evaluate_seconds += costs.evaluate
        while passed < len(limits.markers) and share >= limits.markers[passed]:
            passed += 1
            if now + costs.save + step + costs.reserve <= limits.end:
                now, out.save_seconds = now + costs.save, out.save_seconds + costs.save
        if (counts := _checkpoints(limits, now, out.samples)) != saved:
            saved = counts
            if now + costs.checkpoint + step + costs.reserve <= limits.end:
                now, out.save_seconds = now + costs.checkpoint, out.save_seconds + costs.checkpoint
        wanted = stages.at(progress)
        if costs.compile and _shape(wanted) not in shapes:
            now, out.compile_seconds = now + costs.compile, out.compile_seconds + costs.compile
        shapes.add(_shape(wanted))
        stage = wanted
    if limits.writes_final:
        now, out.save_seconds = now + costs.save, out.save_seconds + costs.save
    out.schedule.append(_point(now, 1.0, curve, learning_rate, stage, costs, block_size, num_processes))
    out.tokens, out.used_seconds = out.samples * block_size, now
    out.tokens_per_second = out.tokens / (out.train_seconds + out.compile_seconds)
    return out


def _checkpoints(limits: Limits, now: float, samples: int) -> tuple[int, int]:
    """How many are due by time and by samples."""
    every = limits.checkpoint_samples
    return int(now // limits.checkpoint_every), 0 if every is None else samples // every


def _shape(stage: Stage) -> tuple[float, int]:
    return stage.mlm_probability, stage.sequence_parts


def _step_seconds(costs: Costs, stage: Stage) -> float:
    step, relative = costs.step, costs.relative.get(_shape(stage), 1.0)
    return MicroStep(step.fetch, step.work * relative, step.rest).seconds(stage.accumulation, costs.workers)


def _progress(limits: Limits, costs: Costs, now: float, step: float, begin: float, steps: int) -> float:
    if limits.by_steps:
        return min(1.0, steps / limits.max_steps) if limits.max_steps else 0.0
    if math.isinf(limits.total):
        return 0.0
    end = limits.total - costs.reserve - step
    return min(1.0, max(0.0, now + step / 2 - begin) / max(end - begin, 1e-9))


def _point(
    now: float,
    progress: float,
    curve: Callable[[float], float],
    learning_rate: float,
    stage: Stage,
    costs: Costs,
    block_size: int,
    num_processes: int,
) -> dict[str, float]:
    return {
        "elapsed_seconds": now,
        "progress": progress,
        "learning_rate": learning_rate * curve(progress),
        "mlm_probability": stage.mlm_probability,
        "batch_size": costs.micro_batch * stage.accumulation * num_processes,
        "sequence_length": block_size // stage.sequence_parts,
    }
