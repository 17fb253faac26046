"""Datasets as sources: streamed for real from local folders, as the Hub's are; what cannot be reached or read."""

import gzip
import importlib.util
import io
import json
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks import prepare_kills
from budget_trainer.core.errors import InputError
from data_prep import prepare
from data_prep.sources import Source
from tests.conftest import read_documents, run

# What `datatrove` writes beside the text of a document differs from file to file, in names and in types.
METADATA = [{"url": "http://a", "score": 1}, {"file": "x", "score": "high", "deep": {"a": [1]}}, {}]


def rows_of_rank(rank):
    texts = {f"{rank}/{number}": f"Document {number} of rank {rank}.\n\nMore." for number in range(4)}
    return [{"text": text, "id": name, "metadata": METADATA[rank]} for name, text in texts.items()]


def write_jsonl(file, rows, opener=open):
    with opener(file, "wt") as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows))


EXPECTED = [f"Document {number} of rank {rank}. More." for rank in range(3) for number in range(4)]


@pytest.fixture
def configured(tmp_path):
    """A dataset with two configurations of two splits, texts in the column `body`, as a README of the Hub says it."""
    configs = []
    for language in ("en", "de"):
        configs.append({"config_name": language, "data_files": []})
        for split in ("train", "test"):
            configs[-1]["data_files"].append({"split": split, "path": f"{language}-{split}-*.parquet"})
            for part in range(2):
                texts = [f"{language} {split} {part}" + " word" * n for n in range(3)]
                table = pa.table({"body": texts, "length": [len(text) for text in texts]})
                pq.write_table(table, tmp_path / f"{language}-{split}-{part}.parquet")
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# A dataset\n")
    return tmp_path


def zstandard(file, mode):
    return io.TextIOWrapper(pa.CompressedOutputStream(str(file), "zstd"))


OPENERS = {"jsonl": open, "jsonl.gz": gzip.open, "jsonl.zst": zstandard}


@pytest.mark.parametrize("form", [*OPENERS, "parquet"])
def test_the_output_of_datatrove(form, tmp_path):
    """A file per rank, whose metadata do not fit together."""
    for rank in range(3):
        file = tmp_path / f"{rank:05d}.{form}"
        if form == "parquet":
            rows = [{**row, "metadata": row["metadata"] or None} for row in rows_of_rank(rank)]
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            write_jsonl(file, rows_of_rank(rank), OPENERS[form])
    source = Source(str(tmp_path))
    assert source.kind == ("dataset" if form == "parquet" else "jsonl") and list(source.documents()) == EXPECTED
    ids = [f"{rank}/{number}" for rank in range(3) for number in range(4)]
    assert list(read_documents(tmp_path, text_column="id", max_documents=7)) == ids[:7]
    if form != "parquet":
        (tmp_path / "stats.json").write_text('{"documents": 12}')
        assert list(read_documents(tmp_path, "jsonl")) == EXPECTED


def test_damaged_json_lines(tmp_path):
    write_jsonl(tmp_path / "00000.jsonl.gz", rows_of_rank(0), gzip.open)
    (tmp_path / "00001.jsonl").write_text('\n{"text": "a"}\n{"text": 1}\n')

    def refused(message, **options):
        with pytest.raises(InputError, match=message):
            list(read_documents(tmp_path, **options))

    refused('00001.jsonl: line 3 is not a JSON object with "text"; check the file or text_col')
    refused('00000.jsonl.gz: line 1 is not a JSON object with "body"', text_column="body")
    whole = (tmp_path / "00000.jsonl.gz").read_bytes()
    (tmp_path / "00000.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    refused("00000.jsonl.gz: damaged or cut off")


def test_other_forms_of_the_library(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"body": "One.\nTwo.\n\nThree."}, {"body": None}, {"body": "Four."}])
    assert list(read_documents(tmp_path, text_column="body")) == ["One. Two. Three.", "Four."]
    datasets.Dataset.from_list([{"text": "One."}, {"text": "Two."}]).save_to_disk(tmp_path / "saved")
    assert list(read_documents(tmp_path / "saved", "dataset")) == ["One.", "Two."]
    (tmp_path / "zstd").mkdir()
    write_jsonl(tmp_path / "zstd" / "train.jsonl.zst", rows_of_rank(0), zstandard)  # as of the Hub
    assert Source(str(tmp_path / "zstd")).kind == "dataset"
    if importlib.util.find_spec("zstandard"):
        assert list(read_documents(tmp_path / "zstd")) == EXPECTED[:4]
    else:
        with pytest.raises(InputError, match="zstd not supported .pip install zstandard."):
            list(read_documents(tmp_path / "zstd"))


