"""The original's sweep file as a sweep of ours: a grid over the flags that its flags have become."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from budget_trainer.config.arguments import KEYS
from budget_trainer.config.parser import NULLS
from budget_trainer.core.errors import InputError
from budget_trainer.migrate.flags import FLAGS, Given
from budget_trainer.migrate.reading import SweepFile, read_launcher
from budget_trainer.migrate.recipe import convert
from budget_trainer.sweep.spec import OWN, VALIDATION, Choices, Space, SweepSpec, make_spec, read_space


def unknown_names(sweep: SweepFile) -> list[str]:
    """Flags in the file that neither the original nor train_mlm.py knows: none where it is all one of the two."""
    names = [*sweep.grid, *sweep.fixed]
    return [] if all(name in KEYS for name in names) else [name for name in names if name not in FLAGS]


def check_search(flags: dict[str, str]) -> None:
    """Refuse a search that the original did not have for a file of its own."""
    if flags.get("search", "grid") != "grid":
        raise InputError(
            f"search: {flags['search']!r} is not one of the original's, whose files hold a grid; write a file with "
            "search, parameters and fixed"
        )


def read_original(sweep: SweepFile, path: Path, flags: dict[str, str], processes: int, dry_run: bool) -> SweepSpec:
    """The sweep that a file of the original describes; `flags` of the command line win.

    `processes` is how many a trial has: the original's train_batch_size is theirs together.

    Raises:
        InputError: unknown flags, a search other than grid, hyperparameters that depend on each other here.
    """
    check_search(flags)
    content = {key: value for key, value in flags.items() if key != "data_dir"}
    names = {*sweep.grid, *sweep.fixed}
    if names <= KEYS and not names <= FLAGS.keys():
        data = {"data_dir": flags["data_dir"]} if "data_dir" in flags else {}
        return make_spec(content, read_space(dict(sweep.grid)), sweep.fixed | data, path.stem, dry_run)
    points = [_recipe(sweep, number, flags, processes) for number in range(1, sweep.combinations + 1)]
    common = {key: value for key, value in points[0].items() if all(point.get(key) == value for point in points)}
    space = _product([{key: value for key, value in point.items() if key not in common} for point in points])
    for key, theirs in (("time_per_trial", "total_training_time"), ("output_dir", "output_dir")):
        if theirs in common:  # else it is searched, which `make_spec` refuses
            content.setdefault(key, common[theirs])
    content.setdefault("job_name", common.get("run_name", path.stem))
    own = {*OWN, *(VALIDATION if content.get("prune_at") else ())}
    texts = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in common.items()}
    return make_spec(content, space, {key: text for key, text in texts.items() if key not in own}, path.stem, dry_run)


def _recipe(sweep: SweepFile, number: int, flags: dict[str, str], processes: int) -> dict[str, Any]:
    """A combination as the keys of our recipe."""
    values = {**sweep.given(number).values, "current_run_id": ""}
    values |= {name: flags[name] for name in ("job_name", "output_dir") if name in flags}
    draft = convert(Given(values), read_launcher([], processes), flags.get("data_dir"))
    return {key: value for key, (value, _) in draft.entries.items()}


def _product(points: list[dict[str, Any]]) -> Space:
    """The lists whose product the points are. InputError where they are no product."""
    names = list(dict.fromkeys(name for point in points for name in point))
    # The order of the file: what changes fastest comes last.
    names.sort(key=lambda name: -next((i for i, p in enumerate(points) if p.get(name) != points[0].get(name)), 0))
    lists: dict[str, list[Any]] = {name: [] for name in names}
    for point in points:
        for name in names:
            if name not in point or point[name] in NULLS:
                raise InputError(
                    f"{name}: set in some combinations of hyperparameters only; make recipes of them with "
                    "python -m budget_trainer.migrate FILE --combination N"
                )
            if point[name] not in lists[name]:
                lists[name].append(point[name])
    rest = {tuple(point[name] for name in names) for point in points}
    if rest != set(itertools.product(*lists.values())) or len(rest) != len(points):
        raise InputError(
            f"hyperparameters: {', '.join(names)} depend on each other here; make recipes of the combinations with "
            "python -m budget_trainer.migrate FILE --combination N, or write a file with parameters and fixed"
        )
    return {name: Choices(tuple(values)) for name, values in lists.items()}
