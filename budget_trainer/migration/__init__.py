"""From the original's command lines (IntelLabs/academic-budget-bert) to recipes; `python -m budget_trainer.migrate`."""
