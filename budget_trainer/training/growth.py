"""A budget that grows: a finished run goes on from its last checkpoint, and what it has made keeps the name of its budget.

`run.json` says `growing` before anything is renamed, and `training` when all of it is: a job that was killed in between is
gone on with from there, and nothing is overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budget_trainer.budget.clock import format_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fsync
from budget_trainer.reporting.hub import MARK
from budget_trainer.reporting.report import PICTURE
from budget_trainer.training.run_folder import FINAL, REPORT

if TYPE_CHECKING:
    from pathlib import Path

    from budget_trainer.config.recipe import Recipe
    from budget_trainer.training.run_folder import RunFolder


@dataclass(frozen=True)
class Growth:
    """The shorter budgets that a run had before; `run.json` keeps it.

    `budgets` are their names, as `24h`, `began` is what was used when the present one began. `pending`: what the last of them
    has made is still to be renamed.
    """

    budgets: Sequence[str] = ()
    began: float = 0.0
    pending: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`; empty where there was no other budget."""
        return {"budgets": list(self.budgets), "began": self.began} if self.budgets else {}


def find_growth(folder: RunFolder, resume_from_checkpoint: str | None, checkpoint: Path, recipe: Recipe) -> Growth:
    """What the run of `folder`, which goes on from `checkpoint`, had before; where it is finished, what it will have had.

    Reads only. Raises InputError where the recipe has no more time than the budgets before, or follows steps.
    """
    before = Growth(**folder.growth(), pending=folder.is_growing)
    if folder.grows_from(resume_from_checkpoint) is not None and not before.pending:
        return _prolonged(folder, checkpoint, before, recipe)
    if before.budgets and recipe.end_seconds <= before.began:
        raise InputError(
            f"{recipe.end_field}: {format_duration(recipe.end_seconds)} is no more than the {before.budgets[-1]} that the run "
            f"in {folder.path} has behind it; give more, or use {_aside(FINAL, before.budgets[-1])}/"
        )
    return before


def check_room(growth: Growth, elapsed: float, needed: float, recipe: Recipe) -> None:
    """Refuse (InputError) a growth that has no time to train, once its set-up is known.

    `elapsed` are the seconds used by now, `needed` those of the end: the save, and what comes before it.
    """
    if (least := elapsed + needed) >= recipe.end_seconds:
        raise InputError(
            f"{recipe.end_field}: {format_duration(recipe.end_seconds)}, but {growth.budgets[-1]} and the set-up of this job, "
            f"{format_duration(elapsed - growth.began)}, leave no time to train; give more than {format_duration(least)}, or "
            "another output_dir"
        )


def _prolonged(folder: RunFolder, checkpoint: Path, before: Growth, recipe: Recipe) -> Growth:
    used = sum(folder.used_before(checkpoint).values())
    budget = (folder.read_report() or {}).get("budget_seconds") or used
    name = format_duration(budget)
    finished = f"the run in {folder.path} is finished at {name}"
    if recipe.schedule["schedule"] != "time":
        raise InputError(
            f"lr_schedule: {recipe.budget.lr_schedule} follows steps, and {finished}; give lr_schedule time to go on from "
            f"{checkpoint}, or another output_dir"
        )
    if recipe.end_seconds <= max(used, budget):
        raise InputError(
            f"{recipe.end_field}: {format_duration(recipe.end_seconds)}, but {finished}; give more to go on from {checkpoint}, "
            "or another output_dir"
        )
    for path in [folder.path / old for old in _made(folder.path)]:
        if os.path.ismount(path):
            raise InputError(f"output_dir: {path} is a mount point and cannot be renamed; copy it away and unmount it")
    if (aside := folder.path / _aside(FINAL, name)).exists():
        raise InputError(f"output_dir: {aside} is there already, and {FINAL}/ is to have that name; move it away")
    return Growth((*before.budgets, name), used, pending=True)


def set_aside(folder: RunFolder, name: str) -> None:
    """Give what the budget `name` has made its name. A second call goes on where the first was killed."""
    for old in _made(folder.path):
        aside = folder.path / _aside(old, name)
        if not aside.exists():
            (folder.path / old).rename(aside)
    fsync(folder.path)


def _made(path: Path) -> list[str]:
    """What a finished run has made, by name."""
    marked = sorted(entry.name for entry in path.glob("finetune-*") if MARK.fullmatch(entry.name))
    return [name for name in (FINAL, *marked, REPORT, PICTURE) if (path / name).exists()]


def _aside(made: str, budget: str) -> str:
    """`final-24h`, `run_report-24h.json`; `24h-finetune-50`, which no pattern for time-marked models takes for one."""
    if MARK.fullmatch(made):
        return f"{budget}-{made}"
    stem, dot, suffix = made.partition(".")
    return f"{stem}-{budget}{dot}{suffix}"
