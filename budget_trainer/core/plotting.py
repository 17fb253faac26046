"""The style of all pictures. Matplotlib is imported only where one is drawn."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DARK = "#22303c"  # of all text
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.grid": True,
    "grid.color": "#e8ebef",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.labelcolor": DARK,
    "text.color": DARK,
    "text.parse_math": False,  # a name may hold a dollar sign
}


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
