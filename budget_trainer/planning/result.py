"""From what the probe has measured to the plan.

Model sizes are judged by tokens per parameter, embeddings and head left out. Causal models are trained best at about 20
(Hoffmann et al. 2022, arXiv 2203.15556); for masked ones, which predict a part of the tokens, 10 to 100 times as many were
found best (OptiBERT, EMNLP 2025, 2025.emnlp-main.1804). Both come from budgets far above a desk's. FEWEST_TOKENS to MOST_TOKENS
spans from the first to the lower end of the second; the size nearest to its middle is named.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from budget_trainer.config.recipe import Recipe
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import json_types
from budget_trainer.planning.predict import Costs, predict
from budget_trainer.planning.steps import Measurements, MicroStep
from budget_trainer.reporting.report import FORMAT, machine

FEWEST_TOKENS, MOST_TOKENS = 20.0, 200.0  # per parameter
# (layers, width): tiny to large, of Turc et al. 2019 (arXiv 1908.08962) and Devlin et al. 2018 (arXiv 1810.04805).
_SHAPES = ((2, 128), (4, 256), (4, 512), (8, 512), (12, 768), (24, 1024))
_NEIGHBOURS = 2  # shapes on either side of the recipe's
_NOTE_PASSES = 4  # repeats are almost as good as new text up to here for causal models (Muennighoff et al. 2023)
_WARN_PASSES = 40  # the most that is known of masked ones: BERT itself (Devlin et al. 2018, about 40 epochs)


@dataclass
class ProbeReport:
    """What the probe knows so far; it grows from the recipe over the model to the steps. Seconds, bytes, FLOP/s."""

    recipe: Recipe
    costs: Costs  # of saves and validations; the rest follows from the steps
    flags: Mapping[str, Any]  # what a run is compared with
    data: Mapping[str, str]  # path and fingerprint
    rows: int  # training blocks
    hardware: Mapping[str, Any]
    device: str
    # of the model
    parameters: int = 0
    model_type: str = ""
    body_parameters: int = 0  # without embeddings and head; 0: a checkpoint brings its own shape
    predicted_share: float = 0.0  # of the token positions
    flops_per_token: float = 0.0
    peak_flops: float = 0.0
    bf16: bool = False
    compile: str = "no"
    tried_blocks: int = 0  # of the micro-batch in which precision was chosen
    # of the run
    setup: Mapping[str, float] = field(default_factory=dict)  # by what it goes into
    results: Measurements = field(default_factory=Measurements)
    limit_bytes: float = 0.0

    @property
    def total_per_process(self) -> int | None:
        """Blocks of a step; None where the recipe leaves them open."""
        asked = self.recipe.training
        open_ = self.recipe.explicit.isdisjoint({"per_device_train_batch_size", "gradient_accumulation_steps"})
        return None if open_ else asked.per_device_train_batch_size * asked.gradient_accumulation_steps


def make_plan(
    report: ProbeReport | None, *, num_processes: int, price_per_hour: float | None, failed: str | None = None
) -> dict[str, Any]:
    """The plan for `num_processes` devices like the probe's, as its JSON has it; `failed`: how the probe died after its choice.

    Seconds and bytes; None is unknown, or without a limit.

    Raises:
        InputError: the budget does not carry the set-up, or the data does not fill a batch.
        RunError: the probe ended before it knew enough.
    """
    if report is None or report.results.micro_batch is None:
        where = "while it was setting up"
        if report is not None and report.parameters:
            where = "among its first steps" if report.peak_flops else "before the first step"
        raise RunError(f"probe: its time was over {where}; give it more with --probe_seconds 120")
    results, recipe, micro_batch = report.results, report.recipe, report.results.micro_batch
    total = report.total_per_process or micro_batch
    accumulation, total_batch = total // micro_batch, total * num_processes
    if report.rows < total_batch:
        raise InputError(
            f"num_processes: {num_processes} processes take {total_batch} blocks per step, "
            f"{report.data['path']} has {report.rows}; lower it or per_device_train_batch_size, or prepare more text"
        )
    eager, workers = results.typical(micro_batch), report.costs.workers
    # Whether the run times compiling itself: precision._COMPILE_PROBE_SECONDS / precision._PROBE_SHARE.
    times = recipe.budget.auto_speed and recipe.end_seconds >= 1500
    compiled, setup = _compilation(report, eager, times), dict(report.setup)
    if recipe.budget.auto_speed:  # at the micro-batch that was chosen
        setup["precision"] *= micro_batch / report.tried_blocks
        if report.compile != "no" and times:
            setup["compiling in the run's probe"] = 2 * (results.compile_seconds() or 0.0)
    step = MicroStep(**compiled["step"]) if compiled["step"] else eager
    costs = replace(report.costs, setup=sum(setup.values()), compile=compiled["seconds"])
    costs = replace(costs, micro_batch=micro_batch, step=step, relative=results.relative)
    prediction = predict(costs, recipe, accumulation, num_processes)
    schedule, tokens = prediction.pop("schedule"), prediction["tokens"]
    working = prediction["train_seconds"] + prediction["compile_seconds"]
    flops = report.flops_per_token * tokens / num_processes / max(working, 1e-9)
    passes = prediction["samples"] / report.rows
    billed = recipe.end_seconds if math.isfinite(recipe.end_seconds) else prediction["used_seconds"]
    chosen = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}
    measured = {}
    for size in sorted(results.measured):
        speed = costs.block_size * results.blocks_per_second(size, report.total_per_process, workers)
        measured[size] = {"tokens_per_second": speed, "memory_bytes": results.peaks.get(size)}
    largest = {"tried": max(results.peaks), "extrapolated": results.largest_that_fits(report.limit_bytes)}
    return {
        "format": FORMAT,
        "made_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "recipe": {**report.flags, **chosen},
        **{name: getattr(report, name) for name in ("data", "device", "model_type", "parameters", "peak_flops")},
        "machine": machine(report.hardware),
        "num_processes": num_processes,
        **{name: json_types(getattr(recipe, name)) for name in ("total_seconds", "end_seconds")},
        "prediction": prediction,
        "schedule": schedule,
        "stages": {name: list(value) for name, value in vars(recipe.stages(costs.block_size, accumulation)).items()},
        "passes_over_corpus": passes,
        "repeats": _repeats(passes, recipe.data.dup_factor),
        "micro_batch": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "total_batch": total_batch,  # over all processes
        "batch_asked": report.total_per_process is not None,
        "measured": measured,
        "rounds": min(len(steps) for steps in results.measured.values()),
        **{name: getattr(results, name) for name in ("refused", "cut_short")},
        "unmeasured_stages": [f"{rate}@{parts}" for rate, parts in results.unmeasured],
        "probe_failed": failed,
        "largest_micro_batch": largest,
        "memory_bytes": results.peaks.get(micro_batch),
        "memory_limit_bytes": report.limit_bytes,
        "speed": {"bf16": report.bf16, "compile": compiled["kind"]},
        "compile": compiled,
        "setup": setup,
        **{f"{name}_seconds_each": getattr(costs, name) for name in ("save", "checkpoint", "evaluate")},
        "steady": results.steady_state() if compiled["step"] else None,
        "step_seconds": step.seconds(accumulation, workers),
        "mfu": flops / report.peak_flops if report.peak_flops else None,
        "sizes": _judge_sizes(report, tokens),
        "cost": None if price_per_hour is None else price_per_hour * billed / 3600,
        "price_per_hour": price_per_hour,
    }


def _compilation(report: ProbeReport, eager: MicroStep, run_times: bool) -> dict[str, Any]:
    """`kind`, `seconds` that compiling will take the run and without the probe's cache (`cold_seconds`; None: not measured),
    the steady `step` of that kind (None: not measured), `measured`."""
    found = report.results
    none = {"kind": "no", "seconds": 0.0, "step": None, "cold_seconds": None, "measured": True}
    steady, seconds = found.steady_state(), found.compile_seconds()
    if report.compile == "no":
        return {**none, "step": steady and steady["step"]}
    if steady is None or seconds is None:
        return {**none, "kind": report.compile, "measured": False}
    working = 1 - seconds / report.recipe.end_seconds
    if run_times and eager.seconds() * working <= MicroStep(**steady["typical"]).seconds():
        return none  # the run's own probe will find the same
    cold = seconds + found.cached
    return {**none, "kind": report.compile, "seconds": seconds, "step": steady["step"], "cold_seconds": cold}


def _repeats(passes: float, dup_factor: int | None) -> dict[str, str]:
    """`level` (fine, note or warning) and `text` on so many passes over the corpus."""
    limit = _WARN_PASSES if dup_factor is None else min(_WARN_PASSES, _NOTE_PASSES * dup_factor)
    if passes <= _NOTE_PASSES:
        return {"level": "fine", "text": "repeats of up to 4 passes cost almost nothing (Muennighoff et al. 2023)"}
    known = (
        "up to 4 passes are almost as good as new text, later ones less and less, for causal models (Muennighoff et al. "
        "2023, arXiv 2305.16264). Masked ones see other targets in each pass: BERT was trained for about 40 (Devlin et al. "
        "2018), but masked models of proteins over-fitted repeats (arXiv 2411.02142). Watch the held-out loss"
    )
    if passes <= limit:
        return {"level": "note", "text": known}
    fixed = "" if dup_factor is None else f" With dup_factor {dup_factor} the masks repeat too."
    return {"level": "warning", "text": f"more than {limit} passes: {known}; more text would help.{fixed}"}


def _judge_sizes(report: ProbeReport, tokens: float) -> list[dict[str, Any]]:
    """The recipe's own shape and the _NEIGHBOURS standard ones below and above it, with the `tokens` that each would see.

    In the recipe's proportions: the body's parameters grow as layers x width^2, those of embeddings and head as the width.
    Tokens by FLOPs, which grow as the parameters that a token passes: all of the body's, the head's where it is predicted.
    `suits` marks the size that the rule names.
    """
    if not report.body_parameters:
        return []
    shape = (report.recipe.model.num_hidden_layers, report.recipe.model.hidden_size)
    own = shape[0] * shape[1] ** 2
    below = [other for other in _SHAPES if other[0] * other[1] ** 2 < own][-_NEIGHBOURS:]
    above = [other for other in _SHAPES if other[0] * other[1] ** 2 > own][:_NEIGHBOURS]
    own_rest = report.parameters - report.body_parameters
    passed = report.body_parameters + own_rest * report.predicted_share
    rows: list[dict[str, Any]] = []
    for layers, width in [*below, shape, *above]:
        body, rest = report.body_parameters * layers * width**2 / own, own_rest * width / shape[1]
        times = (body + rest * report.predicted_share) / passed
        row: dict[str, Any] = {"layers": layers, "width": width, "own": (layers, width) == shape}
        row |= {"parameters": body + rest, "body_parameters": body, "flops_per_token": report.flops_per_token * times}
        rows.append({**row, "tokens": tokens / times, "tokens_per_parameter": tokens / times / body})
    middle = math.sqrt(FEWEST_TOKENS * MOST_TOKENS)
    nearest = min(rows, key=lambda row: abs(math.log(max(row["tokens_per_parameter"], 1e-9) / middle)))
    return [{**row, "suits": row is nearest} for row in rows]
