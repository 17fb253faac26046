"""`plan.png`: learning rate and stages over the time of the run.

The plan on a terminal. Standard library only.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.io import write_atomic
from budget_trainer.core.plotting import png_figure
from budget_trainer.planning.result import reasoning

COLOURS = {"setup": "#8d99ae", "learning_rate": "#1f6f8b", "stages": "#d1495b"}
TITLES = {"batch_size": "blocks per step", "mlm_probability": "masking rate", "sequence_length": "tokens per sequence"}


def draw_plan(plan: Mapping[str, Any], path: Path) -> None:
    """Draw the schedule of `plan`; a panel for each thing that changes along it. Raises OSError where it cannot be written."""
    points = plan["schedule"]
    last = points[-1]["elapsed_seconds"]
    unit, name = (3600.0, "hours") if last > 3 * 3600 else (60.0, "minutes") if last > 120 else (1.0, "seconds")
    at = [point["elapsed_seconds"] / unit for point in points]
    changing = [key for key in TITLES if len({point[key] for point in points}) > 1]
    with png_figure(10, 3.6 + 1.6 * len(changing)) as (figure, png):
        heights = [2.4] + [1.0] * len(changing)
        panels = figure.subplots(1 + len(changing), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        p = plan["prediction"]
        figure.suptitle(
            f"{plan['model_type']}, {plan['parameters'] / 1e6:,.1f} M parameters: {p['steps']:,} steps, "
            f"{p['tokens']:,} tokens in {format_duration(p['used_seconds'])}",
            x=0.02,
            ha="left",
        )
        panels[0].plot(at, [point["learning_rate"] for point in points], color=COLOURS["learning_rate"])
        panels[0].set_title("learning rate (grey: set-up and compiling)", loc="left", fontsize=11)
        for panel, key in zip(panels[1:], changing, strict=True):
            panel.step(at, [point[key] for point in points], where="post", color=COLOURS["stages"])
            panel.set_title(TITLES[key], loc="left", fontsize=11)
            panel.set_ylim(0, 1.15 * max(point[key] for point in points))
        for panel in panels:
            panel.axvspan(0, at[0], color=COLOURS["setup"], alpha=0.25, linewidth=0)
            panel.set_xlim(0, last / unit)
        panels[-1].set_xlabel(name)
    write_atomic(path, png.getvalue())


BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 60  # of the schedule
COLUMNS = 120
TASK = 24  # columns of the first word of a line


def plan_text(plan: Mapping[str, Any]) -> str:
    """Everything a person decides by, in lines."""
    p = plan["prediction"]
    lines = [
        _line("model", f"{plan['model_type']}, {plan['parameters'] / 1e6:,.1f} M parameters, on {_device(plan)}"),
        _line(
            "micro-batch",
            f"{plan['micro_batch']} blocks x {plan['gradient_accumulation_steps']} accumulated{_total(plan)}",
        ),
        *_batches(plan),
        *_stages(plan),
        _line("memory", _memory(plan)),
        _line("computes in", _speed(plan)),
        "",
        _line("steps", f"{p['steps']:,} of {plan['step_seconds']:.3f} s"),
        _line("tokens", f"{p['tokens']:,} at {p['tokens_per_second']:,.0f} tokens/s{_mfu(plan)}"),
        *_swing(plan),
        _line("passes over the corpus", f"{plan['passes_over_corpus']:.3g}"),
        *([_line(plan["repeats"]["level"], plan["repeats"]["text"])] if plan["repeats"]["level"] != "fine" else []),
        _line("set-up", f"{p['setup_seconds']:.1f} s: {_parts(plan['setup'])}"),
        _line("compiling", _compiling(plan)),
        *([_line("warning", _failed(plan))] if plan["probe_failed"] else []),
        _line("saving", f"{plan['save_seconds_each']:.2f} s per model, {p['save_seconds']:.1f} s in all"),
    ]
    if p["validations"]:
        lines.append(
            _line(
                "validating",
                f"{p['validations']} x {plan['evaluate_seconds_each']:.1f} s, {p['evaluate_seconds']:.1f} s in all",
            )
        )
    lines.append(_line("ends", f"{ends_at(p['used_seconds'])} if it began now; evaluation and report come after it"))
    if plan["cost"] is not None:
        lines.append(
            _line("cost", f"{plan['cost']:,.2f} at {plan['price_per_hour']:g} per hour, for the whole budget")
        )
    if plan["num_processes"] > 1:
        lines.append(
            _line(
                "assumed",
                f"{plan['num_processes']} processes are {plan['num_processes']} times as fast as this one, each with a device "
                "like this one to itself; what they tell each other was not measured",
            )
        )
    return "\n".join([*lines, "", *sketch(plan["schedule"]), "", *_sizes(plan)])


def ends_at(seconds: float, now: float | None = None) -> str:
    """Local date, time and zone, so many seconds from `now` (UNIX time)."""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime((time.time() if now is None else now) + seconds))


def sketch(schedule: Sequence[Mapping[str, float]]) -> list[str]:
    """The learning rate over time as a line of bars, and a line for each stage."""
    last = schedule[-1]["elapsed_seconds"]
    highest = max(point["learning_rate"] for point in schedule) or 1.0
    bars = ""
    for column in range(WIDTH):
        at = (column + 0.5) / WIDTH * last
        before = [point for point in schedule if point["elapsed_seconds"] <= at]
        bars += BARS[max(1, round(8 * before[-1]["learning_rate"] / highest))] if before else "·"
    lines = [f"learning rate {highest:.3g} {bars} {format_duration(last)}   (·: set-up)"]
    keys = ("batch_size", "mlm_probability", "sequence_length")
    seen = None
    for point in schedule:
        stage = tuple(point[key] for key in keys)
        if stage != seen:
            lines.append(
                f"  from {format_duration(point['elapsed_seconds']):>8}: {point['batch_size']:,.0f} blocks per step, "
                f"{100 * point['mlm_probability']:g} % masked, {point['sequence_length']:g} tokens long"
            )
        seen = stage
    return lines


def _line(name: str, text: str) -> str:
    return textwrap.fill(
        text, COLUMNS, initial_indent=f"{name:<{TASK}}", subsequent_indent=" " * TASK, break_long_words=False
    )


def _device(plan: Mapping[str, Any]) -> str:
    gpus = plan["machine"]["gpus"]
    cpu = f"{plan['machine']['cores']} cores of {plan['machine']['cpu']}"
    return gpus[0] if gpus and plan["device"].startswith("cuda") else cpu


def _total(plan: Mapping[str, Any]) -> str:
    processes = f" x {plan['num_processes']} processes" if plan["num_processes"] > 1 else ""
    why = "the recipe's, kept" if plan["batch_asked"] else "the recipe leaves it open: the fastest one"
    return f"{processes} = {plan['total_batch']:,} blocks per step ({why})"


def _batches(plan: Mapping[str, Any]) -> list[str]:
    fastest = max(row["tokens_per_second"] for row in plan["measured"].values())
    text = ", ".join(
        f"{size}: {row['tokens_per_second']:,.0f}{' <-' if size == plan['micro_batch'] else ''}"
        for size, row in plan["measured"].items()
    )
    how = "eager, " if plan["speed"]["compile"] != "no" else ""
    lines = [_line("  tried, tokens/s", f"{text} ({how}medians of {plan['rounds']} in turns)")]
    if plan["cut_short"]:
        lines.append(
            _line("", f"no time for {plan['cut_short']} and more; give --probe_seconds 120, or a quiet machine")
        )
    chosen = plan["measured"][plan["micro_batch"]]["tokens_per_second"]
    if chosen < fastest:
        lines.append(
            _line("", f"the smallest within the noise of the fastest ({100 * (1 - chosen / fastest):.1f} % below)")
        )
    return lines


def _memory(plan: Mapping[str, Any]) -> str:
    used, limit = plan["memory_bytes"], plan["memory_limit_bytes"]
    text = f"{used / 2**30:.2f} GiB at most, of {limit / 2**30:.1f} GiB that may be used" if used else "not measured"
    largest = plan["largest_micro_batch"]
    text += f"; micro-batch {largest['tried']} fits"
    if plan["refused"]:
        return text + f", {plan['refused']} does not"
    if largest["extrapolated"] and largest["extrapolated"] > largest["tried"]:
        text += f", about {largest['extrapolated']:,} would by its growth"
    return text


def _speed(plan: Mapping[str, Any]) -> str:
    kind = plan["speed"]["compile"]
    return ("bf16" if plan["speed"]["bf16"] else "float32") + ("" if kind == "no" else f", compiled ({kind})")


def _mfu(plan: Mapping[str, Any]) -> str:
    if not plan["mfu"]:
        return ""
    return f", MFU {100 * plan['mfu']:.1f} % of {plan['peak_flops'] / 1e12:.3g} TFLOP/s measured"


def _swing(plan: Mapping[str, Any]) -> list[str]:
    """How far the machine's own speed moved while the probe looked: the run's will too."""
    steady = plan["steady"]
    if steady is None or steady["slowest"] is None:
        return []
    rate = plan["prediction"]["tokens_per_second"]
    slowest, fastest = steady["slowest"] * rate, steady["fastest"] * rate
    return [
        _line("", f"{slowest:,.0f} to {fastest:,.0f} within the {steady['seconds']:.0f} s that were measured of it")
    ]


def _stages(plan: Mapping[str, Any]) -> list[str]:
    if not plan["unmeasured_stages"]:
        return []
    named = ", ".join(plan["unmeasured_stages"])
    return [
        _line(
            "warning",
            f"no time to measure the stages {named} (masking rate@parts of a block), taken for as fast as the first",
        )
    ]


def _parts(setup: Mapping[str, float]) -> str:
    shown = sorted(setup.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in shown if seconds >= 0.1)


def _compiling(plan: Mapping[str, Any]) -> str:
    compiled = plan["compile"]
    if compiled["kind"] == "no":
        return "off"
    if not compiled["measured"]:
        if plan["probe_failed"]:
            return "on, but the probe failed before it was measured: steps are eager ones and its time is missing"
        return (
            "on, but it did not end within the probe: steps are eager ones and its time is missing; "
            "--probe_seconds 120 measures it"
        )
    text = f"{compiled['seconds']:.1f} s"
    if compiled["cold_seconds"] > 1.2 * compiled["seconds"]:
        text += f", with the cache this probe has filled ({compiled['cold_seconds']:.1f} s without)"
    return text


def _failed(plan: Mapping[str, Any]) -> str:
    return (
        f"the probe failed behind its choice of the micro-batch, and the run may fail likewise: {plan['probe_failed']}"
    )


def _sizes(plan: Mapping[str, Any]) -> list[str]:
    if not plan["sizes"]:
        return []
    lines = [f"{'layers x width':>16} {'parameters':>12} {'tokens, by FLOPs':>18} {'per parameter*':>15}"]
    for row in plan["sizes"]:
        note = (" this recipe" if row["own"] else "") + (" <- suits" if row["suits"] else "")
        lines.append(
            f"{row['layers']:>8} x {row['width']:<5} {row['parameters'] / 1e6:>10,.1f} M {row['tokens']:>18,.0f} "
            f"{row['tokens_per_parameter']:>15,.1f}{note}"
        )
    return [*lines, textwrap.fill("* without embeddings and head. " + reasoning(plan["sizes"]), COLUMNS)]
