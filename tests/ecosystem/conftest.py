"""Tiny models, tokenizers and texts for the trainers of other libraries, all made here, and what is asked of each training."""

import random

import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from budget_trainer import TimeBudgetCallback, TimeScheduleMixin

SECONDS, PEAK = 5, 1e-3
LEXICON = [f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in "mnrst"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(autouse=True)
def one_thread():
    """And nothing of another test's precision or engine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def texts():
    """Of 6 to 16 words; so few that a training passes over them again and again."""
    chance = random.Random(0)
    return [" ".join(chance.choices(LEXICON, k=chance.randint(6, 16))) for _ in range(64)]


@pytest.fixture
def causal():
    """A Llama of random weights and its tokenizer of whole words."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *LEXICON])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[SEP]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES, pad_token_id=0, eos_token_id=3
    )
    return LlamaForCausalLM(config), tokenizer


@pytest.fixture
def encoder(tmp_path):
    """The folder of a BERT of random weights and its tokenizer of whole words."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *LEXICON]) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def flags(folder, way, stream=False):
    """Of TrainingArguments: `max_steps` only where Trainer itself asks for one, whatever it says."""
    told = {
        "output_dir": str(folder),
        "learning_rate": PEAK,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
    }
    told |= {"report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 4}
    if way == "callback":  # whose trainer keeps a schedule of its own, by steps
        told |= {"lr_scheduler_type": "constant"} | ({"max_steps": 1_000_000} if stream else {})
    return told


def train(trainer_class, way, **options):
    """Train with the budget as docs/plugins.md has it: the callback in the library's trainer, or the mixin in front of it."""
    if way == "callback":
        budget = TimeBudgetCallback(SECONDS)
        trainer = trainer_class(**options, callbacks=[budget])
    else:
        mixed = type(f"Budget{trainer_class.__name__}", (TimeScheduleMixin, trainer_class), {})
        trainer = mixed(**options, total_training_time=SECONDS)
        budget = trainer.time_budget
    trainer.train()
    trainer.save_model(str(trainer.args.output_dir) + "/final")
    check(trainer, budget, way)
    return trainer


def check(trainer, budget, way):
    """The budget ended it, most of it was used, the model is on disk in time, and the mixin's rate has come down.

    Shares, with room for a step that stalls.
    """
    used = budget.clock.elapsed_seconds() / budget.clock.total_seconds
    assert budget.stop_reason == "budget" and 0.5 < budget.share and used < 1.25, (
        budget.stop_reason,
        budget.share,
        used,
    )
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert trainer.state.global_step >= len(rates) > 3
    last = trainer.lr_scheduler.get_last_lr()[0]
    if way == "callback":
        assert min(rates) == max(rates) == last == PEAK
    elif way == "mixin":
        assert 0.7 * PEAK < max(rates) <= PEAK and last < 0.05 * PEAK, (max(rates), last)