def test_configuration_split_and_column(configured, tmp_path):
    where = {"dataset_config": "de", "dataset_split": "test", "text_column": "body", "cache_dir": tmp_path / "cache"}
    expected = [f"de test {part}" + " word" * n for part in range(2) for n in range(3)]
    assert list(read_documents(configured, **where)) == expected
    assert list(read_documents(configured, **where, max_documents=4)) == expected[:4]
    for change, message in (
        ({"dataset_config": None}, r"config None, split test.*available configs: \['en', 'de'\]"),
        ({"dataset_config": "fr"}, r"config fr.*'fr' not found.*dataset_config"),
        ({"dataset_split": "dev"}, r"Bad split: dev.*\['train', 'test'\].*dataset_split"),
        ({"text_column": "text"}, r"text_column 'text' is not in .*; it has \['body', 'length'\]"),
        ({"text_column": "length"}, r"text_column 'length' of .* holds int, no text"),
    ):
        with pytest.raises(InputError, match=message) as error:
            list(read_documents(configured, **(where | change)))
        assert "\n" not in str(error.value)


def test_it_is_streamed(tmp_path):
    """What is behind the wanted documents is never read."""
    write_jsonl(tmp_path / "a.jsonl", rows_of_rank(0))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": \xff')
    assert list(read_documents(tmp_path, max_documents=4)) == EXPECTED[:4]
    with pytest.raises(InputError, match=f"input {tmp_path}: the dataset .* cannot be read"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_name_that_cannot_be_reached(environment, tmp_path):
    recipe = {"sources": [{"input": "nobody/nothing", "dataset_config": "en"}], "tokenizer": {"vocab_size": 300}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "out")}))
    environment = {"HF_HOME": str(tmp_path / "home"), **environment}
    done = run([sys.executable, "-m", "data_prep.prepare", path], env=environment)
    error = done.stderr.strip().split("\n")[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert error.startswith(
        "error: input nobody/nothing: the dataset (config en, split train) cannot be read: Couldn't"
    )
    assert "check input, dataset_config and dataset_split" in error


@pytest.mark.slow
def test_processes_and_kills_change_nothing(corpus, tmp_path):
    """kill -9 of the whole process group at random moments, with two processes that tokenise."""
    documents, folder = list(read_documents(corpus)), tmp_path / "rows"
    folder.mkdir()
    for part in range(3):
        pq.write_table(pa.table({"body": documents[part::3]}), folder / f"{part}.parquet", row_group_size=50)
    source = {"input": str(folder), "kind": "dataset", "text_column": "body"}
    content = {"sources": [source, {**source, "max_documents": 100}], "num_shards": 2, "piece_megabytes": 0.02}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({**content, "tokenizer": {"vocab_size": 300}, "output_dir": str(tmp_path / "out")})
    )
    kills = tmp_path / "kills"
    flags = ["--recipe", str(recipe), "--kills", "2", "--output_dir", str(kills), "--", "--num_proc", "2"]
    assert prepare_kills.main(flags) == 0
    result = json.loads((kills / "prepare_kills.json").read_text())
    assert len(result["kills"]) == 2 and result["different"] == [] and (kills / "disturbed" / "tokenizer").is_dir()
    assert prepare.main([str(recipe), "--num_proc", "1"]) == 0
    assert prepare_kills.differences(tmp_path / "out", kills / "disturbed") == []
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [source["documents"] for source in manifest["sources"]] == [400, 100]
    assert manifest["removed"]["duplicates"]["documents"] == 100
