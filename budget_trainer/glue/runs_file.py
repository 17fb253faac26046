"""`glue_runs.json`: all runs of a suite, what they scored, and the best configuration of each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from budget_trainer.glue.plan import Plan, PlannedRun
from budget_trainer.glue.results import RUNS_FORMAT, Spread
from budget_trainer.glue.tasks import TASKS

Records = Sequence[tuple[PlannedRun, dict[str, Any]]]


def record(run: PlannedRun, key: str, folder: str, result: dict[str, Any] | None, error: str | None) -> dict[str, Any]:
    """One run as the file holds it; `result` is its result.json, None where it has failed with `error`."""
    entry: dict[str, Any] = {"seed": run.seed, "key": key, "folder": folder}
    if result is None:
        return {**entry, "status": "failed", "error": error, "headline": None}
    return {
        **entry,
        "status": "finished",
        "headline": result["headline"]["value"],
        "metrics": result["metrics"],
        "official_rows": all(result["official_rows"].values()),
        "best_epoch": result["best_epoch"],
        "steps": result["steps"],
        "predictions": result["predictions"],
        "seconds": result["seconds"]["total"],
    }


def task_entry(plan: Plan, name: str, records: Records) -> dict[str, Any]:
    """A task with its configurations, the best of them by the median of its seeds, and its best run.

    A configuration whose runs have all finished goes before one whose have not, whatever the scores: few seeds are luck.

    Scores are shares from 0 to 1, times seconds. `best_run` is the highest of the best configuration (of equals the first
    seed): what a later task starts from.
    """
    configurations: list[dict[str, Any]] = []
    for run, entry in records:
        if run.configuration == len(configurations):
            configurations.append({"flags": run.flags, "runs": []})
        configurations[run.configuration]["runs"].append(entry)
    for configuration in configurations:
        configuration["headline"] = _spread([e["headline"] for e in _finished(configuration["runs"])])
    scored = [place for place, one in enumerate(configurations) if one["headline"] is not None]
    best = max(scored, key=lambda place: _rank(configurations[place])) if scored else None
    runs = [] if best is None else _finished(configurations[best]["runs"])
    highest = max(runs, key=lambda entry: entry["headline"], default=None)
    return {
        "headline_metric": TASKS[name].headline,
        "starts_from": records[0][0].base,
        "official_rows": all(entry.get("official_rows", True) for _, entry in records),
        "data_sha256": plan.data_digests[name],
        "headline": None if best is None else configurations[best]["headline"],
        "metrics": {
            split: {metric: _spread([entry["metrics"][split][metric] for entry in runs]) for metric in values}
            for split, values in (runs[0]["metrics"] if runs else {}).items()
        },
        "best_run": None if highest is None else {"seed": highest["seed"], "folder": highest["folder"]},
        "best_configuration": best,
        "configurations": configurations,
        "seconds": sum(entry.get("seconds", 0.0) for _, entry in records),
    }


def _finished(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in runs if entry["status"] == "finished"]


def _spread(scores: list[float]) -> dict[str, float] | None:
    return Spread.of(scores).scores() if scores else None


def _rank(configuration: dict[str, Any]) -> tuple[float, float]:
    runs = configuration["runs"]
    return len(_finished(runs)) / len(runs), configuration["headline"]["median"]


def whole(plan: Plan, model: dict[str, Any], protocol: dict[str, Any], records: dict[str, Records]) -> dict[str, Any]:
    """The content of the file, tasks in GLUE's order; the same for the same runs, however often they were begun."""
    tasks = {name: task_entry(plan, name, records[name]) for name in TASKS if name in records}
    return {
        "format": RUNS_FORMAT,
        "model": model,
        "protocol": protocol,
        "tasks": tasks,
        "covered": plan.covered,
        "absent": plan.absent,
        "failed": sum(entry["status"] == "failed" for task in records.values() for _, entry in task),
        "seconds": sum(task["seconds"] for task in tasks.values()),
    }
