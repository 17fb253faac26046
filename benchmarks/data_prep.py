#!/usr/bin/env python3
"""Text to blocks: megabytes per second, the tokenizer's share, memory as the input grows; and blocks to batches.

    python benchmarks/data_prep.py --input wiki.txt.xz --tokenizer data/tokenizer --output_dir out/data_prep \
        [--dump enwiki-excerpt.xml.bz2] [--sizes 50,200] [--num_proc 2]

Each line is a real `python -m data_prep.blocks` in a process of its own, --rounds times: medians (lowest, highest). Sizes are
megabytes of text, or of decompressed XML, that the input is cut or repeated to; reading and decompressing count, imports too.

  memory     the most that the process and its workers held together, shared pages once (PSS), sampled every 50 ms
  tokenizer  seconds that the tokenizer alone takes for the same documents in one process, over those of a whole run with one,
             whose imports take as long whatever the size
  Wikipedia  hours for 25 GB of text, or 95 GB of XML, at this rate, on these cores

Prints one table, writes data_prep.json.
"""

import argparse
import bz2
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402
from budget_trainer.data.folder import DataFolder  # noqa: E402
from budget_trainer.data.masking import MaskingCollator  # noqa: E402
from budget_trainer.data.order import ExactSampler  # noqa: E402
from data_prep.encoding import Encoder, load_tokenizer  # noqa: E402
from data_prep.folders import FinishedFolder, remade  # noqa: E402
from data_prep.sources import Source  # noqa: E402

FULL_MEGABYTES = {"text": 25_000, "xml": 95_000}  # English Wikipedia


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("--input", required=True, help="text, as data_prep.blocks reads it")
    add("--dump", help="a MediaWiki dump, plain or bz2")
    add("--tokenizer", required=True, help="folder, file or Hub name")
    add("--sizes", default="50,200", help="megabytes (50,200)")
    add("--rounds", type=int, default=3, help="runs of each size (3)")
    add("--num_proc", type=int, default=2, help="processes that tokenise and parse (2)")
    add("--output_dir", default="out/data_prep", help="inputs, data folders and data_prep.json (out/data_prep)")
    a = parser.parse_args(argv)
    try:
        a.sizes = [int(size) for size in a.sizes.split(",")]
    except ValueError:
        raise InputError(f"sizes: {a.sizes!r} are not whole numbers; write 50,200") from None
    if min(a.sizes) < 1 or a.rounds < 1:
        raise InputError("sizes, rounds: below 1; give 1 or more")
    return a


def cut_text(path: str, megabytes: int, file: Path) -> Path:
    """The documents of `path`, over and over where they are too few, up to a size; one per paragraph."""
    left = megabytes * 10**6
    with file.open("wb") as out:
        while left > 0:
            for document in Source(path).documents():
                left -= out.write(document.encode() + b"\n\n")
                if left <= 0:
                    break
    return file


def cut_dump(path: str, megabytes: int, file: Path) -> Path:
    """The pages of a dump over and over, up to a size, as bz2."""
    raw = Path(path).read_bytes()
    xml = bz2.decompress(raw) if path.endswith(".bz2") else raw
    head, pages = xml.split(b"<page>", 1)
    pages = b"<page>" + pages.removesuffix(b"</mediawiki>\n").removesuffix(b"</mediawiki>")
    with bz2.open(file, "wb") as out:
        out.write(head)
        size = len(head)
        while size < megabytes * 10**6:
            size += out.write(pages)
        out.write(b"</mediawiki>\n")
    return file


def family(process: psutil.Process) -> Iterator[psutil.Process]:
    try:
        yield from (process, *process.children(recursive=True))
    except psutil.Error:
        return


def measure(command: list[str], log: Path) -> tuple[float, float]:
    """Seconds and the most MiB of one run. InputError naming its log where it fails."""
    begin, most = time.monotonic(), 0
    with log.open("w") as out:
        child = psutil.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        while child.poll() is None:
            held = 0
            for process in family(child):
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            most = max(most, held)
            time.sleep(0.05)
    if child.returncode != 0:
        raise InputError(f"input: the run ended with {child.returncode}; see {log}")
    return time.monotonic() - begin, most / 2**20


