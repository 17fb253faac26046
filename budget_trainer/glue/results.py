"""The results of a run (`result.json`) and of a suite (`glue_runs.json`), and what is computed from them.

Scores are shares of 1 (Matthews and correlations from -1); times are in seconds. A column is what a table of GLUE shows as
one: a task's dev split, so that MNLI has two. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, median_low
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import write_json_atomic
from budget_trainer.glue.tasks import ALL_COLUMNS, TASKS, Split, Task
from budget_trainer.reporting.energy import account, add_up

RESULT, PREDICTIONS, MODEL = "result.json", "predictions", "model"  # in the folder of a run
RUNS_FILE = "glue_runs.json"  # in the folder of a suite
_FORMAT = 1  # of both files: raise it when what is in one comes to mean something else
_NOT_IN_MEAN = ("WNLI",)  # left out of means as in Devlin et al. (arXiv 1810.04805)
METRIC_NAMES = {"accuracy": "accuracy", "f1": "F1", "matthews_correlation": "Matthews"}  # as people write them
METRIC_NAMES |= {"pearson": "Pearson", "spearmanr": "Spearman"}


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
    write_json_atomic(folder / RESULT, {"format": _FORMAT, **result})


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, None where it is not finished or its predictions are not all there."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        there = all((folder / path).is_file() for path in result["predictions"].values())
        return result if there and result["format"] == _FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# ---- scores ----


def points(value: float) -> str:
    """A share of 1 in points of 100, as text."""
    return f"{100 * value:.1f}"


@dataclass(frozen=True)
class _Spread:
    """A score over seeds."""

    median: float
    min: float
    max: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> _Spread:
        return cls(median(values), min(values), max(values), len(values))

    def scores(self) -> dict[str, float]:
        return {"median": self.median, "min": self.min, "max": self.max}

    def reported(self) -> dict[str, Any]:
        """With the number of seeds, and six decimals: more than any dev split resolves, the same text on every machine."""
        return {**{name: round(value, 6) for name, value in self.scores().items()}, "seeds": self.seeds}


def card_scores(
    task: Task,
    tried: Mapping[float, Mapping[str, Mapping[str, float]]],
    best: float,
    rows: Mapping[str, int],
    **how: Any,
) -> list[dict[str, Any]]:
    """A task's scores for a model card; the headline metric first.

    Only splits of all official rows: a card cannot say that rows were left out.

    Args:
        tried: metrics by dev split of each learning rate that was tried.
        best: the rate of the scores.
        rows: by dev split.
        how: `seeds`, `flags` and `starts_from`, as they were at the best rate.
    """
    found = []
    for split in (split for split in task.dev if split.name in tried[best] and rows[split.name] == split.rows):
        for name in sorted(task.metrics, key=lambda name: name != task.headline):
            of_rates = {rate: round(of[split.name][name], 6) for rate, of in tried.items() if split.name in of}
            rates = [{"learning_rate": rate, "value": value} for rate, value in sorted(of_rates.items())]
            score = {"task": task.name, "metric": name, "value": of_rates[best], "split": split.hub}
            found.append({**score, **how, "learning_rate": best, "tried": rates})
    return found


# ---- runs ----


@dataclass(frozen=True)
class Run:
    """One run of a suite, with the keys of `glue_runs.json`: its `folder` and the result in it, or the `error`.

    `folder` is inside of the suite's, `predictions` are files in it by split, `metrics` by dev split and name, `rows` by split.
    """

    seed: int
    key: str
    folder: str
    status: str  # finished or failed
    error: str | None = None
    learning_rate: float | None = None
    headline: float | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    official_rows: bool | None = None
    best_epoch: float | None = None
    steps: int | None = None
    predictions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    energy: Mapping[str, Any] | None = None  # of `reporting/energy.py`; None where it is not known

    @classmethod
    def of(cls, seed: int, key: str, folder: str, result: Mapping[str, Any] | None, error: str | None = None) -> Run:
        """From its `result.json`; None where it has failed with `error`."""
        if result is None:
            return cls(seed, key, folder, "failed", error)
        return cls(
            *(seed, key, folder, "finished"),
            learning_rate=result["configuration"]["learning_rate"],
            headline=result["headline"]["value"],
            official_rows=all(result["official_rows"].values()),
            seconds=result["seconds"]["total"],
            energy=result.get("energy"),
            **{name: result[name] for name in ("metrics", "rows", "best_epoch", "steps", "predictions")},
        )


@dataclass(frozen=True)
class Configuration:
    """The runs of a task with the same `flags`, one for each seed."""

    flags: Mapping[str, str]
    runs: Sequence[Run]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]

    @property
    def learning_rate(self) -> float | None:
        """None where all runs failed."""
        return next((run.learning_rate for run in self.finished), None)

    @property
    def headline(self) -> _Spread | None:
        scores = [run.headline for run in self.finished if run.headline is not None]
        return _Spread.of(scores) if scores else None

    def medians(self, task: Task) -> dict[str, dict[str, float]]:
        """By metric of each dev split that all finished runs were scored on."""
        runs, splits = self.finished, [split.name for split in task.dev]
        return {
            split: {metric: median(run.metrics[split][metric] for run in runs) for metric in task.metrics}
            for split in splits
            if all(split in run.metrics for run in runs)
        }

    @property
    def rank(self) -> tuple[float, float]:
        """One whose runs have all finished goes before one whose have not, whatever the scores: few seeds are luck."""
        return len(self.finished) / len(self.runs), -math.inf if self.headline is None else self.headline.median

    def content(self) -> dict[str, Any]:
        """The configuration in `glue_runs.json`."""
        scores = self.headline and self.headline.scores()
        return {"flags": self.flags, "headline": scores, "runs": [vars(run) for run in self.runs]}


@dataclass(frozen=True)
class TaskResult:
    """All runs of a task. `base` is the task whose model they start from, None for the checkpoint itself."""

    task: Task
    configurations: Sequence[Configuration]
    base: str | None = None
    data_sha256: str = ""

    @property
    def best(self) -> Configuration | None:
        """The configuration with the highest median over its seeds, None where all runs failed."""
        best = max(self.configurations, key=lambda one: one.rank)
        return None if best.headline is None else best

    @property
    def best_of_rates(self) -> dict[float, Configuration]:
        """The best configuration of each learning rate that was tried, by rising rate."""
        found: dict[float, Configuration] = {}
        for one in sorted(self.configurations, key=lambda one: one.rank, reverse=True):
            if one.learning_rate is not None:
                found.setdefault(one.learning_rate, one)
        return dict(sorted(found.items()))

    @property
    def best_runs(self) -> list[Run]:
        """The finished runs of the best configuration, by seed."""
        return sorted(self.best.finished if self.best else [], key=lambda run: run.seed)

    @property
    def best_run(self) -> Run | None:
        """The highest of the best configuration (of equals the first seed): what a later task starts from."""
        return max(self.best_runs, key=lambda run: run.headline or 0.0, default=None)

    @property
    def median_run(self) -> Run:
        """The run of the best configuration with the median headline score on the first dev split.

        Of an even number the lower of the two in the middle; of equal scores the lowest seed.
        """
        split = self.dev[0].name
        middle = median_low(run.metrics[split][self.task.headline] for run in self.best_runs)
        return next(run for run in self.best_runs if run.metrics[split][self.task.headline] == middle)

    @property
    def finished(self) -> list[Run]:
        """Of all configurations."""
        return [run for one in self.configurations for run in one.finished]

    @property
    def seconds(self) -> float:
        return sum(run.seconds for run in self.finished)

    @property
    def dev(self) -> list[Split]:
        """The dev splits that every run of the best configuration was scored on."""
        return [split for split in self.task.dev if all(split.name in run.metrics for run in self.best_runs)]

    def spread(self, split: Split, metric: str) -> _Spread:
        return _Spread.of([run.metrics[split.name][metric] for run in self.best_runs])

    @property
    def failed(self) -> int:
        """How many runs have failed."""
        return sum(len(one.runs) - len(one.finished) for one in self.configurations)

    @property
    def notes(self) -> list[str]:
        """What a reader has to know: the runs that failed."""
        failed = [run for run in (self.best.runs if self.best else ()) if run.status == "failed"]
        notes = [f"seed {run.seed} of the best configuration failed ({run.error})" for run in failed]
        if others := self.failed - len(notes):
            notes.append(f"runs of other configurations that failed: {others}")
        return notes

    def content(self) -> dict[str, Any]:
        """The task in `glue_runs.json`."""
        best, highest = self.best, self.best_run
        return {
            "headline_metric": self.task.headline,
            "starts_from": self.base,
            "official_rows": all(run.official_rows for run in self.finished),
            "data_sha256": self.data_sha256,
            "headline": None if best is None else best.content()["headline"],
            "metrics": {
                split.name: {metric: self.spread(split, metric).scores() for metric in self.task.metrics}
                for split in (self.dev if highest else ())
            },
            "best_run": None if highest is None else {"seed": highest.seed, "folder": highest.folder},
            "best_configuration": None if best is None else self.configurations.index(best),
            "configurations": [one.content() for one in self.configurations],
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Suite:
    """All runs in `folder`: `tasks` by name, why each other task is `absent`, and which tasks another's model `covers`.

    `model` has `name_or_path` and `sha256`; `protocol` is what decides which runs there are.
    """

    folder: Path
    model: Mapping[str, str]
    tasks: Mapping[str, TaskResult]
    absent: Mapping[str, str] = field(default_factory=dict)
    covered: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    country_iso_code: str | None = None  # for emissions
    price_per_hour: float | None = None  # of each run

    @property
    def failed(self) -> int:
        """How many runs have failed."""
        return sum(task.failed for task in self.tasks.values())

    @property
    def model_name(self) -> str:
        """Of a whole path its last two parts: the rest says nothing about the model."""
        name = self.model["name_or_path"]
        return "/".join(Path(name).parts[-2:]) if Path(name).is_absolute() else name

    @property
    def scored(self) -> dict[str, TaskResult]:
        """The tasks that have a score, in GLUE's order."""
        return {name: self.tasks[name] for name in TASKS if name in self.tasks and self.tasks[name].best_runs}

    @property
    def unscored(self) -> dict[str, str]:
        """Why each of the others has none, in GLUE's order."""
        reasons = dict(self.absent)
        for name, task in self.tasks.items():
            runs = [run for one in task.configurations for run in one.runs]
            if task.best is None:
                reasons[name] = f"all {len(runs)} runs failed ({runs[0].error})"
        return {name: reasons[name] for name in TASKS if name in reasons}

    @property
    def energy(self) -> dict[str, Any]:
        """Of all finished runs together (`add_up`), with emissions and cost where they were asked for."""
        runs = [run for task in self.tasks.values() for run in task.finished]
        together, seconds = add_up(run.energy for run in runs), sum(run.seconds for run in runs)
        return account(together, seconds, self.country_iso_code, self.price_per_hour)

    def columns(self) -> dict[str, _Column]:
        """The headline scores by column, in GLUE's order."""
        found = {}
        for result in self.scored.values():
            metric = result.task.headline
            for split in result.dev:
                rows = result.best_runs[0].rows[split.name]
                found[split.column] = _Column(split, metric, result.spread(split, metric), rows)
        return {name: found[name] for name in ALL_COLUMNS if name in found}

    def mean(self, names: Sequence[str], least: int = 1) -> dict[str, Any] | None:
        """The mean over the columns `names`: of their medians, their lowest seeds and their highest, as reports hold it.

        Some columns never count. None of fewer than `least`. The seeds are the fewest that any column has.
        """
        counted, ours = [name for name in names if name not in _NOT_IN_MEAN], self.columns()
        if len(counted) < least:
            return None
        scores = [ours[name].score for name in counted]
        middle, low, high = (fmean(getattr(score, part) for score in scores) for part in ("median", "min", "max"))
        found = _Spread(middle, low, high, min(score.seeds for score in scores))
        return {"columns": counted, "left_out": list(_NOT_IN_MEAN), **found.reported()}

    def content(self) -> dict[str, Any]:
        """What `glue_runs.json` holds: the same for the same runs, however often they were begun."""
        tasks = {name: self.tasks[name].content() for name in TASKS if name in self.tasks}
        return {
            "format": _FORMAT,
            "model": self.model,
            "protocol": self.protocol,
            "tasks": tasks,
            "covered": self.covered,
            "absent": self.absent,
            "failed": self.failed,
            "seconds": sum(task["seconds"] for task in tasks.values()),
            "energy": self.energy,
        }


@dataclass(frozen=True)
class _Column:
    """Our score of one dev split, and the `rows` it was scored on."""

    split: Split
    metric: str
    score: _Spread
    rows: int

    @property
    def official(self) -> bool:
        return self.rows == self.split.rows

    def reported(self) -> dict[str, Any]:
        rows = {"rows": self.rows, "official_rows": self.split.rows, "comparable": self.official}
        return {"metric": self.metric, **self.score.reported(), **rows}
