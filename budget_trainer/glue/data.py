"""A task's examples, from `nyu-mll/glue` or from TSV files in the official layout: the same either way.

In the TSV files quotes are text: sentences hold lone quotation marks, and a reader that pairs them swallows rows. Nothing is
stripped. Only QQP's official files have broken rows (two dozen of 363,870), which the data set leaves out, and so does this.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget_trainer.core.errors import InputError
from budget_trainer.glue.tasks import HUB_DATASET, Split, Task

_BROKEN_ALLOWED = {"QQP": 0.001}  # share of the rows
_AGAIN = "take the official file again"


@dataclass
class Examples:
    """The rows of a split: `columns` of text under the names of `nyu-mll/glue`, and as many `labels`.

    Labels are numbers of classes, -1 where there are none (test), or scores in 0..5 (STS-B; -1.0 in test).
    """

    columns: dict[str, list[str]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, rows: int | None) -> Examples:
        """The first `rows` rows, all where None."""
        return Examples({name: texts[:rows] for name, texts in self.columns.items()}, self.labels[:rows])


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
        rows = {split.name: split.rows for split, _ in self.task.answered}
        return {name: len(examples) == rows[name] for name, examples in self.splits.items()}

    def check(self, *, do_train: bool, do_eval: bool, do_predict: bool) -> None:
        """Refuse a task without the data that is asked for; of several dev or test splits one is enough."""
        task = self.task
        groups = {"do_train": (do_train, [task.train] if task.train else []), "do_eval": (do_eval, list(task.dev))}
        if not do_train and not do_eval:
            groups["do_predict"] = (do_predict, [split for split, _ in task.answered if split.is_test])
        for flag, (wanted, splits) in groups.items():
            if not wanted or any(split.name in self.splits for split in splits):
                continue
            if not splits:
                raise InputError(
                    f"task_name: {task.name} has nothing to {flag.removeprefix('do_')} on; use {task.shared}"
                )
            raise InputError(f"{flag}: {task.name} has no data for it ({self.absent[splits[0].name]}); add the file")


def load_task(task: Task, glue_dir: list[Path] | None = None, dataset_name: str = HUB_DATASET) -> TaskData:
    """The data of `task`: from TSV files where `glue_dir` names folders, else through `datasets`.

    What a folder does not have is listed as absent. Raises InputError for damaged files, for a folder that does not exist,
    and where the data set cannot be loaded.
    """
    data = TaskData(task)
    if glue_dir is None:
        for owner in dict.fromkeys(owner for _, owner in task.answered):
            _from_datasets(data, owner, dataset_name)
        return data
    for folder in glue_dir:
        if not folder.is_dir():
            raise InputError(f"glue_dir: {folder} is not a folder; give one that holds CoLA/, SST-2/, ...")
    for split, owner in task.answered:
        paths = (folder / file for file in split.files for folder in glue_dir)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            data.absent[split.name] = f"{split.files[0]} is not in {' or '.join(map(str, glue_dir))}"
        else:
            data.splits[split.name] = _read_tsv(path, owner, split)
    return data


def _read_tsv(path: Path, task: Task, split: Split) -> Examples:
    """The examples in an official file; errors number its rows from 1, without the header."""
    by_position = task.without_header if task.without_header and not split.is_test else ()
    rows = _rows(path, by_position)
    header = list(by_position) or next(rows, (0, []))[1]
    sentences = task.tsv_sentences or task.sentences
    for column in (*sentences, *(() if split.is_test else (task.tsv_label,))):
        if column not in header:
            raise InputError(f"{path}: its header has no column {column!r} ({', '.join(header)[:200]}); {_AGAIN}")
    if path.name.startswith("msr_paraphrase_train"):
        rows = _of_mrpc(rows, header, path, split)
    places = [header.index(column) for column in sentences]
    label_place = None if split.is_test else header.index(task.tsv_label)
    texts: list[list[str]] = [[] for _ in places]
    labels: list = []
    seen = broken = 0
    for number, row in rows:
        seen += 1
        if len(row) < len(header) and task.name in _BROKEN_ALLOWED:
            broken += 1
            continue
        if len(row) != len(header):
            raise InputError(f"{path}: row {number} has {len(row)} columns of {len(header)}, it is cut off; {_AGAIN}")
        labels.append(task.unlabelled if label_place is None else _label(row[label_place], task, path, number))
        for cells, place in zip(texts, places, strict=True):
            cells.append(row[place])
    if broken > max(_BROKEN_ALLOWED.get(task.name, 0.0) * seen, 1):
        raise InputError(f"{path}: {broken} of {seen} rows have too few columns; {_AGAIN}")
    if not labels:
        raise InputError(f"{path}: there are no rows in it; {_AGAIN}")
    return Examples(dict(zip(task.sentences, texts, strict=True)), labels)


def _rows(path: Path, by_position: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The columns of every line with the row's number: 0 is the header, where there is one."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")  # MRPC begins with a byte-order mark
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8; {_AGAIN}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None
    rows = (line.rstrip("\n").split("\t") for line in io.StringIO(text, newline=None) if line != "\n")
    return enumerate(rows, 1 if by_position else 0)


def _of_mrpc(
    rows: Iterator[tuple[int, list[str]]], header: list[str], path: Path, split: Split
) -> Iterator[tuple[int, list[str]]]:
    """Of Microsoft's file the rows that GLUE has put into train, or into dev."""
    ids_file = path.with_name("dev_ids.tsv")
    if not ids_file.is_file():
        raise InputError(f"{ids_file}: missing, and it says which rows of {path.name} are dev; add it, or train.tsv")
    dev = {tuple(row[:2]) for _, row in _rows(ids_file, ("#1 ID", "#2 ID"))}
    if not {"#1 ID", "#2 ID"} <= set(header):
        raise InputError(f"{path}: its header has no columns '#1 ID' and '#2 ID'; {_AGAIN}")
    one, two = header.index("#1 ID"), header.index("#2 ID")
    for number, row in rows:
        is_dev = len(row) == len(header) and (row[one], row[two]) in dev
        if is_dev == (split.name == "dev"):
            yield number, row


