"""From what the probe has measured to the plan, its text on a terminal, and `plan.png`."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.config.recipe import Recipe
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import json_types, write_atomic
from budget_trainer.core.output import png_figure
from budget_trainer.planning import MILLION, SizeFit
from budget_trainer.planning.predict import Costs, predict
from budget_trainer.planning.steps import Measurements, MicroStep
from budget_trainer.reporting.report import FORMAT, machine

# (layers, width): tiny to large, of Turc et al. 2019 (arXiv 1908.08962) and Devlin et al. 2018 (arXiv 1810.04805).
_SHAPES = ((2, 128), (4, 256), (4, 512), (8, 512), (12, 768), (24, 1024))
_NEIGHBOURS = 2  # shapes on either side of the recipe's
_NOTE_PASSES = 4  # repeats are almost as good as new text up to here for causal models (Muennighoff et al. 2023)
_WARN_PASSES = 40  # the most that is known of masked ones: BERT itself (Devlin et al. 2018, about 40 epochs)
_TITLES = {
    "batch_size": "blocks per step",
    "mlm_probability": "masking rate",
    "sequence_length": "tokens per sequence",
}
_COLUMNS, _NAME_COLUMNS = 120, 24


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
    report: ProbeReport | None,
    *,
    num_processes: int,
    price_per_hour: float | None,
    failed: str | None = None,
    size_fit: SizeFit | None = None,
) -> dict[str, Any]:
    """The plan for `num_processes` devices like the probe's, as its JSON has it; `failed`: how the probe died after its choice.

    `size_fit` judges the sizes. Seconds and bytes; None is unknown, or without a limit.

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
        "sizes": _judge_sizes(report, tokens, compiled["kind"] != "no", size_fit),
        "size_fit": None if size_fit is None else size_fit.content,
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


def _judge_sizes(report: ProbeReport, tokens: float, compiled: bool, fit: SizeFit | None) -> list[dict[str, Any]]:
    """The recipe's own shape and the _NEIGHBOURS standard ones below and above it, with the `tokens` that each would see.

    In the recipe's proportions: the body's parameters grow as layers x width^2, those of embeddings and head as the width.
    FLOPs grow as the parameters that a token passes: all of the body's, the head's where it is predicted. Tokens are the
    recipe's own by the slope of the fit's speeds where the fit knows sizes like the recipe's, else by FLOPs (`tokens_by`).
    `bits_per_byte` is what the fit predicts, None where it does not hold; `suits` marks the lowest of at least two.
    """
    if not report.body_parameters:
        return []
    shape = (report.recipe.model.num_hidden_layers, report.recipe.model.hidden_size)
    own = shape[0] * shape[1] ** 2
    below = [other for other in _SHAPES if other[0] * other[1] ** 2 < own][-_NEIGHBOURS:]
    above = [other for other in _SHAPES if other[0] * other[1] ** 2 > own][:_NEIGHBOURS]
    own_rest = report.parameters - report.body_parameters
    passed = report.body_parameters + own_rest * report.predicted_share
    by_speed = fit is not None and fit.covers(report.model_type, report.body_parameters)
    slope = fit.slope(compiled) if fit is not None and by_speed else -1.0
    rows: list[dict[str, Any]] = []
    for layers, width in [*below, shape, *above]:
        body, rest = report.body_parameters * layers * width**2 / own, own_rest * width / shape[1]
        times = (body + rest * report.predicted_share) / passed
        row: dict[str, Any] = {"layers": layers, "width": width, "own": (layers, width) == shape}
        row |= {"parameters": body + rest, "body_parameters": body, "flops_per_token": report.flops_per_token * times}
        row |= {"tokens": tokens * times**slope, "tokens_by": "speed" if by_speed else "FLOPs"}
        known = fit is not None and fit.covers(report.model_type, body, row["tokens"])
        bits = fit.bits_per_byte(body, row["tokens"]) if fit is not None and known else None
        rows.append({**row, "bits_per_byte": bits})
    judged = [row for row in rows if row["bits_per_byte"] is not None]
    best = min(judged, key=lambda row: row["bits_per_byte"]) if len(judged) > 1 else None
    return [{**row, "suits": row is best} for row in rows]


