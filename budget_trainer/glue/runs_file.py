"""`glue_runs.json`: all runs of a suite, what they scored, and the best configuration of each task."""

from __future__ import annotations

from typing import Any

from budget_trainer.glue.files import RUNS_FORMAT
from budget_trainer.glue.plan import Plan, PlannedRun
from budget_trainer.glue.results import Spread
from budget_trainer.glue.tasks import TASKS


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


def task_entry(plan: Plan, name: str, records: list[tuple[PlannedRun, dict[str, Any]]]) -> dict[str, Any]:
    """A task with its configurations, the best of them by the median of its seeds, and its best run.

    A configuration whose runs have all finished goes before one whose have not, whatever the scores: few seeds are luck.

    Scores are shares from 0 to 1, times seconds. `best_run` is the highest of the best configuration (of equals the first
    seed): what a later task starts from.
    """
    task = TASKS[name]
    configurations: list[dict[str, Any]] = []
    for run, entry in records:
        if run.configuration == len(configurations):
            configurations.append({"flags": run.flags, "runs": []})
        configurations[run.configuration]["runs"].append(entry)
    for configuration in configurations:
        scores = [entry["headline"] for entry in configuration["runs"] if entry["headline"] is not None]
        configuration["headline"] = Spread.of(scores).scores() if scores else None
    scored = [place for place, one in enumerate(configurations) if one["headline"] is not None]
    best = max(scored, key=lambda place: _rank(configurations[place])) if scored else None
    return {
        "headline_metric": task.headline,
        "starts_from": records[0][0].base,
        "official_rows": all(entry.get("official_rows", True) for _, entry in records),
        "data_sha256": plan.data_digests[name],
        **_of_best(None if best is None else configurations[best]["runs"]),
        "best_configuration": best,
        "configurations": configurations,
        "seconds": sum(entry.get("seconds", 0.0) for _, entry in records),
    }


def _rank(configuration: dict[str, Any]) -> tuple[float, float]:
    runs = configuration["runs"]
    finished = sum(entry["status"] == "finished" for entry in runs)
    return finished / len(runs), configuration["headline"]["median"]


def _of_best(runs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Headline, every metric of every dev split, and the best run of a configuration."""
    finished = [entry for entry in runs or [] if entry["status"] == "finished"]
    if not finished:
        return {"headline": None, "metrics": {}, "best_run": None}
    metrics = {
        split: {name: Spread.of([entry["metrics"][split][name] for entry in finished]).scores() for name in values}
        for split, values in finished[0]["metrics"].items()
    }
    best = max(finished, key=lambda entry: entry["headline"])
    return {
        "headline": Spread.of([entry["headline"] for entry in finished]).scores(),
        "metrics": metrics,
        "best_run": {"seed": best["seed"], "folder": best["folder"]},
    }


def whole(
    plan: Plan,
    model: dict[str, Any],
    protocol: dict[str, Any],
    records: dict[str, list[tuple[PlannedRun, dict[str, Any]]]],
) -> dict[str, Any]:
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
