"""Every flag of finetune_glue.py: Hugging Face's `run_glue` names, the original's, and those of the suite."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from budget_trainer.arguments import CardArguments, RunArguments
from budget_trainer.errors import InputError
from budget_trainer.glue.tasks import HUB_DATASET


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
