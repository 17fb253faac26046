"""peft: adapters in a plain Trainer, and in SFTTrainer; only the adapter is rehearsed and saved."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from tests.ecosystem.conftest import flags, train

peft = pytest.importorskip("peft", reason="peft is not installed; make test-ecosystem has it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Endless(torch.utils.data.IterableDataset):
    """The rows once, without a length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["callback", "mixin"])
def test_lora(way, stream, encoder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(encoder)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    ids = torch.randint(5, 100, (64, 16), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": int(row[0] < 50)} for row in ids]
    args = TrainingArguments(**flags(tmp_path, way, stream))
    trainer = train(Trainer, way, model=model, args=args, train_dataset=Endless(rows) if stream else rows)
    assert trainer.state.global_step > 64 / 4, "more than one pass"
    saved = {path.name for path in (tmp_path / "final").iterdir()}
    assert "adapter_model.safetensors" in saved and "model.safetensors" not in saved
