"""Which configurations and seeds each task is run with: a grid in YAML, over which the command line wins."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.glue.arguments import REFUSED
from budget_trainer.glue.parsing import ELSEWHERE, KEYS
from budget_trainer.glue.tasks import Task, find_task
from budget_trainer.recipe_file import read_recipe

SECTIONS = ("seeds", "flags", "grid", "tasks")


@dataclass
class Grid:
    """`flags` of every run, `grid` of lists of which every combination is run, both also by task; values are text."""

    seeds: list[int]
    flags: dict[str, str] = field(default_factory=dict)
    grid: dict[str, list[str]] = field(default_factory=dict)
    tasks: dict[str, dict[str, dict]] = field(default_factory=dict)
    path: str | None = None

    def configurations(self, task: Task, own: dict[str, str]) -> list[dict[str, str]]:
        """The configurations of a task, in the order of the file; `own` are the flags of the command line."""
        special = self.tasks.get(task.name, {})
        flags = {**self.flags, **special.get("flags", {})}
        lists = {name: values for name, values in special.get("grid", self.grid).items() if name not in own}
        combinations = itertools.product(*lists.values())
        return [{**flags, **dict(zip(lists, values, strict=True)), **own} for values in combinations]


def read_grid(path: str | None, seeds: str | None, default_seed: int) -> Grid:
    """The grid in a YAML file; without a file one configuration. `seeds` (`1,2,3`) wins over the file's.

    InputError names the file, the key and the fix.
    """
    content: dict[str, Any] = read_recipe(Path(path)) if path is not None else {}
    where = f"grid: {path}"
    for key in content:
        if key not in SECTIONS:
            raise InputError(f"{where}: {key!r} is unknown; it has {', '.join(SECTIONS)}")
    flags, grid = _flags(content.get("flags") or {}, where), _lists(content.get("grid") or {}, where)
    tasks: dict[str, dict[str, dict]] = {}
    for name, special in (content.get("tasks") or {}).items():
        task = find_task(name)
        if not isinstance(special, dict) or not set(special) <= {"flags", "grid"}:
            raise InputError(
                f"{where}: tasks: {name} has to be a mapping of flags and grid; see recipes/glue/paper.yaml"
            )
        tasks[task.name] = {"flags": _flags(special.get("flags") or {}, where)}
        if "grid" in special:
            tasks[task.name]["grid"] = _lists(special["grid"] or {}, where)
    given = seeds.split(",") if seeds is not None else content.get("seeds") or [str(default_seed)]
    return Grid(_seeds(given), flags, grid, tasks, path)


def _flags(mapping: Any, where: str) -> dict[str, str]:
    if not isinstance(mapping, dict):
        raise InputError(f"{where}: flags is not a mapping; write one `flag: value` per line")
    for name, value in mapping.items():
        _check_name(name, where)
        if not isinstance(value, str):
            raise InputError(f"{where}: {name} has several values; put it under grid")
    return mapping


def _lists(mapping: Any, where: str) -> dict[str, list[str]]:
    if not isinstance(mapping, dict):
        raise InputError(f"{where}: grid is not a mapping; write one `flag: [value, value]` per line")
    for name, values in mapping.items():
        _check_name(name, where)
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InputError(f"{where}: {name} is no list of values; write {name}: [a, b]")
    return mapping


def _check_name(name: str, where: str) -> None:
    if name in KEYS and name not in ELSEWHERE and name not in REFUSED:
        return
    close = difflib.get_close_matches(name, sorted(KEYS - ELSEWHERE - set(REFUSED)), n=1)
    fix = f"did you mean {close[0]}?" if close else "use a flag of finetune_glue.py that changes a run"
    raise InputError(f"{where}: {name!r} cannot stand there; {fix}")


def _seeds(given: Any) -> list[int]:
    values = given if isinstance(given, list) else [given]
    try:
        seeds = [int(value) for value in values]
    except (TypeError, ValueError):
        seeds = [-1]
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: {given!r} are not different whole numbers from 0 on; write 1,2,3,4,5")
    return seeds
