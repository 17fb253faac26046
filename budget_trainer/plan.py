"""What a recipe will do with a budget on this machine, before it is spent: a probe of a minute, and a prediction.

    python -m budget_trainer.plan cpu_10m --data_dir data/blocks --total_training_time 24h \
        --price_per_hour 2.50 --write out/planned.yaml

Recipe and flags are those of train_mlm.py, and the probe goes its way: same model, data, masking, precision, optimizer.
It finds the micro-batch that fits and is fastest, keeping the batch of a step as the recipe has it. Works on a CPU or one
GPU; for several devices give --num_processes. Exit codes: 0 done, 2 bad input, 1 the probe could not finish.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budget_trainer.config.edit import edited
from budget_trainer.config.parser import NULLS, read_recipe, written_flags
from budget_trainer.core.command import Parser, run_command
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import user_path, write_atomic, write_json_atomic
from budget_trainer.core.jobs import check_unseen, child_environment
from budget_trainer.core.package_data import launch_text, recipe_path
from budget_trainer.planning import REPORT_FILE, SizeFit

if TYPE_CHECKING:
    from budget_trainer.planning.result import ProbeReport


def _parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The planner's own flags; `words` are the recipe and the flags of train_mlm.py."""
    parser = Parser("python -m budget_trainer.plan", __doc__, argparse.RawDescriptionHelpFormatter)
    parser.epilog = "Every other flag is one of train_mlm.py (train_mlm.py --help) and part of the plan."
    add = parser.add_argument
    add("--probe_seconds", type=float, default=60.0, help="the probe's time in seconds, imports too (60)")
    add("--num_processes", type=int, default=1, help="plan for so many devices like this one, speed times as much")
    add("--price_per_hour", help="money per hour of the whole job, in any currency (the recipe's)")
    add("--write", type=Path, help="store the filled-in recipe here, and the plan beside it")
    add("--json", type=Path, help="store the plan here, for machines and for train_mlm.py --plan")
    add("--picture", type=Path, default=Path("plan.png"), help="the schedule as a picture (plan.png)")
    add("--overwrite", action="store_true", help="write over files that are there")
    words = list(sys.argv[1:] if argv is None else argv)
    recipe = [words.pop(0)] if words and not words[0].startswith("-") else []
    args, rest = parser.parse_known_args(words)
    args.words = [*recipe, *rest]
    args.recipe = Path(recipe_path(recipe[0], "recipe")) if recipe else None
    return args


