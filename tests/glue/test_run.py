"""One run, from the flags of run_glue to its result."""

import errno
import json
import math
import os
import shutil
import signal
import sys
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
)

from budget_trainer.budget.clock import BudgetClock
from budget_trainer.config.arguments import RunArguments
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import hold_folder, try_lock
from budget_trainer.glue import run
from budget_trainer.glue.arguments import GROUPS, REFUSED, parse_request
from budget_trainer.glue.model import load_classifier
from budget_trainer.glue.tasks import TASKS
from budget_trainer.glue.trainer import GlueTrainer, Predictor
from budget_trainer.reporting.energy import EnergyMeter
from tests.conftest import ROOT, launch, launch_form, spawn, wait_for, words, write_cpu_form
from tests.glue.conftest import ROWS, SIZES, assert_model_predicts, predictions, scored

ORIGINAL = """--task_name MRPC --max_seq_length 64 --overwrite_output_dir --do_train --do_eval --evaluation_strategy steps
--per_device_train_batch_size 32 --gradient_accumulation_steps 1 --per_device_eval_batch_size 32 --learning_rate 5e-5
--weight_decay 0.01 --eval_steps 50 --evaluation_strategy steps --max_grad_norm 1.0 --num_train_epochs 5
--lr_scheduler_type polynomial --warmup_steps 50""".split()


def test_the_originals_command(finetune, options, tmp_path):
    flags = dict.fromkeys(("task_name", "max_seq_length", "num_train_epochs", "learning_rate"))
    code, result = finetune(*ORIGINAL, **flags, per_device_train_batch_size=None)
    assert code == 0 and result["task"] == "MRPC" and result["steps"] == 10
    assert result["configuration"]["eval_strategy"] == "steps" and result["configuration"]["eval_steps"] == 50
    assert list(result["predictions"]) == ["dev"], "do_predict was not asked for"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model", "predictions", "result.json"}


def test_the_best_evaluation_is_the_result_and_the_model(finetune, tmp_path, glue_dir):
    code, result = finetune(task_name="sst2", num_train_epochs=6, learning_rate="3e-3")
    assert code == 0
    values = [one["metrics"]["dev"]["accuracy"] for one in result["evaluations"]]
    assert len(values) == 6 and result["headline"] == {"metric": "accuracy", "split": "dev", "value": max(values)}
    assert result["best_epoch"] == 1 + values.index(max(values)), "of equals the earlier one"
    assert result["metrics"]["dev"] == scored(tmp_path / "out", "SST-2")
    assert max(values) > 0.9, "the label is in one word"
    assert result["rows"] == ROWS and result["official_rows"] == dict.fromkeys(ROWS, False)
    assert predictions(tmp_path / "out", "test")["references"] is None
    for split in ("dev", "test"):
        lines = (glue_dir / "SST-2" / f"{split}.tsv").read_text().splitlines()[1:]
        texts = [line.split("\t")[0 if split == "dev" else 1] for line in lines]
        model = assert_model_predicts(tmp_path / "out", split, texts)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize(
    ("task", "splits", "metrics"),
    [
        ("STS-B", {"dev", "test"}, {"pearson", "spearmanr"}),
        ("MNLI", {"dev_matched", "ax"}, {"accuracy"}),
        ("CoLA", {"dev", "test"}, {"matthews_correlation"}),
    ],
)
def test_each_kind_of_task(finetune, tmp_path, task, splits, metrics):
    code, result = finetune(task_name=task)
    dev = "dev_matched" if task == "MNLI" else "dev"
    assert code == 0 and set(result["predictions"]) == splits and set(result["metrics"][dev]) == metrics
    assert result["metrics"][dev] == scored(tmp_path / "out", task, dev)
    assert predictions(tmp_path / "out", dev)["label_names"] == list(TASKS[task].labels)
    if task == "MNLI":
        assert set(result["absent_splits"]) == {"dev_mismatched", "test_matched", "test_mismatched"}
        assert "MNLI/dev_mismatched.tsv is not in" in result["absent_splits"]["dev_mismatched"]


