#!/usr/bin/env python3
"""The board of results: checks benchmarks/results/*.json and writes docs/board.md from them.

    python benchmarks/board.py
    python benchmarks/board.py add out/s0 out/s1 out/s2 --track cpu_10m --downstream out/downstream/downstream.json \
        --command 'accelerate launch ... train_mlm.py recipes/cpu_10m.yaml --total_training_time 10m --seed 0 ...'

`add` makes one result, a row of the page, of the output folders of finished runs that differ in their seeds alone. It holds
the runs' run_report.json without the folders of this machine, the command, and, where benchmarks/downstream.py has measured
their final/, its scores of SST-2, STS-B and MNLI.

Refused are reports whose shares do not add up or whose budget was overrun, other hardware than the track's, a recipe that
is not in recipes/ at the commit of the run, flags that are not what this recipe, the command and the defaults give, and
scores of GLUE by another protocol than that of the rows that are there.

Defaults are those of the run: this project's are read at its commit, Hugging Face's where the installed Transformers is the
release of the run (else flags of theirs that neither recipe nor command gives are not compared).
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, one_line_errors  # noqa: E402
from benchmarks.downstream import CLAIM  # noqa: E402
from budget_trainer.config.parser import NULLS, written_flags, yaml_typed  # noqa: E402
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
_ARGUMENTS = "budget_trainer/config/arguments.py"  # declares the flags of train_mlm.py
_SCRIPT = re.compile(
    r"((^|/)train_mlm\.py|(^|/)budget-train-mlm|\.train_mlm)$"
)  # the words before it are the launcher's
_SHELL = re.compile(r"[|&;<>#]|\d>")  # a word of the shell behind the command
_YES = ("true", "yes", "t", "y", "1")
# What runs of one row may differ in: what auto_speed settles, or a machine without a compiler; the seed and its company.
_SETTLED = {*"bf16 torch_compile torch_compile_backend torch_compile_mode regional_compile".split()}
_OF_A_SEED = _SETTLED | {*"recipe seed run_name resume_from_checkpoint disable_tqdm".split()}
# Of the launcher and the machine, which a track checks, or filled in by Hugging Face, with one that is an alias.
_FILLED_IN = {*"use_cpu local_rank accelerator_config parallelism_config fsdp fsdp_config".split()}
_FILLED_IN |= {*"activation_checkpointing gradient_checkpointing".split()}
# What a run makes of a flag that is not given; 2**40 steps: the time ends it.
_RESOLVED = {"max_steps": (2**40,), "dataloader_num_workers": (0, 2), "dataloader_pin_memory": (False,)}


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
    """The held-out text, a file of its own or a share of the training text's sources, and its blocks. InputError without."""
    data = report["data"] or {}
    sources = ", ".join(source["name"] for source in data.get("sources") or ())
    fraction, text, blocks = (data.get(f"validation_{key}") for key in ("fraction", "text", "rows"))
    if not text and not (sources and fraction):
        raise InputError("data: the report names no held-out text; prepare the data folder with data_prep, then run")
    return (text or f"{100 * fraction:g} % of {sources}") + (f", {blocks:,} blocks" if blocks else "")


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
            if run["downstream"].keys() != result["protocol"].keys() or not result["protocol"].keys() <= TASKS.keys():
                raise InputError("downstream: the runs were not scored on the same tasks; make the file again")
            if not all(-100 <= task["median"] <= 100 for task in run["downstream"].values()):
                raise InputError("downstream: a score is no number of points of 100; make the file again")
        _cells("", result)  # all that the page shows is there
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, SyntaxError, yaml.YAMLError) as error:
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
    """Refuse a recipe that is not in the repository at the run's commit, and flags that it and the command do not give."""
    commit, name, flags = str(report["git_commit"]), recipe_name(report), report["recipe"]
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise InputError(f"git_commit: {commit} is no commit of an unchanged checkout; commit the changes, then run")
    if _git("cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise InputError(f"git_commit: {commit} is not in this repository; fetch it, or run at a commit that is there")
    if (content := _git("show", f"{commit}:./recipes/{name}")) is None:
        raise InputError(f"recipe: recipes/{name} is not in the repository at {commit[:7]}; commit it, then run")
    words = shlex.split(command.replace("\\\n", " "))
    words = words[next((place for place, word in enumerate(words, 1) if _SCRIPT.search(word)), len(words)) :]
    if not words or Path(words[0]).stem != Path(name).stem:
        raise InputError(f"command: it does not call train_mlm.py with {name}; give the command of this run")
    told = written_flags([*takewhile(lambda word: not _SHELL.match(word), words[1:])])
    written = _positive(yaml.load(content, Loader=yaml.BaseLoader)) | _positive(told)
    default = defaults_at(commit, (report.get("versions") or {}).get("transformers"))
    left_out = _OF_A_SEED | _FILLED_IN  # and what a curve leaves at its last value
    left_out |= {"gradient_accumulation_steps"} if flags.get("batch_size_curve") else set()
    for key in sorted((flags.keys() & default.keys() | written.keys()) - left_out):
        did, asked = flags.get(key), written.get(key, default.get(key))
        resolved = key not in written and did in _RESOLVED.get(key, ())
        if not (resolved or key.endswith("_dir") or _same(asked, did)):
            what = f"{key} was {did!r} in the run; {name} at {commit[:7]}, command and defaults give {asked!r}"
            raise InputError(f"recipe: {what}; give the command as it was typed")


@cache
def defaults_at(commit: str, release: str | None) -> dict[str, Any]:
    """The defaults of the flags at a commit; those of Hugging Face too where `release` of Transformers is installed.

    They are read from the sources: an import would take seconds, and know today's alone. InputError where there are none.
    """
    if (ours := _git("show", f"{commit}:./{_ARGUMENTS}")) is None:
        raise InputError(f"git_commit: {commit[:7]} has no {_ARGUMENTS} with the defaults; run at a newer commit")
    installed, found = distribution("transformers"), dict[str, Any]()
    file = Path(str(installed.locate_file("transformers/training_args.py")))
    theirs = file.read_text(encoding="utf-8") if release == installed.version else ""
    for source in (theirs, ours):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                values = [*node.value.args, *(word.value for word in node.value.keywords if word.arg == "default")]
                with suppress(ValueError, IndexError):  # no literal, no default
                    found[ast.unparse(node.target)] = ast.literal_eval(values[0])
    return found


def _positive(flags: Mapping[str, Any]) -> dict[str, Any]:
    """`no_bf16: true` as `bf16: false`."""
    switched = {key[3:]: str(str(value).lower() not in _YES) for key, value in flags.items() if key.startswith("no_")}
    return {key: value for key, value in flags.items() if not key.startswith("no_")} | switched


def _same(asked: Any, did: Any) -> bool:
    """Whether a default, or a recipe's or command's value as text, a list or a mapping of text, is the value in a report."""
    asked = None if asked in NULLS else asked
    if asked is None or did is None:
        return asked is None and did in (None, [])
    if isinstance(did, bool):
        return (str(asked).lower() in _YES) == did
    if isinstance(did, list):  # report_to
        return bool(asked == did or str(asked).split() == did or (asked == "none" and not did))
    value = yaml_typed(asked if isinstance(asked, dict | list) else str(asked))
    if not isinstance(did, str):
        return bool(value == did)
    name = Path(did).name if did.startswith("/") else did  # of a folder, a published report has the last part
    return bool(value == yaml_typed(did) or Path(str(asked)).name == name)


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
        flags = [key for key in mine.keys() | theirs.keys() if key not in _OF_A_SEED and key[-4:] != "_dir"]
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
  rows with the same held-out text. Its name is that of its file, or of the training text of which it is a part, with its
  number of blocks; a report has no digest of it. Another number is another text, vocabulary or block length.
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