def _check(args: argparse.Namespace) -> None:
    """Refuse what no probe is needed for, and read what the run is to be, as text; nothing was started or written."""
    if args.recipe is None:
        raise InputError(
            "recipe: missing; give a recipe first: a YAML file, or a name of budget-recipes such as quickstart"
        )
    if not args.recipe.is_file():
        there = ", ".join(sorted(path.name for path in args.recipe.parent.glob("*.yaml"))) or "no recipes"
        raise InputError(f"recipe: {args.recipe} is not there; {args.recipe.parent} has {there}")
    for name, value, good, fix in (
        ("probe_seconds", args.probe_seconds, args.probe_seconds > 0, "is not above zero; give seconds such as 60"),
        ("num_processes", args.num_processes, args.num_processes > 0, "is below 1; give the number of devices"),
    ):
        if not (good and math.isfinite(value)):
            raise InputError(f"{name}: {value:g} {fix}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("WORLD_SIZE: one process makes the plan; start it without a launcher, with --num_processes N")
    check_unseen()  # nor is it in the recipe that is written
    args.plan_file = args.write and args.write.with_name(f"{args.write.stem}.plan.json")
    default = args.picture == Path("plan.png")  # always drawn anew
    for path in filter(None, (args.json, args.write, args.plan_file, args.picture)):
        if path.exists() and not args.overwrite and not (default and path == args.picture):
            raise InputError(f"{path}: is there already; add --overwrite, or choose another name")
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise InputError(f"{path}: its folder is not there; make it first")
        if not os.access(folder, os.W_OK) or path.is_dir():
            raise InputError(f"{path}: cannot be written; choose another place")
    if args.price_per_hour is not None:  # the run reports its cost too
        args.words.append(f"--price_per_hour={args.price_per_hour}")
    args.settings = {**read_recipe(args.recipe), **written_flags(args.words[1:])}
    args.price = _price(args.settings.get("price_per_hour"))
    if args.settings.get("deadline") not in (None, *NULLS):
        given = args.settings["deadline"]
        raise InputError(
            f"deadline: {given} has no place in a plan, which is of a duration; give --total_training_time 24h"
        )
    if not {"total_training_time", "max_steps"} & args.settings.keys():
        raise InputError("total_training_time: missing; add --total_training_time 24h")


def _price(given: Any) -> float | None:
    """The price in a recipe or a command line; None where there is none. InputError for what is no price."""
    if given is None or given in NULLS:
        return None
    try:
        price = float(given)
    except (TypeError, ValueError):
        price = math.nan
    if not 0 <= price < math.inf:
        raise InputError(f"price_per_hour: {given} is below 0 or no price; give one such as 2.50")
    return price


def _run(args: argparse.Namespace) -> int:
    begin = time.monotonic()
    _check(args)
    size_fit = SizeFit.read()
    # Torch and Transformers, for the prediction: imported before the probe, which has the machine to itself.
    from budget_trainer.planning.result import make_plan, plan_text

    print(f"probing for up to {args.probe_seconds:g} s ...", file=sys.stderr, flush=True)
    deadline = begin + args.probe_seconds - min(1.0, args.probe_seconds / 10)  # the rest: prediction and picture
    with tempfile.TemporaryDirectory(prefix="budget-plan-", dir=_disk_of(args.settings.get("output_dir"))) as folder:
        report, failed = _ask_probe(args.words, Path(folder), deadline)
    asked = {"num_processes": args.num_processes, "price_per_hour": args.price}
    plan = make_plan(report, **asked, failed=failed, size_fit=size_fit)
    plan["probe_seconds"] = time.monotonic() - begin
    print(plan_text(plan))
    _store(args, plan)
    return 0


def _ask_probe(words: Sequence[str], folder: Path, deadline: float) -> tuple[ProbeReport | None, str | None]:
    """The probe's last report on the run `words` until `deadline` (of time.monotonic()); None where there was none.

    Where the probe died after its choice of a micro-batch, the second is how it died, and its last words.

    Raises:
        InputError, RunError: as the probe did; RunError where it died before that choice.
    """
    command = [sys.executable, "-m", "budget_trainer.planning.probe", str(folder), str(deadline), *words]
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # one: Trainer would spread over all of them
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        probe = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # ends with this process, and the probe with it
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=child_environment(CUDA_VISIBLE_DEVICES=gpu),
        )
    code = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):  # what it has reported counts
            code = probe.wait(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(probe.pid, signal.SIGKILL)  # compilers have processes of their own
        probe.wait()
    file = folder / REPORT_FILE  # our own child's, in a folder that only this user can enter
    message: ProbeReport | Exception | None = pickle.loads(file.read_bytes()) if file.exists() else None
    if isinstance(message, Exception):
        raise message
    if code in (0, None):
        return message, None
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    if code == -signal.SIGKILL:
        how = "SIGKILL, as where memory is short; plan a smaller model or micro-batch"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    words = "its last words: " + " | ".join(lines[-3:]) if lines else "it printed nothing"
    failed = f"it ended with {how}; {words}"
    if message is None or message.results.micro_batch is None:
        raise RunError(f"probe: {failed}")
    return message, failed


def _disk_of(output_dir: Any) -> str | None:
    """A folder that is there and can be written to, `output_dir` or one above it: saving is timed on the run's disk."""
    with contextlib.suppress(OSError, ValueError):  # none is given, or the run will refuse it
        path = Path(user_path(str(output_dir or ""), "output_dir")).resolve()
        return next((str(folder) for folder in (path, *path.parents) if os.access(folder, os.W_OK)), None)
    return None


def _store(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    """Picture, JSON and recipe, and the command that runs it."""
    from budget_trainer.planning.result import draw_plan

    draw_plan(plan, args.picture)
    print(f"\npicture  {args.picture}")
    if args.json is not None:
        write_json_atomic(args.json, plan)
        print(f"plan     {args.json}")
    if args.write is not None:
        processes = plan["num_processes"]
        chosen = {
            name: plan["recipe"][name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
        }
        flags = {name: value for name, value in written_flags(args.words[1:]).items() if name != "output_dir"}
        head = (
            f"# Filled in by budget_trainer.plan from {args.recipe.name}, {plan['made_at']}; processes: {processes}.\n"
        )
        values = {**flags, **chosen, "plan": args.plan_file.name}
        text = edited(args.recipe.read_text(encoding="utf-8-sig"), values, whose="the plan", head=head)
        write_json_atomic(args.plan_file, plan)
        write_atomic(args.write, text)
        print(f"recipe   {args.write} (its plan: {args.plan_file})")
        profiles = {"cuda": ("single_gpu", "ddp"), "mps": ("mps", "mps")}
        one, several = profiles.get(plan["device"].partition(":")[0], ("cpu", "cpu_2proc"))
        launch = launch_text(one) if processes == 1 else launch_text(several, f"--num_processes {processes}")
        print(f"run it   {launch} {args.write} --output_dir out/run")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 2 for what a person has to mend, 1 where the probe could not finish, 130 after Ctrl-C."""
    return run_command(lambda: _run(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
