"""The results of a run (`result.json`) and of a suite (`glue_runs.json`), and what is computed from them.

Scores are shares of 1 (Matthews and correlations from -1), as the metrics give them. A column is what a table of GLUE shows
as one: a task's dev split, so that MNLI has two. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, median_low
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_json_atomic
from budget_trainer.glue.tasks import TASKS, Split, Task

RESULT, PREDICTIONS, MODEL = "result.json", "predictions", "model"  # in the folder of a run
RUNS_FILE = "glue_runs.json"  # in the folder of a suite
RUNS_FORMAT, _RESULT_FORMAT = 1, 1  # raise one when what is in the file comes to mean something else
_AGAIN = "repeat the command that made it"
NOT_IN_MEAN = ("WNLI",)  # left out of means as in Devlin et al. (arXiv 1810.04805)


METRIC_NAMES = {  # as people write them
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews_correlation": "Matthews",
    "pearson": "Pearson",
    "spearmanr": "Spearman",
}


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """The object in a JSON file; InputError, with the `fix`, where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {fix}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); {fix}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no object; {fix}")
    return content


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write `result.json`, the last file of a run, atomically."""
    write_json_atomic(folder / RESULT, {"format": _RESULT_FORMAT, **result})


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, None where it is not finished or its predictions are not all there."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        complete = result["format"] == _RESULT_FORMAT and all(
            (folder / path).is_file() for path in result["predictions"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if complete else None


@dataclass(frozen=True)
class Run:
    """One finished run: `metrics` by dev split and name, `seconds` it took, the `folder` with its predictions.

    `predictions` are the files in `folder` by split; `rows` how many rows of each split there were.
    """

    seed: int
    configuration: str
    metrics: Mapping[str, Mapping[str, float]]
    seconds: float
    folder: Path
    predictions: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)


def points(value: float) -> str:
    """A share of 1 in points of 100, as text."""
    return f"{100 * value:.1f}"


def rounded(value: float) -> float:
    """Six decimals: more than any dev split resolves, and the same text on every machine."""
    return round(value, 6)


@dataclass(frozen=True)
class Spread:
    """A score over seeds."""

    median: float
    min: float
    max: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values), len(values))

    def scores(self) -> dict[str, float]:
        """As they are, under the names that files use."""
        return {"median": self.median, "min": self.min, "max": self.max}

    def reported(self) -> dict[str, float]:
        """The same rounded, with the number of seeds."""
        return {**{name: rounded(value) for name, value in self.scores().items()}, "seeds": self.seeds}


@dataclass(frozen=True)
class TaskResult:
    """All finished runs of a task. `best` is the configuration that the suite chose, `flags` what it sets.

    `base` is the task whose model they start from, None for the checkpoint itself.
    """

    task: Task
    runs: tuple[Run, ...]
    best: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    notes: tuple[str, ...] = ()  # what a reader has to know: runs that failed, seeds that are missing

    def __post_init__(self) -> None:
        if not self.best_runs:
            raise InputError(
                f"{self.task.name}: the best configuration {self.best!r} has no run; make the suite's results again"
            )

    @property
    def best_runs(self) -> list[Run]:
        """Those of the best configuration, by seed."""
        return sorted((run for run in self.runs if run.configuration == self.best), key=lambda run: run.seed)

    @property
    def dev(self) -> list[Split]:
        """The dev splits that every run of the best configuration was scored on."""
        return [split for split in self.task.dev if all(split.name in run.metrics for run in self.best_runs)]

    @property
    def seconds(self) -> float:
        """Of all runs of the task."""
        return sum(run.seconds for run in self.runs)

    def spread(self, split: str, metric: str) -> Spread:
        return Spread.of([run.metrics[split][metric] for run in self.best_runs])

    @property
    def median_run(self) -> Run:
        """The run of the best configuration with the median headline score on the first dev split.

        Of an even number the lower of the two in the middle; of equal scores the lowest seed.
        """
        split = self.dev[0].name
        middle = median_low(run.metrics[split][self.task.headline] for run in self.best_runs)
        return next(run for run in self.best_runs if run.metrics[split][self.task.headline] == middle)


@dataclass(frozen=True)
class Suite:
    """`model` as it was asked for, `tasks` by name in GLUE's order, and why each other task is `absent`."""

    model: str
    tasks: Mapping[str, TaskResult]
    absent: Mapping[str, str]


