"""Every flag of finetune_glue.py (run_glue's names, the original's, the suite's), and the request that they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from budget_trainer.config.arguments import BUDGET, DATA, TOPICS, WATCH, CardArguments, RunArguments
from budget_trainer.config.parser import FlagParser, Values, flag
from budget_trainer.core.errors import InputError
from budget_trainer.glue.tasks import HUB_DATASET, Task, find_tasks
from budget_trainer.reporting.energy import check_country
from budget_trainer.reporting.hub import PushOptions
from budget_trainer.reporting.publish import resolve_push
from budget_trainer.reporting.report import in_run

_TASK, _SUITE = "Task and model", "Several runs (a suite)"
_task, _budget = partial(flag, topic=_TASK), partial(flag, topic=BUDGET)
_rows = partial(_task, None, unit="ROWS", min=1)
_elsewhere, _suite, _watch = (partial(flag, topic=topic, computes=False) for topic in (_TASK, _SUITE, WATCH))


@dataclass(frozen=True)
class _GlueArguments:
    """The task, its data and the model."""

    task_name: list[str] = _elsewhere(
        [], "CoLA, SST-2, MRPC, ...: one, several (also CoLA,RTE), or all.", unit="NAME..."
    )
    model_name_or_path: str | None = _elsewhere(
        None, "A checkpoint's folder, such as out/run/final, or a name on the Hub.", unit="DIR|NAME"
    )
    tokenizer_name: str | None = _elsewhere(None, "Another tokenizer than the checkpoint's own.", unit="DIR|NAME")
    glue_dir: list[str] | None = _elsewhere(
        None,
        "Folders in the official layout (CoLA/train.tsv, ...), searched in this order, instead of the data set.",
        unit="DIR...",
    )
    dataset_name: str = _elsewhere(
        HUB_DATASET, "The data set, where no glue_dir is given: a name on the Hub, or a folder.", unit="DIR|NAME"
    )
    max_seq_length: int = _task(128, "Tokens of a row; the rest is cut off.", unit="TOKENS", min=8)
    pad_to_max_length: bool = _task(False, "Pad every row to max_seq_length instead of to the longest of its batch.")
    max_train_samples: int | None = _rows("Train on the first so many rows only.")
    max_eval_samples: int | None = _rows("Evaluate on the first so many rows of each dev split only.")
    max_predict_samples: int | None = _rows("Predict the first so many rows of each test split only.")
    early_stopping_patience: int = _budget(
        -1, "Stop after so many evaluations that were not better.", unit="EVALUATIONS", min=1, special={-1: "never"}
    )
    total_training_time: str | None = _budget(
        None,
        "Time for all of it, until the result is on disk (a suite: for all of its runs); a bare number is hours.",
        unit="TIME",
        bare="h",
        computes=False,
    )
    save_model: bool = _elsewhere(True, "Keep the best model in <output_dir>/model.")
    overwrite_output_dir: bool = flag(False, "Replace the result that output_dir holds.", topic=DATA, computes=False)
    group_name: str | None = _watch(None, "Group of the run in Weights & Biases (report_to wandb).")
    project_name: str | None = _watch(None, "Project of the run in Weights & Biases (report_to wandb).")


@dataclass(frozen=True)
class _SuiteArguments:
    """Several runs: tasks x configurations x seeds. Any of these, or several tasks, makes a suite."""

    grid: str | None = _suite(
        None, "Configurations and seeds: a YAML file, or a name of the package's (paper).", unit="FILE"
    )
    seeds: str | None = _suite(None, "Seeds of every configuration, as 1,2,3,4,5.", unit="N,N...")
    intermediate_task: str | None = _suite(
        None, "MRPC, RTE and STS-B start from the best model of this task (MNLI).", unit="NAME"
    )
    checkpoints: list[str] | None = _suite(
        None,
        "Time-marked models of one run (out/run/finetune-*): a suite for each, and scores against its minutes.",
        unit="DIR...",
    )


@dataclass
class _GlueRunArguments(RunArguments):
    """Hugging Face's TrainingArguments with the defaults of a fine-tuning, for the machine that it is made on."""

    learning_rate: float = flag(5e-5, "Peak learning rate.")
    adam_beta2: float = flag(0.999, "Second-moment decay.")
    adam_epsilon: float = flag(1e-8, "Adam's epsilon.")
    per_device_train_batch_size: int = flag(32, "Micro-batch per process.")
    per_device_eval_batch_size: int = flag(64, "Rows per process in an evaluation.")
    eval_strategy: str = flag("epoch", "When to evaluate: epoch, steps (with eval_steps) or no (at the end only).")
    report_to: str | None = flag("none", "Trackers: none, tensorboard, wandb, ...")
    seed: int = flag(42, "Seed of the head, the order and dropout.")

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval or self.do_predict):
            self.do_train = self.do_eval = self.do_predict = True
        if not sys.stderr.isatty():
            self.disable_tqdm = True
        evaluates = self.do_eval
        if not evaluates:
            self.eval_strategy = "no"
        super().__post_init__()
        self.do_eval = evaluates  # TrainingArguments switches it on where there is an eval_strategy


