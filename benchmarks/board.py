#!/usr/bin/env python3
"""The board of results: checks benchmarks/results/*.json and writes docs/board.md from them.

    python benchmarks/board.py
    python benchmarks/board.py add out/s0 out/s1 out/s2 --track cpu_10m --downstream out/downstream/downstream.json \
        --command 'accelerate launch ... train_mlm.py recipes/cpu_10m.yaml --total_training_time 10m --seed 0 ...'

`add` makes one result, a row of the page, of the output folders of finished runs that differ in their seeds alone. It holds
the runs' run_report.json without the folders of this machine, the command, and, where benchmarks/downstream.py has measured
their final/, its scores of SST-2, STS-B and MNLI.

Refused are reports whose shares do not add up or whose budget was overrun, other hardware than the track's, a recipe that
is not in recipes/ at the commit of the run, flags that differ from it and are not in the command, and scores of GLUE by
another protocol than that of the rows that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, one_line_errors  # noqa: E402
from benchmarks.downstream import CLAIM  # noqa: E402
from budget_trainer.config.parser import NULLS, yaml_typed  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402
from budget_trainer.core.io import write_atomic, write_json_atomic  # noqa: E402
from budget_trainer.core.output import Markup, fence, table  # noqa: E402
from budget_trainer.reporting.report import REPORT, machine, public_report  # noqa: E402

FORMAT = 1  # of a file in RESULTS
RESULTS = ROOT / "benchmarks" / "results"
BEFORE = RESULTS / "before.md"  # kept by hand, the last section of the page
PAGE = ROOT / "docs" / "board.md"
TASKS = {"SST-2": "SST-2, accuracy", "STS-B": "STS-B, Spearman", "MNLI": "MNLI-22k, accuracy"}
_ROUNDING = 0.01  # seconds by which the shares may miss their sum
_SETTLED = ("bf16", "torch_compile", "regional_compile")  # flags that auto_speed decides
_OF_A_SEED = (
    *_SETTLED,
    "seed",
    "run_name",
    "resume_from_checkpoint",
    "disable_tqdm",
)  # what runs of one row may differ in


@dataclass(frozen=True)
class Track:
    """Runs that may be compared: one budget in seconds on one kind of machine.

    `gpus` is the number of GPUs, one process each, 0 for two CPU cores; `name` a regular expression for the name of each,
    `gib` the bounds of its memory in GiB.
    """

    title: str
    seconds: float
    gpus: int = 0
    name: str = ""
    gib: tuple[float, float] = (0.0, math.inf)

    def fits(self, report: Mapping[str, Any]) -> bool:
        """Whether the run had the track's machine."""
        hardware, on_cpu = report["hardware"], not report["hardware"]["gpus"] or report["recipe"].get("use_cpu")
        if not self.gpus:
            return bool(on_cpu) and hardware["cores"] == 2
        low, high = self.gib
        kind = all(re.search(self.name, gpu["name"]) and low <= gpu["memory_gib"] <= high for gpu in hardware["gpus"])
        return not on_cpu and kind and report["world_size"] == self.gpus