@dataclass(frozen=True)
class Column:
    """Our score of one dev split. `rows` are those it was scored on, `official` whether they are the official ones."""

    name: str
    task: Task
    split: Split
    metric: str
    score: Spread
    rows: int
    official: bool


def column_name(task: Task, split: str) -> str:
    """The task's name; of MNLI `MNLI-m` and `MNLI-mm`, as the leaderboard names them."""
    if len(task.dev) == 1:
        return task.name
    return f"{task.name}-{'mm' if split.endswith('mismatched') else 'm'}"


ALL_COLUMNS = tuple(column_name(task, split.name) for task in TASKS.values() for split in task.dev)


def columns(suite: Suite) -> dict[str, Column]:
    """The suite's headline scores by column, in GLUE's order."""
    found = {}
    for result in suite.tasks.values():
        for split in result.dev:
            name, rows = column_name(result.task, split.name), result.best_runs[0].rows.get(split.name, split.rows)
            score = result.spread(split.name, result.task.headline)
            found[name] = Column(name, result.task, split, result.task.headline, score, rows, rows == split.rows)
    return {name: found[name] for name in ALL_COLUMNS if name in found}


def mean(ours: Mapping[str, Column], names: Sequence[str]) -> Spread | None:
    """The mean over the columns `names`: of their medians, of their lowest seeds and of their highest; None of none.

    The seeds are the fewest that any column has.
    """
    scores = [ours[name].score for name in names]
    if not scores:
        return None
    median, low, high = (fmean(getattr(score, part) for score in scores) for part in ("median", "min", "max"))
    return Spread(median, low, high, min(score.seeds for score in scores))


def in_mean(names: Sequence[str]) -> list[str]:
    """Those of the columns that count in a mean."""
    return [name for name in names if name not in NOT_IN_MEAN]


def in_order(*scores: Mapping[str, Any]) -> list[str]:
    """The columns that any of the mappings has, in GLUE's order."""
    return [name for name in ALL_COLUMNS if any(name in mapping for mapping in scores)]


def read_suite(path: Path) -> Suite:
    """The suite in `path`: `glue_runs.json`, or the folder that holds it.

    A task all of whose runs failed is absent, with the first error as the reason. InputError where the file or a run's
    result is missing, damaged or of another format.
    """
    path = path / RUNS_FILE if path.is_dir() else path
    content = read_object(path, _AGAIN)
    if content.get("format") != RUNS_FORMAT:
        raise InputError(f"{path}: format {content.get('format')!r}, this version reads {RUNS_FORMAT}; {_AGAIN}")
    tasks: dict[str, TaskResult] = {}
    try:
        absent = {str(name): str(reason) for name, reason in content["absent"].items()}
        model = str(content["model"]["name_or_path"])
        if Path(model).is_absolute():  # its last two parts: the rest says nothing about the model
            model = "/".join(Path(model).parts[-2:])
        for name, entry in content["tasks"].items():
            if entry["best_configuration"] is None:
                runs = [run for configuration in entry["configurations"] for run in configuration["runs"]]
                absent[name] = f"all {len(runs)} runs failed ({runs[0]['error']})"
            else:
                tasks[name] = _task(path.parent, name, entry)
        absent = {name: absent[name] for name in sorted(absent, key=list(TASKS).index)}
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({error!r}); {_AGAIN}") from None
    return Suite(model, {name: tasks[name] for name in TASKS if name in tasks}, absent)


def _task(folder: Path, name: str, entry: Mapping[str, Any]) -> TaskResult:
    best = int(entry["best_configuration"])
    runs, notes, others = [], [], 0
    for place, configuration in enumerate(entry["configurations"]):
        for run in configuration["runs"]:
            if run["status"] == "finished":
                runs.append(_run(folder / run["folder"], str(place), run))
            elif place == best:
                notes.append(f"seed {run['seed']} of the best configuration failed ({run['error']})")
            else:
                others += 1
    if others:
        notes.append(f"runs of other configurations that failed: {others}")
    flags = dict(entry["configurations"][best]["flags"])
    return TaskResult(TASKS[name], tuple(runs), str(best), flags, base=entry["starts_from"], notes=tuple(notes))


def _run(folder: Path, configuration: str, entry: Mapping[str, Any]) -> Run:
    return Run(
        seed=int(entry["seed"]),
        configuration=configuration,
        metrics=entry["metrics"],
        seconds=float(entry["seconds"]),
        folder=folder,
        predictions=dict(entry["predictions"]),
        rows={str(split): int(rows) for split, rows in read_object(folder / RESULT, _AGAIN)["rows"].items()},
    )
