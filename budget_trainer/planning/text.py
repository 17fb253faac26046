"""The plan on a terminal, and `plan.png`: learning rate and stages over the time of the run."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.io import write_atomic
from budget_trainer.core.output import png_figure
from budget_trainer.planning.result import FEWEST_TOKENS, MOST_TOKENS

_TITLES = {
    "batch_size": "blocks per step",
    "mlm_probability": "masking rate",
    "sequence_length": "tokens per sequence",
}
_COLUMNS, _NAME_COLUMNS = 120, 24


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
    return "\n".join([*lines, "", *_stages(plan.schedule), "", *_model_sizes(plan.sizes)])


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


def _model_sizes(sizes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of sizes, the one that suits, and how sure that is."""
    if not sizes:
        return []
    lines = [f"{'layers x width':>16} {'parameters':>12} {'tokens, by FLOPs':>18} {'per parameter*':>15}"]
    for row in sizes:
        note = " this recipe" * row["own"] + " <- suits" * row["suits"]
        size = f"{row['layers']:>8} x {row['width']:<5} {row['parameters'] / 1e6:>10,.1f} M {row['tokens']:>18,.0f}"
        lines.append(f"{size} {row['tokens_per_parameter']:>15,.1f}{note}")
    best = next(row for row in sizes if row["suits"])
    ratio = best["tokens_per_parameter"]
    size, count = ("smallest", "few") if ratio < FEWEST_TOKENS else ("largest", "many")
    bound = "" if FEWEST_TOKENS <= ratio <= MOST_TOKENS else f" Even the {size} here sees {count} tokens for its size."
    text = (
        f"* without embeddings and head. By tokens per parameter, {best['layers']} layers x {best['width']} suits this "
        f"budget best ({ratio:,.0f} per parameter; {FEWEST_TOKENS:g} to {MOST_TOKENS:g} is the aim).{bound} A hint, sure to "
        "a factor of several at best (docs/planning.md); a sweep over the two best sizes at a tenth of the budget tells more."
    )
    return [*lines, textwrap.fill(text, _COLUMNS)]
