"""A small English corpus for a machine that has no other: the prose in the docstrings of installed Python packages.

    python -m data_prep.docstrings --output_file corpus.txt --max_megabytes 10 --max_seconds 60

Files are parsed, never imported or executed. One document is the prose of one module.
"""

import contextlib
import functools
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import check_writable, made_parents, open_atomic
from data_prep.cli import Parser, command
from data_prep.files import count_unread, unread_line
from data_prep.prose import read_docstrings


@command
def main(argv: list[str] | None) -> None:
    """Write documents until a limit is reached or the packages are read; the file is complete or absent."""
    parser = Parser("docstrings", __doc__)
    add = parser.add_argument
    what = "text file to write: one line per document, blank lines between"
    add("--output_file", type=Path, required=True, help=what)
    add(
        "--packages",
        type="path",
        nargs="+",
        default=None,
        help="folders of Python packages (default: those of this interpreter)",
    )
    add("--max_megabytes", type="count", default=10, help="stop at this size")
    what = "stop after this time; the corpus then depends on the machine"
    add("--max_seconds", type="count", default=60, help=what)
    add("--num_proc", type="count", default=2, help="processes that parse; the result does not depend on it")
    add("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse(argv)
    if args.output_file.is_dir():
        raise InputError(f"output_file {args.output_file} is a folder; give a file")
    if args.output_file.exists() and not args.overwrite:
        raise InputError(f"output_file {args.output_file} exists; give another path or --overwrite")
    target = args.output_file.resolve()
    check_writable(target.parent, "output_file")
    start, limit = time.monotonic(), args.max_megabytes * 1_000_000
    size = count = 0
    reason = "all packages were read"
    progress = tqdm(desc="docstrings", total=limit, unit="B", unit_scale=True)
    account: dict[str, Any] = {}
    leave = functools.partial(count_unread, account, "")
    documents = read_docstrings(args.packages, args.num_proc, leave)
    with made_parents(target), open_atomic(args.output_file) as out, progress, contextlib.closing(documents):
        for document in documents:
            count += 1
            size += out.write(document.encode() + b"\n\n")
            progress.update(size - progress.n)
            if size >= limit:
                reason = f"--max_megabytes {args.max_megabytes} was reached"
                break
            if time.monotonic() - start >= args.max_seconds:
                reason = f"--max_seconds {args.max_seconds} was reached"
                break
        if not count:
            folders = ", ".join(args.packages or ["of this interpreter"])
            raise InputError(f"packages {folders}: no English docstrings found; give other folders")
    seconds = time.monotonic() - start
    unread = f"; {unread_line(account['files_not_read'])}" if account else ""
    print(f"{args.output_file}: {size / 1e6:.1f} MB in {count} documents; {reason}; {seconds:.0f} s{unread}")


if __name__ == "__main__":
    sys.exit(main())
