"""The tasks of GLUE as facts: sentences, labels, metrics, and the files they come in. Standard library only.

Labels, columns and the order of the labels are those of the data set `nyu-mll/glue`; files, columns and row counts those of
the official archives (gluebenchmark.com); the headline metrics those of Devlin et al. (arXiv 1810.04805, table 1): F1 for
MRPC and QQP, Spearman for STS-B, Matthews for CoLA, accuracy else.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from budget_trainer.core.errors import InputError

HUB_DATASET = "nyu-mll/glue"
UNLABELLED = -1


@dataclass(frozen=True)
class Split:
    """A part of a task: its name here, its name in `nyu-mll/glue`, its official file and rows (header not counted).

    `files` are paths inside of a GLUE folder, the first that exists is read. `column` is its name in tables (MNLI-m, MNLI-mm).
    """

    name: str
    hub: str
    files: tuple[str, ...]
    rows: int
    column: str
    is_test: bool = False


@dataclass(frozen=True)
class Task:
    """One task of GLUE.

    `sentences` are one or two columns of `nyu-mll/glue`, `labels` are in the order of their numbers; none for a regression.
    `tsv_sentences` (the same where empty) and `tsv_label` are the columns of the official files; `without_header` are those of
    a file that has none (CoLA). The last of the `metrics` is the headline. `submits_names`: the leaderboard wants label names
    instead of numbers. `shared` is the task whose model answers a task without training data (AX: MNLI).
    """

    name: str
    sentences: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: tuple[Split, ...]  # train, dev, test
    tsv_sentences: tuple[str, ...] = ()
    tsv_label: str = "label"
    without_header: tuple[str, ...] = ()
    submits_names: bool = False
    shared: str | None = None

    @property
    def config(self) -> str:
        """Its name in `nyu-mll/glue`."""
        return _squeezed(self.name)

    @property
    def headline(self) -> str:
        return self.metrics[-1]

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def unlabelled(self) -> Any:
        """The label of a test row, as in `nyu-mll/glue`."""
        return float(UNLABELLED) if self.regression else UNLABELLED

    @property
    def train(self) -> Split | None:
        return next((split for split in self.splits if split.name == "train"), None)

    @property
    def dev(self) -> tuple[Split, ...]:
        return tuple(split for split in self.splits if split is not self.train and not split.is_test)

    @property
    def test(self) -> tuple[Split, ...]:
        return tuple(split for split in self.splits if split.is_test)

    @property
    def answered(self) -> list[tuple[Split, Task]]:
        """The splits that its model works on, with the task each belongs to: with MNLI's those of AX."""
        shared = [other for other in TASKS.values() if other.shared == self.name]
        return [(split, owner) for owner in (self, *shared) for split in owner.splits]

    @property
    def id2label(self) -> dict[int, str]:
        """For a model's config; a regression has one number called `score`."""
        return dict(enumerate(self.labels or ("score",)))

    @property
    def submission_words(self) -> tuple[str, ...]:
        """The leaderboard's words for the classes, in the order of their numbers."""
        return self.labels if self.submits_names else tuple(str(number) for number in range(len(self.labels)))


def _splits(name: str, train: int, dev: int, test: int, microsoft: bool = False) -> tuple[Split, ...]:
    """Rows of train, dev and test in `<name>/{train,dev,test}.tsv`; of MRPC also in the files as Microsoft gives them."""
    one, other = (tuple(f"{name}/msr_paraphrase_{part}.txt" for _ in range(microsoft)) for part in ("train", "test"))
    return (
        Split("train", "train", (f"{name}/train.tsv", *one), train, name),
        Split("dev", "validation", (f"{name}/dev.tsv", *one), dev, name),
        Split("test", "test", (f"{name}/test.tsv", *other), test, name, is_test=True),
    )