@pytest.mark.parametrize("kind", ["megatron-bert", "modernbert", "electra"])
def test_other_encoders(finetune, tmp_path, tiny_model, glue_dir, kind):
    """The paper's type with its attention of ours, the recipes' type, and one with another head."""
    tokens = {"vocab_size": 29, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    config = AutoConfig.for_model(kind, max_position_embeddings=64, **SIZES, **tokens)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    code, result = finetune(task_name="CoLA", model_name_or_path=tmp_path / "model")
    assert code == 0 and result["model"]["type"] == kind
    texts = [line.split("\t")[3] for line in (glue_dir / "CoLA" / "dev.tsv").read_text().splitlines()]
    assert_model_predicts(tmp_path / "out", "dev", texts)


def test_the_same_seed_the_same_run(finetune, tmp_path):
    outputs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        result = finetune(output_dir=tmp_path / name, seed=seed, num_train_epochs=1)[1]
        outputs.append((predictions(tmp_path / name, "dev"), result["evaluations"]))
    assert outputs[0] == outputs[1] != outputs[2]


def test_accumulation_does_not_change_the_step(finetune, tmp_path):
    """A mean over the batch: the library's Trainer would add up the means of the micro-batches."""
    logits = []
    for size, steps in ((8, 1), (2, 4)):
        folder = tmp_path / f"{steps}"
        flags = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "num_train_epochs": 1}
        finetune(**flags, output_dir=folder, max_grad_norm=0.05, train_sampling_strategy="sequential")
        logits.append(predictions(folder, "dev")["logits"])
    np.testing.assert_allclose(*logits, atol=2e-4)


def test_length_groups_and_fixed_padding(finetune, tmp_path):
    """Grouping must not change the order of predictions, padding not what they are."""
    logits = []
    for name, switches in (("plain", []), ("padded", ["--pad_to_max_length"])):
        flags = {"output_dir": tmp_path / name, "task_name": "SST-2", "num_train_epochs": 4}
        code, result = finetune("--group_by_length", *switches, **flags)
        assert code == 0 and result["metrics"]["dev"] == scored(tmp_path / name, "SST-2")
        assert result["configuration"]["train_sampling_strategy"] == "group_by_length"
        logits.append(predictions(tmp_path / name, "dev")["logits"])
    np.testing.assert_allclose(*logits, atol=1e-3)


def test_early_stopping_on_the_first_rows(finetune):
    rows = {"max_train_samples": 10, "max_eval_samples": 5, "max_predict_samples": 3}
    code, result = finetune(learning_rate="0", num_train_epochs=9, early_stopping_patience=2, **rows)
    assert code == 0 and len(result["evaluations"]) == 3 and result["stopped_by"] == "early_stopping"
    assert result["rows"] == {"train": 10, "dev": 5, "test": 3}


def test_evaluation_alone(finetune, tmp_path, capfd):
    first, trained = finetune(task_name="RTE")[1], tmp_path / "out" / "model"
    flags = {"task_name": "RTE", "model_name_or_path": trained, "output_dir": tmp_path / "b"}
    code, again = finetune("--do_eval", "--do_predict", **flags)
    assert code == 0 and again["metrics"] == first["metrics"] and again["steps"] == 0 and again["best_epoch"] is None
    assert predictions(tmp_path / "b", "test") == predictions(tmp_path / "out", "test")
    # a head that numbers the labels the other way round
    turned = tmp_path / "turned"
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0).clone())
    model.config.id2label, model.config.label2id = {0: "not_entailment", 1: "entailment"}, {}
    model.save_pretrained(turned)
    AutoTokenizer.from_pretrained(trained).save_pretrained(turned)
    code, again = finetune("--do_eval", task_name="RTE", model_name_or_path=turned, output_dir=tmp_path / "c")
    assert code == 0 and again["metrics"] == first["metrics"]
    assert finetune("--do_eval", task_name="RTE", output_dir=tmp_path / "d") == (2, None)
    assert (
        "has no head for RTE (bert.pooler.dense.bias is missing or of another size); add --do_train"
        in capfd.readouterr().err
    )


def test_training_alone_keeps_the_last_weights(finetune, tmp_path):
    code, result = finetune("--do_train", num_train_epochs=1, max_train_samples=10)
    assert code == 0 and result["metrics"] == result["predictions"] == {} and result["headline"]["value"] is None
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model").config.num_labels == 2


