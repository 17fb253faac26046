"""The facts of GLUE that everything else rests on."""

import re

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.glue.tasks import TASKS, find_task, find_tasks

NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")
FACTS = {  # labels in the order of nyu-mll/glue, rows of train, dev, test, metrics with the headline last
    "CoLA": (("unacceptable", "acceptable"), [8551, 1043, 1063], ("matthews_correlation",)),
    "SST-2": (("negative", "positive"), [67349, 872, 1821], ("accuracy",)),
    "MRPC": (("not_equivalent", "equivalent"), [3668, 408, 1725], ("accuracy", "f1")),
    "STS-B": ((), [5749, 1500, 1379], ("pearson", "spearmanr")),
    "QQP": (("not_duplicate", "duplicate"), [363846, 40430, 390965], ("accuracy", "f1")),
    "MNLI": (NLI, [392702, 9815, 9832, 9796, 9847], ("accuracy",)),
    "QNLI": (TWO_WAY, [104743, 5463, 5463], ("accuracy",)),
    "RTE": (TWO_WAY, [2490, 277, 3000], ("accuracy",)),
    "WNLI": (TWO_WAY[::-1], [635, 71, 146], ("accuracy",)),
    "AX": (NLI, [1104], ("matthews_correlation",)),
}


def test_ten_tasks_as_the_data_set_and_devlin_have_them():
    assert {
        name: (task.labels, [split.rows for split in task.splits], task.metrics) for name, task in TASKS.items()
    } == FACTS
    assert list(TASKS) == list(FACTS)
    assert [task.config for task in TASKS.values()] == "cola sst2 mrpc stsb qqp mnli qnli rte wnli ax".split()
    for task in TASKS.values():
        assert task.regression == (task.name == "STS-B") and list(task.id2label) == list(range(len(task.labels) or 1))
    headlines = {name: task.headline for name, task in TASKS.items() if task.headline != "accuracy"}
    matthews = dict.fromkeys(("CoLA", "AX"), "matthews_correlation")
    assert headlines == {**matthews, "MRPC": "f1", "QQP": "f1", "STS-B": "spearmanr"}


@pytest.mark.parametrize(
    ("word", "fix"),
    [("MPRC", "did you mean MRPC?"), ("mnli-m", "did you mean MNLI?"), ("squad", "choose one of CoLA, ")],
)
def test_a_misspelt_name_suggests_the_nearest(word, fix):
    with pytest.raises(InputError, match=f"^task_name: '{word}' is no task of GLUE; {re.escape(fix)}.*$"):
        find_task(word)


def test_names_in_any_spelling_and_several():
    assert [find_task(word).name for word in ("sst2", "STSB", "sts-b", "cola")] == ["SST-2", "STS-B", "STS-B", "CoLA"]
    assert [task.name for task in find_tasks(["rte,cola", "MRPC"])] == ["CoLA", "MRPC", "RTE"]
    assert [task.name for task in find_tasks(["all"])] == list(TASKS)
    with pytest.raises(InputError, match="task_name: missing"):
        find_tasks([])
