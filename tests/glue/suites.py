"""Synthetic results of a suite, small enough to reckon by hand."""

import json
from pathlib import Path

from budget_trainer.glue.data import splits_of
from budget_trainer.glue.results import Run, Suite, TaskResult
from budget_trainer.glue.tasks import TASKS, Task

RECIPE = {"learning_rate": 5e-5, "per_device_train_batch_size": 16, "num_train_epochs": 3.0}


def predictions_of(task: Task, rows: int) -> list[float] | list[int]:
    """Every class in turn; scores beyond both ends of 0..5."""
    if task.regression:
        return [(row % 70) / 10 - 1 for row in range(rows)]
    return [row % len(task.labels) for row in range(rows)]


def write_predictions(folder: Path, owner: Task, without: tuple[str, ...] = ()) -> dict[str, str]:
    """A run's `predictions/` for all test splits of the task (MNLI's with AX)."""
    paths = {}
    for split, task in splits_of(owner):
        if split.is_test and split.name not in without:
            paths[split.name] = f"predictions/{split.name}.json"
            (folder / "predictions").mkdir(parents=True, exist_ok=True)
            content = {"label_names": list(task.labels), "predictions": predictions_of(task, split.rows)}
            (folder / paths[split.name]).write_text(json.dumps(content))
    return paths


def runs_of(
    name: str, scores: list[float], configuration: str = "a", folder: Path = Path("nowhere"), **more
) -> list[Run]:
    """One run for each score, seeds from 1, 60 s each; every metric of every dev split has that score."""
    task = TASKS[name]
    return [
        Run(
            seed=seed,
            configuration=configuration,
            metrics={split.name: dict.fromkeys(task.metrics, score) for split in task.dev},
            seconds=60.0,
            folder=folder,
            **more,
        )
        for seed, score in enumerate(scores, 1)
    ]


def result_of(name: str, scores: list[float], **more) -> TaskResult:
    return TaskResult(TASKS[name], tuple(runs_of(name, scores, **more)), best="a", flags=RECIPE)


def suite_of(absent: dict[str, str] | None = None, **scores: list[float]) -> Suite:
    """`suite_of(CoLA=[0.4, 0.5, 0.6], SST_2=[...])`."""
    names = {name.replace("_", "-"): values for name, values in scores.items()}
    return Suite("out/run/final", {name: result_of(name, values) for name, values in names.items()}, absent or {})


def complete_suite(folder: Path, without: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> Suite:
    """All nine trained tasks with official predictions of one run each, but for the splits `without` and tasks `absent`."""
    tasks = {}
    for task in TASKS.values():
        if task.shared is None and task.name not in absent:
            home = folder / task.name
            predictions = write_predictions(home, task, without)
            tasks[task.name] = result_of(task.name, [0.5], folder=home, predictions=predictions)
    return Suite("out/run/final", tasks, dict.fromkeys(absent, "no train.tsv"))
