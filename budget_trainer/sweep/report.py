"""`sweep_report.csv`, `.md`, `.png` and `best_recipe.yaml`: what came of a sweep, for tables, for people, for the next run."""

from __future__ import annotations

import csv
import io
import math
import shlex
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.io import write_atomic
from budget_trainer.core.output import Markup, fence, inline, png_figure, table
from budget_trainer.core.package_data import script_words
from budget_trainer.reporting.energy import energy_words
from budget_trainer.reporting.report import public_recipe
from budget_trainer.sweep.results import BEST_SHARE, SweepRecord, best_recipe_text, importance
from budget_trainer.sweep.spec import format_value, numbers_of

_Searched = CategoricalDistribution | FloatDistribution | IntDistribution
_CSV, _MARKDOWN, _PICTURE, _BEST_RECIPE = "sweep_report.csv", "sweep_report.md", "sweep_report.png", "best_recipe.yaml"
_SHOWN = 100  # trials; the CSV has all
_NEW_SEEDS = (101, 102)
_NEAR = 0.05  # of a range, on its own scale: a best value so close to an end says that the range may be too narrow
_ORDERED = 3  # of fewer choices one always is an end
_STATES = {
    "finished": "reached the end of its time",
    "pruned": "stopped early, behind others at the same share of its time",
    "time": "ended because the sweep's total time was up",
    "failed": "ended with an error",
    "running": "was under way when this was written",
}


def write_report(record: SweepRecord) -> list[Path]:
    """Write the files into the sweep's folder, each whole or not at all; returns those that were written.

    Without a finished trial there is no `best_recipe.yaml`.

    Raises:
        OSError: a file cannot be written.
        RunError: the base recipe cannot be read any more; the other files are then written.
    """
    folder, (shares, why_not) = record.spec.output_dir, importance(record)
    write_atomic(folder / _CSV, _csv(record))
    write_atomic(folder / _MARKDOWN, _markdown(record, shares, why_not))
    write_atomic(folder / _PICTURE, _draw(record, shares))
    files = [folder / name for name in (_CSV, _MARKDOWN, _PICTURE)]
    if (recipe := best_recipe_text(record)) is not None:
        files.append(folder / _BEST_RECIPE)
        write_atomic(files[-1], recipe)
    return files


# ---- sweep_report.csv ----


