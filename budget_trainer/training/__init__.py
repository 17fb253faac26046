"""One pre-training run: its Trainer, callbacks, saving, recovery, engines.

`run.PretrainingRun` is the story; the other modules are its parts.
"""
