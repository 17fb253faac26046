"""`sweep_report.csv`, `.md`, `.png` and `best_recipe.yaml`: what came of a sweep, for tables, for people, for the next run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from budget_trainer.errors import RunError
from budget_trainer.glue.files import write_atomic
from budget_trainer.sweep.best_recipe import best_recipe_text
from budget_trainer.sweep.importance import importance
from budget_trainer.sweep.ranking import has_value, ranked, reached
from budget_trainer.sweep.records import SweepRecord
from budget_trainer.sweep.report_markdown import markdown
from budget_trainer.sweep.report_plot import draw

if TYPE_CHECKING:
    import optuna

CSV, MARKDOWN, PICTURE, BEST_RECIPE = "sweep_report.csv", "sweep_report.md", "sweep_report.png", "best_recipe.yaml"


def write_report(record: SweepRecord, study: optuna.Study, output_dir: Path) -> list[Path]:
    """Write the files into `output_dir`, each whole or not at all; returns those that were written.

    `study` gives the distributions of the parameters, by the numbers of the trials. Without a finished trial there is no
    `best_recipe.yaml`.

    Raises:
        RunError: a file cannot be written, or the base recipe cannot be read any more (the other files are then written).
    """
    shares, why_not = importance(record, study)
    contents = {
        CSV: csv_text(record).encode(),
        MARKDOWN: markdown(record, shares, why_not, output_dir, BEST_RECIPE).encode(),
        PICTURE: draw(record, shares, why_not),
    }
    unreadable: Exception | None = None
    try:
        recipe = best_recipe_text(record, output_dir)
        contents |= {} if recipe is None else {BEST_RECIPE: recipe.encode()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        unreadable = error
    for name, content in contents.items():
        write_atomic(output_dir / name, content)
    if unreadable is not None:
        said = " ".join(str(unreadable).split())
        raise RunError(
            f"recipe: {record.recipe} cannot be read any more ({said}), so there is no {BEST_RECIPE}; put it back"
        ) from unreadable
    return [output_dir / name for name in contents]


def csv_text(record: SweepRecord) -> str:
    """One row per trial, best first. Empty where a trial has no value; `rank` counts those with an objective."""
    names = list(dict.fromkeys([*record.space, *(name for trial in record.trials for name in trial.parameters)]))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    own = ["rank", "trial", "state", record.objective]
    columns = [name if name not in own else f"parameter {name}" for name in names]
    writer.writerow([*own, *columns, "share_reached", "last_value", "seconds", "folder", "error"])
    for rank, trial in enumerate(ranked(record), start=1):
        head = [rank if has_value(trial) else "", trial.number, trial.state]
        final = "" if trial.objective is None or trial.state != "finished" else trial.objective
        given = [_cell(trial.parameters.get(name, "")) for name in names]
        last = trial.curve[-1][1] if trial.curve else ""
        share = reached(trial)
        tail = ["" if share is None else share, last, round(trial.seconds, 1), trial.folder]
        writer.writerow([*head, final, *given, *tail, " ".join((trial.error or "").split())])
    return stream.getvalue()


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
