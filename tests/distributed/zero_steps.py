"""A few steps of each optimizer under whatever engine the launcher chose: `zero_steps.py FOLDER NAME...`.

Every rank writes the digest of its last weights; the main process also the losses and the weights.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainingArguments

from budget_trainer.core.command import exit_process
from budget_trainer.model.optimizers import build_optimizer

LEARNING_RATE, STEPS = 0.02, 12


class Small(nn.Module):
    """An embedding, matrices wider than tall and taller than wide, a norm, a decoder."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.up, self.norm, self.down = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 8)
        self.decoder = nn.Linear(8, 20)

    def get_output_embeddings(self):
        return self.decoder

    def forward(self, input_ids, labels):
        logits = self.decoder(self.down(torch.relu(self.norm(self.up(self.embed(input_ids))))))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


class Words(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        ids = torch.tensor([(index * 7 + 3 * i) % 20 for i in range(8)])
        return {"input_ids": ids, "labels": (ids + 1) % 20}


class Steps(Trainer):
    def __init__(self, name, **kwargs):
        self.name = name
        super().__init__(**kwargs)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            plugin = self.args.deepspeed_plugin
            stage = None if plugin is None else plugin.zero_stage
            options = {"learning_rate": LEARNING_RATE, "weight_decay": 0.1, "muon_weight_decay": 0.2}
            self.optimizer = build_optimizer(self.name, self.model, zero_stage=stage, **options)
        return self.optimizer


def main(folder, names):
    for name in names:
        torch.manual_seed(0)
        args = TrainingArguments(
            str(folder / name),
            per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
            gradient_accumulation_steps=2,
            max_steps=STEPS,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Steps(name, model=Small(), args=args, train_dataset=Words())
        trainer.train()
        weights = {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        record = {"digest": digest, "losses": losses, "zero": trainer.is_deepspeed_enabled}
        (folder / f"{name}-{args.process_index}.json").write_text(json.dumps(record))
        if args.process_index == 0:
            save_file(weights, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # a rank whose peer leaves while it still works may abort
    exit_process(0)
