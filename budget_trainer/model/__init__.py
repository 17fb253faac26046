"""Native Transformers models with sparse prediction and fast attention, losses, initial weights and optimizers."""
