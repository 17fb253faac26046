"""What the original did otherwise than its flags say, and what is different here: one line each, where it applies."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from budget_trainer.migration.original_flags import NO_LIMIT
from budget_trainer.migration.original_values import Given


class Difference(NamedTuple):
    """`text` is said where `applies` to what was given."""

    defect: str
    applies: Callable[[Given], bool]
    text: str


def _clamped(given: Given) -> bool:
    """Linear decay on time divided by at least one hour."""
    rest = given["total_training_time"] * (1 - given["warmup_proportion"])
    return given["lr_schedule"] == "time" and given["curve"] == "linear" and rest < 1


def _always(given: Given) -> bool:
    return True


DIFFERENCES = (
    Difference(
        "B3",
        _clamped,
        "below an hour of decay the original's learning rate fell at once to a fraction of its peak; here the whole "
        "budget has the curve: a rate found there may be too high",
    ),
    Difference(
        "B5",
        _always,
        "the original looked at its clock after a whole shard and wrote the model after the end; here set-up, validation "
        "and the final save are inside of the budget",
    ),
    Difference(
        "B5",
        lambda given: given["max_steps"] < NO_LIMIT // 2,
        "max_steps was looked at after a whole shard; here it is the last step",
    ),
    Difference(
        "B8",
        lambda given: given["data_loader_type"] == "dist",
        "data_loader_type dist passed over most of the samples; here a pass takes each once, so the loss by the end differs",
    ),
    Difference(
        "B11",
        lambda given: bool(given["do_validation"]),
        "each validation took another test shard; here all take the same held-out blocks, so their losses compare",
    ),
    Difference(
        "B12",
        lambda given: not given["do_validation"],
        "without --do_validation the original crashed at its end; here the final model is evaluated outside of the budget, and "
        "validate_every: 2% adds validations on the way",
    ),
    Difference(
        "B13",
        lambda given: given["num_epochs_between_checkpoints"] < 1 or given["num_epochs_between_checkpoints"] > 1000,
        "nothing is left after a crash, as with the original; checkpoint_every: 1h leaves what resume_from_checkpoint: "
        "auto goes on from",
    ),
    Difference(
        "B16",
        _always,
        "feed-forward and head weights of the original kept PyTorch's own initialisation; here all have initializer_range",
    ),
    Difference(
        "B17",
        lambda given: bool(given["sparse_mask_prediction"]),
        "the original's output bias was never trained; here it is",
    ),
    Difference(
        "B7",
        lambda given: bool(given["add_nsp"]) or given["model_type"] == "bert-mlm-nsp",
        "the original's next-sentence prediction could not run; it needs shards with labels, or data_prep.blocks --packing nsp",
    ),
    Difference(
        "B24",
        _always,
        "masks were fixed in the shards; here each pass draws fresh ones. dup_factor: 10 fixes ten, as their --dup_factor 10",
    ),
)


def differences(given: Given) -> list[str]:
    """The lines that apply, each with the number of the defect."""
    return [f"{line.text} ({line.defect})" for line in DIFFERENCES if line.applies(given)]
