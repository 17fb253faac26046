"""What the flags of `WatchArguments` must not contradict. Standard library only."""

from __future__ import annotations

import math
from typing import Any

from budget_trainer.errors import InputError

EPOCHS = ("validation_epochs", "validation_epochs_begin", "validation_epochs_end")
PROPORTIONS = ("validation_begin_proportion", "validation_end_proportion")


def parse_share(value: str, name: str) -> float:
    """A share of the budget in (0, 1]: `10%` or `0.1`. InputError for anything else."""
    text = value.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise InputError(f"{name}: {value!r} is not a share of the budget; write it as 10% or 0.1")
    return share


def check_watch(watch: Any, total_seconds: float) -> None:
    """Refuse (InputError) numbers out of range, two cadences at once, and flags that nothing would read."""
    given = {name: value for name, value in vars(watch).items() if value is not None}
    _check_numbers(given)
    epochs = [name for name in EPOCHS if name in given]
    cadence = epochs[:1] or [name for name in ("validate_every",) if name in given]
    if "validate_every" in given:
        parse_share(watch.validate_every, "validate_every")
        if epochs:
            raise InputError(
                f"{epochs[0]}: {given[epochs[0]]} beside validate_every {watch.validate_every}; leave one out"
            )
    for name in PROPORTIONS:
        if name in given and not epochs:
            raise InputError(f"{name}: {given[name]:g} belongs to validation_epochs, which is not set; add it")
    if cadence and math.isinf(total_seconds):
        raise InputError(
            f"{cadence[0]}: {given[cadence[0]]} goes by shares of the budget, and there is none; add "
            "--total_training_time 24h"
        )
    pair = [name for name in ("early_stop_time", "early_stop_eval_loss") if name in given]
    if len(pair) == 1:
        other = "early_stop_eval_loss" if pair[0] == "early_stop_time" else "early_stop_time"
        raise InputError(f"{pair[0]}: {given[pair[0]]} without {other}; give both or none")
    if pair and not cadence:
        raise InputError(
            f"early_stop_eval_loss: {watch.early_stop_eval_loss:g}, and nothing validates; add --validate_every 2%"
        )


def _check_numbers(given: dict[str, Any]) -> None:
    for name in (*EPOCHS, "max_bad_steps", "scale_cnt_limit"):
        if given.get(name, 1) < 1:
            raise InputError(f"{name}: {given[name]} is below 1; give a whole number from 1 on")
    if given["max_roll_backs"] < 0:
        raise InputError(f"max_roll_backs: {given['max_roll_backs']} is below 0; give 0 for none, or more")
    for name in PROPORTIONS:
        if not 0 <= given.get(name, 0.1) <= 1:
            raise InputError(f"{name}: {given[name]:g} is not in [0, 1]; give a share of the budget")
    if not 0 < given["roll_back_lr_factor"] <= 1:
        raise InputError(f"roll_back_lr_factor: {given['roll_back_lr_factor']:g} is not in (0, 1]; give 0.5, say")
    if not given["loss_spike"] > 0:
        raise InputError(f"loss_spike: {given['loss_spike']:g} is not above 0; give nats, such as 1.0")
