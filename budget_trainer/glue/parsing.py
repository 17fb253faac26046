"""From the command line to a checked request."""

from __future__ import annotations

import copy
import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from budget_trainer.arguments import CardArguments
from budget_trainer.clock import parse_duration
from budget_trainer.errors import InputError
from budget_trainer.glue.arguments import GROUPS, REFUSED, RENAMED, GlueArguments, GlueRunArguments, SuiteArguments
from budget_trainer.glue.push import settle
from budget_trainer.glue.tasks import Task, find_tasks
from budget_trainer.recipe_file import is_null, recipe_words, split_recipe

KEYS = {f.name for group in GROUPS for f in fields(group) if f.init}
LENGTHS = ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples")
# Flags that say where and in which company a run happens, not what it computes.
ELSEWHERE = {
    "output_dir",
    "overwrite_output_dir",
    "task_name",
    "glue_dir",
    "dataset_name",
    "model_name_or_path",
    "seed",
}
ELSEWHERE |= {
    "grid",
    "seeds",
    "intermediate_task",
    "checkpoints",
    "total_training_time",
    "group_name",
    "project_name",
    "report_to",
}
ELSEWHERE |= {"push_to_hub", "hub_model_id", "hub_private_repo", "license", "language"}
ELSEWHERE |= {"tokenizer_name", "save_model", "do_train", "do_eval", "do_predict", "disable_tqdm", "use_cpu"}


@dataclass
class Request:
    """What was asked for: the tasks, and all flags checked against each other."""

    glue: GlueArguments
    suite: SuiteArguments
    run: GlueRunArguments
    card: CardArguments = field(default_factory=CardArguments)
    tasks: list[Task] = field(default_factory=list)
    explicit: dict[str, str] = field(default_factory=dict)  # flags of the command line, with their value as text

    def __post_init__(self) -> None:
        self.tasks = find_tasks(self.glue.task_name)
        if self.suite.checkpoints is not None and self.glue.model_name_or_path is not None:
            raise InputError("checkpoints: they are the models; leave model_name_or_path out")
        if self.suite.checkpoints is None and self.glue.model_name_or_path is None:
            raise InputError("model_name_or_path: missing; add a checkpoint's folder or a name on the Hub")
        for name in LENGTHS:
            value = getattr(self.glue, name)
            if value is not None and value < (8 if name == "max_seq_length" else 1):
                raise InputError(f"{name}: {value} is too small; give {'128' if name == 'max_seq_length' else '1000'}")
        if self.glue.early_stopping_patience == 0 or self.glue.early_stopping_patience < -1:
            raise InputError(
                f"early_stopping_patience: {self.glue.early_stopping_patience} is no number of evaluations; give 1 or more, "
                "or -1 for never"
            )
        if self.glue.total_training_time is not None:
            parse_duration(self.glue.total_training_time, "total_training_time", "h")
        self.glue_dir = [Path(folder) for folder in self.glue.glue_dir] if self.glue.glue_dir else None
        self.output_dir = Path(str(self.run.output_dir))
        if self.run.push_to_hub and self.is_suite:
            raise InputError(
                "push_to_hub: a suite scores a model and keeps none; publish that one with its scores: python -m "
                "budget_trainer.publish DIR --glue_report OUTPUT_DIR"
            )
        self.push = settle(self.run, self.card, self.glue.save_model and self.run.do_train, self.explicit)

    @property
    def is_suite(self) -> bool:
        """Whether this is more than one run of one task."""
        s = self.suite
        given = (s.grid, s.seeds, s.intermediate_task, s.checkpoints)
        return len(self.tasks) > 1 or any(value is not None for value in given)

    @property
    def total_seconds(self) -> float | None:
        time = self.glue.total_training_time
        return None if time is None else parse_duration(time, "total_training_time", "h")

    def of_checkpoint(self, path: Path, total_training_time: str | None) -> Request:
        """The suite of one of the `checkpoints`, in a folder of its own in output_dir."""
        glue = replace(self.glue, model_name_or_path=str(path), total_training_time=total_training_time)
        run = copy.copy(self.run)
        run.output_dir = str(self.output_dir / path.resolve().name)
        return Request(glue, replace(self.suite, checkpoints=None), run, self.card, explicit=self.explicit)

    def own_flags(self) -> dict[str, str]:
        """The flags of the command line that change what a run computes, for the runs of a suite."""
        return {name: value for name, value in self.explicit.items() if name not in ELSEWHERE}