GROUPS = (_GlueArguments, _SuiteArguments, CardArguments, _GlueRunArguments)

# Flags of earlier Trainers, as they are spelt today.
RENAMED: dict[str, tuple[str, Mapping[bool, str]]] = {
    "evaluation_strategy": ("eval_strategy", {}),
    "warmup_ratio": ("warmup_steps", {}),
    "group_by_length": ("train_sampling_strategy", {True: "group_by_length", False: "random"}),
}
REFUSED = {
    name: reason
    for reason, names in {
        "the best model by the task's dev score is kept, once; leave it out": """save_strategy save_steps save_total_limit
            load_best_model_at_end metric_for_best_model greater_is_better save_only_model save_on_each_node""",
        "evaluation has the precision of training (bf16, fp16); leave it out": "fp16_full_eval bf16_full_eval",
        "a run on GLUE is begun anew; leave it out": "resume_from_checkpoint enable_jit_checkpoint",
        "leave it out": """eval_accumulation_steps prediction_loss_only batch_eval_metrics include_for_metrics
            eval_do_concat_batches eval_use_gather_object label_names remove_unused_columns ignore_data_skip
            auto_find_batch_size length_column_name restore_callback_states_from_checkpoint""",
        "rows differ in length; leave it out": "torch_compile torch_compile_backend torch_compile_mode",
        "log in with `hf auth login` or set HF_TOKEN: launchers print the command line of a run that fails": "hub_token",
        "the model is pushed once, when the run has ended; leave it out": "hub_strategy hub_always_push hub_revision",
    }.items()
    for name in names.split()
}
PARSER = FlagParser(
    "finetune_glue",
    GROUPS,
    (_TASK, *TOPICS[:2], _SUITE, *TOPICS[2:]),
    REFUSED,
    harmless={"save_strategy": "no"},
    renamed=RENAMED,
    about="Fine-tune a checkpoint on GLUE: one task, several, or all of them with a grid and seeds, inside a time budget.",
    examples="""\
  {launch} \\
      --model_name_or_path out/run/final --task_name MRPC --output_dir out/mrpc
  {program} --model_name_or_path out/run/final --task_name all \\
      --grid quick --output_dir out/glue --total_training_time 1h
""",
)
KEYS = PARSER.flags.keys()
# Flags that change what a run computes: those that a grid may have.
COMPUTING = {name for name, known in PARSER.flags.items() if known.computes and name not in REFUSED}


