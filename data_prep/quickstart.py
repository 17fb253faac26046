"""From nothing to a model that fills in masks: text from this disk, a tokenizer, blocks, minutes of training, five masks.

    budget-quickstart
    budget-quickstart --total_training_time 10m --output_dir out/ten
    budget-quickstart --profile ddp --launch="--num_processes 4" --output_dir out/four -- --seed 1

Each stage is a command of its own, which is printed. Data that are there already are used again.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import yaml

from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from budget_trainer.core.jobs import TRAINING, child_environment
from budget_trainer.core.package_data import check_profile, next_steps, profile_path
from data_prep.cli import Parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("quickstart", __doc__)
    add = parser.add_argument
    add("--total_training_time", default="3m", help="the budget of the training")
    add("--output_dir", type=Path, default=Path("out/quickstart"), help="folder of the run")
    add("--data_dir", type=Path, default=Path("out/quickstart-data"), help="folder of text, tokenizer and blocks")
    add("--profile", default="cpu", help="launch profile: a name that budget-profile lists, or a file")
    add("--launch", default="", help='more flags of accelerate launch, as --launch="--num_processes 4"')
    add("flags", nargs="*", help="more flags of train_mlm.py, behind --")
    args = parser.parse(None if argv is None else [*argv])
    args.profile = profile_path(args.profile, "profile")
    check_profile(args.profile, "profile")
    try:
        args.profile_content = yaml.safe_load(args.profile.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(
            f"profile: {args.profile} is no YAML file; give one that `accelerate config` writes"
        ) from None
    try:
        args.launch = shlex.split(args.launch)
    except ValueError as error:
        raise InputError(f"launch: {args.launch!r} cannot be read ({error}); close the quotation mark") from None
    return args


def _call(*words: str, launched: bool = False, quiet: bool = False, **more: str) -> int:
    """The exit code of `python` with `words`, whose output is this one's, and `more` variables of the environment.

    Signals are its own; of a launcher, its ranks'.
    """
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,  # a training ends with this process
        stdout=subprocess.DEVNULL if quiet else None,
        env=child_environment(**more),
        start_new_session=True,  # a Ctrl-C does not reach the launcher, which would go before its rank has saved
    )

    def hand_on(number: int, frame: Any) -> None:
        with suppress(psutil.Error):
            child = psutil.Process(process.pid)
            for one in (child.children() if launched else []) or [child]:
                one.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stage(about: str, *words: str, launched: bool = False, **more: str) -> int:
    print(f"\n{about}\n$ python {shlex.join(words)}", flush=True)
    return _call(*words, launched=launched, quiet=False, **more)


def _threads(args: argparse.Namespace) -> dict[str, str]:
    """OMP_NUM_THREADS as Accelerate chooses it on a CPU, where nobody has: left to choose, it explains it in many lines."""
    words, profile = args.launch, args.profile_content
    if "OMP_NUM_THREADS" in os.environ or not isinstance(profile, dict) or not profile.get("use_cpu"):
        return {}
    asked = dict(word.split("=", 1) for word in words if "=" in word) | dict(pairwise(words))
    processes = asked.get("--num_processes", str(profile.get("num_processes", 1)))
    cores = psutil.cpu_count(logical=False) or 1
    return (
        {"OMP_NUM_THREADS": str(max(1, cores // int(processes)))} if processes.isdecimal() and int(processes) else {}
    )


def _run(args: argparse.Namespace) -> int:
    """Returns the exit code of the first stage that fails, which has said why; 0 where none does."""
    corpus, tokenizer, blocks = (str(args.data_dir / name) for name in ("corpus.txt", "tokenizer", "blocks"))
    out, final = str(args.output_dir), str(args.output_dir / "final")
    run = ["quickstart", "--data_dir", blocks, "--output_dir", out]
    run += ["--total_training_time", args.total_training_time, *args.flags]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(args.profile), *args.launch]
    made = {
        corpus: ("1/5 text: the docstrings of the installed packages, for at most 60 s", "docstrings"),
        f"{tokenizer}/tokenizer.json": ("2/5 tokenizer of 8,192 tokens: a few seconds", "tokenizer"),
        f"{blocks}/manifest.json": ("3/5 blocks of 128 tokens: a few seconds", "blocks"),
    }
    flags = {
        "docstrings": ["--output_file", corpus],
        "tokenizer": ["--input", corpus, "--vocab_size", "8192", "--output_dir", tokenizer, "--overwrite"],
        "blocks": ["--input", corpus, "--tokenizer", tokenizer, "--output_dir", blocks, "--overwrite"],
    }
    if os.path.exists(f"{blocks}/manifest.json"):
        print(f"data     {blocks}, made before")
        made = {}
    elif code := _call("-m", TRAINING, *run, "--print_config", quiet=True):  # before time goes into data
        return code
    for file, (about, stage) in made.items():
        if not os.path.exists(file) and (code := _stage(about, "-m", f"data_prep.{stage}", *flags[stage])):
            return code
    about = (
        f"4/5 training: {args.total_training_time} from its start until the model is on the disk, then its evaluation"
    )
    if code := _stage(about, *launch, "--module", TRAINING, *run, launched=True, **_threads(args)):
        return code
    if code := _stage("5/5 five masks: a few seconds", "-m", "budget_trainer.fill_mask", final):
        return code
    print(f"\nmodel    {final} (model card: {final}/README.md)")
    print(f"report   {out}/run_report.json\npicture  {out}/run_report.png\n")
    print(next_steps(args.output_dir))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 2 bad input, else the exit code of the stage that failed."""
    return run_command(lambda: _run(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