def runs(a: argparse.Namespace, kind: str, source: Path, megabytes: float, num_proc: int) -> dict[str, Any]:
    """One line of the table."""
    seconds, memory = [], []
    for number in range(a.rounds):
        name = f"{source.name.split('.')[0]}-{num_proc}-{number}"
        command = [sys.executable, "-m", "data_prep.blocks", "--input", str(source), "--tokenizer", a.tokenizer]
        command += ["--kind", "mediawiki" if kind == "xml" else "text", "--num_proc", str(num_proc), "--overwrite"]
        # Copies of a document are held out together: of a short excerpt one in a hundred may be none.
        command += ["--validation_fraction", "0.1"] if kind == "xml" else []
        took, held = measure([*command, "--output_dir", str(a.output_dir / "blocks")], a.output_dir / f"{name}.log")
        seconds.append(took)
        memory.append(held)
    rates = sorted(megabytes / took for took in seconds)
    rate = statistics.median(rates)
    row = {"kind": kind, "megabytes": megabytes, "processes": num_proc, "rate": rate, "rates": rates}
    row |= {"seconds": statistics.median(seconds), "memory_mib": max(memory)}
    return row | {"full_hours": FULL_MEGABYTES[kind] / rate / 3600}


def tokenizer_seconds(a: argparse.Namespace, source: Path) -> float:
    """Of one process for all documents, in groups as data_prep.blocks makes them."""
    folder = a.output_dir / "tokenizer"
    load_tokenizer(a.tokenizer).save_pretrained(folder)
    documents = Source(str(source), "text").documents()
    encoder, total = Encoder(str(folder / "tokenizer.json")), 0.0
    while group := list(itertools.islice(documents, 64)):
        begin = time.perf_counter()
        encoder.encode(group)
        total += time.perf_counter() - begin
    return total


def loading(a: argparse.Namespace) -> dict[str, float]:
    """From the blocks that were made last: masked tokens per second of one loader process; seconds to open many shards."""
    data = DataFolder.open(a.output_dir / "blocks")
    collator = MaskingCollator(
        seed=0, special_ids=data.special_ids, vocab_size=data.vocab_size, block_size=data.block_size
    )
    found = {}
    for size in (32, 256):
        order, number = ExactSampler(0, 10**9), 20_000 // size
        batches = iter(DataLoader(data.train(seed=0), size, sampler=order, collate_fn=collator, num_workers=1))
        rates = []
        for _ in range(1 + max(3, a.rounds)):  # the first one warms up
            begin = time.perf_counter()
            for _ in range(number):
                next(batches)
            rates.append(number * size * data.block_size / (time.perf_counter() - begin))
        found[f"tokens/s of one loader process, batches of {size}"] = statistics.median(rates[1:])
        del batches
    shards = min(1000, int(data.manifest["splits"]["train"]["rows"]))
    with tempfile.TemporaryDirectory(dir=a.output_dir) as name:
        content = data.manifest | remade([FinishedFolder.open(data.path)], shards, Path(name))
        (Path(name) / "manifest.json").write_text(json.dumps(content))
        begin = time.perf_counter()
        opened = DataFolder.open(name).train(seed=0)
        opened.__getitems__(range(min(2000, opened.rows)))
        found[f"seconds to open {shards} shards and read 2,000 rows"] = time.perf_counter() - begin
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'input':14} {'processes':>9} {'MB/s':>7} {'(lowest, highest)':>18} {'memory':>10} {'tokenizer':>10} "
        f"{'Wikipedia':>10}"
    ]
    for row in rows:
        share = f"{100 * row['tokenizer_share']:8.0f} %" if "tokenizer_share" in row else f"{'':10}"
        lines.append(
            f"{row['megabytes']:6.0f} MB {row['kind']:4} {row['processes']:9} {row['rate']:7.2f} "
            f"{'({:.2f}, {:.2f})'.format(row['rates'][0], row['rates'][-1]):>18} {row['memory_mib']:6.0f} MiB {share} "
            f"{row['full_hours']:8.1f} h"
        )
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    rows = []
    for size in a.sizes:
        text = cut_text(a.input, size, a.output_dir / f"text-{size}.txt")
        rows.append(runs(a, "text", text, text.stat().st_size / 1e6, a.num_proc))
        alone = runs(a, "text", text, text.stat().st_size / 1e6, 1)
        rows.append(alone | {"tokenizer_share": tokenizer_seconds(a, text) / alone["seconds"]})
        print(f"text, {size} MB: {rows[-2]['rate']:.2f} MB/s", flush=True)
    for size in a.sizes if a.dump else []:
        dump = cut_dump(a.dump, size, a.output_dir / f"dump-{size}.xml.bz2")
        rows.append(runs(a, "xml", dump, size, a.num_proc))
        print(f"XML, {size} MB: {rows[-1]['rate']:.2f} MB/s", flush=True)
    loaded = loading(a)
    said = [f"{value:14,.2f} {what}" for what, value in loaded.items()]
    publish(a, "data_prep", "\n".join([table(rows), *said]), {"rows": rows, "loading": loaded})


if __name__ == "__main__":
    sys.exit(main())