def _label(text: str, task: Task, path: Path, number: int) -> int | float:
    if task.regression:
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not 0 <= score <= 5:
            raise InputError(f"{path}: row {number} has the score {text!r}, not a number from 0 to 5; {_AGAIN}")
        return round(score, 3)
    for place, label in enumerate(task.labels):
        if text in (label, str(place)):
            return place
    known = ", ".join(task.labels)
    raise InputError(f"{path}: row {number} has the label {text!r}; {task.name} knows {known}; {_AGAIN}")


def _from_datasets(data: TaskData, task: Task, dataset_name: str) -> None:
    from datasets import load_dataset

    here = Path(dataset_name).resolve()
    if here.is_file() or not (here.exists() or re.fullmatch(r"\w[\w.-]*(?:/[\w.-]+)?", dataset_name)):  # no Hub's name
        what = f"is {'a file' if here.exists() else 'not there'}; give a folder in the form of {HUB_DATASET}"
        raise InputError(f"dataset_name: {dataset_name} {what}, or --glue_dir with the official files")
    try:
        with tempfile.TemporaryDirectory() as place:
            path: str | Path = dataset_name
            if here.is_dir() and re.search(r"[*?\[]|::", str(here)):  # a pattern, for the library
                path = shutil.copytree(here, Path(place, "data"), copy_function=os.symlink)
            loaded = load_dataset(str(path), task.config)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such data set, no such configuration
        reason = " ".join(str(error).split())[:200]
        failed = f"{dataset_name} ({task.config}) cannot be loaded ({reason})"
        raise InputError(f"dataset_name: {failed}; connect, or give --glue_dir with the official files") from None
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
        return Examples(columns, [task.unlabelled] * len(rows))
    labels = list(rows["label"])
    top = 5 if task.regression else len(task.labels) - 1
    for number, label in enumerate(labels, 1):
        if label is None or not 0 <= label <= top:
            raise InputError(f"{where}: row {number} has the label {label!r}, not one from 0 to {top}; correct it")
    # 32-bit floats in the data set, three decimals in the official files
    return Examples(columns, [round(float(label), 3) for label in labels] if task.regression else labels)