def _csv(record: SweepRecord) -> str:
    """One row per trial, best first. Empty where a trial has no value; `rank` counts those with an objective."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = ["rank", "trial", "state", record.spec.objective.name]
    columns = [name if name not in own else f"parameter {name}" for name in record.spec.parameters]
    writer.writerow([*own, *columns, "share_reached", "last_value", "seconds", "kwh", "folder", "error"])
    for rank, trial in enumerate(record.ranked, start=1):
        head = [rank, trial.number, trial.state, trial.objective]
        if trial.objective is None:
            head = ["", trial.number, trial.state, ""]
        given = [trial.parameters.get(name, "") for name in record.spec.parameters]
        given = [str(value).lower() if isinstance(value, bool) else value for value in given]
        kwh = f"{trial.energy['kwh']:.6g}" if trial.energy else ""
        tail = [round(trial.seconds, 1), kwh, trial.folder, " ".join((trial.error or "").split())]
        writer.writerow([*head, *given, *(trial.last or ("", "")), *tail])
    return stream.getvalue()


# ---- sweep_report.md ----


def _markdown(record: SweepRecord, shares: Mapping[str, float], why_not: str | None) -> str:
    """What was searched, every trial in order, what the time went into, and what to do next."""
    sections = [
        f"# Sweep {inline(record.spec.job_name)}",
        _summary(record),
        _best(record),
        f"![Loss over time of all trials, and what the objective depends on]({_PICTURE})",
        _edges(record),
        "## Trials\n\n" + _trials(record),
        "## Where the time went\n\n" + _time(record),
        "## What mattered\n\n" + _importance(shares, why_not),
        "## What was searched\n\n" + _space(record),
        _failures(record),
        _next(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(record: SweepRecord) -> str:
    spec, count = record.spec, len(record.trials)
    total = "" if math.isinf(spec.total_time) else f" of {format_duration(spec.total_time)}"
    return (
        f"Search: {spec.search}, {spec.objective.direction} **{inline(spec.objective.name)}**; {_plural(count, 'trial')} of "
        f"{format_duration(spec.time_per_trial)} each, {format_duration(record.used_seconds)}{total} used."
    )


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _best(record: SweepRecord) -> str:
    if not record.finished:
        return "No trial has finished yet: there is no best one, and no recipe was written."
    best, worst, count = record.finished[0], record.finished[-1], len(record.finished)
    rows: list[tuple[Any, ...]] = [("best", _figure(best.value), "", best.number, best.given)]
    if count > 1:
        middle = statistics.median(trial.value for trial in record.finished)
        rows += [
            ("median", _figure(middle), f"{middle - best.value:+.4g}", "", f"of {count} finished trials"),
            ("worst", _figure(worst.value), f"{worst.value - best.value:+.4g}", worst.number, worst.given),
        ]
    return table(("", inline(record.spec.objective.name), "from the best", "trial", "parameters"), rows)


def _figure(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}" if 0.1 <= abs(number) < 1e4 else f"{number:.5g}"


def _edges(record: SweepRecord) -> str:
    """A hint for each parameter whose best value lies at an end of what was searched."""
    best = record.finished[0].parameters if record.finished else {}
    ends = [(name, _end(record.spec.parameters[name], given)) for name, given in best.items()]
    return "\n\n".join(
        f"**Widen the range:** the best {inline(name)}, {inline(format_value(best[name]))}, lies at the {end} end of what was "
        f"searched ({inline(_words(record.spec.parameters[name]))}). A better one may lie beyond it."
        for name, end in ends
        if end is not None
    )


def _end(searched: _Searched, value: Any) -> str | None:
    """`lower` or `upper` where `value` lies at that end: within 5 % of a range, or the last of three choices or more."""
    numbers = numbers_of(searched)
    if len(set(numbers)) < 2:
        return None
    low, high = min(numbers), max(numbers)
    if isinstance(searched, CategoricalDistribution):
        return None if len(numbers) < _ORDERED else {low: "lower", high: "upper"}.get(value)
    if searched.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    share = (value - low) / (high - low)
    return "lower" if share < _NEAR else "upper" if share > 1 - _NEAR else None


def _words(searched: _Searched) -> str:
    """What was searched, for people."""
    if isinstance(searched, CategoricalDistribution):
        return "one of " + ", ".join(map(format_value, searched.choices))
    steps = f", in steps of {format_value(searched.step)}" if searched.step not in (None, 1) else ""
    scale = ", on a logarithmic scale" if searched.log else steps
    return f"{format_value(searched.low)} to {format_value(searched.high)}{scale}"


def _trials(record: SweepRecord) -> str:
    if not record.trials:
        return "None was started."
    names, rows = [*record.spec.parameters], []
    for place, trial in enumerate(record.ranked[:_SHOWN]):
        number = Markup(f"**{trial.number}**") if place == 0 and trial.objective is not None else trial.number
        share, last = trial.last or (None, None)
        ended = trial.state if share is None or trial.state == "finished" else f"{trial.state} at {100 * share:.0f} %"
        given = [format_value(trial.parameters.get(name, "")) for name in names]
        values = (_figure(trial.objective), _figure(last))
        rows.append((number, *given, *values, ended, format_duration(trial.seconds)))
    head = ("trial", *map(inline, [*names, record.spec.objective.name]), "last value on the way", "state", "time")
    more = f"\n\nThe first {_SHOWN} of {len(record.trials)}; `{_CSV}` has all." if len(record.trials) > _SHOWN else ""
    return table(head, rows) + more


def _time(record: SweepRecord) -> str:
    if not record.trials:
        return "No trial was started."
    whole, rows = sum(trial.seconds for trial in record.trials) or 1.0, []
    words = "; ".join(energy_words(record.energy))
    for state, meaning in _STATES.items():
        seconds = [trial.seconds for trial in record.trials if trial.state == state]
        if seconds:
            share = f"{100 * sum(seconds) / whole:.0f} %"
            rows.append((state, len(seconds), format_duration(sum(seconds)), share, meaning))
    return table(("state", "trials", "time", "share", ""), rows) + (
        "\n\nTimes are of whole trials, launch and evaluation included; where trials run beside each other they add up to more "
        "than the sweep took." + (f"\n\nEnergy: {inline(words)}." if record.energy["kwh"] else "")
    )


def _importance(shares: Mapping[str, float], why_not: str | None) -> str:
    if not shares:
        return f"Importance of the parameters: {inline(why_not)}."
    rows = [(name, f"{100 * share:.0f} %") for name, share in shares.items()]
    return table(("parameter", "importance"), rows) + (
        f"\n\nBy PED-ANOVA (Optuna): how differently the best trials (at most {100 * BEST_SHARE:.0f} %) are spread "
        "over a parameter than all trials are. Pruned trials count as worse than every finished one. With few trials this is a "
        "hint."
    )


def _space(record: SweepRecord) -> str:
    spec = record.spec
    text = table(("parameter", "searched"), [(name, _words(searched)) for name, searched in spec.parameters.items()])
    text += f"\n\nBase recipe: {inline(spec.recipe or 'none, the defaults of train_mlm.py')}."
    if fixed := public_recipe(spec.fixed):
        pairs = (f"{inline(key)} {inline(format_value(given))}" for key, given in fixed.items())
        text += f" Fixed beside it: {', '.join(pairs)}."
    return text


def _failures(record: SweepRecord) -> str:
    lines = [
        f"- trial {trial.number} ({inline(trial.given)}): {inline(trial.error)}; its log is {inline(trial.folder)}.log"
        for trial in record.ranked
        if trial.state == "failed"
    ]
    return "## Failed\n\n" + "\n".join(lines) if lines else ""


def _next(record: SweepRecord) -> str:
    if not record.finished:
        return ""
    spec, budget = record.spec, format_duration(record.spec.time_per_trial)
    head = ["accelerate", "launch", *script_words("train_mlm"), str(spec.output_dir / _BEST_RECIPE)]
    head += ["--data_dir", str(spec.fixed.get("data_dir") or "DATA_DIR"), "--output_dir"]
    tail = ["--total_training_time", budget, "--seed"]
    again = [[*head, str(spec.output_dir / f"again-{seed}"), *tail, str(seed)] for seed in _NEW_SEEDS]
    behind = ""
    if len(record.finished) > 1:  # which is what the differences of seeds would have to be smaller than
        first, second = record.finished[:2]
        behind = f", and the second best is {abs(second.value - first.value):.4g} behind"
    return (
        "## Next\n\n"
        f"`{_BEST_RECIPE}` is the best trial as a recipe; it was found at {budget} per trial.\n\n"
        f"**The differences may be noise.** Each trial ran once, with one seed{behind}. To see how far seeds alone move the "
        f"{inline(spec.objective.name)}, train the best again with others (and the launch configuration of the sweep, "
        "`--config_file`), and compare their `run_report.json` with the table above:\n\n"
        + fence("\n".join(map(shlex.join, again)), "bash")
    )


# ---- sweep_report.png ----

_BEST_COLOUR, _ENDED, _PALE, _FAILED, _GREY = "#1f6f8b", "#8fb8c6", "#c3cad2", "#d1495b", "#6b7480"
_CUT = {"color": _PALE, "linewidth": 1.3, "zorder": 2, "marker": "x", "markevery": [-1], "markeredgecolor": _GREY}
_LOOKS: dict[str, dict[str, Any]] = {  # by state: what the lines and their ends look like
    "finished": {"color": _ENDED, "linewidth": 1.4, "zorder": 3, "marker": ".", "label": "finished"},
    "pruned": {**_CUT, "label": "pruned"},
    "time": {**_CUT, "linestyle": "--", "label": "ended by the total time"},
    "running": {**_CUT, "linestyle": ":", "label": "under way"},
    "failed": {**_CUT, "color": _FAILED, "markeredgecolor": _FAILED, "label": "failed"},
}
_BEST_LOOK = {"color": _BEST_COLOUR, "linewidth": 2.8, "zorder": 5, "marker": "o"}
_OUTSIDE = 2.0  # times the spread of the middle half: values that are further away than this are cut off


def _draw(record: SweepRecord, shares: Mapping[str, float]) -> bytes:
    """All trials over their share of the time, and what the objective depends on, as PNG. Equal records give equal bytes."""
    varied = [name for name, searched in record.spec.parameters.items() if not searched.single()]
    with png_figure(13, 5.6) as (figure, png):
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1.0))
        figure.suptitle(_title(record), fontsize=12, x=0.02, ha="left")
        _draw_curves(left, record)
        if shares:
            _draw_importance(right, shares)
        elif varied:
            _draw_parameter(right, record, varied[0], len(varied) > 1)
        else:
            _write_only(right, "nothing but one value was searched")
    return png.getvalue()


def _title(record: SweepRecord) -> str:
    spec, second = record.spec, "no trial has finished"
    if record.finished:
        best = record.finished[0]
        second = _cut(f"best {spec.objective.name} {best.value:.4g}: trial {best.number}, {best.given}")
    trials = f"{_plural(len(record.trials), 'trial')} of {format_duration(spec.time_per_trial)}"
    return _cut(f"sweep {spec.job_name}: {spec.search}, {trials}") + f"\n{second}"


def _cut(text: str, width: int = 130) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _draw_curves(axes: Any, record: SweepRecord) -> None:
    # On the way to a score of GLUE, trials are compared by bits per byte.
    metric = "loss (nats per predicted token)" if record.spec.objective.metric == "loss" else "bits per byte"
    axes.set_title(f"{metric} over each trial's time", loc="left")
    drawn = [trial for trial in record.trials if trial.curve]
    if not drawn:
        _write_only(axes, "no trial was looked at on its way")
        return
    looks = [_LOOKS[trial.state] for trial in drawn]
    if record.finished and record.finished[0] in drawn:
        best = record.finished[0]
        looks[drawn.index(best)] = {**_BEST_LOOK, "label": f"best: trial {best.number}"}
    for trial, look in zip(drawn, looks, strict=True):
        shares, heights = zip(*trial.curve, strict=True)
        axes.plot([100 * share for share in shares], heights, markersize=5, **look)
    axes.set_xlim(0, 102)
    axes.set_xlabel("share of the trial's time (%)")
    _cut_heights(axes, [[height for _, height in trial.curve] for trial in drawn], 1.0)
    lines, names = axes.get_legend_handles_labels()
    each = dict(zip(names, lines, strict=True))
    axes.legend(each.values(), each, frameon=False, fontsize=9, loc="upper right")


def _cut_heights(axes: Any, by_trial: Sequence[Sequence[float]], sign: float) -> None:
    """Limits that hold most values, and all of the better ones (the lower, where `sign` is 1).

    One diverged trial must not flatten all others. The picture says what lies outside.
    """
    heights = sorted(sign * height for of_one in by_trial for height in of_one)
    low, high = (heights[round(share * (len(heights) - 1))] for share in (0.25, 0.75))
    limit = high + _OUTSIDE * (high - low) if len(heights) > 4 else math.inf
    top = max(height for height in heights if height <= limit)
    margin = 0.08 * (top - heights[0]) or 0.05 * abs(top) or 0.05
    axes.set_ylim(*sorted((sign * (heights[0] - margin), sign * (top + margin))))
    if outside := sum(any(sign * height > top for height in of_one) for of_one in by_trial):
        text = f"{_plural(outside, 'trial')} outside of the picture"
        axes.text(0.01, 0.02, text, transform=axes.transAxes, color=_FAILED, fontsize=9)


def _draw_parameter(axes: Any, record: SweepRecord, name: str, one_of_several: bool) -> None:
    """The objective of every finished trial over the parameter; at the border where others were tried."""
    spec, ends = record.spec, record.finished
    axes.set_title(f"{_cut(spec.objective.name, 30)} over {_cut(name, 40)}", loc="left")
    place = _scale(axes, spec.parameters[name])
    if not ends:
        _write_only(axes, "no trial has finished")
        return
    at = [place(trial.parameters[name]) for trial in ends]
    axes.plot(at, [trial.value for trial in ends], "o", color=_ENDED, markersize=7, label="finished", zorder=3)
    best = f"best: trial {ends[0].number}"
    axes.plot(at[0], ends[0].value, "o", color=_BEST_COLOUR, markersize=10, label=best, zorder=4)
    _cut_heights(axes, [[trial.value] for trial in ends], spec.objective.sign)
    border = 0.97 if spec.objective.sign > 0 else 0.03  # on the side of the worse values
    others = [trial for trial in record.trials if trial.objective is None and name in trial.parameters]
    failed = [trial for trial in others if trial.state == "failed"]
    cut = [trial for trial in others if trial.state != "failed"]
    for trials, colour, label in ((cut, _GREY, "no final value (pruned or cut)"), (failed, _FAILED, "failed")):
        look = {"color": colour, "markersize": 11, "markeredgewidth": 1.6, "label": label}
        if tried := [place(trial.parameters[name]) for trial in trials]:
            axes.plot(tried, [border] * len(tried), "|", transform=axes.get_xaxis_transform(), **look)
    axes.set_xlabel(_cut(name, 60) + (" (one of several; too few trials for importances)" if one_of_several else ""))
    axes.legend(frameon=True, facecolor="white", edgecolor="none", framealpha=0.8, fontsize=9, loc="best")


def _scale(axes: Any, searched: _Searched) -> Callable[[Any], float]:
    """Set the horizontal axis; returns where a value lies on it. Words stand beside each other in their order."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    choices = searched.choices if isinstance(searched, CategoricalDistribution) else ()
    numbers = numbers_of(searched)
    if not numbers:
        words = [format_value(choice) for choice in choices]
        axes.set_xticks(range(len(words)), ["\n".join(textwrap.wrap(_cut(word, 40), 14)) or " " for word in words])
        axes.set_xlim(-0.5, len(words) - 0.5)
        return lambda given: words.index(format_value(given))
    low, high = min(numbers), max(numbers)
    if low > 0 and high / low >= 8 if isinstance(searched, CategoricalDistribution) else searched.log:
        axes.set_xscale("log")
        axes.set_xlim(low * (low / high) ** 0.04, high * (high / low) ** 0.04)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 2e3 else (1,)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    if 0 < len(choices) <= 8:
        axes.set_xticks(numbers, [format_value(choice) for choice in choices])
    return float


def _draw_importance(axes: Any, shares: Mapping[str, float]) -> None:
    names = list(shares)[:12]
    percent = [100 * shares[name] for name in names]
    bars = axes.barh(
        range(len(names)), percent, tick_label=[_cut(name, 34) for name in names], color=_BEST_COLOUR, height=0.6
    )
    axes.bar_label(bars, fmt="%.0f %%", padding=4, fontsize=9)
    axes.set_ylim(max(len(names), 3) - 0.4, -0.6)
    axes.set_xlim(0, max(percent) * 1.18)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share of the importance (%, by PED-ANOVA)")
    axes.set_title("which parameter made the difference", loc="left")


def _write_only(axes: Any, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=_GREY)
