"""What reports look like: Markdown that stays valid whatever the values hold, and the style of all pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Markup(str):
    """Text that is Markdown already, which `inline` leaves as it is."""

    __slots__ = ()


def inline(value: Any) -> str:
    """One line in which nothing is Markdown or HTML, whatever `value` says."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(str(value).split()))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([inline(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fence(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"


_STYLE: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 11, "axes.labelcolor": "#22303c", "text.color": "#22303c"}
_STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa3ad"}
_STYLE |= {"axes.grid": True, "grid.color": "#e8ebef", "axes.axisbelow": True}
_STYLE |= {"text.parse_math": False}  # a name may hold a dollar sign


@contextmanager
def png_figure(width: float, height: float) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure of `width` x `height` inches, and the stream that holds its PNG after the block.

    Equal figures give equal bytes: neither a date nor a version goes into the file.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    png = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
        FigureCanvasAgg(figure)
        yield figure, png
        figure.savefig(png, format="png", metadata={"Software": None})
