"""A tiny encoder and a tiny GLUE in the official layout, both made here."""

import json
import random

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
)

from budget_trainer import finetune_glue
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.glue.trainer import GlueMetric
from tests.conftest import words

GOOD, BAD, THINGS = "fine bright warm clever".split(), "poor dull cold clumsy".split(), "film song tale play".split()
PLAIN = "the a is was not and it very one two seen heard".split()
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"initializer_range": 0.05}  # so that a few dozen steps learn something
ROWS = {"train": 64, "dev": 17, "test": 9}  # odd, so that two processes cannot share them evenly
NLI = ("entailment", "neutral", "contradiction")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """`datasets` knows a folder by its name: what an earlier session has cached of one must not be read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "data_sets")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A BERT of random weights with 2 layers of 32, and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *THINGS, *PLAIN]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **SIZES, **dropout)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _sentence(chance, good):
    extra = chance.sample(PLAIN, chance.randint(1, 8))
    return " ".join(["the", chance.choice(THINGS), "is", chance.choice(GOOD if good else BAD), *extra])


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory):
    """CoLA, SST-2, MRPC, STS-B, MNLI (matched only), RTE, WNLI and AX, of sentences whose label is in one of their words."""
    folder, chance = tmp_path_factory.mktemp("glue"), random.Random(1)
    for split, count in ROWS.items():
        good = [chance.random() < 0.5 for _ in range(count)]
        one = [_sentence(chance, g) for g in good]
        other = [chance.random() < 0.5 for _ in range(count)]
        two = [_sentence(chance, g) for g in other]
        same = [int(a == b) for a, b in zip(good, other, strict=True)]
        numbers, test = [str(i) for i in range(count)], split == "test"
        single = [(s, str(int(g))) for s, g in zip(one, good, strict=True)]
        unlabelled = [("index", "sentence"), *zip(numbers, one, strict=True)]
        write(folder / "CoLA" / f"{split}.tsv", unlabelled if test else [("x", label, "", s) for s, label in single])
        write(folder / "SST-2" / f"{split}.tsv", unlabelled if test else [("sentence", "label"), *single])
        head, pairs = ("index", "sentence1", "sentence2"), list(zip(numbers, one, two, strict=True))
        files = [("RTE", split, ("not_entailment", NLI[0]), "label"), ("WNLI", split, ("0", "1"), "label")]
        files += [("STS-B", split, ("0.000", "5.000"), "score")]
        if test:
            files += [("diagnostic", "diagnostic", ("", ""), "")]
        else:
            files += [("MNLI", "train" if split == "train" else "dev_matched", (NLI[2], NLI[0]), "gold_label")]
        for name, file, labels, last in files:
            labelled = [(*pair, labels[s]) for pair, s in zip(pairs, same, strict=True)]
            write(folder / name / f"{file}.tsv", [head, *pairs] if test else [(*head, last), *labelled])
        head = ("index" if test else "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
        first = numbers if test else [str(s) for s in same]
        write(folder / "MRPC" / f"{split}.tsv", [head, *zip(first, numbers, numbers, one, two, strict=True)])
    return folder


SHORT = {"max_seq_length": 32, "num_train_epochs": 2, "learning_rate": "1e-3", "per_device_train_batch_size": 8}


@pytest.fixture
def options(tiny_model, glue_dir, tmp_path):
    return {
        "model_name_or_path": tiny_model,
        "task_name": "MRPC",
        "glue_dir": glue_dir,
        "output_dir": tmp_path / "out",
        "use_cpu": "true",
        **SHORT,
    }


def caller(options, monkeypatch, file):
    """finetune_glue.main in this process with changed flags (None leaves one out); returns its exit code and what it wrote."""

    def call(*switches, **changes):
        monkeypatch.setattr(finetune_glue, "CLOCK", BudgetClock())
        flags = {key: value for key, value in {**options, **changes}.items() if value is not None}
        code = finetune_glue.main([*words(flags), *switches])
        path = flags["output_dir"] / file
        return code, json.loads(path.read_text()) if path.exists() else None

    return call


@pytest.fixture
def finetune(options, monkeypatch):
    return caller(options, monkeypatch, "result.json")


def predictions(folder, split):
    return json.loads((folder / "predictions" / f"{split}.json").read_text())


def scored(folder, task, split="dev"):
    """The metrics of the predictions that a run has left, computed anew."""
    left = predictions(folder, split)
    assert left["rows"] == len(left["predictions"]) == len(left["logits"]) == len(left["references"])
    return GlueMetric(task).compute(predictions=left["predictions"], references=left["references"])


def assert_model_predicts(folder, split, *columns):
    """Whether the kept model, called by hand on these texts, gives the logits in the run's predictions."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    with torch.no_grad():
        logits = model(**tokenizer(*columns, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(predictions(folder, split)["logits"], logits, atol=2e-5)
    return model


@pytest.fixture
def error(capfd):
    """The one line of error of what has run since the last call, without its `error: `."""

    def read():
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    return read
