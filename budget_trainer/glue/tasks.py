"""The tasks of GLUE as facts: sentences, labels, metrics, and the files they come in. Standard library only.

Labels, columns and the order of the labels are those of the data set `nyu-mll/glue`; files, columns and row counts those of
the official archives (gluebenchmark.com); the headline metrics those of Devlin et al. (arXiv 1810.04805, table 1): F1 for
MRPC and QQP, Spearman for STS-B, Matthews for CoLA, accuracy else.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from budget_trainer.core.errors import InputError

HUB_DATASET = "nyu-mll/glue"
UNLABELLED = -1  # the label of a test row, as in nyu-mll/glue; of STS-B -1.0


@dataclass(frozen=True)
class Split:
    """A part of a task: its name here, its name in `nyu-mll/glue`, its official file and rows (header not counted).

    `files` are paths inside of a GLUE folder, the first that exists is read. `submission` is the leaderboard's name for the
    file of predictions; None where nothing is submitted.
    """

    name: str
    hub: str
    files: tuple[str, ...]
    rows: int
    submission: str | None = None

    @property
    def is_test(self) -> bool:
        return self.submission is not None


@dataclass(frozen=True)
class Task:
    """One task of GLUE.

    `sentences` are one or two columns of `nyu-mll/glue`, `labels` are in the order of their numbers; none for a regression.
    `tsv_sentences` (the same where empty) and `tsv_label` are the columns of the official files. A file of `without_header`
    gives its columns by position (CoLA). The last of the `metrics` is the headline. `submission_words` says that the
    leaderboard wants label names instead of numbers. `shared` is the task whose model answers a task that has no training
    data (AX: MNLI).
    """

    name: str
    sentences: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Split | None
    dev: tuple[Split, ...]
    test: tuple[Split, ...]
    tsv_sentences: tuple[str, ...] = ()
    tsv_label: str = "label"
    without_header: tuple[str, ...] = ()
    submission_words: bool = False
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
    def splits(self) -> tuple[Split, ...]:
        """All of them: train, dev, test."""
        return ((self.train,) if self.train else ()) + self.dev + self.test

    @property
    def id2label(self) -> dict[int, str]:
        """For a model's config; a regression has one number called `score`."""
        return dict(enumerate(self.labels or ("score",)))


def _three(folder: str, train: int, dev: int, test: int) -> dict:
    """train, dev and test of a task whose files are `<folder>/{train,dev,test}.tsv`."""
    return {
        "train": Split("train", "train", (f"{folder}/train.tsv",), train),
        "dev": (Split("dev", "validation", (f"{folder}/dev.tsv",), dev),),
        "test": (Split("test", "test", (f"{folder}/test.tsv",), test, f"{folder}.tsv"),),
    }


_PAIR = ("sentence1", "sentence2")
_NLI, _TWO_WAY = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
_ACCURACY, _F1, _MATTHEWS = ("accuracy",), ("accuracy", "f1"), ("matthews_correlation",)

_ALL = (
    Task(
        "CoLA",
        ("sentence",),
        ("unacceptable", "acceptable"),
        _MATTHEWS,
        **_three("CoLA", 8551, 1043, 1063),
        without_header=("source", "label", "mark", "sentence"),  # of train and dev; test has a header
    ),
    Task("SST-2", ("sentence",), ("negative", "positive"), _ACCURACY, **_three("SST-2", 67349, 872, 1821)),
    Task(
        "MRPC",
        _PAIR,
        ("not_equivalent", "equivalent"),
        _F1,
        train=Split("train", "train", ("MRPC/train.tsv", "MRPC/msr_paraphrase_train.txt"), 3668),
        dev=(Split("dev", "validation", ("MRPC/dev.tsv", "MRPC/msr_paraphrase_train.txt"), 408),),
        test=(Split("test", "test", ("MRPC/test.tsv", "MRPC/msr_paraphrase_test.txt"), 1725, "MRPC.tsv"),),
        tsv_sentences=("#1 String", "#2 String"),
        tsv_label="Quality",
    ),
    Task("STS-B", _PAIR, (), ("pearson", "spearmanr"), **_three("STS-B", 5749, 1500, 1379), tsv_label="score"),
    Task(
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        _F1,
        **_three("QQP", 363846, 40430, 390965),
        tsv_label="is_duplicate",
    ),
    Task(
        "MNLI",
        ("premise", "hypothesis"),
        _NLI,
        _ACCURACY,
        train=Split("train", "train", ("MNLI/train.tsv",), 392702),
        dev=(
            Split("dev_matched", "validation_matched", ("MNLI/dev_matched.tsv",), 9815),
            Split("dev_mismatched", "validation_mismatched", ("MNLI/dev_mismatched.tsv",), 9832),
        ),
        test=(
            Split("test_matched", "test_matched", ("MNLI/test_matched.tsv",), 9796, "MNLI-m.tsv"),
            Split("test_mismatched", "test_mismatched", ("MNLI/test_mismatched.tsv",), 9847, "MNLI-mm.tsv"),
        ),
        tsv_sentences=_PAIR,
        tsv_label="gold_label",
        submission_words=True,
    ),
    Task(
        "QNLI",
        ("question", "sentence"),
        _TWO_WAY,
        _ACCURACY,
        **_three("QNLI", 104743, 5463, 5463),
        submission_words=True,
    ),
    Task("RTE", _PAIR, _TWO_WAY, _ACCURACY, **_three("RTE", 2490, 277, 3000), submission_words=True),
    Task("WNLI", _PAIR, ("not_entailment", "entailment"), _ACCURACY, **_three("WNLI", 635, 71, 146)),
    Task(
        "AX",
        ("premise", "hypothesis"),
        _NLI,
        _MATTHEWS,
        train=None,
        dev=(),
        test=(Split("ax", "test", ("diagnostic/diagnostic.tsv", "AX/AX.tsv", "AX.tsv"), 1104, "AX.tsv"),),
        tsv_sentences=_PAIR,
        submission_words=True,
        shared="MNLI",
    ),
)
TASKS = {task.name: task for task in _ALL}
MRPC_DEV_IDS = "MRPC/dev_ids.tsv"  # which rows of msr_paraphrase_train.txt are the dev split


def _squeezed(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_task(name: str) -> Task:
    """The task called `name`, in any case, with or without hyphen (`sst2`, `STS-B`). InputError names the nearest."""
    by_name = {_squeezed(task.name): task for task in _ALL}
    squeezed = _squeezed(name)
    if squeezed in by_name:
        return by_name[squeezed]
    close = difflib.get_close_matches(squeezed, by_name, n=1, cutoff=0.5)
    fix = f"did you mean {by_name[close[0]].name}?" if close else f"choose one of {', '.join(TASKS)} or all"
    raise InputError(f"task_name: {name!r} is no task of GLUE; {fix}")


def find_tasks(names: list[str]) -> list[Task]:
    """The tasks in `names` (words, or words joined by commas), each once and in GLUE's order; `all` is all of them."""
    words = [word.strip() for name in names for word in name.split(",") if word.strip()]
    if not words:
        raise InputError("task_name: missing; add --task_name MRPC (or several, or all)")
    asked = {task.name for word in words for task in (_ALL if word.lower() == "all" else (find_task(word),))}
    return [task for task in _ALL if task.name in asked]
