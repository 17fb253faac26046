"""Shows what a data folder holds: its facts, blocks as text, lengths, frequent tokens; checks it with --verify.

    python -m data_prep.inspect data/blocks --samples 3 --output_dir out/inspect

With --output_dir the figures are written to inspect.json and the lengths drawn in inspect.png.
"""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import json_types
from budget_trainer.core.output import png_figure
from data_prep import losses
from data_prep.cli import Output, Parser, command
from data_prep.folders import FinishedFolder

_FRAME = ("pad", "cls", "sep")  # tokens that stand for no text


def _inspect(
    folder: FinishedFolder, split: str, max_rows: int | None, samples: int, seed: int
) -> tuple[dict[str, Any], list[_Lengths]]:
    """The figures of a split, as inspect.json has them, and the lengths in `max_rows` evenly spaced rows (None: all).
    samples: how many rows, drawn by `seed` and numbered as in training, through the files, to show as text."""
    manifest, entry = folder.manifest, folder.split(split)
    files = entry["files"]
    if not files:
        raise InputError(f"split {split}: data folder {folder.path} has no {split} rows; give --split train")
    layout, total = folder.layout(split), int(entry["rows"])
    reader = folder.reader(split, layout)
    tokenizer = Tokenizer.from_file(str(folder.path / manifest["tokenizer"]["folder"] / "tokenizer.json"))
    counts = _Counts(layout.length, folder.vocab_size, folder.special_ids, tuple(layout.dtypes))
    number = min(total, max_rows or total)
    with tqdm(desc="counting", total=number, unit=" rows", disable=None) as progress:
        for part in layout.parts(number):
            counts.add(reader.take(part * total // number))
            progress.update(len(part))
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(samples, total), replace=False))
    ends = np.cumsum([file["rows"] for file in files])
    shown = []
    for row in chosen.tolist():
        found = {name: values[0] for name, values in reader.take(np.array([row])).items()}
        file = files[int(np.searchsorted(ends, row, side="right"))]["name"]
        shown.append({"row": row, "file": file, **_sample(found, tokenizer, folder.special_ids)})
    rows = [file["rows"] for file in files]
    figures = {
        "data_dir": str(folder.path),
        "split": split,
        "packing": manifest["packing"] if split == "train" else "one_document",  # as the pinned evaluation cuts
        "block_size": layout.length,
        "vocab_size": folder.vocab_size,
        "dtype": manifest["dtype"],
        "columns": list(layout.dtypes),
        **{name: entry[name] for name in ("rows", "tokens", "documents", "text_bytes")},
        "shards": len(rows),
        "rows_per_shard": {"min": min(rows), "max": max(rows)},
        "file_bytes": sum(file["bytes"] for file in files),
        "validation_rows": manifest["splits"]["validation"]["rows"],
        "validation": manifest["validation"],
        "sources": manifest["sources"],
        "losses": manifest.get("losses"),
        "made_by": manifest["command"],
        **_shares(folder, split, counts),
        "lengths": {name: lengths.summary() for name, lengths in counts.lengths.items()},
        "histograms": {name: lengths.seen() for name, lengths in counts.lengths.items()},
        "top_tokens": [
            {"id": token, "token": tokenizer.id_to_token(token), "count": count, "share": count / counts.text_tokens}
            for token, count in counts.most_frequent(20)
        ],
        "samples": shown,
    }
    return figures, list(counts.lengths.values())


def _shares(folder: FinishedFolder, split: str, counts: _Counts) -> dict[str, Any]:
    """What the counted rows say of the whole split; None for what cannot be said. Bytes and characters per token are of the
    documents' text, white space included, where every token counts once: not what was repeated to fill the last block, nor
    random second segments. Characters follow from validation.txt. Validation leaves pieces out, so it has no such figures."""
    entry, unknown = folder.split(split), folder.special_ids.get("unk")
    own = counts.own_text_tokens * entry["rows"] / counts.rows - entry.get("filled", 0)
    per_token = entry["text_bytes"] / own if split == "train" and own > 0 else None
    text, ratio = folder.split("validation").get("text"), None
    if text and (folder.path / text["name"]).is_file():
        with (folder.path / text["name"]).open(encoding="utf-8", errors="replace", newline="\n") as lines:
            ratio = sum(map(len, lines)) / max(1, int(text["bytes"]))
    return {
        "rows_counted": counts.rows,
        "padding_share": 1 - counts.tokens / (counts.rows * counts.length),
        "unknown_rate": None if unknown is None else int(counts.frequency[unknown]) / counts.text_tokens,
        "random_pairs_share": int(counts.labels[1]) / counts.rows if counts.labels.any() else None,
        "tokens_per_byte": 1 / per_token if per_token else None,
        "bytes_per_token": per_token,
        "characters_per_token": per_token * ratio if per_token and ratio else None,
    }