def draw_plan(plan: Mapping[str, Any], path: Path) -> None:
    """Draw the schedule of `plan`; a panel for each thing that changes along it. Raises OSError where it cannot be written."""
    points, p = plan["schedule"], plan["prediction"]
    last = points[-1]["elapsed_seconds"]
    unit, name = (3600.0, "hours") if last > 3 * 3600 else (60.0, "minutes") if last > 120 else (1.0, "seconds")
    at = [point["elapsed_seconds"] / unit for point in points]
    changing = [key for key in _TITLES if len({point[key] for point in points}) > 1]
    with png_figure(10, 3.6 + 1.6 * len(changing)) as (figure, png):
        heights = [2.4] + [1.0] * len(changing)
        panels = figure.subplots(1 + len(changing), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        title = f"{plan['model_type']}, {plan['parameters'] / 1e6:,.1f} M parameters: {p['steps']:,} steps, "
        figure.suptitle(title + f"{p['tokens']:,} tokens in {format_duration(p['used_seconds'])}", x=0.02, ha="left")
        panels[0].plot(at, [point["learning_rate"] for point in points], color="#1f6f8b")
        panels[0].set_title("learning rate (grey: set-up and compiling)", loc="left")
        for panel, key in zip(panels[1:], changing, strict=True):
            panel.step(at, [point[key] for point in points], where="post", color="#d1495b")
            panel.set_title(_TITLES[key], loc="left")
            panel.set_ylim(0, 1.15 * max(point[key] for point in points))
        for panel in panels:
            panel.axvspan(0, at[0], color="#8d99ae", alpha=0.25, linewidth=0)
            panel.set_xlim(0, last / unit)
        panels[-1].set_xlabel(name)
    write_atomic(path, png.getvalue())


def plan_text(content: Mapping[str, Any]) -> str:
    """Everything a person decides by, in lines."""
    plan, prediction = SimpleNamespace(**content), SimpleNamespace(**content["prediction"])
    processes, machine, kind = plan.num_processes, plan.machine, plan.speed["compile"]
    on_gpu = machine["gpus"] and plan.device.startswith("cuda")
    device = machine["gpus"][0] if on_gpu else f"{machine['cores']} cores of {machine['cpu']}"
    several = f" x {processes} processes" if processes > 1 else ""
    why = "the recipe's, kept" if plan.batch_asked else "the recipe leaves it open: the fastest one"
    rates = {size: row["tokens_per_second"] for size, row in plan.measured.items()}
    tried = ", ".join(f"{size}: {rate:,.0f}{' <-' * (size == plan.micro_batch)}" for size, rate in rates.items())
    below = 100 * (1 - rates[plan.micro_batch] / max(rates.values()))
    peak = f", MFU {100 * plan.mfu:.1f} % of {plan.peak_flops / 1e12:.3g} TFLOP/s measured" if plan.mfu else ""
    setup = sorted(plan.setup.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in setup if seconds >= 0.1)
    ends = time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(time.time() + prediction.used_seconds))
    lines: list[str] = []

    def add(name: str, text: str) -> None:
        lines.append(_line(name, text))

    add("model", f"{plan.model_type}, {plan.parameters / 1e6:,.1f} M parameters, on {device}")
    batch = f"{plan.micro_batch} blocks x {plan.gradient_accumulation_steps} accumulated{several}"
    add("micro-batch", f"{batch} = {plan.total_batch:,} blocks per step ({why})")
    add("  tried, tokens/s", f"{tried} ({'' if kind == 'no' else 'eager, '}medians of {plan.rounds} in turns)")
    if plan.cut_short:
        add("", f"no time for {plan.cut_short} and more; give --probe_seconds 120, or a quiet machine")
    if below > 0:
        add("", f"the smallest within the noise of the fastest ({below:.1f} % below)")
    if plan.unmeasured_stages:
        missing = f"no time to measure the stages {', '.join(plan.unmeasured_stages)}"
        add("warning", f"{missing} (masking rate@parts of a block), taken for as fast as the first")
    used, largest = plan.memory_bytes, plan.largest_micro_batch
    limit = f"{plan.memory_limit_bytes / 2**30:.1f} GiB that may be used"
    memory = f"{used / 2**30:.2f} GiB at most, of {limit}" if used else "not measured"
    memory += f"; micro-batch {largest['tried']} fits"
    if plan.refused:
        memory += f", {plan.refused} does not"
    elif largest["extrapolated"] and largest["extrapolated"] > largest["tried"] > 0:
        memory += f", about {largest['extrapolated']:,} would by its growth"
    add("memory", memory)
    add("computes in", ("bf16" if plan.speed["bf16"] else "float32") + f", compiled ({kind})" * (kind != "no"))
    add("steps", f"{prediction.steps:,} of {plan.step_seconds:.3f} s")
    add("tokens", f"{prediction.tokens:,} at {prediction.tokens_per_second:,.0f} tokens/s{peak}")
    if plan.steady and plan.steady["slowest"] is not None:  # the machine's own speed will move in the run, too
        slowest, fastest = (plan.steady[name] * prediction.tokens_per_second for name in ("slowest", "fastest"))
        add("", f"{slowest:,.0f} to {fastest:,.0f} within the {plan.steady['seconds']:.0f} s that were measured of it")
    add("passes over the corpus", f"{plan.passes_over_corpus:.3g}")
    if plan.repeats["level"] != "fine":
        add(plan.repeats["level"], plan.repeats["text"])
    add("set-up", f"{prediction.setup_seconds:.1f} s: {parts}")
    if kind == "no":
        add("compiling", "off")
    elif plan.compile["measured"]:
        seconds, cold = plan.compile["seconds"], plan.compile["cold_seconds"]
        cached = f", with the cache that this probe has filled ({cold:.1f} s without)" * (cold > 1.2 * seconds)
        add("compiling", f"{seconds:.1f} s{cached}")
    else:
        reason, fix = "it did not end within the probe", "; --probe_seconds 120 measures it"
        if plan.probe_failed:
            reason, fix = "the probe failed before it was measured", ""
        add("compiling", f"on, but {reason}: steps are eager ones and its time is missing{fix}")
    if plan.probe_failed:
        add("warning", f"the probe failed after its choice, and the run may fail likewise: {plan.probe_failed}")
    add("saving", f"{plan.save_seconds_each:.2f} s per model, {prediction.save_seconds:.1f} s in all")
    if prediction.validations:
        each, in_all = plan.evaluate_seconds_each, prediction.evaluate_seconds
        add("validating", f"{prediction.validations} x {each:.1f} s, {in_all:.1f} s in all")
    add("ends", f"{ends} if it began now; evaluation and report come after it")
    if plan.cost is not None:
        add("cost", f"{plan.cost:,.2f} at {plan.price_per_hour:g} per hour, for the whole budget")
    if processes > 1:
        same = f"{processes} processes are {processes} times as fast as this one, each on a device of its own like this one"
        add("assumed", f"{same}; the time for their communication was not measured")
    return "\n".join([*lines, "", *_stages(plan.schedule), "", *_model_sizes(plan.sizes, plan.size_fit)])


