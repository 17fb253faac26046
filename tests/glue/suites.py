"""Synthetic results of a suite, small enough to reckon by hand."""

import json
from pathlib import Path

from budget_trainer.glue.results import Configuration, Run, Suite, TaskResult
from budget_trainer.glue.tasks import TASKS, Task

RECIPE = {"learning_rate": "5e-5", "num_train_epochs": "3.0"}
MODEL = {"name_or_path": "out/run/final", "sha256": "0"}


def predictions_of(task: Task, rows: int) -> list[float] | list[int]:
    """Every class in turn; scores beyond both ends of 0..5."""
    if task.regression:
        return [(row % 70) / 10 - 1 for row in range(rows)]
    return [row % len(task.labels) for row in range(rows)]


def write_predictions(folder: Path, owner: Task, without: tuple[str, ...] = ()) -> dict[str, str]:
    """A run's `predictions/` for all test splits of the task (MNLI's with AX)."""
    paths = {}
    for split, task in owner.answered:
        if split.is_test and split.name not in without:
            paths[split.name] = f"predictions/{split.name}.json"
            (folder / "predictions").mkdir(parents=True, exist_ok=True)
            content = {"label_names": list(task.labels), "predictions": predictions_of(task, split.rows)}
            (folder / paths[split.name]).write_text(json.dumps(content))
    return paths


def run_of(name: str, score: float | None, seed: int = 1, rows: dict[str, int] | None = None, **more) -> Run:
    """A run of 60 s, every metric of every dev split with that score; without one it has failed."""
    task = TASKS[name]
    folder = f"runs/{name}/{seed}-{score}"
    if score is None:
        return Run.of(seed, "key", folder, None, "out of memory")
    result = {
        "configuration": {"learning_rate": 5e-5},
        "headline": {"value": score},
        "metrics": {split.name: dict.fromkeys(task.metrics, score) for split in task.dev},
        "rows": {split.name: split.rows for split, _ in task.answered} | (rows or {}),
        "official_rows": {"dev": True},
        "best_epoch": 1.0,
        "steps": 9,
        "predictions": {},
        "seconds": {"total": 60.0},
    }
    return Run.of(seed, "key", folder, {**result, **more})


def result_of(name: str, *scores: list[float | None], base: str | None = None, **more) -> TaskResult:
    """A configuration for each list of scores, a run for each score, seeds from 1."""
    configurations = [
        Configuration(RECIPE, [run_of(name, score, seed, **more) for seed, score in enumerate(of_seeds, 1)])
        for of_seeds in scores
    ]
    return TaskResult(TASKS[name], configurations, base)


def suite_of(absent: dict[str, str] | None = None, rows: dict[str, int] | None = None, **scores) -> Suite:
    """`suite_of(CoLA=[0.4, 0.5, 0.6], SST_2=[...])`, or with whole results; `rows` by dev split are of all tasks."""
    names = {name.replace("_", "-"): values for name, values in scores.items()}
    results = {
        name: values if isinstance(values, TaskResult) else result_of(name, values, rows=rows)
        for name, values in names.items()
    }
    return Suite(Path("nowhere"), MODEL, results, absent or {})


def complete_suite(folder: Path, without: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> Suite:
    """All nine trained tasks with official predictions of one run each, but for the splits `without` and tasks `absent`."""
    tasks = {}
    for task in TASKS.values():
        if task.shared is None and task.name not in absent:
            home = folder / run_of(task.name, 0.5).folder
            tasks[task.name] = result_of(task.name, [0.5], predictions=write_predictions(home, task, without))
    return Suite(folder, MODEL, tasks, dict.fromkeys(absent, "no train.tsv"))
