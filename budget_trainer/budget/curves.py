"""Learning-rate curves: pure functions from progress in [0, 1], of time or steps, to a multiplier in [0, 1].

A curve never sees a step counter, so skipped steps, accumulation and repeated calls cannot bend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature

from budget_trainer.core.errors import InputError

Curve = Callable[[float], float]
_DECAY_PROPORTION = 0.4  # of wsd


def linear(progress: float) -> float:
    """From 1 to 0 (the paper's curve)."""
    return 1.0 - progress


def _cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(progress: float) -> float:
    """1 to the end."""
    return 1.0


def _exp(progress: float, decay_rate: float = 0.01, decay_step: float = 1.0) -> float:
    """`decay_rate ** (progress / decay_step)`: multiplied by `decay_rate` once every `decay_step` of the progress."""
    return decay_rate ** (progress / decay_step)


def _wsd(progress: float, decay_proportion: float = _DECAY_PROPORTION, decay_shape: str = "sqrt") -> float:
    """Warmup-stable-decay: 1, then over the last `decay_proportion` down to 0, as 1 - sqrt(x) or linearly."""
    into = (progress - (1.0 - decay_proportion)) / decay_proportion
    if into <= 0.0:
        return 1.0
    return 1.0 - (math.sqrt(into) if decay_shape == "sqrt" else into)


def _inverse_sqrt(progress: float, timescale: float = 0.05) -> float:
    """`1 / sqrt(1 + progress / timescale)`: no end in sight, for runs that may be prolonged."""
    return 1.0 / math.sqrt(1.0 + progress / timescale)


def _one_cycle(progress: float, peak: float = 0.5) -> float:
    """Linear from 0 to 1 at `peak`, then linear to 0 (a triangle, as in Cramming)."""
    return progress / peak if progress < peak else (1.0 - progress) / (1.0 - peak)


CURVES: dict[str, Callable[..., float]] = {
    "linear": linear,
    "exp": _exp,
    "cosine": _cosine,
    "constant": _constant,
    "inverse_sqrt": _inverse_sqrt,
    "one_cycle": _one_cycle,
    "wsd": _wsd,
}


def make_curve(name: str, warmup_proportion: float = 0.0, **options: float | str) -> Curve:
    """The curve `name` behind a linear warmup over the first `warmup_proportion` of the progress.

    `options` go to the curve (`decay_rate`, `decay_step`, `decay_proportion`, `decay_shape`, ...). wsd's decay is a
    share of the whole progress; the other curves run over what the warmup leaves. Raises InputError for an unknown
    name, for options that are not this curve's and for proportions outside of [0, 1).
    """
    decay, shape = float(options.get("decay_proportion", _DECAY_PROPORTION)), options.get("decay_shape", "sqrt")
    if name not in CURVES:
        raise InputError(f"curve: {name!r} is unknown; choose one of {', '.join(sorted(CURVES))}")
    if not 0.0 <= warmup_proportion < 1.0:
        raise InputError(f"warmup_proportion: {warmup_proportion!r} is not in [0, 1); give a share such as 0.06")
    for option in ("decay_rate", "decay_step", "decay_proportion", "timescale"):
        if option in options and not float(options[option]) > 0.0:
            raise InputError(f"{option}: {options[option]!r} is not above zero; give a positive number")
    if name == "wsd" and decay + warmup_proportion > 1.0:
        raise InputError(
            f"decay_proportion: {decay!r} and warmup_proportion {warmup_proportion!r} exceed 1; lower one"
        )
    if shape not in ("sqrt", "linear"):
        raise InputError(f"decay_shape: {shape!r} is unknown; choose sqrt or linear")
    function = CURVES[name]
    known = list(signature(function).parameters)[1:]
    if unknown := sorted(options.keys() - known):
        raise InputError(f"{unknown[0]}: the curve {name} has no such option; it has {', '.join(known) or 'none'}")

    def curve(progress: float) -> float:
        progress = min(max(progress, 0.0), 1.0)
        if progress < warmup_proportion:
            return progress / warmup_proportion
        if name != "wsd":  # its decay is counted from the end
            progress = (progress - warmup_proportion) / (1.0 - warmup_proportion)
        return function(progress, **options)

    return curve
