#!/usr/bin/env python3
"""Fine-tune a checkpoint on GLUE: one task, several, or all of them with a grid and seeds, inside a time budget.

    accelerate launch --config_file accelerate_configs/cpu.yaml finetune_glue.py --model_name_or_path out/run/final \
        --task_name MRPC --output_dir out/mrpc
    python finetune_glue.py --model_name_or_path out/run/final --task_name all --grid recipes/glue/paper.yaml \
        --intermediate_task MNLI --output_dir out/glue --total_training_time 1h

The story is in budget_trainer/finetune_glue.py, whose first line starts the clock before the heavy imports; an installed
package runs it as `-m budget_trainer.finetune_glue` or budget-finetune-glue.
"""

from budget_trainer.finetune_glue import command

if __name__ == "__main__":
    command()
