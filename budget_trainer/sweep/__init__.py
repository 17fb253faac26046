"""The search for the best recipe under a total time.

Used by `sweep.py`. Optuna asks and tells; each trial is a process of `train_mlm.py`.
"""