class _Lengths:
    """How often each whole number up to `longest` was seen: of `unit`, in each of `things`. counts [longest + 1]."""

    def __init__(self, title: str, unit: str, things: str, longest: int) -> None:
        self.title, self.unit, self.things = title, unit, things
        self.counts = np.zeros(longest + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        self.counts += np.bincount(values.ravel(), minlength=len(self.counts))

    def seen(self) -> dict[int, int]:
        return {int(value): int(self.counts[value]) for value in np.flatnonzero(self.counts)}

    def summary(self) -> dict[str, float]:
        """number (how many were counted), mean, min, p5, p25, median, p75, p95, max; number alone where it is 0. A percentile
        is the smallest value that at least so many per cent do not exceed."""
        number = int(self.counts.sum())
        if not number:
            return {"number": 0}
        percentiles = {"p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95}
        ranks = [-(-percent * number // 100) for percent in percentiles.values()]
        found = np.searchsorted(np.cumsum(self.counts), ranks).tolist()
        values = np.flatnonzero(self.counts)
        mean = float(self.counts @ np.arange(len(self.counts))) / number
        middle = dict(zip(percentiles, found, strict=True))
        return {"number": number, "mean": mean, "min": int(values[0]), **middle, "max": int(values[-1])}


class _Counts:
    """Of rows of `length` positions that have `columns`: frequency [vocabulary] of the tokens; labels [2] of sentence pairs;
    own_text_tokens: those that stand for text, but for random second segments, whose text is in other rows as well."""

    def __init__(self, length: int, vocab_size: int, special_ids: Mapping[str, int], columns: Sequence[str]) -> None:
        self.length = length
        self.rows = self.own_text_tokens = 0
        self.frequency = np.zeros(vocab_size, np.int64)
        self.labels = np.zeros(2, np.int64)
        self._pad, self._frame = special_ids["pad"], [special_ids[role] for role in _FRAME]
        kinds = {"tokens_per_block": ("Length of a block", "tokens, special ones included", "blocks")}
        text = "tokens of text"
        if "document_ids" in columns:
            kinds["documents_per_block"] = ("Documents in a block", "documents", "blocks")
            kinds["tokens_per_piece"] = ("Piece of a document in a block", text, "pieces")
        if "token_type_ids" in columns:
            kinds["tokens_of_a"] = ("First segment of a pair (A)", text, "pairs")
            kinds["tokens_of_b"] = ("Second segment of a pair (B)", text, "pairs")
        self.lengths = {name: _Lengths(*about, length) for name, about in kinds.items()}

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.frequency.sum() - self.frequency[self._pad])

    @property
    def text_tokens(self) -> int:
        """Tokens that stand for text, unknown ones among them: at least 1, to divide by."""
        return max(1, int(self.frequency.sum() - self.frequency[self._frame].sum()))

    def most_frequent(self, number: int) -> list[tuple[int, int]]:
        """(token id, how often) of the most frequent tokens that stand for text."""
        text = self.frequency.copy()
        text[self._frame] = 0
        order = np.argsort(-text, kind="stable")[:number]
        return [(int(token), int(text[token])) for token in order if text[token]]

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Counts rows: int64 [n, L] per column, labels [n]. InputError: numbers that no data folder holds."""
        ends = {"input_ids": len(self.frequency), "document_ids": self.length}
        for column, end in {**ends, "token_type_ids": 2, "next_sentence_label": 2}.items():
            if column in rows and (largest := rows[column].max(initial=0)) >= end:
                fix = "find the damaged file with --verify and copy it again"
                raise InputError(f"column {column} holds {largest}, but {end - 1} is the largest that can be; {fix}")
        ids = rows["input_ids"]
        self.rows += len(ids)
        self.frequency += np.bincount(ids.ravel(), minlength=len(self.frequency))
        self.lengths["tokens_per_block"].add((ids != self._pad).sum(axis=1))
        own = text = ~np.isin(ids, self._frame)
        if "document_ids" in rows:
            documents = rows["document_ids"]
            self.lengths["documents_per_block"].add(documents[:, -1] + 1)
            piece = documents + np.arange(len(documents))[:, None] * self.length
            sizes = np.bincount(piece[text])
            self.lengths["tokens_per_piece"].add(sizes[sizes > 0])  # a document's last [SEP] alone is no piece
        if "token_type_ids" in rows:
            second, labels = rows["token_type_ids"] == 1, rows["next_sentence_label"]
            self.lengths["tokens_of_a"].add((text & ~second).sum(axis=1))
            self.lengths["tokens_of_b"].add((text & second).sum(axis=1))
            self.labels += np.bincount(labels, minlength=2)
            own = text & ~(second & (labels == 1)[:, None])
        self.own_text_tokens += int(own.sum())


def _sample(row: Mapping[str, np.ndarray], tokenizer: Any, special_ids: Mapping[str, int]) -> dict[str, Any]:
    """One row (its columns [L], a label []) as text: tokens (without padding), label of a pair, and parts (documents,
    segments A and B, or all) with their text."""
    ids = row["input_ids"]
    if "document_ids" in row:
        documents = row["document_ids"]
        parts = [(f"document {d + 1}", documents == d) for d in range(int(documents[-1]) + 1)]
    elif "token_type_ids" in row:
        parts = [(name, row["token_type_ids"] == number) for number, name in enumerate("AB")]
    else:
        parts = [("text", np.ones(len(ids), bool))]
    text = ~np.isin(ids, [special_ids[role] for role in _FRAME])
    shown = []
    for name, inside in parts:
        own = ids[text & inside].tolist()
        shown.append({"name": name, "tokens": len(own), "text": tokenizer.decode(own, skip_special_tokens=False)})
    label = int(row["next_sentence_label"]) if "next_sentence_label" in row else None
    return {"tokens": int((ids != special_ids["pad"]).sum()), "label": label, "parts": shown}


def _fact_lines(figures: Mapping[str, Any]) -> list[str]:
    shards, counted = figures["rows_per_shard"], figures["rows_counted"]
    spread = f"{shards['min']:,}" if shards["min"] == shards["max"] else f"{shards['min']:,} to {shards['max']:,}"
    every = "all" if counted == figures["rows"] else f"{counted:,} evenly spaced"
    held = figures["validation"]
    what = f"the ends of {held['ends']:,} documents" if "ends" in held else f"{held['fraction']:.4g} of the documents"
    given = f" of {held['text']}" if held["text"] else f", held out: {what}"
    facts = {
        "packing": f"{figures['packing']}, columns {', '.join(figures['columns'])}",
        "vocabulary": f"{figures['vocab_size']:,} tokens, stored as {figures['dtype']}",
        "rows": f"{figures['rows']:,} blocks of {figures['block_size']} positions",
        "shards": f"{figures['shards']:,} of {spread} rows, {figures['file_bytes'] / 1e6:,.1f} MB",
        "tokens": f"{figures['tokens']:,}, [CLS] and [SEP] included",
        "documents": f"{figures['documents']:,} with {figures['text_bytes']:,} bytes of text",
        "validation": f"{figures['validation_rows']:,} blocks{given}",
        "made by": figures["made_by"],
        "counted here": f"{every} rows",
        "padding": f"{figures['padding_share']:.2%} of the positions",
    }
    if per_token := figures["bytes_per_token"]:
        facts["bytes per token"] = f"{per_token:.2f} ({figures['tokens_per_byte']:.3f} tokens per byte)"
    if figures["characters_per_token"]:
        facts["characters"] = f"{figures['characters_per_token']:.2f} per token, judging by validation.txt"
    if figures["unknown_rate"] is not None:
        facts["unknown tokens"] = f"{figures['unknown_rate']:.4%} of the tokens of text"
    if figures["random_pairs_share"] is not None:
        facts["random pairs"] = f"{figures['random_pairs_share']:.2%}"
    return [f"{figures['data_dir']}, {figures['split']}", *(f"  {name:<16}{value}" for name, value in facts.items())]


def _length_table(figures: Mapping[str, Any], lengths: Sequence[_Lengths]) -> list[str]:
    names = ("min", "p5", "p25", "median", "p75", "p95", "max")
    lines = [f"{'lengths':<61}{'mean':>9}" + "".join(f"{name:>8}" for name in names)]
    for what, summary in zip(lengths, figures["lengths"].values(), strict=True):
        values = "".join(f"{summary[name]:>8,}" for name in names) if summary["number"] else "  none"
        mean = f"{summary['mean']:>9,.1f}" if summary["number"] else ""
        lines.append(f"  {f'{what.title} ({what.unit})':<59}{mean}{values}")
    return lines


def _token_table(figures: Mapping[str, Any]) -> list[str]:
    cells = [f"{entry['token']:<14} {entry['share']:>6.2%}" for entry in figures["top_tokens"]]
    lines = ["  " + "   ".join(cells[start : start + 4]) for start in range(0, len(cells), 4)]
    return ["most frequent tokens, share of the tokens of text", *lines]


def _sample_lines(sample: Mapping[str, Any]) -> list[str]:
    label = {None: "", 0: ", label 0: B follows A", 1: ", label 1: B is from another document"}[sample["label"]]
    lines = [f"row {sample['row']:,} ({sample['file']}), {sample['tokens']} tokens{label}"]
    for part in sample["parts"]:
        text = part["text"] if part["tokens"] else "(its closing [SEP] only)"
        head = f"  {part['name']} | "
        lines.append(textwrap.fill(text, 110, initial_indent=head, subsequent_indent=" " * (len(head) - 2) + "| "))
    return lines


def _draw(figures: Mapping[str, Any], lengths: Sequence[_Lengths], file: Path) -> None:
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


def _histogram(axes: Any, kind: _Lengths) -> None:
    """Bars that end at the largest length, so that full blocks are not in a bar of their own by chance."""
    seen, summary = kind.seen(), kind.summary()
    low, high = min(seen), max(seen)
    width = -(-(high - low + 1) // 60)  # bars at most
    edges = high + 0.5 - width * np.arange(-(-(high - low + 1) // width), -1, -1)
    shares = np.array(list(seen.values())) * 100 / summary["number"]
    axes.hist(list(seen), bins=edges, weights=shares, color="#3b6ea5", rwidth=0.9)
    median = summary["median"]
    axes.axvline(median, color="#c2543d", linestyle="--", linewidth=1.5, label=f"median {median}")
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
    axes.spines[["top", "right"]].set_visible(False)


@command
def main(argv: list[str] | None) -> None:
    """The command line."""
    parser = Parser("inspect", __doc__)
    add = parser.add_argument
    add("data_dir", type=Path, help="a data folder")
    add("--split", choices=("train", "validation"), default="train", help="which rows to look at")
    add("--samples", type=int, default=5, help="random blocks to show as text")
    add("--seed", type=int, default=0, help="of the draw of these blocks")
    add("--max_rows", type="count", default=None, help="count so many evenly spaced rows only; without it all")
    add("--verify", action="store_true", help="compare every file with its checksum first; exit code 2 if one differs")
    add("--output_dir", type=Path, default=None, help="write inspect.json and inspect.png into this new folder")
    add("--overwrite", action="store_true", help="replace an existing --output_dir of this command")
    args = parser.parse(argv)
    for name in ("samples", "seed"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} {getattr(args, name)}: give 0 or more")
    with contextlib.ExitStack() as stack:
        target = None
        if args.output_dir is not None:
            output = Output(args.output_dir, args.overwrite, "inspection")
            target = stack.enter_context(output.new([args.data_dir]))
        folder = FinishedFolder.open(args.data_dir)
        if args.verify:
            print(f"{args.data_dir}: all {folder.check_all()} files match their checksums")
        figures, lengths = _inspect(folder, args.split, args.max_rows, args.samples, args.seed)
        if target is not None:
            content = json_types({**figures, "command": args.command_line})
            content = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
            (target / "inspect.json").write_text(content + "\n", encoding="utf-8")
            _draw(figures, lengths, target / "inspect.png")
    sections = [
        _fact_lines(figures),
        *filter(None, [losses.lines(folder.manifest)]),
        _length_table(figures, lengths),
        _token_table(figures),
    ]
    sections += map(_sample_lines, figures["samples"])
    print("\n\n".join("\n".join(lines) for lines in sections))


if __name__ == "__main__":
    sys.exit(main())
