"""A sweep file of the original's generate_training_commands.py -> the flags of each of its commands."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any, NamedTuple

import yaml

from budget_trainer.errors import InputError
from budget_trainer.migration.original_values import Given, find_flag, typed

SECTIONS = ("hyperparameters", "default_parameters")
JOB_NAME = "bert_large_experiment"  # the default of its --job_name


class Sweep(NamedTuple):
    """The grid by flag, and the flags of one combination of it."""

    grid: dict[str, list[str]]
    combinations: int
    given: Given


def is_sweep(text: str) -> bool:
    """Whether a text is such a file and no command."""
    return re.search(rf"^['\"]?({'|'.join(SECTIONS)})['\"]?\s*:", text, re.M) is not None


def read_sweep(text: str, combination: int = 1) -> Sweep:
    """One combination (from 1 on, the last parameter changes fastest) of the original's grid, typed.

    Scalars are taken as they are written: PyYAML would make a text of 1e-3. A hyperparameter that also stands among the
    default parameters is refused: the original's command named it twice, and the default won.

    Raises:
        InputError: not such a file, a flag the original did not know, an empty list, a combination that is not there.
    """
    grid, fixed = sections(text)
    for name in [*grid, *fixed]:
        find_flag(name, "sweep file")
    count = math.prod(map(len, grid.values()))
    if not 1 <= combination <= count:
        raise InputError(f"combination: {combination} is not one of the {count} of this sweep; give 1 to {count}")
    chosen = next(itertools.islice(itertools.product(*grid.values()), combination - 1, None))
    written = {**dict(zip(grid, chosen, strict=True)), **fixed}
    # What its generator added to each command, so that runs did not write into one folder.
    written = {"job_name": JOB_NAME, "current_run_id": str(combination), **written}
    values = {name: typed(find_flag(name), value) for name, value in written.items()}
    remarks = tuple(
        f"{name}: false means false; the original's generator made --{name} of it (B27)"
        for name, value in values.items()
        if value is False
    )
    for name, others in grid.items():
        for value in others:
            typed(find_flag(name), value)
    return Sweep(grid, count, Given(values, remarks))


def sections(text: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The lists of `hyperparameters` and the values of `default_parameters` as they are written, whatever their names.

    Raises:
        InputError: not such a file, an empty list, a name in both sections.
    """
    content = _load(text)
    grid = {name: _values(name, values) for name, values in content.get("hyperparameters", {}).items()}
    fixed = {name: _scalar(name, value) for name, value in content.get("default_parameters", {}).items()}
    twice = sorted(grid.keys() & fixed.keys())
    if twice:
        raise InputError(
            f"{twice[0]}: stands in hyperparameters and in default_parameters, where the original's command named it twice; "
            "take it out of one"
        )
    return grid, fixed


def _load(text: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise InputError(f"sweep file: is not YAML ({' '.join(str(error).split())}); correct it") from None
    for name, section in content.items():
        if name not in SECTIONS:
            raise InputError(
                f"{name}: not a section of the original's sweep files; they have {' and '.join(SECTIONS)}"
            )
        if section in ("", "null", "~"):
            content[name] = {}
        elif not isinstance(section, dict):
            raise InputError(f"{name}: is not a mapping; write one `flag: value` per line")
    return dict(content)


def _values(name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not values:
        raise InputError(f"{name}: {values!r} is not a list of values; write {name}: [first, second]")
    return [_scalar(name, value) for value in values]


def _scalar(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: {value!r} is not one value; write a number or a word")
    return value
