"""Shows what a data folder holds: its facts, blocks as text, lengths, frequent tokens; checks it with --verify.

    python -m data_prep.inspect data/blocks --samples 3 --output_dir out/inspect

With --output_dir the figures are written to inspect.json and the lengths drawn in inspect.png.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder, Rows
from data_prep.cli import Parser, command_line, positive
from data_prep.counting import Counts
from data_prep.encoding import load_backend
from data_prep.folders import Layout, entries, open_folder, parts_of, refuse_overlap, verify
from data_prep.inspect_output import draw, printed, sample_of
from data_prep.manifest import written_aside

TOP_TOKENS = 20


def inspect(
    folder: DataFolder, split: str, max_rows: int | None, samples: int, seed: int
) -> tuple[dict[str, Any], Counts]:
    """The figures of a split, as inspect.json has them, and the counts that they were taken from.

    max_rows: look at so many evenly spaced rows; None: at all. samples: how many rows, drawn by `seed`, to show as text;
    they are numbered as in training, through the files. InputError: no rows, or files that cannot be read."""
    files = entries(folder, split)
    if not files:
        raise InputError(f"split {split}: data folder {folder.path} has no {split} rows; give --split train")
    layout, total = Layout.of(folder, split), int(folder.manifest["splits"][split]["rows"])
    reader = Rows([folder.path / entry["name"] for entry in files], layout.lengths, total)
    tokenizer = load_backend(str(folder.path / folder.manifest["tokenizer"]["folder"] / "tokenizer.json"))
    counts = _counted(folder, layout, reader, min(total, max_rows or total), total)
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(samples, total), replace=False))
    ends = np.cumsum([entry["rows"] for entry in files])
    shown = []
    for row in chosen.tolist():
        found = {name: values[0] for name, values in reader.take(np.array([row])).items()}
        file = files[int(np.searchsorted(ends, row, side="right"))]["name"]
        shown.append({"row": row, "file": file, **sample_of(found, tokenizer, folder.special_ids)})
    figures = {
        **_facts(folder, split, layout),
        **_shares(folder, split, counts),
        "lengths": {name: lengths.summary() for name, lengths in counts.lengths.items()},
        "histograms": {name: lengths.seen() for name, lengths in counts.lengths.items()},
        "top_tokens": [
            {"id": token, "token": tokenizer.id_to_token(token), "count": count, "share": count / counts.text_tokens}
            for token, count in counts.most_frequent(TOP_TOKENS)
        ],
        "samples": shown,
    }
    return figures, counts


def _counted(folder: DataFolder, layout: Layout, reader: Rows, number: int, total: int) -> Counts:
    counts = Counts(layout.length, folder.vocab_size, folder.special_ids, tuple(layout.dtypes))
    with tqdm(desc="counting", total=number, unit=" rows", disable=None) as progress:
        for part in parts_of(number, layout.length):
            counts.add(reader.take(part * total // number))
            progress.update(len(part))
    return counts


def _facts(folder: DataFolder, split: str, layout: Layout) -> dict[str, Any]:
    """What the manifest says of the folder and of the split."""
    manifest, said = folder.manifest, folder.manifest["splits"][split]
    rows = [entry["rows"] for entry in said["files"]]
    return {
        "data_dir": str(folder.path),
        "split": split,
        "packing": manifest["packing"] if split == "train" else "one_document",  # as the pinned evaluation cuts
        "block_size": layout.length,
        "vocab_size": folder.vocab_size,
        "dtype": manifest["dtype"],
        "columns": list(layout.dtypes),
        **{name: said[name] for name in ("rows", "tokens", "documents", "text_bytes")},
        "shards": len(rows),
        "rows_per_shard": {"min": min(rows), "max": max(rows)},
        "file_bytes": sum(entry["bytes"] for entry in said["files"]),
        "validation_rows": manifest["splits"]["validation"]["rows"],
        "validation": manifest.get("validation"),
        "sources": manifest["sources"],
        "made_by": manifest["command"],
    }


def _shares(folder: DataFolder, split: str, counts: Counts) -> dict[str, Any]:
    """What the counted rows say of the whole split; None for what cannot be said.

    Bytes and characters per token are of the documents' text, white space included, where every token counts once: not
    what was repeated to fill the last block, nor random second segments. The characters follow from the bytes and
    validation.txt. Validation leaves short pieces of its documents out, so it has no such figures."""
    said, unknown = folder.manifest["splits"][split], folder.special_ids.get("unk")
    own = counts.own_text_tokens * said["rows"] / counts.rows - said.get("filled", 0)
    per_token = said["text_bytes"] / own if split == "train" and own > 0 else None
    ratio = _characters_per_byte(folder)
    return {
        "rows_counted": counts.rows,
        "padding_share": 1 - counts.tokens / (counts.rows * counts.length),
        "unknown_rate": None if unknown is None else int(counts.frequency[unknown]) / counts.text_tokens,
        "random_pairs_share": int(counts.labels[1]) / counts.rows if counts.labels.any() else None,
        "tokens_per_byte": 1 / per_token if per_token else None,
        "bytes_per_token": per_token,
        "characters_per_token": per_token * ratio if per_token and ratio else None,
    }


def _characters_per_byte(folder: DataFolder) -> float | None:
    """Of the validation text; None where there is none."""
    text = folder.manifest["splits"]["validation"].get("text")
    if not text or not (folder.path / text["name"]).is_file():
        return None
    with (folder.path / text["name"]).open(encoding="utf-8", errors="replace", newline="\n") as lines:
        return sum(len(line) for line in lines) / max(1, int(text["bytes"]))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("inspect", __doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("data_dir", type=Path, help="a data folder")
    add("--split", choices=("train", "validation"), default="train", help="which rows to look at")
    add("--samples", type=int, default=5, help="random blocks to show as text")
    add("--seed", type=int, default=0, help="of the draw of these blocks")
    add("--max_rows", type=positive, default=None, help="count so many evenly spaced rows only; without it all")
    add("--verify", action="store_true", help="compare every file with its checksum first; exit code 2 if one differs")
    add("--output_dir", type=Path, default=None, help="write inspect.json and inspect.png into this new folder")
    add("--overwrite", action="store_true", help="replace an existing --output_dir of this command")
    args = parser.parse_args(argv)
    for name in ("samples", "seed"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} {getattr(args, name)}: give 0 or more")
    return args


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    args = _parse(argv)
    with contextlib.ExitStack() as stack:
        target = None
        if args.output_dir is not None:
            refuse_overlap(args.output_dir, [args.data_dir])
            target = stack.enter_context(written_aside(args.output_dir, args.overwrite, "inspection", "inspect.json"))
        folder = open_folder(args.data_dir)
        if args.verify:
            print(f"{args.data_dir}: all {verify(folder)} files match their checksums")
        figures, counts = inspect(folder, args.split, args.max_rows, args.samples, args.seed)
        lengths = list(counts.lengths.values())
        if target is not None:
            content = json.dumps({**figures, "command": command_line("inspect", argv)}, indent=2, ensure_ascii=False)
            (target / "inspect.json").write_text(content + "\n", encoding="utf-8")
            draw(figures, lengths, target / "inspect.png")
    print(printed(figures, lengths))


if __name__ == "__main__":
    sys.exit(main())