@dataclass(frozen=True)
class Request:
    """What was asked for: the tasks, and all flags checked against each other.

    `training` has the values of TrainingArguments' flags as they were asked for, `explicit` the flags that were named, as text.
    """

    glue: _GlueArguments
    suite: _SuiteArguments
    card: CardArguments
    training: Any
    explicit: Mapping[str, str] = field(default_factory=dict)

    tasks: list[Task] = field(init=False)
    push: PushOptions | None = field(init=False)  # how to publish the model, where that was asked for

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", find_tasks(self.glue.task_name))
        asked, model, epochs = self.training, self.glue.model_name_or_path, self.training.num_train_epochs
        trains = asked.do_train or not (asked.do_eval or asked.do_predict)  # of all three where none is named
        given = self.suite.checkpoints is not None
        check_country(self.card.country_iso_code)
        _refuse(given and model, "checkpoints: they are the models; leave model_name_or_path out")
        _refuse(not (given or model), "model_name_or_path: missing; add a checkpoint's folder or a name on the Hub")
        _refuse(asked.output_dir is None, "output_dir: missing; add --output_dir with a folder for this run")
        _refuse(epochs <= 0 and asked.max_steps <= 0, f"num_train_epochs: {epochs:g} is not above 0; give 3")
        _refuse(
            asked.push_to_hub and self.is_suite,
            "push_to_hub: a suite scores a model and keeps none; publish that one with its scores: python -m "
            "budget_trainer.publish DIR --glue_report OUTPUT_DIR",
        )
        _refuse(
            asked.push_to_hub and not (self.glue.save_model and trains),
            "push_to_hub: the run keeps no model; let it train (do_train), with save_model true",
        )
        name = asked.hub_model_id or self.output_dir.resolve().name
        push = resolve_push(
            self.output_dir,
            PushOptions(name, asked.hub_private_repo, self.card.license, self.card.language),
            push_to_hub=asked.push_to_hub,
            hub_strategy="end",
            explicit=self.explicit,
            saves_models=True,
            main_process=os.environ.get("RANK", "0") == "0",
        )
        object.__setattr__(self, "push", push)

    @cached_property
    def run(self) -> _GlueRunArguments:
        """The TrainingArguments of this process, made once: it opens the process group and looks for the device."""
        # the original's names for Weights & Biases, as its environment variables
        for variable, value in (("WANDB_RUN_GROUP", self.glue.group_name), ("WANDB_PROJECT", self.glue.project_name)):
            if value is not None:
                os.environ.setdefault(variable, value)
        return _GlueRunArguments(**{**vars(self.training), "push_to_hub": False})  # Trainer would push while it trains

    @property
    def glue_dir(self) -> list[Path] | None:
        return [Path(folder) for folder in self.glue.glue_dir] if self.glue.glue_dir else None

    @property
    def output_dir(self) -> Path:
        return Path(self.training.output_dir)

    @property
    def is_suite(self) -> bool:
        """Whether this is more than one run of one task."""
        s = self.suite
        given = (s.grid, s.seeds, s.intermediate_task, s.checkpoints)
        return len(self.tasks) > 1 or any(value is not None for value in given)

    @property
    def total_seconds(self) -> float | None:
        time = self.glue.total_training_time
        return None if time is None else PARSER.flags["total_training_time"].seconds(time)

    def of_checkpoint(self, path: Path, total_training_time: str | None) -> Request:
        """The suite of one of the `checkpoints`, in a folder of its own in output_dir."""
        glue = replace(self.glue, model_name_or_path=str(path), total_training_time=total_training_time)
        training = Values(**{**vars(self.training), "output_dir": str(self.output_dir / in_run(path).name)})
        return Request(glue, replace(self.suite, checkpoints=None), self.card, training, self.explicit)

    def own_flags(self) -> dict[str, str]:
        """The flags of the command line that change what a run computes, for the runs of a suite."""
        return {name: value for name, value in self.explicit.items() if PARSER.flags[name].computes}


def _refuse(wrong: object, message: str) -> None:
    if wrong:
        raise InputError(message)


def parse_request(argv: Sequence[str] | None = None) -> Request:
    """The request in `[recipe.yaml] --flag value ...`. Raises InputError for anything it cannot read."""
    parsed = PARSER.parse(argv)
    glue, suite, card, training = parsed.groups
    return Request(glue, suite, card, training, parsed.explicit)