TRACKS = {
    "cpu_3m": Track("3 minutes on two CPU cores", 180),
    "cpu_10m": Track("10 minutes on two CPU cores", 600),
    "cpu_1h": Track("60 minutes on two CPU cores", 3600),
    "h100_8m": Track("8 minutes on one H100-class GPU", 480, gpus=1, name=r"\b(H100|H200|GH200)\b"),
    "h100_1h": Track("1 hour on one H100-class GPU", 3600, gpus=1, name=r"\b(H100|H200|GH200)\b"),
    "24gb_24h": Track("24 hours on one GPU of 24 GB", 86400, gpus=1, gib=(20.0, 24.5)),
    "paper": Track("The paper's: 24 hours on 8 GPUs of 12 GB", 86400, gpus=8, gib=(10.0, 12.5)),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_subparsers(dest="what").add_parser(
        "add", help="make a result of finished runs", allow_abbrev=False
    )
    add.add_argument("runs", nargs="+", metavar="OUTPUT_DIR", help="finished runs of one recipe, one for each seed")
    add.add_argument("--track", required=True, choices=list(TRACKS), help="budget and kind of machine")
    add.add_argument("--command", required=True, help="that of the first run, as it was typed")
    add.add_argument("--downstream", help="downstream.json of benchmarks/downstream.py, with the final/ of every run")
    add.add_argument("--name", help="of the file in benchmarks/results/ (TRACK-RECIPE-COMMIT)")
    return parser.parse_args(argv)


# ---- what a report says ----


def recipe_name(report: Mapping[str, Any]) -> str:
    """`cpu_10m.yaml`, where the path is that of a file in recipes/ or only its name is left. InputError else."""
    given = report["recipe"].get("recipe")
    if not given or Path(given).parent.name not in ("recipes", ""):
        raise InputError(f"recipe: {given} is no file of recipes/; commit its flags as one there, then run that")
    return f"{Path(given).stem}.yaml"


def held_out(report: Mapping[str, Any]) -> str:
    """The held-out text: a file of its own, or a share of the training text's sources. InputError without one."""
    data = report["data"] or {}
    if data.get("validation_text"):
        return str(data["validation_text"])
    sources = ", ".join(source["name"] for source in data.get("sources") or ())
    if not sources or not data.get("validation_fraction"):
        raise InputError("data: the report names no held-out text; prepare the data folder with data_prep, then run")
    return f"{100 * data['validation_fraction']:g} % of {sources}"


def hardware_text(report: Mapping[str, Any]) -> str:
    hardware, gpus = report["hardware"], report["hardware"]["gpus"]
    if not gpus or report["recipe"].get("use_cpu"):
        return f"{hardware['cores']} cores of {hardware['cpu']}, {hardware['memory_gib']} GiB"
    return f"{report['world_size']} x {gpus[0]['name']}, {gpus[0]['memory_gib']} GiB"


# ---- checks ----


def check(result: Mapping[str, Any]) -> None:
    """Refuse (InputError) what is no row of the board, for the first fault that is found."""
    try:
        if (found := result.get("format")) != FORMAT:
            raise InputError(
                f"format: {found!r}, this version reads {FORMAT}; make the file again with `board.py add`"
            )
        if (key := result["track"]) not in TRACKS:
            raise InputError(f"track: {key!r} is none of {', '.join(TRACKS)}; give one of these")
        reports = [run["report"] for run in result["runs"]]
        for report in reports:
            _check_budget(report, TRACKS[key])
            if not TRACKS[key].fits(report):
                what = f"{hardware_text(report)} is not the machine of track {key}"
                raise InputError(f"hardware: {what} ({TRACKS[key].title}); give the track of this machine")
            _check_recipe(report, result["command"])
        _check_together(reports)
        for run in result["runs"]:
            if set(run["downstream"]) != set(result["protocol"]) or not set(result["protocol"]) <= set(TASKS):
                raise InputError("downstream: the runs were not scored on the same tasks; make the file again")
            if not all(-100 <= task["median"] <= 100 for task in run["downstream"].values()):
                raise InputError("downstream: a score is no number of points of 100; make the file again")
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"result: not what `board.py add` writes ({_said(error)}); make the file again with it"
        ) from None


def _check_budget(report: Mapping[str, Any], track: Track) -> None:
    """Refuse another budget than the track's, one that was not kept, shares that do not add up, a run without score."""
    shares, used, budget = report["shares"], report["used_seconds"], report["budget_seconds"]
    total = math.fsum(shares.values())
    if not abs(total - used) <= _ROUNDING or min(shares.values(), default=-1.0) < 0:
        what = f"shares: they add up to {total:.2f} s where used_seconds is {used:.2f}"
        raise InputError(f"{what}; take run_report.json as the run has written it")
    if budget != track.seconds:
        raise InputError(
            f"budget_seconds: {budget} is not the {track.seconds:g} of the track; give the track of this run"
        )
    if used > budget or report["overrun_seconds"] > 0:
        raise InputError(f"used_seconds: {used:.2f} of {budget:g} s, so the budget was overrun; run again")
    evaluation = report["evaluation"] or {}
    if not (evaluation.get("complete") and math.isfinite(evaluation.get("bits_per_byte") or math.nan)):
        raise InputError(
            "evaluation: not complete; start the run again with --resume_from_checkpoint auto, which ends it"
        )


def _check_recipe(report: Mapping[str, Any], command: str) -> None:
    """Refuse a recipe that is not in the repository at the run's commit, and flags that differ and were not told."""
    commit, name = str(report["git_commit"]), recipe_name(report)
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise InputError(f"git_commit: {commit} is no commit of an unchanged checkout; commit the changes, then run")
    if (tree := _git("ls-tree", "-r", "--name-only", "--full-tree", commit)) is None:
        raise InputError(f"git_commit: {commit} is not in this repository; fetch it, or run at a commit that is there")
    path = next((path for path in tree.splitlines() if Path(path).parts[-2:] == ("recipes", name)), None)
    content = None if path is None else _git("show", f"{commit}:{path}")
    if content is None:
        raise InputError(f"recipe: recipes/{name} is not in the repository at {commit[:7]}; commit it, then run")
    if Path(name).stem not in command:
        raise InputError(f"command: it does not name {name}; give the command of this run")
    for key, value in yaml.load(content, Loader=yaml.BaseLoader).items():
        flag = rf"--(no[-_])?{key.replace('_', '[-_]')}\b"
        told = key in _SETTLED or key.startswith("no_") or key.endswith("_dir") or re.search(flag, command)
        if not told and not _same(value, did := report["recipe"].get(key)):
            what = f"{key} was {did!r} in the run and is {value!r} in {name} at {commit[:7]}"
            raise InputError(f"recipe: {what}, and the command does not say so; give the command as it was typed")


