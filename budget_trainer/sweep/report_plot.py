"""`sweep_report.png`: all trials over their share of the time, and what the objective depends on."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from budget_trainer.clock import format_duration
from budget_trainer.sweep.ranking import finished, has_value, sign, spread, value
from budget_trainer.sweep.records import SweepRecord
from budget_trainer.sweep.searched import Searched, number, searched, short

BEST, ENDED, PALE, FAILED, GREY, DARK = "#1f6f8b", "#8fb8c6", "#c3cad2", "#d1495b", "#6b7480", "#22303c"
LOOKS: dict[str, dict[str, Any]] = {  # by state: what the lines and their ends look like
    "finished": {"color": ENDED, "linewidth": 1.4, "zorder": 3},
    "pruned": {"color": PALE, "linewidth": 1.3, "zorder": 2},
    "time": {"color": PALE, "linewidth": 1.3, "linestyle": "--", "zorder": 2},
    "running": {"color": PALE, "linewidth": 1.3, "linestyle": ":", "zorder": 2},
    "failed": {"color": FAILED, "linewidth": 1.2, "zorder": 2},
}
NAMES = {"time": "ended by the total time", "running": "under way"}
BARS = 12  # parameters at most
TICKS = 8  # choices at most that are all named on the axis
OUTSIDE = 2.0  # times the spread of the middle half: values that are further away than this are cut off


def draw(record: SweepRecord, shares: Mapping[str, float], why_not: str | None) -> bytes:
    """The picture as PNG. `shares` is each parameter's importance. Equal records give equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"axes.edgecolor": "#9aa3ad", "axes.grid": True, "grid.color": "#e8ebef", "axes.axisbelow": True}
    style |= {"text.parse_math": False, "text.color": DARK, "axes.labelcolor": DARK, "axes.titlesize": 11}
    stream = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(13, 5.6), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1.0))
        figure.suptitle(_title(record), fontsize=12, x=0.02, ha="left")
        _draw_curves(left, record)
        varied = [parameter for parameter in searched(record.space) if parameter.varies]
        if len(varied) > 1 and shares:
            _draw_importance(right, shares)
        elif varied:
            _draw_parameter(right, record, varied[0], len(varied) > 1)
        else:
            _nothing(right, "nothing but one value was searched")
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _title(record: SweepRecord) -> str:
    found, count = spread(record), len(record.trials)
    first = f"sweep {record.name}: {record.search}, {count} trial{'' if count == 1 else 's'} of "
    first += format_duration(record.time_per_trial_seconds)
    if found is None:
        return _cut(first) + "\nno trial has finished with a value"
    given = ", ".join(f"{name} {short(chosen)}" for name, chosen in found.best.parameters.items())
    return (
        _cut(first)
        + "\n"
        + _cut(f"best {record.objective} {value(found.best):.4g}: trial {found.best.number}, {given}")
    )


