"""The folder of a comparison: its results, and what they are of, so that two comparisons never share a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.baselines.runs import Baseline
from benchmarks.texts import digest
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_atomic, write_json_atomic

FIGURES = ("loss", "accuracy", "bits_per_byte", "tokens_per_second", "used_seconds")
_CLAIM = "comparison.json"
_BEGIN = b'{"kind": "'  # of a line of results

Results = dict[tuple[str, int], dict[str, Any]]  # by name and seed: a run, with FIGURES or with why it `failed`


def read_results(log: Path) -> Results:
    """The results in a file; a last line that was cut off while it was written is dropped from it.

    Of a run that failed and was repeated the later line counts. InputError: a line that is no result.
    """
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    results: Results = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
            if "failed" not in result and not all(isinstance(result[key], int | float) for key in ("seed", *FIGURES)):
                raise ValueError
            results[result["name"], result["seed"]] = {"kind": result["kind"], **result}
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not line.endswith(b"\n") and _BEGIN.startswith(line[: len(_BEGIN)]):
                break
            raise InputError(f"output_dir: line {number} of {log} is no result; give another --output_dir") from None
    if lines:
        write_atomic(log, "".join(f"{json.dumps(result)}\n" for result in results.values()))
    return results


def claim(folder: Path, ours: dict[str, Any], held: bool) -> None:
    """Note in the folder what its results are of; where it has some (`held`), more names may come. InputError: a name there
    has another value."""
    file = folder / _CLAIM
    try:
        theirs = dict(json.loads(file.read_text(encoding="utf-8"))) if held else {}
    except (OSError, ValueError, TypeError):
        raise InputError(f"output_dir: {file} cannot be read, and there are results; give another folder") from None
    for name, value in ours.items():
        if name in theirs and theirs[name] != value:
            what = f"the results in {folder} have {theirs[name]}, this comparison has {value}"
            raise InputError(f"{name}: {what}; give another --output_dir")
    write_json_atomic(file, {**theirs, **ours})


def claim_of_all(a: argparse.Namespace, data: str, commit: str | None) -> dict[str, Any]:
    """What all runs share; `a` has the texts and the tokenizer that were prepared, `data` is the folder of our runs."""
    asked = {"budget": f"{a.seconds:g}s", "max_blocks": a.max_blocks, "packing": a.packing, "git_commit": commit}
    files = {"config_file": a.config_file, "text": a.text, "eval_text": a.eval_text, "tokenizer": a.tokenizer}
    files["data_dir"] = f"{data}/manifest.json"
    return {**asked, **{name: digest(file) for name, file in files.items()}}


def claim_of_runs(jobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By name: the recipe and what is changed of it, or the script and flags of a baseline."""
    found: dict[str, Any] = {}
    for job in jobs:
        name = job["name"]
        if job["kind"] == "baseline":
            found |= {f"script of {name}": Baseline.named(name).digest, f"flags of {name}": job["flags"]}
        else:
            found |= {f"recipe of {name}": digest(job["recipe"]), f"changes of {name}": job.get("changes")}
    return found
