#!/usr/bin/env python3
"""Pre-train a masked language model inside a wall-clock budget.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_mlm.py recipes/quickstart.yaml \
        --data_dir out/data --output_dir out/run --total_training_time 10m

The story is in budget_trainer/train_mlm.py, whose first line starts the clock before the heavy imports; an installed package
runs it as `-m budget_trainer.train_mlm` or budget-train-mlm.
"""

from budget_trainer.train_mlm import command

if __name__ == "__main__":
    command()
