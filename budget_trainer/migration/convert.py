"""A command line or a combination of a sweep of the original -> a recipe that train_mlm.py takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from budget_trainer.migration import rules
from budget_trainer.migration.differences import differences
from budget_trainer.migration.draft import Draft, first_draft
from budget_trainer.migration.launcher import Launch
from budget_trainer.migration.original_values import Given
from budget_trainer.recipes import parse_recipe

HUB_NAMES = {"bert": "google-bert", "roberta": "FacebookAI"}  # owners of the names that had none in 2021
TRAIN_SHARDS = 256  # shard_data's default, before copies


def convert(given: Given, launch: Launch, data_dir: str | None = None) -> Draft:
    """The recipe of what was given, for `launch`'s processes; `data_dir` is where the converted data will be.

    Raises:
        InputError: what the original could not have run, or no native class and no flag here can do.
    """
    draft = first_draft(given, launch)
    for rule in rules.RULES:
        rule(draft)
    rules.data(draft, data_dir)
    draft.differences = [*differences(given), *draft.differences, *given.remarks]
    check(draft)
    return draft


def check(draft: Draft) -> None:
    """Refuse (InputError) what train_mlm.py would: precision and device of the machine that converts do not count."""
    words = [f"--{key}={as_word(entry.value)}" for key, entry in draft.entries.items()]
    parse_recipe([*words, "--use_cpu=true", "--fp16=false"])


def as_word(value: Any) -> str:
    """A value as the command line and YAML write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def train_shards(given: Given) -> int:
    """Train files of dataset_path; 0 where it is not on this machine."""
    return sum(not file.name.startswith("test") for file in Path(given["dataset_path"]).rglob("*.hdf5"))


def data_command(draft: Draft) -> str:
    """`data_prep.hdf5` for the original's shards, with as many train shards as they were: an epoch is one of them."""
    given = draft.given
    roberta = given["model_type"] == "bert-mlm-roberta"
    tokenizer = given["tokenizer_name"] or ("roberta-base" if roberta else "bert-large-uncased")
    if "/" not in tokenizer and tokenizer.partition("-")[0] in HUB_NAMES and not Path(tokenizer).exists():
        tokenizer = f"{HUB_NAMES[tokenizer.partition('-')[0]]}/{tokenizer}"
    words = ["python", "-m", "data_prep.hdf5", "--input", given["dataset_path"], "--tokenizer", tokenizer]
    words += [
        "--num_shards",
        str(train_shards(given) or TRAIN_SHARDS),
        "--output_dir",
        draft.entries["data_dir"].value,
    ]
    return shlex.join(words)
