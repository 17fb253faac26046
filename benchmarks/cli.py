"""What the benchmarks' command lines share: one-line errors, sizes, the output folder, processes, the JSON beside the table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import user_path, write_json_atomic
from budget_trainer.reporting.report import REPORT, environment

ROOT = Path(__file__).resolve().parent.parent


def bare_parser(doc: str | None) -> argparse.ArgumentParser:
    """One that shows the module's text as it is, and guesses no flag."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def run_parser(doc: str | None, *, recipe_required: bool = True, output_dir: str) -> argparse.ArgumentParser:
    """The head of a benchmark that launches train_mlm.py; `flags` are more of that script's, behind --."""
    parser = bare_parser(doc)
    say = "recipe of train_mlm.py" + ("" if recipe_required else "; without it the flags behind -- say it all")
    parser.add_argument("--recipe", required=recipe_required, help=say)
    parser.add_argument("--data_dir", required=True, help="data folder of data_prep.blocks")
    parser.add_argument("--output_dir", default=output_dir, help=f"a new folder for what is run ({output_dir})")
    parser.add_argument("flags", nargs="*", help="more flags of train_mlm.py, behind --")
    return parser


def read_order(doc: str | None, words: Sequence[str] | None = None) -> dict[str, Any]:
    """What another benchmark asks of a script that it starts: one argument in JSON. Exit code 2, in one line, without it."""

    def order(text: str) -> dict[str, Any]:
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is no JSON object; the benchmark that starts this script writes it"
            ) from None

    parser = bare_parser(doc)
    parser.add_argument("order", type=order, metavar="ORDER", help="what to run, in JSON: the benchmark writes it")
    return dict(parser.parse_args(words).order)


def one_line_errors(main: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """Make `main(argv)` return an exit code: 0, or 2 where nothing could be measured, with the reason in one line."""

    @wraps(main)
    def answered(argv: list[str] | None = None) -> int:
        try:
            main(argv)
        except (InputError, RunError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return answered


def parse_size(text: str, field: str) -> tuple[int, int]:
    """`256x4` as width and layers."""
    width, _, layers = text.partition("x")
    if not (width.isdigit() and layers.isdigit() and int(width) and int(layers)):
        raise InputError(f"{field}: {text!r} is not width x layers; write it as 256x4")
    return int(width), int(layers)


def make_output_dir(a: argparse.Namespace) -> None:
    """Make `a.output_dir`, from here on an absolute Path."""
    a.output_dir = Path(user_path(str(a.output_dir), "output_dir")).resolve()
    a.output_dir.mkdir(parents=True, exist_ok=True)


def run_child(command: Sequence[str], log: Path, **environ: str) -> float:
    """Run a process in the repository's root, its output to `log`; returns its wall-clock seconds.

    It is ended with this one. InputError with what it said last where it fails.
    """
    begin = time.monotonic()
    with log.open("w") as file:
        env = {**os.environ, **environ}
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code != 0:
        lines = log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        reason = errors[-1].removeprefix("error: ") if errors else " | ".join(lines[-3:])
        raise InputError(f"run: {' '.join(command[:6])} ... ended with exit code {code}; see {log} ({reason})")
    return time.monotonic() - begin


def train_recipe(profile: str, recipe: str, data: str, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Train a recipe in FOLDER/run with an empty compile cache; its report. InputError with the reason where it fails."""
    run, cache = folder / "run", folder / "compile-cache"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", profile, "train_mlm.py"]
    command += [recipe, "--data_dir", data, "--output_dir", str(run)]
    command += ["--total_training_time", f"{seconds:g}s", "--seed", str(seed)]
    run_child(command, folder / "log.txt", TORCHINDUCTOR_CACHE_DIR=str(cache))
    shutil.rmtree(cache, ignore_errors=True)
    return dict(json.loads((run / REPORT).read_text(encoding="utf-8")))


def publish(
    a: argparse.Namespace,
    name: str,
    table: str,
    figures: dict[str, Any],
    leave_out: Sequence[str] = (),
    file: str | None = None,
) -> None:
    """Write `figures`, what was asked (without `leave_out`) and the environment to `file` (NAME.json); print the table."""
    asked = {
        key: value if isinstance(value, int | float | list | dict | None) else str(value)
        for key, value in vars(a).items()
    }
    asked = {key: value for key, value in asked.items() if key not in leave_out}
    path = a.output_dir / (file or f"{name}.json")
    write_json_atomic(path, {"benchmark": name, "asked": asked, **figures, **environment()})
    print(f"{table}\nall figures in {path}")
