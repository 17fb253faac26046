"""`sweep_report.md`: what was searched, every trial in order, what the time went into, and what to do next.

`sweep_report.png`: all trials over their share of the time, and what the objective depends on.

`sweep_report.csv`, `.md`, `.png` and `best_recipe.yaml`: what came of a sweep, for tables, for people, for the next run.
"""

from __future__ import annotations

import csv
import io
import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.errors import RunError
from budget_trainer.core.io import write_atomic
from budget_trainer.core.markdown import Markup, fence, inline, table
from budget_trainer.core.plotting import png_figure
from budget_trainer.reporting.report import public_recipe
from budget_trainer.sweep.best_recipe import best_recipe_text
from budget_trainer.sweep.results import (
    BEST,
    MEANING,
    METHOD,
    Searched,
    Spread,
    SweepRecord,
    TrialRecord,
    finished,
    has_value,
    importance,
    number,
    ranked,
    reached,
    searched,
    seconds_by_state,
    short,
    sign,
    spread,
    value,
)

SHOWN = 100  # trials; the CSV has all
NEW_SEEDS = (101, 102)


def markdown(
    record: SweepRecord, shares: Mapping[str, float], why_not: str | None, output_dir: Path, best_file: str
) -> str:
    """The whole file. `shares` is each parameter's importance, `why_not` the reason where there is none."""
    found = spread(record)
    sections = [
        f"# Sweep {inline(record.name)}",
        _summary(record),
        _best(record, found),
        "![Loss over time of all trials, and what the objective depends on](sweep_report.png)",
        "\n\n".join(_edges(record, found)),
        "## Trials\n\n" + _trials(record),
        "## Where the time went\n\n" + _time(record),
        "## What mattered\n\n" + _importance(shares, why_not),
        "## What was searched\n\n" + _space(record),
        _failures(record),
        _next(record, found, output_dir, best_file),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(record: SweepRecord) -> str:
    total = "" if record.total_seconds is None else f" of {format_duration(record.total_seconds)}"
    per_trial = format_duration(record.time_per_trial_seconds)
    return (
        f"Search: {inline(record.search)}, {record.direction} **{inline(record.objective)}**; {len(record.trials)} "
        f"{'trial' if len(record.trials) == 1 else 'trials'} of {per_trial} each, "
        f"{format_duration(record.used_seconds)}{total} used."
    )


def _best(record: SweepRecord, found: Spread | None) -> str:
    if found is None:
        return "No trial has finished with a value yet: there is no best one, and no recipe was written."
    count = len(finished(record))
    rows: list[tuple[Any, ...]] = [
        ("best", _figure(value(found.best)), "", found.best.number, _parameters(found.best)),
    ]
    if count > 1:
        rows.append(("median", _figure(found.median), _apart(found, found.median), "", f"of {count} finished trials"))
        worst = value(found.worst)
        rows.append(("worst", _figure(worst), _apart(found, worst), found.worst.number, _parameters(found.worst)))
    return table(("", inline(record.objective), "from the best", "trial", "parameters"), rows)


def _apart(found: Spread, other: float) -> str:
    return f"{other - value(found.best):+.4g}"


def _figure(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}" if 0.1 <= abs(number) < 1e4 else f"{number:.5g}"


def _parameters(trial: TrialRecord) -> str:
    return ", ".join(f"{name} {short(given)}" for name, given in trial.parameters.items())


def _edges(record: SweepRecord, found: Spread | None) -> list[str]:
    """A hint for each parameter whose best value lies at an end of what was searched."""
    if found is None:
        return []
    hints = []
    for parameter in searched(record.space):
        given = found.best.parameters.get(parameter.name)
        end = parameter.end(given)
        if end is not None:
            hints.append(
                f"**Widen the range:** the best {inline(parameter.name)}, {inline(short(given))}, lies at the {end} end of "
                f"what was searched ({inline(parameter.words)}). A better one may lie beyond it."
            )
    return hints


def _names(record: SweepRecord) -> list[str]:
    """The parameters, those of the space first; a trial may have others (of an older state of the file)."""
    return list(dict.fromkeys([*record.space, *(name for trial in record.trials for name in trial.parameters)]))


def _trials(record: SweepRecord) -> str:
    if not record.trials:
        return "None was started."
    names, rows = _names(record), []
    for place, trial in enumerate(ranked(record)[:SHOWN], start=1):
        number = Markup(f"**{trial.number}**") if place == 1 and has_value(trial) else trial.number
        share = reached(trial)
        last = trial.curve[-1][1] if trial.curve else None
        ended = trial.state if share is None or trial.state == "finished" else f"{trial.state} at {100 * share:.0f} %"
        given = [short(trial.parameters[name]) if name in trial.parameters else "" for name in names]
        final = _figure(trial.objective) if trial.state == "finished" else ""
        rows.append((number, *given, final, _figure(last), ended, format_duration(trial.seconds)))
    text = table(("trial", *map(inline, [*names, record.objective]), "last value on the way", "state", "time"), rows)
    if len(record.trials) > SHOWN:
        text += f"\n\nThe first {SHOWN} of {len(record.trials)}; `sweep_report.csv` has all."
    return text


def _time(record: SweepRecord) -> str:
    states = seconds_by_state(record.trials)
    if not states:
        return "No trial was started."
    whole = sum(seconds for _, seconds in states.values()) or 1.0
    rows = [
        (state, count, format_duration(seconds), f"{100 * seconds / whole:.0f} %", MEANING[state])
        for state, (count, seconds) in states.items()
    ]
    return table(("state", "trials", "time", "share", ""), rows) + (
        "\n\nTimes are of whole trials, launch and evaluation included; where trials run beside each other they add up to more "
        "than the sweep took."
    )


def _importance(shares: Mapping[str, float], why_not: str | None) -> str:
    if not shares:
        return f"Importance of the parameters: {inline(why_not)}."
    rows = [(name, f"{100 * share:.0f} %") for name, share in shares.items()]
    return (
        table(("parameter", "importance"), rows)
        + f"\n\nBy {METHOD} (Optuna): how differently the best trials (at most {100 * BEST:.0f} %) are spread over a parameter "
        "than all trials are. Pruned trials count as worse than every finished one. With few trials this is a hint."
    )


def _space(record: SweepRecord) -> str:
    text = table(("parameter", "searched"), [(p.name, p.words) for p in searched(record.space)])
    text += (
        "\n\nBase recipe: "
        + (inline(record.recipe) if record.recipe else "none, the defaults of train\\_mlm.py")
        + "."
    )
    fixed = public_recipe(record.fixed)
    if fixed:
        text += (
            " Fixed beside it: "
            + ", ".join(f"{inline(key)} {inline(short(given))}" for key, given in fixed.items())
            + "."
        )
    return text


def _failures(record: SweepRecord) -> str:
    failed = [trial for trial in ranked(record) if trial.state == "failed"]
    nameless = [trial for trial in record.trials if trial.state == "finished" and not has_value(trial)]
    lines = [
        f"- trial {t.number} ({inline(_parameters(t))}): {inline(t.error or 'no message')}; its log is {inline(t.folder)}.log"
        for t in failed
    ]
    lines += [
        f"- trial {t.number} ({inline(_parameters(t))}): finished, but its {inline(record.objective)} is no number"
        for t in nameless
    ]
    return "## Failed\n\n" + "\n".join(lines) if lines else ""


def _next(record: SweepRecord, found: Spread | None, output_dir: Path, best_file: str) -> str:
    if found is None:
        return ""
    recipe = str(output_dir / best_file)
    data = str(record.fixed.get("data_dir") or "DATA_DIR")
    budget = format_duration(record.time_per_trial_seconds)
    head = ["accelerate", "launch", "train_mlm.py", recipe, "--data_dir", data]
    again = [
        [
            *head,
            "--output_dir",
            str(output_dir / f"again-{seed}"),
            "--total_training_time",
            budget,
            "--seed",
            str(seed),
        ]
        for seed in NEW_SEEDS
    ]
    commands = "\n".join(shlex.join(command) for command in again)
    return (
        "## Next\n\n"
        f"`{best_file}` is the best trial as a recipe; it was found at {budget} per trial.\n\n"
        f"**The differences may be noise.** Each trial ran once, with one seed{_close(record)}. To see how far seeds alone "
        f"move the {inline(record.objective)}, train the best again with others (and the launch configuration of the sweep, "
        "`--config_file`), and compare their `run_report.json` with the table above:\n\n" + fence(commands, "bash")
    )


def _close(record: SweepRecord) -> str:
    """How far the second is behind, which is what seeds would have to be smaller than."""
    ends = finished(record)
    if len(ends) < 2:
        return ""
    behind = sign(record) * (value(ends[1]) - value(ends[0]))
    return f", and the second best is {behind:.4g} behind"


BEST_COLOUR, ENDED, PALE, FAILED, GREY = "#1f6f8b", "#8fb8c6", "#c3cad2", "#d1495b", "#6b7480"
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
    with png_figure(13, 5.6) as (figure, png):
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
    return png.getvalue()


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
        axes.plot(
            *zip(*points, strict=True), "o-", color=BEST_COLOUR, linewidth=2.8, markersize=4.5, zorder=5, label=label
        )
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
    axes.plot(
        at[0], value(ends[0]), "o", color=BEST_COLOUR, markersize=10, label=f"best: trial {ends[0].number}", zorder=4
    )
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
    axes.barh(range(len(names)), percent, color=BEST_COLOUR, height=0.6)
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


if TYPE_CHECKING:
    import optuna

CSV, MARKDOWN, PICTURE, BEST_RECIPE = "sweep_report.csv", "sweep_report.md", "sweep_report.png", "best_recipe.yaml"


def write_report(record: SweepRecord, study: optuna.Study, output_dir: Path) -> list[Path]:
    """Write the files into `output_dir`, each whole or not at all; returns those that were written.

    `study` gives the distributions of the parameters, by the numbers of the trials. Without a finished trial there is no
    `best_recipe.yaml`.

    Raises:
        OSError: a file cannot be written.
        RunError: the base recipe cannot be read any more; the other files are then written.
    """
    shares, why_not = importance(record, study)
    contents = {
        CSV: csv_text(record).encode(),
        MARKDOWN: markdown(record, shares, why_not, output_dir, BEST_RECIPE).encode(),
        PICTURE: draw(record, shares, why_not),
    }
    unreadable: Exception | None = None
    try:
        recipe = best_recipe_text(record, output_dir)
        contents |= {} if recipe is None else {BEST_RECIPE: recipe.encode()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        unreadable = error
    for name, content in contents.items():
        write_atomic(output_dir / name, content)
    if unreadable is not None:
        said = " ".join(str(unreadable).split())
        raise RunError(
            f"recipe: {record.recipe} cannot be read any more ({said}), so there is no {BEST_RECIPE}; put it back"
        ) from unreadable
    return [output_dir / name for name in contents]


def csv_text(record: SweepRecord) -> str:
    """One row per trial, best first. Empty where a trial has no value; `rank` counts those with an objective."""
    names = list(dict.fromkeys([*record.space, *(name for trial in record.trials for name in trial.parameters)]))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = ["rank", "trial", "state", record.objective]
    columns = [name if name not in own else f"parameter {name}" for name in names]
    writer.writerow([*own, *columns, "share_reached", "last_value", "seconds", "folder", "error"])
    for rank, trial in enumerate(ranked(record), start=1):
        head = [rank if has_value(trial) else "", trial.number, trial.state]
        final = "" if trial.objective is None or trial.state != "finished" else trial.objective
        given = [_cell(trial.parameters.get(name, "")) for name in names]
        last = trial.curve[-1][1] if trial.curve else ""
        share = reached(trial)
        tail = ["" if share is None else share, last, round(trial.seconds, 1), trial.folder]
        writer.writerow([*head, final, *given, *tail, " ".join((trial.error or "").split())])
    return stream.getvalue()


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