def test_a_budget_ends_the_run_in_time(finetune):
    code, result = finetune(num_train_epochs=100000, total_training_time="10s", max_steps=-1)
    assert code == 0 and result["stopped_by"] == "budget"
    assert 7 < result["seconds"]["total"] <= 10.0 == result["budget_seconds"]
    code, result = finetune("--overwrite_output_dir", num_train_epochs=1, total_training_time="1h")
    assert code == 0 and result["stopped_by"] == "num_train_epochs" and result["steps"] == 8


@pytest.mark.parametrize(("epochs", "time"), [(100000, "9s"), (3, "1h"), (3, None)])
def test_the_rate_is_down_at_whichever_end_comes_first(options, epochs, time):
    steps = {"eval_strategy": "no", "logging_steps": 1, "warmup_steps": 0.1, "lr_scheduler_type": "polynomial"}
    limit = {} if time is None else {"total_training_time": time}
    request = parse_request(words({**options, **steps, **limit, "num_train_epochs": epochs}))
    one = run.GlueRun(request, BudgetClock(request.total_seconds or math.inf), StopRequest())
    one.load()
    one.build_trainer()
    one.claim_folder()
    one.train()
    rates = [line["learning_rate"] for line in one.trainer.state.log_history if "learning_rate" in line]
    assert max(rates) > 8e-4 and rates[-1] < 1e-4, (rates[:3], rates[-3:])
    top = rates.index(max(rates))
    assert rates[0] < 4e-4 and all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))


def test_the_data_set_and_the_files_give_the_same_run(finetune, tmp_path):
    samples = ROOT / "tests" / "glue" / "samples"
    sources = {"files": {"glue_dir": samples / "official"}, "hub": {"glue_dir": None, "dataset_name": samples / "hub"}}
    digests = set()
    for name, source in sources.items():
        code, result = finetune(task_name="MNLI", output_dir=tmp_path / name, num_train_epochs=1, **source)
        assert code == 0 and result["absent_splits"] == {}
        assert set(result["metrics"]) == {"dev_matched", "dev_mismatched"}
        digests.add(result["data_sha256"])
    assert len(digests) == 1
    for split in ("dev_matched", "dev_mismatched", "test_matched", "test_mismatched", "ax"):
        assert predictions(tmp_path / "files", split) == predictions(tmp_path / "hub", split)


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        (["--evaluation_strategy", "steps"], {"eval_strategy": "steps"}),
        (["--evaluation-strategy=no"], {"eval_strategy": "no"}),
        (["--group_by_length", "true", "--bf16"], {"train_sampling_strategy": "group_by_length", "bf16": "true"}),
        (["--group_by_length", "False"], {"train_sampling_strategy": "random"}),
        (["--no_save_model"], {"save_model": "false"}),
        (["--warmup_ratio", "0.1"], {"warmup_steps": "0.1"}),
        (["--eval_strategy", "no", "--evaluation_strategy", "epoch"], {"eval_strategy": "epoch"}),
    ],
)
def test_flags_of_earlier_trainers(options, given, understood):
    request = parse_request([*words(options), *given])
    assert {name: request.explicit[name] for name in understood} == understood


@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_two_processes_score_every_row_once(options, tmp_path, engine):
    options |= {"num_train_epochs": 1}
    if engine == "ddp":
        launch({**options, "total_training_time": "5m"}, processes=2, script="finetune_glue.py", ok=True)
    else:
        pytest.importorskip("deepspeed")
        launch_form(write_cpu_form("zero2", tmp_path), options, script="finetune_glue.py", ok=True)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["environment"]["processes"] == 2 and result["steps"] == 4
    assert result["metrics"]["dev"] == scored(tmp_path / "out", "MRPC")
    left = predictions(tmp_path / "out", "dev")
    assert left["rows"] == ROWS["dev"] and predictions(tmp_path / "out", "test")["rows"] == ROWS["test"]
    lines = [line.split("\t") for line in (options["glue_dir"] / "MRPC" / "dev.tsv").read_text().splitlines()[1:]]
    assert_model_predicts(tmp_path / "out", "dev", [row[3] for row in lines], [row[4] for row in lines])


