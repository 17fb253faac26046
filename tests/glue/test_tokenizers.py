"""Tokenizers that are not BERT's: RoBERTa's marks have other names and serve as well; GPT-2's has none."""

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import GPT2Tokenizer, RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

from tests.glue.conftest import BAD, GOOD, PLAIN, THINGS, predictions

MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture
def roberta(tmp_path):
    """A RoBERTa of random weights with its byte-level tokenizer."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator([" ".join(GOOD + BAD + THINGS + PLAIN)] * 3, vocab_size=320, special_tokens=MARKS)
    learner._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    folder = tmp_path / "roberta"
    folder.mkdir()
    learner.save_model(str(folder))
    RobertaTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=320, max_position_embeddings=66, initializer_range=0.05, **sizes)
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def test_robertas_marks_serve(finetune, roberta, tmp_path):
    code, result = finetune(model_name_or_path=roberta, num_train_epochs=1)
    assert code == 0 and result["model"]["type"] == "roberta"
    assert predictions(tmp_path / "out", "dev")["rows"] == 17


def test_gpt2s_has_none(finetune, roberta, error):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (roberta / name).unlink()
    tokenizer = GPT2Tokenizer.from_pretrained(str(roberta))
    tokenizer.save_pretrained(roberta)
    assert finetune(model_name_or_path=roberta) == (2, None)
    line = error()
    assert line.startswith(f"tokenizer_name: {roberta} (") and "has no [CLS], [SEP], [PAD], [MASK] token" in line
    assert "give the tokenizer of a BERT-like model" in line
