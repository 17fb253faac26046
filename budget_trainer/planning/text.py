"""The plan on a terminal, and `plan.png`: learning rate and stages over the time of the run."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.io import write_atomic
from budget_trainer.core.plotting import png_figure
from budget_trainer.planning.result import FEWEST_TOKENS, MOST_TOKENS, Plan

COLOURS = {"setup": "#8d99ae", "learning_rate": "#1f6f8b", "stages": "#d1495b"}
TITLES = {"batch_size": "blocks per step", "mlm_probability": "masking rate", "sequence_length": "tokens per sequence"}
COLUMNS = 120
NAME_COLUMNS = 24


def draw_plan(plan: Plan, path: Path) -> None:
    """Draw the schedule of `plan`; a panel for each thing that changes along it. Raises OSError where it cannot be written."""
    points, p = plan.schedule, plan.prediction
    last = points[-1]["elapsed_seconds"]
    unit, name = (3600.0, "hours") if last > 3 * 3600 else (60.0, "minutes") if last > 120 else (1.0, "seconds")
    at = [point["elapsed_seconds"] / unit for point in points]
    changing = [key for key in TITLES if len({point[key] for point in points}) > 1]
    with png_figure(10, 3.6 + 1.6 * len(changing)) as (figure, png):
        heights = [2.4] + [1.0] * len(changing)
        panels = figure.subplots(1 + len(changing), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        title = f"{plan.model_type}, {plan.parameters / 1e6:,.1f} M parameters: {p['steps']:,} steps, "
        figure.suptitle(title + f"{p['tokens']:,} tokens in {format_duration(p['used_seconds'])}", x=0.02, ha="left")
        panels[0].plot(at, [point["learning_rate"] for point in points], color=COLOURS["learning_rate"])
        panels[0].set_title("learning rate (grey: set-up and compiling)", loc="left")
        for panel, key in zip(panels[1:], changing, strict=True):
            panel.step(at, [point[key] for point in points], where="post", color=COLOURS["stages"])
            panel.set_title(TITLES[key], loc="left")
            panel.set_ylim(0, 1.15 * max(point[key] for point in points))
        for panel in panels:
            panel.axvspan(0, at[0], color=COLOURS["setup"], alpha=0.25, linewidth=0)
            panel.set_xlim(0, last / unit)
        panels[-1].set_xlabel(name)
    write_atomic(path, png.getvalue())


def plan_text(plan: Plan) -> str:
    """Everything a person decides by, in lines."""
    p, processes = plan.prediction, plan.num_processes
    gpus, cpu = plan.machine["gpus"], f"{plan.machine['cores']} cores of {plan.machine['cpu']}"
    device = gpus[0] if gpus and plan.device.startswith("cuda") else cpu
    several = f" x {processes} processes" if processes > 1 else ""
    why = "the recipe's, kept" if plan.batch_asked else "the recipe leaves it open: the fastest one"
    peak = f", MFU {100 * plan.mfu:.1f} % of {plan.peak_flops / 1e12:.3g} TFLOP/s measured" if plan.mfu else ""
    parts = sorted(plan.setup.items(), key=lambda part: -part[1])
    setup = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts if seconds >= 0.1)
    kind = plan.speed["compile"]
    rows = [
        ("model", f"{plan.model_type}, {plan.parameters / 1e6:,.1f} M parameters, on {device}"),
        (
            "micro-batch",
            f"{plan.micro_batch} blocks x {plan.gradient_accumulation_steps} accumulated{several} = "
            f"{plan.total_batch:,} blocks per step ({why})",
        ),
        *_sizes_tried(plan),
    ]
    if plan.unmeasured_stages:
        named = ", ".join(plan.unmeasured_stages)
        taken = "(masking rate@parts of a block), taken for as fast as the first"
        rows.append(("warning", f"no time to measure the stages {named} {taken}"))
    rows += [
        ("memory", _memory(plan)),
        (
            "computes in",
            ("bf16" if plan.speed["bf16"] else "float32") + (f", compiled ({kind})" if kind != "no" else ""),
        ),
        ("", ""),
        ("steps", f"{p['steps']:,} of {plan.step_seconds:.3f} s"),
        ("tokens", f"{p['tokens']:,} at {p['tokens_per_second']:,.0f} tokens/s{peak}"),
    ]
    if plan.steady and plan.steady["slowest"] is not None:  # the machine's own speed will move in the run, too
        slowest, fastest = (plan.steady[name] * p["tokens_per_second"] for name in ("slowest", "fastest"))
        seconds = plan.steady["seconds"]
        rows.append(("", f"{slowest:,.0f} to {fastest:,.0f} within the {seconds:.0f} s that were measured of it"))
    rows.append(("passes over the corpus", f"{plan.passes_over_corpus:.3g}"))
    if plan.repeats["level"] != "fine":
        rows.append((plan.repeats["level"], plan.repeats["text"]))
    rows += [("set-up", f"{p['setup_seconds']:.1f} s: {setup}"), ("compiling", _compiling(plan))]
    if plan.probe_failed:
        after = "after its choice of the micro-batch, and the run may fail likewise"
        rows.append(("warning", f"the probe failed {after}: {plan.probe_failed}"))
    rows.append(("saving", f"{plan.save_seconds_each:.2f} s per model, {p['save_seconds']:.1f} s in all"))
    if p["validations"]:
        each, whole = plan.evaluate_seconds_each, p["evaluate_seconds"]
        rows.append(("validating", f"{p['validations']} x {each:.1f} s, {whole:.1f} s in all"))
    ends = time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(time.time() + p["used_seconds"]))
    rows.append(("ends", f"{ends} if it began now; evaluation and report come after it"))
    if plan.cost is not None:
        rows.append(("cost", f"{plan.cost:,.2f} at {plan.price_per_hour:g} per hour, for the whole budget"))
    if processes > 1:
        same = f"{processes} processes are {processes} times as fast as this one, each with a device like this one to"
        rows.append(("assumed", f"{same} itself; the time for their communication was not measured"))
    lines = [_line(name, text) for name, text in rows]
    return "\n".join([*lines, "", *_stages(plan), "", *_model_sizes(plan)])


def _line(name: str, text: str) -> str:
    indent = " " * NAME_COLUMNS
    return textwrap.fill(
        text, COLUMNS, initial_indent=f"{name:<{NAME_COLUMNS}}", subsequent_indent=indent, break_long_words=False
    ).rstrip()


def _sizes_tried(plan: Plan) -> list[tuple[str, str]]:
    rates = {size: row["tokens_per_second"] or 0.0 for size, row in plan.measured.items()}
    text = ", ".join(f"{size}: {rate:,.0f}{' <-' if size == plan.micro_batch else ''}" for size, rate in rates.items())
    how = "eager, " if plan.speed["compile"] != "no" else ""
    rows = [("  tried, tokens/s", f"{text} ({how}medians of {plan.rounds} in turns)")]
    if plan.cut_short:
        rows.append(("", f"no time for {plan.cut_short} and more; give --probe_seconds 120, or a quiet machine"))
    below = 1 - rates[plan.micro_batch] / max(rates.values())
    if below > 0:
        rows.append(("", f"the smallest within the noise of the fastest ({100 * below:.1f} % below)"))
    return rows


def _memory(plan: Plan) -> str:
    used, limit = plan.memory_bytes, plan.memory_limit_bytes
    text = f"{used / 2**30:.2f} GiB at most, of {limit / 2**30:.1f} GiB that may be used" if used else "not measured"
    tried, extrapolated = plan.largest_micro_batch["tried"], plan.largest_micro_batch["extrapolated"]
    text += f"; micro-batch {tried} fits"
    if plan.refused:
        return text + f", {plan.refused} does not"
    if extrapolated and tried and extrapolated > tried:
        text += f", about {extrapolated:,} would by its growth"
    return text


def _compiling(plan: Plan) -> str:
    compiled = plan.compile
    if compiled["kind"] == "no":
        return "off"
    if not compiled["measured"]:
        if plan.probe_failed:
            return "on, but the probe failed before it was measured: steps are eager ones and its time is missing"
        return (
            "on, but it did not end within the probe: steps are eager ones and its time is missing; "
            "--probe_seconds 120 measures it"
        )
    text = f"{compiled['seconds']:.1f} s"
    if compiled["cold_seconds"] > 1.2 * compiled["seconds"]:
        text += f", with the cache this probe has filled ({compiled['cold_seconds']:.1f} s without)"
    return text


def _stages(plan: Plan) -> list[str]:
    """The peak of the learning rate, and a line for each stage."""
    highest = max(point["learning_rate"] for point in plan.schedule)
    lines = [_line("learning rate", f"{highest:.3g} at its peak")]
    before: tuple[float, ...] = ()
    for point in plan.schedule:
        stage = tuple(point[key] for key in TITLES)
        if stage != before:
            text = f"{point['batch_size']:,.0f} blocks per step, {100 * point['mlm_probability']:g} % masked, "
            name = f"  from {format_duration(point['elapsed_seconds'])}"
            lines.append(_line(name, text + f"{point['sequence_length']:g} tokens long"))
        before = stage
    return lines


def _model_sizes(plan: Plan) -> list[str]:
    """The table of sizes, the one that suits, and how sure that is."""
    if not plan.sizes:
        return []
    lines = [f"{'layers x width':>16} {'parameters':>12} {'tokens, by FLOPs':>18} {'per parameter*':>15}"]
    for row in plan.sizes:
        note = (" this recipe" if row["own"] else "") + (" <- suits" if row["suits"] else "")
        lines.append(
            f"{row['layers']:>8} x {row['width']:<5} {row['parameters'] / 1e6:>10,.1f} M {row['tokens']:>18,.0f} "
            f"{row['tokens_per_parameter']:>15,.1f}{note}"
        )
    best: Mapping[str, Any] = next(row for row in plan.sizes if row["suits"])
    ratio = best["tokens_per_parameter"]
    bound = ""
    if not FEWEST_TOKENS <= ratio <= MOST_TOKENS:
        size, count = ("smallest", "few") if ratio < FEWEST_TOKENS else ("largest", "many")
        bound = f" Even the {size} here sees {count} tokens for its size."
    text = (
        f"* without embeddings and head. By tokens per parameter, {best['layers']} layers x {best['width']} suits this budget "
        f"best ({ratio:,.0f} per parameter; {FEWEST_TOKENS:g} to {MOST_TOKENS:g} is the aim).{bound} The {FEWEST_TOKENS:g} is "
        "that of causal models (Hoffmann et al. 2022), ten times that the lower end for masked ones (OptiBERT, EMNLP 2025). "
        "Sure to a factor of several at best: in budgets of minutes larger models than that did as well or better "
        "(recipes/README.md), and other sizes' tokens are by FLOPs, while small models reach a smaller share of a device. A "
        "sweep over the two best sizes at a tenth of the budget tells more."
    )
    return [*lines, textwrap.fill(text, COLUMNS)]