def test_a_signal_ends_it_without_a_result(options, tmp_path):
    options["num_train_epochs"] = 100000
    process = spawn([sys.executable, "finetune_glue.py", *words(options)])
    lines = []
    wait_for(lambda: lines.append(process.stderr.readline()) or "epoch 1.00" in lines[-1])
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 85 and not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task_name": "MPRC"}, "task_name: 'MPRC' is no task of GLUE; did you mean MRPC?"),
        ({"task_name": None}, "task_name: missing; add --task_name MRPC"),
        ({"model_name_or_path": None}, "model_name_or_path: missing; add"),
        ({"max_seq_lenght": 12}, "max_seq_lenght: unknown key (command line); did you mean max_seq_length?"),
        ({"max_seq_length": 128}, "max_seq_length: 128 is beyond the 64 tokens of"),
        ({"max_seq_length": 2}, "max_seq_length: 2 is out of range; give a whole number from 8 on"),
        ({"early_stopping_patience": 0}, "early_stopping_patience: 0 is out of range; give a whole number from 1 on"),
        ({"save_steps": 100}, "save_steps: not used here (command line); the best model by"),
        ({"fp16": "true"}, "fp16: True needs a GPU; use --bf16 true"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a number"),
        ({"num_train_epochs": 0}, "num_train_epochs: 0 is not above 0; give"),
        ({"total_training_time": "soon"}, "total_training_time: 'soon' is not a duration; write it as"),
        ({"total_training_time": "0.2s"}, "total_training_time: 0.2s is spent before the first step (set-up and the"),
        ({"total_training_time": "1h", "lr_scheduler_type": "inverse_sqrt"}, "lr_scheduler_type: 'inverse_sqrt' does"),
        ({"glue_dir": "/nowhere"}, "glue_dir: /nowhere is not a folder; give one"),
        ({"task_name": "QNLI"}, "do_train: QNLI has no data for it (QNLI/train.tsv is not in"),
        ({"task_name": "AX"}, "task_name: AX has nothing to train on; use MNLI"),
        ({"report_to": "nobody"}, "report_to: 'nobody' cannot be used"),
        (
            {"model_name_or_path": "nobody/nothing"},
            "model_name_or_path: nobody/nothing is no folder and cannot be fetched",
        ),
    ],
)
def test_a_mistake_is_one_line(finetune, error, tmp_path, monkeypatch, changes, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert finetune(**changes) == (2, None)
    assert error().startswith(expected)
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize(("split", "since"), [("dev", 1), ("dev", 3), ("test", 1)])
def test_outputs_that_are_not_finite(finetune, tmp_path, monkeypatch, capfd, split, since):
    """They are no predictions, and training ends; what was best before (two evaluations) is kept."""
    real, calls = Predictor.logits, []

    def diverging(self, model, rows, *args):
        calls.extend([1] * (len(rows) == ROWS[split]))
        return real(self, model, rows, *args) + (np.nan if len(calls) >= since and len(rows) == ROWS[split] else 0)

    monkeypatch.setattr(Predictor, "logits", diverging)
    code, result = finetune(task_name="STS-B", num_train_epochs=3)
    told = f"predictions: STS-B, {split}, has some that are not finite: training diverged; lower"
    assert told in capfd.readouterr().err and (code, result is None) == ((1, True) if since == 1 else (0, False))
    if result:
        assert result["stopped_by"] == "diverged" and len(result["evaluations"]) == 2
        assert result["metrics"]["dev"] == scored(tmp_path / "out", "STS-B")


def test_engines_that_shard_weights(finetune, error, monkeypatch):
    monkeypatch.setattr(run, "resolve_engine", lambda arguments: "deepspeed-zero3")
    assert finetune() == (2, None)
    assert error().startswith("distributed_type: deepspeed-zero3 shards the weights, which an encoder")


def edit(folder, name, **changes):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def plain_tokenizer(folder, **changes):
    """One that puts nothing around a text."""
    edit(folder, "tokenizer", post_processor=None)
    edit(folder, "tokenizer_config", tokenizer_class="PreTrainedTokenizerFast", **changes)


def move_config(folder):
    (folder / "final").mkdir()
    (folder / "config.json").rename(folder / "final" / "config.json")


def leave_pieces(folder):
    remove_tokenizer(folder)
    (folder / "spiece.model").write_bytes(b"\n\x0e")


def remove_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink()


def tear_weights(folder):
    os.truncate(folder / "model.safetensors", os.path.getsize(folder / "model.safetensors") // 2)


def halve_model(folder):
    state = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda model: (model / "config.json").unlink(), "has no config.json; give the folder that has one"),
        (move_config, "/final"),
        (lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"), "has no *.safetensors, and"),
        (remove_tokenizer, "has no tokenizer (tokenizer.json, ...); give --tokenizer_name"),
        (leave_pieces, "holds a sentencepiece model alone (spiece.model); load it where sentencepiece is installed"),
        (partial(plain_tokenizer, cls_token=None), "has no [CLS] token; give the tokenizer of a BERT-like model"),
        (
            partial(plain_tokenizer, mask_token=None),
            "(TokenizersBackend) has no [MASK] token; give the tokenizer of a",
        ),
        (plain_tokenizer, "puts no [CLS] and [SEP] around a text; give it"),
        (tear_weights, "gives no classifier of MRPC ("),
        (halve_model, "weights of its encoder (bert.encoder.layer.1."),
        (lambda model: edit(model, "config", vocab_size=5), "tokens are more than the 5 of"),
        (lambda model: edit(model, "config", max_position_embeddings=128), "position_embeddings.weight has the shape"),
        (lambda model: GPT2Config().save_pretrained(model), "model_name_or_path: "),
    ],
)
def test_a_checkpoint_that_is_none(finetune, error, tmp_path, tiny_model, damage, expected):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    assert finetune(model_name_or_path=folder) == (2, None)
    assert expected in error()


