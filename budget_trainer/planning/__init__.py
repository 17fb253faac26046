"""What a budget will buy on this machine: a probe of a minute, and a prediction from it (`budget_trainer.plan`)."""