class _Parser(HfArgumentParser):
    """argparse that answers in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see finetune_glue.py --help")


def parse_request(argv: Sequence[str] | None = None) -> Request:
    """The request in `[recipe.yaml] --flag value ...`. Raises InputError for anything it cannot read.

    Flags of earlier Trainers (`--evaluation_strategy`) become today's; of a flag given twice the last counts. A null in a
    recipe says nothing: the flag has its default.
    """
    _check_installed()
    path, given, words = split_recipe(sys.argv[1:] if argv is None else argv)
    _checked([f"--{key}" for key, value in given.items() if is_null(value)], f"recipe {path}")
    from_recipe = _checked(recipe_words(given, KEYS), f"recipe {path}")
    words = _checked(words, "command line")
    explicit = {**_explicit(from_recipe), **_explicit(words)}
    try:
        glue, suite, card, run = make_parser().parse_args_into_dataclasses(
            args=[*from_recipe, *words], look_for_args_file=False
        )
    except (ValueError, TypeError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"arguments: {' '.join(str(error).split())}; correct the recipe or the command line"
        ) from error
    _name_trackers(glue)
    return Request(glue, suite, run, card, explicit=explicit)


def make_parser() -> HfArgumentParser:
    """The parser of every flag, those too that are refused."""
    groups: Any = GROUPS
    return _Parser(groups, allow_abbrev=False, prog="finetune_glue.py")


def _checked(words: Sequence[str], where: str) -> list[str]:
    """The words with today's spelling. Raises InputError for a flag that is unknown, or not used here."""
    today = renamed(words)
    for name, value in _explicit(today).items():
        if name in REFUSED and not (name == "save_strategy" and value == "no"):
            raise InputError(f"{name}: not used here ({where}); {REFUSED[name]}")
        if name not in KEYS:
            close = difflib.get_close_matches(name, KEYS, n=1)
            fix = f"did you mean {close[0]}?" if close else "see finetune_glue.py --help for all flags"
            raise InputError(f"{name}: unknown key ({where}); {fix}")
    return today


def _check_installed() -> None:
    for module, package in (("sklearn", "scikit-learn"), ("scipy", "scipy")):
        if find_spec(module) is None:
            raise InputError(
                f"{package}: not installed, and GLUE's metrics need it; pip install 'budget-trainer[glue]'"
            )


def renamed(words: Sequence[str]) -> list[str]:
    """The words with today's spelling of every flag."""
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.removeprefix("--").replace("-", "_")
            if name not in KEYS and name.removeprefix("no_") in KEYS:
                name, equals, value = name.removeprefix("no_"), "=", "false"
            found.append(f"--{RENAMED.get(name, name)}{equals}{value}")
        else:
            found.append(word)
    return _grouped(found)


def _grouped(words: list[str]) -> list[str]:
    """`--group_by_length`, a switch of earlier Trainers, as today's sampling strategy."""
    found: list[str] = []
    for place, word in enumerate(words):
        if word.partition("=")[0] == "--group_by_length":
            behind = words[place + 1] if place + 1 < len(words) else ""
            value = word.partition("=")[2] or ("" if behind.startswith("--") else behind)
            on = value.lower() not in ("false", "no", "0")
            found.append(f"--train_sampling_strategy={'group_by_length' if on else 'random'}")
        elif not (place and words[place - 1] == "--group_by_length" and not word.startswith("--")):
            found.append(word)
    return found


def _explicit(words: Sequence[str]) -> dict[str, str]:
    """Each flag with what follows it, joined by blanks; `true` for a switch."""
    found: dict[str, list[str]] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            found[name] = [value] if equals else []
        elif name is not None:
            found[name].append(word)
    return {name: " ".join(values) if values else "true" for name, values in found.items()}


def _name_trackers(glue: GlueArguments) -> None:
    """The original's names for Weights & Biases, as its environment variables."""
    for variable, value in (("WANDB_RUN_GROUP", glue.group_name), ("WANDB_PROJECT", glue.project_name)):
        if value is not None:
            os.environ.setdefault(variable, value)
