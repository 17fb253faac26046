"""The facts of GLUE that everything else rests on."""

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.glue.tasks import TASKS, find_task, find_tasks


def test_ten_tasks_as_glue_spells_them():
    assert list(TASKS) == ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "AX"]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("CoLA", ("unacceptable", "acceptable")),
        ("SST-2", ("negative", "positive")),
        ("MRPC", ("not_equivalent", "equivalent")),
        ("QQP", ("not_duplicate", "duplicate")),
        ("MNLI", ("entailment", "neutral", "contradiction")),
        ("QNLI", ("entailment", "not_entailment")),
        ("RTE", ("entailment", "not_entailment")),
        ("WNLI", ("not_entailment", "entailment")),
        ("AX", ("entailment", "neutral", "contradiction")),
        ("STS-B", ()),
    ],
)
def test_labels_are_in_the_order_of_the_data_set(name, labels):
    task = TASKS[name]
    assert task.labels == labels and task.regression == (name == "STS-B")
    assert list(task.id2label) == list(range(max(1, len(labels))))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("CoLA", [8551, 1043, 1063]),
        ("SST-2", [67349, 872, 1821]),
        ("MRPC", [3668, 408, 1725]),
        ("STS-B", [5749, 1500, 1379]),
        ("QQP", [363846, 40430, 390965]),
        ("MNLI", [392702, 9815, 9832, 9796, 9847]),
        ("QNLI", [104743, 5463, 5463]),
        ("RTE", [2490, 277, 3000]),
        ("WNLI", [635, 71, 146]),
        ("AX", [1104]),
    ],
)
def test_official_row_counts(name, rows):
    assert [split.rows for split in TASKS[name].splits] == rows


def test_what_is_submitted():
    files = [split.submission for task in TASKS.values() for split in task.test]
    assert sorted(filter(None, files)) == sorted(
        f"{name}.tsv"
        for name in ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX")
    )


def test_every_headline_is_one_of_the_metrics():
    assert all(task.headline in task.metrics for task in TASKS.values())


@pytest.mark.parametrize(
    ("word", "name"), [("sst2", "SST-2"), ("STSB", "STS-B"), ("sts-b", "STS-B"), ("cola", "CoLA")]
)
def test_names_in_any_spelling(word, name):
    assert find_task(word).name == name


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("MPRC", "did you mean MRPC?"),
        ("sst-3", "did you mean SST-2?"),
        ("mnli-m", "did you mean MNLI?"),
        ("squad", "choose one of CoLA, "),
    ],
)
def test_a_misspelt_name_suggests_the_nearest(word, fix):
    with pytest.raises(InputError, match=f"task_name: '{word}' is no task of GLUE; ") as error:
        find_task(word)
    assert fix in str(error.value) and "\n" not in str(error.value)


def test_several_tasks():
    assert [task.name for task in find_tasks(["rte,cola", "MRPC"])] == ["CoLA", "MRPC", "RTE"]
    assert [task.name for task in find_tasks(["all"])] == list(TASKS)
    with pytest.raises(InputError, match="task_name: missing"):
        find_tasks([])
