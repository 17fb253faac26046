"""A task's examples, from `nyu-mll/glue` or from a folder in the official layout: the same either way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.glue.tasks import HUB_DATASET, TASKS, UNLABELLED, Split, Task
from budget_trainer.glue.tsv import Examples, find_file, missing_file, read_split


@dataclass
class TaskData:
    """What there is of a task: `splits` by name, and why each of the others is `absent`.

    With the data of a task comes that of the tasks its model answers: `ax` with MNLI's.
    """

    task: Task
    splits: dict[str, Examples] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all examples, in the order of the splits: the same from the Hub and from TSV files."""
        whole = hashlib.sha256()
        for name in sorted(self.splits):
            examples = self.splits[name]
            whole.update(f"{name} {len(examples)} {list(examples.columns)}\n".encode())
            for texts in examples.columns.values():
                for text in texts:
                    whole.update(text.encode() + b"\0")
            whole.update(repr(examples.labels).encode())
        return whole.hexdigest()

    def official(self) -> dict[str, bool]:
        """Whether each split has the official number of rows: scores of other numbers compare with nothing."""
        rows = {split.name: split.rows for split, _ in splits_of(self.task)}
        return {name: len(examples) == rows[name] for name, examples in self.splits.items()}


def splits_of(task: Task) -> list[tuple[Split, Task]]:
    """The splits that a model of `task` works on, with the task each belongs to."""
    shared = [other for other in TASKS.values() if other.shared == task.name]
    return [(split, owner) for owner in (task, *shared) for split in owner.splits]


def load_task(task: Task, glue_dir: list[Path] | None = None, dataset_name: str = HUB_DATASET) -> TaskData:
    """The data of `task`: from TSV files where `glue_dir` names folders, else through `datasets`.

    What a folder does not have is listed as absent. Raises InputError for damaged files, for a folder that does not exist,
    and where the data set cannot be loaded.
    """
    data = TaskData(task)
    if glue_dir is None:
        for owner in dict.fromkeys(owner for _, owner in splits_of(task)):
            _from_datasets(data, owner, dataset_name)
        return data
    for folder in glue_dir:
        if not folder.is_dir():
            raise InputError(f"glue_dir: {folder} is not a folder; give one that holds CoLA/, SST-2/, ...")
    for split, owner in splits_of(task):
        path = find_file(glue_dir, split)
        if path is None:
            data.absent[split.name] = missing_file(glue_dir, split)
        else:
            data.splits[split.name] = read_split(path, owner, split)
    return data


def _from_datasets(data: TaskData, task: Task, dataset_name: str) -> None:
    from datasets import load_dataset

    try:
        loaded = load_dataset(dataset_name, task.config)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such data set, no such configuration
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"dataset_name: {dataset_name} ({task.config}) cannot be loaded ({reason}); connect, or give --glue_dir with "
            "the official files"
        ) from None
    for split in task.splits:
        if split.hub in loaded:
            data.splits[split.name] = _examples(loaded[split.hub], task, split, dataset_name)
        else:
            data.absent[split.name] = f"{dataset_name} ({task.config}) has no split {split.hub}"


def _examples(rows: Any, task: Task, split: Split, dataset_name: str) -> Examples:
    """The rows of a split of `datasets`. The labels of a test split count as unknown: MRPC's are given there."""
    where = f"dataset_name: {dataset_name} ({task.config}, {split.hub})"
    missing = [name for name in (*task.sentences, "label") if name not in rows.column_names]
    if missing:
        raise InputError(f"{where} has no column {missing[0]!r}; give one with the columns of {HUB_DATASET}")
    names = getattr(rows.features["label"], "names", None)
    if names and tuple(names) != task.labels:
        raise InputError(f"{where} numbers its labels {', '.join(names)}, GLUE {', '.join(task.labels)}; reorder them")
    columns = {name: list(rows[name]) for name in task.sentences}
    if split.is_test:
        unknown: Any = float(UNLABELLED) if task.regression else UNLABELLED
        return Examples(columns, [unknown] * len(rows))
    labels = list(rows["label"])
    top = 5 if task.regression else len(task.labels) - 1
    for number, label in enumerate(labels, 1):
        if label is None or not 0 <= label <= top:
            raise InputError(f"{where}: row {number} has the label {label!r}, not one from 0 to {top}; correct it")
    # 32-bit floats in the data set, three decimals in the official files
    return Examples(columns, [round(float(label), 3) for label in labels] if task.regression else labels)