def test_another_models_tokenizer(finetune, error, tmp_path, tiny_model):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    vocabulary = json.loads(text)["model"]["vocab"]
    first, second = [name for name, number in vocabulary.items() if number in (20, 21)]
    swapped = text.replace(f'"{first}": 20', '"?": 20').replace(f'"{second}": 21', f'"{first}": 21')
    (other / "tokenizer.json").write_text(swapped.replace('"?": 20', f'"{second}": 20'))
    assert finetune(model_name_or_path=tiny_model, tokenizer_name=other) == (2, None)
    assert f"tokenizer_name: {other} is not that of {tiny_model} (token 20 is '{first}' in" in error()
    assert finetune(model_name_or_path=tiny_model / "model.safetensors") == (2, None)
    assert "model.safetensors is a file; give the folder of the whole checkpoint" in error()


def with_head(folder, tiny_model, names):
    """A classifier whose head says by its weights which row belongs to which label; returns its tokenizer."""
    config = AutoConfig.from_pretrained(tiny_model, id2label=dict(enumerate(names)), num_labels=len(names))
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.arange(float(len(names))))
    model.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("task", "names", "order"),
    [
        ("MNLI", "contradiction entailment neutral", [1, 2, 0]),
        ("MNLI", "CONTRADICTION ENTAILMENT NEUTRAL", [1, 2, 0]),
        ("MNLI", "entail neutral contradict", [0, 1, 2]),
        ("MNLI", "Contradicts Neutral Entailed", [2, 1, 0]),
        ("RTE", "not-entailment entailment", [1, 0]),
        ("QNLI", "non_entailed entailed", [1, 0]),
        ("WNLI", "entailment not_entailment", [1, 0]),
        ("QQP", "is_duplicate not_duplicate", [1, 0]),
        ("MRPC", "paraphrase not_paraphrase", [1, 0]),
        ("CoLA", "acceptable unacceptable", [1, 0]),
        ("SST-2", "POS NEG", [1, 0]),
        ("MNLI", "LABEL_0 LABEL_1 LABEL_2", None),
        ("SST-2", "0 1", None),
        ("SST-2", "LABEL_1 LABEL_0", "its labels LABEL_1, LABEL_0 are not those of SST-2"),
        ("RTE", "yes no", "its labels yes, no are not those of RTE (entailment, not_entailment); correct id2label in"),
        ("QQP", "entailment not_entailment", "are not those of QQP (not_duplicate, duplicate)"),
        ("MNLI", "entailment not_entailment", "has no head for MNLI (classifier.bias is missing or of another size)"),
    ],
)
def test_a_head_comes_into_the_order_of_the_tasks_labels(tiny_model, tmp_path, caplog, task, names, order):
    tokenizer = with_head(tmp_path / "model", tiny_model, names.split())
    load = partial(load_classifier, tmp_path / "model", TASKS[task], tokenizer, 32, 0)
    if isinstance(order, str):
        with pytest.raises(InputError, match="^model_name_or_path: ") as caught:
            load(new_head=False)
        assert order in str(caught.value)
        assert load().config.num_labels == len(TASKS[task].labels), "to be trained, it may be anything"
        return
    with caplog.at_level("INFO"):
        model = load(new_head=False)
    assert model.classifier.bias.tolist() == (order or list(range(len(names.split()))))
    assert model.labels_assumed is (order is None) and ("say nothing: taken as" in caplog.text) is (order is None)
    assert [model.config.id2label[n] for n in range(len(names.split()))] == list(TASKS[task].labels)


