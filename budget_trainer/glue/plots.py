"""The pictures of the GLUE reports, as PNG bytes. They import matplotlib only where they draw."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from budget_trainer.card_markdown import without_folders
from budget_trainer.glue.results import METRIC_NAMES, in_order

OURS, GREY, DARK = "#1f6f8b", "#6b7480", "#22303c"
PUBLISHED = (("#d1495b", "s"), ("#edae49", "D"), ("#7b5ea7", "^"), ("#66a182", "v"), ("#b08968", "P"))
OUR_LEVEL = -0.18  # of a row: above what others have published
LINES = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#7b5ea7", "#b08968", "#3d8bfd", "#e07a5f", "#8d99ae", "#5a9a3c")


@contextmanager
def _picture(width: float, height: float) -> Iterator[tuple[Any, Any, io.BytesIO]]:
    """A figure, its axes, and the stream that holds the PNG afterwards. No date goes into it: equal data, equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"axes.edgecolor": "#9aa3ad", "axes.grid": True, "grid.color": "#e8ebef", "axes.axisbelow": True}
    style |= {"text.parse_math": False, "text.color": DARK, "axes.labelcolor": DARK}
    stream = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(), stream
        figure.savefig(stream, format="png", metadata={"Software": None})


def draw_report(report: Mapping[str, Any]) -> bytes:
    """Our median with the bar from lowest to highest seed, task by task, beside the published dev points."""
    ours, rows = report["columns"], report["published"]["dev"]
    names = in_order(ours, *(row["scores"] for row in rows))
    with _picture(11, 2.6 + 0.52 * len(names)) as (figure, axes, stream):
        _draw_ours(axes, names, ours)
        for number, row in enumerate(rows):
            _draw_published(axes, names, row, number, len(rows))
        labels = [_row_label(name, ours.get(name)) for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        lows = [100 * ours[name]["min"] for name in names if name in ours]
        lows += [100 * value for row in rows for value in row["scores"].values()]
        axes.set_xlim(min([*lows, 40.0]) - 4, 101)
        axes.grid(False, axis="y")
        for border in range(1, len(names)):
            axes.axhline(border - 0.5, color="#e8ebef", linewidth=0.8)
        axes.set_xlabel("points of 100 on the dev set")
        figure.suptitle(_title(report), fontsize=12, x=0.01, ha="left")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return stream.getvalue()


def _draw_ours(axes: Any, names: Sequence[str], ours: Mapping[str, Any]) -> None:
    labelled = False
    for place, name in enumerate(names):
        column, level = ours.get(name), place + OUR_LEVEL
        if column is None:
            axes.text(1.01, level, "not run", transform=axes.get_yaxis_transform(), va="center", color=GREY)
            continue
        median, low, high = (100 * column[part] for part in ("median", "min", "max"))
        axes.plot([low, high], [level, level], color=OURS, linewidth=4, alpha=0.35, solid_capstyle="round")
        label = None if labelled else "ours: median, lowest to highest seed"
        face = OURS if column["comparable"] else "white"
        axes.plot(median, level, "o", color=OURS, markerfacecolor=face, markersize=8, label=label)
        labelled = True
        seeds = f"{column['seeds']} seed" + ("s" if column["seeds"] != 1 else "")
        value = f"{median:.1f}" + (f"  ({low:.1f} to {high:.1f}, {seeds})" if column["seeds"] > 1 else f"  ({seeds})")
        axes.text(1.01, level, value, transform=axes.get_yaxis_transform(), va="center", color=OURS)


def _draw_published(axes: Any, names: Sequence[str], row: Mapping[str, Any], number: int, rows: int) -> None:
    """Hollow marks below ours, each row at its own height, so that equal scores can be told apart."""
    colour, marker = PUBLISHED[number % len(PUBLISHED)]
    level = 0.4 * (number + 0.5) / rows
    for stated in (True, False):
        places = [
            place
            for place, name in enumerate(names)
            if name in row["scores"] and stated == (name not in row["metric_not_stated"])
        ]
        axes.plot(
            [100 * row["scores"][names[place]] for place in places],
            [place + level for place in places],
            marker,
            color="none",
            markeredgecolor=colour,
            markeredgewidth=1.4,
            markersize=6.5,
            alpha=1.0 if stated else 0.35,
            label=row["name"] if stated else None,
        )


def _row_label(name: str, column: Mapping[str, Any] | None) -> str:
    if column is None:
        return name
    metric = METRIC_NAMES[column["metric"]]
    return f"{name}\n{metric}" + ("" if column["comparable"] else f", {column['rows']:,} rows only")


def _title(report: Mapping[str, Any]) -> str:
    found = report["mean"]
    lines = [f"GLUE dev scores of {without_folders(report['model'])}"]
    if found is not None:
        lines.append(f"mean of {', '.join(found['columns'])}: {100 * found['median']:.1f}")
    if any(not column["comparable"] for column in report["columns"].values()):
        lines.append("hollow circles: not all of the official dev rows, comparable with nothing else")
    if any(row["metric_not_stated"] for row in report["published"]["dev"]):
        lines.append("pale marks: the source does not say which metric; compare with care")
    return "\n".join(lines)


def draw_over_budget(report: Mapping[str, Any]) -> bytes:
    """Scores against minutes of pre-training: a line for each task with its bars, and the mean in black."""
    minutes = [checkpoint["minutes"] for checkpoint in report["checkpoints"]]
    lines, found = report["lines"], report["mean"]
    title = f"GLUE over the budget of {report['run']}\nmedian over seeds, bars from the lowest to the highest"
    if found is not None:
        title += f"\nmean of {', '.join(found['columns'])}"
    if report["partial"]:
        title += f"\nnot on all of the official dev rows: {', '.join(report['partial'])}"
    with _picture(11, 6.5) as (figure, axes, stream):
        drawn = []  # the last value, the handle and its words
        for number, (name, points) in enumerate(lines.items()):
            dash = "--" if name.endswith("-mm") else "-"  # lies on its twin
            handle = _draw_line(axes, minutes, points, LINES[number % len(LINES)], linestyle=dash, linewidth=1.6)
            drawn.append((_last(points), handle, f"{name}, {METRIC_NAMES[report['metrics'][name]]}"))
        drawn.sort(key=lambda entry: -entry[0])
        if found is not None:
            handle = _draw_line(axes, minutes, found["points"], "black", zorder=3, linewidth=3.2)
            drawn.insert(0, (_last(found["points"]), handle, "mean"))
        figure.legend(
            [handle for _, handle, _ in drawn],
            [f"{100 * last:.1f}  {words}" for last, _, words in drawn],
            title="last score",
            alignment="left",
            loc="outside right center",
            frameon=False,
        )
        axes.set_xlim(0, 1.04 * max(minutes))
        axes.set_xlabel("minutes of pre-training")
        axes.set_ylabel("points of 100 on the dev set")
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return stream.getvalue()


def _last(points: Sequence[Mapping[str, Any] | None]) -> float:
    return next((point["median"] for point in reversed(points) if point is not None), -1.0)


def _draw_line(
    axes: Any, minutes: Sequence[float], points: Sequence[Mapping[str, Any] | None], colour: str, **style: Any
) -> Any:
    """A line through the checkpoints that have the score, with a bar for its range; returns what a legend shows."""
    there = [(minute, point) for minute, point in zip(minutes, points, strict=True) if point is not None]
    middle = [100 * point["median"] for _, point in there]
    below = [100 * (point["median"] - point["min"]) for _, point in there]
    above = [100 * (point["max"] - point["median"]) for _, point in there]
    times = [minute for minute, _ in there]
    style |= {"elinewidth": 1.0, "capsize": 2.5, "marker": "o", "markersize": 4}
    return axes.errorbar(times, middle, yerr=[below, above], color=colour, **style)
