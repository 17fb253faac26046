"""The baselines as others run them: which there are, one run with its scores, the flags that tuning found."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cli import run_child
from budget_trainer.budget.clock import format_duration, parse_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import sha256, write_atomic

FOLDER = Path(__file__).resolve().parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "tuned")
TUNED = FOLDER / "tuned.yaml"  # the best flags that `tune.py` found, for those who do not tune; it need not be there
LEAST_TRIALS = 12  # that have finished: fewer are no tuning
TOLD_TRIALS = 3  # the best ones, which are kept in a file of `record`
SCORES = ("loss", "accuracy", "bits_per_byte", "parameters", "model_type")


@dataclass(frozen=True)
class Baseline:
    """A script, and what of it is searched: `sweep` has the keys of a sweep file, `fixed` the flags of all runs, `first` the
    parameters of the first trial, as text."""

    name: str
    script: str
    sweep: dict[str, Any]
    fixed: dict[str, Any]
    first: dict[str, str]

    @classmethod
    def named(cls, name: str) -> Baseline:
        if name not in NAMES:
            raise InputError(f"baselines: {name!r} is unknown; give some of {', '.join(NAMES)}")
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        sweep = yaml.load(text, Loader=yaml.BaseLoader)  # values as they are written, as in a recipe
        return cls(name, sweep.pop("script"), sweep, sweep.pop("fixed", {}), sweep.pop("first"))

    @property
    def digest(self) -> str:
        """Of the script and of what its command line shares with others'."""
        return sha256("".join(sha256(FOLDER / f"{part}.py") for part in (self.script, "command")))[:16]

    def run(self, words: Sequence[str], folder: Path, eval_text: str, max_blocks: int) -> dict[str, Any]:
        """Train in `folder` with the flags `words`, and score: what the script writes to result.json (at least steps,
        used_seconds and tokens_per_second) and SCORES.

        Compilation is not cached from run to run; the tokenised text is, for runs in one folder. InputError with the reason
        where it fails.
        """
        folder.mkdir(parents=True, exist_ok=True)
        cold, shared = folder / "compile-cache", folder.parent / "datasets-cache"
        command = [sys.executable, "-m", f"benchmarks.baselines.{self.script}", *words, "--output_dir", str(folder)]
        environ = {"TORCHINDUCTOR_CACHE_DIR": str(cold), "HF_DATASETS_CACHE": str(shared)}
        run_child(command, folder / "log.txt", **environ)
        shutil.rmtree(cold, ignore_errors=True)
        scores = score(folder, folder, eval_text, max_blocks)
        return {**json.loads((folder / "result.json").read_text()), **scores}


def score(model: Path, folder: Path, eval_text: str, max_blocks: int) -> dict[str, Any]:
    """SCORES of any model, by the stock scorer in a process of its own; its files go to `folder`."""
    file = folder / "scores.json"
    command = [sys.executable, str(FOLDER / "scorer.py"), "--model", str(model), "--text", eval_text]
    run_child([*command, "--max_blocks", str(max_blocks), "--output_file", str(file)], folder / "scorer.log")
    found = json.loads(file.read_text())
    return {key: found[key] for key in SCORES}


@dataclass(frozen=True)
class Best:
    """The flags of a baseline that tuning found best for a budget, with what is told of the tuning and its best trials."""

    flags: dict[str, Any]
    told: str
    trials: list[dict[str, Any]] = field(default_factory=list)


NOT_TUNED = "not tuned"


def best_of(name: str, seconds: float, file: Path, hardware: str) -> Best:
    """What `file` has for a baseline: of several budgets the nearest one's. Its own defaults where it has none.

    `hardware` is this machine, in the words of `tune.hardware_line`. InputError: too few trials to be called tuning.
    """
    fixed = Baseline.named(name).fixed
    entries = _read(file).get(name, {})
    if not entries:
        return Best(fixed, NOT_TUNED)
    near = min(entries, key=lambda budget: abs(math.log(parse_duration(budget, "tuned") / seconds)))
    entry = entries[near]
    if entry["finished"] < LEAST_TRIALS:
        what = f"{entry['finished']} finished trials of {name} in {file} are too few to call it tuned"
        raise InputError(f"tuned: {what}; tune it with {LEAST_TRIALS} or more, or take it out of the file")
    told = f"tuned: {entry['finished']} of {entry['trials']} trials of {near} finished ({entry['hardware']})"
    told += "" if near == format_duration(seconds) else f"; that budget is not this one, {format_duration(seconds)}"
    told += "" if entry["hardware"] == hardware else f"; that hardware is not this one, {hardware}"
    return Best({**fixed, **entry["flags"]}, told, entry.get("runs", []))


def flags_line(flags: Mapping[str, Any]) -> str:
    """Flags in words, for a table."""
    return ", ".join(
        f"{key} {value:.2e}" if isinstance(value, float) else f"{key} {value}" for key, value in flags.items()
    )


def record(file: Path, name: str, seconds: float, entry: dict[str, Any]) -> None:
    """Set what `file` has for a baseline and a budget: flags, bits_per_byte, finished, trials, hardware, git_commit, and of
    `runs` the first TOLD_TRIALS."""
    content = _read(file)
    kept = {**entry, "runs": entry["runs"][:TOLD_TRIALS]} if "runs" in entry else entry
    content.setdefault(name, {})[format_duration(seconds)] = kept
    head = "# Written by benchmarks/baselines/tune.py: baseline, budget, the best of its trials.\n"
    write_atomic(file, head + yaml.safe_dump(content, sort_keys=False))


def _read(file: Path) -> dict[str, Any]:
    """The mapping of baseline and budget in a file of `record`; empty where there is no file. InputError: another format."""
    if not file.is_file():
        return {}
    fix = "give a file that benchmarks/baselines/tune.py wrote"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for entries in content.values():
            for budget, entry in entries.items():
                parse_duration(budget, "budget")
                if not isinstance(entry["flags"], dict) or not {"finished", "trials", "hardware"} <= set(entry):
                    raise KeyError("flags, finished, trials, hardware")
                for number in (entry["finished"], *(run["bits_per_byte"] for run in entry.get("runs", []))):
                    math.isfinite(number)  # TypeError: it is no number
                if not all(isinstance(run["flags"], dict) for run in entry.get("runs", [])):
                    raise KeyError("flags of runs")
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"tuned: {file} cannot be read ({' '.join(repr(error).split())[:120]}); {fix}") from None
    return content
