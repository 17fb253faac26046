"""The one reader of a suite's results: `glue_runs.json`, and `result.json` in the folder of each run that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.glue.files import RESULT, RUNS_FILE, RUNS_FORMAT
from budget_trainer.glue.results import Run, Suite, TaskResult
from budget_trainer.glue.tasks import TASKS

AGAIN = "repeat the command that made it"


def read_suite(path: Path) -> Suite:
    """The suite in `path`: `glue_runs.json`, or the folder that holds it.

    A task all of whose runs failed is absent, with the first error as the reason. InputError where the file or a run's
    result is missing, damaged or of another format.
    """
    path = path / RUNS_FILE if path.is_dir() else path
    content = _read(path)
    if content.get("format") != RUNS_FORMAT:
        raise InputError(f"{path}: format {content.get('format')!r}, this version reads {RUNS_FORMAT}; {AGAIN}")
    tasks: dict[str, TaskResult] = {}
    try:
        absent = {str(name): str(reason) for name, reason in content["absent"].items()}
        model = _model_name(content["model"]["name_or_path"])
        for name, entry in content["tasks"].items():
            if entry["best_configuration"] is None:
                absent[name] = _all_failed(entry)
            else:
                tasks[name] = _task(path.parent, name, entry)
        absent = {name: absent[name] for name in sorted(absent, key=list(TASKS).index)}
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({error!r}); {AGAIN}") from None
    return Suite(model, {name: tasks[name] for name in TASKS if name in tasks}, absent)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no object; {AGAIN}")
    return content


def _model_name(name: Any) -> str:
    """As it was asked for; of an absolute path the last two parts: the rest says nothing about the model."""
    path = Path(str(name))
    return "/".join(path.parts[-2:]) if path.is_absolute() else str(name)


def _all_failed(entry: Mapping[str, Any]) -> str:
    runs = [run for configuration in entry["configurations"] for run in configuration["runs"]]
    return f"all {len(runs)} runs failed ({runs[0]['error']})"


def _task(folder: Path, name: str, entry: Mapping[str, Any]) -> TaskResult:
    best = int(entry["best_configuration"])
    configurations = entry["configurations"]
    finished = [
        _run(folder, str(place), run)
        for place, configuration in enumerate(configurations)
        for run in configuration["runs"]
        if run["status"] == "finished"
    ]
    return TaskResult(
        TASKS[name],
        tuple(finished),
        best=str(best),
        flags=dict(configurations[best]["flags"]),
        base=entry["starts_from"],
        notes=tuple(_failures(configurations, best)),
    )


def _run(folder: Path, configuration: str, entry: Mapping[str, Any]) -> Run:
    home = folder / entry["folder"]
    result = _read(home / RESULT)
    return Run(
        seed=int(entry["seed"]),
        configuration=configuration,
        metrics=entry["metrics"],
        seconds=float(entry["seconds"]),
        folder=home,
        predictions=dict(entry["predictions"]),
        rows={str(split): int(rows) for split, rows in result["rows"].items()},
    )


def _failures(configurations: list[Mapping[str, Any]], best: int) -> list[str]:
    """What a reader has to know about runs without a score."""
    notes, others = [], 0
    for place, configuration in enumerate(configurations):
        for run in configuration["runs"]:
            if run["status"] == "finished":
                continue
            if place == best:
                notes.append(f"seed {run['seed']} of the best configuration failed ({run['error']})")
            else:
                others += 1
    return notes + ([f"runs of other configurations that failed: {others}"] if others else [])
