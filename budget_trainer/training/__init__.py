"""One pre-training run: its parts, its Trainer, callbacks, saving and recovery, evaluation, precision, engines."""
