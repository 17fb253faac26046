#!/usr/bin/env python3
"""Search for the best recipe: many short trainings under a total time, built on Optuna.

    python sweep.py recipes/sweeps/cpu_10m.yaml --output_dir out/sweep --total_time 8h
    python sweep.py --param_file original.yaml --job_name experiment --dry_run

The story is in budget_trainer/sweep/__init__.py; an installed package runs it as `-m budget_trainer.sweep` or budget-sweep.
"""

import sys

from budget_trainer.sweep import main

if __name__ == "__main__":
    sys.exit(main())