def _line(name: str, text: str) -> str:
    text = f"{name:<{_NAME_COLUMNS}}{text}"
    return textwrap.fill(text, _COLUMNS, subsequent_indent=" " * _NAME_COLUMNS, break_long_words=False)


def _stages(schedule: Sequence[Mapping[str, float]]) -> list[str]:
    """The peak of the learning rate, and a line for each stage."""
    lines = [_line("learning rate", f"{max(point['learning_rate'] for point in schedule):.3g} at its peak")]
    before: tuple[float, ...] = ()
    for point in schedule:
        stage = tuple(point[key] for key in _TITLES)
        if stage != before:
            text = f"{point['batch_size']:,.0f} blocks per step, {100 * point['mlm_probability']:g} % masked, "
            name = f"  from {format_duration(point['elapsed_seconds'])}"
            lines.append(_line(name, text + f"{point['sequence_length']:g} tokens long"))
        before = stage
    return lines


def _model_sizes(sizes: Sequence[Mapping[str, Any]], fit: Mapping[str, Any] | None) -> list[str]:
    """The table of sizes, the one that suits where that is known, and how sure it is."""
    if not sizes:
        return []
    judged = [row for row in sizes if row["bits_per_byte"] is not None]
    head = f"{'layers x width':>16} {'parameters':>12} {'tokens, by ' + sizes[0]['tokens_by']:>18}"
    lines = [head + f" {'bits per byte*':>15}" * bool(judged)]
    for row in sizes:
        size = f"{row['layers']:>8} x {row['width']:<5} {row['parameters'] / 1e6:>10,.1f} M {row['tokens']:>18,.0f}"
        bits = "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.3f}"
        size += f" {bits:>15}" * bool(judged)
        lines.append(size + " this recipe" * row["own"] + " <- suits" * row["suits"])
    return [*lines, textwrap.fill(_of_sizes(judged, fit), _COLUMNS)]


def _of_sizes(judged: Sequence[Mapping[str, Any]], fit: Mapping[str, Any] | None) -> str:
    """What the rows that the fit has judged rest on; where there are none, why."""
    if fit is None:
        return "Which size suits is not known here: no runs were fitted (benchmarks/size_fit.py does it; docs/planning.md)."
    (fewest, most), (least, longest) = (fit["range"][name] for name in ("body_parameters", "tokens"))
    where = f"{fit['model_type']} with {fewest / MILLION:.3g} to {most / MILLION:.3g} M parameters in the layers"
    where += f", {least / MILLION:.3g} to {longest / MILLION:.3g} M tokens, and both together as in its runs"
    if not judged:
        return f"Which size suits is not known here: what is known of sizes, a fit of runs, holds for {where}."
    text = (
        f"* by a fit of {fit['runs']} runs of {fit['recipe']} on {fit['text']} ({fit['hardware']}), which is "
        f"{fit['residual_rms']:.3f} off its runs and {fit['leave_one_out_rms']:.3f} off one that it has not seen (root mean "
        "square). Another text or recipe has other bits per byte, and its best size may be another one, too. "
    )
    alone = "One size alone lies there, so none is named. " * (len(judged) == 1)
    return f"{text}{alone}It holds for {where}."
