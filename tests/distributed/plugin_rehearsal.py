"""The first program of docs/plugins.md on two CPU processes under an engine: `torchrun ... plugin_rehearsal.py ENGINE FOLDER`.

Prints the bytes of weights that the rehearsed and the real save wrote. For FSDP2 on a CPU see fsdp_on_cpu.py.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from budget_trainer import TimeBudgetCallback  # noqa: E402
from tests.distributed import gloo_as_gpus  # noqa: E402

engine, folder = sys.argv[1], Path(sys.argv[2])
ZERO_3 = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}
ZERO_3 |= dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"), "auto")
if engine == "fsdp":
    gloo_as_gpus.patch()


def written(path):
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))


remove = shutil.rmtree
sizes = []
shutil.rmtree = lambda path, **options: (sizes.append(written(Path(path))), remove(path, **options))
model = BertForSequenceClassification(
    BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
)
parameters = sum(4 * parameter.numel() for parameter in model.parameters())
ids = torch.randint(100, (64, 16), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": int(row[0] < 50)} for row in ids]
budget = TimeBudgetCallback("1h")
args = TrainingArguments(
    str(folder), max_steps=2, report_to="none", use_cpu=True, deepspeed=ZERO_3 if engine == "zero3" else None
)
trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[budget])
trainer.train()
trainer.save_model(str(folder / "final"))
if trainer.is_world_process_zero():
    print(
        f"rehearsed {max(sizes)}, saved {written(folder / 'final')} of {parameters}; reserved {budget.reading.save > 0.3}"
    )
