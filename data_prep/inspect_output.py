"""What data_prep.inspect shows: lines for the terminal, blocks as text, a picture of the lengths."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from budget_trainer.core.plotting import png_figure
from data_prep.counting import Lengths, parts_of_row

WIDTH = 110
MAX_BARS = 60
_BAR, _LINE = "#3b6ea5", "#c2543d"
_LABELS = ("B follows A", "B is from another document")


def sample_of(row: Mapping[str, np.ndarray], tokenizer: Any, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """One row (its columns [L], a label []) as text: tokens (without padding), label of a pair, parts with their text."""
    tokens = int((row["input_ids"] != special_ids["pad"]).sum())
    label = int(row["next_sentence_label"]) if "next_sentence_label" in row else None
    parts = [
        {"name": name, "tokens": len(ids), "text": tokenizer.decode(ids.tolist(), skip_special_tokens=False)}
        for name, ids in parts_of_row(row, special_ids)
    ]
    return {"tokens": tokens, "label": label, "parts": parts}


def printed(figures: Mapping[str, Any], lengths: Sequence[Lengths]) -> str:
    """All figures for the terminal."""
    sections = ["\n".join(_facts(figures)), "\n".join(_length_table(figures, lengths)), _tokens(figures)]
    return "\n\n".join([*sections, *(_sample(sample) for sample in figures["samples"])])


def _facts(figures: Mapping[str, Any]) -> list[str]:
    shards, counted = figures["rows_per_shard"], figures["rows_counted"]
    spread = f"{shards['min']:,}" if shards["min"] == shards["max"] else f"{shards['min']:,} to {shards['max']:,}"
    every = "all" if counted == figures["rows"] else f"{counted:,} evenly spaced"
    facts = {
        "packing": f"{figures['packing']}, columns {', '.join(figures['columns'])}",
        "vocabulary": f"{figures['vocab_size']:,} tokens, stored as {figures['dtype']}",
        "rows": f"{figures['rows']:,} blocks of {figures['block_size']} positions",
        "shards": f"{figures['shards']:,} of {spread} rows, {figures['file_bytes'] / 1e6:,.1f} MB",
        "tokens": f"{figures['tokens']:,}, [CLS] and [SEP] included",
        "documents": f"{figures['documents']:,} with {figures['text_bytes']:,} bytes of text",
        "validation": f"{figures['validation_rows']:,} blocks{_held_out(figures['validation'])}",
        "made by": figures["made_by"],
        "counted here": f"{every} rows",
        "padding": f"{figures['padding_share']:.2%} of the positions",
    }
    if figures["bytes_per_token"]:
        facts["bytes per token"] = (
            f"{figures['bytes_per_token']:.2f} ({figures['tokens_per_byte']:.3f} tokens per byte)"
        )
    if figures["characters_per_token"]:
        facts["characters"] = f"{figures['characters_per_token']:.2f} per token, judging by validation.txt"
    if figures["unknown_rate"] is not None:
        facts["unknown tokens"] = f"{figures['unknown_rate']:.4%} of the tokens of text"
    if figures["random_pairs_share"] is not None:
        facts["random pairs"] = f"{figures['random_pairs_share']:.2%}"
    return [f"{figures['data_dir']}, {figures['split']}", *(f"  {name:<16}{value}" for name, value in facts.items())]


def _held_out(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return ""
    if validation["text"]:
        return f" of {validation['text']}"
    return f", held out: {validation['fraction']:.4g} of the documents"


def _length_table(figures: Mapping[str, Any], lengths: Sequence[Lengths]) -> list[str]:
    names = ("min", "p5", "p25", "median", "p75", "p95", "max")
    lines = [f"{'lengths':<61}{'mean':>9}" + "".join(f"{name:>8}" for name in names)]
    for what, summary in zip(lengths, figures["lengths"].values(), strict=True):
        values = "".join(f"{summary[name]:>8,}" for name in names) if summary["number"] else "  none"
        mean = f"{summary['mean']:>9,.1f}" if summary["number"] else ""
        lines.append(f"  {f'{what.title} ({what.unit})':<59}{mean}{values}")
    return lines


def _tokens(figures: Mapping[str, Any]) -> str:
    cells = [f"{entry['token']:<14} {entry['share']:>6.2%}" for entry in figures["top_tokens"]]
    lines = ["   ".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]
    return "\n  ".join(["most frequent tokens, share of the tokens of text", *lines])


def _sample(sample: Mapping[str, Any]) -> str:
    label = "" if sample["label"] is None else f", label {sample['label']}: {_LABELS[sample['label']]}"
    lines = [f"row {sample['row']:,} ({sample['file']}), {sample['tokens']} tokens{label}"]
    for part in sample["parts"]:
        text = part["text"] if part["tokens"] else "(its closing [SEP] only)"
        head = f"  {part['name']} | "
        lines.append(textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * (len(head) - 2) + "| "))
    return "\n".join(lines)


def draw(figures: Mapping[str, Any], lengths: Sequence[Lengths], file: Path) -> None:
    """Writes a PNG with one histogram for each kind of length; one that is the same everywhere is said in words."""
    drawn = [kind for kind in lengths if len(kind.seen()) > 1] or [lengths[0]]
    counted, rows = figures["rows_counted"], figures["rows"]
    which = f"all {rows:,}" if counted == rows else f"{counted:,} of {rows:,}"
    facts = f"{which} blocks of {figures['block_size']} positions"
    if lengths[0] not in drawn:
        facts += f", each with {next(iter(lengths[0].seen()))} tokens"
    name = textwrap.shorten(Path(figures["data_dir"]).resolve().name, 40 * len(drawn), placeholder="...")
    with png_figure(2.5 + 4.5 * len(drawn), 5) as (figure, png):
        figure.suptitle(f"{name} ({figures['split']}, packing: {figures['packing']})\n{facts}", fontsize=12)
        for axes, kind in zip(np.ravel(figure.subplots(1, len(drawn), squeeze=False)), drawn, strict=True):
            _histogram(axes, kind)
    file.write_bytes(png.getvalue())


def _histogram(axes: Any, kind: Lengths) -> None:
    """Bars that end at the largest length, so that full blocks are not in a bar of their own by chance."""
    seen, summary = kind.seen(), kind.summary()
    low, high = min(seen), max(seen)
    width = -(-(high - low + 1) // MAX_BARS)
    edges = high + 0.5 - width * np.arange(-(-(high - low + 1) // width), -1, -1)
    shares = np.array(list(seen.values())) * 100 / summary["number"]
    axes.hist(list(seen), bins=edges, weights=shares, color=_BAR, rwidth=0.9)
    axes.axvline(summary["median"], color=_LINE, linestyle="--", linewidth=1.5, label=f"median {summary['median']}")
    steep = len(seen) > 8 and shares.max() > 50  # one bar would hide the others
    if steep:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(kind.title, loc="left", fontsize=11)
    axes.set_xlabel(kind.unit)
    bars = f" in bars {width} wide" if width > 1 else ""
    axes.set_ylabel(f"% of the {kind.things}{bars}{', logarithmic' if steep else ''}")
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
