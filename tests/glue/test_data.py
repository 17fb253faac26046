"""The same examples from the data set and from official files; what is wrong with a file is said in one line."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from budget_trainer.core.errors import InputError
from budget_trainer.glue.data import Examples, load_task
from budget_trainer.glue.tasks import TASKS
from budget_trainer.glue.trainer import Rows
from tests.conftest import SHARED_DATA

SAMPLES = Path(__file__).parent / "samples"
OFFICIAL, HUB, MICROSOFT = SAMPLES / "official", SAMPLES / "hub", SAMPLES / "microsoft"


def test_a_path_is_no_pattern(tmp_path):
    """The library takes a folder's name for one."""
    place = tmp_path / "glue [v1]*?#::x"
    shutil.copytree(HUB, place)
    task = TASKS["RTE"]
    assert load_task(task, dataset_name=str(place)).digest == load_task(task, dataset_name=str(HUB)).digest


@pytest.mark.parametrize("name", TASKS)
def test_both_layouts_give_the_same_examples(name):
    """And both that of the JSON lines themselves, so that both readers cannot be wrong together."""
    task = TASKS[name]
    files, hub = load_task(task, [OFFICIAL]), load_task(task, dataset_name=str(HUB))
    assert files.splits == hub.splits and files.digest == hub.digest
    assert files.absent == hub.absent == {}
    shared = {"ax"} if name == "MNLI" else set()
    assert set(files.splits) == {split.name for split in task.splits} | shared
    for split in task.splits:
        lines = (HUB / task.config / f"{split.hub}.jsonl").read_text().split("\n")
        rows = [json.loads(line) for line in lines if line]
        examples = files.splits[split.name]
        assert examples.columns == {column: [row[column] for row in rows] for column in task.sentences}
        expected = [-1 if split.is_test else row["label"] for row in rows]
        assert examples.labels == pytest.approx(expected, abs=1e-6)


def test_quotes_and_blanks_are_text():
    sst2 = load_task(TASKS["SST-2"], [OFFICIAL]).splits["train"]
    assert sst2.columns["sentence"][2] == '"quoted" from start to end '
    qqp = load_task(TASKS["QQP"], [OFFICIAL]).splits["train"]
    assert len(qqp) == 3 and qqp.columns["question1"][0] == '"How do I say ""well"" in Welsh?"'


