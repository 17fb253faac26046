"""What a budget will buy on this machine: a probe and a prediction, and how low models of several sizes come.

The probe measures on the run's own objects for a minute, the prediction lets the run's own callbacks decide on a fake clock.
The command is `python -m budget_trainer.plan`. Of sizes it knows what a fit of many short runs says: `size_fit.json` beside
this file, which benchmarks/size_fit.py writes from runs of one recipe on one text. Without it, it knows nothing of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer.core.errors import InputError

REPORT_FILE = "report.pickle"  # by which the probe speaks to that command
SIZE_FIT = Path(__file__).with_name("size_fit.json")
SIZE_FIT_FORMAT = 1
MILLION = 1e6
_TEXTS = ("recipe", "model_type", "text", "hardware", "made_at")
_NUMBERS = ("runs", "residual_rms", "leave_one_out_rms")
_EDGE = 0.03  # beyond its range: what layers x width^2 leaves out, norms and biases, is 0.3 % of cpu_10m at 128 wide


def _additive(n: Any, d: Any, E: float, A: float, alpha: float, B: float, beta: float) -> Any:
    return E + A / n**alpha + B / d**beta


def _joint(n: Any, d: Any, A: float, alpha: float, B: float, beta: float) -> Any:
    return ((A / n**alpha) ** (1 / beta) + (B / d**beta) ** (1 / beta)) ** beta


def _quadratic(n: Any, d: Any, c: float, c_n: float, c_d: float, c_nn: float, c_nd: float, c_dd: float) -> Any:
    x, y = np.log(n), np.log(d)
    return np.exp(c + c_n * x + c_d * y + c_nn * x * x + c_nd * x * y + c_dd * y * y)


# Bits per byte of N and D in millions (numbers or arrays) and the coefficients, which are the other parameters.
FORMS: dict[str, Callable[..., Any]] = {
    "additive": _additive,  # equation 2 of Hoffmann et al. 2022, arXiv 2203.15556
    "joint": _joint,  # equation 1.5 of Kaplan et al. 2020, arXiv 2001.08361, with A = N_c^alpha_N, B = D_c^alpha_D
    "quadratic": _quadratic,  # of the logarithms: no law, a surface through the runs
}


@dataclass(frozen=True)
class SizeFit:
    """Bits per byte by N, the parameters of the layers, and D, the tokens trained; `content` is what the file holds.

    It holds where N, D and N x D lie between the least and the most of the runs, or _EDGE beyond: of the last because at one
    budget large models see few tokens, so that no run was large or small in both.
    """

    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path | None = None) -> SizeFit | None:
        """The fit in `path` (SIZE_FIT); None where there is no such file. InputError where it is damaged."""
        path = path or SIZE_FIT
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != SIZE_FIT_FORMAT:
                raise ValueError(f"format {content['format']!r}, this version reads {SIZE_FIT_FORMAT}")
            for low, high in (content["range"][name] for name in ("body_parameters", "tokens", "product")):
                if not 0 < low <= high < math.inf:
                    raise ValueError(f"range {low} to {high}")
            fit, limits = cls(content), content["range"]
            corners = [fit.bits_per_byte(n, d) for n in limits["body_parameters"] for d in limits["tokens"]]
            texts, numbers = [content[name] for name in _TEXTS], [content[name] for name in _NUMBERS]
            numbers += [fit.slope(compiled) for compiled in (False, True)]
            if not all(isinstance(text, str) for text in texts) or not all(map(math.isfinite, [*numbers, *corners])):
                raise ValueError("a text or a number is missing")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            said = " ".join(repr(error).split())[:120]
            fix = "make it with benchmarks/size_fit.py --write, or delete it"
            raise InputError(f"size_fit: {path} is not a fit of sizes ({said}); {fix}") from None
        return fit

    def bits_per_byte(self, body_parameters: float, tokens: float) -> float:
        form = FORMS[self.content["form"]]
        return float(form(body_parameters / MILLION, tokens / MILLION, **self.content["coefficients"]))

    def slope(self, compiled: bool) -> float:
        """Of the logarithm of tokens/s against that of FLOPs per token; of the other steps where the fit knows only those."""
        slopes: Mapping[str, float] = self.content["slopes"]
        name = "compiled" if compiled else "eager"
        return slopes[name if name in slopes else min(slopes)]

    def covers(self, model_type: str, body_parameters: float, tokens: float | None = None) -> bool:
        """Whether it holds there: runs of that model type were as large and as long, and larger and longer; None: for any."""
        given = {"body_parameters": body_parameters}
        if tokens is not None:
            given |= {"tokens": tokens, "product": body_parameters * tokens}
        limits = [(*self.content["range"][name], value) for name, value in given.items()]
        inside = all((1 - _EDGE) * low <= value <= (1 + _EDGE) * high for low, high, value in limits)
        return inside and model_type == self.content["model_type"]
