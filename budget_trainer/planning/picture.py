"""`plan.png`: learning rate and stages over the time of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget_trainer.clock import format_duration

COLOURS = {"setup": "#8d99ae", "learning_rate": "#1f6f8b", "stages": "#d1495b"}
TITLES = {"batch_size": "blocks per step", "mlm_probability": "masking rate", "sequence_length": "tokens per sequence"}


def draw_plan(plan: Mapping[str, Any], path: Path) -> None:
    """Draw the schedule of `plan`; a panel for each thing that changes along it. Raises OSError where it cannot be written."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = plan["schedule"]
    last = points[-1]["elapsed_seconds"]
    unit, name = (3600.0, "hours") if last > 3 * 3600 else (60.0, "minutes") if last > 120 else (1.0, "seconds")
    at = [point["elapsed_seconds"] / unit for point in points]
    changing = [key for key in TITLES if len({point[key] for point in points}) > 1]
    style: dict[Any, Any] = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context({**style, "axes.grid": True, "grid.color": "#e8ebef", "text.parse_math": False}):
        figure = Figure(figsize=(10, 3.6 + 1.6 * len(changing)), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
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
        figure.savefig(path, format="png")
