"""What a recipe will do with a budget on this machine, before it is spent: a probe of a minute, and a prediction.

    python -m budget_trainer.plan recipes/cpu_10m.yaml --data_dir data/blocks --total_training_time 24h \
        --price_per_hour 2.50 --write out/planned.yaml

Recipe and flags are those of train_mlm.py, and the probe goes its way: same model, data, masking, precision, optimizer.
It finds the micro-batch that fits and is fastest, keeping the batch of a step as the recipe has it. Works on a CPU or one
GPU; for several devices give --num_processes. Exit codes: 0 done, 2 bad input, 1 the probe could not finish.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.config.edit import edited, load, opposite
from budget_trainer.core.command import Parser, run_command
from budget_trainer.core.errors import InputError

PROBE_SECONDS = 60.0
PARENT_SECONDS = 1.0  # of the probe's time, for starting it and for the account


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The planner's own flags; `words` are the recipe and the flags of train_mlm.py."""
    parser = Parser("python -m budget_trainer.plan", __doc__, argparse.RawDescriptionHelpFormatter)
    parser.epilog = "Every other flag is one of train_mlm.py (train_mlm.py --help) and part of the plan."
    parser.add_argument(
        "--probe_seconds", type=float, default=PROBE_SECONDS, help="the probe's time in seconds, imports too (60)"
    )
    parser.add_argument(
        "--num_processes", type=int, default=1, help="plan for so many devices like this one, speed times as much"
    )
    parser.add_argument("--price_per_hour", type=float, help="money per hour of the whole job, in any currency")
    parser.add_argument("--write", type=Path, help="store the filled-in recipe here, and the plan beside it")
    parser.add_argument("--json", type=Path, help="store the plan here, for machines and for train_mlm.py --plan")
    parser.add_argument("--picture", type=Path, default=Path("plan.png"), help="the schedule as a picture (plan.png)")
    parser.add_argument("--overwrite", action="store_true", help="write over files that are there")
    words = list(sys.argv[1:] if argv is None else argv)
    recipe = [words.pop(0)] if words and not words[0].startswith("-") else []
    args, rest = parser.parse_known_args(words)
    args.words = [*recipe, *rest]
    args.recipe = Path(recipe[0]) if recipe else None
    return args


def _check(args: argparse.Namespace) -> None:
    """Refuse what no probe is needed for; nothing was started or written."""
    if args.recipe is None:
        raise InputError("recipe: missing; give the YAML file of a recipe first, as recipes/quickstart.yaml")
    if not args.recipe.is_file():
        there = ", ".join(sorted(path.name for path in args.recipe.parent.glob("*.yaml"))) or "no recipes"
        raise InputError(f"recipe: {args.recipe} is not there; {args.recipe.parent} has {there}")
    if not (math.isfinite(args.probe_seconds) and args.probe_seconds > 0):
        raise InputError(f"probe_seconds: {args.probe_seconds:g} is not above zero; give seconds such as 60")
    if args.num_processes < 1:
        raise InputError(f"num_processes: {args.num_processes} is below 1; give the number of devices")
    if args.price_per_hour is not None and not (math.isfinite(args.price_per_hour) and args.price_per_hour >= 0):
        raise InputError(
            f"price_per_hour: {args.price_per_hour:g} is below 0 or no price; give money per hour such as 2.50"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "WORLD_SIZE: the plan is made by one process; start it without a launcher, with --num_processes N"
        )
    for path in _targets(args):
        if path.exists() and not args.overwrite:
            raise InputError(f"{path}: is there already; add --overwrite, or choose another name")
    for path in [*_targets(args), args.picture]:
        if not path.parent.is_dir():
            raise InputError(f"{path}: its folder is not there; make it first")
        if not os.access(path.parent, os.W_OK) or path.is_dir():
            raise InputError(f"{path}: cannot be written; choose another place")


def _targets(args: argparse.Namespace) -> list[Path]:
    """Every file that will be written, but for the default picture, which is always drawn anew."""
    named = [path for path in (args.json, args.write, args.write and _beside(args.write)) if path is not None]
    return named + ([args.picture] if args.picture != Path("plan.png") else [])


def _beside(recipe: Path) -> Path:
    return recipe.with_name(f"{recipe.stem}.plan.json")