_MNLI = (
    Split("train", "train", ("MNLI/train.tsv",), 392702, "MNLI"),
    Split("dev_matched", "validation_matched", ("MNLI/dev_matched.tsv",), 9815, "MNLI-m"),
    Split("dev_mismatched", "validation_mismatched", ("MNLI/dev_mismatched.tsv",), 9832, "MNLI-mm"),
    Split("test_matched", "test_matched", ("MNLI/test_matched.tsv",), 9796, "MNLI-m", is_test=True),
    Split("test_mismatched", "test_mismatched", ("MNLI/test_mismatched.tsv",), 9847, "MNLI-mm", is_test=True),
)
_AX = Split("ax", "test", ("diagnostic/diagnostic.tsv", "AX/AX.tsv", "AX.tsv"), 1104, "AX", is_test=True)
_ONE, _PAIR, _PREMISE = ("sentence",), ("sentence1", "sentence2"), ("premise", "hypothesis")
_QUESTIONS, _ANSWER = ("question1", "question2"), ("question", "sentence")
_NLI, _TWO_WAY = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
_ACCURACY, _F1, _MATTHEWS = ("accuracy",), ("accuracy", "f1"), ("matthews_correlation",)
_CORRELATIONS = ("pearson", "spearmanr")
_ACCEPTABLE, _SAME = ("unacceptable", "acceptable"), ("not_equivalent", "equivalent")
_DUPLICATE = ("not_duplicate", "duplicate")
_MRPC_COLUMNS = (("#1 String", "#2 String"), "Quality")
_COLA_COLUMNS = ("source", "label", "mark", "sentence")  # of train and dev; test has a header

_ALL = (
    Task("CoLA", _ONE, _ACCEPTABLE, _MATTHEWS, _splits("CoLA", 8551, 1043, 1063), without_header=_COLA_COLUMNS),
    Task("SST-2", _ONE, ("negative", "positive"), _ACCURACY, _splits("SST-2", 67349, 872, 1821)),
    Task("MRPC", _PAIR, _SAME, _F1, _splits("MRPC", 3668, 408, 1725, microsoft=True), *_MRPC_COLUMNS),
    Task("STS-B", _PAIR, (), _CORRELATIONS, _splits("STS-B", 5749, 1500, 1379), tsv_label="score"),
    Task("QQP", _QUESTIONS, _DUPLICATE, _F1, _splits("QQP", 363846, 40430, 390965), tsv_label="is_duplicate"),
    Task("MNLI", _PREMISE, _NLI, _ACCURACY, _MNLI, tsv_sentences=_PAIR, tsv_label="gold_label", submits_names=True),
    Task("QNLI", _ANSWER, _TWO_WAY, _ACCURACY, _splits("QNLI", 104743, 5463, 5463), submits_names=True),
    Task("RTE", _PAIR, _TWO_WAY, _ACCURACY, _splits("RTE", 2490, 277, 3000), submits_names=True),
    Task("WNLI", _PAIR, _TWO_WAY[::-1], _ACCURACY, _splits("WNLI", 635, 71, 146)),
    Task("AX", _PREMISE, _NLI, _MATTHEWS, (_AX,), tsv_sentences=_PAIR, submits_names=True, shared="MNLI"),
)
TASKS = {task.name: task for task in _ALL}
ALL_COLUMNS = tuple(split.column for task in _ALL for split in task.dev)  # of a table of dev scores
SUBMISSION_FILES = {f"{split.column}.tsv": (task, split) for task in _ALL for split in task.test}  # of the leaderboard


def _squeezed(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_task(name: str, field: str = "task_name") -> Task:
    """The task called `name`, in any case, with or without hyphen (`sst2`, `STS-B`). InputError names the nearest."""
    by_config = {task.config: task for task in _ALL}
    squeezed = _squeezed(name)
    if squeezed in by_config:
        return by_config[squeezed]
    close = difflib.get_close_matches(squeezed, by_config, n=1, cutoff=0.5)
    fix = f"did you mean {by_config[close[0]].name}?" if close else f"choose one of {', '.join(TASKS)} or all"
    raise InputError(f"{field}: {name!r} is no task of GLUE; {fix}")


def find_tasks(names: list[str]) -> list[Task]:
    """The tasks in `names` (words, or words joined by commas), each once and in GLUE's order; `all` is all of them."""
    words = [word.strip() for name in names for word in name.split(",") if word.strip()]
    if not words:
        raise InputError("task_name: missing; add --task_name MRPC (or several, or all)")
    asked = {task.name for word in words for task in (_ALL if word.lower() == "all" else (find_task(word),))}
    return [task for task in _ALL if task.name in asked]
