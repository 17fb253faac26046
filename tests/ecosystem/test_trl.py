"""trl: supervised fine-tuning of texts that lie in a table or come as a stream, packed or not, and GRPO."""

import pytest
from datasets import Dataset

from tests.ecosystem.conftest import flags, train

trl = pytest.importorskip("trl", reason="trl is not installed; make test-ecosystem has it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["callback", "mixin"])
def test_sft(way, stream, packing, causal, texts, tmp_path):
    model, tokenizer = causal
    rows = Dataset.from_list([{"text": text} for text in texts])
    rows = rows.to_iterable_dataset() if stream else rows
    args = trl.SFTConfig(**flags(tmp_path, way, stream), max_length=32, packing=packing)
    trainer = train(trl.SFTTrainer, way, model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    assert trainer.state.global_step > 64 / 4, "more than one pass"
    assert (tmp_path / "final" / "model.safetensors").exists()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["callback", "mixin"])
def test_grpo(way, stream, causal, texts, tmp_path):
    model, tokenizer = causal
    rows = Dataset.from_list([{"prompt": text} for text in texts[:8]])
    rows = rows.to_iterable_dataset() if stream else rows
    args = trl.GRPOConfig(**flags(tmp_path, way, stream), num_generations=2, max_completion_length=4)

    def longest(completions, **_):
        return [float(len(text)) for text in completions]

    train(
        trl.GRPOTrainer,
        way,
        model=model,
        reward_funcs=longest,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert (tmp_path / "final" / "model.safetensors").exists()
