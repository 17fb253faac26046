"""A budget that grows: a finished run goes on from before its decay, and what it has made keeps the name of its budget.

`run.json` says `growing` before anything is renamed, and `training` when all of it is: a job that was killed in between is
gone on with from there, and nothing is overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from budget_trainer.budget.callback import STATE_KEY
from budget_trainer.budget.clock import format_duration
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fsync
from budget_trainer.reporting.hub import MARK
from budget_trainer.reporting.report import PICTURE
from budget_trainer.training.run_folder import BEFORE_DECAY, FINAL, REPORT, step_of, stored_in

if TYPE_CHECKING:
    from pathlib import Path

    from budget_trainer.config.recipe import Recipe
    from budget_trainer.training.run_folder import RunFolder

_CURVE_TOLERANCE = 0.005  # of the progress: the checkpoint is written a step behind the moment


@dataclass(frozen=True)
class Growth:
    """The shorter budgets that a run had before; `run.json` keeps it.

    `discarded` are the seconds by phase behind the checkpoints that it went on from: used, and no part of the schedule.
    `began` is what was used when the present budget began, `budgets` are the names of those before, as `24h`. `pending`: what
    the last of these has made is still to be renamed; `again` are then the seconds of its decay, which are done again.
    """

    discarded: Mapping[str, float] = field(default_factory=dict)
    began: float = 0.0
    budgets: Sequence[str] = ()
    pending: bool = False
    again: float = 0.0

    @property
    def discarded_seconds(self) -> float:
        return sum(self.discarded.values())

    def as_dict(self) -> dict[str, Any]:
        """For `run.json`; empty where there was no other budget."""
        if not self.discarded:
            return {}
        kept = {"discarded": dict(self.discarded), "began": self.began, "budgets": list(self.budgets)}
        return kept | ({"again": self.again} if self.pending else {})


def find_growth(folder: RunFolder, resume_from_checkpoint: str | None, checkpoint: Path, recipe: Recipe) -> Growth:
    """What the run of `folder`, which goes on from `checkpoint`, had before; where it is finished, what it will have had.

    Reads only. Raises InputError where the recipe leaves no time for more than was trained, or has no decay to come.
    """
    before = _before(folder, checkpoint)
    if folder.grows_from(resume_from_checkpoint) is not None and not before.pending:
        return _prolonged(folder, checkpoint, before, recipe)
    if before.pending and (recipe.decay_begins is None or recipe.end_seconds <= before.began + before.again):
        least = format_duration(before.began + before.again)
        raise InputError(
            f"{recipe.end_field}: {format_duration(recipe.end_seconds)} with curve {recipe.budget.curve}, but the run in "
            f"{folder.path} is on its way to more than {least}; give the command again by which it was given more time"
        )
    if before.budgets and recipe.end_seconds <= before.began:
        raise InputError(
            f"{recipe.end_field}: {format_duration(recipe.end_seconds)} is no more than the {before.budgets[-1]} that the run "
            f"in {folder.path} has behind it; give more, or use {_aside(FINAL, before.budgets[-1])}/"
        )
    return before


def _before(folder: RunFolder, checkpoint: Path) -> Growth:
    """By `run.json`; in a new folder, or where that was damaged, as the checkpoint knows it."""
    known = folder.growth() or {"discarded": stored_in(checkpoint, STATE_KEY).get("discarded") or {}}
    return Growth(**known, pending=folder.is_growing)


def check_room(growth: Growth, elapsed: float, needed: float, recipe: Recipe) -> None:
    """Refuse (InputError) a growth that would train no longer than the budget before it, once its set-up is known.

    `elapsed` are the seconds used by now, `needed` those of the end: the save, and what comes before it.
    """
    if (least := elapsed + needed + growth.again) >= recipe.end_seconds:
        raise InputError(
            f"{recipe.end_field}: {format_duration(recipe.end_seconds)}, but set-up took "
            f"{format_duration(elapsed - growth.began)} more and the decay, {format_duration(growth.again)}, is done again: "
            f"that would be no more training than {FINAL}/ had; give more than {format_duration(least)}, or another output_dir"
        )


def _prolonged(folder: RunFolder, checkpoint: Path, before: Growth, recipe: Recipe) -> Growth:
    stored, used, end = stored_in(checkpoint, STATE_KEY), folder.used_before(checkpoint), recipe.end_seconds
    lost = {phase: max(0.0, seconds - stored["shares"].get(phase, 0.0)) for phase, seconds in used.items()}
    # The checkpoint says what was discarded before it; two budgets may go on from the same one.
    discarded = {phase: seconds + (stored.get("discarded") or {}).get(phase, 0.0) for phase, seconds in lost.items()}
    total_used, total_lost = sum(used.values()), sum(discarded.values())
    least = total_used + total_lost - before.discarded_seconds
    name = format_duration((folder.read_report() or {}).get("budget_seconds") or total_used)
    finished = f"the run in {folder.path} is finished at {name}"
    if recipe.decay_begins is None:
        raise InputError(
            f"curve: {recipe.budget.curve} with lr_schedule {recipe.budget.lr_schedule} has no decay to come, and {finished}; "
            f"give curve wsd with lr_schedule time to go on from {checkpoint}, or another output_dir"
        )
    if end <= least:
        again = format_duration(least - total_used)
        raise InputError(
            f"{recipe.end_field}: {format_duration(end)}, but {finished}, and its decay, {again}, is done again: that would be "
            f"no longer training than {FINAL}/ had; give more than {format_duration(least)}, or another output_dir"
        )
    begin = float(stored["begin_seconds"])
    stable, whole = total_used - total_lost - begin, recipe.total_seconds - total_lost - begin
    if stable / whole > recipe.decay_begins + _CURVE_TOLERANCE:
        raise InputError(
            f"decay_proportion: {1 - recipe.decay_begins:g} of this budget would have begun before {checkpoint}; give "
            f"{int(100 * (1 - stable / whole)) / 100:g}, or more time"
        )
    for path in [folder.path / old for old in _made(folder.path)]:
        if os.path.ismount(path):
            raise InputError(f"output_dir: {path} is a mount point and cannot be renamed; copy it away and unmount it")
    if (aside := folder.path / _aside(FINAL, name)).exists():
        raise InputError(f"output_dir: {aside} is there already, and {FINAL}/ is to have that name; move it away")
    return Growth(discarded, total_used, (*before.budgets, name), pending=True, again=least - total_used)


def set_aside(folder: RunFolder, name: str) -> None:
    """Give what the budget `name` has made its name, and delete the checkpoints of its decay.

    A second call goes on where the first was killed.
    """
    for old in _made(folder.path):
        aside = folder.path / _aside(old, name)
        if not aside.exists():
            (folder.path / old).rename(aside)
    folder.delete_checkpoints_behind(step_of(folder.path / BEFORE_DECAY))
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
