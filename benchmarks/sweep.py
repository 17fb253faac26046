#!/usr/bin/env python3
r"""What a sweep promises, measured with real ones.

    python benchmarks/sweep.py best_rate --recipe recipes/cpu_10m.yaml --data_dir data/blocks \
        --parameter muon_learning_rate --time_per_trial 60s --total_time 10m
    python benchmarks/sweep.py kills --recipe recipes/cpu_10m.yaml --data_dir data/blocks --kills 5
    python benchmarks/sweep.py halving --recipe recipes/cpu_10m.yaml --data_dir data/blocks --seeds 3
    python benchmarks/sweep.py shared --recipe recipes/cpu_10m.yaml --data_dir data/blocks

best_rate: a tpe sweep of one rate under --total_time (its wall-clock time against that), its best rate trained again with new
seeds, and a fixed scan of rates over the same range, each at the same time per trial and by the same means, so that as much of
the machine is used by each. kills: the same sweep, whose process gets kill -9 at random moments and is started again: no
finished trial may be lost, none may run twice. halving: successive_halving against the grid over the same rates, seed by seed.
shared: two processes on one journal file.

Each prints a table and writes sweep_NAME.json; it exits with 1 where a promise is broken.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import sweep_kills  # noqa: E402
from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from benchmarks.sweep_runs import Run, Wanted, log_spaced, median, run_sweep, start, wait  # noqa: E402
from budget_trainer.budget.clock import parse_duration  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402

NOISE = 0.05  # bits per byte by which the sweep's rate may be behind the scan's, and halving behind the grid
LEAST_ENDED = 3
GRID_SHARE = 0.5


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="NAME")
    for name in RUNS:
        add = commands.add_parser(name, allow_abbrev=False).add_argument
        add("--recipe", required=True, help="recipe of train_mlm.py that all trials begin with")
        add("--data_dir", required=True, help="data folder of data_prep.blocks")
        add("--parameter", default="learning_rate", help="the rate that is searched (learning_rate)")
        add("--range", default="3e-4:3e-2", metavar="LOW:HIGH", help="of the rate (3e-4:3e-2)")
        add("--time_per_trial", default="60s", help="budget of each trial (60s)")
        add("--parallel_trials", default="auto", help="as in a sweep file (auto)")
        add("--accelerate_config", help="launch configuration of the trials (the sweep's own choice)")
        add("--output_dir", default=f"out/sweep_{name}", help=f"a new folder for all that is run (out/sweep_{name})")
        add("--fixed", nargs="*", default=[], metavar="FLAG=VALUE", help="more flags of every trial")
        if name in ("best_rate", "kills", "shared"):
            add("--trials", type=int, default={"shared": 6}.get(name, 12), help="trials of the sweep")
            add("--seed", type=int, default=0, help="of the sweep (0)")
        if name == "best_rate":
            add("--total_time", default="10m", help="of the sweep (10m)")
            add("--again", type=int, default=2, help="new seeds for its best (2)")
            add("--scan", type=int, default=7, help="rates of the scan (7)")
        if name == "kills":
            add("--kills", type=int, default=5, help="how often (5)")
            add(
                "--group",
                action="store_true",
                help="kill the sweep's whole process group, trials too (only its own process)",
            )
            add("--total_time", help="of the sweep (none)")
        if name == "halving":
            add("--points", type=int, default=8, help="rates of the grid (8)")
            add("--seeds", type=int, default=3, help="how often, with a seed of its own (3)")
            add("--first_seed", type=int, default=0, help="the first of these (0)")
    a = parser.parse_args(argv)
    check(a)
    return a


def check(a: argparse.Namespace) -> None:
    """Everything that can be known before hours are spent. InputError."""
    for name in ("trials", "again", "scan", "kills", "points", "seeds"):
        if getattr(a, name, 1) < 1:
            raise InputError(f"{name}: {getattr(a, name)} is below 1; give 1 or more")
    low, _, high = a.range.partition(":")
    try:
        a.low, a.high = float(low), float(high)
    except ValueError:
        a.low = a.high = 0.0
    if not 0 < a.low < a.high:
        raise InputError(f"range: {a.range!r} is not LOW:HIGH with 0 < LOW < HIGH; write 3e-4:3e-2")
    for name in ("recipe", "data_dir"):
        if not Path(getattr(a, name)).exists():
            raise InputError(f"{name}: {getattr(a, name)} does not exist; give --{name}")
        setattr(a, name, str(Path(getattr(a, name)).resolve()))
    for word in a.fixed:
        if "=" not in word:
            raise InputError(f"fixed: {word!r} is not FLAG=VALUE; write --fixed validate_every=20%")
    a.trial_seconds = parse_duration(a.time_per_trial, "time_per_trial")
    a.total_seconds = parse_duration(a.total_time, "total_time") if getattr(a, "total_time", None) else None
    if Path(a.output_dir).exists() and any(Path(a.output_dir).iterdir()):
        raise InputError(f"output_dir: {a.output_dir} is not empty; give a new folder")


def wanted(a: argparse.Namespace, name: str, search: str, parameters: dict[str, Any], **more: Any) -> Wanted:
    """A sweep of this benchmark; `more` are further keys of its file."""
    content: dict[str, Any] = {"search": search, "recipe": a.recipe, "parameters": parameters}
    content |= {"time_per_trial": a.time_per_trial, "parallel_trials": a.parallel_trials, "objective": "bits_per_byte"}
    content |= {} if a.accelerate_config is None else {"accelerate_config": str(Path(a.accelerate_config).resolve())}
    flags = dict(word.split("=", 1) for word in a.fixed)
    content |= {**more, "fixed": {"data_dir": a.data_dir, **flags, **more.get("fixed", {})}}
    return Wanted(Path(a.output_dir) / name, content)


def searched(a: argparse.Namespace, **more: Any) -> Wanted:
    """The tpe sweep of best_rate and kills."""
    more |= {} if a.total_time is None else {"total_time": a.total_time}
    space = {a.parameter: {"low": a.low, "high": a.high, "log": True}}
    return wanted(a, "sweep", "tpe", space, trials=a.trials, seed=a.seed, **more)


def best_rate(a: argparse.Namespace) -> tuple[list[str], dict[str, Any], bool]:
    sweep = run_sweep(searched(a))
    rate, found = sweep.best()[a.parameter], sweep.objectives()[0]
    more = {"recipe": str(sweep.folder / "best_recipe.yaml")}
    again = run_sweep(wanted(a, "again", "grid", {"seed": [101 + n for n in range(a.again)]}, **more))
    scan = run_sweep(wanted(a, "scan", "grid", {a.parameter: log_spaced(a.low, a.high, a.scan)}))
    values = again.objectives()
    if len(values) < a.again or len(scan.objectives()) < a.scan:
        raise InputError(f"recipe: a training of the comparison has failed; see the logs in {a.output_dir}")
    mean = sum(values) / len(values)
    behind, ended = mean - scan.objectives()[0], sweep.count("pruned") + sweep.count("time")
    over, save = sweep.seconds - (a.total_seconds or 0.0), sweep.longest_save()
    held = {"time": over <= save, "rate": behind <= NOISE, "ended": ended >= LEAST_ENDED}
    lines = [
        f"{'sweep, wall-clock seconds':44} {sweep.seconds:8.1f} of {a.total_seconds:g} (a trial's save: {save:.1f})"
        + verdict(held["time"]),
        f"{'trials: ' + sweep.states():44}",
        f"{'pruned or ended by time':44} {ended:8}, at least {LEAST_ENDED}" + verdict(held["ended"]),
        f"{f'best {a.parameter}':44} {rate:8.3g}, bits per byte {found:.4f}",
        f"{f'trained again, {len(values)} new seeds':44} {mean:8.4f} (" + ", ".join(f"{v:.4f}" for v in values) + ")",
    ]
    for row in scan.finished():
        lines.append(f"{f'scan, {a.parameter} {float(row[a.parameter]):.3g}':44} {float(row['bits_per_byte']):8.4f}")
    lines.append(f"{'again less the best of the scan':44} {behind:+8.4f}, at most {NOISE}" + verdict(held["rate"]))
    runs = {"sweep": sweep.account(), "again": again.account(), "scan": scan.account()}
    figures = {"best": rate, "again": values, "behind_scan": behind, "over_seconds": over, "save_seconds": save}
    return lines, {**runs, **figures, "ended_early": ended, "held": held}, all(held.values())


def kills(a: argparse.Namespace) -> tuple[list[str], dict[str, Any], bool]:
    found = sweep_kills.disturbed(searched(a), a.kills, a.seed, a.trial_seconds, a.group)
    lines = [f"{'kill':>4} {'after':>8} {'finished':>9} {'pruned':>7} {'under way':>10}"]
    for number, row in enumerate(found["kills"], start=1):
        lines.append(f"{number:4} {row['after']:7.1f}s {row['finished']:9} {row['pruned']:7} {row['running']:10}")
    lines += [f"{'at the end':14} {found['states']}"]
    for name, text in sweep_kills.PROMISES.items():
        broken = found["broken"][name]
        lines.append(f"{text:44} " + (f"BROKEN: {'; '.join(broken)}" if broken else "yes"))
    return lines, found, not any(found["broken"].values())


def halving(a: argparse.Namespace) -> tuple[list[str], dict[str, Any], bool]:
    rates, rows = log_spaced(a.low, a.high, a.points), []
    head = f" {'best':>10} {'rate':>9} {'trials, s':>10}"
    lines = [f"{'':6} {'grid':>32} {'successive halving':>31}", f"{'seed':>6}{head}{head} {'behind':>8} {'time':>6}"]
    for seed in range(a.first_seed, a.first_seed + a.seeds):
        both: dict[str, Run] = {}
        for search in ("grid", "successive_halving") if seed % 2 == 0 else ("successive_halving", "grid"):
            fixed = {"seed": 42 + seed}
            both[search] = run_sweep(
                wanted(a, f"{search}-{seed}", search, {a.parameter: rates}, fixed=fixed, seed=seed)
            )
        grid, half = both["grid"], both["successive_halving"]
        row: dict[str, Any] = {"seed": seed, "grid": grid.account(), "successive_halving": half.account()}
        row |= {
            "behind": half.objectives()[0] - grid.objectives()[0],
            "share": half.trial_seconds() / grid.trial_seconds(),
        }
        rows.append(row)
        lines.append(
            f"{seed:6} "
            + " ".join(
                f"{run.objectives()[0]:10.4f} {run.best()[a.parameter]:9.3g} {run.trial_seconds():10.1f}"
                for run in (grid, half)
            )
            + f" {row['behind']:+8.4f} {100 * row['share']:4.0f} %"
        )
    behind, share = median([row["behind"] for row in rows]), median([row["share"] for row in rows])
    held = {"objective": behind <= NOISE, "time": share <= GRID_SHARE}
    lines.append(
        f"{'median: behind the grid':44} {behind:+8.4f} bits per byte, at most {NOISE}" + verdict(held["objective"])
    )
    lines.append(
        f"{'median: share of the time of the grid':44} {share:8.2f}, at most {GRID_SHARE}" + verdict(held["time"])
    )
    return lines, {"seeds": rows, "behind": behind, "share": share, "held": held}, all(held.values())


def shared(a: argparse.Namespace) -> tuple[list[str], dict[str, Any], bool]:
    space = {a.parameter: {"low": a.low, "high": a.high, "log": True}}
    more = {
        "storage": f"journal:{a.output_dir / 'journal.log'}",
        "job_name": "shared",
        "prune_at": [],
        "parallel_trials": 1,
    }
    one = wanted(a, "sweep", "random", space, trials=a.trials, seed=a.seed, **more)
    labels = ["process-1", "process-2"]
    processes = [start(one, label) for label in labels]
    seconds = [wait(one, process, label) for process, label in zip(processes, labels, strict=True)]
    run, took = Run(one.folder, sum(seconds)), sweep_kills.by_process(one, labels)
    numbers = [int(row["trial"]) for row in run.rows]
    held = {
        "all": len(run.finished()) == a.trials and sorted(numbers) == list(range(a.trials)),
        "both": all(took),
        "once": sorted(number for part in took for number in part) == list(range(a.trials)),
    }
    lines = [f"{'trials: ' + run.states():44}" + verdict(held["all"])]
    lines += [f"{f'process {n}':44} trials {', '.join(map(str, part)) or 'none'}" for n, part in enumerate(took, 1)]
    lines += [
        f"{'both had a part':44}" + verdict(held["both"]),
        f"{'no trial ran in both':44}" + verdict(held["once"]),
    ]
    return lines, {"sweep": run.account(), "by_process": took, "held": held}, all(held.values())


def verdict(held: bool) -> str:
    return "  yes" if held else "  NO"


RUNS = {"best_rate": best_rate, "kills": kills, "halving": halving, "shared": shared}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    lines, figures, held = RUNS[a.command](a)
    publish(a, f"sweep_{a.command}", "\n".join(lines), figures)
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