def test_several_folders_the_first_that_has_it(tmp_path):
    shutil.copytree(OFFICIAL / "RTE", tmp_path / "RTE")
    data = load_task(TASKS["RTE"], [tmp_path, OFFICIAL])
    assert data.absent == {} and data.official() == dict.fromkeys(("train", "dev", "test"), False)
    (tmp_path / "RTE" / "train.tsv").unlink()
    assert load_task(TASKS["RTE"], [tmp_path]).absent == {"train": f"RTE/train.tsv is not in {tmp_path}"}


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("RTE/train.tsv", None, -20, "RTE/train.tsv: row 2 has 3 columns of 4, it is cut off; take"),
        ("RTE/dev.tsv", None, 5, "RTE/dev.tsv: its header has no column 'sentence1' (index); take"),
        ("RTE/dev.tsv", None, 0, "RTE/dev.tsv: its header has no column 'sentence1' (); take"),
        ("RTE/train.tsv", b"label", b"gold", "has no column 'label' (index, sentence1, sentence2, gold)"),
        ("RTE/train.tsv", b"not_entailment", b"maybe", "row 2 has the label 'maybe'; RTE knows entailment, not_ent"),
        ("RTE/test.tsv", None, len(b"index\tsentence1\tsentence2\n"), "RTE/test.tsv: there are no rows in it; take"),
        ("CoLA/train.tsv", b"", b"source\tlabel\tmark\tsentence\n", "row 1 has the label 'label'"),
        ("CoLA/train.tsv", b"\t", b",", "row 1 has 1 columns of 4, it is cut off"),
        ("STS-B/dev.tsv", b"4.250", b"7.250", "row 1 has the score '7.250', not a"),
        ("STS-B/dev.tsv", b"4.250", b"nan", "row 1 has the score 'nan', not a"),
        ("SST-2/dev.tsv", b"\t1\n", b"\xff\xfe\t1\n", "is not UTF-8; take"),
        ("QQP/train.tsv", b"\t0\n", b"\n", "QQP/train.tsv: 2 of 4 rows have too few"),
        ("MNLI/train.tsv", b"\tneutral\n", b"\t-\n", "row 2 has the label '-'; MNLI"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, file, old, new, expected):
    """`old` replaced by `new` (an empty one: put before the file), or the first `new` bytes alone."""
    shutil.copytree(OFFICIAL, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(text[:new] if old is None else text.replace(old, new) if old else new + text)
    with pytest.raises(InputError) as error:
        load_task(TASKS[file.partition("/")[0]], [tmp_path])
    message = str(error.value)
    assert message.startswith(str(tmp_path)) and expected in message and "\n" not in message


def test_microsofts_files_give_the_rows_of_mrpc_by_the_ids(tmp_path):
    assert load_task(TASKS["MRPC"], [MICROSOFT]).splits == load_task(TASKS["MRPC"], [OFFICIAL]).splits
    shutil.copytree(MICROSOFT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "MRPC" / "dev_ids.tsv").unlink()
    with pytest.raises(InputError, match="dev_ids.tsv: missing, and it says which rows of msr_paraphrase_train.txt"):
        load_task(TASKS["MRPC"], [tmp_path])


def test_no_such_folder_and_no_such_data_set(tmp_path):
    with pytest.raises(InputError, match="glue_dir: .*nowhere is not a folder; give one"):
        load_task(TASKS["RTE"], [tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"dataset_name: .*empty \(rte\) cannot be loaded .* give --glue_dir"):
        load_task(TASKS["RTE"], dataset_name=str(tmp_path / "empty"))
    for path in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):  # no names of the Hub
        with pytest.raises(InputError, match=f"dataset_name: {path} is not there; give a folder in the form of"):
            load_task(TASKS["RTE"], dataset_name=path)
    (tmp_path / "rows.jsonl").write_text('{"sentence1": "A."}')  # not asked for on the Hub
    with pytest.raises(
        InputError, match="rows.jsonl is a file; give a folder in the form of nyu-mll/glue, or --glue_dir"
    ):
        load_task(TASKS["RTE"], dataset_name=str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"sentence1": "A.", "sentence": "B.", "label": 0}, "has no column 'sentence2'"),
        ({"sentence1": "A.", "sentence2": "B.", "label": -1}, "row 1 has the label -1, not one from 0 to 1"),
    ],
)
def test_a_data_set_of_another_form(tmp_path, line, expected):
    shutil.copytree(HUB, tmp_path, dirs_exist_ok=True)
    for split in ("train", "validation", "test"):
        (tmp_path / "rte" / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="dataset_name: .*") as error:
        load_task(TASKS["RTE"], dataset_name=str(tmp_path))
    assert expected in str(error.value)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    import tarfile

    archive = SHARED_DATA / "glue_data.tar.xz"
    if not archive.exists():
        pytest.skip("no GLUE data beside the project")
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return [folder / "glue_data", folder / "glue_subset"]


def test_label_maps_on_real_rows(real):
    """Of rows about which anybody agrees: grammatical or not, the same or not."""
    for name, split, contained, label in (
        ("CoLA", "train", "They drank the pub dry.", "acceptable"),
        ("SST-2", "dev", "it 's a charming and often affecting journey . ", "positive"),
        ("MRPC", "train", "Yucaipa owned Dominick 's before selling the chain", "not_equivalent"),
        ("RTE", "train", "No Weapons of Mass Destruction Found in Iraq Yet.", "not_entailment"),
        ("QNLI", "dev", "What came into force after the new constitution was herald?", "entailment"),
        ("WNLI", "dev", "The drain is clogged with hair.", "not_entailment"),
        ("MNLI", "train", "You are not being rude.", "neutral"),
        ("QQP", "dev", "What are the best franchises in India?", "duplicate"),
    ):
        task = TASKS[name]
        examples = load_task(task, real).splits[split]
        first = examples.columns[task.sentences[0]]
        row = next(row for row, text in enumerate(first) if text.startswith(contained))
        assert task.labels[examples.labels[row]] == label, contained


def test_real_files_have_the_official_rows_as_csv_reads_them(real):
    for name in ("CoLA", "SST-2", "MRPC", "STS-B", "RTE", "WNLI"):
        task = TASKS[name]
        data = load_task(task, real)
        assert data.absent == {} and all(data.official().values()), name
        with open(real[0] / name / "test.tsv", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        for column, tsv_column in zip(task.sentences, task.tsv_sentences or task.sentences, strict=True):
            assert data.splits["test"].columns[column] == [row[tsv_column] for row in rows]


def test_special_tokens_in_a_sentence_are_text(tokenizer):
    texts = Examples({"sentence1": ["one [SEP] two"], "sentence2": ["[MASK] and [PAD]"]}, [0])
    ids = Rows(AutoTokenizer.from_pretrained(tokenizer), texts, 64)[0]["input_ids"]
    assert [token for token in ids if token in (0, 2, 3, 4)] == [2, 3, 3] and ids[0] == 2 and ids[-1] == 3