def test_token_types_that_a_model_does_not_have_are_left_out(finetune, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edit(folder, "config", type_vocab_size=1)
    state = load_file(folder / "model.safetensors")
    state["bert.embeddings.token_type_embeddings.weight"] = state["bert.embeddings.token_type_embeddings.weight"][:1]
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    code, result = finetune("--do_train", "--do_eval", task_name="RTE", model_name_or_path=folder, num_train_epochs=1)
    assert code == 0 and result["rows"]["dev"] == ROWS["dev"] and result["labels_assumed"] is False
    kept = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert "token_type_ids" not in kept("a", "the"), "nor does who loads the model give any"


def test_a_disk_or_a_memory_that_takes_no_more(finetune, error, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(run, "write_result", full)
    assert finetune(num_train_epochs=1) == (1, None)
    assert error() == f"{tmp_path}/x: No space left on device; mend that, then repeat the command"

    def greedy(*args, **kwargs):
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(GlueTrainer, "training_step", greedy)
    assert finetune("--overwrite_output_dir")[0] == 1
    told = error()
    assert told.startswith("per_device_train_batch_size: 8 does not fit") and told.endswith("then repeat the command")


def test_nothing_is_overwritten_silently(finetune, error, tmp_path):
    assert finetune(num_train_epochs=1)[0] == 0
    before = (tmp_path / "out" / "result.json").read_text()
    assert finetune(num_train_epochs=1, seed=7)[0] == 2
    assert "already has result.json; add --overwrite_output_dir to replace it" in error()
    assert (tmp_path / "out" / "result.json").read_text() == before
    assert finetune("--overwrite_output_dir", num_train_epochs=1, seed=7)[1]["seed"] == 7


def test_the_folder_is_the_run_s_from_its_first_look_to_its_last_file(finetune, error, tmp_path, monkeypatch):
    out, held = tmp_path / "out", []
    with hold_folder(out):
        assert finetune()[0] == 2 and f"{out} is in use by process {os.getpid()} on " in error()
    for name in ("load", "build_trainer", "claim_folder", "train", "predict", "write_result", "push"):
        monkeypatch.setattr(run.GlueRun, name, lambda _: held.append(try_lock(out / ".lock") is None))
    assert finetune() == (0, None) and held == [True] * 7
    assert not list(out.iterdir()) and try_lock(out / ".lock")


def test_every_flag_of_training_arguments_is_read_or_refused():
    own = {field.name for field in fields(GROUPS[-1]) if field.init}
    assert own == {field.name for field in fields(RunArguments) if field.init}
    assert set(REFUSED) <= own


def test_energy_is_read_once_a_second_whatever_is_logged(finetune, monkeypatch):
    kept = []
    monkeypatch.setattr(EnergyMeter, "keep_reading", lambda meter: kept.append(meter))
    code, result = finetune(num_train_epochs=1, logging_steps=500)
    assert code == 0 and len(kept) == 1
    assert 0 < result["energy"]["seconds"] <= result["seconds"]["total"]
