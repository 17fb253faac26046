"""Every flag of finetune_glue.py: Hugging Face's `run_glue` names, the original's, and those of the suite.

From the command line to a checked request.
"""

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

from budget_trainer.budget.clock import parse_duration
from budget_trainer.config.arguments import CardArguments, RunArguments
from budget_trainer.config.parser import is_null, recipe_words, split_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.glue.push import resolve_model_push
from budget_trainer.glue.tasks import HUB_DATASET, Task, find_tasks


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class GlueArguments:
    """The task, its data and the model."""

    task_name: list[str] = field(
        default_factory=list, metadata={"help": "CoLA, SST-2, MRPC, ...: one, several (also CoLA,RTE), or all."}
    )
    model_name_or_path: str | None = _flag(None, "A checkpoint's folder, such as out/run/final, or a name on the Hub.")
    tokenizer_name: str | None = _flag(None, "Another tokenizer than the checkpoint's own.")
    glue_dir: list[str] | None = _flag(
        None, "Folders in the official layout (CoLA/train.tsv, ...), searched in this order, instead of the data set."
    )
    dataset_name: str = _flag(HUB_DATASET, "The data set, where no glue_dir is given: a name on the Hub, or a folder.")
    max_seq_length: int = _flag(128, "Tokens of a row; the rest is cut off.")
    pad_to_max_length: bool = _flag(False, "Pad every row to max_seq_length instead of to the longest of its batch.")
    max_train_samples: int | None = _flag(None, "Train on the first so many rows only.")
    max_eval_samples: int | None = _flag(None, "Evaluate on the first so many rows of each dev split only.")
    max_predict_samples: int | None = _flag(None, "Predict the first so many rows of each test split only.")
    early_stopping_patience: int = _flag(-1, "Stop after so many evaluations that were not better; -1: never.")
    total_training_time: str | None = _flag(
        None, "Time for all of it, until the result is on disk (a suite: for all of its runs); a bare number is hours."
    )
    save_model: bool = _flag(True, "Keep the best model in <output_dir>/model.")
    overwrite_output_dir: bool = _flag(False, "Replace the result that output_dir holds.")
    group_name: str | None = _flag(None, "Group of the run in Weights & Biases (report_to wandb).")
    project_name: str | None = _flag(None, "Project of the run in Weights & Biases (report_to wandb).")


@dataclass
class SuiteArguments:
    """Several runs: tasks x configurations x seeds. Any of these, or several tasks, makes a suite."""

    grid: str | None = _flag(None, "Configurations and seeds as YAML, such as recipes/glue/paper.yaml.")
    seeds: str | None = _flag(None, "Seeds of every configuration, as 1,2,3,4,5.")
    intermediate_task: str | None = _flag(None, "MRPC, RTE and STS-B start from the best model of this task (MNLI).")
    checkpoints: list[str] | None = _flag(
        None, "Time-marked models of one run (out/run/finetune-*): a suite for each, and scores against its minutes."
    )


@dataclass
class GlueRunArguments(RunArguments):
    """Hugging Face's TrainingArguments with the defaults of a fine-tuning."""

    learning_rate: float = _flag(5e-5, "Peak learning rate.")
    adam_beta2: float = _flag(0.999, "Second-moment decay.")
    adam_epsilon: float = _flag(1e-8, "Adam's epsilon.")
    per_device_train_batch_size: int = _flag(32, "Micro-batch per process.")
    per_device_eval_batch_size: int = _flag(64, "Rows per process in an evaluation.")
    eval_strategy: str = _flag("epoch", "When to evaluate: epoch, steps (with eval_steps) or no (at the end only).")
    report_to: str | None = _flag("none", "Trackers: none, tensorboard, wandb, ...")
    seed: int = _flag(42, "Seed of the head, the order and dropout.")

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval or self.do_predict):
            self.do_train = self.do_eval = self.do_predict = True
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is below 1; give a whole number from 1 on")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise InputError(f"num_train_epochs: {self.num_train_epochs:g} is not above 0; give 3")
        if not sys.stderr.isatty():
            self.disable_tqdm = True
        evaluates = self.do_eval
        if not evaluates:
            self.eval_strategy = "no"
        super().__post_init__()
        self.do_eval = evaluates  # TrainingArguments switches it on where there is an eval_strategy


GROUPS = (GlueArguments, SuiteArguments, CardArguments, GlueRunArguments)

# Flags of earlier Trainers, as they are spelt today.
RENAMED = {"evaluation_strategy": "eval_strategy", "warmup_ratio": "warmup_steps"}
_BEST = "the best model by the task's dev score is kept, once; leave it out"
_PRECISION = "evaluation has the precision of training (bf16, fp16); leave it out"
_LEAVE = "leave it out"
_TOKEN = "log in with `hf auth login` or set HF_TOKEN: launchers print the command line of a run that fails"
_PUSH = "the model is pushed once, when the run has ended; leave it out"
REFUSED = {
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"), _BEST),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better", "save_only_model", "save_on_each_node"), _BEST),
    **dict.fromkeys(("fp16_full_eval", "bf16_full_eval"), _PRECISION),
    **dict.fromkeys(("resume_from_checkpoint", "enable_jit_checkpoint"), "a run on GLUE is begun anew; leave it out"),
    **dict.fromkeys(("eval_accumulation_steps", "prediction_loss_only", "batch_eval_metrics"), _LEAVE),
    **dict.fromkeys(("include_for_metrics", "eval_do_concat_batches", "eval_use_gather_object"), _LEAVE),
    **dict.fromkeys(("label_names", "remove_unused_columns", "ignore_data_skip", "auto_find_batch_size"), _LEAVE),
    **dict.fromkeys(("length_column_name", "restore_callback_states_from_checkpoint"), _LEAVE),
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode"), "rows differ in length; " + _LEAVE
    ),
    "hub_token": _TOKEN,
    **dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision"), _PUSH),
}


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
        self.push = resolve_model_push(self.run, self.card, self.glue.save_model and self.run.do_train, self.explicit)

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


def check_installed() -> None:
    """Refuse to begin without the libraries of the extra `glue`. Help and mistakes in the arguments need none of them."""
    for module, package in (("evaluate", "evaluate"), ("sklearn", "scikit-learn"), ("scipy", "scipy")):
        if find_spec(module) is None:
            raise InputError(f"{package}: not installed, GLUE's metrics need it; pip install 'budget-trainer[glue]'")


class _Parser(HfArgumentParser):
    """argparse that answers in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see finetune_glue.py --help")


def parse_request(argv: Sequence[str] | None = None) -> Request:
    """The request in `[recipe.yaml] --flag value ...`. Raises InputError for anything it cannot read.

    Flags of earlier Trainers (`--evaluation_strategy`) become today's; of a flag given twice the last counts. A null in a
    recipe says nothing: the flag has its default.
    """
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