def _same(written: Any, did: Any) -> bool:
    """Whether the value of a recipe's key, as text, a list or a mapping of text, is the value in a report."""
    if isinstance(did, bool):
        return (str(written).lower() in ("true", "yes", "t", "y", "1")) == did
    if isinstance(did, list):
        return bool(written == did or (written in ("none", *NULLS) and not did))  # report_to
    if written in NULLS or did is None:
        return bool(written in NULLS and did is None)
    return bool(yaml_typed(written) == (yaml_typed(did) if isinstance(did, str) else did))


def _check_together(reports: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs that differ in more than their seeds, and a seed that is there twice."""
    first, *others = reports
    for report in others:
        alike = {
            "recipe": [recipe_name(one) for one in (first, report)],
            "git_commit": [one["git_commit"] for one in (first, report)],
            "hardware": [machine(one["hardware"]) for one in (first, report)],
            "data": [held_out(one) for one in (first, report)],
            "world_size": [one["world_size"] for one in (first, report)],
        }
        mine, theirs = first["recipe"], report["recipe"]
        flags = [
            key for key in mine.keys() | theirs.keys() if key not in ("recipe", *_OF_A_SEED) and key[-4:] != "_dir"
        ]
        alike |= {key: [mine.get(key), theirs.get(key)] for key in sorted(flags)}
        if key := next((key for key, (one, other) in alike.items() if one != other), None):
            raise InputError(f"{key}: {alike[key][0]!r} in one run, {alike[key][1]!r} in another; add each by itself")
    held_out(first)
    seeds = [report["recipe"]["seed"] for report in reports]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seed: {', '.join(map(str, seeds))} are not different; give each run once")


def _check_protocols(results: Mapping[str, Any]) -> None:
    """Refuse scores of a task that come from other data or flags than those of another result."""
    known: dict[str, tuple[str, Any]] = {}
    for name, result in results.items():
        for task, protocol in result["protocol"].items():
            other, theirs = known.setdefault(task, (name, protocol))
            if protocol != theirs:
                what = f"{name}: downstream: {task} has other data or flags than in {other}"
                raise InputError(f"{what}; measure it with recipes/glue/downstream.yaml and the same data")


def _said(error: Exception) -> str:
    return " ".join(repr(error).split())


def _git(*words: str) -> str | None:
    """What git prints in the repository; None where it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


# ---- a result of finished runs ----


def make_result(a: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The name of the file and its content, checked, without the folders of this machine."""
    from budget_trainer.glue.results import read_object

    folders = [Path(folder) for folder in a.runs]
    reports = [read_object(folder / REPORT, "give the output_dir of a finished run") for folder in folders]
    protocol: dict[str, Any] = {}
    scores: list[dict[str, Any]] = [{} for _ in folders]
    if a.downstream is not None:
        protocol, scores = read_downstream(Path(a.downstream), folders)
    runs = [{"report": report, "downstream": score} for report, score in zip(reports, scores, strict=True)]
    result = {"format": FORMAT, "track": a.track, "command": a.command, "protocol": protocol, "runs": runs}
    check(result)  # while the reports still say where the recipe lies
    for run in runs:
        run["report"] = json.loads(public_report(run["report"]))
    name = a.name or f"{a.track}-{Path(recipe_name(reports[0])).stem}-{reports[0]['git_commit'][:7]}"
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"name: {name!r} is no name of a file; take letters, digits, '.', '_' and '-'")
    if (RESULTS / f"{name}.json").exists():
        raise InputError(f"name: {name}.json is there already; give another --name, or delete it to replace it")
    return f"{name}.json", result


def read_downstream(file: Path, folders: Sequence[Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Data and flags of each task of the board that was scored, and the scores of each run's final/, points of 100."""
    from budget_trainer.glue.model import load_checkpoint
    from budget_trainer.glue.results import read_object

    again = "give downstream.json of benchmarks/downstream.py, in its folder"
    asked, found = read_object(file.with_name(CLAIM), again), read_object(file, again)
    try:
        measured = {one["sha256"]: one["tasks"] for one in found["checkpoints"].values()}
        digests = [load_checkpoint(str(folder / "final"))[2] for folder in folders]
        if missing := [folder for folder, digest in zip(folders, digests, strict=True) if digest not in measured]:
            raise InputError(f"downstream: {file} has no scores of {missing[0]}/final; run downstream.py with it")
        tasks = [task for task in TASKS if task in asked["tasks"] and all(task in measured[one] for one in digests)]
        kept = ("median", "min", "max", "best_rate", "seeds")
        scores = [{task: {key: measured[one][task][key] for key in kept} for task in tasks} for one in digests]
        return {task: asked["tasks"][task] for task in tasks}, scores
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"downstream: {file} is not what downstream.py writes ({_said(error)}); {again}") from None


# ---- the page ----

_HEAD = """<!-- Written by benchmarks/board.py from benchmarks/results/. Edit these, not this page. -->
# Board

What a time on a machine gives, row by row, with command, hardware, commit and seeds; the link of a row leads to the
`run_report.json` of each of its runs. `benchmarks/board.py` writes this page and refuses a row whose report does not add up,
whose budget was overrun, or whose recipe is not in the repository at the commit of the run.
[How to add a row](../CONTRIBUTING.md#a-row-on-the-board); [what pays and what does not](../recipes/README.md).

- **Bits per byte** are those of the pinned evaluation on the held-out text that the row names: lower is better. Compare
  rows with the same held-out text.
- **SST-2, STS-B, MNLI-22k** are points of 100 on dev by `benchmarks/downstream.py` with `recipes/glue/downstream.yaml`:
  medians over seeds of fine-tuning at the best of its rates. All rows have the same data and flags; a result has the digest
  of its data. MNLI-22k is a part of MNLI: 21,751 rows for training, of which the protocol takes 12,000, and 7,469 of
  dev-matched.
- Of several seeds of pre-training: the median (lowest to highest).
"""
_COLUMNS = ("recipe", "held-out text", "bits per byte", *TASKS.values())
_COLUMNS += ("parameters", "tokens/s", "used", "hardware", "commit", "seeds")


def _spread(values: Sequence[float], form: str) -> str:
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _bits(result: Mapping[str, Any]) -> list[float]:
    return [run["report"]["evaluation"]["bits_per_byte"] for run in result["runs"]]


def _cells(name: str, result: Mapping[str, Any]) -> list[Any]:
    reports, scored = [run["report"] for run in result["runs"]], [run["downstream"] for run in result["runs"]]
    first = reports[0]
    scores = [_spread([one[task]["median"] for one in scored], ".1f") if task in scored[0] else "" for task in TASKS]
    return [
        Markup(f"[`{recipe_name(first)}`](../benchmarks/results/{name})"),
        held_out(first),
        _spread(_bits(result), ".3f"),
        *scores,
        f"{first['parameters'] / 1e6:.1f} M",
        _spread([report["tokens_per_second"] for report in reports], ",.0f"),
        f"{_spread([report['used_seconds'] for report in reports], '.1f')} s",
        hardware_text(first),
        first["git_commit"][:7],
        ", ".join(str(report["recipe"]["seed"]) for report in reports),
    ]


def page(results: Mapping[str, Any]) -> str:
    """docs/board.md from the results by their files' names. InputError for the first fault, with the file's name."""
    for name, result in results.items():
        try:
            check(result)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    _check_protocols(results)
    parts = [_HEAD]
    for key, track in TRACKS.items():
        names = [name for name, result in results.items() if result["track"] == key]
        names.sort(key=lambda name: (held_out(results[name]["runs"][0]["report"]), median(_bits(results[name])), name))
        parts += [f"## {track.title}\n", f"`--track {key}`. " + ("The commands:" if names else "No row yet.") + "\n"]
        if names:
            commands = "\n".join(f"{name}: {' '.join(results[name]['command'].split())}" for name in names)
            rows = [_cells(name, results[name]) for name in names]
            parts += [fence(commands, "text") + "\n", table(_COLUMNS, rows) + "\n"]
    return "\n".join([*parts, BEFORE.read_text(encoding="utf-8")])


def read_results() -> dict[str, Any]:
    """The content of each file in benchmarks/results/, by its name."""
    from budget_trainer.glue.results import read_object

    again = "make it with `board.py add`, or delete it"
    return {path.name: read_object(path, again) for path in sorted(RESULTS.glob("*.json"))}


@one_line_errors
def main(argv: list[str] | None) -> None:
    a, results = parse(argv), read_results()
    if a.what == "add":
        name, result = make_result(a)
        results[name] = result
    text = page(results)
    if a.what == "add":
        write_json_atomic(RESULTS / name, result)
        print(f"wrote {RESULTS / name}")
    write_atomic(PAGE, text)
    print(f"wrote {PAGE}, {len(results)} rows")


if __name__ == "__main__":
    sys.exit(main())
