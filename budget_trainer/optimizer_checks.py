"""The optimizers' names, and the checks of their options."""

from __future__ import annotations

from budget_trainer.errors import InputError
from budget_trainer.lamb import MAX_COEFF, MIN_COEFF

OPTIMIZERS = ("adam", "adamw", "adafactor", "lamb", "muon")
LAMB_ONLY = ("bias_correction", "max_coeff", "min_coeff")


def check_options(name: str, **options: float | bool | None) -> None:
    """Refuse an unknown optimizer, options that it does not have, and numbers out of range (None: not given).

    Raises:
        InputError: with the field, the value and the fix.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer_type: {name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    for field, value in options.items():
        if value is None:
            continue
        if field in LAMB_ONLY and name != "lamb":
            raise InputError(f"{field}: {value} belongs to optimizer_type lamb, not {name}; leave it out")
        if field in ("adam_beta1", "adam_beta2", "muon_momentum") and not 0 <= value < 1:
            raise InputError(f"{field}: {value} is not in [0, 1); give a share such as 0.9")
        if not value >= 0:  # also refuses nan
            raise InputError(f"{field}: {value} is below 0; give 0 or more")
    low, high = options.get("min_coeff"), options.get("max_coeff")
    low, high = MIN_COEFF if low is None else low, MAX_COEFF if high is None else high
    if low > high:
        raise InputError(f"min_coeff: {low} is above max_coeff {high}; lower it or raise max_coeff")
