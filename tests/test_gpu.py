"""What only a GPU can show: the hot loop waits for the device no more than the one-step lag."""

import pytest
import torch
from transformers import TrainerCallback

from budget_trainer import BudgetClock, TimeBudgetCallback
from budget_trainer.config.arguments import RunArguments
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.masking import MaskingCollator
from budget_trainer.model.optimizers import build_optimizer
from budget_trainer.training.trainer import TimeBudgetTrainer
from tests.model.models import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Strict(TrainerCallback):
    """From step 4 to 11 every implicit synchronisation is an error; the loss is not logged in between."""

    steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("error" if 4 <= state.global_step < 12 else "default")
        self.steps += 4 <= state.global_step < 12

    def on_train_end(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("model_type", ["bert-mlm", "bert", "modernbert"])
@pytest.mark.parametrize("optimizer_type", ["adamw", "lamb", "muon"])
def test_the_hot_loop_does_not_synchronise(data_dir, tmp_path, model_type, optimizer_type):
    data = DataFolder.open(data_dir)
    vocabulary = {"vocab_size": data.vocab_size, "special_ids": data.special_ids}
    model = tiny(model_type, **vocabulary, hidden_size=64, hidden_dropout_prob=0.1)
    collator = MaskingCollator(seed=1, **vocabulary, block_size=data.block_size)
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_steps": 1000, "logging_first_step": False}
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    run = RunArguments(output_dir=str(tmp_path), max_steps=16, bf16=True, **batch, **quiet)
    strict = Strict()
    trainer = TimeBudgetTrainer(
        model=model,
        args=run,
        train_dataset=data.train(seed=1),
        data_collator=collator,
        create_optimizer_fn=lambda m: build_optimizer(optimizer_type, m, learning_rate=1e-3),
        time_budget=TimeBudgetCallback(clock=BudgetClock("10m")),
        callbacks=[strict],
    )
    trainer.train()
    assert trainer.state.global_step == 16 and strict.steps == 8
