"""The plan of a run (`--plan FILE` of train_mlm.py): read, compared with the run, put beside what it did.

A plan is the JSON that `budget_trainer.plan` writes. It belongs to a recipe and to data; where either differs it is refused. On
another machine it is a guess: that is said, and stands in the report. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError

FORMAT = 1
_PHASES = ("setup", "compile", "evaluate", "save")
_QUANTITIES = ("tokens", "steps", "tokens_per_second", *(f"{phase}_seconds" for phase in _PHASES))


def machine(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """What of `report.environment()["hardware"]` tells one kind of machine from another."""
    gpus = sorted({gpu["name"] for gpu in hardware.get("gpus") or []})  # the plan is made on one of them
    return {"cpu": hardware.get("cpu"), "cores": hardware.get("cores"), "gpus": gpus}


def read_plan(path: str, recipe_path: str | None = None) -> dict[str, Any]:
    """The plan in `path`: where that is relative, looked for beside the recipe, then in the current folder.

    Raises:
        InputError: there is no such file, or it is no plan.
    """
    places = ([Path(recipe_path).parent / path] if recipe_path is not None else []) + [Path(path)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"plan: {path} is not there; make it with `python -m budget_trainer.plan RECIPE --json FILE`, or leave it out"
        )
    try:
        plan = dict(json.loads(file.read_text(encoding="utf-8")))
        if plan["format"] != FORMAT:
            raise ValueError(f"format {plan['format']!r}, this version reads {FORMAT}")
        settings = [plan[key] for key in ("recipe", "machine", "total_seconds", "num_processes", "data")]
        if not all(math.isfinite(plan["prediction"][name]) for name in _QUANTITIES) or not isinstance(
            settings[0], dict
        ):
            raise ValueError("a number is not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"plan: {file} is not a plan ({error!r}); make it with budget_trainer.plan --json") from None
    return plan


def check_plan(
    plan: Mapping[str, Any], settings: Mapping[str, Any], *, total_seconds: float, processes: int, data: str
) -> None:
    """Refuse a plan that was made for something else.

    `settings` are the flags that a plan depends on (`config.recipe.speed_settings`), `data` is the folder's fingerprint.
    """
    seconds = math.inf if plan["total_seconds"] is None else float(plan["total_seconds"])
    pairs = {name: (plan["recipe"].get(name), value) for name, value in settings.items()}
    pairs["total_training_time in seconds"] = (
        seconds,
        seconds if abs(seconds - total_seconds) <= 0.5 else total_seconds,
    )
    pairs["num_processes"] = (plan["num_processes"], processes)
    pairs["the data of data_dir"] = (plan["data"]["fingerprint"], data)
    for name, (planned, asked) in pairs.items():
        if planned != asked:
            raise InputError(
                f"plan: made for {name} {planned!r}, this run has {asked!r}; plan again, or leave --plan out"
            )


def compare_with_plan(plan: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """`planned` for the run's report: each quantity as planned and as it came, and whether the machine is the same."""
    shares = report.get("shares") or {}
    did = {**report, **{f"{phase}_seconds": shares.get(phase) for phase in _PHASES}}
    return {
        "same_machine": plan["machine"] == machine(report.get("hardware") or {}),
        **{name: {"planned": plan["prediction"][name], "did": did.get(name)} for name in _QUANTITIES},
    }


def comparison_line(planned: Mapping[str, Any]) -> str:
    """One line for the end of a run."""
    tokens = planned["tokens"]
    off = 100 * (tokens["did"] / tokens["planned"] - 1) if tokens["planned"] else 0.0
    where = "" if planned["same_machine"] else " (planned on another machine)"
    return f"planned {tokens['planned']:,.0f} tokens, did {tokens['did']:,.0f}: {off:+.1f} %{where}"
