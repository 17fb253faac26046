"""A small English corpus for a machine that has no other: the prose in the docstrings of installed Python packages.

    python -m data_prep.docstrings --output_file corpus.txt --max_megabytes 10 --max_seconds 60

Files are parsed, never imported or executed. One document is the prose of one module.
"""

import argparse
import ast
import contextlib
import gc
import hashlib
import itertools
import os
import sys
import sysconfig
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import open_atomic
from data_prep.cli import Parser, positive
from data_prep.prose import paragraphs_of

MIN_DOCUMENT_CHARACTERS = 200
MAX_FILE_BYTES = 2_000_000  # larger ones are tables and generated code
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules"}
_SKIPPED |= {"test", "tests"}  # a third of all code and hardly any prose
_AHEAD = 256  # files parsed at a time: bounds what is computed in vain when the limit is reached


def installed_roots() -> list[Path]:
    """The package folders of the running interpreter, then its standard library."""
    paths = (sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))
    return [Path(path) for path in dict.fromkeys(paths) if path and Path(path).is_dir()]


def read_docstrings(roots: Iterable[Path], num_proc: int = 1) -> Generator[str, None, None]:
    """One document per module, in a fixed order: the packages take turns, so that a limit cuts all of them alike.
    Every paragraph occurs once in the whole corpus."""
    seen: set[bytes] = set()
    for paragraphs in _parsed(_in_turns(roots), num_proc):
        new = []
        for paragraph in paragraphs:
            key = hashlib.blake2b(paragraph.casefold().encode(), digest_size=8).digest()
            if key not in seen:
                seen.add(key)
                new.append(paragraph)
        document = " ".join(new)
        if len(document) >= MIN_DOCUMENT_CHARACTERS:
            yield document


def prose_of_file(file: Path) -> list[str]:
    """The English paragraphs of the file's docstrings; none for a file that Python cannot parse."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return []
        source = file.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return []  # parsing is what takes the time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [paragraph for node in _documented(tree) for paragraph in paragraphs_of(ast.get_docstring(node) or "")]


def _documented(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What can have a docstring, in the order of the file. Looks into statements only: ast.walk, which also visits
    every expression, takes longer than the parser."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        inner = (getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody", "cases"))
        waiting += reversed([child for children in inner if isinstance(children, list) for child in children])


def _in_turns(roots: Iterable[Path]) -> Iterator[Path]:
    """The first file of every package, then the second of every package, and so on."""
    packages: dict[tuple[Path, str], list[Path]] = {}
    for root in roots:
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and entry.name not in _SKIPPED:
                packages[root, entry.name] = _python_files(entry)
            elif entry.suffix == ".py":  # single modules count as one package
                packages.setdefault((root, ""), []).append(entry)
    turns = itertools.zip_longest(*packages.values())
    return (file for turn in turns for file in turn if file is not None)


def _python_files(folder: Path) -> list[Path]:
    found = []
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in _SKIPPED and not name.startswith("."))
        found += [Path(directory, file) for file in sorted(files) if file.endswith(".py")]
    return found


def _parsed(files: Iterator[Path], num_proc: int) -> Iterator[list[str]]:
    """prose_of_file of every file, in order; reads ahead a little and stops reading when the caller stops."""
    if num_proc == 1:
        yield from map(prose_of_file, files)
        return
    # A syntax tree is many objects and no cycle: collecting cycles only costs time.
    with ProcessPoolExecutor(num_proc, initializer=gc.disable) as pool:
        while ahead := list(itertools.islice(files, _AHEAD)):
            yield from pool.map(prose_of_file, ahead, chunksize=8)


def _write(args: argparse.Namespace) -> None:
    """Writes documents until a limit is reached or the packages are read; the file is complete or absent."""
    if args.output_file.exists() and not args.overwrite:
        raise InputError(f"output_file {args.output_file} exists; give another path or --overwrite")
    roots = [Path(path) for path in args.packages] if args.packages else installed_roots()
    for root in roots:
        if not root.is_dir():
            raise InputError(f"packages {root}: no such folder; give one with Python files")
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    start, size, count, limit = time.monotonic(), 0, 0, args.max_megabytes * 1_000_000
    reason = "all packages were read"
    progress = tqdm(desc="docstrings", total=limit, unit="B", unit_scale=True)
    documents = read_docstrings(roots, args.num_proc)
    with open_atomic(args.output_file) as out, progress, contextlib.closing(documents):
        for document in documents:
            count, written = count + 1, out.write(document.encode() + b"\n\n")
            size += written
            progress.update(written)
            if size >= limit:
                reason = f"--max_megabytes {args.max_megabytes} was reached"
                break
            if time.monotonic() - start >= args.max_seconds:
                reason = f"--max_seconds {args.max_seconds} was reached"
                break
        if not count:
            raise InputError(f"packages {', '.join(map(str, roots))}: no English docstrings found; give other folders")
    seconds = time.monotonic() - start
    print(f"{args.output_file}: {size / 1e6:.1f} MB in {count} documents; {reason}; {seconds:.0f} s")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("docstrings", __doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add(
        "--output_file",
        type=Path,
        required=True,
        help="text file to write: one line per document, blank lines between",
    )
    add("--packages", nargs="+", default=None, help="folders of Python packages (default: those of this interpreter)")
    add("--max_megabytes", type=positive, default=10, help="stop at this size")
    add(
        "--max_seconds", type=positive, default=60, help="stop after this time; the corpus then depends on the machine"
    )
    add("--num_proc", type=positive, default=2, help="processes that parse; the result does not depend on it")
    add("--overwrite", action="store_true", help="replace an existing file")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: _write(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