def _cut(text: str, width: int = 130) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _draw_curves(axes: Any, record: SweepRecord) -> None:
    found = spread(record)
    best = None if found is None else found.best
    seen: set[str] = set()
    for trial in record.trials:
        points = [(100 * share, height) for share, height in trial.curve if math.isfinite(height)]
        if not points or trial is best:
            continue
        state = "failed" if trial.state == "finished" and not has_value(trial) else trial.state
        label = None if state in seen else NAMES.get(state, state)
        seen.add(state)
        end: dict[str, Any] = {}
        if state != "finished":
            end = {
                "marker": "x",
                "markevery": [-1],
                "markersize": 5,
                "markeredgecolor": FAILED if state == "failed" else GREY,
            }
        elif len(points) == 1:
            end = {"marker": "o", "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=label, **LOOKS[state], **end)
    if best is not None and best.curve:
        points = [(100 * share, height) for share, height in best.curve if math.isfinite(height)]
        label = f"best: trial {best.number}"
        axes.plot(*zip(*points, strict=True), "o-", color=BEST, linewidth=2.8, markersize=4.5, zorder=5, label=label)
    axes.set_title(f"{_metric(record)} over each trial's time", loc="left")
    if not axes.lines:
        _nothing(axes, "no trial was looked at on its way")
        return
    axes.set_xlim(0, 102)
    axes.set_xlabel("share of the trial's time (%)")
    _cut_heights(axes, [[height for _, height in trial.curve] for trial in record.trials], 1.0)
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _metric(record: SweepRecord) -> str:
    """Of a score of GLUE, trials are compared by the bits per byte on the way."""
    return "loss (nats per predicted token)" if record.objective == "loss" else "bits per byte"


def _cut_heights(axes: Any, by_trial: Sequence[Sequence[float]], direction: float) -> None:
    """Limits that hold most values, and all of the better ones (the lower, where `direction` is 1).

    One diverged trial must not flatten all others. The picture says what lies outside.
    """
    heights = sorted(height for of_one in by_trial for height in of_one if math.isfinite(height))
    low, high = (heights[round(share * (len(heights) - 1))] for share in (0.25, 0.75))
    room = OUTSIDE * (high - low) if len(heights) > 4 else math.inf
    lowest, highest = (-math.inf, high + room) if direction > 0 else (low - room, math.inf)
    shown = [height for height in heights if lowest <= height <= highest]
    bottom, top = shown[0], shown[-1]
    margin = 0.08 * (top - bottom) or 0.05 * abs(top) or 0.05
    axes.set_ylim(bottom - margin, top + margin)
    outside = sum(any(not bottom <= height <= top for height in of_one) for of_one in by_trial)
    if outside:
        text = f"{outside} trial{'' if outside == 1 else 's'} outside of the picture"
        axes.text(0.01, 0.02, text, transform=axes.transAxes, color=FAILED, fontsize=9)


def _draw_parameter(axes: Any, record: SweepRecord, parameter: Searched, one_of_several: bool) -> None:
    """The objective of every finished trial over the parameter; at the border where others were tried."""
    axes.set_title(f"{_cut(record.objective, 30)} over {_cut(parameter.name, 40)}", loc="left")
    place = _places(axes, parameter)
    ends = [trial for trial in finished(record) if parameter.name in trial.parameters]
    at = [place(trial.parameters[parameter.name]) for trial in ends]
    if not ends:
        _nothing(axes, "no trial has finished with a value")
        return
    axes.plot(at, [value(trial) for trial in ends], "o", color=ENDED, markersize=7, label="finished", zorder=3)
    axes.plot(at[0], value(ends[0]), "o", color=BEST, markersize=10, label=f"best: trial {ends[0].number}", zorder=4)
    others = [trial for trial in record.trials if not has_value(trial) and parameter.name in trial.parameters]
    top = 0.03 if sign(record) < 0 else 0.97
    for states, colour, label in (
        (("pruned", "time", "running"), GREY, "no final value (pruned or cut)"),
        (("failed", "finished"), FAILED, "failed"),
    ):
        tried = [place(trial.parameters[parameter.name]) for trial in others if trial.state in states]
        if tried:
            transform = axes.get_xaxis_transform()
            heights = [top] * len(tried)
            axes.plot(
                tried, heights, "|", color=colour, markersize=11, markeredgewidth=1.6, transform=transform, label=label
            )
    _cut_heights(axes, [[value(trial)] for trial in ends], sign(record))
    bottom, upper = axes.get_ylim()
    room = 0.1 * (upper - bottom) if others else 0.0
    axes.set_ylim(bottom - (room if sign(record) < 0 else 0), upper + (room if sign(record) > 0 else 0))
    axes.set_xlabel(
        _cut(parameter.name, 60) + (" (one of several; too few trials for importances)" if one_of_several else "")
    )
    axes.legend(frameon=True, facecolor="white", edgecolor="none", framealpha=0.8, fontsize=9, loc="best")


def _places(axes: Any, parameter: Searched) -> Any:
    """Set the horizontal axis; returns where a value lies on it. Words stand beside each other in their order."""
    numbers = parameter.numbers() or []
    if len(set(numbers)) < 2:
        words = [short(choice) for choice in parameter.choices]
        axes.set_xticks(range(len(words)), ["\n".join(textwrap.wrap(_cut(word, 40), 14)) or " " for word in words])
        axes.set_xlim(-0.5, len(words) - 0.5)
        return lambda given: words.index(short(given)) if short(given) in words else math.nan
    low, high = min(numbers), max(numbers)
    wide = low > 0 and high / low >= 8
    if parameter.log or (parameter.choices and wide):
        axes.set_xscale("log")
        axes.set_xlim(low * (low / high) ** 0.04, high * (high / low) ** 0.04)
        _log_ticks(axes, low, high)
    else:
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    if 0 < len(parameter.choices) <= TICKS:
        axes.set_xticks(numbers, [short(choice) for choice in parameter.choices])
    return lambda given: math.nan if number(given) is None else number(given)


def _log_ticks(axes: Any, low: float, high: float) -> None:
    """1, 2, 5 of each decade (1 alone over many decades), written as one types them: `2e-3`, `500`."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    steps = (1, 2, 5) if high / low < 2e3 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
    if len(ticks) < 2:
        ticks = [low, high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda tick, _: _written(tick))


def _written(tick: float) -> str:
    if 0.1 <= tick < 1e5:
        return f"{tick:,.6g}"
    digits, _, exponent = f"{tick:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _draw_importance(axes: Any, shares: Mapping[str, float]) -> None:
    names = list(shares)[:BARS]
    percent = [100 * shares[name] for name in names]
    axes.barh(range(len(names)), percent, color=BEST, height=0.6)
    for row, width in enumerate(percent):
        axes.text(width + 1.5, row, f"{width:.0f} %", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [_cut(name, 34) for name in names])
    axes.set_ylim(max(len(names), 3) - 0.4, -0.6)
    axes.set_xlim(0, max(percent) * 1.18)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of the importance (%, by PED-ANOVA)")
    axes.set_title("which parameter made the difference", loc="left")


def _nothing(axes: Any, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)
