"""Which of several model sizes suits a budget: their FLOPs, the tokens they would see, and a rule that says how sure it is.

The rule: tokens per parameter (embeddings and head left out). Causal models are trained best at about 20 (Hoffmann et al.
2022, arXiv 2203.15556); for masked ones, which predict a part of the tokens, 10 to 100 times as many tokens per parameter were
found best (OptiBERT, EMNLP 2025, 2025.emnlp-main.1804). Both come from budgets far above a desk's. LOW to HIGH spans from the
first to the lower end of the second; the size nearest to its middle is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LOW, HIGH = 20.0, 200.0  # tokens per parameter
# (layers, width): tiny to large, of Turc et al. 2019 (arXiv 1908.08962) and Devlin et al. 2018 (arXiv 1810.04805).
SHAPES = ((2, 128), (4, 256), (4, 512), (8, 512), (12, 768), (24, 1024))
NEIGHBOURS = 2  # shapes on either side of the recipe's


def neighbours(layers: int, width: int) -> list[tuple[int, int]]:
    """The recipe's own shape and the NEIGHBOURS standard ones below and above it, by layers x width^2."""
    size = layers * width * width
    below = [shape for shape in SHAPES if shape[0] * shape[1] ** 2 < size][-NEIGHBOURS:]
    above = [shape for shape in SHAPES if shape[0] * shape[1] ** 2 > size][:NEIGHBOURS]
    return [*below, (layers, width), *above]


def heads_and_inner(width: int, own_width: int, own_heads: int, own_inner: int) -> tuple[int, int]:
    """Heads of the recipe's size and its ratio of the feed-forward block, for another width."""
    head = max(1, own_width // own_heads)
    heads = max(1, width // head)
    while width % heads:
        heads -= 1
    return heads, max(8, round(own_inner / own_width * width / 8) * 8)


def judge(shapes: Sequence[Mapping[str, Any]], tokens: float) -> list[dict[str, Any]]:
    """Each of `shapes` (`flops_per_token`, `body_parameters`, `own`: the recipe's) with the tokens it would see.

    By FLOPs: the own shape's `tokens` at the same FLOP/s. `tokens_per_parameter`, and `fits` where the rule names it.
    """
    own = next(shape for shape in shapes if shape["own"])
    rows = []
    for shape in shapes:
        seen = tokens * own["flops_per_token"] / shape["flops_per_token"]
        rows.append({**shape, "tokens": seen, "tokens_per_parameter": seen / shape["body_parameters"]})
    middle = math.log(math.sqrt(LOW * HIGH))
    nearest = min(rows, key=lambda row: abs(math.log(max(row["tokens_per_parameter"], 1e-9)) - middle))
    return [{**row, "suits": row is nearest} for row in rows]


def reasoning(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `judge` found, in words, with what is not known."""
    best = next(row for row in rows if row["suits"])
    ratio = best["tokens_per_parameter"]
    shape = f"{best['layers']} layers x {best['width']}"
    said = f"By tokens per parameter without embeddings, {shape} suits this budget best ({ratio:,.0f} per parameter"
    said += f"; {LOW:g} to {HIGH:g} is the aim)."
    if ratio < LOW:
        said += " Even the smallest here sees few tokens for its size."
    elif ratio > HIGH:
        said += " Even the largest here sees many tokens for its size."
    return said + (
        f" The {LOW:g} is that of causal models (Hoffmann et al. 2022), ten times that the lower end for masked ones"
        " (OptiBERT, EMNLP 2025). Sure to a factor of several at best: in budgets of minutes larger models than that did as"
        " well or better (recipes/README.md), and other sizes' tokens are by FLOPs, while small models reach a smaller share"
        " of a device. A sweep over the two best sizes at a tenth of the budget tells more."
    )
