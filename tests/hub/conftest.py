"""A finished run with a tiny model, as its output folder holds it."""

import shutil

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from budget_trainer.core.io import write_json_atomic
from budget_trainer.reporting.report import _draw_report
from tests.hub.server import TOKEN
from tests.reporting.test_report import report


def local(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


NATIVE = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def write_model(folder, tokenizer_folder, seed, kind=BertForMaskedLM):
    """A tiny BERT with its tokenizer, as save_pretrained writes them."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    """The output folder of a run, with what else lies there."""
    folder = tmp_path_factory.mktemp("finished") / "mini"
    for number, name in enumerate(("finetune-50", "finetune-12.5", "final")):
        write_model(folder / name, tokenizer, number)
    recipe = {"learning_rate": 1e-3, "data_dir": "/home/ada/data", "model_config": "/home/ada/odd.json"}
    recipe["hub_token"] = TOKEN
    data = {"sources": [{"name": "wikimedia/wikipedia", "kind": "dataset", "documents": 400}], "tokens": 9000}
    write_json_atomic(folder / "run_report.json", report(model_type="bert", recipe=recipe, data=data))
    _draw_report(report(), [], folder / "run_report.png")
    (folder / "final" / "training_args.bin").write_bytes(b"\x80\x04pickle")
    (folder / "checkpoint-7").mkdir()
    (folder / ".partial-finetune-90").mkdir()
    (folder / "clock.json").write_text("{}")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "mini")