def run(args: argparse.Namespace) -> int:
    begin = time.monotonic()
    _check(args)
    from budget_trainer.planning.child import ask_probe
    from budget_trainer.planning.result import make_plan
    from budget_trainer.planning.text import plan_text

    if not {"total_training_time", "max_steps"} & {_flag(word) for word in args.words}:
        _check_budget(args.recipe)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the sketch needs more than ASCII
    print(f"probing for up to {args.probe_seconds:g} s ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="budget-plan-", dir=_disk(args.words)) as folder:
        told = ask_probe(
            args.words, Path(folder), begin + args.probe_seconds - min(PARENT_SECONDS, args.probe_seconds / 10)
        )
    plan = make_plan(told, num_processes=args.num_processes, price_per_hour=args.price_per_hour)
    plan["probe_seconds"] = time.monotonic() - begin
    print(plan_text(plan))
    _store(args, plan)
    return 0


def _check_budget(recipe: Path) -> None:
    try:
        content = load(recipe.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the probe says what is wrong with it
    if not {"total_training_time", "max_steps"} & set(content):
        raise InputError("total_training_time: missing; add --total_training_time 24h")


def _disk(words: Sequence[str]) -> str | None:
    """Where the run will save, as far as that is there: saving is timed on that disk."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # the probe says what is wrong with the recipe
        named = {**load(Path(words[0]).read_text(encoding="utf-8-sig")), **_words(words[1:])}.get("output_dir")
        path = Path(str(named)).resolve()
        if named:
            return str(next((folder for folder in (path, *path.parents) if os.access(folder, os.W_OK)), "")) or None
    return None


def _store(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    """Picture, JSON and recipe, and the command that runs it."""
    from budget_trainer.core.io import write_atomic, write_json_atomic
    from budget_trainer.planning.text import draw_plan

    draw_plan(plan, args.picture)
    print(f"\npicture  {args.picture}")
    if args.json is not None:
        write_json_atomic(args.json, plan)
        print(f"plan     {args.json}")
    if args.write is not None:
        values = {
            **_given(args.words[1:]),
            "per_device_train_batch_size": plan["micro_batch"],
            "gradient_accumulation_steps": plan["gradient_accumulation_steps"],
            "plan": _beside(args.write).name,
        }
        head = f"# Filled in by budget_trainer.plan from {args.recipe.name}, {plan['made_at']}; "
        head += f"processes: {plan['num_processes']}.\n"
        text = edited(args.recipe.read_text(encoding="utf-8-sig"), values, whose="the plan", head=head)
        write_json_atomic(_beside(args.write), plan)
        write_atomic(args.write, text)
        print(f"recipe   {args.write} (its plan: {_beside(args.write)})")
        print(
            f"run it   accelerate launch --config_file {_profile(plan)} train_mlm.py {args.write} --output_dir out/run"
        )


def _profile(plan: dict[str, Any]) -> str:
    one, several = ("single_gpu", "ddp") if plan["device"].startswith("cuda") else ("cpu", "cpu_2proc")
    if plan["num_processes"] == 1:
        return f"accelerate_configs/{one}.yaml"
    return f"accelerate_configs/{several}.yaml --num_processes {plan['num_processes']}"


def _given(words: Sequence[str]) -> dict[str, str]:
    """The flags of train_mlm.py on the command line as lines of a recipe; output_dir is the run's own."""
    return {name: value for name, value in _words(words).items() if name not in ("output_dir", "plan")}


def _words(words: Sequence[str]) -> dict[str, str]:
    """Flags and their values as text, the last one of a flag counts; `--no_bf16` takes `--bf16` back, and `--bf16` that."""
    values: dict[str, str] = {}
    name = None
    for word in words:
        if (flag := _flag(word)) is not None:
            name, bare = flag, "=" not in word
            values.pop(name, None)
            values.pop(opposite(name), None)
            values[name] = "true" if bare else word.partition("=")[2]
        elif name is not None:
            values[name] = word if bare else f"{values[name]} {word}"
            bare = False
    return values


def _flag(word: str) -> str | None:
    """`total_training_time` of `--total-training-time=24h`; None for what is no flag."""
    return word.removeprefix("--").partition("=")[0].replace("-", "_") if word.startswith("--") else None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 2 for what a person has to mend, 1 where the probe could not finish, 130 after Ctrl-C."""
    return run_command(lambda: run(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
